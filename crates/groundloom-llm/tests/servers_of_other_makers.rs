//! What servers other than OpenAI's send, as their sources and their users' reports have it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod server;

use std::{io::Write, sync::LazyLock};

use client::{client, config, request};
use groundloom_llm::{Finish, LlmError};
use serde_json::{Value, json};
use server::{Behaviour, Server, response};

fn said(body: Value) -> Option<Vec<u8>> {
    status(200, body)
}

fn status(status: u16, body: Value) -> Option<Vec<u8>> {
    Some(response(status, &[], body.to_string().as_bytes()))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Small on its way, and more than any answer.
static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| gzip(&vec![b' '; 80 << 20]));

fn plain() -> Value {
    json!({"choices": [{"finish_reason": "stop", "message": {"content": "fine"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
}

fn chunked(body: &str) -> Vec<u8> {
    let mut out = b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n".to_vec();
    for piece in body.as_bytes().chunks(7) {
        out.extend(format!("{:x};x=y\r\n", piece.len()).into_bytes());
        out.extend(piece);
        out.extend(b"\r\n");
    }
    out.extend(b"0\r\nx-trailer: 1\r\n\r\n");
    out
}

fn answers(text: &str, time: u64) -> Option<Vec<u8>> {
    let message = |message: Value, more: Value| {
        let mut body = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        said(body)
    };
    let used = json!({"usage": {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}});
    match text {
        // llama.cpp: reasoning beside the text, timings beside the usage.
        "reasoning" => message(
            json!({"role": "assistant", "content": "fine", "reasoning_content": "I think, so I write."}),
            json!({"usage": {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}, "timings": {"predicted_n": 20, "predicted_ms": 251.51}, "system_fingerprint": "b9554"}),
        ),
        "reasoning only" => message(json!({"role": "assistant", "content": "", "reasoning_content": "I think."}), used),
        "newer reasoning only" => {
            message(json!({"role": "assistant", "content": null, "reasoning": "I think, é."}), used)
        }
        // Mistral: parts, of which some are thoughts.
        "parts" => message(
            json!({"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}]}),
            used,
        ),
        "tools" => {
            said(json!({"choices": [{"finish_reason": "tool_calls", "message": {"role": "assistant", "content": null,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}))
        }
        // TGI before version 3, and servers that count nothing.
        "eos" => {
            said(json!({"choices": [{"finish_reason": "eos_token", "message": {"content": "fine"}}], "usage": null}))
        }
        // Ollama's relay to larger models: nothing said, nothing counted, now and then.
        "nothing" if time < 3 => message(
            json!({"role": "assistant", "content": null, "refusal": null}),
            json!({"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}),
        ),
        // vLLM when it shuts down, and relays whose provider broke off.
        "abort" if time == 1 => said(
            json!({"choices": [{"finish_reason": "abort", "message": {"content": "fi"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}),
        ),
        "broken off" if time == 1 => said(
            json!({"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "the provider is gone"}, "message": {"content": ""}}]}),
        ),
        // OpenRouter: a failure as a success.
        "failure inside" if time < 3 => said(
            json!({"error": {"code": if time == 1 { 502 } else { 429 }, "message": "Provider returned error", "metadata": {"raw": "x"}}, "user_id": "u"}),
        ),
        "refusal inside" => said(json!({"error": {"code": 400, "message": "not with this model"}, "choices": []})),
        "counted failure inside" if time == 1 => said(
            json!({"error": {"code": 502, "message": "too late"}, "usage": {"prompt_tokens": 3, "completion_tokens": 7}}),
        ),
        "no words inside" if time == 1 => said(json!({"error": "overloaded"})),
        // llama.cpp while it loads; TGI; vLLM before and after its errors moved into `error`.
        "loading" if time == 1 => {
            status(503, json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}))
        }
        "generation" if time == 1 => {
            status(424, json!({"error": "Request failed during generation", "error_type": "generation"}))
        }
        "too long for tgi" => status(
            422,
            json!({"error": "Input validation error: `inputs` must have less than 4096 tokens", "error_type": "validation"}),
        ),
        "too long for vllm" => status(
            400,
            json!({"object": "error", "message": "This model's maximum context length is 16384 tokens.", "type": "BadRequestError", "param": null, "code": 400}),
        ),
        "too long for llama" => status(
            400,
            json!({"error": {"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 4096}}),
        ),
        "fastapi" => status(
            422,
            json!({"detail": [{"loc": ["body", "top_p"], "msg": "ensure this value is greater than 0", "type": "value_error"}]}),
        ),
        "page" => Some(response(
            502,
            &[],
            format!(
                "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>{}</body></html>",
                "nginx ".repeat(9_000)
            )
            .as_bytes(),
        )),
        "gzip" => {
            Some(response(200, &[("content-encoding".into(), "gzip".into())], &gzip(plain().to_string().as_bytes())))
        }
        "gzip of much" => Some(response(200, &[("Content-Encoding".into(), "x-gzip".into())], &BOMB)),
        "no gzip" if time == 1 => {
            Some(response(200, &[("content-encoding".into(), "gzip".into())], plain().to_string().as_bytes()))
        }
        "chunks" => Some(chunked(&plain().to_string())),
        "chunks cut" if time == 1 => Some(chunked(&plain().to_string())[..180].to_vec()),
        "until closed" => Some([b"HTTP/1.0 200 OK\r\n\r\n", plain().to_string().as_bytes()].concat()),
        "stream" => {
            Some(response(200, &[], b"data: {\"choices\": [{\"delta\": {\"content\": \"fi\"}}]}\n\ndata: [DONE]\n\n"))
        }
        _ => said(plain()),
    }
}

#[tokio::test]
async fn answers_are_read_as_each_maker_sends_them() {
    let server = Server::start(Behaviour { bytes: answers, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let client = client(config(&server.url), folder.path()).unwrap();
    // The text, why it ended, characters of reasoning; requests; failures, and those of them that may be charged.
    for (text, answer, finish, reasoning, requests, failed, lost) in [
        ("reasoning", "fine", "stop", 20, 1, 0, 0),
        ("reasoning only", "", "stop", 8, 1, 0, 0),
        ("newer reasoning only", "", "stop", 11, 1, 0, 0),
        ("parts", "fine", "stop", 0, 1, 0, 0),
        ("tools", "", "tool_calls", 0, 1, 0, 0),
        ("eos", "fine", "eos_token", 0, 1, 0, 0),
        ("nothing", "fine", "stop", 0, 3, 2, 0),
        ("abort", "fine", "stop", 0, 2, 1, 1),
        ("broken off", "fine", "stop", 0, 2, 1, 1),
        ("failure inside", "fine", "stop", 0, 3, 2, 0),
        ("no words inside", "fine", "stop", 0, 2, 1, 0),
        ("counted failure inside", "fine", "stop", 0, 2, 1, 1),
        ("loading", "fine", "stop", 0, 2, 1, 0),
        ("generation", "fine", "stop", 0, 2, 1, 0),
        ("gzip", "fine", "stop", 0, 1, 0, 0),
        ("no gzip", "fine", "stop", 0, 2, 1, 1),
        ("chunks", "fine", "stop", 0, 1, 0, 0),
        ("chunks cut", "fine", "stop", 0, 2, 1, 1),
        ("until closed", "fine", "stop", 0, 1, 0, 0),
    ] {
        let (asked, before) = (server.requests(), client.spending());
        let reply = client.ask(&request(text)).await.unwrap();
        assert_eq!(
            (reply.answer.text.as_str(), reply.answer.finish.name(), reply.answer.reasoning),
            (answer, finish, reasoning),
            "{text}"
        );
        let spent = client.spending();
        let found = (server.requests() - asked, spent.failed - before.failed, spent.lost - before.lost);
        assert_eq!(found, (requests, failed, lost), "{text}");
        let again = client.ask(&request(text)).await.unwrap();
        assert_eq!((again.from_store, again.answer), (true, reply.answer), "{text}");
    }
    assert_eq!(client.ask(&request("eos")).await.unwrap().answer.finish, Finish::Other("eos_token".into()));
}

#[tokio::test]
async fn failures_are_told_in_few_words_and_cost_what_they_must() {
    assert!(BOMB.len() < 1 << 20);
    let server = Server::start(Behaviour { bytes: answers, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&server.url);
    config.retry.attempts = 2;
    config.endpoint.timeout = std::time::Duration::from_secs(20);
    let client = client(config, folder.path()).unwrap();
    for (text, words, requests, one_row) in [
        ("refusal inside", "(400): not with this model", 1, true),
        ("too long for tgi", "(422): Input validation error: `inputs` must have less than 4096 tokens", 1, true),
        ("too long for vllm", "(400): This model's maximum context length is 16384 tokens.", 1, true),
        ("too long for llama", "(400): the request exceeds the available context size", 1, true),
        ("fastapi", "ensure this value is greater than 0", 1, true),
        ("page", "502 Bad Gateway: a page titled \"502 Bad Gateway\"", 2, true),
        ("gzip of much", "a body of more than", 2, true),
        ("stream", "streams its answers though they are asked for whole", 1, false),
    ] {
        let asked = server.requests();
        let error: LlmError = client.ask(&request(text)).await.unwrap_err();
        let told = error.to_string();
        assert!(told.contains(words) && told.len() < 700, "{text}: {told}");
        assert_eq!((server.requests() - asked, error.is_of_one_row()), (requests, one_row), "{text}");
    }
}
