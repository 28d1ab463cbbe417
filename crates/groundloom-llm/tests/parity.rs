//! Against other programs: the `openai` package's requests, tiktoken's counts, the `jsonschema` package's verdicts (`scripts/record_fixtures.py`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod server;

use std::collections::BTreeMap;

use bytes::Bytes;
use groundloom_llm::{
    AnswerForm, AnswerSchema, Api, Detail, Image, KeyHeader, Message, Part, Request, Role, Sampling, Tokenizer,
};
use serde_json::{Value, json};
use server::{Behaviour, Server};

fn lines(file: &str) -> Vec<Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn ask(text: &str) -> Request {
    let mut request = client::request(text);
    (request.model, request.max_output_tokens) = ("m".into(), 16);
    request
}

fn extra(value: Value) -> serde_json::Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// The inputs of the recorded calls, by their names.
fn requests() -> BTreeMap<&'static str, Request> {
    let image = |detail| {
        let bytes = Bytes::from_static(b"\x89PNG\r\n\x1a\nnot really a picture");
        vec![Part::Image(Image::new(bytes, detail).unwrap()), Part::Text("what is it?".into())]
    };
    let schema = json!({"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"], "additionalProperties": false});
    let form = Some(AnswerForm { name: "colour".into(), schema, strict: true });
    let turns = vec![
        Message::text(Role::System, "Be brief."),
        Message::text(Role::User, "a cat"),
        Message::text(Role::Assistant, "A cat."),
        Message::text(Role::User, "zwei Hunde – 两只狗 🐕"),
    ];
    let sampling =
        Sampling { temperature: Some(0.7), top_p: Some(0.95), seed: Some(11), stop: vec!["===".into(), "\n\n".into()] };
    let looking = |detail| vec![Message { role: Role::User, parts: image(detail) }];
    let reasoning = Request {
        model: "o4-mini".into(),
        max_output_tokens: 500,
        extra: extra(json!({"reasoning_effort": "low"})),
        ..ask("why")
    };
    let cool = Sampling { temperature: Some(0.2), ..Sampling::default() };
    BTreeMap::from([
        ("plain", ask("hello")),
        ("few_shot", Request { messages: turns.clone(), sampling, ..ask("") }),
        ("reasoning_model", reasoning),
        ("image", Request { messages: looking(Some(Detail::Low)), ..ask("") }),
        ("form", Request { form: form.clone(), ..ask("colour?") }),
        ("extra_body", Request { extra: extra(json!({"top_k": 50, "min_p": 0.05})), ..ask("hello") }),
        ("azure", Request { model: "d".into(), ..ask("hello") }),
        ("responses", Request { api: Api::Responses, messages: turns, sampling: cool, ..ask("") }),
        ("responses_image_and_form", Request { api: Api::Responses, messages: looking(None), form, ..ask("") }),
    ])
}

#[tokio::test]
async fn requests_are_those_of_the_openai_package() {
    let server = Server::start(Behaviour::default());
    server.keep_requests();
    let requests = requests();
    let recorded = lines("openai_requests.jsonl");
    assert_eq!(recorded.len(), requests.len());
    for expected in &recorded {
        let name = expected["name"].as_str().unwrap();
        let mut config = client::config(&server.url);
        if name == "azure" {
            config.endpoint.url = server.url.replace("/v1", "/openai/deployments/d");
            config.endpoint.key_header = KeyHeader::ApiKey;
            config.endpoint.query = vec![("api-version".into(), "2024-10-21".into())];
        }
        let folder = tempfile::tempdir().unwrap();
        client::client(config, folder.path()).unwrap().ask(&requests[name]).await.unwrap();
        let seen = server.counts(|c| c.seen.last().cloned()).unwrap();
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str()),
            ("POST", expected["target"].as_str().unwrap()),
            "{name}"
        );
        assert_eq!(serde_json::from_slice::<Value>(&seen.body).unwrap(), expected["body"], "{name}");
        for header in ["authorization", "api-key", "content-type"] {
            assert_eq!(
                seen.headers.get(header).map(String::as_str),
                expected["headers"][header].as_str(),
                "{name} {header}"
            );
        }
    }
}

/// Stores that are filled already stay of use: these hashes come from the recorded bodies by Python's `json` and `hashlib` (keys in order, no spaces, an image as its SHA-256).
#[test]
fn requests_keep_their_hashes() {
    let requests = requests();
    for (name, hash) in [
        ("few_shot", "f49d30b88a450e3e8c1eb70d0ecf7577092c00c8a9703da4fecf533220bbc4f4"),
        ("reasoning_model", "78b94649c91f8dbf24b2477232545bf9d672119bc99b9d0f7642ee5c2af9cd4a"),
        ("image", "ddef3de1352fec39617a531157e084f57d77109a8f5cb8abf5b96274cbdc536b"),
        ("form", "1115d75b140d8caededf11f84ecd0ba2bc8add1a05ed778039068c4805ffdfc5"),
        ("extra_body", "b16fdcd56790d3be6da7b8a0cdba39c5cf3a5e39f0e34b6cf6f58e9406521df3"),
        ("responses", "2221961f4830b58b423447341f8124a771839abdb2219c516522627a7cfe0c58"),
        ("responses_image_and_form", "efc7eaef163ac2eb7d83e82a1dfa0e4b39a603ffd04119aca47f9d5c4552c07b"),
    ] {
        assert_eq!(requests[name].hash("").to_string(), hash, "{name}");
    }
}

#[test]
fn token_counts_are_those_of_tiktoken() {
    for line in lines("token_counts.jsonl") {
        let text = line["text"].as_str().unwrap();
        for tokenizer in [Tokenizer::O200kBase, Tokenizer::Cl100kBase] {
            assert_eq!(json!(tokenizer.upper_bound(text)), line[tokenizer.name()], "{} {text:?}", tokenizer.name());
        }
    }
}

#[test]
fn schema_verdicts_are_those_of_jsonschema() {
    for (file, least) in [("schema_verdicts.jsonl", 1_000), ("schema_verdicts_of_all_drafts.jsonl", 8_000)] {
        let (mut verdicts, mut others) = (0, Vec::new());
        for line in lines(file) {
            let schema = AnswerSchema::new(line["schema"].clone()).unwrap();
            for (value, valid) in line["values"].as_array().unwrap().iter().zip(line["valid"].as_array().unwrap()) {
                let faults = schema.faults(value);
                if json!(faults.is_empty()) != *valid {
                    others.push(format!("{} {value}: {faults:?}", line["schema"]));
                }
                verdicts += 1;
            }
        }
        assert!(verdicts > least, "{verdicts}");
        assert!(others.is_empty(), "{} of {verdicts}:\n{}", others.len(), others.join("\n"));
    }
}
