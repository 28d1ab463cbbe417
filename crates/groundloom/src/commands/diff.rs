//! `groundloom diff`.

use std::io::Write;

use groundloom_engine::{EngineError, diff};

use crate::{arguments::Diff, failure::Failure};

pub fn run(command: &Diff) -> Result<(), Failure> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let found = diff::diff(&command.old, &command.new, |row| {
        if command.rows {
            let line = serde_json::to_string(&row).map_err(|e| EngineError::Internal(e.to_string()))?;
            writeln!(out, "{line}").map_err(|e| EngineError::io("standard output", e))?;
        }
        Ok(())
    });
    let found = match found {
        // The reader of our output went away.
        Err(EngineError::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            return Err(Failure::OutputClosed);
        }
        other => other.map_err(Failure::from_engine)?,
    };
    if !command.rows {
        serde_json::to_writer(&mut out, &found)?;
        writeln!(out)?;
    }
    out.flush()?;
    say!("{:>12}  rows before, {} after", found.old_rows, found.new_rows);
    for (count, what, by) in [(found.gained, "gained", &found.gained_from), (found.lost, "lost", &found.lost_to)] {
        say!("{count:>12}  {what}");
        for (stage, rows) in by {
            let stage = match (stage.is_empty(), what) {
                (true, "gained") => "the old data set does not know of them",
                (true, _) => "the new data set does not know of them",
                (false, _) => stage,
            };
            say!("{rows:>12}    {stage}");
        }
    }
    say!("{:>12}  changed", found.changed);
    for (column, rows) in &found.changed_columns {
        say!("{rows:>12}    in {column}");
    }
    for (columns, what) in [(&found.columns_gained, "new"), (&found.columns_lost, "gone or of another type")] {
        if !columns.is_empty() {
            say!("              columns {what}: {}", columns.join(", "));
        }
    }
    Ok(())
}
