//! `groundloom plan`.

use std::io::Write;

use groundloom_engine::{
    run::{Plan, Reuse, TaskInput},
    segment::{Base, SegmentWork},
};
use groundloom_formats::card::type_name;
use serde_json::json;

use crate::{
    arguments::{Machine, PlanFile},
    commands::{calls, checked},
    failure::Failure,
};

pub async fn run(command: PlanFile, machine: Machine) -> Result<(), Failure> {
    let (file, graph) = checked(&command.pipeline).await?;
    let plan = Plan::new(graph, machine.is_limited()).map_err(|e| Failure::of(&file, e))?;
    let targets = plan.targets().map_err(|e| Failure::of(&file, e))?;
    let reuse = targets.first().map(|target| plan.reuse(target.work())).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    if command.json {
        serde_json::to_writer_pretty(&mut out, &as_json(&plan, &reuse, &calls::expected(&plan).await))?;
        writeln!(out)?;
        return Ok(());
    }
    let nodes = &plan.graph.nodes;
    writeln!(out, "Columns")?;
    for node in nodes {
        let reads: Vec<&str> = node.inputs.iter().map(|i| nodes[*i].name.as_ref()).collect();
        let arrow = if reads.is_empty() { String::new() } else { format!(" ← {}", reads.join(", ")) };
        writeln!(out, "  {} ({}){arrow}", node.name, node.kind)?;
        // Only what is new or changed: a long row of columns would be read by nobody.
        let before = node.inputs.first().map(|i| nodes[*i].schema.clone());
        for field in node.schema.fields() {
            let known = before
                .as_ref()
                .and_then(|s| s.field_with_name(field.name()).ok())
                .is_some_and(|f| f.data_type() == field.data_type());
            if !known {
                writeln!(out, "      {}: {}", field.name(), type_name(field))?;
            }
        }
    }
    writeln!(out, "\nSegments")?;
    for ((id, segment), Reuse { committed: done, why }) in plan.segments.all.iter().enumerate().zip(&reuse) {
        let tasks = &plan.tasks[id];
        let base = |base: &Base| match base {
            Base::Source(node) => nodes[*node].name.to_string(),
            Base::Segment(segment) => nodes[plan.segments.all[*segment].node].name.to_string(),
        };
        let steps: Vec<String> = match &segment.work {
            SegmentWork::Rows { base: from, chain, sink } => std::iter::once(base(from))
                .chain(chain.iter().map(|n| nodes[*n].name.to_string()))
                .chain(sink.iter().map(|n| nodes[*n].name.to_string()))
                .collect(),
            SegmentWork::Set { node, inputs } => {
                vec![inputs.iter().map(base).collect::<Vec<_>>().join(" + "), nodes[*node].name.to_string()]
            }
        };
        writeln!(out, "  {}. {}", id + 1, steps.join(" → "))?;
        let bytes: u64 = tasks.iter().map(|t| if let TaskInput::Shard(s) = &t.input { s.bytes } else { 0 }).sum();
        let size = if bytes > 0 { format!(", {:.1} MB of input", bytes as f64 / 1e6) } else { String::new() };
        writeln!(
            out,
            "     {} task{}{size}; {done} done already, {} to do",
            tasks.len(),
            if tasks.len() == 1 { "" } else { "s" },
            tasks.len() - done
        )?;
        for reason in why {
            writeln!(out, "     not reused: {reason}")?;
        }
    }
    let calls = calls::expected(&plan).await;
    if !calls.is_empty() {
        writeln!(out, "\nLanguage models (answers that are in the store cost nothing)")?;
    }
    for call in &calls {
        writeln!(out, "  {call}")?;
    }
    for budget in calls::budgets(&plan) {
        writeln!(out, "  {budget}")?;
    }
    writeln!(out, "\nOutput")?;
    for ((segment, node, sink), target) in plan.sinks().zip(&targets) {
        let state = match target.is_current(&plan.generation(segment)).map_err(|e| Failure::of(&file, e))? {
            Some(manifest) => format!("up to date, {} rows", manifest.rows),
            None if target.published().ok().flatten().is_some() => {
                "holds an older generation, which stays until the new one is whole".to_owned()
            }
            None => "new".to_owned(),
        };
        writeln!(out, "  {}: {} ({state})", nodes[node].name, sink.path())?;
    }
    Ok(())
}

fn as_json(plan: &Plan, reuse: &[Reuse], calls: &[calls::Calls]) -> serde_json::Value {
    let nodes: Vec<_> = plan
        .graph
        .nodes
        .iter()
        .map(|n| {
            let columns: Vec<_> =
                n.schema.fields().iter().map(|f| json!({ "name": f.name(), "type": type_name(f) })).collect();
            let inputs: Vec<_> = n.inputs.iter().map(|i| &plan.graph.nodes[*i].name).collect();
            json!({ "name": n.name, "type": n.kind, "inputs": inputs, "columns": columns })
        })
        .collect();
    let segments: Vec<_> = plan
        .segments
        .all
        .iter()
        .zip(&plan.tasks)
        .zip(reuse)
        .map(|((s, tasks), Reuse { committed, why })| {
            json!({
                "node": plan.graph.nodes[s.node].name, "fingerprint": s.fingerprint, "tasks": tasks.len(), "committed": committed, "not_reused": why,
            })
        })
        .collect();
    json!({ "name": plan.graph.name, "nodes": nodes, "segments": segments, "language_models": calls, "budgets": calls::budgets(plan) })
}
