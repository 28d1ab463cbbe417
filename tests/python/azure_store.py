"""Runs pipelines to and from Azure's blob storage, in Microsoft's emulator, and reads the container with Microsoft's client and pyarrow.

Usage: azure_store.py GROUNDLOOM_BINARY AZURITE_BLOB

AZURITE_BLOB is the program `azurite-blob` of the npm package `azurite` (Node), which CI has not got; needs azure-storage-blob and pyarrow.
Prints each failed check and, last, `N passed, N failed`.
"""
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from azure.storage.blob import BlobServiceClient

from tally import Tally

# The account and the key that every installation of the emulator has.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
PIPELINE = """
params: { to: out, least: 0.2 }
sources: { rows: { type: jsonl, path: rows.jsonl } }
stages: { some: { type: filter, where: "score > ${least}" } }
sinks: { out: { type: parquet, path: "${to}" } }
"""
BACK = """
sources: { rows: { type: parquet, path: "az://datasets/made/data" } }
sinks: { out: { type: jsonl, path: back } }
"""


def main(binary, azurite):
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (folder / "azurite").mkdir()
        server = subprocess.Popen([azurite, "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"],
                                  cwd=folder / "azurite", stdout=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}/{ACCOUNT}"
            client = BlobServiceClient(url, credential={"account_name": ACCOUNT, "account_key": KEY}, retry_total=0)
            for _ in range(100):
                try:
                    client.create_container("datasets")
                    break
                except Exception:
                    time.sleep(0.1)
            check(binary, folder, url, client.get_container_client("datasets"), tally)
        finally:
            server.terminate()
    return tally.close()


def check(binary, folder, url, container, tally):
    environment = {**os.environ, "AZURE_STORAGE_USE_EMULATOR": "true", "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_ALLOW_HTTP": "true",
                   "AZURITE_BLOB_STORAGE_URL": url.removesuffix(f"/{ACCOUNT}")}
    (folder / "make.yaml").write_text(PIPELINE)
    (folder / "back.yaml").write_text(BACK)
    rows = [{"id": i, "text": f"row {i}", "score": i / 20_000} for i in range(20_000)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(*arguments):
        return subprocess.Popen([binary, "run", *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(*arguments):
        process = start(*arguments)
        said = "".join(process.communicate())
        tally.check(process.returncode == 0, f"{arguments}: exit {process.returncode}\n{said}")
        return said

    def published():
        manifest = json.loads(container.download_blob("made/_manifest/manifest.json").readall())
        there = {blob.name.removeprefix("made/"): blob.size for blob in container.list_blobs("made/")}
        tally.check(all(there.get(f["path"]) == f["bytes"] for f in manifest["files"]), "every file of the manifest is there, whole")
        tally.check(set(there) == {f["path"] for f in manifest["files"]} | {"_manifest/manifest.json"}, f"nothing else is there: {sorted(there)}")
        tables = [pq.read_table(io.BytesIO(container.download_blob(f"made/{path}").readall())) for path in sorted(there) if path.startswith("data/")]
        return [id for table in tables for id in table["id"].to_pylist()]

    run("make.yaml", "--set", "to=az://datasets/made")
    tally.check(published() == [r["id"] for r in rows if r["score"] > 0.2], "the rows of the first generation")
    tally.check("nothing to do" in run("make.yaml", "--set", "to=az://datasets/made"), "a second run does nothing")
    killed = 0
    for attempt in range(8):
        process = start("make.yaml", "--set", "to=az://datasets/made", "--set", "least=0.5")
        time.sleep(0.1 + 0.03 * attempt)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    tally.check(killed > 0, f"{killed} kills")
    run("make.yaml", "--set", "to=az://datasets/made", "--set", "least=0.5")
    kept = [r["id"] for r in rows if r["score"] > 0.5]
    tally.check(published() == kept, "after kills the rows of the second generation, once each")
    run("back.yaml")
    back = [json.loads(line)["id"] for file in sorted((folder / "back" / "data").iterdir()) for line in file.read_text().splitlines()]
    tally.check(back == kept, "the same rows read back from the container")


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])))
