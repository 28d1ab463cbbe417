//! `groundloom index eval`, `stats`, `dedup`, `export`.

use std::io::{BufWriter, Write};

use groundloom_index::{Index, Position};
use serde_json::json;

use super::{
    arguments::{self, ExportForm},
    failure, open,
};
use crate::failure::Failure;

/// Decides which rows are searched for.
const SEED: u64 = 1;

pub fn eval(command: &arguments::Eval) -> Result<(), Failure> {
    let index = open(&command.index)?;
    let mut out = std::io::stdout().lock();
    for (place, column) in index.manifest().columns.iter().enumerate() {
        let recall = index.recall(place, command.k, command.queries, SEED).map_err(failure)?;
        writeln!(
            out,
            "{}",
            json!({ "column": column.name, "k": recall.k, "queries": recall.queries, "recall": recall.recall })
        )?;
    }
    if let Some([first, second]) = command.pair.as_deref() {
        let place = |name: &str| index.manifest().column(Some(name)).map_err(failure);
        let (a, b) = (place(first)?, place(second)?);
        for (queries, gallery) in [(a, b), (b, a)] {
            let found = index.retrieval(queries, gallery).map_err(failure)?;
            let name = |place: usize| &index.manifest().columns[place].name;
            writeln!(
                out,
                "{}",
                json!({ "queries": name(queries), "gallery": name(gallery), "rows": found.rows, "recall@1": found.recall_at_1,
                        "recall@5": found.recall_at_5, "recall@10": found.recall_at_10, "median_rank": found.median_rank })
            )?;
        }
    }
    Ok(())
}

pub fn stats(command: &arguments::Stats) -> Result<(), Failure> {
    let index = open(&command.index)?;
    if command.verify {
        index.verify().map_err(failure)?;
    }
    let manifest = index.manifest();
    let columns: Vec<_> = manifest
        .columns
        .iter()
        .enumerate()
        .map(|(place, column)| {
            let segments = manifest.segments.iter().filter_map(|s| s.columns.get(place));
            let bytes: u64 = segments.clone().map(|s| s.file.bytes).sum();
            let tuned: Vec<_> = segments.filter_map(|s| s.tuning).collect();
            json!({
                "name": column.name, "dims": column.dims, "metric": column.metric, "coding": column.settings.coding,
                "model": column.model, "bytes": bytes, "tuned": tuned,
            })
        })
        .collect();
    let deleted: usize = manifest.segments.iter().filter_map(|s| s.deleted.as_ref()).map(|d| d.rows).sum();
    let line = json!({
        "index": command.index.display().to_string(), "generation": manifest.generation, "rows": index.rows(),
        "deleted": deleted, "segments": manifest.segments.len(), "key": manifest.key,
        "bytes": manifest.files().map(|f| f.bytes).sum::<u64>(), "verified": command.verify, "columns": columns,
    });
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

pub fn dedup(command: &arguments::Dedup) -> Result<(), Failure> {
    let index = open(&command.index)?;
    let column = index.manifest().column(command.column.as_deref()).map_err(failure)?;
    let groups = index.near_duplicates(column, command.score, command.exact).map_err(failure)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut more = 0;
    for group in &groups {
        let keys = keys(&index, group)?;
        more += keys.len() - 1;
        serde_json::to_writer(&mut out, &json!({ "keep": keys.first(), "duplicates": keys.get(1..) }))?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    say!("{} groups; {more} of {} rows are near-duplicates of one that is kept", groups.len(), index.rows());
    Ok(())
}

pub fn export(command: &arguments::Export) -> Result<(), Failure> {
    let index = open(&command.index)?;
    let column = index.manifest().column(command.column.as_deref()).map_err(failure)?;
    let plain =
        !command.name.is_empty() && command.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !plain {
        return Err(Failure::Usage(format!("--name {:?}: expected letters, digits, _ and -", command.name)));
    }
    let rows = match command.form {
        ExportForm::Npy => index.export_npy(column, &command.name, &command.output),
        ExportForm::Faiss => index.export_faiss(column, &command.name, &command.output),
        ExportForm::Fromage => {
            std::fs::create_dir_all(&command.output)?;
            index.export_fromage(column, &command.paths, &command.output.join("cc3m_embeddings.pkl"))
        }
    };
    let rows = rows.map_err(failure)?;
    Ok(writeln!(
        std::io::stdout().lock(),
        "{}",
        json!({ "exported": rows, "folder": command.output.display().to_string() })
    )?)
}

fn keys(index: &Index, group: &[Position]) -> Result<Vec<serde_json::Value>, Failure> {
    let key = index.manifest().key.clone();
    let rows = index.rows_at(group, Some(std::slice::from_ref(&key))).map_err(failure)?;
    let rows = groundloom_index::as_json(&rows).map_err(failure)?;
    Ok(rows.into_iter().map(|mut row| row.remove(&key).unwrap_or_default()).collect())
}
