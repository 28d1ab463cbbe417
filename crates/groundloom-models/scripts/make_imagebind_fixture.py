"""Makes tests/data/fixtures/imagebind anew: a tiny ImageBind with random weights, and what the reference answers.

    python make_imagebind_fixture.py REPOSITORY FOLDER [--seed N] [--width 12]

REPOSITORY is a checkout of facebookresearch/ImageBind, of which only the network and the tokenizer's limits are used; its
licence forbids commercial use. Needs torch, torchvision, timm, einops, iopath, ftfy, pillow, tokenizers and safetensors.
Inputs are what a user has, outputs are the reference's, normalised. The filter bank is Kaldi's, written down here since
torchaudio is large; frames, crops and resizes are torch's and torchvision's. Weights are kept in half precision.
"""

import argparse
import json
import math
import pathlib
import shutil
import sys
import types

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torchvision import transforms

torch.set_grad_enabled(False)
torch.set_num_threads(1)

CAPTIONS = ["a photo of a cat", "two dogs sleeping on a couch", ""]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENIZER = pathlib.Path(__file__).parent.parent / "tests/data/fixtures/clip"
RATE, CLIP = 16_000, 32_000


def half(tensor):
    return tensor.half().float()


def picture(width, height, random):
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x * a + y * b + c) for a, b, c in random.uniform(0.05, 0.6, (3, 3))]
    return np.stack(waves, -1).astype(np.uint8)


def plane(width, height, random, low, high):
    y, x = np.mgrid[0:height, 0:width]
    a, b, c = random.uniform(0.05, 0.4, 3)
    return half(torch.tensor(low + (high - low) * (0.5 + 0.5 * np.sin(x * a + y * b + c))))


def bank(clip):
    """Kaldi's filter bank of a clip of shape [samples], [128, 204]: torchaudio's `fbank` with a Hann window, no dither."""
    clip = clip.double() - clip.double().mean()
    frames = clip.unfold(0, 400, 160).clone()
    frames -= frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = torch.nn.functional.pad(frames * torch.hann_window(400, periodic=False, dtype=torch.float64), (0, 112))
    power = torch.fft.rfft(frames).abs().pow(2)
    mel = lambda hertz: 1127 * math.log(1 + hertz / 700)
    low, step = mel(20), (mel(8000) - mel(20)) / 129
    left = low + torch.arange(128, dtype=torch.float64)[:, None] * step
    place = torch.tensor([mel(RATE / 512 * i) for i in range(257)], dtype=torch.float64)[None]
    filters = torch.minimum((place - left) / step, (left + 2 * step - place) / step).clamp(min=0)
    energies = (power @ filters.T).clamp(min=torch.finfo(torch.float32).eps).log().T.float()
    return torch.nn.functional.pad(energies, (0, max(0, 204 - energies.shape[1])))[:, :204]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--width", type=int, default=12)
    arguments = parser.parse_args()
    folder, width = arguments.folder, arguments.width
    # The package itself imports its loaders, which need a video library.
    package = types.ModuleType("imagebind")
    package.__path__ = [str(arguments.repository / "imagebind")]
    sys.modules["imagebind"] = package
    from imagebind.models.imagebind_model import ImageBindModel

    folder.mkdir(parents=True, exist_ok=True)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copyfile(TOKENIZER / file, folder / file)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vocabulary = tokenizer.get_vocab_size()
    options = {"out_embed_dim": 16}
    for name in ["vision", "text", "audio", "depth", "thermal", "imu"]:
        options |= {f"{name}_embed_dim": width, f"{name}_num_blocks": 1, f"{name}_num_heads": 2 + (name == "audio")}
    model = ImageBindModel(**options).eval()
    words = torch.nn.Embedding(vocabulary, width)
    model.modality_preprocessors["text"].token_embedding = words
    draw = torch.Generator().manual_seed(arguments.seed)
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith("log_logit_scale"):
            if "text" in name:
                tensor.copy_(torch.tensor(2.5))
        elif not name.endswith("mask"):
            noise = torch.randn(tensor.shape, generator=draw)
            is_norm = tensor.dim() == 1 and name.endswith("weight")
            scale = 0.3 if tensor.dim() < 2 or "pos_embed" in name else max(0.1, tensor[0].numel() ** -0.5)
            tensor.copy_(half(noise * (0.1 if is_norm else scale) + is_norm))
    # In half precision but for the scales, and without the table of which words see which.
    weights = {
        name: tensor.clone() if name.endswith("log_logit_scale") else tensor.half()
        for name, tensor in model.state_dict().items() if not name.endswith("mask")}
    save_file(weights, folder / "model.safetensors")
    options |= {"model_type": "imagebind", "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(options, indent=1) + "\n")

    random = np.random.default_rng(arguments.seed)
    image, video = picture(53, 41, random), [picture(40, 30, random) for _ in range(4)]
    disparity, thermal = plane(50, 40, random, 0, 90), plane(30, 44, random, 0, 1)
    motion = half(torch.tensor(random.standard_normal((2000, 6))))
    time = np.arange(41_003) / RATE
    waves = sum(np.sin(2 * np.pi * f * time + f) * a for f, a in zip(random.uniform(90, 6000, 5), random.uniform(0.02, 0.2, 5)))
    waveform = half(torch.tensor(waves + 0.02 * random.standard_normal(time.size)))
    ids = [tokenizer.encode(text).ids for text in CAPTIONS]

    still = transforms.Compose([
        transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224),
        transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def film(frames):
        frames = torch.tensor(np.stack(frames)).permute(3, 0, 1, 2) / 255.0
        height, width = frames.shape[-2:]
        size = (224, math.floor(width / height * 224)) if height <= width else (math.floor(height / width * 224), 224)
        frames = torch.nn.functional.interpolate(frames, size=size, mode="bilinear", align_corners=False)
        frames = (frames - torch.tensor(MEAN)[:, None, None, None]) / torch.tensor(STD)[:, None, None, None]
        starts = [0, math.ceil((size[1] - 224) / 2), size[1] - 224]
        return [frames[..., start : start + 224] for start in starts]

    fit = transforms.Compose([transforms.Resize(224, antialias=True), transforms.CenterCrop(224)])
    # As the reference's sampler has it: an exact fraction of a rounded number of seconds.
    rest = waveform.numel() / RATE - 2
    clips = [waveform[int(rest * i / 2 * RATE) :][:CLIP] for i in range(3)]
    inputs = {
        "vision": still(Image.fromarray(image))[None],
        "text": torch.tensor([row + [0] * (77 - len(row)) for row in ids]),
        "audio": torch.stack([(bank(clip) + 4.268) / 9.138 for clip in clips])[None, :, None],
        "depth": transforms.Normalize(0.0418, 0.0295)(fit(disparity.clamp(max=75)[None] / 75))[None],
        "thermal": fit(thermal[None])[None],
        "imu": motion.T[None].contiguous(),
    }
    outputs = model(inputs)
    outputs["video"] = model({"vision": torch.stack(film(video[:2]) + film(video[2:]))[None]})["vision"]
    tensors = {f"out.{name}": torch.nn.functional.normalize(vector, dim=-1) for name, vector in outputs.items()}
    tensors |= {
        "in.image_a": torch.tensor(image), "in.video": torch.tensor(np.stack(video)), "in.depth": disparity.half(),
        "in.thermal": thermal.half(), "in.motion": motion.half(), "in.waveform": waveform.half()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps({"captions": CAPTIONS, "seed": arguments.seed}, indent=1) + "\n")
    print(sum(file.stat().st_size for file in folder.iterdir()))


main()
