//! A node against a JSON Schema, with every finding at its place.
//!
//! This covers the draft 2020-12 keywords that schemars writes for config structs. `pattern` and
//! formats other than the integer widths are left to serde; [`unsupported`] names what else a schema
//! asks for in vain.

use serde_json::{Map, Value as Json};

use crate::decode::with_origin;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::node::{Entry, Node, NumberValue, Value};
use crate::schema_words::{branches, expectations, int_range, kinds, only_key, properties, resolve, strings};
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
            let path = if at.path.is_empty() { entry.key.clone() } else { format!("{}.{}", at.path, entry.key) };
            let spot = if entry.value.span.start < entry.value.span.end { entry.value.span } else { entry.key_span };
            let below = At { path: &path, spot };
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

    /// A value that must fit one of several schemas. Where it fits none, the findings are those of
    /// the one that was probably meant.
    fn alternatives(&mut self, node: &Node, branches: &[Json], at: At<'_>) {
        let mut attempts = Vec::new();
        for branch in branches {
            let found = self.attempt(node, branch, at);
            if !found.has_errors() {
                return;
            }
            attempts.push((branch, found));
        }
        // An `Option` has one branch to speak of.
        let is_null = |branch: &Json| branch.get("type").and_then(Json::as_str) == Some("null");
        attempts.retain(|(branch, _)| !is_null(branch));
        if let [(_, found)] = attempts.as_slice() {
            return self.found.extend(found.clone());
        }
        if matches!(node.value, Value::Map(_)) {
            if let Some(tag) = self.tag(branches) {
                return self.tagged(node, &tag, attempts, at);
            }
            let root = self.root;
            let variants: Option<Vec<&str>> = branches
                .iter()
                .filter_map(|branch| object(root, branch))
                .filter(|schema| schema.contains_key("properties"))
                .map(only_key)
                .collect();
            if let Some(variants) = variants.filter(|variants| !variants.is_empty()) {
                return self.variant(node, &variants, attempts, at);
            }
        }
        let names: Vec<&str> = branches.iter().flat_map(|branch| strings(self.root, branch)).collect();
        let fitting = attempts
            .iter()
            .filter(|(branch, _)| strings(self.root, branch).is_empty() && self.takes_kind_of(node, branch));
        if let Some((_, found)) = fitting.min_by_key(|(_, found)| found.len()) {
            return self.found.extend(found.clone());
        }
        let mut expected: Vec<String> = Vec::new();
        for branch in branches.iter().filter_map(Json::as_object) {
            for phrase in expectations(self.root, branch) {
                if !expected.contains(&phrase) {
                    expected.push(phrase);
                }
            }
        }
        let all_names = expected.iter().all(|phrase| phrase.starts_with('`'));
        if !names.is_empty() && (all_names || node.as_str().is_some()) {
            return self.not_a_name(node, &names, &expected, at);
        }
        if matches!(node.value, Value::Secret(_)) {
            return self.no_secret(node, at);
        }
        let help = branches.iter().find_map(|branch| kind_help(node, object(self.root, branch)?));
        self.unexpected(node, &joined(&expected, "or"), help, at);
    }

    /// A map that should be one variant of an enum: its one key is the variant's name.
    fn variant(&mut self, node: &Node, variants: &[&str], attempts: Vec<(&Json, Diagnostics)>, at: At<'_>) {
        let [entry] = node.entries() else {
            let quoted: Vec<String> = variants.iter().map(|name| format!("`{name}`")).collect();
            let message = format!("{} must have exactly one key, found {}", self.subject(at), node.entries().len());
            let diagnostic = Diagnostic::error("wrong_length", message).label("expected one key");
            return self.report(node, at, diagnostic.help(format!("give {}", joined(&quoted, "or"))));
        };
        let root = self.root;
        let chosen =
            attempts.into_iter().find(|(branch, _)| object(root, branch).and_then(only_key) == Some(&entry.key));
        match chosen {
            Some((_, found)) => self.found.extend(found),
            None => self.unknown_key(entry, variants, at),
        }
    }

    fn attempt(&mut self, node: &Node, schema: &Json, at: At<'_>) -> Diagnostics {
        let before = std::mem::take(&mut self.found);
        self.check(node, schema, at);
        std::mem::replace(&mut self.found, before)
    }

    /// The key by which the variants of an internally tagged enum are told apart.
    fn tag(&self, branches: &[Json]) -> Option<String> {
        let objects: Vec<&Schema> = branches
            .iter()
            .filter_map(|branch| object(self.root, branch))
            .filter(|schema| schema.contains_key("properties"))
            .collect();
        let first = objects.first()?.get("properties")?.as_object()?;
        first.keys().find(|key| objects.iter().all(|schema| tag_value(schema, key).is_some())).cloned()
    }

    fn tagged(&mut self, node: &Node, tag: &str, attempts: Vec<(&Json, Diagnostics)>, at: At<'_>) {
        let root = self.root;
        let names: Vec<&str> =
            attempts.iter().filter_map(|(branch, _)| tag_value(object(root, branch)?, tag)).collect();
        let Some(entry) = node.entry(tag) else {
            let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let message = format!("{} has no `{tag}`", self.subject(at));
            let diagnostic = Diagnostic::error("missing_key", message)
                .label(format!("`{tag}` is missing"))
                .help(format!("add `{tag}`: {}", joined(&quoted, "or")));
            return self.report(node, at, diagnostic);
        };
        let chosen = attempts.iter().find(|(branch, _)| {
            object(self.root, branch).and_then(|schema| tag_value(schema, tag)) == entry.value.as_str()
        });
        match chosen {
            Some((_, found)) if entry.value.as_str().is_some() => self.found.extend(found.clone()),
            _ => {
                let path = if at.path.is_empty() { tag.to_owned() } else { format!("{}.{tag}", at.path) };
                let spot =
                    if entry.value.span.start < entry.value.span.end { entry.value.span } else { entry.key_span };
                let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                self.not_a_name(&entry.value, &names, &quoted, At { path: &path, spot });
            }
        }
    }

    fn takes_kind_of(&self, node: &Node, schema: &Json) -> bool {
        let Some(schema) = object(self.root, schema) else {
            return false;
        };
        if let Some(branches) = branches(schema) {
            return branches.iter().any(|branch| self.takes_kind_of(node, branch));
        }
        match schema.get("type") {
            Some(types) => kinds(types).any(|kind| is_kind(node, kind)),
            None => schema.get("const").is_some_and(Json::is_string) && node.as_str().is_some(),
        }
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

fn tag_value<'s>(schema: &'s Schema, tag: &str) -> Option<&'s str> {
    schema.get("properties")?.get(tag)?.get("const")?.as_str()
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

/// The keywords of a schema that [`SchemaCheck`] doesn't check, as paths.
pub(crate) fn unsupported(schema: &Json) -> Vec<String> {
    let mut found = Vec::new();
    unsupported_below(schema, "", &mut found);
    found
}

fn unsupported_below(schema: &Json, path: &str, found: &mut Vec<String>) {
    let Some(schema) = schema.as_object() else {
        return;
    };
    for (keyword, value) in schema {
        let path = format!("{path}/{keyword}");
        match keyword.as_str() {
            "properties" | "$defs" | "patternProperties" => {
                for (key, schema) in value.as_object().into_iter().flatten() {
                    unsupported_below(schema, &format!("{path}/{key}"), found);
                }
            }
            "items" | "additionalProperties" => unsupported_below(value, &path, found),
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => {
                for (index, schema) in value.as_array().into_iter().flatten().enumerate() {
                    unsupported_below(schema, &format!("{path}/{index}"), found);
                }
            }
            "pattern" if schema.contains_key(SECRET_KEYWORD) => {}
            "$ref"
            | "$schema"
            | "type"
            | "enum"
            | "const"
            | "format"
            | "minimum"
            | "maximum"
            | "exclusiveMinimum"
            | "exclusiveMaximum"
            | "minLength"
            | "maxLength"
            | "minItems"
            | "maxItems"
            | "uniqueItems"
            | "minProperties"
            | "maxProperties"
            | "required"
            | "unevaluatedProperties"
            | "title"
            | "description"
            | "default"
            | "examples"
            | "deprecated"
            | SECRET_KEYWORD => {}
            _ => found.push(path),
        }
    }
}
