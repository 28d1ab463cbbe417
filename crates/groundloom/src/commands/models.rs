//! `groundloom models`.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    sync::Arc,
};

use groundloom_models::{
    Comparison, Device, Hub, Outcome, PullProgress, Pulling, describe_embedder, embedded_names, verify,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{arguments::Models, failure::Failure};

pub async fn run(command: &Models) -> Result<(), Failure> {
    match command {
        Models::List => list(),
        Models::Pull { name } => pull(name).await,
        Models::Verify { folder, on } => check(folder, on.open()?),
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

/// Fetches a model; the folder goes to standard output.
async fn pull(name: &str) -> Result<(), Failure> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{msg:>30} {wide_bar:.cyan/blue} {bytes}/{total_bytes}  {eta}") {
        bar.set_style(style);
    }
    let shown = bar.clone();
    let progress: PullProgress = Arc::new(move |pulling: &Pulling| {
        shown.set_message(pulling.file.clone());
        shown.set_length(pulling.total);
        shown.set_position(pulling.done);
    });
    let hub = Hub::from_env().map_err(|e| Failure::Failed(e.to_string()))?;
    let folder = hub.pull(name, progress).await;
    bar.finish_and_clear();
    let folder = folder.map_err(|e| Failure::Failed(e.to_string()))?;
    writeln!(std::io::stdout().lock(), "{}", folder.display())?;
    Ok(())
}

fn check(folder: &Path, device: Device) -> Result<(), Failure> {
    let comparisons = verify(folder, device).map_err(|e| Failure::Failed(e.to_string()))?;
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
            format!("{verdict} {name:<34} {difference:>9.2e} at {place:?}, limit {tolerance:.1e}")
        }
        Outcome::Different(what) => format!("{verdict} {name:<34} {what}"),
        Outcome::Skipped(why) => format!("skip {name:<34} {why}"),
    }
}
