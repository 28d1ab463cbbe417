"""Makes a model folder of ImageBind's released checkpoint.

    python convert_imagebind.py imagebind_huge.pth TOKENIZER FOLDER

imagebind_huge.pth comes from https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth; its licence (CC BY-NC-SA 4.0 in its model card) forbids
commercial use. TOKENIZER is a tokenizer.json of OpenAI's CLIP (openai/clip-vit-base-patch32), whose vocabulary is
ImageBind's. FOLDER gets model.safetensors, with the checkpoint's own names and values, tokenizer.json, config.json and a
model card that names the licence. Needs torch and safetensors.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file

CARD = """---
license: cc-by-nc-sa-4.0
---
ImageBind (imagebind_huge), https://github.com/facebookresearch/ImageBind: not for commercial use.
"""


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    checkpoint, tokenizer, folder = map(pathlib.Path, sys.argv[1:])
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    words = weights["modality_preprocessors.text.token_embedding.weight"].shape[0]
    known = len(json.loads(tokenizer.read_text())["model"]["vocab"])
    if known != words:
        sys.exit(f"expected a tokenizer of {words} tokens, found {known} in {tokenizer}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    # All sizes that are not named are those of imagebind_huge.
    (folder / "config.json").write_text(json.dumps({"model_type": "imagebind"}, indent=1) + "\n")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    (folder / "README.md").write_text(CARD)


main()
