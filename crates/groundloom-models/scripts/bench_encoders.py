"""Embeds with torch and with this crate, in turns, and prints rates, ratios and the most memory that each held.

    python3 -m venv venv && venv/bin/pip install torch transformers pillow
    cargo bench -p groundloom-models --bench encoder --no-run
    venv/bin/python scripts/bench_encoders.py --bench target/release/deps/encoder-… --out DIR [--models clip siglip minilm hubert]
        [--threads 1 2] [--batches 1 8 32] [--seconds 4] [--rounds 1] [--prepare]

DIR gets models of the released sizes with random weights in Hugging Face layout (1.9 GB in all; --prepare makes them and measures
nothing): CLIP ViT-B/32, SigLIP B/16, MiniLM L6, HuBERT base. Torch runs eagerly, f32, without gradients, with transformers' default
attention; its inputs are ready-made tensors, while this crate also converts pixels and reads text. HuBERT hears waveforms of 3 s.
Each model, number of threads and side has a process of its own; the memory is that process's, its program and libraries included.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

TEXT = ("two brown dogs and a small grey cat are sleeping on a pink couch beside two remote controls, a red "
        "blanket and a wooden table")
MODELS = ["clip", "siglip", "minilm", "hubert"]
DATA = pathlib.Path(__file__).resolve().parent.parent / "data"


def folder(model):
    return pathlib.Path(a.out) / f"{model}-random"


def make(model):
    import torch
    import transformers as tf
    path = folder(model)
    if (path / "model.safetensors").exists():
        return
    torch.manual_seed(7)
    if model in ("clip", "siglip"):
        network = tf.CLIPModel(tf.CLIPConfig()) if model == "clip" else tf.SiglipModel(tf.SiglipConfig())
        processor = tf.CLIPImageProcessor() if model == "clip" else tf.SiglipImageProcessor()
        network.save_pretrained(path)
        processor.save_pretrained(path)
        # Any tokenizer will do: only images are embedded.
        from tokenizers import Tokenizer, models as kinds
        Tokenizer(kinds.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(path / "tokenizer.json"))
    elif model == "minilm":
        sizes = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        tf.BertModel(tf.BertConfig(**sizes)).save_pretrained(path)
        for name in "tokenizer.json", "tokenizer_config.json":
            shutil.copy(DATA / "all-minilm-l6-v2" / name, path)
    else:
        tf.HubertModel(tf.HubertConfig()).save_pretrained(path)
        tf.Wav2Vec2FeatureExtractor().save_pretrained(path)


def peak_mib():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def torch_worker(model, threads):
    import torch
    import transformers as tf
    torch.set_num_threads(threads)
    path = folder(model)
    network = tf.AutoModel.from_pretrained(path).eval()
    with torch.inference_mode():
        for batch in a.batches:
            if model == "clip":
                pixels = torch.rand(batch, 3, 224, 224)
                run = lambda: network.visual_projection(network.vision_model(pixels).pooler_output)
            elif model == "siglip":
                pixels = torch.rand(batch, 3, 224, 224)
                run = lambda: network.vision_model(pixels).pooler_output
            elif model == "hubert":
                waves = torch.rand(batch, 3 * 16000) - 0.5
                run = lambda: network(waves).last_hidden_state
            else:
                from tokenizers import Tokenizer
                ids = torch.tensor([Tokenizer.from_file(str(path / "tokenizer.json")).encode(TEXT).ids] * batch)
                ids = ids[:, :int((ids[0] != 0).sum())]
                x = dict(input_ids=ids, attention_mask=torch.ones_like(ids))

                def run():
                    h = network(**x).last_hidden_state
                    m = x["attention_mask"][..., None].float()
                    return (h * m).sum(1) / m.sum(1)

            run()
            start, rounds = time.perf_counter(), 0
            while rounds == 0 or time.perf_counter() - start < a.seconds:
                run()
                rounds += 1
            rate = rounds * batch / (time.perf_counter() - start)
            print(json.dumps(dict(batch=batch, per_second=rate, peak_mib=peak_mib())), flush=True)


def measured(command, threads):
    env = os.environ | {name: str(threads) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
    lines = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.splitlines()
    return {row["batch"]: row for row in map(json.loads, lines)}


def main():
    for model in a.models:
        make(model)
    if a.prepare:
        return
    print(f"load {os.getloadavg()[0]:.1f}")
    batches = [str(batch) for batch in a.batches]
    for model in a.models:
        for threads in a.threads:
            for _ in range(a.rounds):
                theirs = measured([sys.executable, __file__, *sys.argv[1:], "--worker", model, str(threads)], threads)
                ours = measured([a.bench, "--batches", ",".join(batches), "--seconds", str(a.seconds), str(folder(model))], threads)
                for batch in a.batches:
                    t, o = theirs[batch], ours[batch]
                    print(f"{model} threads {threads} batch {batch}: torch {t['per_second']:.2f}/s {t['peak_mib']} MiB, groundloom "
                          f"{o['per_second']:.2f}/s {o['peak_mib']} MiB, ratio {o['per_second'] / t['per_second']:.2f}", flush=True)


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--bench")
p.add_argument("--out", required=True)
p.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
p.add_argument("--threads", nargs="+", type=int, default=[1, 2])
p.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
p.add_argument("--seconds", type=float, default=4)
p.add_argument("--rounds", type=int, default=1)
p.add_argument("--prepare", action="store_true")
p.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
a = p.parse_args()
if a.worker:
    torch_worker(a.worker[0], int(a.worker[1]))
else:
    main()
