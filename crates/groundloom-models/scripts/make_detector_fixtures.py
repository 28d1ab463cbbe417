"""Makes the folders of tests/data/fixtures anew: tiny detectors with random weights, and what transformers answers.

    python make_detector_fixtures.py FOLDER [--seed N]

FOLDER holds grounding_dino, owlvit and owlv2, each with the tokenizer.json and tokenizer_config.json that are in the
repository. Needs torch, transformers 5.23, pillow, scipy and safetensors. Weights are drawn until no decision (a
threshold, a proposal, a label) is a close one.

Grounding DINO runs with eager attention, which adds a mask of booleans to the scores of its BERT instead of hiding
what it masks; `out.default_logits` and `out.default_boxes` are of the attention that transformers takes by default,
which hides it.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import save_file
from transformers.models.grounding_dino import modeling_grounding_dino as dino
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

torch.set_grad_enabled(False)
torch.set_num_threads(1)


def picture(width, height, seed):
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x * a + y * b + c) for a, b, c in np.random.default_rng(seed).uniform(0.05, 0.6, (3, 3))]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8), "RGB")


def draw(model, seed):
    generator = torch.Generator().manual_seed(seed)
    norms = {id(m.weight) for m in model.modules() if "Norm" in type(m).__name__ and hasattr(m, "weight")}
    for name, parameter in sorted(model.named_parameters()):
        values = 0.2 * torch.randn(parameter.shape, generator=generator)
        if id(parameter) in norms:
            values = 1 + values
        if "sampling_offsets.bias" in name:
            values = 8 * values
        parameter.copy_(values)
    return model.eval()


def saved(folder, model, processor, seed, **kwargs):
    draw(model, seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return type(model).from_pretrained(folder, attn_implementation="eager", **kwargs).eval()


def gap(values):
    values = values.flatten().sort(descending=True).values
    return float((values[:-1] - values[1:]).min()) if len(values) > 1 else 1.0


def threshold(scores):
    """In the middle of the widest gap among the best third."""
    best = scores.flatten().sort(descending=True).values[: scores.numel() // 3 + 2]
    at = int((best[:-1] - best[1:]).argmax())
    return round(float(best[at] + best[at + 1]) / 2, 6), float(best[at] - best[at + 1]) / 2


def write(folder, tensors, notes):
    kinds = {torch.bool: torch.uint8, torch.float64: torch.float32, torch.int32: torch.int64}
    tensors = {name: t.detach().to(kinds.get(t.dtype, t.dtype)).contiguous().clone() for name, t in tensors.items()}
    save_file(tensors, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(notes, indent=1) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def images(sizes, seed):
    found = [picture(width, height, seed + number) for number, (width, height) in enumerate(sizes)]
    named = {f"in.image_{tag}": torch.from_numpy(np.asarray(image).copy()) for tag, image in zip("ab", found)}
    return found, named


def grounding_dino(folder, seed):
    backbone = tf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 3], num_heads=[2, 4], window_size=3,
                             mlp_ratio=1.5, out_indices=[2])
    text = tf.BertConfig(vocab_size=1188, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
                         max_position_embeddings=32)
    config = tf.GroundingDinoConfig(backbone_config=backbone, text_config=text, d_model=32, encoder_layers=2, decoder_layers=2,
                                    encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=20,
                                    num_queries=9, max_text_len=24, num_feature_levels=3, encoder_n_points=3, decoder_n_points=2)
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 56, "longest_edge": 88})
    model = saved(folder, tf.GroundingDinoForObjectDetection(config), processor, seed)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    pictures, tensors = images([(67, 30), (41, 52)], seed)
    texts = ["a cat. the remote control.", "two dogs"]
    seen = processor(images=pictures, return_tensors="pt")
    read = tokenizer(texts, padding=True, return_tensors="pt")
    given = dict(pixel_values=seen["pixel_values"], pixel_mask=seen["pixel_mask"], **{k: read[k] for k in ("input_ids", "attention_mask", "token_type_ids")})
    tensors |= {f"in.{name}": tensor for name, tensor in given.items()}
    tensors["in.pixel_mask"] = tensors["in.pixel_mask"].bool()
    masks, positions = dino.generate_masks_with_special_tokens_and_transfer_map(read["input_ids"], torch.tensor(dino.SPECIAL_TOKENS))
    tensors |= {"out.text_self_attention_masks": masks, "out.text_position_ids": positions}
    caught = {}
    model.model.text_projection.register_forward_hook(lambda *call: caught.setdefault("text_projected", call[2]))
    for level, layers in enumerate(model.model.input_proj_vision):
        layers.register_forward_hook(lambda *call, level=level: caught.setdefault(f"input_proj.{level}", call[2]))
    sampler = next(m for m in model.modules() if isinstance(m, dino.MultiScaleDeformableAttention))

    def sampled(_, args, kwargs, out):
        named = dict(zip(["value", "shapes", "list", "starts", "sampling_locations", "attention_weights"], args)) | kwargs
        for name in ("value", "sampling_locations", "attention_weights"):
            caught.setdefault(f"msda0.{name}", named[name])
        caught.setdefault("msda0.output", out)

    sampler.register_forward_hook(sampled, with_kwargs=True)
    out = model(**given)
    tensors |= {f"out.{name}": tensor for name, tensor in caught.items()}
    for name in ("logits", "pred_boxes", "last_hidden_state", "init_reference_points", "intermediate_hidden_states",
                 "intermediate_reference_points", "encoder_last_hidden_state_vision", "encoder_last_hidden_state_text",
                 "enc_outputs_class", "enc_outputs_coord_logits", "encoder_logits"):
        tensors[f"out.{name}"] = getattr(out, name)
    default = tf.GroundingDinoForObjectDetection.from_pretrained(folder).eval()(**given)
    tensors |= {"out.default_logits": default.logits, "out.default_boxes": default.pred_boxes}
    scores = torch.sigmoid(out.logits)
    box, box_margin = threshold(scores.max(-1).values)
    token, token_margin = threshold(scores[scores > 0])
    proposals = [o.enc_outputs_class.max(-1).values.topk(10, dim=1).values for o in (out, default)]
    close = min(box_margin, token_margin, min(gap(row) for p in proposals for row in p) / 20)
    sizes = [(image.height, image.width) for image in pictures]
    found = tf.GroundingDinoProcessor(image_processor=processor, tokenizer=tokenizer).post_process_grounded_object_detection(
        out, input_ids=read["input_ids"], threshold=box, text_threshold=token, target_sizes=sizes)
    for number, one in enumerate(found):
        tensors |= {f"out.post.{number}.scores": one["scores"], f"out.post.{number}.boxes": one["boxes"]}
    write(folder, tensors, {"texts": texts, "threshold": box, "text_threshold": token,
                            "post_text_labels": [one["text_labels"] for one in found]})
    # Of no box the reference makes one empty label.
    return close if all(len(one["scores"]) for one in found) else 0.0


def owl(folder, seed, second):
    text = dict(vocab_size=571, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
                max_position_embeddings=16, hidden_act="quick_gelu", bos_token_id=569, eos_token_id=570, pad_token_id=0)
    vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=4,
                  hidden_act="quick_gelu")
    if second:
        config, model, maker, whole = tf.Owlv2Config, tf.Owlv2ForObjectDetection, Owlv2ImageProcessorPil, tf.Owlv2Processor
    else:
        config, model, maker, whole = tf.OwlViTConfig, tf.OwlViTForObjectDetection, OwlViTImageProcessorPil, tf.OwlViTProcessor
    side = {"height": 28, "width": 28}
    processor = maker(size=side) if second else maker(size=side, crop_size=side)
    model = saved(folder, model(config(text_config=text, vision_config=vision, projection_dim=12)), processor, seed)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    pictures, tensors = images([(61, 33), (19, 45)], seed)
    pixels = torch.cat([processor(images=image, return_tensors="pt")["pixel_values"] for image in pictures])
    labels = [["a cat", "a remote control", "Two dogs, asleep"], ["a photo of a bird"]]
    both = whole(image_processor=processor, tokenizer=tokenizer)
    read = both(text=labels, return_tensors="pt")
    tensors |= {"in.pixel_values": pixels, "in.input_ids": read["input_ids"], "in.attention_mask": read["attention_mask"]}
    out = model(pixel_values=pixels, input_ids=read["input_ids"], attention_mask=read["attention_mask"])
    names = ["logits", "pred_boxes", "text_embeds", "image_embeds", "class_embeds"] + ["objectness_logits"] * second
    tensors |= {f"out.{name}": out[name] for name in names}
    without = read["input_ids"].clone()
    without[-1] = 0
    tensors["out.logits_zero_query"] = model(pixel_values=pixels, input_ids=without, attention_mask=read["attention_mask"]).logits
    guided = model.image_guided_detection(pixel_values=pixels[:1], query_pixel_values=pixels[1:2])
    tensors |= {"out.guided_logits": guided.logits, "out.guided_target_boxes": guided.target_pred_boxes,
                "out.guided_query_boxes": guided.query_pred_boxes}
    box, margin = threshold(torch.sigmoid(out.logits.max(-1).values))
    two = out.logits.topk(2, -1).values
    kept = torch.sigmoid(two[..., 0]) > box
    close = min(margin, float((two[..., 0] - two[..., 1])[kept].min()) / 10)
    sizes = torch.tensor([(image.height, image.width) for image in pictures])
    blanks = [one + [" "] * (3 - len(one)) for one in labels]
    found = both.post_process_grounded_object_detection(outputs=out, threshold=box, target_sizes=sizes, text_labels=blanks)
    for number, one in enumerate(found):
        tensors |= {f"out.post.{number}.{name}": one[name] for name in ("scores", "boxes", "labels")}
    write(folder, tensors, {"text_labels": labels, "threshold": box, "post_text_labels": [one["text_labels"] for one in found]})
    return close


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    makers = {"grounding_dino": grounding_dino, "owlvit": lambda *a: owl(*a, False), "owlv2": lambda *a: owl(*a, True)}
    for name, make in makers.items():
        for attempt in range(40):
            close = make(arguments.folder / name, arguments.seed * 1000 + attempt)
            if close >= 1e-4:
                print(f"{name}: the closest decision is {close:.1e} away, attempt {attempt + 1}")
                break
        else:
            raise SystemExit(f"{name}: no weights without a close decision")


if __name__ == "__main__":
    main()
