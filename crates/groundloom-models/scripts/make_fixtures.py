"""Expected outputs of the SSD MobileNetV2 detector, by LiteRT.

Usage: make_fixtures.py --tflite MODEL.tflite --labels labels.txt [--raw OUT.safetensors] IMAGE... > expected.jsonl

MODEL.tflite is what `convert_ssd.py --tflite` writes. Prints one JSON line per image: size and detections
[score, label, [x1, y1, x2, y2]], boxes normalised, at --min-score and per-class NMS at --nms-iou. --raw also writes, for each image, the network's
outputs before decoding (`STEM.boxes` [1917, 4], `STEM.logits` [1917, 24]) and the mean of Conv_1 (`STEM.features` [1280]).
Needs: ai-edge-litert, numpy, pillow, safetensors.
"""
import argparse
import json
import math
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps
from safetensors.numpy import save_file

SIZE, STRIDES, LOW, HIGH = 300, (16, 32, 64, 128, 256, 512), 0.2, 0.95


def anchor_boxes():
    """[1917, 4] of (y centre, x centre, height, width)."""
    rows = []
    scales = [LOW + (HIGH - LOW) * k / (len(STRIDES) - 1) for k in range(len(STRIDES))] + [1.0]
    for k, stride in enumerate(STRIDES):
        shapes = [(r, scales[k]) for r in (1.0, 2.0, 0.5, 3.0, 0.3333)] + [(1.0, math.sqrt(scales[k] * scales[k + 1]))]
        if k == 0:
            shapes = [(1.0, 0.1), (2.0, LOW), (0.5, LOW)]
        cells = math.ceil(SIZE / stride)
        for y in range(cells):
            for x in range(cells):
                rows += [((y + 0.5) / cells, (x + 0.5) / cells, s / math.sqrt(r), s * math.sqrt(r)) for r, s in shapes]
    return np.array(rows, np.float32)


def overlaps(box, others):
    """Intersection over union of one box with many."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inside = np.prod(np.clip(high - low, 0, None), axis=1)
    area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return inside / np.maximum(area(box) + area(others) - inside, 1e-12)


def detections(encoded, logits, anchors, labels, min_score, nms_iou):
    centre = encoded[:, :2] / 10 * anchors[:, 2:] + anchors[:, :2]
    half = np.exp(encoded[:, 2:] / 5) * anchors[:, 2:] / 2
    boxes = np.clip(np.concatenate([centre - half, centre + half], 1), 0, 1)[:, [1, 0, 3, 2]]
    scores = 1 / (1 + np.exp(-logits))
    found = []
    for c in range(1, len(labels)):
        order = np.argsort(-scores[:, c], kind="stable")
        order = order[scores[order, c] >= min_score]
        while len(order):
            best, rest = order[0], order[1:]
            found.append([round(float(scores[best, c]), 4), labels[c], [round(float(v), 4) for v in boxes[best]]])
            order = rest[overlaps(boxes[best], boxes[rest]) <= nms_iou]
    return sorted(found, key=lambda d: -d[0])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tflite", required=True)
    p.add_argument("--labels", required=True)
    p.add_argument("--min-score", type=float, default=0.3)
    p.add_argument("--nms-iou", type=float, default=0.5)
    p.add_argument("--raw")
    p.add_argument("images", nargs="+", type=Path)
    a = p.parse_args()

    labels = Path(a.labels).read_text().splitlines()
    net = Interpreter(a.tflite, experimental_preserve_all_tensors=True)
    net.allocate_tensors()
    tensors = {t["name"]: t["index"] for t in net.get_tensor_details()}
    conv_1 = next(i for name, i in tensors.items() if name.startswith("FeatureExtractor/MobilenetV2/Conv_1/Relu6"))
    anchors, raw = anchor_boxes(), {}
    for path in a.images:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        pixels = np.asarray(image.resize((SIZE, SIZE), Image.BILINEAR), np.float32) / 127.5 - 1
        net.set_tensor(net.get_input_details()[0]["index"], pixels[None])
        net.invoke()
        encoded, logits = (net.get_tensor(o["index"])[0] for o in net.get_output_details())
        features = net.get_tensor(conv_1)[0].mean((0, 1), dtype=np.float64).astype(np.float32)
        raw |= {f"{path.stem}.boxes": encoded, f"{path.stem}.logits": logits, f"{path.stem}.features": features}
        found = detections(encoded, logits, anchors, labels, a.min_score, a.nms_iou)
        print(json.dumps({"image": path.name, "width": image.width, "height": image.height, "detections": found}))
    if a.raw:
        save_file({k: np.ascontiguousarray(v) for k, v in raw.items()}, a.raw)


if __name__ == "__main__":
    main()
