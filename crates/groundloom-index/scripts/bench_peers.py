"""Measures groundloom-index beside hnswlib, faiss-cpu and usearch, all with M = 16 and efConstruction = 128.

    pip install numpy hnswlib faiss-cpu usearch
    cargo build --release -p groundloom-index --example measure
    python crates/groundloom-index/scripts/bench_peers.py target/release/examples/measure --rows 100000 --dims 384

Vectors are of unit length around 1000 centres, the metric is the inner product, the truth is faiss' flat index. For each
library: build time on two threads, the time to open the saved index, bytes a vector, and queries a second on one and two
threads at the first setting that reaches recall@10 of 0.95. The best of three rounds counts. faiss and hnswlib filter
inside the walk; usearch has no filter in Python.

Each library runs in a process of its own. What is not done within --limit seconds is ended and said to be: the graph of
hnsw_rs, which is built on one thread, comes last.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

K, M, EFC, QUERIES = 10, 16, 128, 1000
EFS = [10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 256]
FILTERS = (100, 10)
OURS = [("f32", "batches"), ("int8", "batches")]
LAST = [("f32", "hnsw_rs")]


def say(library, what, **values):
    print(json.dumps({"library": library, "what": what, **values}), flush=True)


def timed(work):
    begin = time.perf_counter()
    value = work()
    return value, time.perf_counter() - begin


class Data:
    """What `prepare` wrote into a folder."""

    def __init__(self, folder, dims):
        self.folder = folder
        self.base = np.fromfile(self.path("base.f32"), "<f4").reshape(-1, dims)
        self.queries = np.fromfile(self.path("queries.f32"), "<f4").reshape(-1, dims)
        self.truth = self.truth_of("truth.u32")
        self.filters = {every: self.truth_of(f"truth-{every}.u32") for every in FILTERS}

    def path(self, name):
        return os.path.join(self.folder, name)

    def truth_of(self, name):
        return np.fromfile(self.path(name), "<u4").reshape(-1, K)


def prepare(folder, rows, dims):
    import faiss

    r = np.random.default_rng(1)
    centres = r.normal(size=(1000, dims)).astype("f4")

    def draw(count):
        x = centres[r.integers(0, 1000, count)] + 0.7 * r.normal(size=(count, dims)).astype("f4")
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f4")

    base, queries = draw(rows), draw(QUERIES)
    base.tofile(os.path.join(folder, "base.f32"))
    queries.tofile(os.path.join(folder, "queries.f32"))
    faiss.omp_set_num_threads(2)
    for name, of in [("truth", np.arange(rows))] + [(f"truth-{e}", np.arange(0, rows, e)) for e in FILTERS]:
        flat = faiss.IndexFlatIP(dims)
        flat.add(base[of])
        of[flat.search(queries, K)[1]].astype("<u4").tofile(os.path.join(folder, f"{name}.u32"))


def recall(found, expected):
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, expected)]))


def best(run):
    times = []
    for _ in range(3):
        found, took = timed(run)
        times.append(took)
    return found, QUERIES / min(times)


def sweep(library, data, search):
    """`search(ef, threads)` gives ids; measured up to the first setting that reaches 0.95."""
    for ef in EFS:
        found, one = best(lambda: search(ef, 1))
        got = recall(found, data.truth)
        if got >= 0.95 or ef == EFS[-1]:
            _, two = best(lambda: search(ef, 2))
            return say(library, "search", ef=ef, recall=round(got, 4), qps_1=round(one), qps_2=round(two))


def hnswlib(data):
    import hnswlib

    n, d = data.base.shape
    index = hnswlib.Index(space="ip", dim=d)
    index.init_index(n, ef_construction=EFC, M=M, random_seed=1)
    _, took = timed(lambda: index.add_items(data.base, num_threads=2))
    say("hnswlib", "build", seconds=round(took, 1))

    def search(ef, threads):
        index.set_ef(ef)
        return index.knn_query(data.queries, K, num_threads=threads)[0]

    sweep("hnswlib", data, search)
    index.set_ef(64)
    for every, expected in data.filters.items():
        try:
            few = data.queries[:100]
            keep = lambda i: i % every == 0
            found, took = timed(lambda: index.knn_query(few, K, num_threads=1, filter=keep)[0])
            say("hnswlib", "filtered", every=every, ef=64, recall=round(recall(found, expected[:100]), 4), qps_1=round(100 / took))
        except RuntimeError as error:
            say("hnswlib", "filtered", every=every, ef=64, error=str(error)[:80])
    index.save_index(data.path("hnswlib"))
    _, took = timed(lambda: hnswlib.Index(space="ip", dim=d).load_index(data.path("hnswlib")))
    say("hnswlib", "open", milliseconds=round(1000 * took, 1), bytes_per_vector=os.path.getsize(data.path("hnswlib")) / n)


def faiss(data):
    import faiss

    n, d = data.base.shape
    faiss.omp_set_num_threads(2)
    index = faiss.IndexHNSWFlat(d, M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EFC
    _, took = timed(lambda: index.add(data.base))
    say("faiss", "build", seconds=round(took, 1))

    def search(ef, threads):
        faiss.omp_set_num_threads(threads)
        index.hnsw.efSearch = ef
        return index.search(data.queries, K)[1]

    sweep("faiss", data, search)
    faiss.omp_set_num_threads(1)
    for every, expected in data.filters.items():
        selector = faiss.IDSelectorBatch(np.arange(0, n, every))
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=64)
        found, qps = best(lambda: index.search(data.queries, K, params=parameters)[1])
        say("faiss", "filtered", every=every, ef=64, recall=round(recall(found, expected), 4), qps_1=round(qps))
    faiss.write_index(index, data.path("faiss"))
    _, took = timed(lambda: faiss.read_index(data.path("faiss")))
    say("faiss", "open", milliseconds=round(1000 * took, 1), bytes_per_vector=os.path.getsize(data.path("faiss")) / n)


def usearch(data):
    from usearch.index import Index

    n, d = data.base.shape
    index = Index(ndim=d, metric="ip", dtype="f32", connectivity=M, expansion_add=EFC)
    _, took = timed(lambda: index.add(np.arange(n), data.base, threads=2))
    say("usearch", "build", seconds=round(took, 1))

    def search(ef, threads):
        index.expansion_search = ef
        return index.search(data.queries, K, threads=threads).keys

    sweep("usearch", data, search)
    index.save(data.path("usearch"))
    _, took = timed(lambda: Index.restore(data.path("usearch"), view=True))
    say("usearch", "open", milliseconds=round(1000 * took, 1), bytes_per_vector=os.path.getsize(data.path("usearch")) / n)


PEERS = {"hnswlib": hnswlib, "faiss": faiss, "usearch": usearch}


def say_ours(library, lines):
    reached = False
    for line in map(json.loads, lines.splitlines()):
        if line["what"] == "search":
            if reached or line["recall"] < 0.95:
                continue
            reached = True
        say(library, **{k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("measure", help="the built example `measure`")
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--dims", type=int, default=384)
    arguments.add_argument("--limit", type=float, default=600, help="seconds for everything")
    arguments.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments.add_argument("--folder", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.peer:
        return PEERS[given.peer](Data(given.folder, given.dims))
    end = time.monotonic() + given.limit

    def run(library, command, **options):
        environment = {**os.environ, "RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
        try:
            left = max(0.1, end - time.monotonic())
            return subprocess.run(command, check=True, text=True, env=environment, timeout=left, **options).stdout
        except subprocess.TimeoutExpired as error:
            say(library, "ended", reason=f"not done within --limit {given.limit:g} seconds")
            partial = error.stdout or ""
            # What was said before the end may stop in the middle of a line.
            partial = partial if isinstance(partial, str) else partial.decode()
            return partial[: partial.rfind("\n") + 1]

    with tempfile.TemporaryDirectory() as folder:
        path = lambda name: os.path.join(folder, name)
        say("-", "setting", rows=given.rows, dims=given.dims, load=os.getloadavg()[0], cpus=os.cpu_count())
        prepare(folder, given.rows, given.dims)
        filters = [f"{every}:{path(f'truth-{every}.u32')}" for every in FILTERS]

        def ours(coding, builder):
            library = f"groundloom {coding} {builder}"
            files = [path("base.f32"), path("queries.f32"), str(given.dims), path("truth.u32")]
            command = [given.measure, *files, path(f"index-{coding}-{builder}"), coding, builder, *filters]
            say_ours(library, run(library, command, stdout=subprocess.PIPE))

        for one in OURS:
            ours(*one)
        for peer in PEERS:
            run(peer, [sys.executable, __file__, given.measure, "--dims", str(given.dims), "--peer", peer, "--folder", folder])
        for one in LAST:
            ours(*one)
        say("-", "setting", load=os.getloadavg()[0], seconds=round(given.limit - (end - time.monotonic())))


if __name__ == "__main__":
    main()
