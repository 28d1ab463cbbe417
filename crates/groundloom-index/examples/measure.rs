//! Builds an index over raw vectors and measures it; `scripts/bench_peers.py` runs it beside other libraries.
//!
//! `measure BASE QUERIES DIMS TRUTH FOLDER CODING BUILDER FILTERS…`: the first two are files of little-endian f32, `TRUTH` of u32
//! (10 a query), each filter is `EVERY:TRUTH` (only rows whose number is a multiple of `EVERY`). One JSON line a measurement.
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

struct Measured<'a> {
    index: &'a Index,
    queries: Vec<&'a [f32]>,
}

impl Measured<'_> {
    /// Recall@10 and queries a second of the best of three rounds.
    fn run(&self, ef: Option<usize>, filter: Option<&Filter>, truth: &[u32], threads: usize) -> (f64, f64) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let search = Search { column: 0, k: K, ef, exact: false, filter };
        let ask = |q: &&[f32]| -> Vec<u32> {
            self.index.search(q, &search).unwrap().hits.iter().map(|h| h.position.row).collect()
        };
        let mut best = f64::MAX;
        let mut found: Vec<Vec<u32>> = Vec::new();
        for _ in 0..3 {
            let begin = Instant::now();
            found = if threads == 1 {
                self.queries.iter().map(ask).collect()
            } else {
                pool.install(|| self.queries.par_iter().map(ask).collect())
            };
            best = best.min(begin.elapsed().as_secs_f64());
        }
        let hits: usize =
            found.iter().zip(truth.chunks(K)).map(|(f, t)| f.iter().filter(|r| t.contains(r)).count()).sum();
        (hits as f64 / truth.len() as f64, self.queries.len() as f64 / best)
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, queries, dims, truth, folder, coding, builder, filters @ ..] = arguments.as_slice() else {
        panic!("expected BASE QUERIES DIMS TRUTH FOLDER CODING BUILDER FILTERS…");
    };
    let dims: usize = dims.parse().unwrap();
    let (base, queries): (Vec<f32>, Vec<f32>) = (numbers(base), numbers(queries));
    let folder = Path::new(folder);
    let coding: Coding = coding.parse().unwrap();
    let graph = GraphSettings { builder: builder.parse().unwrap(), ..GraphSettings::default() };
    let settings = ColumnSettings { coding, graph, ..ColumnSettings::default() };
    let spec = ColumnSpec { name: "vector".into(), dims, metric: Metric::Ip, model: None, settings };
    let begin = Instant::now();
    Writer::create(folder, "row_id", vec![spec]).unwrap().add(batches(&base, dims).map(Ok)).unwrap();
    println!("{}", json!({ "what": "build", "seconds": begin.elapsed().as_secs_f64() }));
    let rows = base.len() / dims;
    drop(base);
    let begin = Instant::now();
    let index = Index::open(folder).unwrap();
    let opened = begin.elapsed().as_secs_f64();
    let column = &index.manifest().segments[0].columns[0];
    let bytes = column.file.bytes;
    println!(
        "{}",
        json!({ "what": "open", "milliseconds": 1000.0 * opened, "bytes_per_vector": bytes as f64 / rows as f64, "tuned": column.tuning })
    );
    let measured = Measured { index: &index, queries: queries.chunks(dims).collect() };
    let truth: Vec<u32> = numbers(truth);
    for ef in [10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 256] {
        let (recall, one) = measured.run(Some(ef), None, &truth, 1);
        let (_, two) = measured.run(Some(ef), None, &truth, 2);
        println!("{}", json!({ "what": "search", "ef": ef, "recall": recall, "qps_1": one, "qps_2": two }));
        if recall > 0.985 {
            break;
        }
    }
    for filter in filters {
        let (every, truth) = filter.split_once(':').unwrap();
        let every: u32 = every.parse().unwrap();
        let truth: Vec<u32> = numbers(truth);
        let only = index.only((0..rows as u32).step_by(every as usize).map(|row| Position { segment: 0, row }));
        let (recall, one) = measured.run(None, Some(&only), &truth, 1);
        println!("{}", json!({ "what": "filtered", "every": every, "recall": recall, "qps_1": one }));
    }
}
