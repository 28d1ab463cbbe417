"""Records what other programs say, for the tests of this crate to compare with.

    pip install openai==3.54.0 tiktoken==0.14.0 jsonschema==4.26.0
    python scripts/record_fixtures.py

Writes tests/data/openai_requests.jsonl (the HTTP requests of the openai package), token_counts.jsonl (tiktoken's counts, from the vocabularies in data/)
and schema_verdicts.jsonl (which values jsonschema accepts). Needs no network.
"""

import base64
import gzip
import http.server
import json
import pathlib
import random
import re
import threading

ROOT = pathlib.Path(__file__).parent.parent
OUT = ROOT / "tests" / "data"
PNG = b"\x89PNG\r\n\x1a\nnot really a picture"


def record_requests():
    import openai

    seen = []
    chat = {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "{}"}}]}
    response = {"id": "r", "object": "response", "created_at": 1, "model": "m", "output": [], "status": "completed",
                "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append({"method": "POST", "target": self.path,
                         "headers": {k: self.headers[k] for k in ("authorization", "api-key", "content-type") if self.headers[k]},
                         "body": json.loads(body)})
            answer = json.dumps(response if self.path.split("?")[0].endswith("/responses") else chat).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
    azure = openai.AzureOpenAI(azure_endpoint=url, api_key="k", api_version="2024-10-21", azure_deployment="d", max_retries=0)
    image = "data:image/png;base64," + base64.b64encode(PNG).decode()
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"], "additionalProperties": False}
    few_shot = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a cat"},
                {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "zwei Hunde – 两只狗 🐕"}]
    calls = {
        "plain": lambda: client.chat.completions.create(model="m", max_tokens=16, messages=[{"role": "user", "content": "hello"}]),
        "few_shot": lambda: client.chat.completions.create(
            model="m", max_tokens=16, temperature=0.7, top_p=0.95, seed=11, stop=["===", "\n\n"], messages=few_shot),
        "reasoning_model": lambda: client.chat.completions.create(
            model="o4-mini", max_completion_tokens=500, reasoning_effort="low", messages=[{"role": "user", "content": "why"}]),
        "image": lambda: client.chat.completions.create(model="m", max_tokens=16, messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": image, "detail": "low"}}, {"type": "text", "text": "what is it?"}]}]),
        "form": lambda: client.chat.completions.create(
            model="m", max_tokens=16, messages=[{"role": "user", "content": "colour?"}],
            response_format={"type": "json_schema", "json_schema": {"name": "colour", "schema": schema, "strict": True}}),
        "extra_body": lambda: client.chat.completions.create(
            model="m", max_tokens=16, messages=[{"role": "user", "content": "hello"}], extra_body={"top_k": 50, "min_p": 0.05}),
        "azure": lambda: azure.chat.completions.create(model="d", max_tokens=16, messages=[{"role": "user", "content": "hello"}]),
        "responses": lambda: client.responses.create(model="m", max_output_tokens=16, store=False, temperature=0.2, input=few_shot),
        "responses_image_and_form": lambda: client.responses.create(
            model="m", max_output_tokens=16, store=False,
            text={"format": {"type": "json_schema", "name": "colour", "schema": schema, "strict": True}},
            input=[{"role": "user", "content": [{"type": "input_image", "image_url": image, "detail": "auto"},
                                                {"type": "input_text", "text": "what is it?"}]}]),
    }
    with open(OUT / "openai_requests.jsonl", "w") as out:
        for name, call in calls.items():
            call()
            out.write(json.dumps({"name": name, **seen.pop()}) + "\n")


def texts(rng):
    fixed = ["", " ", "\n", "\r\n\r\n", "hello world", "I'M, we'Re they'LL don't", "a  b   c    ", "  \n  x\t\ty ", "1234567890 3.14159",
             "naïve façade Ünïcödé", "你好，世界。今天天气很好", "مرحبا بالعالم", "👩‍👩‍👧‍👦🏳️‍🌈 é", "<|endoftext|><|im_start|>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
             "person: [0.681, 0.242, 0.774, 0.694]\nbackpack: [0.384, 0.696, 0.485, 0.914]", "fn main() { println!(\"{}\", x); } // done",
             "https://example.com/a/b?c=d&e=f#g", "HTTPServerError CamelCaseWord SCREAMING_SNAKE", "........!!!!!!????", "İstanbul ǅ ﬁ ß", "\u2028\u00a0\u3000x"]
    pools = ["abcdefgh ABC  '", "0123456789. ,", "äöüßéèñ ", "日本語中文字 。", " \t\n\r", "🙂🚀👍 ", "{}[]()<>/\\|=+-*&^%$#@!~`\"';:?", "абвгд ЖЗИ "]
    return fixed + ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 120))) for _ in range(300)]


def record_token_counts():
    import tiktoken
    from tiktoken_ext import openai_public

    def local(url, expected_hash=None):
        lines = gzip.open(ROOT / "data" / (url.split("/")[-1] + ".gz"), "rt").read().splitlines()
        return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}

    # tiktoken's own patterns, with the vocabularies that are here instead of a download.
    openai_public.load_tiktoken_bpe = local
    encodings = {name: tiktoken.Encoding(**getattr(openai_public, name)()) for name in ("o200k_base", "cl100k_base")}
    with open(OUT / "token_counts.jsonl", "w") as out:
        for text in texts(random.Random(5)):
            counts = {name: len(e.encode_ordinary(text)) for name, e in encodings.items()}
            out.write(json.dumps({"text": text, **counts}) + "\n")


def record_schema_verdicts():
    import jsonschema

    rng = random.Random(7)
    leaves = [None, True, False, 0, 1, 1.0, -3, 2.5, 10, "", "a", "ab", "abc?", "é", [], {}, [1, 1.0], [1, 2], ["a"], {"a": 1}, {"a": "x", "b": 2}]

    def value(depth):
        if depth == 0 or rng.random() < 0.5:
            return rng.choice(leaves)
        if rng.random() < 0.5:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        return {k: value(depth - 1) for k in rng.sample("abc", rng.randrange(4))}

    def schema(depth):
        words = {}
        options = [
            ("type", lambda: rng.choice(["null", "boolean", "string", "array", "object", "number", "integer", ["string", "null"], ["integer", "array"]])),
            ("enum", lambda: rng.sample(leaves, rng.randrange(1, 4))), ("const", lambda: rng.choice(leaves)),
            ("minimum", lambda: rng.randrange(-3, 3)), ("maximum", lambda: rng.randrange(0, 5)), ("exclusiveMinimum", lambda: rng.randrange(-3, 3)),
            ("exclusiveMaximum", lambda: rng.randrange(0, 5)), ("multipleOf", lambda: rng.choice([1, 2, 0.5])),
            ("minLength", lambda: rng.randrange(3)), ("maxLength", lambda: rng.randrange(4)), ("pattern", lambda: rng.choice(["^a", "b", r"\?$", "^.{2}$"])),
            ("minItems", lambda: rng.randrange(3)), ("maxItems", lambda: rng.randrange(4)), ("uniqueItems", lambda: True),
            ("required", lambda: rng.sample("abc", rng.randrange(3))), ("minProperties", lambda: rng.randrange(3)), ("maxProperties", lambda: rng.randrange(3)),
        ]
        if depth:
            options += [
                ("properties", lambda: {k: schema(depth - 1) for k in rng.sample("abc", rng.randrange(1, 3))}),
                ("additionalProperties", lambda: rng.choice([False, True, schema(depth - 1)])), ("items", lambda: schema(depth - 1)),
                ("prefixItems", lambda: [schema(depth - 1) for _ in range(rng.randrange(1, 3))]),
                ("anyOf", lambda: [schema(depth - 1) for _ in range(rng.randrange(1, 3))]),
                ("oneOf", lambda: [schema(depth - 1) for _ in range(rng.randrange(1, 3))]),
                ("allOf", lambda: [schema(depth - 1) for _ in range(rng.randrange(1, 3))]), ("not", lambda: schema(depth - 1)),
                ("$ref", lambda: "#/$defs/d"),
            ]
        for name, make in rng.sample(options, rng.randrange(1, 4)):
            words[name] = make()
        return words

    kept = {True: 0, False: 0}
    with open(OUT / "schema_verdicts.jsonl", "w") as out:
        while min(kept.values()) < 500:
            root = {**schema(2), "$defs": {"d": schema(0)}}
            values = [value(2) for _ in range(6)]
            validator = jsonschema.Draft202012Validator(root)
            verdicts = [validator.is_valid(v) for v in values]
            # Most random schemas refuse everything; such cases teach little.
            if any(verdicts) or kept[False] < 500:
                for v in verdicts:
                    kept[v] += 1
                out.write(json.dumps({"schema": root, "values": values, "valid": verdicts}) + "\n")


def record_schema_verdicts_of_all_drafts():
    """All words of all drafts, references in circles that end. Draft 4 sees no 1.0: that is no integer there, and one in ours."""
    import jsonschema

    rng = random.Random(2026)
    leaves = [None, True, False, 0, 1, 1.0, -3, 2.5, 0.3, 1e3, 10, "", "a", "ab", "abc?", "é", "a\nb", "2024-02-30", [], {}, [1, 1.0], [True, 1], [1, 2, "a"], ["a"], {"a": 1}, {"a": "x", "b": 2}, {"b": {"a": []}}]
    drafts = {
        "http://json-schema.org/draft-04/schema#": (4, jsonschema.Draft4Validator), "http://json-schema.org/draft-06/schema#": (6, jsonschema.Draft6Validator),
        "http://json-schema.org/draft-07/schema#": (7, jsonschema.Draft7Validator), "https://json-schema.org/draft/2019-09/schema": (2019, jsonschema.Draft201909Validator),
        "https://json-schema.org/draft/2020-12/schema": (2020, jsonschema.Draft202012Validator),
    }

    def value(depth):
        if depth == 0 or rng.random() < 0.4:
            return rng.choice(leaves)
        if rng.random() < 0.5:
            return [value(depth - 1) for _ in range(rng.randrange(5))]
        return {k: value(depth - 1) for k in rng.sample("abcd", rng.randrange(5))}

    def schema(draft, depth):
        def inner():
            return rng.choice([True, False]) if draft >= 6 and rng.random() < 0.1 else schema(draft, depth - 1)

        def some(low=1):
            return [inner() for _ in range(rng.randrange(low, 4))]

        def named():
            return {k: inner() for k in rng.sample("abcd", rng.randrange(1, 4))}

        def keys(low=0):
            return rng.sample("abcd", rng.randrange(low, 3))

        def enum():
            # The drafts before 2019-09 want no value twice, and only some libraries see to it.
            values = rng.sample(leaves, rng.randrange(1, 6))
            return [v for i, v in enumerate(values) if v != 1 or isinstance(v, bool) or all(w is not v and w != 1 for w in values[:i])]

        words = {}
        types = ["null", "boolean", "string", "array", "object", "number", "integer"]
        options = [
            ("type", lambda: rng.choice([*types, rng.sample(types, 2), rng.sample(types, 3)])), ("enum", lambda: enum()),
            ("minimum", lambda: rng.choice([-3, 0, 0.3, 2.5])), ("maximum", lambda: rng.choice([-3, 0, 2.5, 1e3])), ("multipleOf", lambda: rng.choice([1, 2, 0.5, 0.1, 3])),
            ("minLength", lambda: rng.randrange(3)), ("maxLength", lambda: rng.randrange(4)), ("pattern", lambda: rng.choice(["^a", "b", r"\?$", "^.{2}$", r"^\d{4}-\d\d", r"a\s*b", "[^a-z]", "^(a|b)+$", r"\w\?"])),
            ("format", lambda: rng.choice(["email", "date", "regex", "uri", "ipv4"])), ("minItems", lambda: rng.randrange(3)), ("maxItems", lambda: rng.randrange(4)), ("uniqueItems", lambda: rng.random() < 0.8),
            ("required", lambda: keys(1)), ("minProperties", lambda: rng.randrange(3)), ("maxProperties", lambda: rng.randrange(4)),
        ]
        if draft == 4:
            options += [("exclusiveMinimum", lambda: words.setdefault("minimum", 0) is None or rng.random() < 0.7), ("exclusiveMaximum", lambda: words.setdefault("maximum", 1) is None or rng.random() < 0.7)]
        else:
            options += [("const", lambda: rng.choice(leaves)), ("exclusiveMinimum", lambda: rng.choice([-3, 0, 0.3])), ("exclusiveMaximum", lambda: rng.choice([0, 2.5, 10]))]
        if draft >= 7:
            options += [("contentEncoding", lambda: "base64"), ("contentMediaType", lambda: "application/json")]
        if draft >= 2019:
            options += [("dependentRequired", lambda: {k: keys() for k in rng.sample("abcd", 2)})]
        if depth:
            options += [
                ("properties", named), ("patternProperties", lambda: {k: inner() for k in rng.sample(["^a", "b|c", "."], rng.randrange(1, 3))}),
                ("additionalProperties", lambda: rng.choice([False, True, schema(draft, depth - 1)])), ("items", inner), ("anyOf", some), ("oneOf", some), ("allOf", some), ("not", inner),
                ("$ref", lambda: rng.choice(["#/definitions/d", "#/definitions/e"])), ("$ref", lambda: "#/definitions/list"),
            ]
            if draft <= 7:
                options += [("dependencies", lambda: {k: rng.choice([keys(1), inner()]) for k in rng.sample("abcd", 2)})]
            if draft <= 2019:
                options += [("items", some), ("additionalItems", lambda: rng.choice([False, schema(draft, depth - 1)]))] * 2
            else:
                options += [("prefixItems", some)] * 2
            if draft >= 6:
                options += [("contains", inner), ("propertyNames", lambda: rng.choice([{"pattern": "^[ab]"}, {"maxLength": 0}, inner()]))]
            if draft >= 7:
                options += [("if", inner), ("then", inner), ("else", inner)]
            if draft >= 2019:
                options += [("dependentSchemas", lambda: {k: inner() for k in rng.sample("abcd", 2)}), ("minContains", lambda: rng.randrange(3)), ("maxContains", lambda: rng.randrange(3)),
                            ("unevaluatedProperties", lambda: rng.choice([False, inner()])), ("unevaluatedItems", lambda: rng.choice([False, inner()])), ("$ref", lambda: "#here")]
        for name, make in rng.sample(options, rng.randrange(1, 6)):
            words[name] = make()
        return words

    kept = {True: 0, False: 0}
    with open(OUT / "schema_verdicts_of_all_drafts.jsonl", "w") as out:
        while min(kept.values()) < 4000:
            name, (draft, validator) = rng.choice(list(drafts.items()))
            here = {"$anchor": "here"} if draft >= 2019 else {}
            root = {**schema(draft, 2), "$schema": name, "definitions": {"d": {**schema(draft, 1), **here}, "e": schema(draft, 0), "list": {"anyOf": [{"type": ["null", "integer"]}, {"type": "array", "items": {"$ref": "#/definitions/list"}}]}}}
            try:
                validator.check_schema(root)
                values = [value(3) for _ in range(6)]
                if draft == 4:
                    values = json.loads(re.sub(r"\b(\d+)\.0\b", r"\1", json.dumps(values)))
                verdicts = [validator(root).is_valid(v) for v in values]
            except (RecursionError, TypeError, jsonschema.SchemaError):  # circles without end; `additionalItems` beside a boolean `items`
                continue
            if any(verdicts) and (not all(verdicts) or kept[True] < 4000):
                for v in verdicts:
                    kept[v] += 1
                out.write(json.dumps({"schema": root, "values": values, "valid": verdicts}, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    record_requests()
    record_token_counts()
    record_schema_verdicts()
    record_schema_verdicts_of_all_drafts()
    for path in sorted(OUT.glob("*.jsonl")):
        print(path.name, sum(1 for _ in open(path)), "lines", path.stat().st_size, "bytes")
