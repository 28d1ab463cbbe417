"""Makes clap, videomae and videomae_base of tests/data/fixtures anew: tiny networks with random weights, and what
transformers answers.

    python make_sound_and_video_fixtures.py FOLDER [--seed N]

FOLDER holds clap with the tokenizer.json and tokenizer_config.json that are in the repository. Needs torch, transformers
5.23, pillow and safetensors.
"""

import argparse
import json
import pathlib

import numpy as np
import tokenizers
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import save_file
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

torch.set_grad_enabled(False)
torch.set_num_threads(1)
CAPTIONS = ["a photo of a cat", "two dogs sleeping on a pink couch", ""]


def saved(folder, model, seed):
    """The model with weights drawn by `seed`, as it comes back from `folder`."""
    draw = torch.Generator().manual_seed(seed)
    norms = {id(m.weight) for m in model.modules() if "Norm" in type(m).__name__ and hasattr(m, "weight")}
    for name, parameter in sorted(model.named_parameters()):
        values = 0.2 * torch.randn(parameter.shape, generator=draw)
        parameter.copy_(1 + values if id(parameter) in norms or "logit_scale" in name else values)
    for name, buffer in sorted(model.named_buffers()):
        if name.endswith("running_mean"):
            # Decibels.
            buffer.copy_(-30 + 3 * torch.randn(buffer.shape, generator=draw))
        if name.endswith("running_var"):
            buffer.copy_(100 + 300 * torch.rand(buffer.shape, generator=draw))
    model.eval().save_pretrained(folder)
    return type(model).from_pretrained(folder, attn_implementation="eager").eval()


def write(folder, tensors, notes):
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n")


def clap(folder, seed):
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    text = dict(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=34, projection_dim=12)
    audio = dict(window_size=4, num_mel_bins=16, spec_size=64, patch_size=2, patch_stride=(2, 2), num_classes=5,
                 hidden_size=32, projection_dim=12, depths=(2, 1, 2, 2), num_attention_heads=(1, 2, 2, 4),
                 patch_embeds_hidden_size=4, num_hidden_layers=4, enable_fusion=False)
    model = saved(folder, tf.ClapModel(tf.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)), seed)
    extractor = tf.ClapFeatureExtractor(
        feature_size=16, sampling_rate=16000, hop_length=160, max_length_s=2, fft_window_size=256, frequency_min=50,
        frequency_max=7000, truncation="rand_trunc", padding="repeatpad")
    extractor.save_pretrained(folder)
    r = np.random.default_rng(seed)
    t = np.arange(12_000) / 16000
    tones = zip(r.uniform(0.05, 0.3, 4), r.uniform(80, 5600, 4), r.uniform(0, 6, 4))
    wave = sum(a * np.sin(2 * np.pi * f * t + p) for a, f, p in tones) * np.abs(np.sin(9 * t))
    wave = (np.round((wave + 0.02 * r.standard_normal(12_000)) * 16384) / 32768).astype(np.float32)
    heard = extractor(wave, sampling_rate=16000, return_tensors="pt")
    read = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    ids, mask, spectrum = read["input_ids"], read["attention_mask"], heard["input_features"]
    both = model(input_ids=ids, attention_mask=mask, input_features=spectrum, is_longer=heard["is_longer"])
    sound = model.audio_model(input_features=spectrum, is_longer=heard["is_longer"])
    encoder = model.audio_model.audio_encoder
    normed = encoder.batch_norm(spectrum.transpose(1, 3)).transpose(1, 3)
    tensors = {
        "in.waveform": torch.tensor(wave), "in.input_features": spectrum, "in.input_ids": ids, "in.attention_mask": mask,
        "out.mel_filters": torch.tensor(extractor.mel_filters).float(),
        "out.mel_filters_slaney": torch.tensor(extractor.mel_filters_slaney).float(),
        "out.audio_reshaped_mel": encoder.reshape_mel2img(normed), "out.audio_last_hidden": sound.last_hidden_state,
        "out.audio_pooled": sound.pooler_output,
        "out.text_pooled": model.text_model(input_ids=ids, attention_mask=mask).pooler_output}
    for name in ["audio_embeds", "text_embeds", "logits_per_audio", "logits_per_text"]:
        tensors[f"out.{name}"] = both[name]
    file = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    table = [{"text": text, "ids": file.encode(text).ids} for text in CAPTIONS]
    write(folder, tensors, {"seed": seed, "captions": CAPTIONS, "tokenizer": table})


def videomae(folder, seed, classes):
    config = tf.VideoMAEConfig(
        image_size=24, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=24, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=3, num_labels=5, use_mean_pooling=classes)
    kind = tf.VideoMAEForVideoClassification if classes else tf.VideoMAEModel
    model = saved(folder, kind(config), seed)
    processor = VideoMAEImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor.save_pretrained(folder)
    frames, tensors = [], {}
    y, x = np.mgrid[0:29, 0:37]
    for i in range(4):
        waves = [127 + 120 * np.sin(x * a + y * b + c + i) for a, b, c in np.random.default_rng(seed).uniform(0.05, 0.6, (3, 3))]
        frames.append(Image.fromarray(np.stack(waves, -1).astype(np.uint8), "RGB"))
        tensors[f"in.image_{i}"] = torch.tensor(np.asarray(frames[-1]))
    pixels = processor(frames, return_tensors="pt")["pixel_values"]
    base = model.videomae if classes else model
    all_of_it = base(pixels, output_hidden_states=True)
    tensors |= {"in.pixel_values": pixels, "out.base_last_hidden_state": all_of_it.last_hidden_state,
                "out.position_embeddings": base.embeddings.position_embeddings}
    tensors |= {f"out.hidden.{i}": hidden for i, hidden in enumerate(all_of_it.hidden_states)}
    if classes:
        tensors["out.logits"] = model(pixels).logits
    write(folder, tensors, {"seed": seed})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    clap(arguments.folder / "clap", arguments.seed)
    for name, classes in [("videomae", True), ("videomae_base", False)]:
        (arguments.folder / name).mkdir(exist_ok=True)
        videomae(arguments.folder / name, arguments.seed, classes)


if __name__ == "__main__":
    main()
