//! Requests as JSON bodies, and bodies of answers as [`Answer`]s.
//!
//! Bodies are those of async-openai's types for `POST /chat/completions` and `POST /responses`; what the `openai` Python package sends for the same inputs is recorded in
//! `tests/data/openai_requests.jsonl` and compared. Answers are read by the same types where they fit. Servers of other makers send what those refuse: an unknown
//! `finish_reason` (vLLM's `abort`, TGI's `eos_token`), no `id`, `created` or `role` (proxies), service tiers and output items that are newer than the types. Such an answer is paid for all
//! the same, so it is then read field by field, and only what we use has to be there.

use async_openai::types::{
    chat::{
        ChatChoice, ChatCompletionRequestAssistantMessage, ChatCompletionRequestAssistantMessageContent,
        ChatCompletionRequestAssistantMessageContentPart, ChatCompletionRequestMessage,
        ChatCompletionRequestMessageContentPartImage, ChatCompletionRequestMessageContentPartText,
        ChatCompletionRequestSystemMessage, ChatCompletionRequestSystemMessageContent,
        ChatCompletionRequestSystemMessageContentPart, ChatCompletionRequestUserMessage,
        ChatCompletionRequestUserMessageContent, ChatCompletionRequestUserMessageContentPart, CompletionUsage,
        CreateChatCompletionRequest, CreateChatCompletionResponse, FinishReason, ImageDetail, ImageUrl, ResponseFormat,
        ResponseFormatJsonSchema, StopConfiguration,
    },
    responses::{
        CreateResponse, EasyInputContent, EasyInputMessage, InputContent, InputImageContent, InputTextContent,
        OutputItem, OutputMessageContent, Response, ResponseTextParam, ResponseUsage, Status,
        TextResponseFormatConfiguration,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    answer::{Answer, Finish, Usage},
    request::{AnswerForm, Api, Detail, Image, Message, Part, Request, Role},
};

/// The body of `request`, images as `url` writes them.
pub(crate) fn body(request: &Request, url: &dyn Fn(&Image) -> String) -> Value {
    let mut body = match request.api {
        Api::ChatCompletions => object(&chat_body(request, url)),
        Api::Responses => responses_body(request, url),
    };
    // The types hold these as f32, which as JSON numbers would be 0.699999988079071 for 0.7.
    let sampling = &request.sampling;
    for (key, value) in [("temperature", sampling.temperature), ("top_p", sampling.top_p)] {
        if let Some(value) = value {
            body.insert(key.into(), json!(value));
        }
    }
    for (key, value) in &request.extra {
        body.insert(key.clone(), value.clone());
    }
    Value::Object(body)
}

/// A struct as a JSON object. Structs whose maps have text keys always are one.
fn object(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

// `max_tokens` and `seed` are deprecated at OpenAI, and what every other server has.
#[allow(deprecated)]
fn chat_body(request: &Request, url: &dyn Fn(&Image) -> String) -> CreateChatCompletionRequest {
    let most = Some(tokens(request.max_output_tokens));
    let newer = takes_completion_tokens(&request.model);
    let stop = &request.sampling.stop;
    CreateChatCompletionRequest {
        model: request.model.clone(),
        messages: request.messages.iter().map(|m| chat_message(m, url)).collect(),
        max_tokens: most.filter(|_| !newer),
        max_completion_tokens: most.filter(|_| newer),
        seed: request.sampling.seed,
        stop: (!stop.is_empty()).then(|| StopConfiguration::StringArray(stop.clone())),
        response_format: request.form.as_ref().map(|f| ResponseFormat::JsonSchema { json_schema: json_schema(f) }),
        ..CreateChatCompletionRequest::default()
    }
}

fn responses_body(request: &Request, url: &dyn Fn(&Image) -> String) -> Map<String, Value> {
    let format = |form| TextResponseFormatConfiguration::JsonSchema(json_schema(form));
    let mut body = object(&CreateResponse {
        model: Some(request.model.clone()),
        max_output_tokens: Some(tokens(request.max_output_tokens)),
        // The answer is kept in our own store; nothing needs to stay on the server.
        store: Some(false),
        text: request.form.as_ref().map(|form| ResponseTextParam { format: format(form), verbosity: None }),
        ..CreateResponse::default()
    });
    body.insert("input".into(), request.messages.iter().map(|m| response_item(m, url)).collect());
    body
}

/// A limit of tokens as the wire has it. None is near the largest u32.
fn tokens(most: u64) -> u32 {
    u32::try_from(most).unwrap_or(u32::MAX)
}

fn json_schema(form: &AnswerForm) -> ResponseFormatJsonSchema {
    ResponseFormatJsonSchema {
        description: None,
        name: form.name.clone(),
        schema: form.schema.clone(),
        strict: Some(form.strict),
    }
}

/// OpenAI's reasoning models refuse `max_tokens`; other servers know only that.
fn takes_completion_tokens(model: &str) -> bool {
    let name = model.strip_prefix("openai/").unwrap_or(model);
    ["o1", "o3", "o4", "gpt-5"].iter().any(|p| name.starts_with(p))
}

fn detail(detail: Detail) -> ImageDetail {
    match detail {
        Detail::Low => ImageDetail::Low,
        Detail::High => ImageDetail::High,
        Detail::Auto => ImageDetail::Auto,
    }
}

/// The text of a message without images. Some servers take only a plain string there.
fn only_text(message: &Message) -> Option<&String> {
    match message.parts.as_slice() {
        [Part::Text(text)] => Some(text),
        _ => None,
    }
}

fn chat_message(message: &Message, url: &dyn Fn(&Image) -> String) -> ChatCompletionRequestMessage {
    let text = |text: &String| ChatCompletionRequestMessageContentPartText {
        text: text.clone(),
        ..ChatCompletionRequestMessageContentPartText::default()
    };
    match (message.role, only_text(message)) {
        (Role::User, Some(text)) => ChatCompletionRequestUserMessage::from(text.as_str()).into(),
        (Role::System, Some(text)) => ChatCompletionRequestSystemMessage::from(text.as_str()).into(),
        (Role::Assistant, Some(text)) => ChatCompletionRequestAssistantMessage::from(text.as_str()).into(),
        (Role::User, None) => {
            let parts = message.parts.iter().map(|part| match part {
                Part::Text(words) => ChatCompletionRequestUserMessageContentPart::Text(text(words)),
                Part::Image(image) => {
                    let image_url = ImageUrl { url: url(image), detail: image.detail.map(detail) };
                    ChatCompletionRequestMessageContentPartImage { image_url, prompt_cache_breakpoint: None }.into()
                }
            });
            let content = ChatCompletionRequestUserMessageContent::Array(parts.collect());
            ChatCompletionRequestUserMessage { content, name: None }.into()
        }
        // Only a user shows images; what others say in several texts stays several texts.
        (Role::System, None) => {
            let parts = texts(message).map(|t| ChatCompletionRequestSystemMessageContentPart::Text(text(t)));
            let content = ChatCompletionRequestSystemMessageContent::Array(parts.collect());
            ChatCompletionRequestSystemMessage { content, name: None }.into()
        }
        (Role::Assistant, None) => {
            let parts = texts(message).map(|t| ChatCompletionRequestAssistantMessageContentPart::Text(text(t)));
            let content = Some(ChatCompletionRequestAssistantMessageContent::Array(parts.collect()));
            ChatCompletionRequestAssistantMessage { content, ..Default::default() }.into()
        }
    }
}

fn texts(message: &Message) -> impl Iterator<Item = &String> {
    message.parts.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text),
        Part::Image(_) => None,
    })
}

fn response_item(message: &Message, url: &dyn Fn(&Image) -> String) -> Value {
    let role = match message.role {
        Role::System => async_openai::types::responses::Role::System,
        Role::User => async_openai::types::responses::Role::User,
        Role::Assistant => async_openai::types::responses::Role::Assistant,
    };
    let parts = || {
        let parts = message.parts.iter().map(|part| match part {
            Part::Text(text) => {
                InputContent::InputText(InputTextContent { text: text.clone(), ..InputTextContent::default() })
            }
            Part::Image(image) => InputContent::InputImage(InputImageContent {
                detail: detail(image.detail.unwrap_or(Detail::Auto)),
                image_url: Some(url(image)),
                ..InputImageContent::default()
            }),
        });
        EasyInputContent::ContentList(parts.collect())
    };
    let content = only_text(message).map_or_else(parts, |text| EasyInputContent::Text(text.clone()));
    let mut item = object(&EasyInputMessage { role, content, ..EasyInputMessage::default() });
    // The `openai` package leaves it out of such messages, and so do the requests that stores were filled with.
    item.remove("type");
    // What the model said is output; the types have it only with an id that the server gave it.
    if message.role == Role::Assistant
        && let Some(parts) = item.get_mut("content").and_then(Value::as_array_mut)
    {
        parts.iter_mut().for_each(|part| part["type"] = json!("output_text"));
    }
    Value::Object(item)
}

/// Reads the body of a successful answer. What is missing and optional stays `None`: servers differ.
///
/// # Errors
/// A sentence when there is no answer in it.
pub fn read_answer(api: Api, body: &Value) -> Result<Answer, String> {
    let answer = match api {
        Api::ChatCompletions => match CreateChatCompletionResponse::deserialize(body) {
            Ok(answer) => read_chat(answer),
            Err(_) => read_chat_by_fields(body),
        },
        Api::Responses => match Response::deserialize(body) {
            Ok(answer) => read_response(answer),
            Err(_) => read_response_by_fields(body),
        },
    }?;
    Ok(Answer { reasoning: reasoning(body), ..answer })
}

/// Why the body of a success is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Nothing was said and nothing counted: it costs nothing.
    Nothing(String),
    /// It cannot be read, or is a part of an answer: it may have been paid.
    Broken(String),
}

/// As [`read_answer`], and nothing that only looks like an answer.
pub(crate) fn read_whole_answer(api: Api, body: &Value) -> Result<Answer, NoAnswer> {
    let answer = read_answer(api, body).map_err(NoAnswer::Broken)?;
    if let Some(what) = broken_off(&answer, body) {
        return Err(NoAnswer::Broken(what));
    }
    match is_nothing(&answer) {
        true => Err(NoAnswer::Nothing("an answer without a word, for which the server counts no token".to_owned())),
        false => Ok(answer),
    }
}

/// Says so where the server broke off (vLLM, relays): what is there is a part of an answer.
fn broken_off(answer: &Answer, body: &Value) -> Option<String> {
    match &answer.finish {
        Finish::Other(name) if name == "abort" || name == "error" => {
            let words = body["choices"][0]["error"]["message"].as_str().unwrap_or("without a reason");
            Some(format!("the server broke off (`{name}`): {}", clipped(words)))
        }
        _ => None,
    }
}

/// Whether nothing was said and nothing counted: a server that lost its model in between (Ollama), not an answer.
fn is_nothing(answer: &Answer) -> bool {
    answer.text.is_empty() && answer.refusal.is_none() && answer.usage.is_some_and(|usage| usage.completion_tokens == 0)
}

/// How many characters of reasoning came beside an answer (`reasoning_content` of llama.cpp and vLLM, `reasoning` of newer ones and of Ollama).
fn reasoning(body: &Value) -> usize {
    let message = &body["choices"][0]["message"];
    let texts = ["reasoning_content", "reasoning"].map(|key| message[key].as_str().unwrap_or_default().chars().count());
    texts.into_iter().max().unwrap_or(0)
}

const NO_CHOICE: &str = "expected `choices` with one answer, found none";

fn read_chat(answer: CreateChatCompletionResponse) -> Result<Answer, String> {
    let ChatChoice { message, finish_reason, .. } = answer.choices.into_iter().next().ok_or(NO_CHOICE)?;
    let finish = match finish_reason {
        Some(FinishReason::Stop) => Finish::Stop,
        Some(FinishReason::Length) => Finish::Length,
        Some(FinishReason::ContentFilter) => Finish::ContentFilter,
        Some(FinishReason::ToolCalls) => Finish::Other("tool_calls".into()),
        Some(FinishReason::FunctionCall) => Finish::Other("function_call".into()),
        None => Finish::Other("null".into()),
    };
    let usage =
        answer.usage.map(|CompletionUsage { prompt_tokens, completion_tokens, prompt_tokens_details, .. }| {
            let cached = prompt_tokens_details.and_then(|d| d.cached_tokens).unwrap_or(0);
            counted(prompt_tokens, completion_tokens, cached)
        });
    Ok(Answer {
        text: message.content.unwrap_or_default(),
        finish,
        refusal: message.refusal,
        usage,
        model: answer.model,
        reasoning: 0,
    })
}

fn read_chat_by_fields(body: &Value) -> Result<Answer, String> {
    let choice = body["choices"].get(0).ok_or(NO_CHOICE)?;
    let message = choice["message"].as_object().ok_or("expected `choices[0].message`, found none")?;
    let text = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        // Parts, of which some are no text (Mistral's thinking).
        Some(Value::Array(parts)) if parts.iter().all(Value::is_object) => {
            parts.iter().filter(|part| part["type"] == "text").filter_map(|part| part["text"].as_str()).collect()
        }
        Some(other) => return Err(format!("expected a text in `message.content`, found {other}")),
    };
    let finish = match choice["finish_reason"].as_str() {
        Some("stop") => Finish::Stop,
        Some("length") => Finish::Length,
        Some("content_filter") => Finish::ContentFilter,
        Some(other) => Finish::Other(other.to_owned()),
        None => Finish::Other("null".into()),
    };
    Ok(Answer {
        text,
        finish,
        refusal: message.get("refusal").and_then(Value::as_str).map(str::to_owned),
        usage: usage(&body["usage"], "prompt_tokens", "completion_tokens", "prompt_tokens_details"),
        model: body["model"].as_str().unwrap_or_default().to_owned(),
        reasoning: 0,
    })
}

fn read_response(answer: Response) -> Result<Answer, String> {
    let (mut text, mut refusal) = (String::new(), None);
    let messages = answer.output.into_iter().filter_map(|item| match item {
        OutputItem::Message(message) => Some(message.content),
        _ => None,
    });
    for part in messages.flatten() {
        match part {
            OutputMessageContent::OutputText(part) => text.push_str(&part.text),
            OutputMessageContent::Refusal(part) => refusal = Some(part.refusal),
        }
    }
    let reason = answer.incomplete_details.map(|d| d.reason);
    let finish = match (answer.status, reason.as_deref()) {
        (Status::Completed, _) => Finish::Stop,
        (Status::Incomplete, Some("max_output_tokens")) => Finish::Length,
        (Status::Incomplete, Some("content_filter")) => Finish::ContentFilter,
        (Status::Failed, _) => return Err(failed(&json!(answer.error.map(|e| e.message)))),
        (status, reason) => Finish::Other(reason.map_or_else(|| name_of(&status), str::to_owned)),
    };
    let usage = answer.usage.map(|ResponseUsage { input_tokens, output_tokens, input_tokens_details, .. }| {
        counted(input_tokens, output_tokens, input_tokens_details.cached_tokens)
    });
    Ok(Answer { text, finish, refusal, usage, model: answer.model, reasoning: 0 })
}

fn read_response_by_fields(body: &Value) -> Result<Answer, String> {
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
        (Some("failed"), _) => return Err(failed(&body["error"]["message"])),
        (status, reason) => Finish::Other(reason.or(status).unwrap_or("null").to_owned()),
    };
    let usage = usage(&body["usage"], "input_tokens", "output_tokens", "input_tokens_details");
    Ok(Answer {
        text,
        finish,
        refusal,
        usage,
        model: body["model"].as_str().unwrap_or_default().to_owned(),
        reasoning: 0,
    })
}

fn failed(message: &Value) -> String {
    format!("the server says that it failed: {message}")
}

/// How the wire names a value of a plain enum.
fn name_of(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_else(|| "null".into())
}

fn counted(prompt: u32, completion: u32, cached: u32) -> Usage {
    Usage { prompt_tokens: prompt.into(), completion_tokens: completion.into(), cached_prompt_tokens: cached.into() }
}

fn usage(value: &Value, prompt: &str, completion: &str, details: &str) -> Option<Usage> {
    Some(Usage {
        prompt_tokens: value[prompt].as_u64()?,
        completion_tokens: value[completion].as_u64()?,
        cached_prompt_tokens: value[details]["cached_tokens"].as_u64().unwrap_or(0),
    })
}

/// What a server says in the body of a failure.
pub(crate) struct Said {
    /// OpenAI's `error.message`, what other servers use, or the start of the text.
    pub message: String,
    /// OpenAI's `error.code`, or its `type`.
    pub code: Option<String>,
    /// It is about what the request says (OpenRouter's moderation), not about who sends it.
    pub flagged: bool,
}

/// Reads the body of a failure.
pub(crate) fn read_failure(body: &[u8]) -> Said {
    let text = String::from_utf8_lossy(body);
    let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let error = if value["error"].is_object() { &value["error"] } else { &value };
    let message = [&error["message"], &value["error"], &value["detail"], &value["message"]]
        .into_iter()
        .find_map(Value::as_str)
        .map_or_else(|| clipped(&page_title(&text).unwrap_or_else(|| text.trim().to_owned())), clipped);
    let code = error["code"].as_str().or(error["type"].as_str()).map(str::to_owned);
    let about = &error["metadata"];
    Said { message, code, flagged: about["reasons"].is_array() || about["flagged_input"].is_string() }
}

fn clipped(text: &str) -> String {
    text.chars().take(500).collect()
}

/// What a page in HTML is called: relays send such in place of the server's words.
fn page_title(text: &str) -> Option<String> {
    // In ASCII, so that places stay the same.
    let lower = text.to_ascii_lowercase();
    if !lower.trim_start().starts_with('<') {
        return None;
    }
    let start = lower.find("<title>")? + "<title>".len();
    let title = &text[start..start + lower[start..].find("</title>")?];
    Some(format!("a page titled {:?}", title.split_whitespace().collect::<Vec<_>>().join(" ")))
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

    /// What OpenAI sends, whole: the types read it, and reading field by field gives the same.
    #[test]
    fn whole_answers_are_read_by_the_types_and_the_fields_agree() {
        let finishes = ["stop", "length", "content_filter", "tool_calls", "function_call"];
        for (i, finish) in finishes.into_iter().enumerate() {
            let body = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o-2024-08-06", "service_tier": "default",
                "choices": [{"index": 0, "finish_reason": finish, "logprobs": null,
                    "message": {"role": "assistant", "content": (i % 2 == 0).then_some("Hi"), "refusal": (i == 1).then_some("no"), "annotations": []}}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
                    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}}});
            let typed = read_chat(CreateChatCompletionResponse::deserialize(&body).unwrap()).unwrap();
            assert_eq!(typed, read_chat_by_fields(&body).unwrap());
            assert_eq!(typed.finish.name(), finish);
            assert_eq!(typed.usage.unwrap().cached_prompt_tokens, 4);
            let mut odd = body.clone();
            odd["choices"][0]["finish_reason"] = json!("eos_token");
            odd["service_tier"] = json!("of the moment");
            assert!(CreateChatCompletionResponse::deserialize(&odd).is_err());
            let odd = read_answer(Api::ChatCompletions, &odd).unwrap();
            assert_eq!((odd.text, odd.finish), (typed.text, Finish::Other("eos_token".into())));
        }
        let statuses = [
            ("completed", None),
            ("incomplete", Some("max_output_tokens")),
            ("incomplete", Some("content_filter")),
            ("cancelled", None),
        ];
        for (status, reason) in statuses {
            let body = json!({"id": "r", "object": "response", "created_at": 1, "model": "gpt-5", "status": status,
                "incomplete_details": reason.map(|reason| json!({"reason": reason})),
                "output": [{"type": "reasoning", "id": "rs", "summary": []},
                    {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [
                        {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}, {"type": "refusal", "refusal": "no"}]}],
                "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "input_tokens_details": {"cached_tokens": 1}, "output_tokens_details": {"reasoning_tokens": 2}}});
            let typed = read_response(Response::deserialize(&body).unwrap()).unwrap();
            assert_eq!(typed, read_response_by_fields(&body).unwrap());
            assert_eq!((typed.text.as_str(), typed.refusal.as_deref()), ("Hi", Some("no")));
        }
        let failed = json!({"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "failed", "output": [], "error": {"code": "server_error", "message": "no"}});
        assert_eq!(read_answer(Api::Responses, &failed), read_response_by_fields(&failed));
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
            (
                "<!DOCTYPE html>\r\n<html><head><TITLE>502 Bad\n Gateway</TITLE></head><body>é</body></html>",
                "a page titled \"502 Bad Gateway\"",
                None,
            ),
            ("", "", None),
        ] {
            let said = read_failure(body.as_bytes());
            assert_eq!((said.message.as_str(), said.code), (message, said_code), "{body}");
        }
    }
}
