//! A checked pipeline: every component decoded, every column and type known, before any work starts.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    datasource::{empty::EmptyTable, provider_as_source},
    execution::context::SessionContext,
    logical_expr::{LogicalPlan, LogicalPlanBuilder},
};
use groundloom_data::columns::{ERROR, ROW_ID, column, error_type};
use groundloom_formats::{DiscoverOptions, Discovery, FormatError, Reader, Sink, Source, store::Stores};
use groundloom_models::{DeviceChoice, Devices};
use groundloom_spec::{Component, Diagnostic, Diagnostics, Spec};
use groundloom_stages::stage::Stage;
use serde_json::Value;

use crate::{
    catalogue::{self, Decoded},
    nodes::dedup,
    plan::{self, Refusal},
    relation::{Dedup, Filter, Limit, Sample, Shuffle},
    session,
    settings::Settings,
};

/// Index of a node in [`Graph::nodes`].
pub type NodeId = usize;

/// What a node does.
#[derive(Debug, Clone)]
pub enum Work {
    /// Reads a source.
    Source {
        /// The config.
        source: Arc<dyn Source>,
        /// What it found.
        discovery: Discovery,
    },
    /// A row-wise stage.
    Stage(Arc<dyn Stage>),
    /// A named filter.
    Filter(Filter),
    /// A random sample.
    Sample(Sample),
    /// The first rows; a set stage.
    Limit(Limit),
    /// Without repeats; a set stage.
    Dedup(Dedup),
    /// In a random order; a set stage.
    Shuffle(Shuffle),
    /// A query; row-wise or a set stage.
    Sql {
        /// The query.
        query: String,
        /// Whether rows pass through one by one.
        row_wise: bool,
    },
    /// Writes a data set.
    Sink(Arc<dyn Sink>),
}

/// A source, stage or sink of a checked pipeline.
#[derive(Debug, Clone)]
pub struct Node {
    /// The name in the pipeline file.
    pub name: Arc<str>,
    /// Its `type:`.
    pub kind: Arc<str>,
    /// Its canonical config, for fingerprints and plans.
    pub config: Value,
    /// The nodes it reads, in the order of the file.
    pub inputs: Vec<NodeId>,
    /// The nodes that read it.
    pub readers: Vec<NodeId>,
    /// What it does.
    pub work: Work,
    /// The columns of its rows: `row_id`, then the user's; what is written, for a sink.
    pub schema: SchemaRef,
    /// Whether its rows can carry an error.
    pub fallible: bool,
    /// Whether the user asked for its result to be kept.
    pub checkpoint: bool,
}

impl Node {
    /// Whether the node needs all of its input at once.
    pub fn is_set(&self) -> bool {
        matches!(self.work, Work::Limit(_) | Work::Dedup(_) | Work::Shuffle(_) | Work::Sql { row_wise: false, .. })
    }
}

/// A checked pipeline.
#[derive(Debug, Clone)]
pub struct Graph {
    /// The pipeline's name.
    pub name: String,
    /// What the file says it is for.
    pub description: Option<String>,
    /// The file's text, for the data-set card.
    pub text: String,
    /// `settings:` of the file.
    pub settings: Settings,
    /// Where its models compute.
    pub devices: Devices,
    /// Every node behind its inputs.
    pub nodes: Vec<Node>,
    /// What is odd but allowed.
    pub warnings: Diagnostics,
    /// The object stores its sources and sinks stand on.
    pub stores: Stores,
}

/// Checks a pipeline file: types, names, columns, inputs. Nothing is written.
///
/// # Errors
/// All that is wrong, with places.
pub async fn check(spec: &Spec, stores: &Stores) -> Result<Graph, Diagnostics> {
    let session = checking_session();
    let mut spec = spec.clone();
    let mut found = spec.warnings.clone();
    found.collect(spec.check_types(catalogue::component_types()));
    for stage in spec.stages.iter_mut().filter(|s| s.kind == "sql") {
        found.collect(name_tables(&session, stage));
    }
    let order = found.collect(spec.check_graph());
    let settings = found.collect(spec.decode_settings::<Settings>()).unwrap_or_default();
    let devices = found.collect(devices(&spec, &settings)).unwrap_or_default();
    let Some(order) = order.filter(|_| !found.has_errors()) else { return Err(found) };
    found.extend(order.warnings.clone());
    let mut checker = Checker { found, nodes: Vec::new(), by_name: HashMap::new(), session };
    let options = DiscoverOptions { shard_bytes: settings.shard_bytes(), ..DiscoverOptions::default() };
    for planned in &order.nodes {
        let Some(component) = spec.component(&planned.name) else { continue };
        let inputs: Option<Vec<NodeId>> =
            planned.inputs.iter().map(|name| checker.by_name.get(name.as_str()).copied()).collect();
        // A node whose input has errors of its own is not blamed for them.
        let Some(inputs) = inputs else { continue };
        if let Some(node) = checker.node(component, inputs, stores, &options).await {
            checker.by_name.insert(component.name.clone(), checker.nodes.len());
            checker.nodes.push(node);
        }
    }
    let Checker { found, mut nodes, .. } = checker;
    for id in 0..nodes.len() {
        for input in nodes[id].inputs.clone() {
            nodes[input].readers.push(id);
        }
    }
    let graph = Graph {
        name: spec.name.clone().unwrap_or_else(|| file_stem(&spec.source.name)),
        description: spec.description.clone(),
        text: spec.source.text.clone(),
        settings,
        devices,
        nodes,
        warnings: found.clone(),
        stores: stores.clone(),
    };
    found.into_result(graph)
}

/// The devices that the settings ask for, which are there.
fn devices(spec: &Spec, settings: &Settings) -> Result<Devices, Diagnostics> {
    let choices: Vec<DeviceChoice> = settings.devices.iter().map(|name| name.0).collect();
    let node = spec.settings.as_ref().and_then(|settings| settings.get("devices"));
    let at = |diagnostic: Diagnostic, node: Option<&groundloom_spec::Node>| match node {
        Some(node) => diagnostic.at(node.span),
        None => diagnostic,
    };
    let mut found = Diagnostics::new();
    for (i, choice) in choices.iter().enumerate() {
        if let Err(error) = choice.device() {
            let item = node.and_then(|node| node.items().get(i)).or(node);
            found.push(at(Diagnostic::error("no_device", error.to_string()), item));
        }
    }
    found.into_result(())?;
    Devices::open(&choices).map_err(|error| at(Diagnostic::error("no_device", error.to_string()), node).into())
}

/// Puts the tables that a query reads where other stages have their `input:`.
fn name_tables(session: &SessionContext, stage: &mut Component) -> Result<(), Diagnostics> {
    // Anything but text has been reported against the schema already.
    let Some(query) = stage.config.get("query").and_then(|q| q.as_str()) else { return Ok(()) };
    if !stage.inputs.is_empty() {
        return Err(stage
            .diagnostic("input", "input_of_query", "a query names its inputs itself: it reads nodes as tables")
            .help("take `input:` away")
            .into());
    }
    let names =
        plan::tables(session, query).map_err(|r| Diagnostics::from(stage.diagnostic("query", r.code, r.message)))?;
    if names.is_empty() {
        return Err(stage.diagnostic("query", "no_table", "the query reads no node of the pipeline").into());
    }
    let span = stage.span_of("query");
    stage.inputs = names.into_iter().map(|name| (name, span)).collect();
    Ok(())
}

fn file_stem(name: &str) -> String {
    std::path::Path::new(name).file_stem().map_or_else(|| "pipeline".to_owned(), |s| s.to_string_lossy().into_owned())
}

fn checking_session() -> SessionContext {
    session::context(Arc::new(datafusion::execution::runtime_env::RuntimeEnv::default()), None, false)
}

struct Checker {
    found: Diagnostics,
    nodes: Vec<Node>,
    /// The nodes without errors, by name.
    by_name: HashMap<String, NodeId>,
    session: SessionContext,
}

impl Checker {
    async fn node(
        &mut self,
        component: &Component,
        inputs: Vec<NodeId>,
        stores: &Stores,
        options: &DiscoverOptions,
    ) -> Option<Node> {
        let (decoded, config) = self.found.collect(catalogue::decode(component))?;
        if !matches!(decoded, Decoded::Sql(_) | Decoded::Source(_)) && inputs.len() != 1 {
            self.found.push(
                component
                    .diagnostic(
                        "input",
                        "several_inputs",
                        format!("`{}` reads one node, not {}", component.kind, inputs.len()),
                    )
                    .help("join or unite nodes with a stage of `type: sql`"),
            );
            return None;
        }
        let input = inputs.first().map(|id| self.nodes[*id].clone());
        let fallible_input = input.as_ref().is_some_and(|n| n.fallible);
        let (work, schema, fallible) = match (decoded, input) {
            (Decoded::Source(source), _) => {
                let discovery = match source.discover(stores, options).await {
                    Ok(discovery) => discovery,
                    Err(error) => {
                        self.found.push(source_diagnostic(component, &error));
                        return None;
                    }
                };
                let reserved = discovery.schema.fields().iter().find(|f| f.name() == ERROR || f.name() == ROW_ID);
                if let Some(field) = reserved.filter(|f| {
                    f.name() == ERROR
                        || !matches!(discovery.reader, Reader::Parquet)
                        || f.data_type() != &DataType::Utf8
                }) {
                    self.found.push(component.diagnostic(
                        "path",
                        "reserved_column",
                        format!("the source has a column `{}`, a name that Groundloom keeps for itself; rename it in the data", field.name()),
                    ));
                    return None;
                }
                let fallible = matches!(discovery.reader, Reader::Rows(_));
                let schema = with_row_id(&discovery.schema);
                (Work::Source { source, discovery }, schema, fallible)
            }
            (Decoded::Stage(stage), Some(input)) => match stage.outputs(&input.schema) {
                Ok(outputs) => {
                    let schema = crate::nodes::stage::output_schema(&input.schema, &outputs);
                    let schema = crate::nodes::stage::visible_schema(&schema);
                    (Work::Stage(stage), Arc::new(schema), true)
                }
                Err(error) => {
                    self.found.push(match error.key {
                        // No column would mend it.
                        "model" => component.diagnostic(error.key, "model", error.message),
                        key => component.diagnostic(key, "column", error.message).note(columns_note(&input)),
                    });
                    return None;
                }
            },
            (Decoded::Filter(filter), Some(input)) => {
                let plan = placeholder(&input);
                let checked = plan::filter(&self.session, &component.name, &filter, plan)
                    .and_then(|p| plan::analyse(&self.session, &p));
                if let Err(refusal) = checked {
                    self.refuse(component, "where", &refusal, std::slice::from_ref(&input));
                    return None;
                }
                let fallible = input.fallible || filter.keep_rejected;
                (Work::Filter(filter), Arc::clone(&input.schema), fallible)
            }
            (Decoded::Sample(sample), Some(input)) => (Work::Sample(sample), Arc::clone(&input.schema), fallible_input),
            (Decoded::Limit(limit), Some(input)) => (Work::Limit(limit), Arc::clone(&input.schema), false),
            (Decoded::Dedup(dedup), Some(input)) => {
                if let Err(refusal) = comparable(&dedup, &input.schema) {
                    self.refuse(component, "by", &refusal, std::slice::from_ref(&input));
                    return None;
                }
                (Work::Dedup(dedup), Arc::clone(&input.schema), false)
            }
            (Decoded::Shuffle(shuffle), Some(input)) => (Work::Shuffle(shuffle), Arc::clone(&input.schema), false),
            (Decoded::Sql(sql), _) => {
                let tables: Vec<(Arc<str>, LogicalPlan)> = inputs
                    .iter()
                    .map(|id| (Arc::clone(&self.nodes[*id].name), placeholder(&self.nodes[*id])))
                    .collect();
                match plan::sql(&component.name, &sql.query, &tables).await {
                    Ok(planned) => {
                        let schema =
                            with_row_id(&crate::nodes::stage::visible_schema(planned.plan.schema().as_arrow()));
                        (
                            Work::Sql { query: sql.query, row_wise: planned.row_wise },
                            schema,
                            planned.row_wise && fallible_input,
                        )
                    }
                    Err(refusal) => {
                        let nodes: Vec<Node> = inputs.iter().map(|id| self.nodes[*id].clone()).collect();
                        self.refuse(component, "query", &refusal, &nodes);
                        return None;
                    }
                }
            }
            (Decoded::Sink(sink), Some(_)) if unwritable(sink.path()).is_some() => {
                let message = unwritable(sink.path()).unwrap_or_default();
                self.found.push(component.diagnostic("path", "unwritable", message));
                return None;
            }
            (Decoded::Sink(sink), Some(input)) => match sink.schema(&input.schema) {
                Ok(schema) => (Work::Sink(sink), schema, false),
                Err(error) => {
                    let key = if let FormatError::Input { key, .. } = &error { key } else { "type" };
                    self.found.push(component.diagnostic(key, "column", error.to_string()).note(columns_note(&input)));
                    return None;
                }
            },
            (_, None) => return None,
        };
        Some(Node {
            name: component.name.as_str().into(),
            kind: component.kind.as_str().into(),
            config,
            inputs,
            readers: Vec::new(),
            work,
            schema,
            fallible,
            checkpoint: component.checkpoint,
        })
    }

    fn refuse(&mut self, component: &Component, path: &str, refusal: &Refusal, inputs: &[Node]) {
        let mut diagnostic = component.diagnostic(path, refusal.code, refusal.message.clone());
        if let Some(unknown) = &refusal.unknown_column {
            let known: Vec<&str> =
                inputs.iter().flat_map(|n| n.schema.fields().iter().map(|f| f.name().as_str())).collect();
            diagnostic.help = groundloom_spec::did_you_mean(unknown, "the columns are", known);
        }
        for input in inputs {
            diagnostic = diagnostic.note(columns_note(input));
        }
        self.found.push(diagnostic);
    }
}

/// Whether rows can be told apart by these columns.
fn comparable(config: &Dedup, schema: &Schema) -> Result<(), Refusal> {
    if config.by.is_empty() {
        return Err(Refusal::new("no_column", "expected at least one column, found none"));
    }
    for name in &config.by {
        let Ok(field) = schema.field_with_name(name) else {
            return Err(Refusal::unknown_column(name));
        };
        if !dedup::is_comparable(field.data_type()) {
            let message = format!(
                "rows cannot be compared by `{name}`, which is of type {}",
                groundloom_formats::card::type_name(field)
            );
            return Err(Refusal::new("type", message));
        }
    }
    Ok(())
}

/// Why nothing can be written to a location, by its form alone.
fn unwritable(path: &str) -> Option<String> {
    match Stores::is_remote(path) {
        Ok(true) if path.starts_with("http") => Some(format!(
            "a web server cannot be written to: expected a local path or an s3, gs or az URL, found `{path}`"
        )),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

fn source_diagnostic(component: &Component, error: &FormatError) -> Diagnostic {
    let key = if let FormatError::Input { key, .. } = error { key } else { "path" };
    component.diagnostic(key, "source", error.to_string())
}

fn columns_note(node: &Node) -> String {
    let columns: Vec<String> = node
        .schema
        .fields()
        .iter()
        .map(|f| format!("{} ({})", f.name(), groundloom_formats::card::type_name(f)))
        .collect();
    format!("`{}` has the columns {}", node.name, columns.join(", "))
}

/// The user's columns with the row id in front.
pub fn with_row_id(schema: &Schema) -> SchemaRef {
    let mut fields = vec![Arc::new(Field::new(ROW_ID, DataType::Utf8, false))];
    fields.extend(schema.fields().iter().filter(|f| f.name() != ROW_ID).cloned());
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// A table without rows that has a node's columns.
fn placeholder(node: &Node) -> LogicalPlan {
    let mut fields = node.schema.fields().to_vec();
    if node.fallible {
        fields.push(column(ERROR, error_type()));
    }
    let table = Arc::new(EmptyTable::new(Arc::new(Schema::new_with_metadata(fields, node.schema.metadata().clone()))));
    LogicalPlanBuilder::scan(node.name.as_ref(), provider_as_source(table), None)
        .and_then(LogicalPlanBuilder::build)
        .unwrap_or_else(|_| LogicalPlan::default())
}
