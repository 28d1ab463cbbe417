//! `groundloom schema`.

use std::io::Write;

use groundloom_engine::{
    catalogue::component_types,
    contract,
    graph::{Graph, Work},
    settings::Settings,
};
use groundloom_spec::pipeline_schema;
use serde_json::{Map, Value, json};

use crate::{arguments::SchemaOf, commands::checked, failure::Failure};

pub async fn run(command: SchemaOf) -> Result<(), Failure> {
    let schema = match command.pipeline() {
        None => pipeline_schema::<Settings>(component_types()),
        Some(pipeline) => rows(&checked(&pipeline).await?.1),
    };
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &schema)?;
    writeln!(out)?;
    Ok(())
}

/// The columns of every sink's rows.
fn rows(graph: &Graph) -> Value {
    let sinks: Map<String, Value> = graph
        .nodes
        .iter()
        .filter(|n| matches!(n.work, Work::Sink(_)))
        .map(|n| (n.name.to_string(), json!({ "type": n.kind, "columns": contract::columns(&n.schema) })))
        .collect();
    json!({ "pipeline": graph.name, "sinks": sinks })
}
