//! The files of the Batch API: a request a line going in, an answer a line coming out.
//!
//! Lines going in: `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}`. Lines coming out: `{"id", "custom_id", "response": {"status_code", "body"}, "error"}`, in any
//! order, failures in a file of their own (OpenAI's and Azure's references). Lines are joined by `custom_id`, which is the request's hash, and never by place.

use async_openai::types::batches::{BatchEndpoint, BatchRequestInput, BatchRequestInputMethod};
use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;

use crate::{
    backend::Outcome,
    error::LlmError,
    request::{Api, Request, RequestHash},
    transport::{failure_inside, judge},
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
#[derive(Debug, Clone)]
pub(crate) enum Line {
    /// The body of its answer.
    Answered(Value),
    /// It may be submitted again: the server failed, or the batch ran out of time.
    Failed(String),
    /// It is turned down for good.
    Refused(LlmError),
}

/// Reads a line of an output or error file of the server at `url`; `None` for one that is no line of ours. What a status means is what it means for a single request.
///
/// Field by field, not as async-openai's `BatchRequestOutput`: lines of requests that expired have no `request_id`, and Azure's have neither `id` nor an error's `code`.
pub(crate) fn read_line(line: &str, url: &str) -> Option<(RequestHash, Line)> {
    let value: Value = serde_json::from_str(line).ok()?;
    let hash = RequestHash::parse(value["custom_id"].as_str()?)?;
    let body = &value["response"]["body"];
    let status = value["response"]["status_code"].as_u64().and_then(|status| u16::try_from(status).ok());
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let failed = match status {
        Some(status) if status.is_success() && body.is_object() => failure_inside(body),
        Some(status) if status.is_success() => None,
        status => status,
    };
    // vLLM puts the words beside a body that is null.
    let said = if body.is_null() { &value["error"] } else { body };
    let outcome = match failed.map(|status| judge(url, status, &HeaderMap::new(), said.to_string().as_bytes())) {
        None if status.is_some() && body.is_object() => Line::Answered(body.clone()),
        None => Line::Failed(value["error"]["message"].as_str().unwrap_or("a line without an answer").to_owned()),
        Some(Outcome::Refused(error)) => Line::Refused(error),
        Some(Outcome::Failed { what, .. } | Outcome::Throttled { what, .. } | Outcome::Lost { what }) => {
            Line::Failed(what)
        }
        Some(Outcome::Answered { body, .. }) => Line::Answered(body),
    };
    Some((hash, outcome))
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
            let (found, line) = read_line(&line.to_string(), "http://server").unwrap();
            assert_eq!(found, hash);
            match line {
                Line::Answered(body) => format!("answered {body}"),
                Line::Failed(what) => format!("failed {what}"),
                Line::Refused(error) => format!("refused {} {error}", error.is_of_one_row()),
            }
        };
        let response = |status: u16, body: Value| json!({"status_code": status, "body": body});
        let said = |message: &str| json!({"error": {"message": message}});
        let row = "refused true the server refused the request";
        for (found, expected) in [
            (line(response(200, json!({"choices": []})), Value::Null), r#"answered {"choices":[]}"#.to_owned()),
            (line(response(400, said("bad")), Value::Null), format!("{row} (400): bad")),
            // vLLM's, and a relay's failure as a success.
            (
                line(response(400, Value::Null), json!({"message": "too long", "code": 400})),
                format!("{row} (400): too long"),
            ),
            (
                line(response(200, json!({"error": {"code": 400, "message": "no"}})), Value::Null),
                format!("{row} (400): no"),
            ),
            (
                line(response(200, json!({"error": "overloaded"})), Value::Null),
                "failed 502 Bad Gateway: overloaded".to_owned(),
            ),
            (line(response(429, said("slow")), Value::Null), "failed 429 Too Many Requests: slow".to_owned()),
            (line(response(500, said("wrong")), Value::Null), "failed 500 Internal Server Error: wrong".to_owned()),
            (line(response(200, Value::Null), Value::Null), "failed a line without an answer".to_owned()),
            (line(response(7, said("odd")), Value::Null), "failed a line without an answer".to_owned()),
            (line(Value::Null, json!({"code": "batch_expired", "message": "too late"})), "failed too late".to_owned()),
        ] {
            assert_eq!(found, expected);
        }
        let quota = response(429, json!({"error": {"message": "empty", "code": "insufficient_quota"}}));
        assert!(line(quota, Value::Null).starts_with("refused false"), "no other request would fare better");
        for other in ["", "{}", "{\"custom_id\": \"x\"}", "not json"] {
            assert!(read_line(other, "http://server").is_none());
        }
    }
}
