"""Makes tests/data/chat anew: tiny Llamas, Qwen2s and Qwen3s with random weights, and what transformers answers.

    python make_chat_fixtures.py FOLDER [--seed SEED] [--only NAME]

Needs torch, transformers 5, tokenizers, jinja2 and safetensors. The tokenizer has the 256 bytes and a few special tokens; that of
`llama-fallback` is a BPE in the layout that SentencePiece's become (Llama 2, Mistral): pieces with ▁ for a space, and bytes such as
`<0x0A>` for what no piece has.
Weights are rounded to f16, and then computed with in f32. `expected.json` holds conversations with the prompts that
`apply_chat_template` makes of them and the tokens that `generate` writes behind the first one; `expected.safetensors` the
values behind its last tokens. Weights are drawn until no token is a close choice; `--seed` (default 0, with which the files were made)
draws others. `yarn.json` holds what some of these models write when their positions are scaled by YaRN, with the values behind the
prompt. `--only` makes one folder, or `yarn`, beside those that are there.
"""

import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
)

torch.set_grad_enabled(False)
torch.set_num_threads(1)

STEPS = 24
FAMILIES = ["llama", "qwen2", "qwen3"]
FALLBACK = "llama-fallback"
SPECIAL = ["<|begin|>", "<|end|>", "<|start_header|>", "<|end_header|>", "<|endoftext|>", "<think>", "</think>"]

# Written for this fixture, with what the templates of the released models use: conditions on roles, trimming, namespaces,
# walks from the end, and the methods of Python's strings.
LLAMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if system or date_string is defined %}
{{- '<|start_header|>system<|end_header|>\\n\\n' }}
{%- if date_string is defined %}{{- 'Today: ' + date_string + '\\n\\n' }}{% endif %}
{{- system + '<|end|>' }}
{%- endif %}
{% for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must take turns: user, assistant, user, ...') }}
    {%- endif %}
    {{- '<|start_header|>' + message['role'] + '<|end_header|>\\n\\n' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header|>assistant<|end_header|>\\n\\n' }}
{%- endif %}
"""
QWEN2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|begin|>system
You are a helpful assistant.<|end|>
' }}{% endif %}{{'<|begin|>' + message['role'] + '
' + message['content'] + '<|end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|begin|>assistant
' }}{% endif %}"""
QWEN3 = """{%- if tools %}{{- 'Tools: ' + tools | tojson }}{%- endif %}
{%- set ns = namespace(steps=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.steps and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.steps = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
            {{- '<|begin|>' + message.role + '\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|begin|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|end|>\\n' }}
    {%- else %}
        {{- '<|begin|>' + message.role + '\\n' + content + '<|end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|begin|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
INST = """{%- if messages[0]['role'] == 'system' %}
    {%- set first = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set first = '' %}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (first if loop.first else '') + message['content'] | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

TURNS = [
    [("user", "  What do you see, & where: \"a café\" <here>?\nName each thing once, please.\n")],
    [("system", "Be brief. "), ("user", "Name a colour."), ("assistant", "<think>\nwarm?\n</think>\n\nRed"), ("user", "Another one")],
    [("user", "hi"), ("assistant", "\nhello\n"), ("user", "Tell me 3 things.")],
]


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL[:5]])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in SPECIAL[5:]])
    return made


# What pieces are learned from: English, and letters beyond ASCII, so that some of these are pieces and others bytes.
LESSONS = [
    "What do you see, and where? Name each thing once, please.", "The thing that you see there is a red thing.",
    "Tell me where the other things are.", "Für Zürich und für die Tür, über die du müde gehst.",
]


def fallback_tokenizer():
    special = ["<unk>", "<s>", "</s>"]
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    taught = Tokenizer(models.BPE())
    # As in SentencePiece, ▁ begins a piece and stands nowhere else.
    taught.pre_tokenizer = pre_tokenizers.Metaspace()
    taught.train_from_iterator(LESSONS, trainers.BpeTrainer(vocab_size=100, show_progress=False))
    learned = json.loads(taught.to_str())["model"]
    pieces = special + [f"<0x{byte:02X}>" for byte in range(256)] + sorted(learned["vocab"], key=learned["vocab"].get)
    made = Tokenizer(models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[tuple(pair) for pair in learned["merges"]],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    ))
    made.normalizer = spaces
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def options(family, seed):
    width = 32 if seed == 0 else 16
    end = 257
    if family == FALLBACK:
        return LlamaForCausalLM, LlamaConfig(
            hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=fallback_tokenizer().get_vocab_size(), max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
            pad_token_id=None, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    common = dict(
        hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256 + len(SPECIAL), max_position_embeddings=512, bos_token_id=256, eos_token_id=end, pad_token_id=None,
        tie_word_embeddings=True,
    )
    if family == "llama":
        rope = {
            0: {"rope_type": "default", "rope_theta": 10000.0},
            1: {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
            2: {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        }[seed]
        return LlamaForCausalLM, LlamaConfig(
            **{**common, "eos_token_id": [end, 260], "tie_word_embeddings": seed == 2}, rope_parameters=rope,
        )
    if family == "qwen2":
        return Qwen2ForCausalLM, Qwen2Config(**common, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
    head = {"head_dim": 16 if seed == 0 else 8}
    return Qwen3ForCausalLM, Qwen3Config(**common, **head, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})


def draw(model, generator):
    for name, tensor in sorted(model.named_parameters()):
        spread = 0.2 if tensor.ndim == 1 else 1.6 * tensor.shape[-1] ** -0.5
        values = torch.randn(tensor.shape, generator=generator) * spread
        if name.endswith("norm.weight"):
            values += 1
        tensor.copy_(values.half().float())


def greedy(model, prompt, ends):
    ids, gap = list(prompt), float("inf")
    for _ in range(STEPS):
        values = model(torch.tensor([ids])).logits[0, -1]
        top = values.topk(2).values
        gap = min(gap, (top[0] - top[1]).item())
        ids.append(values.argmax().item())
        if ids[-1] in ends:
            break
    return ids[len(prompt):], gap


def make(folder, family, seed, draws):
    kind, config = options(family, seed)
    model = kind(config).eval()
    template = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, FALLBACK: INST}[family]
    if family == FALLBACK:
        read, names = fallback_tokenizer(), {"bos_token": "<s>", "eos_token": "</s>"}
    else:
        read, names = tokenizer(), {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    words = PreTrainedTokenizerFast(tokenizer_object=read, chat_template=template, **names)
    kwargs = {"llama": {"date_string": "26 Jul 2024"}, "qwen3": {"enable_thinking": False}}.get(family, {})
    conversations = []
    for turns in TURNS:
        messages = [{"role": role, "content": content} for role, content in turns]
        for more in [{}, kwargs] if kwargs else [{}]:
            rendered = words.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **more)
            ids = words.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False, **more)
            conversations.append({"messages": messages, "kwargs": more, "rendered": rendered, "ids": list(ids)})
    prompt = conversations[0]["ids"]
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    generator = torch.Generator().manual_seed(draws * 1000 + seed)
    for attempt in range(3000):
        draw(model, generator)
        ids, gap = greedy(model, prompt, ends)
        if gap > 1e-2 and len(set(ids)) > 6 and (seed != 2 or len(ids) < STEPS):
            break
    else:
        raise SystemExit(f"{family}-{seed}: every draw had a close choice")
    made = model.generate(torch.tensor([prompt]), max_new_tokens=STEPS, do_sample=False, eos_token_id=ends, pad_token_id=0)
    assert made[0, len(prompt):].tolist() == ids, "generate() and the loop differ"
    print(family, seed, "attempt", attempt, "gap", round(gap, 3), ids, words.decode(ids))
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors")
    folder.joinpath("tokenizer.json").write_text(json.dumps(json.loads(words.backend_tokenizer.to_str()), separators=(",", ":")))
    settings = {**names, "tokenizer_class": "PreTrainedTokenizerFast"}
    if family == "qwen3":
        folder.joinpath("chat_template.jinja").write_text(template)
    elif family == "qwen2":
        settings["chat_template"] = [{"name": "default", "template": template}, {"name": "tool_use", "template": "no"}]
    else:
        settings["chat_template"] = template
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    folder.joinpath("generation_config.json").write_text(json.dumps({"eos_token_id": config.eos_token_id}) + "\n")
    logits = model(torch.tensor([prompt])).logits[0, -2:]
    save_file({"logits": logits.contiguous()}, folder / "expected.safetensors")
    expected = {"conversations": conversations, "greedy": ids, "text": words.decode(ids, skip_special_tokens=True)}
    folder.joinpath("expected.json").write_text(json.dumps(expected) + "\n")


def yarn(root):
    cases = []
    for name in ["llama-0", "qwen2-0", "qwen3-1"]:
        kind, config = options(name[:-2], int(name[-1]))
        prompt = json.loads((root / name / "expected.json").read_text())["conversations"][0]["ids"]
        for factor in [4.0, 3.0, 5.0, 2.5, 6.0, 7.0, 8.0]:
            config.rope_parameters = {
                "rope_type": "yarn", "rope_theta": config.rope_parameters["rope_theta"], "factor": factor,
                "original_max_position_embeddings": 64,
            }
            model = kind(config).eval()
            weights = {k: v.float() for k, v in load_file(root / name / "model.safetensors").items()}
            model.load_state_dict(weights, strict=False)
            model.tie_weights()
            ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
            ids, gap = greedy(model, prompt, ends)
            if gap > 1e-2 and len(set(ids)) > 3:
                break
        else:
            raise SystemExit(f"{name}: every factor had a close choice")
        print(name, "yarn", factor, "gap", round(gap, 3), ids)
        logits = model(torch.tensor([prompt])).logits[0, -1].tolist()
        cases.append({"folder": name, "rope_parameters": config.rope_parameters, "greedy": ids, "logits": logits})
    (root / "yarn.json").write_text(json.dumps(cases) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    folders = {f"{family}-{seed}": (family, seed) for family in FAMILIES for seed in range(3)}
    folders[FALLBACK] = (FALLBACK, 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*folders, "yarn"])
    arguments = parser.parse_args()
    root = arguments.folder
    for name, (family, seed) in folders.items():
        if arguments.only in (None, name):
            shutil.rmtree(root / name, ignore_errors=True)
            make(root / name, family, seed, arguments.seed)
    if arguments.only in (None, "yarn"):
        yarn(root)


if __name__ == "__main__":
    main()
