//! A node against a JSON Schema, with every finding at its place.
//!
//! This covers the draft 2020-12 keywords that schemars writes for config structs. `pattern` and
//! formats other than the integer widths are left to serde;
//! [`ComponentType::faults`](crate::ComponentType::faults) names what else a schema asks for in vain.

mod alternatives;

use serde_json::{Map, Value as Json};

use crate::decode::with_origin;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::node::{Entry, Node, NumberValue, Value};
use crate::schema_words::{branches, expectations, int_range, kinds, properties, resolve};
use crate::secret::SECRET_KEYWORD;
use crate::source::Span;
use crate::spelling::{did_you_mean, excerpt, joined, nearest};

type Schema = Map<String, Json>;

/// A check of one node against one root schema.
pub(crate) struct SchemaCheck<'a> {
    root: &'a Json,
    title: &'a str,
    /// Keys that the node's owner has taken out, which belong into suggestions all the same.
    other_keys: &'a [&'a str],
    found: Diagnostics,
}

/// Where a check is.
#[derive(Clone, Copy)]
struct At<'p> {
    /// From the root: `store.headers[0]`; empty for the root.
    path: &'p str,
    /// What to underline: the value, or its key if nothing is written.
    spot: Span,
}

impl At<'_> {
    /// The path of a key of the map that is here.
    fn key(self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl<'a> SchemaCheck<'a> {
    pub(crate) fn new(root: &'a Json, title: &'a str, other_keys: &'a [&'a str]) -> Self {
        Self { root, title, other_keys, found: Diagnostics::new() }
    }

    /// Checks `node`; what is missing in it is reported at `place`.
    pub(crate) fn run(mut self, node: &Node, place: Span) -> Diagnostics {
        let at = At { path: "", spot: place };
        self.check(node, self.root, at);
        self.found
    }

    fn check(&mut self, node: &Node, schema: &Json, at: At<'_>) {
        let schema = match schema {
            _ if node.value == Value::Unresolved => return,
            Json::Object(schema) => schema,
            Json::Bool(false) => {
                let message = format!("{} may not be given", self.subject(at));
                return self.report(node, at, Diagnostic::error("not_allowed", message));
            }
            _ => return self.free(node, at),
        };
        if schema.contains_key(SECRET_KEYWORD) {
            return self.secret(node, at);
        }
        let mut constrained = false;
        if schema.contains_key("$ref") {
            constrained = true;
            if let Some(target) = resolve(self.root, schema) {
                self.check(node, target, at);
            }
        }
        for part in array(schema, "allOf") {
            constrained = true;
            self.check(node, part, at);
        }
        if let Some(branches) = branches(schema) {
            constrained = true;
            self.alternatives(node, branches, at);
        }
        if let Some(types) = schema.get("type") {
            constrained = true;
            if !kinds(types).any(|kind| is_kind(node, kind)) {
                return self.wrong_type(node, schema, at);
            }
        }
        if let Some(allowed) = schema.get("enum").and_then(Json::as_array) {
            constrained = true;
            self.one_of(node, allowed.iter(), at);
        }
        if let Some(only) = schema.get("const") {
            constrained = true;
            self.one_of(node, std::iter::once(only), at);
        }
        if !constrained {
            self.free(node, at);
        }
        match &node.value {
            Value::Number(number) => self.bounds(node, number.value, schema, at),
            Value::String(text) => {
                self.length(node, text.chars().count(), schema, ("minLength", "maxLength"), "character", at)
            }
            Value::List(items) => self.list(node, items, schema, at),
            Value::Map(entries) => self.map(node, entries, schema, at),
            _ => {}
        }
    }

    /// Where any value may stand, a secret still may not: its text would be taken for the value.
    fn free(&mut self, node: &Node, at: At<'_>) {
        match &node.value {
            Value::Secret(_) => self.no_secret(node, at),
            Value::List(items) => {
                for item in items {
                    self.free(item, At { spot: item.span, ..at });
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    self.free(&entry.value, At { spot: entry.value.span, ..at });
                }
            }
            _ => {}
        }
    }

    fn secret(&mut self, node: &Node, at: At<'_>) {
        if matches!(node.value, Value::Secret(_)) {
            return;
        }
        // The value isn't shown: it may be the secret itself.
        let message = format!("{} must be a secret from the environment", self.subject(at));
        let diagnostic = Diagnostic::error("plain_secret", message)
            .label("expected ${env:NAME}")
            .help("put the secret into an environment variable and write \"${env:NAME}\"");
        self.report(node, at, diagnostic);
    }

    fn no_secret(&mut self, node: &Node, at: At<'_>) {
        let message = format!("{} can't be a secret, found {}", self.subject(at), node.found());
        let diagnostic = Diagnostic::error("secret_not_allowed", message)
            .label("${env:…} is for secrets")
            .help("use a param: declare it in `params`, and give it with --set");
        self.report(node, at, diagnostic);
    }

    fn wrong_type(&mut self, node: &Node, schema: &Schema, at: At<'_>) {
        if matches!(node.value, Value::Secret(_)) {
            return self.no_secret(node, at);
        }
        let names: Vec<&str> = array(schema, "enum").iter().filter_map(Json::as_str).collect();
        let expected = expectations(self.root, schema);
        if names.is_empty() {
            self.unexpected(node, &joined(&expected, "or"), kind_help(node, schema), at);
        } else {
            self.not_a_name(node, &names, &expected, at);
        }
    }

    fn unexpected(&mut self, node: &Node, expected: &str, help: Option<String>, at: At<'_>) {
        let message = format!("{} must be {expected}, found {}", self.subject(at), node.found());
        let diagnostic = Diagnostic::error("wrong_type", message).label(format!("expected {expected}"));
        let diagnostic = match help {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        };
        self.report(node, at, diagnostic);
    }

    fn one_of<'j>(&mut self, node: &Node, allowed: impl Iterator<Item = &'j Json> + Clone, at: At<'_>) {
        let is_it = |allowed: &Json| serde_json::to_value(node).is_ok_and(|value| value == *allowed);
        if matches!(node.value, Value::Secret(_)) {
            return self.no_secret(node, at);
        }
        if allowed.clone().any(is_it) {
            return;
        }
        let names: Vec<&str> = allowed.clone().filter_map(Json::as_str).collect();
        let expected: Vec<String> = allowed
            .map(|value| match value.as_str() {
                Some(name) => format!("`{name}`"),
                None => format!("`{value}`"),
            })
            .collect();
        self.not_a_name(node, &names, &expected, at);
    }

    /// Something other than what is allowed, where that is names (and perhaps something else).
    fn not_a_name(&mut self, node: &Node, names: &[&str], expected: &[String], at: At<'_>) {
        if matches!(node.value, Value::Secret(_)) {
            return self.no_secret(node, at);
        }
        let one_of = if expected.len() > 1 { "one of " } else { "" };
        let message =
            format!("{} must be {one_of}{}, found {}", self.subject(at), joined(expected, "or"), node.found());
        let diagnostic = Diagnostic::error("not_one_of", message).label("unknown value");
        let diagnostic = match node.as_str().and_then(|text| nearest(text, names.iter().copied())) {
            Some(name) => diagnostic.help(format!("did you mean `{name}`?")),
            None => diagnostic,
        };
        self.report(node, at, diagnostic);
    }

    fn bounds(&mut self, node: &Node, value: NumberValue, schema: &Schema, at: At<'_>) {
        let bound = |key: &str| schema.get(key).and_then(Json::as_f64);
        let number = value.as_f64();
        let subject = self.subject(at);
        let (low, high) = (bound("minimum"), bound("maximum"));
        let (above, below) = (bound("exclusiveMinimum"), bound("exclusiveMaximum"));
        let width = int_range(schema);
        let low_missed = low.is_some_and(|low| number < low) || above.is_some_and(|above| number <= above);
        let high_missed = high.is_some_and(|high| number > high) || below.is_some_and(|below| number >= below);
        let width_missed = match (value, &width) {
            (NumberValue::Int(int), Some(width)) => !width.contains(&int),
            _ => false,
        };
        if !low_missed && !high_missed && !width_missed {
            return;
        }
        let lower = above.map(|above| format!("greater than {above}")).or(low.map(|low| format!("at least {low}")));
        let upper = below.map(|below| format!("less than {below}")).or(high.map(|high| format!("at most {high}")));
        let expected = match (lower, upper, width) {
            (Some(lower), Some(upper), _) => match (low, high) {
                (Some(low), Some(high)) if above.is_none() && below.is_none() => format!("from {low} to {high}"),
                _ => format!("{lower} and {upper}"),
            },
            (Some(lower), None, _) if low_missed => lower,
            (None, Some(upper), _) if high_missed => upper,
            (_, _, Some(width)) if low_missed => format!("at least {}", width.start()),
            (_, _, Some(width)) => format!("at most {}", width.end()),
            (lower, upper, None) => lower.or(upper).unwrap_or_default(),
        };
        let message = format!("{subject} must be {expected}, found {}", node.found());
        let diagnostic = Diagnostic::error("out_of_range", message).label(format!("expected {expected}"));
        self.report(node, at, diagnostic);
    }

    /// Checks how many of something there are.
    fn length(
        &mut self,
        node: &Node,
        count: usize,
        schema: &Schema,
        (least, most): (&str, &str),
        noun: &str,
        at: At<'_>,
    ) {
        let limit = |key: &str| schema.get(key).and_then(Json::as_u64);
        let (least, most) = (limit(least), limit(most));
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        if least.is_none_or(|least| count >= least) && most.is_none_or(|most| count <= most) {
            return;
        }
        let plural = |n: u64| if n == 1 { noun.to_owned() } else { format!("{noun}s") };
        let expected = match (least, most) {
            (Some(least), Some(most)) if least == most => format!("exactly {least} {}", plural(least)),
            (Some(least), Some(most)) => format!("{least} to {most} {}", plural(most)),
            (Some(least), None) => format!("at least {least} {}", plural(least)),
            (None, most) => format!("at most {} {}", most.unwrap_or_default(), plural(most.unwrap_or_default())),
        };
        let message = format!("{} must have {expected}, found {count}", self.subject(at));
        let diagnostic = Diagnostic::error("wrong_length", message).label(format!("expected {expected}"));
        self.report(node, at, diagnostic);
    }

    fn list(&mut self, node: &Node, items: &[Node], schema: &Schema, at: At<'_>) {
        self.length(node, items.len(), schema, ("minItems", "maxItems"), "item", at);
        let prefix = array(schema, "prefixItems");
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", at.path);
            let spot = if item.span.start < item.span.end { item.span } else { at.spot };
            if let Some(schema) = prefix.get(index).or(schema.get("items")) {
                self.check(item, schema, At { path: &path, spot });
            }
        }
        if schema.get("uniqueItems") == Some(&Json::Bool(true)) {
            self.unique(items, at);
        }
    }

    fn unique(&mut self, items: &[Node], at: At<'_>) {
        let mut seen = std::collections::HashMap::new();
        for item in items {
            let Ok(text) = serde_json::to_string(item) else { continue };
            let Some(first) = seen.insert(text, item.span) else { continue };
            let message = format!("{} has {} twice", self.subject(at), item.found());
            let diagnostic = Diagnostic::error("duplicate_item", message)
                .label("again here")
                .note_at(first, "first here")
                .help("remove one of them");
            self.report(item, At { spot: item.span, ..at }, diagnostic);
        }
    }

    fn map(&mut self, node: &Node, entries: &[Entry], schema: &Schema, at: At<'_>) {
        let declared = schema.get("properties").and_then(Json::as_object);
        let declared = |key: &str| declared.and_then(|declared| declared.get(key));
        let patterns = schema.get("patternProperties").and_then(Json::as_object);
        let mut unknown = Vec::new();
        for entry in entries {
            let path = at.key(&entry.key);
            let below = At { path: &path, spot: entry.spot() };
            let by_pattern = patterns.into_iter().flatten().find(|(pattern, _)| is_integer_key(pattern, &entry.key));
            match (declared(&entry.key), by_pattern, schema.get("additionalProperties")) {
                (Some(schema), _, _) | (None, Some((_, schema)), _) => self.check(&entry.value, schema, below),
                (None, None, Some(Json::Bool(false))) => unknown.push(entry),
                (None, None, Some(schema)) => self.check(&entry.value, schema, below),
                (None, None, None) => {
                    if schema.get("unevaluatedProperties") == Some(&Json::Bool(false))
                        && !properties(self.root, schema).iter().any(|(key, _)| *key == entry.key)
                    {
                        unknown.push(entry);
                    }
                }
            }
        }
        let known: Vec<&str> = properties(self.root, schema).into_iter().map(|(key, _)| key).collect();
        let missing: Vec<&str> = array(schema, "required")
            .iter()
            .filter_map(Json::as_str)
            .filter(|key| !entries.iter().any(|entry| entry.key == *key))
            .collect();
        let mut mistyped = Vec::new();
        for entry in unknown {
            // A mistyped required key is one mistake, not an unknown key and a missing one.
            mistyped.extend(nearest(&entry.key, missing.iter().copied()));
            if patterns.is_some() {
                self.not_an_integer_key(entry, at);
            } else {
                self.unknown_key(entry, &known, at);
            }
        }
        for key in missing.into_iter().filter(|key| !mistyped.contains(key)) {
            self.missing_key(node, key, declared(key), at);
        }
        self.length(node, entries.len(), schema, ("minProperties", "maxProperties"), "key", at);
    }

    fn unknown_key(&mut self, entry: &Entry, known: &[&str], at: At<'_>) {
        let others: &[&str] = if at.path.is_empty() { self.other_keys } else { &[] };
        let message = format!("{} has no key {}", self.subject(at), excerpt(&entry.key));
        let help = nearest(&entry.key, known.iter().chain(others).copied())
            .map(|key| format!("did you mean `{key}`?"))
            .or_else(|| did_you_mean(&entry.key, "its keys are", known.iter().copied()))
            .unwrap_or_else(|| "it takes no keys".to_owned());
        self.found.push(Diagnostic::error("unknown_key", message).at(entry.key_span).label("unknown key").help(help));
    }

    fn not_an_integer_key(&mut self, entry: &Entry, at: At<'_>) {
        let message = format!("the keys of {} must be integers, found {}", self.subject(at), excerpt(&entry.key));
        let diagnostic = Diagnostic::error("wrong_type", message).at(entry.key_span);
        self.found.push(diagnostic.label("expected an integer"));
    }

    fn missing_key(&mut self, node: &Node, key: &str, schema: Option<&Json>, at: At<'_>) {
        let message = format!("{} has no `{key}`", self.subject(at));
        let description = schema
            .and_then(|schema| schema.get("description"))
            .and_then(Json::as_str)
            .and_then(|text| text.split("\n\n").next())
            .map(|text| text.replace('\n', " "));
        let help = match description {
            Some(description) => format!("add `{key}`: {description}"),
            None => format!("add `{key}`"),
        };
        let diagnostic = Diagnostic::error("missing_key", message).label(format!("`{key}` is missing"));
        self.report(node, at, diagnostic.help(help));
    }

    fn subject(&self, at: At<'_>) -> String {
        if at.path.is_empty() {
            self.title.to_owned()
        } else {
            format!("`{}` of {}", crate::render::printable(at.path), self.title)
        }
    }

    fn report(&mut self, node: &Node, at: At<'_>, diagnostic: Diagnostic) {
        self.found.push(with_origin(diagnostic.at(at.spot), node));
    }
}

/// The object schema that a schema is or refers to.
fn object<'s>(root: &'s Json, schema: &'s Json) -> Option<&'s Schema> {
    let schema = schema.as_object()?;
    match resolve(root, schema) {
        Some(target) => target.as_object(),
        None => Some(schema),
    }
}

fn array<'s>(schema: &'s Schema, key: &str) -> &'s [Json] {
    schema.get(key).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// The two patterns that schemars writes for maps with integer keys.
fn is_integer_key(pattern: &str, key: &str) -> bool {
    let digits = match pattern {
        r"^\d+$" => key,
        r"^-?\d+$" => key.strip_prefix('-').unwrap_or(key),
        _ => return false,
    };
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_kind(node: &Node, kind: &str) -> bool {
    match (&node.value, kind) {
        (Value::Null, "null")
        | (Value::Bool(_), "boolean")
        | (Value::Number(_), "number")
        | (Value::String(_), "string")
        | (Value::List(_), "array")
        | (Value::Map(_), "object") => true,
        (Value::Number(number), "integer") => matches!(number.value, NumberValue::Int(_)),
        _ => false,
    }
}

/// What to write instead of a value of the wrong kind, where the slip is a common one.
fn kind_help(node: &Node, schema: &Schema) -> Option<String> {
    let types = schema.get("type")?;
    let wants = |kind: &str| kinds(types).any(|wanted| wanted == kind);
    match &node.value {
        Value::Null => Some("give a value, or leave the key out".to_owned()),
        _ if schema.contains_key("enum") || schema.contains_key("const") => None,
        Value::Number(number) if wants("string") => Some(format!("put it in quotes: \"{}\"", number.text)),
        Value::Bool(bool) if wants("string") => Some(format!("put it in quotes: \"{bool}\"")),
        Value::String(text) if wants("boolean") => match text.to_lowercase().as_str() {
            "yes" | "on" | "y" | "true" => Some("write `true`".to_owned()),
            "no" | "off" | "n" | "false" => Some("write `false`".to_owned()),
            _ => None,
        },
        Value::String(text) if wants("number") || wants("integer") => {
            let plain = text.replace(['_', ','], "");
            let is_number = matches!(crate::yaml::plain_scalar(&plain), Ok(Value::Number(_)));
            is_number.then(|| format!("write {plain}, without quotes and separators"))
        }
        Value::String(text) if wants("array") => Some(format!("write [{}]", excerpt(text))),
        _ => None,
    }
}
