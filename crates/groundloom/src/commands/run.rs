//! `groundloom run`.

use std::{collections::BTreeMap, sync::Arc};

use groundloom_engine::{
    generation::Manifest,
    run::{self, Plan, RunOptions, SinkSummary, Summary},
    telemetry::{Reading, Telemetry},
};
use groundloom_llm::{BudgetState, Clients, Spending};
use groundloom_spec::SourceFile;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::{LogFormat, Machine, RunFile},
    commands::checked,
    failure::Failure,
    metrics, progress,
};

pub async fn run(command: RunFile, machine: Machine) -> Result<(), Failure> {
    let (file, graph) = checked(&command.pipeline).await?;
    let plan = Plan::new(graph, machine.is_limited()).map_err(|e| Failure::of(&file, e))?;
    work(&file, &plan, machine, command.offline).await
}

/// Runs a plan and says what came of it; `offline` asks no language model.
pub(super) async fn work(file: &Arc<SourceFile>, plan: &Plan, machine: Machine, offline: bool) -> Result<(), Failure> {
    crate::memory::give_free_pages_back();
    let stop = CancellationToken::new();
    watch_signals(stop.clone());
    let telemetry = Arc::new(Telemetry::default());
    let options = RunOptions {
        threads: machine.threads,
        memory_bytes: machine.memory.map(|m| usize::try_from(m).unwrap_or(usize::MAX)),
        stop,
        telemetry: Arc::clone(&telemetry),
        clients: Arc::new(Clients::new(offline)),
    };
    if let Some(address) = machine.metrics {
        metrics::serve(address, Arc::clone(&telemetry)).await?;
    }
    let (observer, finish) = progress::observer(machine.log, Arc::clone(&telemetry));
    let outcome = run::run(plan, &options, observer).await;
    // Requests that are on their way are paid for: their answers are kept, also when the run failed.
    options.clients.settled().await;
    finish();
    let spending = options.clients.spending();
    if spending.any() && machine.log == LogFormat::Text {
        say!("\nLanguage models: {spending}");
        for budget in options.clients.budgets() {
            say!("  {budget}");
        }
    }
    let summary = outcome.map_err(|e| Failure::of(file, e))?;
    match machine.log {
        LogFormat::Text => print(&summary, &telemetry.read()),
        LogFormat::Json => {
            say!("{}", as_json(&summary, &telemetry.read(), &spending, &options.clients.budgets()));
        }
    }
    Ok(())
}

/// Once: tasks under way are finished, if they can be soon, and committed work stays. Twice: at once.
pub fn watch_signals(stop: CancellationToken) {
    tokio::spawn(async move {
        wait_for_signal().await;
        say!(
            "stopping: the tasks under way get {} s, what is finished is kept (once more to stop at once)",
            RunOptions::GRACE.as_secs()
        );
        stop.cancel();
        wait_for_signal().await;
        std::process::exit(130);
    });
}

async fn wait_for_signal() {
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        return;
    }
    let _ = tokio::signal::ctrl_c().await;
}

fn print(summary: &Summary, measured: &Reading) {
    if summary.sinks.iter().all(|s| s.up_to_date) {
        for sink in &summary.sinks {
            say!(
                "{} is up to date: {} rows, nothing to do ({:.2} s)",
                shown(sink),
                sink.manifest.rows,
                summary.seconds
            );
        }
        return;
    }
    for sink in &summary.sinks {
        print_sink(sink);
    }
    print_times(measured);
    let reused = match summary.tasks_reused {
        0 => String::new(),
        n => format!(", {n} task{} reused from an earlier run", if n == 1 { "" } else { "s" }),
    };
    let (rows, seconds) = (summary.rows_read, summary.seconds);
    match rows {
        // Joins, sorts and their like read for themselves, or what an earlier run had read.
        0 => say!("\nDone in {seconds:.1} s{reused}"),
        _ => say!("\n{rows} rows read in {seconds:.1} s ({:.0} rows/s){reused}", rows as f64 / seconds.max(1e-9)),
    }
    if let Some(sink) = summary.sinks.first() {
        let path = shown(sink);
        say!("Output: {path}");
        if sink.url.is_some() {
            let own = sink.path.display();
            say!("Next: the card (README.md) and the manifest name its files; a copy of all is in {own}");
        } else if sink.manifest.files.iter().any(|f| f.path == "report.html") {
            say!(
                "Next: open {path}/report.html in a browser, or load the rows in Python: datasets.load_dataset(\"{path}\")"
            );
        }
    }
}

/// Where the time went: stages, then models.
fn print_times(measured: &Reading) {
    let worked = |seconds: f64, n: u64| if n > 0 { n as f64 / seconds.max(1e-9) } else { 0.0 };
    if measured.stages.iter().any(|s| s.rows > 0) {
        say!("\nTime of the stages (windows side by side are added up)");
    }
    for stage in measured.stages.iter().filter(|s| s.rows > 0) {
        let rate = worked(stage.seconds, stage.rows);
        say!("  {:>9.1} s  {:>10.0} rows/s  {}", stage.seconds, rate, stage.stage);
    }
    for model in measured.models.iter().filter(|m| m.batches > 0) {
        say!(
            "  {:>9.1} s  {:>10.0} items/s  model {}: {:.1} items a batch, waited {:.1} s{}{}",
            model.busy_seconds,
            worked(model.busy_seconds, model.items),
            model.model,
            model.items as f64 / model.batches as f64,
            model.wait_seconds,
            if model.loads > 1 { format!(", loaded {} times", model.loads) } else { String::new() },
            match model.did_not_fit {
                0 => String::new(),
                n => format!(", {n} batches were too large for its device's memory and were halved"),
            }
        );
    }
}

/// The path as a person would type it.
fn shown(sink: &SinkSummary) -> String {
    if let Some(url) = &sink.url {
        return url.clone();
    }
    let here = std::env::current_dir().ok();
    let relative = here.and_then(|h| sink.path.strip_prefix(h).ok().map(std::path::Path::to_owned));
    relative.unwrap_or_else(|| sink.path.clone()).display().to_string()
}

fn print_sink(sink: &SinkSummary) {
    let Manifest { funnel, rows, quarantined, rejected, .. } = &sink.manifest;
    let read: u64 = funnel.first().map_or(*rows, |f| f.rows_in);
    let dropped: BTreeMap<String, u64> = groundloom_formats::card::dropped_by_reason(funnel);
    say!("\n{}", sink.manifest.sink);
    say!("  {:>12}  rows in", read);
    say!("  {:>12}  kept", rows);
    for (reason, n) in dropped.iter().filter(|(_, n)| **n > 0) {
        say!("  {n:>12}  dropped: {reason}");
    }
    if *rejected > 0 {
        say!("  {rejected:>12}  of the dropped are in _rejected/");
    }
    let bad: u64 = quarantined.values().sum();
    say!("  {bad:>12}  quarantined{}", if bad > 0 { " (see _quarantine/)" } else { "" });
    for (code, n) in quarantined {
        say!("  {n:>12}    {code}");
    }
    for stage in funnel {
        let counts: Vec<String> =
            stage.counts.iter().map(|(what, n)| format!("{} {n}", what.replace('_', " "))).collect();
        if !counts.is_empty() {
            say!("  {}: {}", stage.stage, counts.join(", "));
        }
    }
}

fn as_json(summary: &Summary, measured: &Reading, spending: &Spending, budgets: &[BudgetState]) -> serde_json::Value {
    let sinks: Vec<_> = summary
        .sinks
        .iter()
        .map(|s| json!({ "sink": s.manifest.sink, "path": s.path, "url": s.url, "rows": s.manifest.rows, "up_to_date": s.up_to_date, "quarantined": s.manifest.quarantined, "funnel": s.manifest.funnel }))
        .collect();
    json!({
        "event": "finished",
        "seconds": summary.seconds,
        "rows_read": summary.rows_read,
        "tasks_done": summary.tasks_done,
        "tasks_reused": summary.tasks_reused,
        "sinks": sinks,
        "measured": measured,
        "language_models": spending,
        "budgets": budgets,
    })
}
