"""Makes tests/data/fixtures/coca anew: a tiny CoCa with random weights, and what open_clip answers.

    python make_coca_fixture.py FOLDER [--seed N]

FOLDER holds the tokenizer.json that is in the repository. Needs torch, open_clip_torch 3.3, pillow, numpy and safetensors.

The vision tower is wider than the embedding, as in CoCa ViT-L/14 (other keys in the attention pool than where both are
equal), and a text holds the padding token's id in its middle. Weights are drawn until no token of the greedy texts is a
close choice. `image` and `text` come from the images and captions that are there too.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from open_clip.coca_model import CoCa
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer

torch.set_grad_enabled(False)
torch.set_num_threads(1)

CONTEXT = 12
STEPS = 8
CAPTIONS = ["a photo of a cat", "two dogs sleeping on a pink couch"]


def picture(width, height, seed):
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x * a + y * b + c) for a, b, c in np.random.default_rng(seed).uniform(0.05, 0.6, (3, 3))]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8), "RGB")


def draw(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.named_parameters()):
        if tensor.ndim:
            one = "ln_" in name and name.endswith("weight")
            spread = 0.2 if tensor.ndim == 1 else max(1, tensor.shape[-1]) ** -0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread + (1.0 if one else 0.0))


def greedy(model, image, start):
    ids, gap = torch.full((image.shape[0], 1), start), float("inf")
    for _ in range(STEPS):
        values = model(image, ids, output_labels=False)["logits"][:, -1]
        top = values.topk(2, -1).values
        gap = min(gap, (top[:, 0] - top[:, 1]).min().item())
        ids = torch.cat([ids, values.argmax(-1, keepdim=True)], 1)
    return ids, gap


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    vocabulary, start = tokenizer.get_vocab_size(), tokenizer.token_to_id("<|startoftext|>")
    text_sizes = dict(context_length=CONTEXT, vocab_size=vocabulary, layers=2, heads=2, width=16)
    model_cfg = dict(
        embed_dim=16,
        vision_cfg=dict(
            image_size=32,
            layers=2,
            width=24,
            patch_size=8,
            head_width=12,
            attentional_pool=True,
            attn_pooler_queries=9,
            attn_pooler_heads=4,
            output_tokens=True,
        ),
        text_cfg=dict(**text_sizes, embed_cls=True, output_tokens=True),
        multimodal_cfg=dict(**text_sizes, attn_pooler_heads=4),
    )
    preprocess_cfg = dict(mean=[0.48145466, 0.4578275, 0.40821073], std=[0.26862954, 0.26130258, 0.27577711])
    # Lines and columns that the crop cuts off: 3 and 5, whose halves torchvision rounds to even numbers.
    images = [picture(35, 32, args.seed), picture(64, 74, args.seed + 1)]
    look = image_transform(32, False, **preprocess_cfg)
    pixels = torch.stack([look(image) for image in images])
    text = torch.zeros(len(CAPTIONS), CONTEXT, dtype=torch.long)
    for row, caption in zip(text, CAPTIONS):
        ids = tokenizer.encode(caption).ids[:CONTEXT]
        ids[-1] = tokenizer.token_to_id("<|endoftext|>")
        row[: len(ids)] = torch.tensor(ids)
    torch.manual_seed(args.seed)
    model = CoCa(**model_cfg).eval()
    for trial in range(1000):
        draw(model, args.seed + 1000 * trial)
        ids, gap = greedy(model, pixels, start)
        if gap >= 1e-2 and len(set(ids.flatten().tolist())) > 5:
            break
    odd = text[:1].clone()
    odd[:, 2] = 0
    found = model(pixels, text)
    _, tokens = model._encode_image(pixels)
    expected = {
        "in.image_a": torch.from_numpy(np.array(images[0])),
        "in.image_b": torch.from_numpy(np.array(images[1])),
        "image": pixels,
        "text": text.int(),
        "image_features": model.encode_image(pixels),
        "text_features": model.encode_text(text),
        "image_embs": tokens,
        "logits": found["logits"],
        "odd_text_features": model.encode_text(odd),
        "odd_logits": model(pixels[:1], odd)["logits"],
        "in.odd_text": odd.int(),
        "greedy": ids.int(),
    }
    save = lambda tensors, name: save_file({k: v.contiguous() for k, v in tensors.items()}, args.folder / name)
    save(expected, "expected.safetensors")
    save(model.state_dict(), "open_clip_model.safetensors")
    write = lambda value, name: (args.folder / name).write_text(json.dumps(value, indent=1) + "\n")
    write(dict(model_cfg=model_cfg, preprocess_cfg=preprocess_cfg), "open_clip_config.json")
    write(dict(captions=CAPTIONS, seed=args.seed, trial=trial, greedy_min_top2_gap=gap), "expected.json")
    print(trial, gap, ids.tolist(), text.tolist())


main()
