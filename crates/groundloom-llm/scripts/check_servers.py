"""The stage `generate` against servers as they are: llama.cpp's `llama-server`, `transformers serve`, and LiteLLM's proxy in front of the first.

    pip install 'transformers[serving]' torch gguf safetensors 'litellm[proxy]'
    python scripts/check_servers.py target/release/groundloom tests/data/chat/qwen3-0 --llama-server PATH

The folder is a small Qwen3 in Hugging Face layout, such as those of groundloom-models' tests. What is not installed is left out, and said so. llama.cpp is built from its sources (those in
`pip download --no-binary llama-cpp-python llama-cpp-python` have the server: `cmake -DLLAMA_CURL=OFF -DLLAMA_BUILD_UI=OFF`, target `llama-server`).
Its weights are random, so answers are noise; what is checked is that every row ends once, that nothing is asked twice, that answers fit their schema, and how failures are told.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

SCHEMA = {"type": "object", "additionalProperties": False, "required": ["caption", "count"],
          "properties": {"caption": {"type": "string", "minLength": 3, "maxLength": 12}, "count": {"type": "integer", "minimum": 0, "maximum": 9}}}
PIPELINE = """
sources: {{ rows: {{ type: jsonl, path: rows.jsonl, key: id }} }}
stages:
  a: {{ type: generate, prompt: p.jinja, {settings}, max_output_tokens: {tokens}, keep_cut: {keep}, store: store, concurrency: 8 }}
sinks: {{ o: {{ type: jsonl, path: "{out}" }} }}
"""
ROWS = 120
# Nothing is fetched, and no key is asked for on this machine.
LITELLM = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def write_gguf(folder, to):
    import gguf
    from safetensors.numpy import load_file

    config, tokenizer = json.loads((folder / "config.json").read_text()), json.loads((folder / "tokenizer.json").read_text())
    tokens, kinds = [""] * config["vocab_size"], [1] * config["vocab_size"]
    for token, at in tokenizer["model"]["vocab"].items():
        tokens[at] = token
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], 3
    out = gguf.GGUFWriter(str(to), "qwen3")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    # llama.cpp wants one; this never applies.
    out.add_token_merges(["\u0100 \u0100"])
    out.add_bos_token_id(config["bos_token_id"])
    out.add_eos_token_id(config["eos_token_id"])
    out.add_add_bos_token(False)
    out.add_chat_template((folder / "chat_template.jinja").read_text())
    for name, tensor in load_file(folder / "model.safetensors").items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        out.add_tensor(name, tensor.astype("float32"))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@contextlib.contextmanager
def served(name, home, command, environment=()):
    """A server's base URL, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(home / f"{name}.log", "w") as log:
        process = subprocess.Popen([*map(str, command), "--port", str(port)], stdout=log, stderr=log, env={**os.environ, **dict(environment)})
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{'health/liveliness' if name == 'litellm' else 'health'}", timeout=2)
                break
            if process.poll() is not None:
                sys.exit(f"{name} ended:\n{(home / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


class Checks:
    def __init__(self, groundloom, home):
        self.groundloom, self.home, self.failed, self.runs = groundloom, home, 0, 0

    def run(self, settings, keep=True, options=()):
        """Exit status, what was said, rows that were kept, and the codes of those that were not."""
        self.runs += 1
        out = self.home / f"out{self.runs}"
        (self.home / "p.yaml").write_text(PIPELINE.format(settings=settings, tokens=30 if keep else 120, keep=str(keep).lower(), out=out))
        ended = subprocess.run([self.groundloom, "run", "p.yaml", *options], cwd=self.home, capture_output=True, text=True)
        kept = [json.loads(line) for file in sorted(out.glob("data/*")) for line in file.open()]
        manifest = out / "_manifest" / "manifest.json"
        lost = json.loads(manifest.read_text())["quarantined"] if manifest.exists() else {}
        return ended.returncode, ended.stderr, kept, lost

    def say(self, what, holds, said=""):
        self.failed += not holds
        print("ok  " if holds else "FAIL", what, "" if holds else said[-1500:], flush=True)


def check(checks, name, model, url, extra=""):
    at = f'model: "{model}", url: "{url}"{extra}'
    streaming = """, extra: '{"stream": false}'""" if name == "transformers" else ""
    for settings in [f"{at}, temperature: 0, seed: 1", f"{at}, temperature: 0, api: responses{streaming}"]:
        interface = "responses" if "responses" in settings else "chat completions"
        code, said, kept, lost = checks.run(settings)
        checks.say(f"{name}, {interface}: {len(kept)} of {ROWS} rows answered", code == 0 and len(kept) == ROWS and not lost, said)
        code, said, again, _ = checks.run(settings, options=["--offline"])
        checks.say(f"{name}, {interface}: the same answers offline", code == 0 and again == kept, said)
    if name == "transformers":
        code, said, _, _ = checks.run(f"{at}, api: responses")
        checks.say(f"{name}: streams by itself, which ends the run", code != 0 and "streams its answers" in said and "8 requests" in said, said)
        return
    code, said, kept, lost = checks.run(f"{at}, temperature: 0.8, schema: s.json", keep=False)
    fits = all(isinstance(a["count"], int) and 3 <= len(a["caption"]) <= 12 and len(a) == 2 for a in (json.loads(row["answer"]) for row in kept))
    everything = len(kept) + sum(lost.values()) == ROWS
    checks.say(f"{name}, a schema: {len(kept)} rows fit, {lost} do not", code == 0 and fits and kept and everything and set(lost) <= {"llm_form", "llm_no_answer"}, said)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("groundloom", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--llama-server")
    given = parser.parse_args()
    home = pathlib.Path(tempfile.mkdtemp())
    shutil.copytree(given.model, home / "model")
    config = json.loads((home / "model/config.json").read_text())
    config |= {"architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 4096}
    (home / "model/config.json").write_text(json.dumps(config))
    words = ["cat", "two dogs", "a red street", "café", "naïve", "猫", "車"]
    (home / "rows.jsonl").write_text("".join(json.dumps({"id": f"r{i}", "text": f"{words[i % 7]} {i} under {words[i // 7 % 7]}"}) + "\n" for i in range(ROWS)))
    (home / "p.jinja").write_text("<<system>>\nYou are terse.\n<<user>>\nDescribe: {{ text }}\n")
    (home / "s.json").write_text(json.dumps(SCHEMA))
    checks = Checks(given.groundloom, home)
    if given.llama_server:
        write_gguf(home / "model", home / "model.gguf")
        with served("llama.cpp", home, [given.llama_server, "-m", home / "model.gguf", "-t", 1, "-c", 16384, "-np", 4, "--jinja", "--alias", "tiny"]) as url:
            check(checks, "llama.cpp", "tiny", url)
            if litellm := shutil.which("litellm"):
                (home / "litellm.yaml").write_text(json.dumps({
                    "model_list": [{"model_name": "tiny", "litellm_params": {"model": "openai/tiny", "api_base": url, "api_key": "none"}}],
                    "litellm_settings": {"num_retries": 0}}))
                with served("litellm", home, [litellm, "--config", home / "litellm.yaml", "--host", "127.0.0.1"], LITELLM.items()) as url:
                    check(checks, "litellm", "tiny", url)
                    code, said, _, _ = checks.run(f'model: none-such, url: "{url}"')
                    checks.say("litellm: a model that it does not know ends the run", code != 0 and "Invalid model name" in said and "first 100 requests" in said, said)
            else:
                print("left out: litellm is not installed")
    else:
        print("left out: llama.cpp, no --llama-server")
    if transformers := shutil.which("transformers"):
        with served("transformers", home, [transformers, "serve", home / "model", "--device", "cpu"], {"HF_HUB_OFFLINE": "1"}.items()) as url:
            check(checks, "transformers", home / "model", url)
    else:
        print("left out: transformers is not installed")
    print(f"{checks.failed} failed; {home}")
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    main()
