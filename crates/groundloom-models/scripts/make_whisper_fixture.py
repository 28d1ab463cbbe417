"""Makes tests/data/fixtures/whisper anew: a tiny Whisper with random weights, and what transformers answers.

    python make_whisper_fixture.py FOLDER [--seed N] [--width 16] [--words]

FOLDER holds the tokenizer.json and tokenizer_config.json that are in the repository. Needs torch, transformers 5.23 and
safetensors. A window is 1 s long, the long waveform 2.7 s. `generate` is run as a user runs it: with languages to choose
from, tokens that are suppressed, a short and a long waveform, with timestamps and without. Weights are drawn until the
texts have several stretches and no token is a close choice.

When words are said is told too, by heads that the seed draws; with --words, that alone is added to FOLDER as it lies. Heads
with which the times in double precision are others are passed over.
"""

import argparse
import copy
import itertools
import json
import pathlib
import random

import numpy as np
import tokenizers
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from transformers.generation import GenerationMixin, LogitsProcessor
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words, _decode_asr

torch.set_grad_enabled(False)
torch.set_num_threads(1)


def speech(samples, seed):
    r = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    tones = zip(r.uniform(0.05, 0.3, 4), r.uniform(80, 5600, 4), r.uniform(0, 6, 4))
    wave = sum(a * np.sin(2 * np.pi * f * t + p) for a, f, p in tones)
    wave = wave * (0.3 + 0.7 * np.abs(np.sin(2 * np.pi * 1.7 * t))) + 0.02 * r.standard_normal(samples)
    return (np.round(wave * 16384) / 32768).astype(np.float32)


class Gaps(LogitsProcessor):
    """How far the likeliest token lies before the next, over all steps."""

    def __init__(self):
        self.least = float("inf")

    def __call__(self, input_ids, scores):
        first, second = torch.topk(scores[0], 2).values
        self.least = min(self.least, float(first - second))
        return scores


def said(model, tokenizer, extractor, waveform, options):
    """The words of a waveform as the reference's own pipeline tells them: texts, beginnings and ends in seconds."""
    length = {} if len(waveform) <= extractor.n_samples else {"truncation": False, "padding": "longest"}
    inputs = extractor(waveform, sampling_rate=16000, return_tensors="pt", return_attention_mask=True, **length)
    found = model.generate(
        inputs["input_features"].to(model.dtype), attention_mask=inputs["attention_mask"], return_timestamps=True,
        return_token_timestamps=True, return_segments=True, task="transcribe", **options)
    segments = found["segments"][0]
    first = tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1
    begins = [float(segment["start"]) - 0.02 * float(segment["tokens"][0] - first) for segment in segments]
    if max(begins) > len(waveform) / 16000 - 0.02:
        # Of a window behind the sound the reference would listen to all but the last frames.
        return None
    times = torch.cat([segment["token_timestamps"] for segment in segments])
    outputs = [{"tokens": found["sequences"], "token_timestamps": times[None]}]
    words = _decode_asr(tokenizer, outputs, return_timestamps="word", return_language=None, time_precision=0.02)[1]
    return [[word["text"], *word["timestamp"]] for word in words["chunks"]]


def tell_words(folder, seed):
    """Names heads that follow the speech in the folder's generation_config.json, and writes words into its notes."""
    draw = random.Random(seed)
    tokenizer = tf.WhisperTokenizer.from_pretrained(folder)
    # The released tokenizers name them all, but for the timestamps behind them.
    special = range(tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1)
    tokenizer = tf.WhisperTokenizer.from_pretrained(
        folder, extra_special_tokens=tokenizer.convert_ids_to_tokens(list(special)))
    extractor = tf.WhisperFeatureExtractor.from_pretrained(folder)
    file = folder / "generation_config.json"
    given = load_file(folder / "expected.safetensors")
    notes = json.loads((folder / "expected.json").read_text())
    model = tf.WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    all_heads = [list(pair) for pair in itertools.product(range(layers), range(heads))]
    while True:
        chosen = sorted(draw.sample(all_heads, draw.randint(1, min(3, len(all_heads)))))
        model.generation_config.alignment_heads = chosen
        exact = copy.deepcopy(model).double()
        cases = []
        for samples, options in itertools.product([9_000, 16_000, 30_001, 38_217], [{}, {"num_beams": 3}]):
            waveform = given["in.long_waveform"].numpy()[:samples]
            words = said(model, tokenizer, extractor, waveform, options)
            if words and words == said(exact, tokenizer, extractor, waveform, options):
                cases.append({"samples": samples} | options | {"words": words})
        starts = {word[1] for case in cases for word in case["words"]}
        if len(cases) >= 3 and len(starts) > 6:
            break
    # Any tokens that are texts, also such as are parts of characters.
    ids = [draw.randrange(model.config.eos_token_id) for _ in range(60)]
    notes["unspaced"] = {"ids": ids, "words": _combine_tokens_into_words(tokenizer, list(ids), "japanese")[0]}
    notes["words"] = cases
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alignment_heads": chosen}, indent=2, sort_keys=True) + "\n")
    (folder / "expected.json").write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n")
    print(chosen, [(case["samples"], len(case["words"])) for case in cases], len(starts))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--words", action="store_true")
    arguments = parser.parse_args()
    folder, width = arguments.folder, arguments.width
    if arguments.words:
        return tell_words(folder, arguments.seed)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in
           ["endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startofprev", "notimestamps"]}
    end, start, quiet = ids["endoftext"], ids["startoftranscript"], ids["notimestamps"]
    # Timestamps of one window: of 1 s.
    vocabulary = quiet + 1 + 51
    config = tf.WhisperConfig(
        vocab_size=vocabulary, num_mel_bins=40, d_model=width, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=2 * width, decoder_ffn_dim=3 * width,
        max_source_positions=50, max_target_positions=40, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        decoder_start_token_id=start, suppress_tokens=None, begin_suppress_tokens=None)
    suppressed = [5, 9, ids["startofprev"], start]
    generation = tf.GenerationConfig(
        max_length=40, bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start,
        suppress_tokens=suppressed, begin_suppress_tokens=[220, end], no_timestamps_token_id=quiet,
        max_initial_timestamp_index=20, is_multilingual=True, prev_sot_token_id=ids["startofprev"],
        lang_to_id={"<|en|>": ids["en"], "<|de|>": ids["de"]},
        task_to_id={"transcribe": ids["transcribe"], "translate": ids["translate"]}, return_timestamps=False)
    extractor = tf.WhisperFeatureExtractor(feature_size=40, chunk_length=1)
    extractor.save_pretrained(folder)
    long = speech(38_217, arguments.seed)
    short = speech(12_345, arguments.seed + 1)

    for trial in range(arguments.seed * 1000, arguments.seed * 1000 + 1000):
        model = tf.WhisperForConditionalGeneration(config)
        draw = torch.Generator().manual_seed(trial)
        norms = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.LayerNorm)}
        for name, parameter in sorted(model.named_parameters()):
            # Strong positions, or else the same token comes again and again.
            scale = (0.8 if "decoder.embed_positions" in name else 0.4) * (16 / width) ** 0.5
            values = scale * torch.randn(parameter.shape, generator=draw)
            parameter.copy_(1 + values if id(parameter) in norms else values)
        model.generation_config = generation
        model.save_pretrained(folder)
        model = tf.WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
        tensors, notes = {}, {"seed": arguments.seed, "trial": trial, "model_class": type(model).__name__}

        features = extractor(short, sampling_rate=16000, return_tensors="pt")["input_features"]
        whole = extractor(long, sampling_rate=16000, return_tensors="pt", truncation=False, padding="longest")
        whole = whole["input_features"]
        tensors |= {"in.waveform": torch.tensor(short), "in.long_waveform": torch.tensor(long),
                    "in.input_features": features}
        encoded = model.model.encoder(features, output_hidden_states=True)
        for i, hidden in enumerate(encoded.hidden_states[:-1]):
            tensors[f"out.encoder_hidden.{i}"] = hidden
        tensors["out.encoder_last_hidden"] = encoded.last_hidden_state
        tensors["out.mel_filters_row_sums"] = torch.tensor(extractor.mel_filters.sum(0)).float()
        prompt = [start, ids["en"], ids["transcribe"], quiet]
        written = torch.tensor([prompt + tokenizer("a cat", add_special_tokens=False)["input_ids"]])
        tensors["in.decoder_input_ids"] = written
        tensors["out.decoder_logits"] = model(input_features=features, decoder_input_ids=written).logits

        gaps = Gaps()
        plain = tf.GenerationConfig(
            max_new_tokens=10, max_length=None, do_sample=False, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start,
            suppress_tokens=suppressed, begin_suppress_tokens=[220, end], return_dict_in_generate=True, output_logits=True)
        greedy = GenerationMixin.generate(model, features, generation_config=plain, logits_processor=[gaps],
                                          decoder_input_ids=torch.tensor([prompt]))
        tensors["out.greedy_ids"] = greedy.sequences
        tensors["out.greedy_step_logits"] = torch.cat(greedy.logits)

        stretches = 0
        for name, inputs, options in [("plain", features, {"return_timestamps": False}),
                                      ("timed", features, {"return_timestamps": True, "task": "translate"}),
                                      ("long", whole, {"return_timestamps": True})]:
            options = {"task": "transcribe"} | options
            language = model.detect_language(inputs, num_segment_frames=100)
            said = model.generate(inputs, return_segments=True, logits_processor=[gaps], **options)["segments"][0]
            said_ids = torch.cat([part["tokens"] for part in said])[None]
            tensors[f"out.{name}_ids"] = said_ids
            tensors[f"out.{name}_times"] = torch.tensor([[float(part["start"]), float(part["end"])] for part in said])
            tensors[f"out.{name}_language_ids"] = language[None]
            words = [i for i in said_ids[0].tolist() if i <= quiet]
            notes[f"{name}_text"] = tokenizer.decode(words, skip_special_tokens=True)
            stretches += len(said)
            if name == "timed":
                timed = len(said)
        notes["least_gap"] = gaps.least
        if gaps.least > 3e-3 and timed > 1 and stretches > 5 and len(set(words)) > 8:
            break
    else:
        raise SystemExit("no weights with several stretches and without close choices were found")
    # As the file has it: the class puts other tokens around a text.
    file = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    notes["tokenizer"] = [
        {"text": text, "ids": file.encode(text).ids,
         "decoded_skip_special": file.decode(file.encode(text).ids, skip_special_tokens=True)}
        for text in ["a photo of a cat", "it's the café — résumé", ""]]
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n")
    tell_words(folder, arguments.seed)
    print({name: value.tolist() for name, value in tensors.items() if "_ids" in name or "_times" in name}, notes)


if __name__ == "__main__":
    main()
