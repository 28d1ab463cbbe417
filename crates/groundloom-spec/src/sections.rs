//! Reading a pipeline file: its sections, and the components in them.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::component_type::Role;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::node::{Entry, Node, Value};
use crate::params::{Params, bad_name, into_entries};
use crate::pipeline::{Component, Spec};
use crate::reference::is_name;
use crate::source::{SourceFile, Span};
use crate::spelling::{did_you_mean, excerpt, nearest};
use crate::yaml;

/// The keys of a pipeline file.
const SECTIONS: [&str; 7] = ["name", "description", "params", "sources", "stages", "sinks", "settings"];

/// Reads a pipeline file.
///
/// `overrides` are the `--set name=value` arguments in order (the last one wins), `env` looks up
/// environment variables; it is asked only whether a secret's variable is set.
///
/// # Errors
/// All findings, if one of them is an error. Warnings alone are in [`Spec::warnings`].
///
/// ```
/// use groundloom_spec::{SourceFile, parse, render};
///
/// let file = std::sync::Arc::new(SourceFile::new("p.yaml", "\
/// params: { input: photos }
/// sources: { pairs: { type: image_folder, path: \"${input}\" } }
/// sinks: { out: { type: parquet, path: \"out/${inptu}\" } }
/// "));
/// let errors = parse(file.clone(), &[], &|_| None).unwrap_err();
/// assert!(render(&file, &errors, false).contains("help: did you mean `input`?"));
/// ```
pub fn parse(
    file: impl Into<Arc<SourceFile>>,
    overrides: &[(String, String)],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Spec, Diagnostics> {
    let (spec, mut diagnostics) = parse_partial(file, overrides, env);
    match spec {
        Some(spec) if !diagnostics.has_errors() => Ok(spec),
        spec => {
            diagnostics.extend(spec.map(|spec| spec.warnings).unwrap_or_default());
            Err(diagnostics)
        }
    }
}

/// Like [`parse`], but gives what could be read beside the errors, so that [`Spec::check_types`] and
/// [`Spec::check_graph`] can add theirs and all are reported at once. The errors don't contain the
/// spec's [warnings](Spec::warnings). Nothing is given for a file that is no YAML map.
pub fn parse_partial(
    file: impl Into<Arc<SourceFile>>,
    overrides: &[(String, String)],
    env: &dyn Fn(&str) -> Option<String>,
) -> (Option<Spec>, Diagnostics) {
    let source = file.into();
    let mut found = Diagnostics::new();
    let spec = Reader { file: &source, diagnostics: &mut found }.spec(overrides, env, &source);
    let (warnings, errors): (Vec<_>, Vec<_>) = found.into_iter().partition(|d| d.severity == crate::Severity::Warning);
    let spec = spec.map(|spec| Spec { warnings: warnings.into_iter().collect(), ..spec });
    (spec, errors.into_iter().collect())
}

struct Reader<'a> {
    file: &'a SourceFile,
    diagnostics: &'a mut Diagnostics,
}

impl Reader<'_> {
    fn spec(
        &mut self,
        overrides: &[(String, String)],
        env: &dyn Fn(&str) -> Option<String>,
        source: &Arc<SourceFile>,
    ) -> Option<Spec> {
        let root = yaml::read(self.file, self.diagnostics)?;
        if !matches!(root.value, Value::Map(_)) {
            self.diagnostics.push(
                Diagnostic::error("not_a_map", format!("a pipeline file is a map of sections, found {}", root.found()))
                    .at(root.span)
                    .help("begin with `sources:`, `stages:` and `sinks:`; see the files in `pipelines/`"),
            );
            return None;
        }
        let mut sections = self.sections(root);
        let mut params = Params::read(
            self.file,
            env,
            sections.shift_remove("params").map(|entry| entry.value),
            overrides,
            self.diagnostics,
        );
        for entry in sections.values_mut() {
            let value = std::mem::replace(&mut entry.value, Node::new(entry.key_span, Value::Null));
            entry.value = params.substitute(value, self.diagnostics);
        }
        let text =
            |reader: &mut Self, entry: Option<Entry>| entry.and_then(|entry| reader.text(&entry.key, entry.value));
        let name = text(self, sections.shift_remove("name"));
        let description = text(self, sections.shift_remove("description"));
        let mut names = IndexMap::new();
        let mut components = |reader: &mut Self, role: Role| match sections.shift_remove(role.section()) {
            Some(entry) => reader.components(role, entry.value, &mut names),
            None => {
                reader.missing_section(role);
                Vec::new()
            }
        };
        let sources = components(self, Role::Source);
        let stages = components(self, Role::Stage);
        let sinks = components(self, Role::Sink);
        Some(Spec {
            name,
            description,
            sources,
            stages,
            sinks,
            settings: sections.shift_remove("settings").map(|entry| entry.value),
            params: params.finish(self.diagnostics),
            warnings: Diagnostics::new(),
            source: source.clone(),
        })
    }

    /// The sections by their right names. One that is mistyped is reported and still read, so that
    /// what it declares isn't reported as missing.
    fn sections(&mut self, root: Node) -> IndexMap<String, Entry> {
        let mut sections = IndexMap::new();
        let mut mistyped = Vec::new();
        for entry in into_entries(root) {
            if SECTIONS.contains(&entry.key.as_str()) {
                let entry = self.section(entry);
                sections.insert(entry.key.clone(), entry);
            } else {
                self.unknown_section(&entry);
                mistyped.push(entry);
            }
        }
        for entry in mistyped {
            if let Some(meant) = nearest(&entry.key, SECTIONS)
                && !sections.contains_key(meant)
            {
                let key = meant.to_owned();
                let entry = self.section(Entry { key, ..entry });
                sections.insert(entry.key.clone(), entry);
            }
        }
        sections
    }

    fn unknown_section(&mut self, entry: &Entry) {
        let diagnostic =
            Diagnostic::error("unknown_key", format!("a pipeline file has no section {}", excerpt(&entry.key)));
        let diagnostic = diagnostic.at(entry.key_span).label("unknown section");
        self.diagnostics.push(match did_you_mean(&entry.key, "the sections are", SECTIONS) {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        });
    }

    /// Checks that a section is a map where it has to be one.
    fn section(&mut self, entry: Entry) -> Entry {
        let is_map = matches!(entry.value.value, Value::Map(_) | Value::Null | Value::Unresolved);
        let is_text = matches!(entry.key.as_str(), "name" | "description");
        let is_reference = entry.key != "params" && entry.value.as_str().is_some_and(|text| text.starts_with("${"));
        if is_map || is_text || is_reference {
            return entry;
        }
        self.diagnostics.push(
            Diagnostic::error("wrong_type", format!("`{}` must be a map, found {}", entry.key, entry.value.found()))
                .at(entry.value.span)
                .label("expected a map")
                .help(section_form(&entry.key)),
        );
        let value = Node::new(entry.value.span, Value::Unresolved);
        Entry { value, ..entry }
    }

    fn missing_section(&mut self, role: Role) {
        if role == Role::Stage {
            return;
        }
        let section = role.section();
        self.diagnostics.push(
            Diagnostic::error("missing_key", format!("the pipeline has no `{section}`")).help(section_form(section)),
        );
    }

    fn text(&mut self, key: &str, value: Node) -> Option<String> {
        match value.value {
            Value::String(text) => Some(text),
            Value::Null | Value::Unresolved => None,
            _ => {
                self.diagnostics.push(
                    Diagnostic::error("wrong_type", format!("`{key}` must be text, found {}", value.found()))
                        .at(value.span)
                        .label("expected text")
                        .help("put it in quotes"),
                );
                None
            }
        }
    }

    fn components(&mut self, role: Role, section: Node, names: &mut IndexMap<String, Span>) -> Vec<Component> {
        let span = section.span;
        if section.value == Value::Unresolved {
            return Vec::new();
        }
        let entries = into_entries(section);
        if entries.is_empty() && role != Role::Stage {
            self.diagnostics.push(
                Diagnostic::error("missing_key", format!("`{}` has no {}", role.section(), role.noun()))
                    .at(span)
                    .help(section_form(role.section())),
            );
        }
        let mut components = Vec::new();
        for entry in entries {
            if !is_name(&entry.key) {
                self.diagnostics.push(bad_name(role.noun(), &entry.key, entry.key_span));
            } else if let Some(first) = names.get(&entry.key) {
                self.diagnostics.push(
                    Diagnostic::error("duplicate_name", format!("the name `{}` is given twice", entry.key))
                        .at(entry.key_span)
                        .label("again here")
                        .note_at(*first, "first here")
                        .help("sources, stages and sinks share one set of names; rename one of them"),
                );
            } else {
                names.insert(entry.key.clone(), entry.key_span);
            }
            components.push(self.component(role, entry));
        }
        components
    }

    /// Reads a component. One that is no map is reported and kept without a type, so that what
    /// reads it isn't reported too.
    fn component(&mut self, role: Role, entry: Entry) -> Component {
        let Entry { key: name, key_span: name_span, value } = entry;
        let mut component = Component {
            role,
            kind: String::new(),
            kind_span: name_span,
            inputs: Vec::new(),
            checkpoint: false,
            config: Node { value: Value::Unresolved, ..value.clone() },
            span: name_span.cover(value.span),
            name,
            name_span,
        };
        if !matches!(value.value, Value::Map(_)) {
            self.not_a_component(&component, &value);
            return component;
        }
        let mut rest = Vec::new();
        let mut typed = false;
        for entry in into_entries(value) {
            match entry.key.as_str() {
                "type" => {
                    typed = true;
                    self.kind(&mut component, entry.value);
                }
                "input" if role == Role::Source => self.diagnostics.push(
                    Diagnostic::error("unknown_key", "a source has no `input`")
                        .at(entry.key_span)
                        .label("unknown key")
                        .help("what reads another component is a stage; put it under `stages`"),
                ),
                "input" => component.inputs = self.inputs(entry.value),
                "checkpoint" if role == Role::Stage => {
                    component.checkpoint = self.checkpoint(&entry.value);
                }
                _ => rest.push(entry),
            }
        }
        if !typed {
            self.untyped(&component, &rest);
        }
        component.config.value = Value::Map(rest);
        component
    }

    fn not_a_component(&mut self, component: &Component, value: &Node) {
        if value.value == Value::Unresolved {
            return;
        }
        let span = if value.span.start < value.span.end { value.span } else { component.name_span };
        self.diagnostics.push(
            Diagnostic::error("wrong_type", format!("{} must be a map, found {}", component.title(), value.found()))
                .at(span)
                .label("expected a map")
                .help(format!("write {}: {{ type: …, … }}", component.name)),
        );
    }

    fn kind(&mut self, component: &mut Component, value: Node) {
        if value.span.start < value.span.end {
            component.kind_span = value.span;
        }
        match value.value {
            Value::String(kind) if !kind.is_empty() => component.kind = kind,
            Value::Unresolved => {}
            _ => self.diagnostics.push(
                Diagnostic::error(
                    "wrong_type",
                    format!("the `type` of {} must be a name, found {}", component.title(), value.found()),
                )
                .at(component.kind_span)
                .label("expected a name")
                .help("`groundloom stages` lists the types"),
            ),
        }
    }

    fn untyped(&mut self, component: &Component, rest: &[Entry]) {
        let missing = Diagnostic::error("missing_key", format!("{} has no `type`", component.title()));
        let mistyped = rest.iter().find(|entry| nearest(&entry.key, ["type"]).is_some());
        self.diagnostics.push(match mistyped {
            Some(entry) => missing.at(entry.key_span).help("did you mean `type`?"),
            None => missing.at(component.name_span).help("`groundloom stages` lists the types"),
        });
    }

    fn inputs(&mut self, value: Node) -> Vec<(String, Span)> {
        let span = value.span;
        let names = match value.value {
            Value::List(items) => items,
            value => vec![Node::new(span, value)],
        };
        if names.is_empty() {
            self.diagnostics.push(
                Diagnostic::error("wrong_length", "`input` names nothing")
                    .at(span)
                    .help("leave `input` out to read the one above"),
            );
        }
        let mut inputs: Vec<(String, Span)> = Vec::new();
        for node in names {
            match node.value {
                Value::String(name) => match inputs.iter().find(|(first, _)| *first == name) {
                    Some((_, first)) => self.diagnostics.push(
                        Diagnostic::error("duplicate_item", format!("{} is an input twice", excerpt(&name)))
                            .at(node.span)
                            .label("again here")
                            .note_at(*first, "first here")
                            .help("remove one of them"),
                    ),
                    None => inputs.push((name, node.span)),
                },
                Value::Unresolved => {}
                _ => self.diagnostics.push(
                    Diagnostic::error(
                        "wrong_type",
                        format!("`input` must be a name or a list of names, found {}", node.found()),
                    )
                    .at(node.span)
                    .label("expected a name")
                    .help("write input: name, or input: [name, name]; without `input`, the one above is read"),
                ),
            }
        }
        inputs
    }

    fn checkpoint(&mut self, value: &Node) -> bool {
        match value.value {
            Value::Bool(checkpoint) => checkpoint,
            Value::Unresolved => false,
            _ => {
                self.diagnostics.push(
                    Diagnostic::error(
                        "wrong_type",
                        format!("`checkpoint` must be `true` or `false`, found {}", value.found()),
                    )
                    .at(value.span)
                    .label("expected `true` or `false`"),
                );
                false
            }
        }
    }
}

fn section_form(section: &str) -> String {
    match section {
        "params" => "write params: { name: value }".to_owned(),
        "settings" => "write settings: { name: value }".to_owned(),
        section => format!("write {section}: {{ name: {{ type: …, … }} }}"),
    }
}
