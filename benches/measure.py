"""Measures the release binary as a whole process, beside peers where they are installed.

    cargo build --release
    python3 benches/measure.py length_filter    # JSONL -> length filter -> JSONL; beside Daft (pip install daft)
    python3 benches/measure.py memory_text      # peak memory at 10 and at 100 million text rows
    python3 benches/measure.py memory_images    # peak memory at 20,000 and at 200,000 image rows
    python3 benches/measure.py memory_limit     # peak memory of a sort and of a join of ten times the limit
    python3 benches/measure.py resume           # time to the first new row after a kill in the middle

Rounds alternate between the two sides; medians and ratios are printed, and the number of rows kept, which must agree.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.path.join(ROOT, "target", "release", "groundloom")


def run(command, cwd):
    """Runs a command; seconds and peak memory (MB) of it and its children."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        sys.exit(f"{command} failed:\n{err.decode()}")
    return seconds, out.decode(), err.decode()


def peak(command, cwd):
    """Peak memory of one command in MB, by the kernel's account of that process alone."""
    code = "import os,sys,resource,subprocess;subprocess.run(sys.argv[1:],check=True,stdout=2);print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss//1024)"
    _, out, _ = run([sys.executable, "-c", code, *command], cwd)
    return int(out)


def rows_kept(folder):
    with open(os.path.join(folder, "_manifest", "manifest.json")) as f:
        return json.load(f)["rows"]


def documents(path, count):
    """English-like lines of about 0.9 kB, a tenth of them too short."""
    draw = random.Random(7)
    words = ["".join(draw.choice("etaoinshrdlu") for _ in range(draw.randint(2, 10))) for _ in range(4000)]
    with open(path, "w") as f:
        for i in range(count):
            n = draw.randint(5, 30) if i % 10 == 0 else draw.randint(100, 200)
            f.write(json.dumps({"id": i, "text": " ".join(draw.choices(words, k=n))}) + "\n")


DAFT = """
import sys, daft
from daft import col
daft.read_json(sys.argv[1]).where((col("text").length() >= 200) & (col("text").length() <= 100000)).write_json(sys.argv[2])
"""


def length_filter(folder):
    documents(os.path.join(folder, "in.jsonl"), 400_000)
    with open(os.path.join(folder, "p.yaml"), "w") as f:
        f.write("sources: { docs: { type: jsonl, path: in.jsonl } }\n"
                "stages: { fit: { type: filter, where: length(text) between 200 and 100000 } }\n"
                "sinks: { out: { type: jsonl, path: ours } }\n")
    with open(os.path.join(folder, "daft_filter.py"), "w") as f:
        f.write(DAFT)
    ours, daft = [], []
    for i in range(6):
        for old in ("ours", ".ours.groundloom", "daft"):
            shutil.rmtree(os.path.join(folder, old), ignore_errors=True)
        a = run([BINARY, "run", "p.yaml"], folder)[0]
        # Daft's import and start are not its work: it is timed from inside too.
        inside = "import time;t=time.perf_counter();exec(open('daft_filter.py').read());print(time.perf_counter()-t)"
        prelude = "import sys, daft;sys.argv=['','in.jsonl','daft'];"
        try:
            b = float(run([sys.executable, "-c", prelude + inside], folder)[1].split()[-1])
        except SystemExit as e:
            if i == 0:
                print(f"(Daft is not measured: {str(e).splitlines()[-1]})")
            b = float("nan")
        if i:
            ours.append(a)
            daft.append(b)
    a, b = statistics.median(ours), statistics.median(daft)
    kept = rows_kept(os.path.join(folder, "ours"))
    theirs = 0
    if os.path.isdir(os.path.join(folder, "daft")):
        for name in os.listdir(os.path.join(folder, "daft")):
            with open(os.path.join(folder, "daft", name)) as f:
                theirs += sum(1 for _ in f)
    print(f"Groundloom {400_000 / a:10,.0f} rows/s  {a:.2f} s (whole process)  {kept} kept")
    print(f"Daft       {400_000 / b:10,.0f} rows/s  {b:.2f} s (import left out)  {theirs} kept")
    print(f"ratio      {b / a:.2f}")


def memory(folder, name, pipeline, make):
    """Peaks of three runs of each size: which batches of two tasks are alive at once is chance."""
    medians = []
    for size in make:
        rows = make[size](folder)
        with open(os.path.join(folder, "p.yaml"), "w") as f:
            f.write(pipeline)
        peaks = []
        for _ in range(3):
            shutil.rmtree(os.path.join(folder, "out"), ignore_errors=True)
            shutil.rmtree(os.path.join(folder, ".out.groundloom"), ignore_errors=True)
            peaks.append(peak([BINARY, "run", "p.yaml"], folder))
        medians.append(statistics.median(peaks))
        print(f"{name}: {rows:>12,} rows  peaks {peaks} MB  {rows_kept(os.path.join(folder, 'out')):,} kept")
    print(f"ratio of the medians {medians[-1] / medians[0]:.2f}")


def memory_text(folder):
    def linked(files):
        def make(folder):
            shutil.rmtree(os.path.join(folder, "in"), ignore_errors=True)
            os.mkdir(os.path.join(folder, "in"))
            base = os.path.join(folder, "base.jsonl")
            if not os.path.exists(base):
                with open(base, "w") as f:
                    for i in range(1_000_000):
                        f.write('{"n": %d, "t": "a short caption of %d words"}\n' % (i, i % 97))
            for i in range(files):
                os.link(base, os.path.join(folder, "in", f"{i:04}.jsonl"))
            return files * 1_000_000
        return make
    pipeline = ("sources: { rows: { type: jsonl, path: 'in/*.jsonl' } }\n"
                "stages: { few: { type: filter, where: 'n % 1000 = 0' } }\n"
                "sinks: { out: { type: parquet, path: out } }\n")
    memory(folder, "text", pipeline, {10: linked(10), 100: linked(100)})


def memory_images(folder):
    photos = [os.path.join(ROOT, "examples", "photos", n) for n in sorted(os.listdir(os.path.join(ROOT, "examples", "photos"))) if n.endswith((".jpg", ".png"))]
    small = [p for p in photos if os.path.getsize(p) < 200_000]

    def linked(count):
        def make(folder):
            shutil.rmtree(os.path.join(folder, "in"), ignore_errors=True)
            os.mkdir(os.path.join(folder, "in"))
            for i in range(count):
                source = small[i % len(small)]
                os.symlink(source, os.path.join(folder, "in", f"{i:07}{os.path.splitext(source)[1]}"))
            return count
        return make
    pipeline = ("sources: { rows: { type: image_folder, path: in } }\n"
                "stages:\n  size: { type: image_info, check: header }\n  some: { type: filter, where: 'width < 0' }\n"
                "sinks: { out: { type: parquet, path: out } }\n")
    memory(folder, "images", pipeline, {20_000: linked(20_000), 200_000: linked(200_000)})


def memory_limit(folder):
    """Sort and join of data ten times the limit: they must spill, and stay near the limit."""
    limit_mib, rows = 256, 10_000_000
    draw = random.Random(3)
    pad = "".join(draw.choice("abcdefghij ") for _ in range(230))
    with open(os.path.join(folder, "rows.jsonl"), "w") as f:
        for i in range(rows):
            f.write('{"k": %d, "t": "%s"}\n' % (i * 2654435761 % rows, pad[i % 97:] + pad[:i % 97]))
    with open(os.path.join(folder, "make.yaml"), "w") as f:
        f.write("sources: { rows: { type: jsonl, path: rows.jsonl } }\nsinks: { out: { type: parquet, path: table } }\n")
    run([BINARY, "run", "make.yaml"], folder)
    os.remove(os.path.join(folder, "rows.jsonl"))
    shutil.rmtree(os.path.join(folder, ".table.groundloom"))
    queries = {
        "sort": "select k, t from rows order by k, t",
        "join": "select a.k, a.t, b.t as u from rows a join more b on a.k = b.k",
    }
    for name, query in queries.items():
        with open(os.path.join(folder, "p.yaml"), "w") as f:
            f.write("sources:\n  rows: { type: parquet, path: table }\n  more: { type: parquet, path: table }\n"
                    f"stages: {{ made: {{ type: sql, query: \"{query}\" }} }}\n"
                    "sinks: { out: { type: parquet, input: made, path: out } }\n")
        shutil.rmtree(os.path.join(folder, "out"), ignore_errors=True)
        shutil.rmtree(os.path.join(folder, ".out.groundloom"), ignore_errors=True)
        start = time.perf_counter()
        mb = peak([BINARY, "run", "p.yaml", "--memory", f"{limit_mib}MiB"], folder)
        print(f"{name}: {rows:,} rows of 250 bytes under {limit_mib} MiB: peak {mb} MB ({mb / limit_mib:.2f} of the limit), "
              f"{time.perf_counter() - start:.0f} s, {rows_kept(os.path.join(folder, 'out')):,} rows")


def resume(folder):
    """A run of ten million rows is killed half-way; the next one is timed from its start to its first new task."""
    with open(os.path.join(folder, "base.jsonl"), "w") as f:
        for i in range(500_000):
            f.write('{"n": %d, "t": "a short caption of %d words, with some more text behind it"}\n' % (i, i % 97))
    os.mkdir(os.path.join(folder, "in"))
    for i in range(20):
        os.link(os.path.join(folder, "base.jsonl"), os.path.join(folder, "in", f"{i:02}.jsonl"))
    with open(os.path.join(folder, "p.yaml"), "w") as f:
        f.write("settings: { shard_mib: 4 }\nsources: { rows: { type: jsonl, path: 'in/*.jsonl' } }\n"
                "stages: { some: { type: filter, where: 'n % 3 > 0' } }\nsinks: { out: { type: parquet, path: out } }\n")
    whole = run([BINARY, "run", "p.yaml"], folder)[0]
    for old in ("out", ".out.groundloom"):
        shutil.rmtree(os.path.join(folder, old))
    process = subprocess.Popen([BINARY, "run", "p.yaml"], cwd=folder, stderr=subprocess.DEVNULL)
    time.sleep(whole / 2)
    process.kill()
    process.wait()
    start = time.perf_counter()
    process = subprocess.Popen([BINARY, "--log", "json", "run", "p.yaml"], cwd=folder, stderr=subprocess.PIPE, text=True)
    first = reused = tasks = None
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "planned":
            reused, tasks = event["reused"], event["tasks"]
        if event["event"] == "task_done" and first is None:
            first = time.perf_counter() - start
    process.wait()
    total = time.perf_counter() - start
    print(f"10,000,000 rows: undisturbed {whole:.2f} s; killed half-way, {reused} of {tasks} tasks were done; "
          f"first new task committed after {first:.2f} s, all done after {total:.2f} s")


if __name__ == "__main__":
    known = {f.__name__: f for f in (length_filter, memory_text, memory_images, memory_limit, resume)}
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        known[sys.argv[1]](folder)
