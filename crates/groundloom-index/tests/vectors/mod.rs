//! Vectors of several distributions, and rows that carry them.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, FixedSizeListArray, Int64Array, RecordBatch, StringArray},
    datatypes::Float32Type,
};
use groundloom_index::{Bitmap, ColumnSettings, ColumnSpec, IndexError, Metric, Predicate};

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// About normal.
    pub fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.unit()).sum::<f32>() - 3.0
    }

    pub fn vector(&mut self, dims: usize) -> Vec<f32> {
        (0..dims).map(|_| self.normal()).collect()
    }
}

/// `n` vectors around `centres` centres.
pub fn clustered(n: usize, dims: usize, centres: usize, spread: f32, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random(seed);
    let middle: Vec<Vec<f32>> = (0..centres).map(|_| random.vector(dims)).collect();
    (0..n)
        .map(|_| {
            let centre = random.below(centres);
            middle[centre].iter().map(|x| x + spread * random.normal()).collect()
        })
        .collect()
}

pub fn key(i: usize) -> String {
    format!("row-{i:06}")
}

/// Rows with a key, a number and a vector; row `i` is `first + i`.
pub fn rows(first: usize, vectors: &[Vec<f32>], dims: usize) -> RecordBatch {
    let keys: StringArray = (0..vectors.len()).map(|i| Some(key(first + i))).collect();
    let numbers: Int64Array = (0..vectors.len()).map(|i| Some((first + i) as i64)).collect();
    let lists = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
        vectors.iter().map(|v| Some(v.iter().map(|x| Some(*x)))),
        dims as i32,
    );
    RecordBatch::try_from_iter([
        ("row_id", Arc::new(keys) as ArrayRef),
        ("number", Arc::new(numbers) as ArrayRef),
        ("embedding", Arc::new(lists) as ArrayRef),
    ])
    .unwrap()
}

pub fn column(dims: usize, metric: Metric, settings: ColumnSettings) -> ColumnSpec {
    ColumnSpec { name: "embedding".into(), dims, metric, model: None, settings }
}

/// `number` is in the set.
pub struct Numbers(pub Bitmap);

impl Predicate for Numbers {
    fn columns(&self) -> Vec<String> {
        vec!["number".into()]
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<BooleanArray, IndexError> {
        let numbers = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
        Ok(numbers.iter().map(|n| n.map(|n| self.0.contains(n as usize))).collect())
    }
}

fn unit(v: &[f32]) -> Vec<f64> {
    let norm = v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    v.iter().map(|x| f64::from(*x) / norm).collect()
}

/// Distance by the definition, in double precision; smaller is closer.
pub fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    match metric {
        Metric::Ip => -a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>(),
        Metric::Cosine => -unit(a).iter().zip(unit(b)).map(|(a, b)| a * b).sum::<f64>(),
        Metric::L2 => a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum(),
    }
}

/// The `k` smallest distances among the rows that `keep` names.
pub fn nearest(
    metric: Metric,
    all: &[Vec<f32>],
    query: &[f32],
    k: usize,
    keep: impl Fn(usize) -> bool,
) -> Vec<(f64, usize)> {
    let mut found: Vec<(f64, usize)> =
        (0..all.len()).filter(|i| keep(*i)).map(|i| (distance(metric, &all[i], query), i)).collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    found.truncate(k);
    found
}
