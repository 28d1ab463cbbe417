"""Rows of the `coco` source beside what COCO's own Python API says of the same annotation files.

Usage: check_coco.py GROUNDLOOM_BINARY
The annotation files are drawn by a seed, over the example photographs. Prints each failed check and, last, `N passed, N failed`.
"""
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image
from pycocotools.coco import COCO

from tally import Tally

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"
PIPELINE = """
sources: {{ scenes: {{ type: coco, annotations: [captions.json, instances.json], images: {photos} }} }}
sinks: {{ out: {{ type: parquet, path: out }} }}
"""
# As pipelines/llava-instruct.yaml asks, with COCO's files in place of its example.
INSTRUCT = """
sources: {{ coco: {{ type: coco, annotations: [captions.json, instances.json] }} }}
stages:
  scenes: {{ type: sql, query: "select id, file_name as image, captions, boxes from coco" }}
  reply: {{ type: generate, prompt: {prompt}, model: any, url: "http://127.0.0.1:9/v1" }}
sinks: {{ out: {{ type: jsonl, path: asked }} }}
"""


def annotations(draw):
    photos = sorted(p for p in PHOTOS.iterdir() if p.suffix in (".jpg", ".png"))
    images, captions, instances = [], [], []
    categories = [{"id": id, "name": name, "supercategory": "thing"} for id, name in ((3, "car"), (17, "cat"), (18, "dog"), (90, "toothbrush"))]
    for number, photo in enumerate(photos):
        with Image.open(photo) as image:
            width, height = image.size
        image_id = draw.randrange(10**6) * 100 + number
        images.append({"id": image_id, "file_name": photo.name, "width": width, "height": height, "license": 1})
        captions += [{"id": draw.randrange(10**9), "image_id": image_id, "caption": f"Caption {i} of {photo.stem}, “é” "} for i in range(draw.randrange(7))]
        for _ in range(draw.randrange(9)):
            x, y = draw.uniform(0, width * 0.9), draw.uniform(0, height * 0.9)
            box = [round(v, 2) for v in (x, y, draw.uniform(0, width - x), draw.uniform(0, height - y))]
            instances.append({"id": draw.randrange(10**9), "image_id": image_id, "bbox": box, "area": box[2] * box[3], "iscrowd": int(draw.random() < 0.1),
                              "category_id": draw.choice(categories)["id"], "segmentation": [[box[0], box[1], box[0] + box[2], box[1] + box[3]]]})
    draw.shuffle(captions)
    draw.shuffle(instances)
    return {"images": images, "annotations": captions}, {"info": {}, "images": images[::-1], "annotations": instances, "categories": categories}


def compare(tally, binary, folder, seed):
    captions, instances = annotations(random.Random(seed))
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "instances.json").write_text(json.dumps(instances, indent=1))
    (folder / "p.yaml").write_text(PIPELINE.format(photos=PHOTOS))
    done = subprocess.run([binary, "run", "p.yaml"], cwd=folder, capture_output=True, text=True)
    tally.check(done.returncode == 0, f"seed {seed}: exit {done.returncode}\n{done.stderr}")
    rows = {row["file_name"]: row for row in pq.read_table(folder / "out" / "data").to_pylist()}
    with contextlib.redirect_stdout(io.StringIO()):
        said, seen = COCO(folder / "captions.json"), COCO(folder / "instances.json")
    tally.check(len(rows) == len(said.imgs), f"seed {seed}: {len(rows)} rows, {len(said.imgs)} images")
    for image_id, image in said.imgs.items():
        name, row = image["file_name"], rows.get(image["file_name"], {})
        tally.check(row.get("id") == str(image_id) and (row["width"], row["height"]) == (image["width"], image["height"]), f"{name}: {row.get('id')}")
        tally.check(row["captions"] == [a["caption"] for a in said.loadAnns(said.getAnnIds(imgIds=image_id))], f"{name}: captions {row['captions']}")
        wanted = []
        for a in seen.loadAnns(seen.getAnnIds(imgIds=image_id, iscrowd=False)):
            x, y, w, h = a["bbox"]
            edges = (x / image["width"], y / image["height"], (x + w) / image["width"], (y + h) / image["height"])
            wanted.append((seen.cats[a["category_id"]]["name"], *edges))
        found = [(b["label"], b["x1"], b["y1"], b["x2"], b["y2"]) for b in row["boxes"]]
        close = len(found) == len(wanted) and all(a[0] == b[0] and all(abs(x - y) < 1e-5 for x, y in zip(a[1:], b[1:])) for a, b in zip(found, wanted))
        tally.check(close, f"{name}: boxes {found}, expected {wanted}")
        tally.check(row["image"]["bytes"] == (PHOTOS / name).read_bytes(), f"{name}: other bytes than the file's")


def main(binary):
    tally = Tally()
    for seed in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            compare(tally, binary, folder, seed)
            prompt = PHOTOS.parents[1] / "prompts" / "llava-detail.jinja"
            (folder / "q.yaml").write_text(INSTRUCT.format(prompt=prompt))
            shown = subprocess.run([binary, "prompt", "preview", "q.yaml"], cwd=folder, capture_output=True, text=True)
            tally.check(shown.returncode == 0 and "Caption 0 of " in shown.stdout, f"a prompt from COCO's files: {shown.stdout}{shown.stderr}")
    return tally.close()


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1])))
