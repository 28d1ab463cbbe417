"""Runs pipelines from and to object stores, with faults on the way, and reads the bucket with boto3 and pyarrow.

Usage: object_stores.py GROUNDLOOM_BINARY [s3|gs]

The server is moto's; a proxy in front of it answers a part of the requests with 503, cuts some answers in the middle and drops some connections.
For `gs://` the proxy also speaks the XML interface of Google's storage, which is that of S3 but for a few headers: tokens instead of signatures,
`x-goog-if-generation-match`, `x-goog-copy-source`, `x-goog-generation`. No emulator of that interface is known to us. So this shows that Groundloom's
requests by Google's client are right as far as its documentation says, not that Google answers as the proxy does.
Needs moto[s3,server] and boto3. Prints each failed check and, last, `N passed, N failed`.
"""
import http.client
import http.server
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import boto3
import pyarrow.parquet as pq
from moto.server import ThreadedMotoServer
from pyarrow import fs

from tally import Tally

ROOT = Path(__file__).resolve().parents[2]
KEY = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
# A service account that takes the empty token, as emulators of Google's storage are used.
ACCOUNT = {"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": True}
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}


class Faults:
    """What the proxy does to requests: a share of them fails, by a seeded draw."""

    def __init__(self):
        self.share, self.draw, self.seen, self.failed, self.delay = 0.0, random.Random(11), 0, 0, 0.0
        self.lock = threading.Lock()

    def next(self):
        with self.lock:
            self.seen += 1
            if self.draw.random() >= self.share:
                return None
            self.failed += 1
            return self.draw.choice(["busy", "cut", "drop"])


class Google:
    """Google's XML interface in front of S3's: generations for ETags, a token for a signature."""

    def __init__(self):
        self.generations, self.last, self.lock = {}, time.time_ns() // 1000, threading.Lock()

    def request(self, path, headers):
        """The headers as S3 has them."""
        # The server looks at who asks, not at the signature.
        here = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"}
        for name, value in headers.items():
            match name.lower():
                case "authorization":
                    if not value.startswith("Bearer"):
                        raise ValueError(f"Google's storage asks for a token, not for {value}")
                case "x-goog-copy-source":
                    here["x-amz-copy-source"] = value
                case "x-goog-if-generation-match" if value == "0":
                    here["If-None-Match"] = "*"
                case "x-goog-if-generation-match":
                    etag, generation = self.generations.get(path, ("", 0))
                    here["If-Match"] = etag if int(value) == generation else '"another"'
                case other if other.startswith(("x-goog-", "x-amz-")):
                    raise ValueError(f"an unknown header: {name}")
                case _:
                    here[name] = value
        return here

    def generation(self, method, path, etag):
        """Of the object that an answer with `etag` is about; every write makes a new one."""
        with self.lock:
            known, generation = self.generations.get(path, ("", 0))
            if method == "PUT" or known != etag:
                self.last += 1
                generation = self.last
                self.generations[path] = (etag, generation)
            return str(generation)


def proxy(port, faults, scheme):
    google = Google() if scheme == "gs" else None

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def relay(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            time.sleep(faults.delay)
            fault = faults.next()
            if fault == "drop":
                self.close_connection = True
                return
            if fault == "busy":
                answer = b"<Error><Code>SlowDown</Code></Error>"
                self.send_response(503)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            if google:
                headers = google.request(self.path, headers)
            upstream.request(self.command, self.path, body=body, headers={**headers, "Host": f"127.0.0.1:{port}"})
            answer = upstream.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP | {"content-length"}:
                    self.send_header(name, value)
            if google and answer.getheader("etag"):
                self.send_header("x-goog-generation", google.generation(self.command, self.path, answer.getheader("etag")))
            length = answer.getheader("content-length") if self.command == "HEAD" else str(len(data))
            self.send_header("content-length", length or "0")
            self.end_headers()
            cut = fault == "cut" and len(data) > 1
            try:
                self.wfile.write(data[: len(data) // 2] if cut else data)
            except BrokenPipeError:
                pass  # a client that was killed
            self.close_connection = cut

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


class World:
    def __init__(self, binary, folder, scheme, tally):
        self.binary, self.folder, self.scheme, self.tally, self.faults = binary, Path(folder), scheme, tally, Faults()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        self.direct = server.get_host_and_port()[1]
        self.endpoint = f"http://127.0.0.1:{proxy(self.direct, self.faults, scheme)}"
        self.s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.direct}", region_name="us-east-1",
                               aws_access_key_id="test", aws_secret_access_key="test")
        # Servers of one process share what they hold.
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.direct}/moto-api/reset", method="POST")).close()
        for bucket in ("pictures", "datasets"):
            self.s3.create_bucket(Bucket=bucket)

    def start(self, *arguments):
        google = {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps({**ACCOUNT, "gcs_base_url": self.endpoint}), "GOOGLE_ALLOW_HTTP": "true"}
        environment = {**os.environ, **({**KEY, "AWS_ENDPOINT": self.endpoint} if self.scheme == "s3" else google)}
        return subprocess.Popen([self.binary, *arguments], cwd=self.folder, env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments, expect=0):
        process = self.start(*arguments)
        _, said = process.communicate()
        self.tally.check(process.returncode == expect, f"{arguments}: exit {process.returncode}, expected {expect}\n{said}")
        return said

    def at(self, place):
        return f"{self.scheme}://{place}"

    def upload(self, local, prefix):
        for path in sorted(Path(local).rglob("*")):
            if path.is_file():
                self.s3.upload_file(str(path), "pictures", f"{prefix}/{path.relative_to(local)}")

    def objects(self, prefix):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket="datasets", Prefix=prefix + "/")
        return {o["Key"][len(prefix) + 1:]: o["Size"] for page in pages for o in page.get("Contents", [])}

    def content(self, key):
        return self.s3.get_object(Bucket="datasets", Key=key)["Body"].read()


def data_bytes(folder):
    return [path.read_bytes() for path in sorted(Path(folder, "data").rglob("*.parquet"))]


def remote_bytes(world, prefix):
    return [world.content(f"{prefix}/{key}") for key in sorted(world.objects(prefix)) if key.startswith("data/")]


def pictures(world):
    """The main job with photographs in a bucket and the data set in another."""
    pipeline = str(ROOT / "pipelines" / "grit.yaml")
    world.run("run", pipeline, "--set", f"input={ROOT}/examples/photos", "--set", "output=local")
    world.upload(ROOT / "examples" / "photos", "photos")
    arguments = ["run", pipeline, "--set", "input=" + world.at("pictures/photos"), "--set", "output=" + world.at("datasets/grit")]
    world.faults.share = 0.1
    world.run(*arguments)
    world.faults.share = 0.0
    world.tally.check(world.faults.failed > 0, "the proxy failed some requests")
    world.tally.check(remote_bytes(world, "grit") == data_bytes(world.folder / "local"), "a bucket in and out gives the same data bytes as local disks")
    manifest = json.loads(world.content("grit/_manifest/manifest.json"))
    there = world.objects("grit")
    world.tally.check(all(there.get(f["path"]) == f["bytes"] for f in manifest["files"]), "every file of the manifest is there, in its size")
    world.tally.check(set(there) == {f["path"] for f in manifest["files"]} | {"_manifest/manifest.json"}, f"and nothing else: {sorted(there)}")
    card = world.content("grit/README.md").decode()
    data = [f["path"] for f in manifest["files"] if f["path"].startswith("data/")]
    world.tally.check(all(os.path.dirname(path) + "/" in card for path in data), "the card names the generation's folder")
    bucket = fs.S3FileSystem(endpoint_override=f"127.0.0.1:{world.direct}", scheme="http", access_key="test", secret_key="test", region="us-east-1")
    rows = pq.ParquetDataset([f"datasets/grit/{p}" for p in data], filesystem=bucket).read()
    world.tally.check(rows.num_rows == manifest["rows"] > 0, "pyarrow reads the rows from the bucket")
    said = world.run(*arguments)
    world.tally.check(world.at("datasets/grit") + " is up to date" in said, f"a second run does nothing: {said}")
    world.run(*arguments, "--set", "min_score=0.6")
    again = world.objects("grit")
    world.tally.check(not set(data) & set(again), "the old generation's files are gone")
    world.tally.check(json.loads(world.content("grit/_manifest/manifest.json"))["fingerprint"] != manifest["fingerprint"], "a threshold makes a new generation")


def tables(world):
    """Parquet in a bucket: row groups, filters that skip some of them, a join with a local file."""
    lines = "".join(json.dumps({"id": i, "text": f"caption number {i}", "score": (i * 37 % 100) / 100}) + "\n" for i in range(200_000))
    (world.folder / "rows.jsonl").write_text(lines)
    (world.folder / "make.yaml").write_text(
        "sources: { rows: { type: jsonl, path: rows.jsonl } }\nsinks: { out: { type: parquet, path: \"${to}\" } }\nparams: { to: table }\nsettings: { shard_mib: 1 }\n")
    world.run("run", "make.yaml")
    world.run("run", "make.yaml", "--set", "to=" + world.at("datasets/table"))
    world.tally.check(remote_bytes(world, "table") == data_bytes(world.folder / "table"), "Parquet in a bucket is the local one")
    world.upload(world.folder / "table" / "data", "table")
    (world.folder / "read.yaml").write_text(
        "params: { from: table/data, to: kept }\nsources: { rows: { type: parquet, path: \"${from}\" } }\n"
        "stages:\n  some: { type: filter, where: id between 150000 and 160000 and score > 0.5 }\n"
        "  most: { type: sql, query: \"select score, count(*) n, min(text) first from some group by score order by score\" }\n"
        "sinks:\n  good: { type: parquet, input: some, path: \"${to}\" }\n  counts: { type: jsonl, path: \"${to}-counts\" }\n")
    world.run("run", "read.yaml")
    world.faults.share = 0.1
    world.run("run", "read.yaml", "--set", "from=" + world.at("pictures/table"), "--set", "to=" + world.at("datasets/kept"))
    world.faults.share = 0.0
    # Row ids hold the file's path below the pattern's root, which is the same in both.
    world.tally.check(remote_bytes(world, "kept") == data_bytes(world.folder / "kept"), "the same rows from a bucket as from a disk")
    counts = [world.content(f"kept-counts/{k}") for k in world.objects("kept-counts") if k.endswith(".jsonl")]
    local = [p.read_bytes() for p in (world.folder / "kept-counts").rglob("*.jsonl")]
    world.tally.check(counts == local and len(local) == 1, "the same counts")


def kills(world):
    """Killed while it uploads, again and again: whoever reads the manifest or the card finds one generation whole at every moment."""
    world.run("run", "make.yaml", "--set", "to=" + world.at("datasets/killed"))
    first = json.loads(world.content("killed/_manifest/manifest.json"))
    before = remote_bytes(world, "killed")
    (world.folder / "rows.jsonl").open("a").write('{"id": 200000, "text": "one more", "score": 0.1}\n')
    world.faults.delay = 0.02
    torn = killed = 0
    for attempt in range(12):
        process = world.start("run", "make.yaml", "--set", "to=" + world.at("datasets/killed"))
        time.sleep(0.15 + 0.1 * attempt)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        manifest = json.loads(world.content("killed/_manifest/manifest.json"))
        there = world.objects("killed")
        torn += any(there.get(f["path"]) != f["bytes"] for f in manifest["files"] if "/" in f["path"])
        named = re.search(r"data/[0-9a-f]{16}/", world.content("killed/README.md").decode())
        torn += not (named and any(path.startswith(named.group()) for path in there))
    world.faults.delay = 0.0
    world.tally.check(killed >= 3 and torn == 0, f"{killed} kills, {torn} torn generations")
    world.run("run", "make.yaml", "--set", "to=" + world.at("datasets/killed"))
    world.run("run", "make.yaml", "--set", "to=undisturbed")
    world.tally.check(remote_bytes(world, "killed") == data_bytes(world.folder / "undisturbed") != before, "after all kills the bytes of an undisturbed run")
    last = json.loads(world.content("killed/_manifest/manifest.json"))
    world.tally.check(last["rows"] == first["rows"] + 1, "one row more")
    names = {f["path"] for f in last["files"]} | {"_manifest/manifest.json"}
    world.tally.check(set(world.objects("killed")) == names, "no remains of the killed attempts")
    # As a run leaves it that died behind the manifest: an older generation still there, and its card, of the same length.
    card = world.content("killed/README.md")
    world.s3.put_object(Bucket="datasets", Key="killed/README.md", Body=card[::-1])
    world.s3.put_object(Bucket="datasets", Key=f"killed/data/{'0' * 16}/train-00000-of-00001.parquet", Body=b"old")
    world.run("run", "make.yaml", "--set", "to=" + world.at("datasets/killed"))
    world.tally.check(set(world.objects("killed")) == names, "a run that died behind the manifest is cleared up after")
    world.tally.check(world.content("killed/README.md") == card, "and its card is the new generation's")


def refusals(world):
    world.s3.put_object(Bucket="datasets", Key="thesis/chapter1.tex", Body=b"x")
    said = world.run("run", "make.yaml", "--set", "to=" + world.at("datasets/thesis"), expect=2)
    world.tally.check("holds no Groundloom data set" in said, f"a foreign place is refused: {said}")
    said = world.run("check", "make.yaml", "--set", "to=https://example.org/out", expect=2)
    world.tally.check("cannot be written to" in said, f"a web server is no target: {said}")
    said = world.run("run", "read.yaml", "--set", "from=" + world.at("pictures/nowhere/*.parquet"), "--set", "to=x", expect=2)
    world.tally.check("nothing matches" in said, f"a pattern without files: {said}")
    said = world.run("run", "make.yaml", "--set", "to=" + world.at("missing-bucket/x"), expect=1)
    world.tally.check("missing-bucket" in said, f"a bucket that is not there is named: {said}")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    tally = Tally()
    for scheme in sys.argv[2:] or ("s3", "gs"):
        with tempfile.TemporaryDirectory() as folder:
            world = World(os.path.abspath(sys.argv[1]), folder, scheme, tally)
            for part in (pictures, tables, kills, refusals):
                tally.attempt(f"{part.__name__} in {scheme}", lambda: part(world) or True)
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
