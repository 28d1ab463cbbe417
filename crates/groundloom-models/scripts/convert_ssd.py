"""Convert the SSD MobileNetV2 detector of MediaPipe Objectron to safetensors.

Usage: convert_ssd.py [--package mediapipe-objectron-0.4.1675468480.tgz] [--out DIR] [--tflite FILE]

Without --package the package is fetched with `npm pack`. --out defaults to the folder that the crate embeds; --tflite also
writes the TFLite file itself, which the parity and speed scripts need. Needs: numpy, safetensors, tflite (PyPI), npm.

The package's asset bundle is a label map followed by a TFLite flatbuffer. Every weight is a float16 constant behind a
DEQUANTIZE operator, batch norm already folded in. Nothing is rounded here: the float16 values are copied, only their axes move.

  1x1 convolution    [out, 1, 1, in]  -> [in, out]        a row-major matrix, y = x W + b
  3x3 convolution    [out, 3, 3, in]  -> [3, 3, in, out]
  depthwise 3x3      [1, 3, 3, ch]    -> [3, 3, ch]
"""
import argparse
import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import tflite
from safetensors.numpy import save

PACKAGE, VERSION = "@mediapipe/objectron", "0.4.1675468480"
ASSETS = "package/objectron_solution_packed_assets.data"
ASSETS_SHA256 = "470986ca5df183f41698da6de74b027d838fe289d77b5ab094497d350bee664e"
TFLITE_SHA256 = "d0a5255bf8c4f5a0bc4240741a76c41d5e939f7655078f945f50ab53a9375da6"
LABELS, TFLITE = slice(0, 184), slice(184, 184 + 9_987_728)

NAMES = [
    (r"MobilenetV2/Conv/", "conv"),
    (r"MobilenetV2/Conv_1/", "conv_1"),
    (r"MobilenetV2/expanded_conv/depthwise/", "blocks.0.depthwise"),
    (r"MobilenetV2/expanded_conv/project/", "blocks.0.project"),
    (r"MobilenetV2/expanded_conv_(\d+)/(expand|depthwise|project)/", r"blocks.\1.\2"),
    (r"MobilenetV2/layer_19_1_Conv2d_(\d)_1x1_", r"extras.\1.reduce"),
    (r"MobilenetV2/layer_19_2_Conv2d_(\d)_3x3_s2_", r"extras.\1.conv"),
    (r"BoxPredictor_(\d)/BoxEncodingPredictor/", r"heads.\1.boxes"),
    (r"BoxPredictor_(\d)/ClassPredictor/", r"heads.\1.classes"),
]


def layer_name(tensor_name):
    """The layer's name here, from the first of the names that the exporter joined with ';'."""
    first = tensor_name.split(";")[0]
    for pattern, name in NAMES:
        if found := re.search(pattern, first):
            return re.sub(r"extras\.(\d)", lambda m: f"extras.{int(m[1]) - 2}", found.expand(name))
    raise SystemExit(f"no layer is known by the name {tensor_name!r}")


def read_layers(flatbuffer):
    """Every convolution of the graph as {name.weight, name.bias} in the layout of this file's head."""
    model = tflite.Model.GetRootAs(flatbuffer, 0)
    graph = model.Subgraphs(0)
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]

    def code(operator):
        c = model.OperatorCodes(operator.OpcodeIndex())
        return max(c.BuiltinCode(), c.DeprecatedBuiltinCode())

    op = tflite.BuiltinOperator
    constant = {o.Outputs(0): o.Inputs(0) for o in operators if code(o) == op.DEQUANTIZE}

    def values(index):
        tensor = graph.Tensors(constant[index])
        assert tensor.Type() == tflite.TensorType.FLOAT16, tensor.Name()
        raw = model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes()
        return np.frombuffer(raw, np.float16).reshape(tensor.ShapeAsNumpy())

    layers = {}
    for o in operators:
        if code(o) not in (op.CONV_2D, op.DEPTHWISE_CONV_2D):
            continue
        name = layer_name(graph.Tensors(o.Inputs(1)).Name().decode())
        weight = values(o.Inputs(1))
        if code(o) == op.DEPTHWISE_CONV_2D:
            weight = weight[0]
        elif weight.shape[1:3] == (1, 1):
            weight = weight[:, 0, 0, :].T
        else:
            weight = weight.transpose(1, 2, 3, 0)
        assert f"{name}.weight" not in layers, name
        layers[f"{name}.weight"] = np.ascontiguousarray(weight)
        layers[f"{name}.bias"] = values(o.Inputs(2))
    return layers


CONFIG = {
    "architectures": ["SsdMobileNetV2"],
    "name": "ssd-mobilenet-v2-oidv4",
    "license": "Apache-2.0",
    "labels": "labels.txt",
    "image_size": 300,
    "resample": "bilinear",
    "rescale": [1 / 127.5, -1.0],
    "anchors": {
        "strides": [16, 32, 64, 128, 256, 512],
        "min_scale": 0.2,
        "max_scale": 0.95,
        "lowest_scale": 0.1,
        "aspect_ratios": [1.0, 2.0, 0.5, 3.0, 0.3333],
    },
    "box_coder": {"centre": 10.0, "size": 5.0},
}

README = """# ssd-mobilenet-v2-oidv4

A small object detector: SSD on MobileNetV2, 300×300 pixels, {parameters} parameters in float16, 23 classes of Open Images V4
(`labels.txt`; line 0 is background). Google made it for MediaPipe Objectron and released it under the Apache Licence 2.0.

| | |
|---|---|
| origin | npm package `{package}` {version}, file `{assets}` |
| sha256 of that file | `{assets_sha256}` |
| the TFLite model in it | `object_detection_ssd_mobilenetv2_oidv4_fp16.tflite`, sha256 `{tflite_sha256}` |
| licence | Apache-2.0 (the package's `package.json`) |
| `model.safetensors` | sha256 `{weights_sha256}` |

Changes made: the weights' axes were reordered and the layers renamed, by `scripts/convert_ssd.py`, which wrote this folder.
No value was changed.

`vocabulary.tsv` is Groundloom's own: which English nouns name which class.
"""


def main():
    here = Path(__file__).resolve().parent
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--package", type=Path)
    p.add_argument("--out", type=Path, default=here.parent / "data" / CONFIG["name"])
    p.add_argument("--tflite", type=Path)
    a = p.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if a.package is None:
            run = subprocess.run(["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"], cwd=folder, check=True, capture_output=True, text=True)
            a.package = Path(folder) / run.stdout.strip().splitlines()[-1]
        with tarfile.open(a.package) as archive:
            assets = archive.extractfile(ASSETS).read()

    for what, data, expected in (("asset bundle", assets, ASSETS_SHA256), ("TFLite model", assets[TFLITE], TFLITE_SHA256)):
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise SystemExit(f"{what}: expected sha256 {expected}, found {found}; is this {PACKAGE} {VERSION}?")

    layers = read_layers(assets[TFLITE])
    weights = save(layers, metadata={"format": "groundloom", "source": f"{PACKAGE}@{VERSION}", "tflite_sha256": TFLITE_SHA256})
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "model.safetensors").write_bytes(weights)
    (a.out / "labels.txt").write_bytes(assets[LABELS])
    (a.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (a.out / "README.md").write_text(
        README.format(
            parameters=f"{sum(v.size for v in layers.values()):,}",
            package=PACKAGE, version=VERSION, assets=Path(ASSETS).name, assets_sha256=ASSETS_SHA256,
            tflite_sha256=TFLITE_SHA256, weights_sha256=hashlib.sha256(weights).hexdigest(),
        )
    )
    if a.tflite:
        a.tflite.write_bytes(assets[TFLITE])
    print(f"{a.out}: {len(layers)} tensors, {len(weights)} bytes, sha256 {hashlib.sha256(weights).hexdigest()}")


if __name__ == "__main__":
    main()
