"""Reads an output folder back with other people's readers: pyarrow, Hugging Face `datasets`, `webdataset`, and JSON lines.

Usage: read_back.py OUT_DIR [--released] [--rows N]

It reads what is there: `*.parquet`, `*.tar`, `*.jsonl[.gz]`; folders and files that begin with `_` or `.` are left alone, as those readers leave them.
--released: the lists must be 1:1 in every row (no containment drop, or its `release` form).
--rows N:   each format must hold that many rows.
Prints each failed check and, last, `N passed, N failed`.
"""
import argparse
import base64
import gzip
import io
import json
import os
import sys
import tempfile
from pathlib import Path

# Before the import: `datasets` reads these when it loads, and nothing here is for the network or the user's cache.
_CACHE = tempfile.TemporaryDirectory()
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from datasets import Image as ImageFeature
from datasets import disable_progress_bars, load_dataset
from PIL import Image, ImageOps

import grit_rows
from tally import Tally

ENTRIES = pa.list_(pa.list_(pa.float64()))
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


def files(folder, *endings):
    """The data files with one of these endings, sorted."""
    def hidden(path):
        return any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)

    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(endings) and not hidden(path))


def oriented_size(data):
    """Decodes an encoded picture and gives its size with the EXIF orientation applied."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return ImageOps.exif_transpose(picture).size


def check_row(tally, options, where, row):
    """The GrIT checks; a row that is not in GrIT's form has only its caption looked at."""
    if "noun_chunks" not in row and "ref_exps" not in row:
        tally.check(row.get("caption") is None or isinstance(row["caption"], str), f"{where}: caption is text")
        return
    wrong = grit_rows.complaints(row)
    tally.check(not wrong, f"{where}: " + "; ".join(wrong))
    if options.released and not wrong:
        tally.check(grit_rows.is_released(row), f"{where}: {len(row['ref_exps'])} expressions for {len(row['noun_chunks'])} chunks, not 1:1")


def check_size(tally, where, row, size):
    """`width` and `height` are those of the picture as it is looked at."""
    if row.get("width") is not None and row.get("height") is not None:
        tally.check(size == (row["width"], row["height"]), f"{where}: picture is {size}, the row says {row['width']} x {row['height']}")


def check_count(tally, options, what, rows):
    tally.check(rows > 0, f"{what}: no rows")
    if options.rows is not None:
        tally.check(rows == options.rows, f"{what}: {rows} rows instead of {options.rows}")


def read_parquet(tally, options, folder):
    """pyarrow: types, values, pictures."""
    count = 0
    for path in files(folder, ".parquet"):
        table = tally.attempt(f"pyarrow reads {path.name}", lambda: pq.read_table(path))
        if table is None:
            continue
        for column in {"noun_chunks", "ref_exps"} & set(table.column_names):
            kind = table.schema.field(column).type
            tally.check(kind.equals(ENTRIES), f"{path.name}: {column} is {kind}, not {ENTRIES}")
        for row in table.to_pylist():
            where = f"{path.name} row {row.get('row_id', count)}"
            check_row(tally, options, where, row)
            picture = row.get("image")
            if picture is not None and picture.get("bytes") is not None:
                size = tally.attempt(f"{where}: Pillow opens image.bytes", lambda: oriented_size(picture["bytes"]))
                if size:
                    check_size(tally, where, row, size)
            if row.get("boxes") is not None and "noun_chunks" in row:
                named = sum(box.get("chunk") is not None for box in row["boxes"])
                tally.check(named == len(row["noun_chunks"]), f"{where}: {named} boxes with a chunk, {len(row['noun_chunks'])} entries in noun_chunks")
            count += 1
    check_count(tally, options, "Parquet", count)
    return count


def read_hugging_face(tally, options, folder, expected):
    """`load_dataset(OUT_DIR)`: the card's file list, the features, and pictures that decode by themselves."""
    disable_progress_bars()
    splits = tally.attempt("load_dataset reads the folder", lambda: load_dataset(str(folder)))
    if splits is None:
        return
    count = 0
    for name, rows in splits.items():
        for column in {"noun_chunks", "ref_exps"} & set(rows.features):
            inner = getattr(getattr(rows.features[column], "feature", None), "feature", None)
            tally.check(getattr(inner, "dtype", None) == "float64", f"datasets: {column} is {rows.features[column]}, not a list of lists of float64")
        pictures = "image" in rows.features
        if pictures:
            tally.check(isinstance(rows.features["image"], ImageFeature), f"datasets: image is {rows.features['image']}, not Image()")
        for index in range(len(rows)):
            where = f"datasets {name}[{index}]"
            row = tally.attempt(f"{where} decodes", lambda: rows[index])
            if row is None:
                continue
            check_row(tally, options, where, row)
            if pictures and row["image"] is not None:
                shown = isinstance(row["image"], Image.Image)
                if tally.check(shown, f"{where}: image is {type(row['image']).__name__}, not a picture"):
                    check_size(tally, where, row, row["image"].size)
            count += 1
    tally.check(count == expected, f"datasets sees {count} rows, pyarrow {expected}")


def read_tars(tally, options, folder):
    """webdataset: members that belong together, pictures, `.json`, `.txt`."""
    count = 0
    for path in files(folder, ".tar"):
        samples = tally.attempt(f"webdataset reads {path.name}", lambda: list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)))
        for sample in samples or []:
            where = f"{path.name} {sample['__key__']}"
            row = tally.attempt(f"{where}: .json", lambda: json.loads(sample["json"]))
            if row is None:
                continue
            caption = tally.attempt(f"{where}: .txt is UTF-8", lambda: sample["txt"].decode()) if "txt" in sample else None
            if caption is not None:
                tally.check(row.setdefault("caption", caption) == caption, f"{where}: .txt and .json have different captions")
            check_row(tally, options, where, row)
            endings = [ending for ending in PICTURES if ending in sample]
            for ending in endings:
                size = tally.attempt(f"{where}: Pillow opens .{ending}", lambda: oriented_size(sample[ending]))
                if size:
                    check_size(tally, where, row, size)
            tally.check(len(endings) <= 1, f"{where}: several pictures with one key: {endings}")
            count += 1
    check_count(tally, options, "WebDataset", count)


def read_json_lines(tally, options, folder):
    """Every line is an object; bytes are base64."""
    count = 0
    for path in files(folder, ".jsonl", ".jsonl.gz"):
        opened = gzip.open if path.suffix == ".gz" else open
        lines = tally.attempt(f"{path.name} is UTF-8 text", lambda: opened(path, "rt", encoding="utf-8").read().split("\n"))
        if lines is None:
            continue
        tally.check(lines[-1] == "", f"{path.name} ends with a line end")
        for number, line in enumerate(lines[:-1], 1):
            where = f"{path.name} line {number}"
            row = tally.attempt(f"{where} is JSON", lambda: json.loads(line))
            if not tally.check(isinstance(row, dict), f"{where} is an object"):
                continue
            check_row(tally, options, where, row)
            image = row.get("image")
            if isinstance(image, dict) and image.get("bytes") is not None:
                size = tally.attempt(f"{where}: Pillow opens image.bytes", lambda: oriented_size(base64.b64decode(image["bytes"], validate=True)))
                if size:
                    check_size(tally, where, row, size)
            count += 1
    check_count(tally, options, "JSON lines", count)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--released", action="store_true")
    parser.add_argument("--rows", type=int)
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    tally, folder = Tally(), options.folder
    parquet, tars, lines = files(folder, ".parquet"), files(folder, ".tar"), files(folder, ".jsonl", ".jsonl.gz")
    tally.check(parquet or tars or lines, f"{folder} holds no .parquet, .tar or .jsonl")
    if parquet:
        read_hugging_face(tally, options, folder, read_parquet(tally, options, folder))
    if tars:
        read_tars(tally, options, folder)
    if lines:
        read_json_lines(tally, options, folder)
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
