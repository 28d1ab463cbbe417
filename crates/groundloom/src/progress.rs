//! Progress: a bar on a terminal, plain lines elsewhere, JSON on request.

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use groundloom_engine::{
    run::{Event, Observer},
    telemetry::{Reading, Telemetry},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::arguments::LogFormat;

/// Between two plain lines.
const EVERY: Duration = Duration::from_secs(10);

/// An observer that shows what happens, and what to call when it is over.
pub fn observer(format: LogFormat, telemetry: Arc<Telemetry>) -> (Observer, Box<dyn FnOnce()>) {
    match format {
        LogFormat::Json => json_lines(telemetry),
        LogFormat::Text if std::io::stderr().is_terminal() => bar(telemetry),
        LogFormat::Text => lines(telemetry),
    }
}

/// Rows per second and windows in flight of the stages that work, since an earlier reading.
fn rates(before: &Reading, now: &Reading, seconds: f64) -> String {
    let rows = |name: &str| before.stages.iter().find(|s| s.stage == name).map_or(0, |s| s.rows);
    let busy = now.stages.iter().filter(|s| s.in_flight > 0 || s.rows > rows(&s.stage));
    let text = busy.map(|s| {
        let rate = (s.rows - rows(&s.stage)) as f64 / seconds.max(1e-3);
        format!("{} {rate:.0} rows/s ({} in flight)", s.stage, s.in_flight)
    });
    text.collect::<Vec<_>>().join(", ")
}

fn bar(telemetry: Arc<Telemetry>) -> (Observer, Box<dyn FnOnce()>) {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(
        "{msg:>14} {wide_bar:.cyan/blue} {pos}/{len} tasks  {prefix} rows  {elapsed} (about {eta} left)",
    ) {
        bar.set_style(style);
    }
    let rows = AtomicU64::new(0);
    let last = Mutex::new((Instant::now(), Reading::default()));
    let segment_name = Mutex::new(String::new());
    let shown = bar.clone();
    let observer: Observer = Arc::new(move |event| match event {
        Event::Planned { tasks, reused } => {
            shown.set_length(tasks as u64);
            shown.set_position(reused as u64);
        }
        Event::SegmentStarted { segment, .. } => {
            shown.set_message(segment.to_string());
            *segment_name.lock().unwrap_or_else(PoisonError::into_inner) = segment.to_string();
        }
        Event::Rows { rows: more } => {
            let all = rows.fetch_add(more, Ordering::Relaxed) + more;
            shown.set_prefix(all.to_string());
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.0.elapsed() >= Duration::from_secs(1) {
                let now = telemetry.read();
                let stages = rates(&last.1, &now, last.0.elapsed().as_secs_f64());
                let name = segment_name.lock().unwrap_or_else(PoisonError::into_inner);
                shown.set_message(if stages.is_empty() { name.clone() } else { stages });
                *last = (Instant::now(), now);
            }
            shown.tick();
        }
        Event::TaskDone { .. } => shown.inc(1),
        Event::Publishing { sink } => shown.set_message(format!("writing {sink}")),
    });
    (observer, Box::new(move || bar.finish_and_clear()))
}

fn lines(telemetry: Arc<Telemetry>) -> (Observer, Box<dyn FnOnce()>) {
    struct State {
        tasks: usize,
        done: usize,
        rows: u64,
        last: Instant,
        before: Reading,
        reused: usize,
        started: Instant,
    }
    let now = Instant::now();
    let state = Mutex::new(State {
        tasks: 0,
        done: 0,
        rows: 0,
        last: now,
        before: Reading::default(),
        reused: 0,
        started: now,
    });
    let observer: Observer = Arc::new(move |event| {
        let mut s = state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned { tasks, reused } => {
                (s.tasks, s.done, s.reused) = (tasks, reused, reused);
                say!("{tasks} task{}, {reused} done by an earlier run", if tasks == 1 { "" } else { "s" });
            }
            Event::SegmentStarted { segment, tasks, .. } => {
                say!("{segment}: {tasks} task{} to do", if tasks == 1 { "" } else { "s" });
            }
            Event::Rows { rows } => s.rows += rows,
            Event::TaskDone { .. } => s.done += 1,
            Event::Publishing { sink } => say!("{sink}: writing files, card and report"),
        }
        if s.last.elapsed() >= EVERY {
            let seconds = s.started.elapsed().as_secs_f64();
            let now = telemetry.read();
            let stages = rates(&s.before, &now, s.last.elapsed().as_secs_f64());
            let stages = if stages.is_empty() { stages } else { format!("; {stages}") };
            say!(
                "{}/{} tasks, {} rows, {:.0} rows/s{}{stages}",
                s.done,
                s.tasks,
                s.rows,
                s.rows as f64 / seconds,
                left(s.done - s.reused, s.tasks - s.done, seconds)
            );
            (s.last, s.before) = (Instant::now(), now);
        }
    });
    (observer, Box::new(|| {}))
}

/// How long the rest takes if tasks go on as they did.
fn left(done: usize, to_do: usize, seconds: f64) -> String {
    if done == 0 {
        return String::new();
    }
    let left = Duration::from_secs_f64(seconds / done as f64 * to_do as f64);
    format!(", about {} left", indicatif::HumanDuration(left))
}

fn json_lines(telemetry: Arc<Telemetry>) -> (Observer, Box<dyn FnOnce()>) {
    let last = Mutex::new(Instant::now());
    let observer: Observer = Arc::new(move |event| {
        json_line(&event);
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= EVERY {
            *last = Instant::now();
            say!("{}", json!({ "event": "measured", "reading": telemetry.read() }));
        }
    });
    (observer, Box::new(|| {}))
}

fn json_line(event: &Event) {
    let line = match event {
        Event::Planned { tasks, reused } => json!({ "event": "planned", "tasks": tasks, "reused": reused }),
        Event::SegmentStarted { segment, tasks, rows } => {
            json!({ "event": "segment_started", "segment": segment, "tasks": tasks, "rows": rows })
        }
        // One line per batch would drown the rest.
        Event::Rows { .. } => return,
        Event::TaskDone { segment, bytes } => json!({ "event": "task_done", "segment": segment, "bytes": bytes }),
        Event::Publishing { sink } => json!({ "event": "publishing", "sink": sink }),
    };
    say!("{line}");
}
