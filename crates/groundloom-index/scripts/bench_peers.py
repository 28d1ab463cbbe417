"""Measures groundloom-index beside hnswlib, faiss-cpu and usearch, all with M = 16 and efConstruction = 128.

    pip install numpy hnswlib faiss-cpu usearch
    cargo build --release -p groundloom-index --example measure
    python crates/groundloom-index/scripts/bench_peers.py target/release/examples/measure

That takes 100,000 × 384 and 100,000 × 1024 and some minutes; `--rows 1000000 --dims 384` takes an hour. Vectors are of unit
length around 1000 centres, the metric is the inner product, the truth is faiss' flat index. For each library: build time on
two threads, the time to open the saved index, bytes a vector, and queries a second on one and two threads at the first
setting that reaches recall@10 of 0.95. The best of three rounds (ROUNDS in the environment) counts; `cpu_us` is the time of
a processor a query, which is what can be compared on a machine that does other things too. faiss and hnswlib filter inside the walk, each at
the first width tried with which a tenth of the rows is found with a recall of 0.95; usearch has no filter in Python.

Each library runs in a process of its own. With `--folder` data and indices are kept, and `--step` does one part of the work:
`prepare` and `build` may run beside other things, `search` asks for an idle machine. What is not done within `--limit`
seconds is ended and said to be. `--hnsw-rs` adds the graph of hnsw_rs, which is built on one thread.
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
EFS = [10, 11, 12, 13, 14, 16, 18, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256]
FILTER_EFS = [16, 24, 32, 48, 64, 96, 128]
FILTERS = (100, 10)
ROUNDS = int(os.environ.get("ROUNDS", 3))
OURS = [("int8", "batches"), ("f32", "batches")]
STEPS = ("prepare", "build", "search")


def say(library, what, **values):
    print(json.dumps({"library": library, "what": what, **values}), flush=True)


def timed(work):
    begin = time.perf_counter()
    value = work()
    return value, time.perf_counter() - begin


class Data:
    """What `prepare` wrote into a folder."""

    def __init__(self, folder, dims):
        self.folder, self.dims = folder, dims
        self.queries = np.fromfile(self.path("queries.f32"), "<f4").reshape(-1, dims)
        self.truth = self.truth_of("truth.u32")
        self.filters = {every: self.truth_of(f"truth-{every}.u32") for every in FILTERS}
        self.rows = os.path.getsize(self.path("base.f32")) // (4 * dims)

    def base(self):
        return np.fromfile(self.path("base.f32"), "<f4").reshape(-1, self.dims)

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


def best(run, queries=QUERIES):
    """What `run` finds, queries a second of the best round, and the fewest microseconds of a processor a query."""
    times, busy = [], []
    for _ in range(ROUNDS):
        before = time.process_time()
        found, took = timed(run)
        busy.append(time.process_time() - before)
        times.append(took)
    return found, queries / min(times), round(1e6 * min(busy) / queries, 1)


def sweep(library, data, search):
    """`search(ef, threads)` gives ids; measured up to the first setting that reaches 0.95."""
    for ef in EFS:
        found, one, cpu = best(lambda: search(ef, 1))
        got = recall(found, data.truth)
        if got >= 0.95 or ef == EFS[-1]:
            _, two, _ = best(lambda: search(ef, 2))
            return say(library, "search", ef=ef, recall=round(got, 4), qps_1=round(one), qps_2=round(two), cpu_us=cpu)


def sweep_filter(library, expected, every, queries, search):
    """`search(ef)` gives ids of rows that the filter lets pass."""
    for ef in FILTER_EFS:
        try:
            found, qps, cpu = best(lambda: search(ef), queries)
        except RuntimeError as error:
            return say(library, "filtered", every=every, ef=ef, error=str(error)[:80])
        got = recall(found, expected)
        if got >= 0.95 or ef == FILTER_EFS[-1]:
            return say(library, "filtered", every=every, ef=ef, recall=round(got, 4), qps_1=round(qps), cpu_us=cpu)


class Hnswlib:
    def build(self, data):
        import hnswlib

        base = data.base()
        index = hnswlib.Index(space="ip", dim=data.dims)
        index.init_index(data.rows, ef_construction=EFC, M=M, random_seed=1)
        _, took = timed(lambda: index.add_items(base, num_threads=2))
        index.save_index(data.path("hnswlib"))
        return took

    def search(self, data):
        import hnswlib

        index = hnswlib.Index(space="ip", dim=data.dims)
        _, opened = timed(lambda: index.load_index(data.path("hnswlib")))

        def search(ef, threads):
            index.set_ef(ef)
            return index.knn_query(data.queries, K, num_threads=threads)[0]

        sweep("hnswlib", data, search)
        for every, expected in data.filters.items():
            # A call back into Python for each node: a hundred queries are enough.
            few, keep = data.queries[:100], lambda i: i % every == 0

            def filtered(ef):
                index.set_ef(ef)
                return index.knn_query(few, K, num_threads=1, filter=keep)[0]

            sweep_filter("hnswlib", expected[:100], every, 100, filtered)
        return opened


class Faiss:
    def build(self, data):
        import faiss

        base = data.base()
        faiss.omp_set_num_threads(2)
        index = faiss.IndexHNSWFlat(data.dims, M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EFC
        _, took = timed(lambda: index.add(base))
        faiss.write_index(index, data.path("faiss"))
        return took

    def search(self, data):
        import faiss

        index, opened = timed(lambda: faiss.read_index(data.path("faiss")))

        def search(ef, threads):
            faiss.omp_set_num_threads(threads)
            index.hnsw.efSearch = ef
            return index.search(data.queries, K)[1]

        sweep("faiss", data, search)
        faiss.omp_set_num_threads(1)
        for every, expected in data.filters.items():
            selector = faiss.IDSelectorBatch(np.arange(0, data.rows, every))
            sweep_filter(
                "faiss", expected, every, QUERIES,
                lambda ef: index.search(data.queries, K, params=faiss.SearchParametersHNSW(sel=selector, efSearch=ef))[1],
            )
        return opened


class Usearch:
    def build(self, data):
        from usearch.index import Index

        base = data.base()
        index = Index(ndim=data.dims, metric="ip", dtype="f32", connectivity=M, expansion_add=EFC)
        _, took = timed(lambda: index.add(np.arange(data.rows), base, threads=2))
        index.save(data.path("usearch"))
        return took

    def search(self, data):
        from usearch.index import Index

        _, opened = timed(lambda: Index.restore(data.path("usearch"), view=True))
        index = Index.restore(data.path("usearch"))

        def search(ef, threads):
            index.expansion_search = ef
            return index.search(data.queries, K, threads=threads).keys

        sweep("usearch", data, search)
        return opened


PEERS = {"hnswlib": Hnswlib, "faiss": Faiss, "usearch": Usearch}


def peer(name, step, data):
    library = PEERS[name]()
    if step == "build":
        return say(name, "build", seconds=round(library.build(data), 1))
    opened = library.search(data)
    size = os.path.getsize(data.path(name))
    say(name, "open", milliseconds=round(1000 * opened, 1), bytes_per_vector=round(size / data.rows))


def say_ours(library, lines):
    reached = False
    for line in map(json.loads, lines.splitlines()):
        if line["what"] == "search":
            if reached or line["recall"] < 0.95:
                continue
            reached = True
        say(library, **{k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})


def measure(given, folder, dims, steps):
    end = time.monotonic() + given.limit
    path = lambda name: os.path.join(folder, name)
    filters = [f"{every}:{path(f'truth-{every}.u32')}" for every in FILTERS]
    ours = OURS + ([("f32", "hnsw_rs")] if given.hnsw_rs else [])

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

    say("-", "setting", rows=given.rows, dims=dims, load=os.getloadavg()[0], cpus=os.cpu_count(), steps=steps)
    if "prepare" in steps:
        prepare(folder, given.rows, dims)
    for step in [s for s in ("build", "search") if s in steps]:
        for coding, builder in ours:
            library, index = f"groundloom {coding} {builder}", path(f"index-{coding}-{builder}")
            if step == "build":
                command = [given.measure, "build", path("base.f32"), str(dims), index, coding, builder]
            else:
                command = [given.measure, "search", index, path("queries.f32"), path("truth.u32"), *filters]
            say_ours(library, run(library, command, stdout=subprocess.PIPE))
        for name in [n for n in PEERS if n in given.peers]:
            command = [sys.executable, __file__, given.measure, "--dims", str(dims), "--peer", name]
            run(name, [*command, "--folder", folder, "--step", step])
    say("-", "setting", load=os.getloadavg()[0], seconds=round(given.limit - (end - time.monotonic())))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("measure", help="the built example `measure`")
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--dims", type=int, nargs="+", default=[384, 1024])
    arguments.add_argument("--limit", type=float, default=600, help="seconds for each number of dimensions")
    arguments.add_argument("--hnsw-rs", action="store_true", help="also the graph of hnsw_rs")
    arguments.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, help="the libraries beside ours")
    arguments.add_argument("--folder", help="where data and indices are kept; a folder ROWSxDIMS each")
    arguments.add_argument("--step", choices=STEPS, help="only this; needs --folder")
    arguments.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.peer:
        return peer(given.peer, given.step, Data(given.folder, given.dims[0]))
    if given.step and not given.folder:
        arguments.error("--step needs --folder, where the other steps left their work")
    steps = [given.step] if given.step else list(STEPS)
    for dims in given.dims:
        if given.folder:
            folder = os.path.join(given.folder, f"{given.rows}x{dims}")
            os.makedirs(folder, exist_ok=True)
            measure(given, folder, dims, steps)
        else:
            with tempfile.TemporaryDirectory() as folder:
                measure(given, folder, dims, steps)


if __name__ == "__main__":
    main()
