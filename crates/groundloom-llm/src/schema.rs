//! JSON Schema for answers, drafts 4 to 2020-12, by the library `boon`.
//!
//! Ours is what a library does not do: words that a draft does not know are refused, so that a slip of the pen checks nothing in silence; nothing is fetched and no file is read for
//! a `$ref`; faults are told as a model and a person can use them, short and in a fixed order, since repairs are requests and a request is known by its words.
//! Verdicts are compared with the Python package `jsonschema` (fixtures `tests/data/schema_verdicts*.jsonl`).

use std::{collections::BTreeSet, fmt, sync::Arc};

use boon::{CompileError, Compiler, Draft, ErrorKind, InstanceToken, SchemaIndex, Schemas, UrlLoader, ValidationError};
use serde_json::Value;

use crate::error::LlmError;

/// Where a schema that names itself by no `$id` is said to be; nothing is ever there (RFC 6761, section 6.4).
const PLACE: &str = "https://schema.invalid/answer";

/// Faults that are told, at most.
const FAULTS: usize = 20;

/// Characters of a value, a key or an alternative that are told, at most.
const SHOWN: usize = 60;

/// Characters of one fault, at most.
const FAULT: usize = 400;

/// A schema that has been compiled.
#[derive(Clone)]
pub struct AnswerSchema {
    root: Arc<Value>,
    compiled: Arc<Schemas>,
    index: SchemaIndex,
}

impl fmt::Debug for AnswerSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnswerSchema").field(&self.root).finish()
    }
}

impl AnswerSchema {
    /// Compiles a schema of the draft that its `$schema` names, 2020-12 if it names none.
    ///
    /// `format` and the `content…` words are notes and check nothing, as that draft has it by default; 1.0 is an integer, in draft 4 too. Regular expressions are ECMA's as far as an automaton can match them.
    ///
    /// # Errors
    /// [`LlmError::Schema`] with the place of what is wrong: a word with a wrong value, a word that the draft does not know (one that begins with `x-` is a note), a regular
    /// expression with look-around or back references, a reference to another document, or to a place that is not there.
    pub fn new(root: Value) -> Result<Self, LlmError> {
        let draft = draft(&root)?;
        let mut checked = root.clone();
        let mut words = Words { root: &root, draft, references: Vec::new() };
        words.check(&mut checked, "#")?;
        let mut compiler = Compiler::new();
        compiler.use_loader(Box::new(Nothing));
        let mut schemas = Schemas::new();
        compiler.add_resource(PLACE, checked.clone()).map_err(|error| words.refusal(&error, &checked))?;
        let index = compiler.compile(PLACE, &mut schemas).map_err(|error| words.refusal(&error, &checked))?;
        Ok(Self { root: Arc::new(root), compiled: Arc::new(schemas), index })
    }

    /// The schema itself.
    pub fn value(&self) -> &Value {
        &self.root
    }

    /// What is wrong with `value`, each fault with its place (a JSON pointer), in the order of places; nothing when it fits. Of very many, the first ones and a count.
    pub fn faults(&self, value: &Value) -> Vec<String> {
        let Err(error) = self.compiled.validate(value, self.index) else { return Vec::new() };
        let mut faults: Vec<String> = told(&error, value).into_iter().map(joined).collect();
        let more = faults.len().saturating_sub(FAULTS);
        if more > 0 {
            faults.truncate(FAULTS);
            faults.push(format!("and {more} more"));
        }
        faults
    }
}

/// The loader of documents that a schema refers to.
struct Nothing;

impl UrlLoader for Nothing {
    fn load(&self, _url: &str) -> Result<Value, Box<dyn std::error::Error>> {
        Err("nothing is fetched and no file is read for a schema".into())
    }
}

fn wrong<T>(place: impl Into<String>, message: impl Into<String>) -> Result<T, LlmError> {
    Err(LlmError::Schema { place: place.into(), message: message.into() })
}

fn draft(root: &Value) -> Result<Draft, LlmError> {
    match root.get("$schema") {
        None => Ok(Draft::V2020_12),
        Some(named) => match named.as_str().and_then(Draft::from_url) {
            Some(draft) => Ok(draft),
            None => wrong(
                "#/$schema",
                format!(
                    "expected a draft from 4 to 2020-12, such as https://json-schema.org/draft/2020-12/schema, found {}",
                    shown(named)
                ),
            ),
        },
    }
}

/// What stands behind a word that holds schemas.
enum Inside {
    /// A schema; before 2020-12 `items` also has a list of them.
    One,
    /// A list of schemas.
    List,
    /// Schemas by names that are no words; in `dependencies` a name may have a list of keys instead.
    Named,
}

/// The walk over the schemas in a schema.
struct Words<'a> {
    root: &'a Value,
    draft: Draft,
    /// Places of references, and what they name.
    references: Vec<(String, String)>,
}

impl Words<'_> {
    /// Looks for words that the draft does not know, and takes the notes out that the library would check in older drafts.
    fn check(&mut self, schema: &mut Value, place: &str) -> Result<(), LlmError> {
        let Value::Object(words) = schema else { return Ok(()) };
        // No specification asks that it be checked (validation, section 7.2), and other readers do not.
        words.remove("format");
        // What stands beside a reference is void there (draft 7, section 8.3), and the library (0.6.1) overlooks this one word.
        if self.draft < Draft::V2019_09 && words.contains_key("$ref") {
            words.remove("const");
        }
        for (word, value) in words.iter_mut() {
            let here = format!("{place}/{}", escaped(word));
            if !self.knows(word) {
                return wrong(here, self.advice(word));
            }
            if let ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(target)) = (word.as_str(), &*value) {
                if target
                    .strip_prefix('#')
                    .is_some_and(|p| p.starts_with('/') && !p.contains('%') && self.root.pointer(p).is_none())
                {
                    return wrong(
                        here,
                        format!(
                            "expected a reference to a place in this schema, such as #/$defs/name, found {}",
                            shown(value)
                        ),
                    );
                }
                self.references.push((here, target.clone()));
                continue;
            }
            match (inside(word), value) {
                (Some(Inside::Named), Value::Object(schemas)) => {
                    for (name, schema) in schemas {
                        self.check(schema, &format!("{here}/{}", escaped(name)))?;
                    }
                }
                (Some(Inside::List | Inside::One), Value::Array(schemas)) => {
                    for (i, schema) in schemas.iter_mut().enumerate() {
                        self.check(schema, &format!("{here}/{i}"))?;
                    }
                }
                (Some(Inside::One), schema) => self.check(schema, &here)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn knows(&self, word: &str) -> bool {
        use Draft::{V4, V6, V7, V2019_09, V2020_12};
        let (first, last) = match word {
            "id" => (V4, V4),
            "dependencies" => (V4, V7),
            "additionalItems" => (V4, V2019_09),
            "$id" | "const" | "contains" | "propertyNames" => (V6, V2020_12),
            "if" | "then" | "else" => (V7, V2020_12),
            "$recursiveRef" | "$recursiveAnchor" => (V2019_09, V2019_09),
            "$anchor"
            | "$vocabulary"
            | "dependentRequired"
            | "dependentSchemas"
            | "minContains"
            | "maxContains"
            | "unevaluatedItems"
            | "unevaluatedProperties" => (V2019_09, V2020_12),
            "prefixItems" | "$dynamicRef" | "$dynamicAnchor" => (V2020_12, V2020_12),
            _ => (V4, V2020_12),
        };
        WORDS.contains(&word) && (first..=last).contains(&self.draft) || word.starts_with("x-")
    }

    fn advice(&self, word: &str) -> String {
        let other = match word {
            "dependencies" => "; write `dependentRequired` or `dependentSchemas`",
            "additionalItems" => "; write `items` beside `prefixItems`",
            "nullable" => "; write `\"type\": [\"string\", \"null\"]`",
            _ if WORDS.contains(&word) => "; name the draft that does in `$schema`",
            _ => "; leave it out, or begin it with `x-` where it is a note",
        };
        format!("draft {} does not know this word, so nothing would be checked{other}", name(self.draft))
    }

    /// The library's refusal in our words.
    fn refusal(&self, error: &CompileError, schema: &Value) -> LlmError {
        let at = |place: &str, message: String| LlmError::Schema { place: format!("#{place}"), message };
        let pointer = |url: &str| url.split_once('#').map_or(String::new(), |(_, pointer)| pointer.to_owned());
        match error {
            CompileError::ValidationError { src, .. } => {
                let (place, message) = told(src, schema).into_iter().next().unwrap_or_default();
                at(&place, message)
            }
            CompileError::InvalidRegex { url, src, .. } => {
                // The first line of the parser's words repeats the expression, the last one says what is wrong with it.
                let reason =
                    src.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                at(&pointer(url), format!("no regular expression that can be checked here: {reason}"))
            }
            CompileError::LoadUrlError { url, .. } | CompileError::UnsupportedUrlScheme { url } => {
                let shared = |target: &str| {
                    target
                        .split('#')
                        .next()
                        .is_some_and(|t| !t.is_empty() && url.ends_with(t.trim_start_matches(['.', '/'])))
                };
                let (place, target) = self
                    .references
                    .iter()
                    .find(|(_, target)| shared(target))
                    .cloned()
                    .unwrap_or_else(|| ("#".into(), url.clone()));
                let message = format!(
                    "{} is another document, and none is fetched or read; copy what you need into `$defs`",
                    brief(&target)
                );
                LlmError::Schema { place, message }
            }
            other => {
                let text = format!("{other:#}").replace(PLACE, "");
                let (place, _) = self
                    .references
                    .iter()
                    .find(|(_, target)| text.contains(target.as_str()))
                    .cloned()
                    .unwrap_or_else(|| ("#".into(), String::new()));
                LlmError::Schema { place, message: text }
            }
        }
    }
}

/// All words of drafts 4 to 2020-12.
const WORDS: &[&str] = &[
    "$anchor",
    "$comment",
    "$defs",
    "$dynamicAnchor",
    "$dynamicRef",
    "$id",
    "$recursiveAnchor",
    "$recursiveRef",
    "$ref",
    "$schema",
    "$vocabulary",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "default",
    "definitions",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "deprecated",
    "description",
    "else",
    "enum",
    "examples",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "id",
    "if",
    "items",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "readOnly",
    "required",
    "then",
    "title",
    "type",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "writeOnly",
];

fn inside(word: &str) -> Option<Inside> {
    Some(match word {
        "additionalItems"
        | "additionalProperties"
        | "contains"
        | "else"
        | "if"
        | "items"
        | "not"
        | "propertyNames"
        | "then"
        | "unevaluatedItems"
        | "unevaluatedProperties" => Inside::One,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Inside::List,
        "$defs" | "definitions" | "dependencies" | "dependentSchemas" | "patternProperties" | "properties" => {
            Inside::Named
        }
        _ => return None,
    })
}

const fn name(draft: Draft) -> &'static str {
    match draft {
        Draft::V4 => "4",
        Draft::V6 => "6",
        Draft::V7 => "7",
        Draft::V2019_09 => "2019-09",
        _ => "2020-12",
    }
}

/// A fault's place, a JSON pointer, and what is wrong there.
type Fault = (String, String);

fn joined((place, message): Fault) -> String {
    let place = if place.is_empty() { "the answer" } else { &place };
    clipped(&format!("{place}: {message}"), FAULT)
}

/// All faults, each once, in the order of their places: the library's own order is a hash table's in places.
fn told(error: &ValidationError<'_, '_>, value: &Value) -> Vec<Fault> {
    let mut faults = BTreeSet::new();
    tell(error, value, &mut faults);
    if faults.is_empty() {
        return vec![(String::new(), "does not fit the schema".to_owned())];
    }
    faults.into_iter().map(|(_, fault)| fault).collect()
}

/// A place whose numbers are in their order.
type Order = Vec<(usize, String)>;

fn tell(error: &ValidationError<'_, '_>, root: &Value, faults: &mut BTreeSet<(Order, Fault)>) {
    let mut order = Order::new();
    let mut at = String::new();
    let mut value = Some(root);
    for token in &error.instance_location.tokens {
        at.push('/');
        match token {
            InstanceToken::Prop(key) => {
                at.push_str(&brief(&escaped(key)));
                value = value.and_then(|v| v.get(key.as_ref()));
                order.push((0, key.to_string()));
            }
            InstanceToken::Item(i) => {
                at.push_str(&i.to_string());
                value = value.and_then(|v| v.get(i));
                order.push((*i, String::new()));
            }
        }
    }
    let found = || value.map_or_else(String::new, |value| format!(", found {}", shown(value)));
    let mut fault = |message: String| {
        faults.insert((order.clone(), (at.clone(), message)));
    };
    let count =
        |least: &str, want: usize, what: &str, got: usize| format!("expected at {least} {want} {what}, found {got}");
    match &error.kind {
        ErrorKind::Group
        | ErrorKind::Schema { .. }
        | ErrorKind::Reference { .. }
        | ErrorKind::AllOf
        | ErrorKind::ContentSchema => {
            for cause in &error.causes {
                tell(cause, root, faults);
            }
        }
        ErrorKind::RefCycle { .. } => fault("the schema refers to itself without end".into()),
        ErrorKind::FalseSchema => fault("nothing is allowed here".into()),
        ErrorKind::Type { got, want } => {
            let wanted: Vec<String> = want.iter().map(|t| t.to_string()).collect();
            // Behind `prefixItems` the library counts items from there (0.6.1), so that the place and the value may be another item's.
            let found = if value.is_some_and(|value| is_of(value, *got)) { found() } else { format!(", found {got}") };
            fault(format!("expected {}{found}", wanted.join(" or ")));
        }
        ErrorKind::Enum { want } => {
            let mut wanted: Vec<String> = want.iter().take(20).map(shown).collect();
            if want.len() > wanted.len() {
                wanted.push("…".into());
            }
            fault(format!("expected one of {}{}", wanted.join(", "), found()));
        }
        ErrorKind::Const { want } => fault(format!("expected {}{}", shown(want), found())),
        ErrorKind::Required { want } => {
            want.iter().for_each(|key| fault(format!("the key `{}` is missing", brief(key))))
        }
        ErrorKind::AdditionalProperties { got } => {
            got.iter().for_each(|key| fault(format!("the key `{}` is not expected", brief(key))))
        }
        ErrorKind::Dependency { prop, missing } | ErrorKind::DependentRequired { prop, missing } => {
            missing
                .iter()
                .for_each(|key| fault(format!("the key `{}` is missing, which `{}` needs", brief(key), brief(prop))));
        }
        ErrorKind::PropertyName { prop } => {
            let name = Value::String(prop.clone());
            let why = error
                .causes
                .first()
                .and_then(|cause| told(cause, &name).into_iter().next())
                .map(|(_, message)| message)
                .unwrap_or_default();
            fault(format!("the key `{}` is not allowed: {why}", brief(prop)));
        }
        ErrorKind::MinProperties { got, want } => fault(count("least", *want, "keys", *got)),
        ErrorKind::MaxProperties { got, want } => fault(count("most", *want, "keys", *got)),
        ErrorKind::MinItems { got, want } => fault(count("least", *want, "items", *got)),
        ErrorKind::MaxItems { got, want } => fault(count("most", *want, "items", *got)),
        ErrorKind::AdditionalItems { got } => fault(format!("the last {got} items are not expected")),
        ErrorKind::UniqueItems { .. } => fault("expected no item twice".into()),
        ErrorKind::Contains => fault("expected at least 1 items that fit `contains`, found 0".into()),
        ErrorKind::MinContains { got, want } => fault(count("least", *want, "items that fit `contains`", got.len())),
        ErrorKind::MaxContains { got, want } => fault(count("most", *want, "items that fit `contains`", got.len())),
        ErrorKind::MinLength { got, want } => fault(count("least", *want, "characters", *got)),
        ErrorKind::MaxLength { got, want } => fault(count("most", *want, "characters", *got)),
        ErrorKind::Pattern { got, want } => {
            fault(format!(
                "expected a text that matches `{}`, found {}",
                clipped(want, 2 * SHOWN),
                shown(&Value::String(got.to_string()))
            ));
        }
        ErrorKind::Minimum { got, want } => fault(format!("expected at least {want}, found {got}")),
        ErrorKind::Maximum { got, want } => fault(format!("expected at most {want}, found {got}")),
        ErrorKind::ExclusiveMinimum { got, want } => fault(format!("expected more than {want}, found {got}")),
        ErrorKind::ExclusiveMaximum { got, want } => fault(format!("expected less than {want}, found {got}")),
        ErrorKind::MultipleOf { got, want } => fault(format!("expected a multiple of {want}, found {got}")),
        ErrorKind::Not => fault("is what `not` rules out".into()),
        ErrorKind::AnyOf => fault(format!(
            "fits none of the alternatives of `anyOf`, expected at least one ({})",
            alternatives(error, root)
        )),
        ErrorKind::OneOf(None) => fault(format!(
            "fits none of the alternatives of `oneOf`, expected exactly one ({})",
            alternatives(error, root)
        )),
        ErrorKind::OneOf(Some((i, j))) => {
            fault(format!("fits the alternatives {} and {} of `oneOf`, expected exactly one", i + 1, j + 1))
        }
        ErrorKind::Format { .. } | ErrorKind::ContentEncoding { .. } | ErrorKind::ContentMediaType { .. } => {
            fault(error.kind.to_string())
        }
    }
}

/// What each alternative lacks first, as long as that is short.
fn alternatives(error: &ValidationError<'_, '_>, root: &Value) -> String {
    let mut firsts: Vec<String> =
        error.causes.iter().take(4).map(|cause| clipped(&first_of(cause, root), 2 * SHOWN)).collect();
    if error.causes.len() > firsts.len() {
        firsts.push("…".into());
    }
    firsts.join("; or ")
}

fn first_of(error: &ValidationError<'_, '_>, root: &Value) -> String {
    told(error, root).into_iter().next().map(joined).unwrap_or_default()
}

fn is_of(value: &Value, kind: boon::Type) -> bool {
    match kind {
        boon::Type::Null => value.is_null(),
        boon::Type::Boolean => value.is_boolean(),
        boon::Type::Number | boon::Type::Integer => value.is_number(),
        boon::Type::String => value.is_string(),
        boon::Type::Array => value.is_array(),
        boon::Type::Object => value.is_object(),
    }
}

fn shown(value: &Value) -> String {
    brief(&value.to_string())
}

fn brief(text: &str) -> String {
    clipped(text, SHOWN)
}

fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A key as a token of a JSON pointer (RFC 6901, section 3).
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Map, json};

    use super::*;

    fn faults(schema: Value, value: Value) -> Vec<String> {
        AnswerSchema::new(schema).unwrap().faults(&value)
    }

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
    fn every_kind_of_fault_has_words() {
        for (schema, value, fault) in [
            (json!({"enum": [1, "a"]}), json!(2), "the answer: expected one of 1, \"a\", found 2"),
            (json!({"const": {"a": 1}}), json!(2), "the answer: expected {\"a\":1}, found 2"),
            (json!({"exclusiveMinimum": 2}), json!(2), "the answer: expected more than 2, found 2"),
            (json!({"multipleOf": 2}), json!(3), "the answer: expected a multiple of 2, found 3"),
            (json!({"uniqueItems": true}), json!([1, 1.0]), "the answer: expected no item twice"),
            (
                json!({"contains": {"type": "null"}, "minContains": 2}),
                json!([null]),
                "the answer: expected at least 2 items that fit `contains`, found 1",
            ),
            (json!({"not": {"type": "null"}}), json!(null), "the answer: is what `not` rules out"),
            (
                json!({"anyOf": [{"type": "null"}, {"required": ["a/b"]}]}),
                json!({}),
                "the answer: fits none of the alternatives of `anyOf`, expected at least one (the answer: expected null, found {}; or the answer: the key `a/b` is missing)",
            ),
            (
                json!({"oneOf": [true, {"type": "null"}]}),
                json!(null),
                "the answer: fits the alternatives 1 and 2 of `oneOf`, expected exactly one",
            ),
            (json!({"properties": {"a/b": {"type": "null"}}}), json!({"a/b": 1}), "/a~1b: expected null, found 1"),
            (
                json!({"propertyNames": {"maxLength": 1}}),
                json!({"ab": 1}),
                "the answer: the key `ab` is not allowed: expected at most 1 characters, found 2",
            ),
            (
                json!({"dependentRequired": {"a": ["b"]}}),
                json!({"a": 1}),
                "the answer: the key `b` is missing, which `a` needs",
            ),
            (
                json!({"properties": {"a": true}, "unevaluatedProperties": false}),
                json!({"a": 1, "b": 2}),
                "/b: nothing is allowed here",
            ),
            (
                json!({"if": {"required": ["a"]}, "then": {"required": ["b"]}}),
                json!({"a": 1}),
                "the answer: the key `b` is missing",
            ),
            (
                json!({"prefixItems": [true, true], "items": {"type": "null"}}),
                json!(["a", "b", 1]),
                "/0: expected null, found number",
            ),
        ] {
            assert_eq!(faults(schema, value), [fault]);
        }
    }

    /// A repair is a request of its own that holds the faults, and is found in the store by its words.
    #[test]
    fn faults_are_few_short_and_always_the_same() {
        let schema = json!({"properties": {"k": true}, "unevaluatedProperties": {"type": "string", "enum": ["x"]}, "minProperties": 100});
        let value: Value = (0..60).map(|i| (format!("k{i}"), json!("y".repeat(5_000)))).collect::<Map<_, _>>().into();
        let first = faults(schema.clone(), value.clone());
        assert_eq!((first.len(), first[20].as_str()), (21, "and 41 more"));
        assert!(first.iter().all(|fault| fault.chars().count() <= FAULT + 1), "{first:?}");
        for _ in 0..20 {
            assert_eq!(faults(schema.clone(), value.clone()), first);
        }
        let long = json!({"anyOf": (0..50).map(|i| json!({"pattern": "z".repeat(500), "minLength": 9_000 + i})).collect::<Vec<_>>()});
        let told = faults(long, json!("é".repeat(8_000)));
        assert!(told.len() == 1 && told[0].chars().count() <= FAULT + 1, "{told:?}");
        let items: Vec<Value> = (0..12).map(|i| if i < 9 { json!(null) } else { json!(i) }).collect();
        assert_eq!(
            faults(json!({"items": {"type": "null"}}), json!(items))[0],
            "/9: expected null, found 9",
            "9 is before 10"
        );
    }

    #[test]
    fn schemas_that_would_go_unchecked_are_refused() {
        let draft7 = "http://json-schema.org/draft-07/schema#";
        for (schema, place, words) in [
            (json!({"minLenght": 1}), "#/minLenght", "does not know this word"),
            (json!({"properties": {"a": {"nullable": true}}}), "#/properties/a/nullable", "[\"string\", \"null\"]"),
            (json!({"dependencies": {}}), "#/dependencies", "dependentRequired"),
            (json!({"$schema": draft7, "prefixItems": [{}]}), "#/prefixItems", "draft 7"),
            (json!({"type": "strin"}), "#/type", "expected one of"),
            (json!({"properties": {"a/b": {"minLength": -1}}}), "#/properties/a~1b/minLength", "at least 0"),
            (json!({"$ref": "#/$defs/nothing"}), "#/$ref", "a place in this schema"),
            (json!({"$defs": {"d": {"$ref": "#nothing"}}, "$ref": "#/$defs/d"}), "#/$defs/d/$ref", "nothing"),
            (json!({"items": {"$ref": "https://example.com/schema#/x"}}), "#/items/$ref", "another document"),
            (json!({"$ref": "file:///etc/hostname"}), "#/$ref", "another document"),
            (json!({"$ref": "other.json"}), "#/$ref", "another document"),
            (json!({"$id": "file:///etc/", "$ref": "hostname"}), "#/$ref", "another document"),
            (json!({"$schema": "https://example.com/mine"}), "#/$schema", "expected a draft"),
            (json!({"$schema": 7}), "#/$schema", "expected a draft"),
            (json!({"pattern": "("}), "#/pattern", "unclosed group"),
            (json!({"properties": {"a": {"pattern": "(?=a)"}}}), "#/properties/a/pattern", "look-around"),
            (json!({"anyOf": []}), "#/anyOf", "at least 1"),
            (json!([]), "#", "expected boolean or object"),
        ] {
            let error = AnswerSchema::new(schema.clone()).unwrap_err().to_string();
            assert!(error.contains(&format!(" {place}: ")) && error.contains(words), "{schema}: {error}");
        }
        let endless = AnswerSchema::new(json!({"$ref": "#"})).unwrap();
        assert!(endless.faults(&json!(1))[0].contains("without end"));
    }

    #[test]
    fn notes_check_nothing_and_names_are_no_words() {
        let value = json!({"format": "no address", "x": "%%%"});
        for draft in [
            "http://json-schema.org/draft-04/schema#",
            "http://json-schema.org/draft-07/schema#",
            "https://json-schema.org/draft/2020-12/schema",
        ] {
            let schema = json!({"$schema": draft, "x-order": ["x"], "type": "object", "properties": {
                "format": {"type": "string", "format": "email"}, "minLenght": {"type": "null"}, "x": {"contentEncoding": "base64"}}});
            let compiled = AnswerSchema::new(schema.clone()).unwrap();
            assert_eq!(compiled.faults(&value), Vec::<String>::new());
            assert_eq!(compiled.faults(&json!({"format": 1})), ["/format: expected string, found 1"]);
            assert_eq!(compiled.value(), &schema, "what is sent is what was given");
        }
    }

    #[test]
    fn the_draft_is_the_one_that_is_named() {
        let tuple = |draft: &str| json!({"$schema": draft, "items": [{"type": "null"}], "additionalItems": false});
        assert_eq!(
            faults(tuple("http://json-schema.org/draft-07/schema#"), json!([null, 1])),
            ["the answer: the last 1 items are not expected"]
        );
        assert!(AnswerSchema::new(tuple("https://json-schema.org/draft/2020-12/schema")).is_err());
        let exclusive =
            json!({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": true});
        assert_eq!(faults(exclusive, json!(1)), ["the answer: expected more than 1, found 1"]);
    }
}
