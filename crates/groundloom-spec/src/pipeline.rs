//! A pipeline as it was read: its components, and their configs as typed values.

use std::sync::Arc;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::component_type::{Config, Role};
use crate::decode;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::node::{Node, Value};
use crate::params::Param;
use crate::schema_check::SchemaCheck;
use crate::source::{SourceFile, Span};

/// A pipeline file, read: params are put in, components are named and typed, and what each component
/// is configured with stays a [`Node`] until [`Component::decode`].
#[derive(Clone, Debug)]
pub struct Spec {
    /// The pipeline's name.
    pub name: Option<String>,
    /// What the pipeline is for.
    pub description: Option<String>,
    /// The params with their values in this run, in the order of the file.
    pub params: IndexMap<String, Param>,
    /// Where rows come from, in the order of the file.
    pub sources: Vec<Component>,
    /// What is done to rows, in the order of the file.
    pub stages: Vec<Component>,
    /// Where rows go, in the order of the file.
    pub sinks: Vec<Component>,
    /// The `settings` section; decode it with [`Spec::decode_settings`].
    pub settings: Option<Node>,
    /// Findings that don't keep the pipeline from running.
    pub warnings: Diagnostics,
    /// The file that all spans point into.
    pub source: Arc<SourceFile>,
}

/// A source, a stage or a sink as it's written.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// The section it stands in.
    pub role: Role,
    /// Its name: unique in the file, letters, digits and `_`.
    pub name: String,
    /// Where the name is written.
    pub name_span: Span,
    /// The value of `type:`; empty if it's missing or no text (which is reported).
    pub kind: String,
    /// Where the type is written; the name's place if it's missing.
    pub kind_span: Span,
    /// The names in `input:` and their places; empty means the component above. A reader that finds
    /// inputs elsewhere (the tables of an `sql` query) may put them here before
    /// [`Spec::check_graph`].
    pub inputs: Vec<(String, Span)>,
    /// `checkpoint: true`: the graph is cut behind this stage.
    pub checkpoint: bool,
    /// The other keys, as a map.
    pub config: Node,
    /// From the name to the end of the last value.
    pub span: Span,
}

impl Spec {
    /// All components: sources, then stages, then sinks, each in the order of the file.
    pub fn components(&self) -> impl Iterator<Item = &Component> {
        self.sources.iter().chain(&self.stages).chain(&self.sinks)
    }

    /// The component of this name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components().find(|component| component.name == name)
    }

    /// The `settings` section as a typed value; an absent section is an empty map, so that the
    /// type's defaults apply.
    ///
    /// # Errors
    /// All findings, as for [`Component::decode`].
    pub fn decode_settings<T: DeserializeOwned + JsonSchema>(&self) -> Result<T, Diagnostics> {
        let absent = Node::new(Span::empty(0), Value::Map(Vec::new()));
        let node = match &self.settings {
            Some(node) if node.value != Value::Null => node,
            _ => &absent,
        };
        decode::decode(node, "the settings", &[], node.span)
    }
}

impl Component {
    /// The component's config as its typed value.
    ///
    /// The config is checked against the JSON Schema of `T` first, which finds everything that is
    /// wrong at once; what the schema can't say (`#[serde(try_from)]`) is found by serde after that.
    ///
    /// # Errors
    /// All findings. The list is empty if the config holds a [`Value::Unresolved`], whose error
    /// [`parse_partial`](crate::parse_partial) has given.
    pub fn decode<T: Config>(&self) -> Result<T, Diagnostics> {
        decode::decode(&self.config, &self.title(), self.own_keys(), self.name_span)
    }

    /// The place of the value at a path like `where` or `columns[0]`; the component's name if the
    /// file has no such value (a default), or only an empty one.
    pub fn span_of(&self, path: &str) -> Span {
        match path {
            "type" => self.kind_span,
            "input" => self.inputs.first().map_or(self.name_span, |(_, span)| *span),
            "" => self.name_span,
            path => self
                .config
                .at(path)
                .map(|node| node.span)
                .filter(|span| span.start < span.end)
                .unwrap_or(self.name_span),
        }
    }

    /// An error about the value at `path`, with a remark if a param brought the value.
    ///
    /// ```
    /// # use groundloom_spec::*;
    /// # let file = SourceFile::new("p.yaml", "\
    /// # sources: { pairs: { type: jsonl, path: a } }
    /// # sinks: { out: { type: parquet, columns: [caption, imgae] } }
    /// # ");
    /// # let spec = parse(file, &[], &|_| None)?;
    /// # let component = &spec.sinks[0];
    /// let finding = component
    ///     .diagnostic("columns[1]", "unknown_column", "there is no column `imgae`")
    ///     .help("did you mean `image`?");
    /// # assert_eq!(spec.source.slice(finding.span.unwrap()), "imgae");
    /// # Ok::<(), Diagnostics>(())
    /// ```
    pub fn diagnostic(&self, path: &str, code: &'static str, message: impl Into<String>) -> Diagnostic {
        let diagnostic = Diagnostic::error(code, message).at(self.span_of(path));
        match self.config.at(path) {
            Some(node) => decode::with_origin(diagnostic, node),
            None => diagnostic,
        }
    }

    /// Checks the config against a JSON Schema; see [`Component::decode`].
    pub(crate) fn check(&self, schema: &serde_json::Value) -> Diagnostics {
        SchemaCheck::new(schema, &self.title(), self.own_keys()).run(&self.config, self.name_span)
    }

    /// The keys that are the component's own and not its config's.
    fn own_keys(&self) -> &'static [&'static str] {
        match self.role {
            Role::Source => &["type"],
            Role::Stage => &["type", "input", "checkpoint"],
            Role::Sink => &["type", "input"],
        }
    }

    /// The component in messages: ``stage `chunks` ``.
    pub fn title(&self) -> String {
        format!("{} `{}`", self.role.noun(), self.name)
    }
}

/// The pipeline as it was resolved, for a manifest: params put in, secrets as their `${env:NAME}`
/// text, comments and places gone.
impl Serialize for Spec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        if let Some(name) = &self.name {
            map.serialize_entry("name", name)?;
        }
        if let Some(description) = &self.description {
            map.serialize_entry("description", description)?;
        }
        for (section, components) in [("sources", &self.sources), ("stages", &self.stages), ("sinks", &self.sinks)] {
            let components: IndexMap<&str, &Component> =
                components.iter().map(|component| (component.name.as_str(), component)).collect();
            map.serialize_entry(section, &components)?;
        }
        if let Some(settings) = &self.settings {
            map.serialize_entry("settings", settings)?;
        }
        map.end()
    }
}

impl Serialize for Component {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &self.kind)?;
        if !self.inputs.is_empty() {
            let names: Vec<&str> = self.inputs.iter().map(|(name, _)| name.as_str()).collect();
            map.serialize_entry("input", &names)?;
        }
        if self.checkpoint {
            map.serialize_entry("checkpoint", &true)?;
        }
        for entry in self.config.entries() {
            map.serialize_entry(&entry.key, &entry.value)?;
        }
        map.end()
    }
}
