//! What the benches of pipelines share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use groundloom_engine::{
    graph,
    run::{self, Plan, RunOptions},
};
use groundloom_formats::store::Stores;
use groundloom_spec::SourceFile;
use tokio_util::sync::CancellationToken;

/// Runs a pipeline file on all cores; gives the rows of its first sink.
pub async fn run_pipeline(text: String) -> u64 {
    let spec = groundloom_spec::parse(SourceFile::new("bench.yaml", text), &[], &|_| None).unwrap();
    let graph = graph::check(&spec, &Stores::new()).await.unwrap();
    let plan = Plan::new(graph, false).unwrap();
    let options = RunOptions {
        threads: std::thread::available_parallelism().unwrap(),
        memory_bytes: None,
        stop: CancellationToken::new(),
        telemetry: Arc::default(),
        clients: Arc::default(),
    };
    run::run(&plan, &options, Arc::new(|_| {})).await.unwrap().sinks[0].manifest.rows
}

pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The same numbers in every run.
pub fn random_numbers() -> impl FnMut() -> usize {
    let mut state = 7_u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    }
}
