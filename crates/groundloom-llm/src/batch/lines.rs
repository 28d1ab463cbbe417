//! The files of the Batch API: a request a line going in, an answer a line coming out.
//!
//! Lines going in: `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}`. Lines coming out: `{"id", "custom_id", "response": {"status_code", "body"}, "error"}`, in any
//! order, failures in a file of their own (OpenAI's and Azure's references). Lines are joined by `custom_id`, which is the request's hash, and never by place.

use async_openai::types::batches::{BatchEndpoint, BatchRequestInput, BatchRequestInputMethod};
use serde_json::Value;

use crate::{
    error::LlmError,
    request::{Api, Request, RequestHash},
    wire::read_failure,
};

/// Where the interface of `request` lies for a batch: a path with its version, whatever the base URL is.
pub(super) const fn endpoint(request: &Request) -> BatchEndpoint {
    match request.api {
        Api::ChatCompletions => BatchEndpoint::V1ChatCompletions,
        Api::Responses => BatchEndpoint::V1Responses,
    }
}

/// The line of a request, with its line break.
///
/// # Errors
/// Never: a body is JSON already.
pub(super) fn request_line(hash: RequestHash, request: &Request) -> Result<String, LlmError> {
    let line = BatchRequestInput {
        custom_id: hash.to_string(),
        method: BatchRequestInputMethod::POST,
        url: endpoint(request),
        body: Some(request.body()),
    };
    let mut line = serde_json::to_string(&line).map_err(|e| LlmError::Setup(format!("a batch's line: {e}").into()))?;
    line.push('\n');
    Ok(line)
}

/// What became of one request of a batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Line {
    /// The body of its answer.
    Answered(Value),
    /// It may be submitted again: the server failed, or the batch ran out of time.
    Failed(String),
    /// The server refuses it for what it is.
    Refused { status: u16, message: String },
}

/// Reads a line of an output or error file; `None` for one that is no line of ours.
///
/// Field by field, not as async-openai's `BatchRequestOutput`: lines of requests that expired have no `request_id`, and Azure's have neither `id` nor an error's `code`.
pub(crate) fn read_line(line: &str) -> Option<(RequestHash, Line)> {
    let value: Value = serde_json::from_str(line).ok()?;
    let hash = RequestHash::parse(value["custom_id"].as_str()?)?;
    let response = &value["response"];
    let status = response["status_code"].as_u64().and_then(|s| u16::try_from(s).ok());
    let body = &response["body"];
    let outcome = match status {
        Some(200..=299) if body.is_object() => Line::Answered(body.clone()),
        // Asked one by one these would be tried again too.
        Some(status @ (408 | 409 | 429 | 500..)) => Line::Failed(format!("{status}: {}", words(body))),
        Some(status @ 400..=499) => Line::Refused { status, message: words(body) },
        _ => Line::Failed(match value["error"]["message"].as_str() {
            Some(message) => message.to_owned(),
            None => "a line without an answer".to_owned(),
        }),
    };
    Some((hash, outcome))
}

fn words(body: &Value) -> String {
    read_failure(body.to_string().as_bytes()).0
}

/// A `multipart/form-data` body with the fields of a file upload, and its content type.
pub(super) fn upload(file: &[u8]) -> (Vec<u8>, String) {
    // Lines are JSON, in which a bare line break followed by this cannot stand.
    let boundary = "groundloom-batch-7f3a1c9e5b2d48";
    let mut body = Vec::with_capacity(file.len() + 512);
    body.extend_from_slice(
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{boundary}\r\n\
             Content-Disposition: form-data; name=\"file\"; filename=\"requests.jsonl\"\r\nContent-Type: application/jsonl\r\n\r\n"
        )
        .as_bytes(),
    );
    body.extend_from_slice(file);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    (body, format!("multipart/form-data; boundary={boundary}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_come_back_by_their_id() {
        let hash = RequestHash([7; 32]);
        let line = |response: Value, error: Value| {
            let line = json!({"id": "b", "custom_id": hash.to_string(), "response": response, "error": error});
            read_line(&line.to_string()).map(|(h, l)| {
                assert_eq!(h, hash);
                l
            })
        };
        let answered = line(json!({"status_code": 200, "body": {"choices": []}}), Value::Null);
        assert_eq!(answered, Some(Line::Answered(json!({"choices": []}))));
        let refused = line(json!({"status_code": 400, "body": {"error": {"message": "bad"}}}), Value::Null);
        assert_eq!(refused, Some(Line::Refused { status: 400, message: "bad".into() }));
        let failed = line(json!({"status_code": 429, "body": {"error": {"message": "slow"}}}), Value::Null);
        assert_eq!(failed, Some(Line::Failed("429: slow".into())));
        let expired = line(Value::Null, json!({"code": "batch_expired", "message": "too late"}));
        assert_eq!(expired, Some(Line::Failed("too late".into())));
        for other in ["", "{}", "{\"custom_id\": \"x\"}", "not json"] {
            assert_eq!(read_line(other), None);
        }
    }
}
