//! `groundloom quarantine`.

use std::{collections::BTreeMap, io::Write};

use groundloom_engine::{provenance::Kind, quarantine, retries, run::Plan};
use serde_json::Value;

use crate::{
    arguments::{Machine, Quarantine, QuarantineShow, RunFile},
    commands::checked,
    failure::Failure,
};

pub async fn run(command: Quarantine, machine: Machine) -> Result<(), Failure> {
    match command {
        Quarantine::Show(command) => show(&command),
        Quarantine::Retry(command) => retry(command, machine).await,
    }
}

async fn retry(command: RunFile, machine: Machine) -> Result<(), Failure> {
    let (file, graph) = checked(&command.pipeline).await?;
    let plan = Plan::new(graph.clone(), machine.is_limited()).map_err(|e| Failure::of(&file, e))?;
    let prepared = retries::prepare(&plan).map_err(|e| Failure::of(&file, e))?;
    match prepared.rows {
        0 => say!("no finished task has failed rows to try again"),
        rows => say!("trying {rows} failed row{} again", if rows == 1 { "" } else { "s" }),
    }
    let plan = Plan::new(graph, machine.is_limited()).map_err(|e| Failure::of(&file, e))?;
    super::run::work(&file, &plan, machine, command.offline).await
}

fn show(command: &QuarantineShow) -> Result<(), Failure> {
    let (_, files) = groundloom_engine::provenance::published(&command.output).map_err(Failure::from_engine)?;
    let mut out = std::io::stdout().lock();
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut left = command.limit.unwrap_or(usize::MAX);
    for file in files.iter().filter(|f| f.kind == Kind::Quarantined) {
        for rows in quarantine::rows(&file.path).map_err(Failure::from_engine)? {
            for row in rows.map_err(Failure::from_engine)? {
                let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                let (stage, code) = (text("stage"), text("code"));
                let wanted = |asked: &Option<String>, is: &String| asked.as_ref().is_none_or(|a| a == is);
                if !wanted(&command.stage, &stage) || !wanted(&command.code, &code) {
                    continue;
                }
                *counts.entry((stage, code)).or_default() += 1;
                if left > 0 {
                    left -= 1;
                    serde_json::to_writer(&mut out, &row)?;
                    writeln!(out)?;
                }
            }
        }
    }
    if counts.is_empty() {
        say!("no row in quarantine");
    }
    for ((stage, code), rows) in &counts {
        say!("{rows:>12}  {stage}: {code}");
    }
    Ok(())
}
