"""The detector's speed beside LiteRT's, in turns on the same machine.

Usage: bench_litert.py --tflite MODEL.tflite [--rounds 7] [--seconds 1.0]

MODEL.tflite is what `convert_ssd.py --tflite` writes. Each round runs LiteRT and then this crate's bench for a while with one
thread, then with two, on the same 300x300 pixels; printed are the medians and the median of the rounds' ratios. With two threads LiteRT is measured both
as one interpreter of two threads and as two interpreters of one thread, the way the crate uses threads. Needs: ai-edge-litert, numpy, pillow, cargo.
"""
import argparse
import os
import statistics
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

CRATE = Path(__file__).resolve().parent.parent


def interpreter(path, threads, pixels):
    net = Interpreter(path, num_threads=threads)
    net.allocate_tensors()
    net.set_tensor(net.get_input_details()[0]["index"], pixels)
    return net


def litert_rate(nets, seconds):
    done, start = [0] * len(nets), time.perf_counter()

    def run(i):
        while time.perf_counter() - start < seconds:
            nets[i].invoke()
            done[i] += 1

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(nets))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return sum(done) / (time.perf_counter() - start)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tflite", required=True)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--seconds", type=float, default=1.0)
    a = p.parse_args()

    image = Image.open(CRATE.parent.parent / "examples/photos/chelsea.png").convert("RGB").resize((300, 300), Image.BILINEAR)
    pixels = (np.asarray(image, np.float32) / 127.5 - 1)[None]
    one = interpreter(a.tflite, 1, pixels)
    cases = {
        (1, "1 interpreter of 1 thread"): [one],
        (2, "1 interpreter of 2 threads"): [interpreter(a.tflite, 2, pixels)],
        (2, "2 interpreters of 1 thread"): [one, interpreter(a.tflite, 1, pixels)],
    }
    ours = subprocess.Popen(
        ["cargo", "bench", "--quiet", "-p", "groundloom-models", "--bench", "detector"],
        cwd=CRATE, env=os.environ | {"ROUND_SECONDS": str(a.seconds)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )

    def our_rate(threads):
        print(threads, file=ours.stdin, flush=True)
        return float(ours.stdout.readline())

    our_rate(1)
    rates = {case: [] for case in cases}
    for _ in range(a.rounds):
        for case, nets in cases.items():
            theirs = litert_rate(nets, a.seconds)
            rates[case].append((theirs, our_rate(case[0])))
    ours.stdin.close()
    ours.wait()
    for (threads, name), pairs in rates.items():
        theirs, mine = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        ratios = sorted(m / t for t, m in pairs)
        print(
            f"{threads} thread(s): LiteRT ({name}) {theirs:.1f} images/s, groundloom {mine:.1f} images/s, "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
