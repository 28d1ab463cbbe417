//! `groundloom quarantine`.

use std::{collections::BTreeMap, io::Write};

use groundloom_engine::{provenance::Kind, quarantine};
use serde_json::Value;

use crate::{
    arguments::{Quarantine, QuarantineShow},
    failure::Failure,
};

pub fn run(command: Quarantine) -> Result<(), Failure> {
    match command {
        Quarantine::Show(command) => show(&command),
    }
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
        eprintln!("no row in quarantine");
    }
    for ((stage, code), rows) in &counts {
        eprintln!("{rows:>12}  {stage}: {code}");
    }
    Ok(())
}
