"""The example folders are whole: every photograph has one caption and one licence entry, with the bytes that the entry was written for.

Usage: check_examples.py [EXAMPLES_DIR]
Prints each failed check and, last, `N passed, N failed`.
"""
import hashlib
import json
import sys
from pathlib import Path

from PIL import Image

from tally import Tally

# Licences that let anybody pass the photograph on, also changed and for money.
LICENCES = {"CC0-1.0", "CC-BY-2.0", "CC-BY-4.0", "LicenseRef-public-domain"}
NEEDED = ("author", "licence", "source_package", "source_path", "origin", "evidence", "changes")
LARGEST = 6_000_000
EDGES = ("x1", "y1", "x2", "y2")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_name(tally, rows, what):
    names = [row["file_name"] for row in rows]
    tally.check(len(names) == len(set(names)), f"{what} names a file twice")
    return dict(zip(names, rows))


def check_photos(tally, folder):
    captions = by_name(tally, lines(folder / "captions.jsonl"), "captions.jsonl")
    licences = by_name(tally, lines(folder / "LICENSES.jsonl"), "LICENSES.jsonl")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    photos = {path.name: path for path in folder.iterdir() if path.suffix not in (".jsonl", ".md")}
    tally.check(len(photos) >= 10, f"{len(photos)} photographs, fewer than 10")
    tally.check(set(captions) == set(photos), f"captions.jsonl and the photographs differ by {sorted(set(captions) ^ set(photos))}")
    tally.check(set(licences) == set(photos), f"LICENSES.jsonl and the photographs differ by {sorted(set(licences) ^ set(photos))}")
    tally.check(sum(path.stat().st_size for path in photos.values()) < LARGEST, f"the photographs have {LARGEST} bytes or more")
    for name, entry in licences.items():
        tally.check(all(entry.get(key) for key in NEEDED), f"{name}: one of {NEEDED} is empty")
        tally.check(entry["licence"] in LICENCES, f"{name}: licence {entry['licence']}")
        tally.check(entry["licence_url"] or entry["licence"] == "LicenseRef-public-domain", f"{name}: no address of its licence")
        tally.check(f"| `{name}` | {entry['author']} |" in readme, f"{name}: README.md has no row with this author")
        if name in photos:
            digest = hashlib.sha256(photos[name].read_bytes()).hexdigest()
            tally.check(digest == entry["sha256"], f"{name}: SHA-256 is {digest}")
            tally.attempt(f"{name}: Pillow opens it", lambda: Image.open(photos[name]).load())
    for name, row in captions.items():
        tally.check(set(row) == {"file_name", "caption"} and row["caption"].strip(), f"{name}: caption line {row}")


def check_boxes(tally, path):
    for number, row in enumerate(lines(path), 1):
        for box in row["boxes"]:
            where = f"{path.name} line {number}: {box}"
            tally.check(set(box) == {"phrase", "score", *EDGES}, f"{where}: other keys than expected")
            tally.check(0 <= box["x1"] < box["x2"] <= 1 and 0 <= box["y1"] < box["y2"] <= 1, f"{where}: not a box")
            tally.check(0 <= box["score"] <= 1, f"{where}: not a score")


def main():
    here = Path(__file__).resolve().parent
    examples = Path(sys.argv[1]) if len(sys.argv) > 1 else here.parents[1] / "examples"
    tally = Tally()
    check_photos(tally, examples / "photos")
    check_boxes(tally, examples / "boxes" / "pairs.jsonl")
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
