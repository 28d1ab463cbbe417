//! Progress: a bar on a terminal, plain lines elsewhere, JSON on request.

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use groundloom_engine::run::{Event, Observer};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::arguments::LogFormat;

/// Between two plain lines.
const EVERY: Duration = Duration::from_secs(10);

/// An observer that shows what happens, and what to call when it is over.
pub fn observer(format: LogFormat) -> (Observer, Box<dyn FnOnce()>) {
    match format {
        LogFormat::Json => (Arc::new(|event| json_line(&event)), Box::new(|| {})),
        LogFormat::Text if std::io::stderr().is_terminal() => bar(),
        LogFormat::Text => lines(),
    }
}

fn bar() -> (Observer, Box<dyn FnOnce()>) {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(
        "{msg:>14} {wide_bar:.cyan/blue} {pos}/{len} tasks  {prefix} rows  {elapsed} (about {eta} left)",
    ) {
        bar.set_style(style);
    }
    let rows = AtomicU64::new(0);
    let shown = bar.clone();
    let observer: Observer = Arc::new(move |event| match event {
        Event::Planned { tasks, reused } => {
            shown.set_length(tasks as u64);
            shown.set_position(reused as u64);
        }
        Event::SegmentStarted { segment, .. } => shown.set_message(segment.to_string()),
        Event::Rows { rows: more } => {
            let all = rows.fetch_add(more, Ordering::Relaxed) + more;
            shown.set_prefix(all.to_string());
            shown.tick();
        }
        Event::TaskDone { .. } => shown.inc(1),
        Event::Publishing { sink } => shown.set_message(format!("writing {sink}")),
    });
    (observer, Box::new(move || bar.finish_and_clear()))
}

fn lines() -> (Observer, Box<dyn FnOnce()>) {
    struct State {
        tasks: usize,
        done: usize,
        rows: u64,
        last: Instant,
        started: Instant,
    }
    let now = Instant::now();
    let state = Mutex::new(State { tasks: 0, done: 0, rows: 0, last: now, started: now });
    let observer: Observer = Arc::new(move |event| {
        let mut s = state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned { tasks, reused } => {
                (s.tasks, s.done) = (tasks, reused);
                eprintln!("{tasks} task{}, {reused} done by an earlier run", if tasks == 1 { "" } else { "s" });
            }
            Event::SegmentStarted { segment, tasks, .. } => {
                eprintln!("{segment}: {tasks} task{} to do", if tasks == 1 { "" } else { "s" });
            }
            Event::Rows { rows } => s.rows += rows,
            Event::TaskDone { .. } => s.done += 1,
            Event::Publishing { sink } => eprintln!("{sink}: writing files, card and report"),
        }
        if s.last.elapsed() >= EVERY {
            s.last = Instant::now();
            let seconds = s.started.elapsed().as_secs_f64();
            eprintln!("{}/{} tasks, {} rows, {:.0} rows/s", s.done, s.tasks, s.rows, s.rows as f64 / seconds);
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
    eprintln!("{line}");
}
