"""Grounding DINO of the released tiny size with random weights: transformers beside this crate, in turns.

    python bench_grounding_dino.py FOLDER BENCH [--rounds N] [--size WIDTH HEIGHT] [--threads N] [--batch N]

FOLDER is made if it is not there (700 MB); BENCH is the program that `cargo bench --bench phrases --no-run` names. Both
read the same picture size and prompt; this crate's time includes its resize and its post-processing, transformers' is
the forward pass alone, with its default attention, over BATCH pictures at once; this crate computes pictures one by one.
Printed is the time of one picture. Needs torch, transformers and pillow.
"""

import argparse
import os
import pathlib
import subprocess
import time

import numpy as np
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

PROMPT = "a cat. a dog. the remote control. two birds on a tree."


def make(folder):
    torch.manual_seed(0)
    config = tf.GroundingDinoConfig(backbone_config=tf.SwinConfig(window_size=7, image_size=224, out_indices=[2, 3, 4]),
                                    text_config=tf.BertConfig())
    tf.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoImageProcessorPil().save_pretrained(folder)
    vocabulary = {f"[unused{number}]": number for number in range(30522)}
    words = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    words |= {word: 2000 + at for at, word in enumerate(sorted(set(PROMPT.replace(".", "").split())))}
    vocabulary = {token: number for token, number in vocabulary.items() if number not in words.values()} | words
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)])
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=[640, 480])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    if not (arguments.folder / "model.safetensors").exists():
        make(arguments.folder)
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    model = tf.GroundingDinoForObjectDetection.from_pretrained(arguments.folder).eval()
    processor = GroundingDinoImageProcessorPil.from_pretrained(arguments.folder)
    width, height = arguments.size
    picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    seen = processor(images=picture, return_tensors="pt")
    ids = torch.tensor([Tokenizer.from_file(str(arguments.folder / "tokenizer.json")).encode(PROMPT).ids])
    given = dict(pixel_values=seen["pixel_values"], pixel_mask=seen["pixel_mask"], input_ids=ids)
    given = {name: tensor.repeat(arguments.batch, *[1] * (tensor.dim() - 1)) for name, tensor in given.items()}
    model(**given)
    times = {"transformers": [], "groundloom": []}
    for _ in range(arguments.rounds):
        begun = time.perf_counter()
        model(**given)
        times["transformers"].append((time.perf_counter() - begun) / arguments.batch)
        command = [arguments.bench, "--bench", str(arguments.folder), str(width), str(height), "1"]
        environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        times["groundloom"].append(float(out.split()[0]))
    for name, seconds in times.items():
        print(f"{name}: {min(seconds):.2f} s best, {sorted(seconds)[len(seconds) // 2]:.2f} s median of {len(seconds)}")
    print(f"ratio of the medians: {sorted(times['transformers'])[arguments.rounds // 2] / sorted(times['groundloom'])[arguments.rounds // 2]:.2f}")


if __name__ == "__main__":
    main()
