"""Embeds with torch and with this crate, in turns, and prints the ratios.

    python3 -m venv venv && venv/bin/pip install torch transformers pillow
    cargo bench -p groundloom-models --bench encoder --no-run
    venv/bin/python scripts/bench_encoders.py --bench target/release/deps/encoder-… --out DIR [--rounds 3] [--minilm FOLDER]

DIR gets a CLIP ViT-B/32 of random weights in Hugging Face layout (350 MB). Torch runs eagerly, f32, without gradients; its inputs are
ready-made tensors, while this crate also converts pixels and reads text. Both use all the threads they are given (--threads).
"""
import argparse
import json
import os
import subprocess
import time

import torch
import transformers as tf

p = argparse.ArgumentParser()
p.add_argument("--bench", required=True)
p.add_argument("--out", required=True)
p.add_argument("--minilm")
p.add_argument("--rounds", type=int, default=3)
p.add_argument("--threads", type=int, default=os.cpu_count())
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(7)
BATCHES = [1, 8, 32]
TEXT = ("two brown dogs and a small grey cat are sleeping on a pink couch beside two remote controls, a red "
        "blanket and a wooden table")


def clip_folder(path):
    if not os.path.exists(os.path.join(path, "model.safetensors")):
        model = tf.CLIPModel(tf.CLIPConfig())
        model.save_pretrained(path)
        tf.CLIPImageProcessor().save_pretrained(path)
        # Any tokenizer will do: only images are embedded.
        from tokenizers import Tokenizer, models as kinds
        Tokenizer(kinds.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(os.path.join(path, "tokenizer.json"))
    return tf.CLIPModel.from_pretrained(path, attn_implementation="eager").eval()


def rate(run, batch):
    run()
    start, rounds = time.time(), 0
    while time.time() - start < 4 or rounds < 3:
        run()
        rounds += 1
    return rounds * batch / (time.time() - start)


def torch_rates(name):
    rates = {}
    with torch.inference_mode():
        for batch in BATCHES:
            if name == "clip":
                pixels = torch.rand(batch, 3, 224, 224)
                rates[batch] = rate(lambda: clip.visual_projection(clip.vision_model(pixels).pooler_output), batch)
            else:
                x = tokenizer([TEXT] * batch, return_tensors="pt")

                def run():
                    h = minilm(**x).last_hidden_state
                    m = x["attention_mask"][..., None].float()
                    return torch.nn.functional.normalize((h * m).sum(1) / m.sum(1), dim=-1)

                rates[batch] = rate(run, batch)
    return rates


def our_rates(folder):
    env = dict(os.environ, RAYON_NUM_THREADS=str(a.threads))
    lines = subprocess.run([a.bench, folder], env=env, check=True, capture_output=True, text=True).stdout.splitlines()
    return {row["batch"]: row["per_second"] for row in map(json.loads, lines)}


clip_path = os.path.join(a.out, "clip-vit-base-patch32-random")
clip = clip_folder(clip_path)
models = {"clip": clip_path}
if a.minilm:
    minilm = tf.AutoModel.from_pretrained(a.minilm, attn_implementation="eager").eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(a.minilm)
    models["minilm"] = a.minilm
print(f"torch {torch.__version__}, {a.threads} threads, load {os.getloadavg()[0]:.1f}")
for name, folder in models.items():
    for round_ in range(a.rounds):
        theirs, ours = torch_rates(name), our_rates(folder)
        for batch in BATCHES:
            print(f"{name} batch {batch}: torch {theirs[batch]:.1f}/s, groundloom {ours[batch]:.1f}/s, "
                  f"ratio {ours[batch] / theirs[batch]:.2f}", flush=True)
