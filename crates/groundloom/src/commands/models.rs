//! `groundloom models`.

use std::{io::Write, path::Path};

use groundloom_models::{Comparison, Outcome, describe_embedder, embedded_names, verify};

use crate::{arguments::Models, failure::Failure};

pub fn run(command: &Models) -> Result<(), Failure> {
    match command {
        Models::List => list(),
        Models::Verify { folder } => check(folder),
    }
}

fn list() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for name in embedded_names() {
        let info = describe_embedder(name).map_err(|e| Failure::Failed(e.to_string()))?;
        let takes = match (info.texts, info.images) {
            (true, true) => "texts and images",
            (true, false) => "texts",
            (false, _) => "images",
        };
        writeln!(
            out,
            "{name:<26} {:<16} embeds {takes}, {} values; {}; sha256 {}",
            info.architecture,
            info.dims,
            info.licence,
            &info.weights_sha256[..12]
        )?;
    }
    writeln!(
        out,
        "\nAny folder in Hugging Face layout is a model too: give its path where a model is named. Architectures: {}.",
        groundloom_models::ARCHITECTURES
    )?;
    Ok(())
}

fn check(folder: &Path) -> Result<(), Failure> {
    let comparisons = verify(folder).map_err(|e| Failure::Failed(e.to_string()))?;
    let mut out = std::io::stdout().lock();
    for comparison in &comparisons {
        writeln!(out, "{}", row(comparison))?;
    }
    let failed = comparisons.iter().filter(|comparison| !comparison.passed()).count();
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!(
            "{failed} of {} outputs of {} differ from the reference",
            comparisons.len(),
            folder.display()
        ))),
    }
}

fn row(comparison: &Comparison) -> String {
    let verdict = if comparison.passed() { "ok  " } else { "FAIL" };
    let name = &comparison.name;
    match &comparison.outcome {
        Outcome::Compared { difference, place, tolerance } => {
            format!("{verdict} {name:<34} {difference:>9.2e} at {place:?}, limit {tolerance:e}")
        }
        Outcome::Different(what) => format!("{verdict} {name:<34} {what}"),
        Outcome::Skipped(why) => format!("skip {name:<34} {why}"),
    }
}
