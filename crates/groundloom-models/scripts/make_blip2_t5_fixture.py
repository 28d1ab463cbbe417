"""Makes tests/data/fixtures/blip2_t5 anew: a tiny BLIP-2 with a T5 and random weights, and what transformers answers.

    python make_blip2_t5_fixture.py FOLDER [--seed N] [--width 24] [--plain]

Needs torch, transformers 5.23, pillow and safetensors. The tokenizer is that of the fixture t5 beside a token for images.
The T5 has gated layers and a word layer of its own, as Flan-T5 has; with --plain it is as the first T5. Weights are drawn
until no token of the greedy text is a close choice, and until what is computed in single precision is near what double
precision gives: with some weights the reference itself is off by more than what it is the measure for.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import save_file
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

torch.set_grad_enabled(False)
torch.set_num_threads(1)

PROMPT = "Question: what is in the image? Answer:"
STEPS = 8
STRINGS = [PROMPT, "", "two dogs sleeping on a couch", "<image>"]
# Half of what logits may differ by.
MOST_NOISE = 5e-5
TOKENIZER = pathlib.Path(__file__).parent.parent / "tests/data/fixtures/t5"


def picture(width, height, seed):
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x * a + y * b + c) for a, b, c in np.random.default_rng(seed).uniform(0.05, 0.6, (3, 3))]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8), "RGB")


def draw(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.named_parameters()):
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            tensor.copy_(1 + 0.1 * noise)
        elif tensor.dim() < 2:
            tensor.copy_(0.1 * noise)
        else:
            tensor.copy_(noise * (0.7 if "shared" in name or "lm_head" in name else 1.3 * tensor.shape[-1] ** -0.5))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    folder, width = arguments.folder, arguments.width
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tf.AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens(tf.AddedToken("<image>", special=True))
    tokenizer.save_pretrained(folder)
    image, queries = tokenizer.convert_tokens_to_ids("<image>"), 4
    sizes = dict(num_hidden_layers=2, num_attention_heads=4)
    text = tf.T5Config(
        vocab_size=image + 1, d_model=width, d_kv=8, d_ff=width + 8, num_layers=2, num_heads=2,
        feed_forward_proj="relu" if arguments.plain else "gated-gelu", tie_word_embeddings=arguments.plain,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    config = tf.Blip2Config(
        vision_config=dict(hidden_size=width + 8, intermediate_size=2 * width, image_size=32, patch_size=8, **sizes),
        qformer_config=dict(
            vocab_size=30, hidden_size=width, encoder_hidden_size=width + 8, intermediate_size=2 * width,
            cross_attention_frequency=2, max_position_embeddings=16, **sizes),
        text_config=text, num_query_tokens=queries, image_token_index=image, image_token_id=image)
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    seen = picture(53, 41, arguments.seed)
    pixels = processor(images=seen, return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[image] * queries + tokenizer(PROMPT)["input_ids"]])
    mask = torch.ones_like(ids)

    for trial in range(arguments.seed * 1000, arguments.seed * 1000 + 1000):
        model = tf.Blip2ForConditionalGeneration(config)
        draw(model, trial)
        model.eval().save_pretrained(folder)
        model = tf.Blip2ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
        written, rows = [0], []
        while len(rows) < STEPS and (len(written) == 1 or written[-1] != 1):
            decoded = model(pixel_values=pixels, input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([written]))
            rows.append(decoded.logits[0, -1])
            written.append(int(rows[-1].argmax()))
        pairs = [torch.topk(row, 2).values for row in rows]
        if min(float(first - second) for first, second in pairs) > 0.02 and len(set(written)) > 4:
            exact = model.double()(
                pixel_values=pixels.double(), input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([written[:-1]]))
            noise = float((exact.logits[0] - torch.stack(rows).double()).abs().max())
            model = model.float()
            if noise < MOST_NOISE:
                break
    else:
        raise SystemExit("expected a text without close choices within 1000 draws, found none")

    answer = model.generate(
        pixel_values=pixels, input_ids=ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, num_beams=1)
    assert answer[0].tolist() == written, (answer, written)
    vision = model.vision_model(pixels)
    queried = model.qformer(
        query_embeds=model.query_tokens, encoder_hidden_states=vision.last_hidden_state).last_hidden_state
    forced = torch.tensor([[0, 7, 12, 5, 30]])
    whole = model(
        pixel_values=pixels, input_ids=ids, attention_mask=mask, decoder_input_ids=forced, return_dict=True)
    tensors = {
        "in.image_a": torch.tensor(np.asarray(seen)),
        "in.pixel_values": pixels,
        "in.input_ids": ids,
        "in.decoder_input_ids": forced,
        "out.vision_last_hidden": vision.last_hidden_state,
        "out.vision_pooled": vision.pooler_output,
        "out.qformer_query_output": queried,
        "out.language_projection": model.language_projection(queried),
        "out.encoder_last_hidden": whole.language_model_outputs.encoder_last_hidden_state,
        "out.logits": whole.logits,
        "out.greedy_ids": torch.tensor([written]),
        "out.greedy_hf_generate_ids": answer,
        "out.greedy_step_logits": torch.stack(rows),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")
    table = [
        {"text": text, "ids": tokenizer(text)["input_ids"],
         "decoded_skip_special": tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)}
        for text in STRINGS]
    notes = {
        "prompt": PROMPT, "seed": arguments.seed, "trial": trial, "noise_of_single_precision": noise, "tokenizer": table,
        "greedy_text": tokenizer.decode(written, skip_special_tokens=True),
        "versions": {"torch": torch.__version__, "transformers": tf.__version__}}
    (folder / "expected.json").write_text(json.dumps(notes, indent=1) + "\n")
    print(trial, written, sum(file.stat().st_size for file in folder.iterdir()))


main()
