"""Measures groundloom-index beside hnswlib, faiss-cpu and usearch, all with M = 16 and efConstruction = 128.

    pip install numpy hnswlib faiss-cpu usearch
    cargo build --release -p groundloom-index --example measure
    python crates/groundloom-index/scripts/bench_peers.py target/release/examples/measure [ROWS] [DIMS]

Vectors are of unit length around 1000 centres, the metric is the inner product, the truth is faiss' flat index. For each
library: build time on two threads, the time to open the saved index, bytes a vector, and queries a second on one and two
threads at the first setting that reaches recall@10 of 0.95. The best of three rounds counts. faiss and hnswlib filter
inside the walk; usearch has no filter in Python.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import faiss
import hnswlib
import numpy as np
from usearch.index import Index as Usearch

K, M, EFC = 10, 16, 128
EFS = [10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 256]
binary = sys.argv[1]
n = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
d = int(sys.argv[3]) if len(sys.argv) > 3 else 384
q = 1000

r = np.random.default_rng(1)
centres = r.normal(size=(1000, d)).astype("f4")


def draw(count):
    x = centres[r.integers(0, 1000, count)] + 0.7 * r.normal(size=(count, d)).astype("f4")
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f4")


X, Q = draw(n), draw(q)
faiss.omp_set_num_threads(2)


def exact(rows):
    flat = faiss.IndexFlatIP(d)
    flat.add(X[rows])
    return rows[flat.search(Q, K)[1]].astype("u4")


truth = exact(np.arange(n))
filters = {every: exact(np.arange(0, n, every)) for every in (100, 10)}


def recall(found, expected):
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, expected)]))


def best(run):
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        found = run()
        times.append(time.perf_counter() - begin)
    return found, q / min(times)


def say(library, what, **values):
    print(json.dumps({"library": library, "what": what, **values}), flush=True)


def sweep(library, search):
    """`search(ef, threads)` gives ids; measured up to the first setting that reaches 0.95."""
    for ef in EFS:
        found, one = best(lambda: search(ef, 1))
        got = recall(found, truth)
        if got >= 0.95 or ef == EFS[-1]:
            _, two = best(lambda: search(ef, 2))
            return say(library, "search", ef=ef, recall=round(got, 4), qps_1=round(one), qps_2=round(two))


def timed(work):
    begin = time.perf_counter()
    value = work()
    return value, time.perf_counter() - begin


with tempfile.TemporaryDirectory() as folder:
    path = lambda name: os.path.join(folder, name)
    say("-", "setting", rows=n, dims=d, load=os.getloadavg()[0], cpus=os.cpu_count())

    X.tofile(path("base.f32"))
    Q.tofile(path("queries.f32"))
    truth.tofile(path("truth.u32"))
    extra = []
    for every, expected in filters.items():
        expected.tofile(path(f"truth-{every}.u32"))
        extra.append(f"{every}:{path(f'truth-{every}.u32')}")
    for coding in ("f32", "int8"):
        command = [binary, path("base.f32"), path("queries.f32"), str(d), path("truth.u32"), path(f"index-{coding}"), coding]
        lines = subprocess.run(command + extra, check=True, capture_output=True, text=True, env={**os.environ, "RAYON_NUM_THREADS": "2"}).stdout
        reached = False
        for line in map(json.loads, lines.splitlines()):
            if line["what"] == "search":
                if reached or line["recall"] < 0.95:
                    continue
                reached = True
            say(f"groundloom {coding}", **{k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})

    index = hnswlib.Index(space="ip", dim=d)
    index.init_index(n, ef_construction=EFC, M=M, random_seed=1)
    _, took = timed(lambda: index.add_items(X, num_threads=2))
    say("hnswlib", "build", seconds=round(took, 1))

    def hnsw(ef, threads):
        index.set_ef(ef)
        return index.knn_query(Q, K, num_threads=threads)[0]

    sweep("hnswlib", hnsw)
    index.set_ef(64)
    for every, expected in filters.items():
        try:
            begin = time.perf_counter()
            found = index.knn_query(Q[:100], K, num_threads=1, filter=lambda i: i % every == 0)[0]
            say("hnswlib", "filtered", every=every, ef=64, recall=round(recall(found, expected[:100]), 4), qps_1=round(100 / (time.perf_counter() - begin)))
        except RuntimeError as error:
            say("hnswlib", "filtered", every=every, ef=64, error=str(error)[:80])
    index.save_index(path("hnswlib"))
    _, took = timed(lambda: hnswlib.Index(space="ip", dim=d).load_index(path("hnswlib")))
    say("hnswlib", "open", milliseconds=round(1000 * took, 1), bytes_per_vector=os.path.getsize(path("hnswlib")) / n)
    del index

    index = faiss.IndexHNSWFlat(d, M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EFC
    _, took = timed(lambda: index.add(X))
    say("faiss", "build", seconds=round(took, 1))

    def faiss_search(ef, threads):
        faiss.omp_set_num_threads(threads)
        index.hnsw.efSearch = ef
        return index.search(Q, K)[1]

    sweep("faiss", faiss_search)
    faiss.omp_set_num_threads(1)
    for every, expected in filters.items():
        selector = faiss.IDSelectorBatch(np.arange(0, n, every))
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=64)
        found, qps = best(lambda: index.search(Q, K, params=parameters)[1])
        say("faiss", "filtered", every=every, ef=64, recall=round(recall(found, expected), 4), qps_1=round(qps))
    faiss.write_index(index, path("faiss"))
    _, took = timed(lambda: faiss.read_index(path("faiss")))
    say("faiss", "open", milliseconds=round(1000 * took, 1), bytes_per_vector=os.path.getsize(path("faiss")) / n)
    del index

    index = Usearch(ndim=d, metric="ip", dtype="f32", connectivity=M, expansion_add=EFC)
    _, took = timed(lambda: index.add(np.arange(n), X, threads=2))
    say("usearch", "build", seconds=round(took, 1))

    def usearch(ef, threads):
        index.expansion_search = ef
        return index.search(Q, K, threads=threads).keys

    sweep("usearch", usearch)
    index.save(path("usearch"))
    _, took = timed(lambda: Usearch.restore(path("usearch"), view=True))
    say("usearch", "open", milliseconds=round(1000 * took, 1), bytes_per_vector=os.path.getsize(path("usearch")) / n)
