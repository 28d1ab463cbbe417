//! Params: their values, and `${param}` and `${env:NAME}` in the rest of the file.

use indexmap::IndexMap;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::node::{Entry, Node, Origin, Value};
use crate::reference::{Part, Reference, is_name, parts};
use crate::secret::{Secret, SecretError};
use crate::source::{SourceFile, Span};
use crate::spelling::{did_you_mean, excerpt};
use crate::yaml::{MAX_DEPTH, plain_scalar, read};

/// How much substitution may add to a file, in bytes of text plus [`NODE_COST`] per value. Params
/// may hold lists of params, which would otherwise grow without bound.
const MAX_ADDED: usize = 16 << 20;
const NODE_COST: usize = 64;

/// A param of a pipeline, with the value it has in this run.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// The name, as in `${name}`.
    pub name: String,
    /// Where the name is declared.
    pub name_span: Span,
    /// The value, references inside it resolved; [`Value::Null`] if it has none.
    pub value: Node,
    /// Whether `--set` gave the value.
    pub overridden: bool,
}

/// A declared param while references are resolved.
struct Slot {
    name_span: Span,
    /// As it's written or as `--set` gave it, with references.
    raw: Node,
    overridden: bool,
    used: bool,
    state: State,
}

enum State {
    Raw,
    Resolving,
    Resolved(Node),
}

/// The params of a file and what is needed to put their values into it.
pub(crate) struct Params<'a> {
    file: &'a SourceFile,
    env: &'a dyn Fn(&str) -> Option<String>,
    slots: IndexMap<String, Slot>,
    added: usize,
}

impl<'a> Params<'a> {
    /// Reads the `params` section, and the values that `--set` gives instead.
    pub(crate) fn read(
        file: &'a SourceFile,
        env: &'a dyn Fn(&str) -> Option<String>,
        section: Option<Node>,
        overrides: &[(String, String)],
        diagnostics: &mut Diagnostics,
    ) -> Self {
        let mut params = Self { file, env, slots: IndexMap::new(), added: 0 };
        for Entry { key, key_span, value } in section.map(into_entries).unwrap_or_default() {
            if !is_name(&key) {
                diagnostics.push(bad_name("param", &key, key_span));
            }
            params.slots.insert(
                key,
                Slot { name_span: key_span, raw: value, overridden: false, used: false, state: State::Raw },
            );
        }
        for (name, text) in overrides {
            params.set(name, text, diagnostics);
        }
        params
    }

    fn set(&mut self, name: &str, text: &str, diagnostics: &mut Diagnostics) {
        let Some(slot) = self.slots.get_mut(name) else {
            let known = self.slots.keys().map(String::as_str);
            let diagnostic = Diagnostic::error(
                "unknown_param",
                format!("--set names {}, which is no param of this pipeline", excerpt(name)),
            );
            diagnostics
                .push(diagnostic.help(
                    did_you_mean(name, "its params are", known).unwrap_or_else(|| "it has no params".to_owned()),
                ));
            return;
        };
        let origin = Origin { param: name.to_owned(), defined: None };
        match set_value(text) {
            Ok(mut value) => {
                place_all(&mut value, slot.raw.span, &origin);
                slot.raw = value;
                slot.overridden = true;
            }
            Err(message) => diagnostics.push(
                Diagnostic::error("bad_set", format!("--set {name}={text}: {message}"))
                    .help("put text in quotes, once for the shell and once for YAML: --set 'name=\"text\"'"),
            ),
        }
    }

    /// Replaces every reference inside `node`, which lies `depth` levels deep.
    pub(crate) fn substitute(&mut self, node: Node, diagnostics: &mut Diagnostics) -> Node {
        self.substitute_at(node, 0, &mut Vec::new(), diagnostics)
    }

    fn substitute_at(
        &mut self,
        node: Node,
        depth: usize,
        chain: &mut Vec<String>,
        diagnostics: &mut Diagnostics,
    ) -> Node {
        let value = match node.value {
            Value::List(items) => Value::List(
                items.into_iter().map(|item| self.substitute_at(item, depth + 1, chain, diagnostics)).collect(),
            ),
            Value::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|entry| Entry {
                        value: self.substitute_at(entry.value, depth + 1, chain, diagnostics),
                        ..entry
                    })
                    .collect(),
            ),
            Value::String(text) if text.contains("${") => {
                let place = Place {
                    span: node.span,
                    from_set: node.origin.as_ref().is_some_and(|origin| origin.defined.is_none()),
                };
                return self.text(&text, &place, node.origin, depth, chain, diagnostics);
            }
            value => value,
        };
        Node { value, ..node }
    }

    /// A text with references: one alone takes its value's type, others become text.
    fn text(
        &mut self,
        text: &str,
        place: &Place,
        origin: Option<Origin>,
        depth: usize,
        chain: &mut Vec<String>,
        diagnostics: &mut Diagnostics,
    ) -> Node {
        let mut joined = Joined::default();
        let mut failed = false;
        for part in parts(text) {
            match part {
                Ok(Part::Text(text)) => joined.push_text(&text),
                Err(bad) => {
                    failed = true;
                    diagnostics.push(place.error(
                        self.file,
                        text,
                        &bad.range,
                        Diagnostic::error("bad_reference", bad.message).help("write $${ where ${ is meant as text"),
                    ));
                }
                Ok(Part::Reference { reference: Reference::Variable(name), range }) => {
                    if (self.env)(name).is_none() {
                        failed = true;
                        let diagnostic = Diagnostic::error(
                            "missing_variable",
                            format!("the environment variable {name} is not set"),
                        );
                        diagnostics.push(place.error(
                            self.file,
                            text,
                            &range,
                            diagnostic.label("not set").help(format!("set it before the run: export {name}=…")),
                        ));
                    }
                    joined.push_secret(&format!("${{env:{name}}}"));
                }
                Ok(Part::Reference { reference: Reference::Param(name), range }) => {
                    let span = place.of(self.file, text, &range);
                    let Some(value) = self.param(name, span, place, chain, diagnostics) else {
                        failed = true;
                        continue;
                    };
                    if range == (0..text.len()) {
                        return self.whole(name, value, place.span, depth, diagnostics);
                    }
                    if let Err(message) = joined.push_value(&value) {
                        failed = true;
                        let diagnostic = Diagnostic::error(
                            "not_text",
                            format!("the param `{name}` is {message}, which can't stand inside a text"),
                        );
                        diagnostics.push(
                            diagnostic.at(span).help("let the reference be the whole value, or give the param text"),
                        );
                    }
                }
            }
        }
        failed |= !self.afford(joined.text.len(), place.span, diagnostics);
        let value = match joined.into_value() {
            _ if failed => Value::Unresolved,
            Ok(value) => value,
            Err(error) => {
                diagnostics.push(Diagnostic::error("bad_reference", error.to_string()).at(place.span));
                Value::Unresolved
            }
        };
        Node { span: place.span, origin, value }
    }

    /// The value of `${name}` as the whole of a value at `span`.
    fn whole(&mut self, name: &str, value: Node, span: Span, depth: usize, diagnostics: &mut Diagnostics) -> Node {
        let (size, height) = extent(&value);
        if depth + height > MAX_DEPTH {
            diagnostics.push(
                Diagnostic::error(
                    "too_deep",
                    format!("with the value of `{name}`, lists and maps nest deeper than {MAX_DEPTH} levels"),
                )
                .at(span),
            );
            return Node::new(span, Value::Unresolved);
        }
        if !self.afford(size, span, diagnostics) {
            return Node::new(span, Value::Unresolved);
        }
        let slot = self.slots.get(name);
        let defined = slot.filter(|slot| !slot.overridden).map(|slot| slot.raw.span);
        Node { span, origin: Some(Origin { param: name.to_owned(), defined }), value: value.value }
    }

    /// The resolved value of a param that is used at `span`.
    fn param(
        &mut self,
        name: &str,
        span: Span,
        place: &Place,
        chain: &mut Vec<String>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Node> {
        let Some(slot) = self.slots.get_mut(name) else {
            let known = self.slots.keys().map(String::as_str);
            let diagnostic = Diagnostic::error("unknown_param", format!("there is no param `{name}`"));
            let diagnostic = if place.from_set { diagnostic } else { diagnostic.at(span) };
            diagnostics.push(
                diagnostic.label("not declared").help(
                    did_you_mean(name, "the params are", known)
                        .unwrap_or_else(|| format!("declare it: params: {{ {name}: … }}")),
                ),
            );
            return None;
        };
        slot.used = true;
        let required = matches!(slot.raw.value, Value::Null) && !slot.overridden;
        if required {
            diagnostics.push(
                Diagnostic::error("param_required", format!("the param `{name}` has no value"))
                    .at(slot.name_span)
                    .label("declared without a value")
                    .help(format!("give one: --set {name}=…")),
            );
            return None;
        }
        self.resolve(name, span, chain, diagnostics).filter(|value| !matches!(value.value, Value::Unresolved))
    }

    /// The value of a declared param with the references inside it replaced.
    fn resolve(
        &mut self,
        name: &str,
        span: Span,
        chain: &mut Vec<String>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Node> {
        let slot = self.slots.get_mut(name)?;
        match &slot.state {
            State::Resolved(value) => return Some(value.clone()),
            State::Resolving => {
                let from = chain.iter().position(|link| link == name).unwrap_or(0);
                let mut links: Vec<String> = chain[from..].iter().map(|link| format!("`{link}`")).collect();
                links.push(format!("`{name}`"));
                diagnostics.push(
                    Diagnostic::error(
                        "param_cycle",
                        format!("the param `{name}` refers to itself: {}", links.join(" → ")),
                    )
                    .at(span)
                    .help("give one of these params a value of its own"),
                );
                return None;
            }
            State::Raw => {}
        }
        let raw = slot.raw.clone();
        if chain.len() >= MAX_DEPTH {
            diagnostics.push(
                Diagnostic::error(
                    "too_deep",
                    format!("params refer to each other through more than {MAX_DEPTH} steps"),
                )
                .at(span),
            );
            return None;
        }
        slot.state = State::Resolving;
        chain.push(name.to_owned());
        let value = self.substitute_at(raw, 0, chain, diagnostics);
        chain.pop();
        let slot = self.slots.get_mut(name)?;
        slot.state = State::Resolved(value.clone());
        Some(value)
    }

    fn afford(&mut self, size: usize, span: Span, diagnostics: &mut Diagnostics) -> bool {
        if self.added > MAX_ADDED {
            return false;
        }
        self.added += size;
        if self.added > MAX_ADDED {
            diagnostics.push(
                Diagnostic::error(
                    "too_large",
                    format!("with its params put in, the pipeline is larger than {MAX_ADDED} bytes"),
                )
                .at(span),
            );
            return false;
        }
        true
    }

    /// All params with their values; findings inside those that nothing uses, and a warning for
    /// each of these.
    pub(crate) fn finish(mut self, diagnostics: &mut Diagnostics) -> IndexMap<String, Param> {
        let names: Vec<String> = self.slots.keys().cloned().collect();
        for name in &names {
            if let Some(span) = self.slots.get(name).map(|slot| slot.name_span) {
                self.resolve(name, span, &mut Vec::new(), diagnostics);
            }
        }
        self.slots
            .into_iter()
            .map(|(name, slot)| {
                if !slot.used {
                    diagnostics.push(
                        Diagnostic::warning("unused_param", format!("nothing uses the param `{name}`"))
                            .at(slot.name_span)
                            .help(format!("use it as \"${{{name}}}\", or remove it")),
                    );
                }
                let value = match slot.state {
                    State::Resolved(value) => value,
                    State::Raw | State::Resolving => Node::new(slot.raw.span, Value::Unresolved),
                };
                let param = Param { name: name.clone(), name_span: slot.name_span, value, overridden: slot.overridden };
                (name, param)
            })
            .collect()
    }
}

/// Where a text with references is written.
struct Place {
    span: Span,
    /// The text came from `--set`, so `span` is only where the param is declared.
    from_set: bool,
}

impl Place {
    /// The place of a part of `text`: by counting the `${` before it in the source, where quotes,
    /// escapes and folding make offsets differ.
    fn of(&self, file: &SourceFile, text: &str, range: &std::ops::Range<usize>) -> Span {
        let raw = file.slice(self.span);
        let before = text[..range.start].matches("${").count();
        match raw.match_indices("${").nth(before) {
            Some((at, _)) if !self.from_set && raw[at..].starts_with(&text[range.clone()]) => {
                Span::new(self.span.start + at, self.span.start + at + range.len())
            }
            _ => self.span,
        }
    }

    fn error(
        &self,
        file: &SourceFile,
        text: &str,
        range: &std::ops::Range<usize>,
        diagnostic: Diagnostic,
    ) -> Diagnostic {
        if self.from_set {
            diagnostic.note(format!("in the value {} given by --set", excerpt(text)))
        } else {
            diagnostic.at(self.of(file, text, range))
        }
    }
}

/// Text that is put together from parts; once a part is secret, all of it is.
#[derive(Default)]
struct Joined {
    /// The parts, with `${` escaped, as a secret's template has it.
    template: String,
    text: String,
    secret: bool,
}

impl Joined {
    fn push_text(&mut self, text: &str) {
        self.text.push_str(text);
        self.template.push_str(&text.replace("${", "$${"));
    }

    fn push_secret(&mut self, template: &str) {
        self.secret = true;
        self.template.push_str(template);
    }

    /// Adds a value as text, or says what it is instead.
    fn push_value(&mut self, value: &Node) -> Result<(), String> {
        match &value.value {
            Value::String(text) => self.push_text(text),
            Value::Bool(bool) => self.push_text(&bool.to_string()),
            Value::Number(number) => self.push_text(&number.text),
            Value::Secret(secret) => self.push_secret(secret.template()),
            Value::Null => return Err("null".to_owned()),
            Value::List(_) | Value::Map(_) | Value::Unresolved => return Err(value.found()),
        }
        Ok(())
    }

    fn into_value(self) -> Result<Value, SecretError> {
        if self.secret { Secret::from_template(self.template).map(Value::Secret) } else { Ok(Value::String(self.text)) }
    }
}

/// The cost of a value and how many levels it has.
fn extent(node: &Node) -> (usize, usize) {
    let inside = |nodes: &mut dyn Iterator<Item = &Node>| {
        nodes.map(extent).fold((NODE_COST, 1), |(size, height), (inner, levels)| (size + inner, height.max(levels + 1)))
    };
    match &node.value {
        Value::List(items) => inside(&mut items.iter()),
        Value::Map(entries) => inside(&mut entries.iter().map(|entry| &entry.value)),
        Value::String(text) => (NODE_COST + text.len(), 0),
        _ => (NODE_COST, 0),
    }
}

/// The value that `--set name=text` gives: YAML where it begins like a quoted text, a list or a map,
/// else one plain scalar, in which `:` and `#` mean nothing.
fn set_value(text: &str) -> Result<Node, String> {
    let trimmed = text.trim();
    if !trimmed.starts_with(['"', '\'', '[', '{']) {
        return match plain_scalar(trimmed) {
            Ok(value) => Ok(Node::new(Span::default(), value)),
            Err((_, message)) => Err(message),
        };
    }
    let mut diagnostics = Diagnostics::new();
    let node = read(&SourceFile::new("--set", trimmed), &mut diagnostics);
    match (node, diagnostics.iter().next()) {
        (Some(node), None) => Ok(node),
        (_, Some(diagnostic)) => Err(diagnostic.message.clone()),
        (None, None) => Err("there is no value".to_owned()),
    }
}

/// Gives a value from elsewhere, and all in it, a place in the file.
fn place_all(node: &mut Node, span: Span, origin: &Origin) {
    node.span = span;
    node.origin = Some(origin.clone());
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| place_all(item, span, origin)),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| {
            entry.key_span = span;
            place_all(&mut entry.value, span, origin);
        }),
        _ => {}
    }
}

pub(crate) fn into_entries(node: Node) -> Vec<Entry> {
    match node.value {
        Value::Map(entries) => entries,
        _ => Vec::new(),
    }
}

pub(crate) fn bad_name(what: &str, name: &str, span: Span) -> Diagnostic {
    Diagnostic::error("bad_name", format!("{} can't be the name of a {what}", excerpt(name)))
        .at(span)
        .help("use letters, digits and `_`, and don't begin with a digit")
}
