"""Makes a tiny FROMAGe with random weights, and what it answers by a forward pass of its own, in plain torch.

    python make_fromage_fixture.py FOLDER [--seed N] [--layers=-1] [--narrow-words] [--whole-clip] [--whole-table] [--as-trained]

Needs torch, transformers, pillow, numpy, safetensors and tokenizers. FOLDER becomes a folder as FROMAGe is released
(model_args.json, pretrained_ckpt.pth.tar), with the models that it stands on in its folders `opt` and `visual`, and
expected.safetensors and expected.json beside them. A tokenizer.json that lies in FOLDER/opt already is kept.

transformers draws the weights of OPT and CLIP and saves them; here it computes nothing. The passes below follow the papers
and FROMAGe's description of its two retrieval embeddings:

    image = visual_fc(CLIP's pooled class token)
    text  = sum over layers of text_hidden_fcs[i](OPT's hidden state of that layer at [RET])

both divided by their length. --layers: which hidden states, 0 being what goes into the first block and -1 what comes out
behind the last norm and projection. --narrow-words: words' vectors shorter than the OPT is wide, norms behind its blocks (the
layout of OPT-350M). --whole-clip: `visual` holds a CLIP with its text tower. --whole-table: the checkpoint holds the whole
table of words too, as the released script that prunes checkpoints leaves it, and values in bf16. --as-trained: a checkpoint as training leaves it, with the frozen models, the
optimizer and no vector of [RET] but that in the table.
"""

import argparse
import collections
import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, OPTConfig, OPTForCausalLM

torch.set_grad_enabled(False)
torch.set_num_threads(1)

CAPTIONS = ["a photo of a cat", "two dogs sleeping on a pink couch", "a kite over a lake  ", "état", ""]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SIDE, DIMS = 16, 8


def picture(width, height, seed):
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x * a + y * b + c) for a, b, c in np.random.default_rng(seed).uniform(0.05, 0.6, (3, 3))]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8), "RGB")


def look(image):
    """Short side to SIDE by Pillow, the middle cut out, normalised: `[3, SIDE, SIDE]`."""
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(SIDE * width / short), int(SIDE * height / short)), Image.BICUBIC)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + SIDE, top + SIDE)))).permute(2, 0, 1)
    # Multiplied in double precision and normalised in single, as transformers' processor does.
    values = (pixels.double() * (1 / 255)).float()
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def train_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS * 3, trainer)
    return tokenizer


def draw(model, seed):
    """Weights large enough that no part of the network is lost beside another."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.named_parameters()):
        one = "norm" in name and name.endswith("weight")
        spread = 0.2 if tensor.ndim < 2 else max(1, tensor[0].numel()) ** -0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread + (1.0 if one else 0.0))


def attend(weights, place, names, x, heads, mask):
    """Attention of `x`, `[length, width]`, to itself."""
    length, width = x.shape
    part = lambda name: F.linear(x, weights[f"{place}.{name}.weight"], weights[f"{place}.{name}.bias"])
    query, key, value = [part(name).view(length, heads, width // heads).transpose(0, 1) for name in names[:3]]
    scores = query @ key.transpose(1, 2) * (width // heads) ** -0.5
    if mask is not None:
        scores = scores + mask
    seen = (scores.softmax(-1) @ value).transpose(0, 1).reshape(length, width)
    return F.linear(seen, weights[f"{place}.{names[3]}.weight"], weights[f"{place}.{names[3]}.bias"])


ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]


def normed(weights, place, x):
    return F.layer_norm(x, x.shape[-1:], weights[place + ".weight"], weights[place + ".bias"], 1e-5)


def layer(weights, place, x):
    return F.linear(x, weights[place + ".weight"], weights[place + ".bias"])


def hidden_states(weights, config, vectors):
    """OPT: vectors of words `[length, words]` → what goes into the first block, what comes out of each, the last normed."""
    length, before = len(vectors), config.do_layer_norm_before
    x = vectors
    if config.word_embed_proj_dim != config.hidden_size:
        x = F.linear(x, weights["model.decoder.project_in.weight"])
    x = x + weights["model.decoder.embed_positions.weight"][2 : 2 + length]
    mask = torch.full((length, length), float("-inf")).triu(1)
    states = [x]
    for i in range(config.num_hidden_layers):
        place = f"model.decoder.layers.{i}"
        for norm, inner in [
            ("self_attn_layer_norm", lambda y: attend(weights, place + ".self_attn", ATTENTION, y, config.num_attention_heads, mask)),
            ("final_layer_norm", lambda y: layer(weights, place + ".fc2", F.relu(layer(weights, place + ".fc1", y)))),
        ]:
            norm = f"{place}.{norm}"
            x = x + inner(normed(weights, norm, x)) if before else normed(weights, norm, x + inner(x))
        states.append(x)
    if before:
        x = normed(weights, "model.decoder.final_layer_norm", x)
    if config.word_embed_proj_dim != config.hidden_size:
        x = F.linear(x, weights["model.decoder.project_out.weight"])
    states[-1] = x
    return states


def seen(weights, config, pixels):
    """CLIP's vision transformer: pixels `[3, SIDE, SIDE]` → the class token behind the last norm, `[width]`."""
    patches = F.conv2d(pixels[None], weights["embeddings.patch_embedding.weight"], stride=config.patch_size)[0].flatten(1).T
    x = torch.cat([weights["embeddings.class_embedding"][None], patches]) + weights["embeddings.position_embedding.weight"]
    x = normed(weights, "pre_layrnorm", x)
    for i in range(config.num_hidden_layers):
        place = f"encoder.layers.{i}"
        inner = normed(weights, place + ".layer_norm1", x)
        x = x + attend(weights, place + ".self_attn", ATTENTION, inner, config.num_attention_heads, None)
        inner = layer(weights, place + ".mlp.fc1", normed(weights, place + ".layer_norm2", x))
        x = x + layer(weights, place + ".mlp.fc2", inner * torch.sigmoid(1.702 * inner))
    return normed(weights, "post_layernorm", x[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--layers", type=lambda text: [int(number) for number in text.split(",")], default=[-1])
    parser.add_argument("--narrow-words", action="store_true")
    parser.add_argument("--whole-clip", action="store_true")
    parser.add_argument("--whole-table", action="store_true")
    parser.add_argument("--as-trained", action="store_true")
    args = parser.parse_args()
    for part in ["opt", "visual"]:
        (args.folder / part).mkdir(parents=True, exist_ok=True)
    write = lambda value, name: (args.folder / name).write_text(json.dumps(value, indent=1) + "\n")

    kept = args.folder / "opt" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(kept)) if kept.exists() else train_tokenizer()
    tokenizer.save(str(kept))
    size = tokenizer.get_vocab_size()
    # <|image|> is the first token that the reference adds, [RET] the second.
    retrieval = size + 1

    words = 8 if args.narrow_words else 16
    opt_config = OPTConfig(
        vocab_size=size, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=24,
        word_embed_proj_dim=words, do_layer_norm_before=not args.narrow_words, bos_token_id=2, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    opt = OPTForCausalLM(opt_config)
    draw(opt, args.seed)
    opt.save_pretrained(args.folder / "opt")
    (args.folder / "opt" / "generation_config.json").unlink()
    vision_sizes = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8)
    if args.whole_clip:
        text_sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
        clip = CLIPModel(CLIPConfig(text_config=text_sizes, vision_config=vision_sizes, projection_dim=8))
        vision_config, prefix = clip.config.vision_config, "vision_model."
    else:
        vision_config, prefix = CLIPVisionConfig(**vision_sizes), ""
        clip = CLIPVisionModel(vision_config)
    draw(clip, args.seed + 1)
    clip.save_pretrained(args.folder / "visual")
    size_of = dict(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    flags = dict.fromkeys(["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"], True)
    processor = dict(**size_of, **flags, image_mean=MEAN, image_std=STD, resample=3, rescale_factor=1 / 255)
    write(dict(processor, image_processor_type="CLIPImageProcessor"), "visual/preprocessor_config.json")

    generator = torch.Generator().manual_seed(args.seed + 2)
    drawn = lambda *shape: torch.randn(shape, generator=generator) * shape[-1] ** -0.5
    ends = [-1, opt_config.num_hidden_layers]
    checkpoint = {
        "model.logit_scale": torch.tensor(np.log(1 / 0.07), dtype=torch.float32),
        "model.visual_embeddings.weight": drawn(words, 24),
        "model.visual_embeddings.bias": drawn(words),
        "model.visual_fc.weight": drawn(DIMS, 24),
        "model.visual_fc.bias": drawn(DIMS),
    }
    for i, number in enumerate(args.layers):
        checkpoint[f"model.text_hidden_fcs.{i}.0.weight"] = drawn(DIMS, words if number in ends else 16)
        checkpoint[f"model.text_hidden_fcs.{i}.0.bias"] = drawn(DIMS)
    table = opt.model.decoder.embed_tokens.weight.clone()
    if args.whole_table or args.as_trained:
        table = torch.cat([table + drawn(*table.shape) * 0.1, drawn(2, words)])
        checkpoint["model.input_embeddings.weight"] = table
        checkpoint["ret_input_embeddings.weight"] = table[retrieval : retrieval + 1].clone()
        kind = torch.bfloat16 if args.whole_table else torch.float32
        checkpoint = {name: tensor.to(kind) for name, tensor in checkpoint.items()}
    else:
        checkpoint["ret_input_embeddings.weight"] = drawn(1, words)
    saved = {"state_dict": collections.OrderedDict(sorted(checkpoint.items()))}
    if args.as_trained:
        frozen = {f"model.lm.{name}": tensor for name, tensor in opt.state_dict().items()}
        frozen |= {f"model.visual_model.{name}": tensor for name, tensor in clip.state_dict().items()}
        trained = {name: tensor for name, tensor in checkpoint.items() if not name.startswith("ret_")}
        parameters = [torch.nn.Parameter(tensor) for tensor in trained.values()]
        optimizer = torch.optim.AdamW(parameters)
        saved = {
            "epoch": 3,
            "best_score": torch.tensor(0.5),
            "state_dict": collections.OrderedDict(("module." + name, tensor) for name, tensor in (trained | frozen).items()),
            "optimizer": optimizer.state_dict(),
            "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10).state_dict(),
        }
    torch.save(saved, args.folder / "pretrained_ckpt.pth.tar")
    checkpoint = {name: tensor.float() for name, tensor in checkpoint.items()}
    options = dict(
        opt_version="facebook/opt-6.7b", freeze_lm=True, visual_encoder="openai/clip-vit-large-patch14", freeze_vm=True,
        n_visual_tokens=1, use_image_embed_norm=False, image_embed_dropout_prob=0.0, use_text_embed_layernorm=False,
        text_embed_dropout_prob=0.0, shared_emb_dim=DIMS, text_emb_layers=args.layers, retrieval_token_idx=retrieval,
    )  # fmt: skip
    write(options, "model_args.json")

    opt_weights = dict(opt.state_dict())
    strip = lambda name: name.removeprefix("vision_model.")
    vision_weights = {strip(k): v for k, v in clip.state_dict().items() if k.startswith(prefix)}
    # The reference's tokenizer takes away the white space before [RET].
    ids = [[2, *tokenizer.encode(caption.rstrip(), add_special_tokens=False).ids, retrieval] for caption in CAPTIONS]
    if "model.input_embeddings.weight" in checkpoint:
        table = checkpoint["model.input_embeddings.weight"]
    texts = []
    for text in ids:
        vectors = torch.cat([F.embedding(torch.tensor(text[:-1]), table), checkpoint["ret_input_embeddings.weight"]])
        states = hidden_states(opt_weights, opt_config, vectors)
        maps = enumerate(args.layers)
        texts.append(sum(layer(checkpoint, f"model.text_hidden_fcs.{i}.0", states[number][-1]) for i, number in maps))
    images = [picture(19, 16, args.seed), picture(20, 33, args.seed + 1)]
    pixels = torch.stack([look(image) for image in images])
    pooled = [seen(vision_weights, vision_config, image) for image in pixels]
    image_mapped = layer(checkpoint, "model.visual_fc", torch.stack(pooled))
    text_mapped = torch.stack(texts)
    of_length_one = lambda x: x / x.norm(dim=-1, keepdim=True)
    image_embeds, text_embeds = of_length_one(image_mapped), of_length_one(text_mapped)
    longest = max(map(len, ids))
    expected = {
        "in.image_a": torch.from_numpy(np.array(images[0])),
        "in.image_b": torch.from_numpy(np.array(images[1])),
        "in.pixel_values": pixels,
        "in.input_ids": torch.tensor([text + [2] * (longest - len(text)) for text in ids]),
        "out.image_mapped": image_mapped,
        "out.text_mapped": text_mapped,
        "out.image_embeds": image_embeds,
        "out.text_embeds": text_embeds,
        "out.logits_per_text": text_embeds @ image_embeds.T * checkpoint["model.logit_scale"].exp(),
    }
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, args.folder / "expected.safetensors")
    table = [dict(text=caption, ids=text) for caption, text in zip(CAPTIONS, ids)]
    table.append(dict(text=CAPTIONS[0] + " [RET]", ids=ids[0]))
    write(dict(captions=CAPTIONS, seed=args.seed, tokenizer=table), "expected.json")
    print(text_embeds @ image_embeds.T)


main()
