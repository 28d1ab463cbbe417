//! What `tests/fuzz` runs on any bytes; here it runs on the corpus.
#![allow(missing_docs, reason = "nothing here is for users")]

use serde_json::{Value, json};

use crate::{
    batch::read_line,
    http_date::seconds_since_1970,
    request::Api,
    schema::AnswerSchema,
    structured::read_value,
    transport::parse_span,
    wire::{read_answer, read_failure},
};

/// A moment or a span of time, as servers put them into headers.
pub fn http_date(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    for now in [0, 1_800_000_000] {
        let moment = seconds_since_1970(text, now);
        // Years of four digits.
        assert!(moment.is_none_or(|at| (-62_200_000_000..253_500_000_000).contains(&at)), "{moment:?}");
    }
    parse_span(text);
}

/// The body of a model's answer: read as each interface's, as a failure and as a line of a batch; its text as a value in a form.
pub fn answer(bytes: &[u8]) {
    read_failure(bytes);
    let Ok(text) = str::from_utf8(bytes) else { return };
    read_line(text, "http://server");
    let form = json!({
        "type": "object",
        "properties": {
            "question": { "type": "string", "minLength": 1, "pattern": "^[A-Z].*\\?$" },
            "scores": { "type": "array", "items": { "type": "number", "minimum": 0, "multipleOf": 0.5 }, "maxItems": 3 },
            "kind": { "enum": ["a", "b", null] },
        },
        "required": ["question"],
        "additionalProperties": false,
    });
    let formed = |text: &str| {
        if let (Ok(value), Ok(schema)) = (read_value(text), AnswerSchema::new(form.clone())) {
            schema.faults(&value);
        }
    };
    formed(text);
    let Ok(body) = serde_json::from_str::<Value>(text) else { return };
    for api in [Api::ChatCompletions, Api::Responses] {
        if let Ok(answer) = read_answer(api, &body) {
            formed(&answer.text);
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpus.rs"]
#[allow(clippy::unwrap_used)]
mod corpus;

#[cfg(test)]
mod tests {
    use super::corpus::run;

    #[test]
    fn every_corpus_is_read() {
        run("http_date", super::http_date);
        run("answer", super::answer);
    }
}
