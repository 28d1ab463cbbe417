//! Builds an index over raw vectors and measures it; `scripts/bench_peers.py` runs it beside other libraries.
//!
//! `measure build BASE DIMS FOLDER CODING BUILDER`, then `measure search FOLDER QUERIES TRUTH FILTERS…`: vectors are files of
//! little-endian f32, `TRUTH` of u32 (10 a query), each filter is `EVERY:TRUTH` (only rows whose number is a multiple of
//! `EVERY`). One JSON line a measurement; in the environment ROUNDS is how often each is repeated,
//! and FILTER_WIDTHS, such as 10,20, are widths to filter with beside the tuned one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path, sync::Arc, time::Instant};

use arrow::{
    array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field},
};
use groundloom_index::{
    Coding, ColumnSettings, ColumnSpec, Filter, GraphSettings, Index, Metric, Position, Search, Writer,
};
use rayon::prelude::*;
use serde_json::json;

const K: usize = 10;
const WIDTHS: [usize; 22] = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 32, 48, 64, 96, 128, 256];

fn numbers<T: bytemuck::AnyBitPattern>(path: &str) -> Vec<T> {
    fs::read(path).unwrap().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

fn batches(base: &[f32], dims: usize) -> impl Iterator<Item = RecordBatch> + '_ {
    base.chunks(8192 * dims).enumerate().map(move |(part, values)| {
        let first = part * 8192;
        let rows = values.len() / dims;
        let keys: StringArray = (first..first + rows).map(|i| Some(i.to_string())).collect();
        let ids: Int64Array = (first..first + rows).map(|i| Some(i as i64)).collect();
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let lists = FixedSizeListArray::new(item, dims as i32, Arc::new(Float32Array::from(values.to_vec())), None);
        RecordBatch::try_from_iter([
            ("row_id", Arc::new(keys) as ArrayRef),
            ("number", Arc::new(ids) as ArrayRef),
            ("vector", Arc::new(lists) as ArrayRef),
        ])
        .unwrap()
    })
}

/// Bytes of this process that are in memory, mapped files among them; `None` where Linux does not tell.
fn resident() -> Option<u64> {
    let told = fs::read_to_string("/proc/self/status").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Seconds that this thread has had a processor: what a machine that is shared says least wrongly. 0 where Linux does not
/// tell.
fn worked() -> f64 {
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    told.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

struct Measured<'a> {
    index: &'a Index,
    queries: Vec<&'a [f32]>,
    rounds: usize,
}

impl Measured<'_> {
    /// Recall@10, queries a second of the best round, and the fewest microseconds of this thread a query.
    fn run(&self, ef: Option<usize>, filter: Option<&Filter>, truth: &[u32], threads: usize) -> (f64, f64, f64) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let search = Search { column: 0, k: K, ef, exact: false, filter };
        let ask = |q: &&[f32]| -> Vec<u32> {
            self.index.search(q, &search).unwrap().hits.iter().map(|h| h.position.row).collect()
        };
        let (mut best, mut least) = (f64::MAX, f64::MAX);
        let mut found: Vec<Vec<u32>> = Vec::new();
        for _ in 0..self.rounds {
            let (begin, before) = (Instant::now(), worked());
            found = if threads == 1 {
                self.queries.iter().map(ask).collect()
            } else {
                pool.install(|| self.queries.par_iter().map(ask).collect())
            };
            best = best.min(begin.elapsed().as_secs_f64());
            least = least.min(worked() - before);
        }
        let hits: usize =
            found.iter().zip(truth.chunks(K)).map(|(f, t)| f.iter().filter(|r| t.contains(r)).count()).sum();
        let queries = self.queries.len() as f64;
        (hits as f64 / truth.len() as f64, queries / best, 1e6 * least / queries)
    }
}

fn build(arguments: &[String]) {
    let [base, dims, folder, coding, builder] = arguments else {
        panic!("expected build BASE DIMS FOLDER CODING BUILDER");
    };
    let dims: usize = dims.parse().unwrap();
    let base: Vec<f32> = numbers(base);
    let coding: Coding = coding.parse().unwrap();
    let graph = GraphSettings { builder: builder.parse().unwrap(), ..GraphSettings::default() };
    let settings = ColumnSettings { coding, graph, ..ColumnSettings::default() };
    let spec = ColumnSpec { name: "vector".into(), dims, metric: Metric::Ip, model: None, settings };
    let begin = Instant::now();
    let mut writer = Writer::create(Path::new(folder), "row_id", vec![spec]).unwrap();
    writer.add(batches(&base, dims).map(Ok)).unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    println!("{}", json!({ "what": "build", "seconds": seconds, "instructions": groundloom_index::instruction_set() }));
}

fn search(arguments: &[String]) {
    let [folder, queries, truth, filters @ ..] = arguments else {
        panic!("expected search FOLDER QUERIES TRUTH FILTERS…");
    };
    let begin = Instant::now();
    let index = Index::open(Path::new(folder)).unwrap();
    let opened = begin.elapsed().as_secs_f64();
    let (rows, dims) = (index.rows(), index.manifest().columns[0].dims);
    let column = &index.manifest().segments[0].columns[0];
    println!(
        "{}",
        json!({ "what": "open", "milliseconds": 1000.0 * opened, "bytes_per_vector": column.file.bytes / rows as u64, "tuned": column.tuning })
    );
    let queries: Vec<f32> = numbers(queries);
    let rounds = std::env::var("ROUNDS").map_or(3, |n| n.parse().unwrap());
    let widths: Vec<usize> = std::env::var("FILTER_WIDTHS")
        .map_or_else(|_| Vec::new(), |all| all.split(',').map(|n| n.parse().unwrap()).collect());
    let measured = Measured { index: &index, queries: queries.chunks(dims).collect(), rounds };
    let truth: Vec<u32> = numbers(truth);
    for ef in WIDTHS {
        let (recall, one, cpu) = measured.run(Some(ef), None, &truth, 1);
        if recall < 0.93 {
            continue;
        }
        let (_, two, _) = measured.run(Some(ef), None, &truth, 2);
        println!(
            "{}",
            json!({ "what": "search", "ef": ef, "recall": recall, "qps_1": one, "qps_2": two, "cpu_us": cpu })
        );
        if recall > 0.985 {
            break;
        }
    }
    println!(
        "{}",
        json!({ "what": "memory", "resident": resident(), "vectors": rows * dims * size_of::<f32>(), "file": column.file.bytes })
    );
    for filter in filters {
        let (every, truth) = filter.split_once(':').unwrap();
        let every: u32 = every.parse().unwrap();
        let truth: Vec<u32> = numbers(truth);
        let only = index.only((0..rows as u32).step_by(every as usize).map(|row| Position { segment: 0, row }));
        for ef in std::iter::once(None).chain(widths.iter().copied().map(Some)) {
            let (recall, one, cpu) = measured.run(ef, Some(&only), &truth, 1);
            let search = Search { column: 0, k: K, ef, exact: false, filter: Some(&only) };
            let plan = index.search(measured.queries[0], &search).unwrap().plans[0];
            println!(
                "{}",
                json!({ "what": "filtered", "every": every, "ef": ef, "recall": recall, "qps_1": one, "cpu_us": cpu, "plan": plan })
            );
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((step, rest)) if step == "build" => build(rest),
        Some((step, rest)) if step == "search" => search(rest),
        _ => panic!("expected build or search"),
    }
}
