//! Requests as JSON bodies, and bodies of answers as [`Answer`]s.
//!
//! The fields are those of OpenAI's API reference for `POST /chat/completions` and `POST /responses`; what the `openai` Python package sends
//! for the same inputs is recorded in `tests/data/openai_requests.jsonl` and compared.

use serde_json::{Map, Value, json};

use crate::{
    answer::{Answer, Finish, Usage},
    request::{Api, Detail, Image, Message, Part, Request, Role},
};

pub(crate) fn body(request: &Request, url: &dyn Fn(&Image) -> String) -> Value {
    let mut body = Map::new();
    body.insert("model".into(), json!(request.model));
    let sampling = &request.sampling;
    match request.api {
        Api::ChatCompletions => {
            let messages: Vec<Value> = request.messages.iter().map(|m| chat_message(m, url)).collect();
            body.insert("messages".into(), Value::Array(messages));
            let key = if takes_completion_tokens(&request.model) { "max_completion_tokens" } else { "max_tokens" };
            body.insert(key.into(), json!(request.max_output_tokens));
            if let Some(seed) = sampling.seed {
                body.insert("seed".into(), json!(seed));
            }
            if !sampling.stop.is_empty() {
                body.insert("stop".into(), json!(sampling.stop));
            }
            if let Some(form) = &request.form {
                let schema = json!({"name": form.name, "schema": form.schema, "strict": form.strict});
                body.insert("response_format".into(), json!({"type": "json_schema", "json_schema": schema}));
            }
        }
        Api::Responses => {
            let input: Vec<Value> = request.messages.iter().map(|m| response_item(m, url)).collect();
            body.insert("input".into(), Value::Array(input));
            body.insert("max_output_tokens".into(), json!(request.max_output_tokens));
            // The answer is kept in our own store; nothing needs to stay on the server.
            body.insert("store".into(), json!(false));
            if let Some(form) = &request.form {
                let format =
                    json!({"type": "json_schema", "name": form.name, "schema": form.schema, "strict": form.strict});
                body.insert("text".into(), json!({"format": format}));
            }
        }
    }
    if let Some(temperature) = sampling.temperature {
        body.insert("temperature".into(), json!(temperature));
    }
    if let Some(top_p) = sampling.top_p {
        body.insert("top_p".into(), json!(top_p));
    }
    for (key, value) in &request.extra {
        body.insert(key.clone(), value.clone());
    }
    Value::Object(body)
}

/// OpenAI's reasoning models refuse `max_tokens`; other servers know only that.
fn takes_completion_tokens(model: &str) -> bool {
    let name = model.strip_prefix("openai/").unwrap_or(model);
    ["o1", "o3", "o4", "gpt-5"].iter().any(|p| name.starts_with(p))
}

fn detail_name(detail: Detail) -> &'static str {
    match detail {
        Detail::Low => "low",
        Detail::High => "high",
        Detail::Auto => "auto",
    }
}

fn chat_message(message: &Message, url: &dyn Fn(&Image) -> String) -> Value {
    let content = match message.parts.as_slice() {
        // Some servers take only a plain string where there is no image.
        [Part::Text(text)] => json!(text),
        parts => parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => json!({"type": "text", "text": text}),
                Part::Image(image) => {
                    let mut image_url = json!({"url": url(image)});
                    if let Some(detail) = image.detail {
                        image_url["detail"] = json!(detail_name(detail));
                    }
                    json!({"type": "image_url", "image_url": image_url})
                }
            })
            .collect(),
    };
    json!({"role": message.role.name(), "content": content})
}

fn response_item(message: &Message, url: &dyn Fn(&Image) -> String) -> Value {
    let content = match message.parts.as_slice() {
        [Part::Text(text)] => json!(text),
        parts => parts
            .iter()
            .map(|part| match part {
                Part::Text(text) if message.role == Role::Assistant => json!({"type": "output_text", "text": text}),
                Part::Text(text) => json!({"type": "input_text", "text": text}),
                Part::Image(image) => {
                    let mut item = json!({"type": "input_image", "image_url": url(image)});
                    item["detail"] = json!(detail_name(image.detail.unwrap_or(Detail::Auto)));
                    item
                }
            })
            .collect(),
    };
    json!({"role": message.role.name(), "content": content})
}

/// Reads the body of a successful answer. What is missing and optional stays `None`: servers differ.
///
/// # Errors
/// A sentence when there is no answer in it.
pub fn read_answer(api: Api, body: &Value) -> Result<Answer, String> {
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    match api {
        Api::ChatCompletions => {
            let choice = body["choices"].get(0).ok_or("expected `choices` with one answer, found none")?;
            let message = choice["message"].as_object().ok_or("expected `choices[0].message`, found none")?;
            let text = match message.get("content") {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => return Err(format!("expected a text in `message.content`, found {other}")),
            };
            let refusal = message.get("refusal").and_then(Value::as_str).map(str::to_owned);
            let finish = match choice["finish_reason"].as_str() {
                Some("stop") => Finish::Stop,
                Some("length") => Finish::Length,
                Some("content_filter") => Finish::ContentFilter,
                Some(other) => Finish::Other(other.to_owned()),
                None => Finish::Other("null".into()),
            };
            let usage = usage(&body["usage"], "prompt_tokens", "completion_tokens", "prompt_tokens_details");
            Ok(Answer { text, finish, refusal, usage, model })
        }
        Api::Responses => {
            let output = body["output"].as_array().ok_or("expected `output`, found none")?;
            let (mut text, mut refusal) = (String::new(), None);
            let messages = output.iter().filter(|item| item["type"] == "message");
            for part in messages.filter_map(|item| item["content"].as_array()).flatten() {
                match part["type"].as_str() {
                    Some("output_text") => text.push_str(part["text"].as_str().unwrap_or_default()),
                    Some("refusal") => refusal = part["refusal"].as_str().map(str::to_owned),
                    _ => {}
                }
            }
            let finish = match (body["status"].as_str(), body["incomplete_details"]["reason"].as_str()) {
                (Some("completed"), _) => Finish::Stop,
                (Some("incomplete"), Some("max_output_tokens")) => Finish::Length,
                (Some("incomplete"), Some("content_filter")) => Finish::ContentFilter,
                (Some("failed"), _) => {
                    return Err(format!("the server says that it failed: {}", body["error"]["message"]));
                }
                (status, reason) => Finish::Other(reason.or(status).unwrap_or("null").to_owned()),
            };
            let usage = usage(&body["usage"], "input_tokens", "output_tokens", "input_tokens_details");
            Ok(Answer { text, finish, refusal, usage, model })
        }
    }
}

fn usage(value: &Value, prompt: &str, completion: &str, details: &str) -> Option<Usage> {
    Some(Usage {
        prompt_tokens: value[prompt].as_u64()?,
        completion_tokens: value[completion].as_u64()?,
        cached_prompt_tokens: value[details]["cached_tokens"].as_u64().unwrap_or(0),
    })
}

/// What a server says in the body of a failure: OpenAI's `error.message` and `error.code`, what other servers use, or the start of the text.
pub(crate) fn read_failure(body: &[u8]) -> (String, Option<String>) {
    let text = String::from_utf8_lossy(body);
    let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let error = if value["error"].is_object() { &value["error"] } else { &value };
    let message = [&error["message"], &value["error"], &value["detail"], &value["message"]]
        .into_iter()
        .find_map(|m| m.as_str().map(str::to_owned))
        .unwrap_or_else(|| text.trim().chars().take(500).collect());
    let code = error["code"].as_str().or(error["type"].as_str()).map(str::to_owned);
    (message, code)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_of_several_servers_are_read() {
        let openai = json!({"id": "c", "model": "gpt-4o-2024-08-06", "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Hi", "refusal": null}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 4}}});
        let answer = read_answer(Api::ChatCompletions, &openai).unwrap();
        assert_eq!((answer.text.as_str(), &answer.finish), ("Hi", &Finish::Stop));
        assert_eq!(answer.usage, Some(Usage { prompt_tokens: 9, completion_tokens: 2, cached_prompt_tokens: 4 }));

        let without_usage = json!({"choices": [{"finish_reason": "length", "message": {"content": null}}]});
        let answer = read_answer(Api::ChatCompletions, &without_usage).unwrap();
        assert_eq!((answer.text.as_str(), answer.finish, answer.usage), ("", Finish::Length, None));

        let responses = json!({"model": "gpt-5", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"},
            "output": [{"type": "reasoning", "summary": []}, {"type": "message", "role": "assistant",
              "content": [{"type": "output_text", "text": "Hi"}, {"type": "output_text", "text": " you"}]}],
            "usage": {"input_tokens": 3, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 0}}});
        let answer = read_answer(Api::Responses, &responses).unwrap();
        assert_eq!((answer.text.as_str(), answer.finish), ("Hi you", Finish::Length));

        for (api, broken) in [
            (Api::ChatCompletions, json!({})),
            (Api::ChatCompletions, json!({"choices": []})),
            (Api::ChatCompletions, json!({"choices": [{"message": {"content": 5}}]})),
            (Api::Responses, json!({"choices": []})),
            (Api::Responses, json!({"output": [], "status": "failed", "error": {"message": "no"}})),
        ] {
            assert!(read_answer(api, &broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn failures_are_told_in_the_servers_words() {
        let code = |c: &str| Some(c.to_owned());
        for (body, message, said_code) in [
            (
                r#"{"error": {"message": "no such model", "type": "t", "code": "model_not_found"}}"#,
                "no such model",
                code("model_not_found"),
            ),
            (r#"{"error": "overloaded", "error_type": "x"}"#, "overloaded", None),
            (
                r#"{"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}"#,
                "too long",
                code("BadRequestError"),
            ),
            (r#"{"detail": "Not Found"}"#, "Not Found", None),
            ("<html>Bad gateway</html>", "<html>Bad gateway</html>", None),
            ("", "", None),
        ] {
            assert_eq!(read_failure(body.as_bytes()), (message.to_owned(), said_code), "{body}");
        }
    }
}
