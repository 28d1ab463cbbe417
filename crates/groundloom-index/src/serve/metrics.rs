//! Counters for `/metrics`, in Prometheus' text format.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Upper ends of the time buckets, in seconds.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, f64::INFINITY];

/// What a server has done.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    answers: Mutex<BTreeMap<(String, u16), u64>>,
    buckets: [AtomicU64; BUCKETS.len()],
    nanoseconds: AtomicU64,
    pub(crate) queries: AtomicU64,
    pub(crate) reloads: AtomicU64,
    pub(crate) failed_reloads: AtomicU64,
}

impl Metrics {
    /// Counts an answer. `route` is one of the API's own, so that there are few of them.
    pub(crate) fn answered(&self, route: &str, status: u16, took: Duration) {
        if let Ok(mut answers) = self.answers.lock() {
            *answers.entry((route.to_owned(), status)).or_default() += 1;
        }
        let at = BUCKETS.iter().position(|end| took.as_secs_f64() <= *end).unwrap_or(BUCKETS.len() - 1);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The text of `/metrics`.
    pub(crate) fn render(&self, rows: usize, generation: u64) -> String {
        let mut out = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| {
            let _ = out.write_fmt(text);
            out.push('\n');
        };
        line(format_args!("# TYPE groundloom_index_answers_total counter"));
        if let Ok(answers) = self.answers.lock() {
            for ((route, status), count) in answers.iter() {
                line(format_args!("groundloom_index_answers_total{{route=\"{route}\",status=\"{status}\"}} {count}"));
            }
        }
        line(format_args!("# TYPE groundloom_index_answer_seconds histogram"));
        let mut sum = 0;
        for (end, count) in BUCKETS.iter().zip(&self.buckets) {
            sum += count.load(Ordering::Relaxed);
            let end = if end.is_finite() { end.to_string() } else { "+Inf".to_owned() };
            line(format_args!("groundloom_index_answer_seconds_bucket{{le=\"{end}\"}} {sum}"));
        }
        let seconds = self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        line(format_args!("groundloom_index_answer_seconds_sum {seconds}"));
        line(format_args!("groundloom_index_answer_seconds_count {sum}"));
        for (name, kind, value) in [
            ("queries_total", "counter", self.queries.load(Ordering::Relaxed)),
            ("reloads_total", "counter", self.reloads.load(Ordering::Relaxed)),
            ("failed_reloads_total", "counter", self.failed_reloads.load(Ordering::Relaxed)),
            ("rows", "gauge", rows as u64),
            ("generation", "gauge", generation),
        ] {
            line(format_args!("# TYPE groundloom_index_{name} {kind}"));
            line(format_args!("groundloom_index_{name} {value}"));
        }
        out
    }
}
