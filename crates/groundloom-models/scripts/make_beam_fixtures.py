"""Writes beams.json beside the weights of fixtures: what transformers' beam search writes with them.

    python make_beam_fixtures.py FOLDER... [--seed N] [--cases N]

Each FOLDER is a fixture of a model that writes, as it lies in tests/data/fixtures or as the other scripts here make it by
other seeds. Needs torch, transformers 5.23 and safetensors. A model of random weights hardly ever ends a text: so texts end
at tokens that its own texts are full of. A case in which a choice is close (within 1e-4) is left out, and another text's
end is tried until enough cases are left and their texts differ.
"""

import argparse
import itertools
import json
import pathlib
import random

import torch
import transformers as tf
from safetensors.torch import load_file
from transformers.generation import GenerationMixin

torch.set_grad_enabled(False)
torch.set_num_threads(1)
tf.logging.set_verbosity_error()

CLOSE = 1e-4
MODELS = {
    "gpt2": tf.GPT2LMHeadModel, "opt": tf.OPTForCausalLM, "t5": tf.T5ForConditionalGeneration,
    "blip": tf.BlipForConditionalGeneration, "blip-2": tf.Blip2ForConditionalGeneration,
    "llava": tf.LlavaForConditionalGeneration, "kosmos-2": tf.Kosmos2ForConditionalGeneration,
    "whisper": tf.WhisperForConditionalGeneration,
}


class Gap:
    """The least distance between values of which one is chosen and the other is not, over a search."""

    def __init__(self):
        self.least = float("inf")
        self.originals = {}

    def see(self, values, places=None):
        """Values in order; `places` are the ones behind which a choice ends, all where there are none."""
        values = values[values > -1e8].sort(descending=True).values
        gaps = values[:-1] - values[1:]
        for place in range(len(gaps)) if places is None else places:
            if 0 <= place < len(gaps):
                self.least = min(self.least, float(gaps[place]))

    def __enter__(self):
        gap = self

        def top(this, accumulated_log_probs, beams_to_keep, num_beams, **options):
            gap.see(accumulated_log_probs[0].topk(beams_to_keep + 1).values, [num_beams - 1, beams_to_keep - 1])
            return gap.originals["_get_top_k_continuations"](
                this, accumulated_log_probs=accumulated_log_probs, beams_to_keep=beams_to_keep, num_beams=num_beams,
                **options)

        def running(this, topk_log_probs, next_token_hits_stopping_criteria, num_beams, **options):
            gap.see((topk_log_probs + next_token_hits_stopping_criteria * -1e9)[0], [num_beams - 1])
            return gap.originals["_get_running_beams_for_next_iteration"](
                this, topk_log_probs=topk_log_probs, num_beams=num_beams,
                next_token_hits_stopping_criteria=next_token_hits_stopping_criteria, **options)

        def finished(this, beam_scores, **options):
            result = gap.originals["_update_finished_beams"](this, beam_scores=beam_scores, **options)
            scores = options["topk_log_probs"] / (options["cur_len"] + 1 - options["decoder_prompt_len"]) ** options["length_penalty"]
            ends = options["next_token_hits_stopping_criteria"] & options["top_num_beam_mask"][None]
            gap.see(torch.cat([beam_scores[0], scores[0][ends[0]]]))
            return result

        def early(*positional, **options):
            length = options["cur_len"]
            if options["early_stopping"] == "never" and options["length_penalty"] > 0.0:
                length = options["max_length"]
            best = options["running_beam_scores"][0, 0] / (length - options["decoder_prompt_len"]) ** options["length_penalty"]
            if bool(options["is_sent_finished"].all()):
                gap.see(torch.stack([best, options["beam_scores"][0].min()]))
            return gap.originals["_check_early_stop_heuristic"](**options)

        for name, patch in [("_get_top_k_continuations", top), ("_get_running_beams_for_next_iteration", running),
                            ("_update_finished_beams", finished), ("_check_early_stop_heuristic", staticmethod(early))]:
            self.originals[name] = getattr(GenerationMixin, name)
            setattr(GenerationMixin, name, patch)
        return self

    def __exit__(self, *_):
        for name, original in self.originals.items():
            setattr(GenerationMixin, name, staticmethod(original) if "early" in name else original)


def writers(folder, model, given, notes):
    """What is written, by its name: a function of options that gives the ids behind the context."""
    kind = model.config.model_type

    def behind(length, generate):
        return lambda **options: generate(**options)[0].tolist()[length:]

    if kind in ("gpt2", "opt"):
        ids = given["in.input_ids"]
        mask = torch.ones_like(ids)
        return {"greedy": behind(ids.shape[1], lambda **o: model.generate(ids, attention_mask=mask, **o))}
    if kind == "t5":
        ids = tf.AutoTokenizer.from_pretrained(folder)(notes["sentences"][0], return_tensors="pt")["input_ids"]
        return {"greedy": behind(1, lambda **o: model.generate(ids, attention_mask=torch.ones_like(ids), **o))}
    pixels = given.get("in.pixel_values")
    if kind == "blip":
        def generate(prompt):
            def run(eos_token_id, **options):
                # The class takes the end of texts from nowhere else.
                model.config.text_config.sep_token_id = eos_token_id[0]
                return model.generate(pixel_values=pixels[:1], input_ids=prompt, **options)
            return run
        prompt = torch.cat([given["in.prompt_ids"], torch.tensor([[0]])], 1)
        # The class takes the first of these for the start, and the last away.
        none = torch.tensor([[0, 0]])
        return {"greedy": behind(1, generate(none)), "greedy_prompt": behind(prompt.shape[1] - 1, generate(prompt))}
    ids = given.get("in.input_ids")
    if kind == "whisper":
        extractor = tf.WhisperFeatureExtractor.from_pretrained(folder)

        def heard(name, timed, task):
            inputs = extractor(given[f"in.{name}"].numpy(), sampling_rate=16000, return_tensors="pt", truncation=False,
                               padding="longest")["input_features"]
            if name == "waveform":
                inputs = given["in.input_features"]

            def run(eos_token_id, max_new_tokens, **options):
                said = model.generate(inputs, return_segments=True, return_timestamps=timed, task=task, **options)
                return torch.cat([part["tokens"] for part in said["segments"][0]]).tolist()
            return run
        return {"plain": heard("waveform", False, "transcribe"), "timed": heard("waveform", True, "translate"),
                "long": heard("long_waveform", True, "transcribe")}
    if kind == "kosmos-2":
        # What is given behind an image of its own comes with the mask of its places.
        places = given["in.image_embeds_position_mask"]
        return {"greedy": behind(ids.shape[1], lambda **o: model.generate(
            pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), image_embeds_position_mask=places, **o))}
    begun = 1 if kind == "blip-2" and model.config.text_config.model_type == "t5" else ids.shape[1]
    return {"greedy": behind(begun, lambda **o: model.generate(
        pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), **o))}


def settings(draw, whisper):
    """Beams, penalties and ways to stop, in an order that the seed draws; then what else changes a search."""
    penalties = [0.0, 1.0, -0.5, 2.0]
    whole = [
        {"num_beams": beams, "length_penalty": penalty, "early_stopping": stopping}
        for beams, penalty, stopping in itertools.product([2, 3, 5], penalties, [False, True, "never"])]
    draw.shuffle(whole)
    others = [] if whisper else [
        {"num_beams": 3, "repetition_penalty": 1.7}, {"num_beams": 2, "no_repeat_ngram_size": 2},
        {"num_beams": 5, "no_repeat_ngram_size": 1, "length_penalty": -0.5}, {"num_beams": 3, "min_new_tokens": 4},
        {"num_beams": 11, "length_penalty": 2.0, "early_stopping": True}, {"num_beams": 1, "repetition_penalty": 1.7},
        {"num_beams": 1, "no_repeat_ngram_size": 2}, {"num_beams": 3, "max_new_tokens": 1}]
    return others + whole


def ends_of(write, draw, several):
    """Tokens that the model's own texts have in their middle, in an order that the seed draws."""
    seen = {}
    for beams in (2, 5):
        for last in range(2, 9):
            text = write(num_beams=beams, do_sample=False, max_new_tokens=last, eos_token_id=[10**6])
            for token in text[1:]:
                seen[token] = seen.get(token, 0) + 1
    tokens = sorted(seen, key=lambda token: (-seen[token], token))[:12]
    draw.shuffle(tokens)
    return [[token] for token in tokens] + ([tokens[:2]] if several else [])


def cases_of(name, write, draw, most, whisper, several):
    tried = [None] if whisper else ends_of(write, draw, several)
    best = []
    for ends in tried:
        cases = []
        for options in settings(draw, whisper):
            options = {"max_new_tokens": 10} | options
            with Gap() as gap:
                ids = write(do_sample=False, eos_token_id=ends or [0], **options)
            if gap.least > CLOSE:
                shown = options if not whisper else {k: v for k, v in options.items() if k != "max_new_tokens"}
                cases.append({"key": name} | ({} if whisper else {"ends": ends}) | shown | {"ids": ids})
            if len(cases) == most:
                break
        if len({tuple(case["ids"]) for case in cases}) > len({tuple(case["ids"]) for case in best}):
            best = cases
    return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--cases", type=int, default=30)
    arguments = parser.parse_args()
    for folder in arguments.folders:
        draw = random.Random(arguments.seed)
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        model = MODELS[kind].from_pretrained(folder, attn_implementation="eager").eval()
        notes = json.loads((folder / "expected.json").read_text())
        given = load_file(folder / "expected.safetensors")
        cases = []
        for name, write in writers(folder, model, given, notes).items():
            several = kind in ("gpt2", "opt", "llava", "kosmos-2")
            cases += cases_of(name, write, draw, arguments.cases, kind == "whisper", several)
        texts = {tuple(case["ids"]) for case in cases}
        if len(cases) < arguments.cases // 2 or len(texts) < 4:
            raise SystemExit(f"{folder}: expected more, found {len(cases)} cases without close choices, {len(texts)} texts")
        head = {"seed": arguments.seed, "versions": {"torch": torch.__version__, "transformers": tf.__version__}}
        lines = ",\n".join("  " + json.dumps(case) for case in cases)
        (folder / "beams.json").write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n')
        print(folder.name, len(cases), "cases", len(texts), "texts", (folder / "beams.json").stat().st_size, "bytes")


main()
