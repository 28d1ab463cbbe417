//! `groundloom why`.

use std::io::Write;

use groundloom_engine::{
    provenance::{self, Found, Kind, SearchedFile, Unwritten},
    run::Plan,
};
use serde_json::{Value, json};

use crate::{
    arguments::{Machine, PipelineFile, Why},
    commands::checked,
    failure::Failure,
};

pub async fn run(command: Why, machine: Machine) -> Result<(), Failure> {
    let ids = provenance::candidates(&command.row);
    let (files, plan, left) = if command.target.is_dir() {
        let (_, files) = provenance::published(&command.target).map_err(Failure::from_engine)?;
        (files, None, 0)
    } else {
        let pipeline = PipelineFile { file: command.target.clone(), params: command.params };
        let (file, graph) = checked(&pipeline).await?;
        let plan = Plan::new(graph, machine.is_limited()).map_err(|e| Failure::of(&file, e))?;
        let (files, left) = of_plan(&plan)?;
        (files, Some(plan), left)
    };
    let mut found = provenance::find(&files, &ids).map_err(Failure::from_engine)?;
    // Where a row ended says more than where it passed.
    if found.iter().any(|f| f.kind != Kind::OnTheWay) {
        found.retain(|f| f.kind != Kind::OnTheWay);
    }
    let mut out = std::io::stdout().lock();
    for row in &found {
        say!("{}", told(row));
        serde_json::to_writer(&mut out, &as_json(row))?;
        writeln!(out)?;
    }
    if !found.is_empty() {
        return Ok(());
    }
    let said = match &plan {
        Some(plan) => provenance::unwritten(plan, &ids).map_err(Failure::from_engine)?,
        None => Vec::new(),
    };
    for unwritten in &said {
        let (text, value) = without_row(&command.row, unwritten);
        say!("{text}");
        serde_json::to_writer(&mut out, &value)?;
        writeln!(out)?;
    }
    if said.iter().any(|s| !matches!(s, Unwritten::Unaccounted { .. })) {
        return Ok(());
    }
    let hint = match (&plan, left) {
        (None, _) => "; name the pipeline file instead of the folder to ask about rows that are not reached yet, were not sampled or were skipped unread".to_owned(),
        (Some(_), 0) => String::new(),
        (Some(_), left) => format!("; {left} tasks of the pipeline are still to do"),
    };
    Err(Failure::Failed(format!("nothing says what became of `{}`{hint}", command.row)))
}

/// The published generations that are current, else what the run has committed so far.
fn of_plan(plan: &Plan) -> Result<(Vec<SearchedFile>, usize), Failure> {
    let mut files = Vec::new();
    let mut current = true;
    for ((segment, ..), target) in plan.sinks().zip(plan.targets().map_err(Failure::from_engine)?) {
        match target.is_current(&plan.generation(segment)).map_err(Failure::from_engine)? {
            Some(_) => {
                let (_, published) = provenance::published(target.path()).map_err(Failure::from_engine)?;
                let root = target.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                files.extend(published.into_iter().map(|f| SearchedFile { name: format!("{root}/{}", f.name), ..f }));
            }
            None => current = false,
        }
    }
    if current {
        return Ok((files, 0));
    }
    let (left, files) = provenance::unfinished(plan).map_err(Failure::from_engine)?;
    Ok((files, left))
}

fn told(row: &Found) -> String {
    let id = &row.row_id;
    match row.kind {
        Kind::Kept => format!("{id} is kept: row {} of {}", row.row, row.file),
        Kind::OnTheWay => format!("{id} has come through `{}`; what lies behind it is not done yet", row.file),
        Kind::Quarantined => {
            format!("{id} failed in `{}`: {}: {}", row.text("stage"), row.text("code"), row.text("message"))
        }
        Kind::Dropped | Kind::Rejected => {
            let values: Vec<String> = row.told().iter().map(|(what, value)| format!("{what} = {value}")).collect();
            let values = if values.is_empty() { String::new() } else { format!(" ({})", values.join(", ")) };
            format!("{id} was dropped by `{}`: {}{values}", row.text("stage"), row.reason())
        }
    }
}

fn as_json(row: &Found) -> Value {
    match row.kind {
        Kind::Kept => json!({ "row_id": row.row_id, "fate": "kept", "file": row.file, "row": row.row }),
        Kind::OnTheWay => json!({ "row_id": row.row_id, "fate": "on_the_way", "through": row.file }),
        Kind::Quarantined => json!({
            "row_id": row.row_id, "fate": "quarantined", "stage": row.text("stage"), "code": row.text("code"),
            "message": row.text("message"), "file": row.file,
        }),
        Kind::Dropped | Kind::Rejected => json!({
            "row_id": row.row_id, "fate": "dropped", "stage": row.text("stage"), "reason": row.reason(),
            "values": row.told().into_iter().map(|(k, v)| (k.to_owned(), v.clone())).collect::<serde_json::Map<_, _>>(),
            "file": row.file,
        }),
    }
}

fn without_row(row: &str, unwritten: &Unwritten) -> (String, Value) {
    match unwritten {
        Unwritten::NotSampled { stage, drawn, fraction } => (
            format!(
                "{row} was dropped by `{stage}`, if it came so far: it drew {drawn:.6}, and fewer than {fraction} stay"
            ),
            json!({ "fate": "dropped", "stage": stage, "reason": "not_sampled", "values": { "drawn": drawn, "fraction": fraction } }),
        ),
        Unwritten::NotReached { source, file } => (
            format!(
                "{row} is not reached yet: its part of {file} (source `{source}`) is still to do; run the pipeline"
            ),
            json!({ "fate": "not_reached", "source": source, "file": file }),
        ),
        Unwritten::Skipped { stage, predicate, file } => (
            format!(
                "{row} was dropped by `{stage}`, if {file} holds such a row: the statistics of its part of the file say that no row there meets {predicate}, so it was not read"
            ),
            json!({ "fate": "dropped", "stage": stage, "reason": "skipped_by_statistics", "file": file }),
        ),
        Unwritten::LeftOut { row_id, through, stage, kind, asked } => (
            match kind.as_str() {
                "limit" => format!(
                    "{row_id} was left out by `{stage}`: it came through `{through}` behind the first {asked} rows"
                ),
                _ => format!(
                    "{row_id} came through `{through}` and was left out by `{stage}`, or went into a row with an id of its own there: {}",
                    asked.as_str().unwrap_or_default()
                ),
            },
            json!({ "row_id": row_id, "fate": "left_out", "stage": stage, "through": through, "asked": asked }),
        ),
        Unwritten::NotNeeded { source, file } => (
            format!("{row} was not read: limits had enough rows before its part of {file} (source `{source}`)"),
            json!({ "fate": "not_needed", "source": source, "file": file }),
        ),
        Unwritten::Unaccounted { file, suspects } => {
            let lost = if suspects.is_empty() {
                "such a row does not exist".to_owned()
            } else {
                format!(
                    "such a row does not exist, or {} left it out (limits, and queries that look at several rows at once, do not name the rows they lose)",
                    suspects.join(", ")
                )
            };
            (
                format!("{file} is an input, but {lost}"),
                json!({ "fate": "unaccounted", "file": file, "suspects": suspects }),
            )
        }
    }
}
