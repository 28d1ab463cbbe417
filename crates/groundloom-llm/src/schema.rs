//! JSON Schema for answers: the words that structured outputs use, all of them checked, and no other accepted.
//!
//! Semantics are those of draft 2020-12. A schema with a word that is not checked here is refused when it is read, so that nothing goes unchecked.
//! Verdicts are compared with the Python package `jsonschema` (fixture `tests/data/schema_verdicts.jsonl`).

use std::collections::BTreeSet;

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::error::LlmError;

/// Words that say nothing about validity.
const ANNOTATIONS: &[&str] = &[
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "format",
];

/// References deeper than this are circles.
const DEPTH: usize = 200;

/// A schema that has been read.
#[derive(Debug, Clone)]
pub struct AnswerSchema {
    root: Value,
}

impl AnswerSchema {
    /// Reads a schema.
    ///
    /// # Errors
    /// [`LlmError::Schema`] with the place of a word that is wrong or not known.
    pub fn new(root: Value) -> Result<Self, LlmError> {
        check(&root, &root, "#", 0)?;
        Ok(Self { root })
    }

    /// The schema itself.
    pub fn value(&self) -> &Value {
        &self.root
    }

    /// Everything that is wrong with `value`, each with its place (a JSON pointer); nothing when it fits.
    pub fn faults(&self, value: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        self.visit(&self.root, value, "", 0, &mut faults);
        faults
    }

    fn fits(&self, schema: &Value, value: &Value, depth: usize) -> bool {
        let mut faults = Vec::new();
        self.visit(schema, value, "", depth, &mut faults);
        faults.is_empty()
    }

    fn visit(&self, schema: &Value, value: &Value, place: &str, depth: usize, faults: &mut Vec<String>) {
        let at = if place.is_empty() { "the answer" } else { place };
        if depth > DEPTH {
            faults.push(format!("{at}: the schema refers to itself without end"));
            return;
        }
        let words = match schema {
            Value::Bool(true) => return,
            Value::Object(words) => words,
            _ => {
                faults.push(format!("{at}: nothing is allowed here"));
                return;
            }
        };
        let mut fault = |message: String| faults.push(format!("{at}: {message}"));
        if let Some(types) = words.get("type") {
            let allowed: Vec<&str> = match types {
                Value::String(one) => vec![one],
                Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
                _ => Vec::new(),
            };
            if !allowed.iter().any(|t| is_of_type(value, t)) {
                fault(format!("expected {}, found {}", allowed.join(" or "), shown(value)));
                return;
            }
        }
        if let Some(Value::Array(allowed)) = words.get("enum")
            && !allowed.iter().any(|a| equal(a, value))
        {
            let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
            fault(format!("expected one of {}, found {}", allowed.join(", "), shown(value)));
        }
        if let Some(only) = words.get("const")
            && !equal(only, value)
        {
            fault(format!("expected {only}, found {}", shown(value)));
        }
        match value {
            Value::Number(_) => number_faults(words, value, &mut fault),
            Value::String(text) => text_faults(words, text, &mut fault),
            _ => {}
        }
        match value {
            Value::Array(items) => self.visit_items(words, items, place, depth, faults),
            Value::Object(entries) => self.visit_entries(words, entries, place, depth, faults),
            _ => {}
        }
        if let Some(reference) = words.get("$ref").and_then(Value::as_str)
            && let Some(target) = resolve(&self.root, reference)
        {
            self.visit(target, value, place, depth + 1, faults);
        }
        let schemas = |word: &str| words.get(word).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for all in schemas("allOf") {
            self.visit(all, value, place, depth + 1, faults);
        }
        for (word, wanted) in [("anyOf", "at least one"), ("oneOf", "exactly one")] {
            let alternatives = schemas(word);
            let fitting = alternatives.iter().filter(|s| self.fits(s, value, depth + 1)).count();
            if !alternatives.is_empty() && (fitting == 0 || (word == "oneOf" && fitting > 1)) {
                faults.push(format!("{at}: fits {fitting} of the alternatives of `{word}`, expected {wanted}"));
            }
        }
        if let Some(not) = words.get("not")
            && self.fits(not, value, depth + 1)
        {
            faults.push(format!("{at}: is what `not` rules out"));
        }
    }

    fn visit_items(
        &self,
        words: &Map<String, Value>,
        items: &[Value],
        place: &str,
        depth: usize,
        faults: &mut Vec<String>,
    ) {
        let at = if place.is_empty() { "the answer" } else { place };
        count_faults(words, ("minItems", "maxItems"), items.len(), "items", &mut |m| faults.push(format!("{at}: {m}")));
        if words.get("uniqueItems") == Some(&Value::Bool(true))
            && items.iter().enumerate().any(|(i, a)| items[..i].iter().any(|b| equal(a, b)))
        {
            faults.push(format!("{at}: expected no item twice"));
        }
        let prefix = words.get("prefixItems").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for (i, item) in items.iter().enumerate() {
            if let Some(schema) = prefix.get(i).or_else(|| words.get("items")) {
                self.visit(schema, item, &format!("{place}/{i}"), depth + 1, faults);
            }
        }
    }

    fn visit_entries(
        &self,
        words: &Map<String, Value>,
        entries: &Map<String, Value>,
        place: &str,
        depth: usize,
        faults: &mut Vec<String>,
    ) {
        let at = if place.is_empty() { "the answer" } else { place };
        let counts = ("minProperties", "maxProperties");
        count_faults(words, counts, entries.len(), "keys", &mut |m| faults.push(format!("{at}: {m}")));
        for required in words.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            if !entries.contains_key(required) {
                faults.push(format!("{at}: the key `{required}` is missing"));
            }
        }
        let properties = words.get("properties").and_then(Value::as_object);
        for (key, value) in entries {
            let inner = format!("{place}/{key}");
            match (properties.and_then(|p| p.get(key)), words.get("additionalProperties")) {
                (Some(schema), _) => self.visit(schema, value, &inner, depth + 1, faults),
                (None, Some(Value::Bool(false))) => faults.push(format!("{at}: the key `{key}` is not expected")),
                (None, Some(schema)) => self.visit(schema, value, &inner, depth + 1, faults),
                (None, None) => {}
            }
        }
    }
}

fn number_faults(words: &Map<String, Value>, value: &Value, fault: &mut dyn FnMut(String)) {
    let Some(number) = value.as_f64() else { return };
    type Holds = fn(f64, f64) -> bool;
    let bounds: [(&str, Holds, &str); 4] = [
        ("minimum", |n, b| n >= b, "at least"),
        ("maximum", |n, b| n <= b, "at most"),
        ("exclusiveMinimum", |n, b| n > b, "more than"),
        ("exclusiveMaximum", |n, b| n < b, "less than"),
    ];
    for (word, holds, name) in bounds {
        if let Some(bound) = words.get(word).and_then(Value::as_f64)
            && !holds(number, bound)
        {
            fault(format!("expected {name} {bound}, found {number}"));
        }
    }
    if let Some(step) = words.get("multipleOf").and_then(Value::as_f64) {
        let ratio = number / step;
        if (ratio - ratio.round()).abs() > 1e-9 * ratio.abs().max(1.0) {
            fault(format!("expected a multiple of {step}, found {number}"));
        }
    }
}

fn text_faults(words: &Map<String, Value>, text: &str, fault: &mut dyn FnMut(String)) {
    if words.contains_key("minLength") || words.contains_key("maxLength") {
        count_faults(words, ("minLength", "maxLength"), text.chars().count(), "characters", fault);
    }
    if let Some(pattern) = words.get("pattern").and_then(Value::as_str)
        // It compiled when the schema was read; an expression that gives up does not match.
        && !Regex::new(pattern).is_ok_and(|r| r.is_match(text).unwrap_or(false))
    {
        fault(format!("expected a text that matches `{pattern}`, found {}", shown(&Value::String(text.to_owned()))));
    }
}

fn count_faults(
    words: &Map<String, Value>,
    (min, max): (&str, &str),
    n: usize,
    what: &str,
    fault: &mut dyn FnMut(String),
) {
    let bound = |word: &str| words.get(word).and_then(Value::as_f64);
    if let Some(least) = bound(min).filter(|least| (n as f64) < *least) {
        fault(format!("expected at least {least} {what}, found {n}"));
    }
    if let Some(most) = bound(max).filter(|most| (n as f64) > *most) {
        fault(format!("expected at most {most} {what}, found {n}"));
    }
}

/// Numbers are equal by value, as the standard has it: 1 and 1.0.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| equal(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(key, x)| y.get(key).is_some_and(|y| equal(x, y)))
        }
        _ => a == b,
    }
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        // 1.0 is an integer.
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => false,
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { format!("{}…", text.chars().take(60).collect::<String>()) } else { text }
}

fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// Whether a schema consists of words that are checked, each with a value that makes sense.
fn check(root: &Value, schema: &Value, place: &str, depth: usize) -> Result<(), LlmError> {
    let wrong = |place: String, message: String| Err(LlmError::Schema { place, message });
    if depth > DEPTH {
        return wrong(place.to_owned(), "too deep".into());
    }
    let words = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(words) => words,
        other => return wrong(place.to_owned(), format!("expected an object, found {}", shown(other))),
    };
    for (word, value) in words {
        let here = format!("{place}/{word}");
        let expected = match word.as_str() {
            "type" => {
                let names: BTreeSet<&str> = match value {
                    Value::String(one) => [one.as_str()].into(),
                    Value::Array(many) => many.iter().map(|v| v.as_str().unwrap_or("?")).collect(),
                    _ => BTreeSet::new(),
                };
                let known = ["null", "boolean", "string", "array", "object", "number", "integer"];
                if !names.is_empty() && names.iter().all(|n| known.contains(n)) {
                    None
                } else {
                    Some("a type or a list of types")
                }
            }
            "enum" | "required" => (!value.is_array()).then_some("a list"),
            "const" => None,
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                (!value.is_number()).then_some("a number")
            }
            "multipleOf" => (!value.as_f64().is_some_and(|n| n > 0.0)).then_some("a positive number"),
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                (!value.as_f64().is_some_and(|n| n >= 0.0 && n.fract() == 0.0)).then_some("a count")
            }
            "uniqueItems" => (!value.is_boolean()).then_some("true or false"),
            "pattern" => match value.as_str().map(Regex::new) {
                Some(Ok(_)) => None,
                Some(Err(error)) => return wrong(here, format!("no regular expression: {error}")),
                None => Some("a regular expression"),
            },
            "$ref" => match value.as_str() {
                Some(reference) if resolve(root, reference).is_some() => None,
                _ => Some("a reference to a place in this schema, such as #/$defs/name"),
            },
            "properties" | "$defs" | "definitions" => match value {
                Value::Object(schemas) => {
                    for (name, schema) in schemas {
                        check(root, schema, &format!("{here}/{name}"), depth + 1)?;
                    }
                    None
                }
                _ => Some("an object of schemas"),
            },
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => match value {
                Value::Array(schemas) if !schemas.is_empty() => {
                    for (i, schema) in schemas.iter().enumerate() {
                        check(root, schema, &format!("{here}/{i}"), depth + 1)?;
                    }
                    None
                }
                _ => Some("a list of schemas"),
            },
            "items" | "additionalProperties" | "not" => {
                check(root, value, &here, depth + 1)?;
                None
            }
            annotation if ANNOTATIONS.contains(&annotation) => None,
            _ => return wrong(here, "this word is not checked here; leave it out or say it in other words".into()),
        };
        if let Some(expected) = expected {
            return wrong(here, format!("expected {expected}, found {}", shown(value)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn faults_say_where_and_what() {
        let schema = AnswerSchema::new(json!({
            "type": "object", "required": ["turns"], "additionalProperties": false,
            "properties": {"turns": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/turn"}}},
            "$defs": {"turn": {"type": "object", "required": ["question", "answer"], "properties": {
                "question": {"type": "string", "pattern": "\\?$"}, "answer": {"type": "string", "minLength": 1}}}},
        }))
        .unwrap();
        assert_eq!(schema.faults(&json!({"turns": [{"question": "Who?", "answer": "me"}]})), Vec::<String>::new());
        for (value, fault) in [
            (json!([]), "the answer: expected object, found []"),
            (json!({}), "the answer: the key `turns` is missing"),
            (json!({"turns": []}), "/turns: expected at least 1 items, found 0"),
            (
                json!({"turns": [{"question": "Who", "answer": "x"}]}),
                "/turns/0/question: expected a text that matches `\\?$`, found \"Who\"",
            ),
            (
                json!({"turns": [{"question": "Who?", "answer": ""}]}),
                "/turns/0/answer: expected at least 1 characters, found 0",
            ),
            (
                json!({"turns": [{"question": "Who?", "answer": "x"}], "more": 1}),
                "the answer: the key `more` is not expected",
            ),
        ] {
            assert_eq!(schema.faults(&value), [fault]);
        }
    }

    #[test]
    fn schemas_that_would_go_unchecked_are_refused() {
        for (schema, place) in [
            (json!({"if": {}}), "#/if"),
            (json!({"type": "strin"}), "#/type"),
            (json!({"properties": {"a": {"patternProperties": {}}}}), "#/properties/a/patternProperties"),
            (json!({"$ref": "#/$defs/nothing"}), "#/$ref"),
            (json!({"$ref": "https://example.com/schema"}), "#/$ref"),
            (json!({"pattern": "("}), "#/pattern"),
            (json!({"anyOf": []}), "#/anyOf"),
            (json!([]), "#"),
        ] {
            let error = AnswerSchema::new(schema).unwrap_err().to_string();
            assert!(error.contains(&format!("{place}:")), "{error}");
        }
        let endless = AnswerSchema::new(json!({"$ref": "#"})).unwrap();
        assert!(endless.faults(&json!(1))[0].contains("without end"));
    }
}
