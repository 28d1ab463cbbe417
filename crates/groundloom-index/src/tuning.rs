//! How much of the graph a search must look at: measured on vectors that the graph has not seen.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    beam::{ScratchPool, View},
    walk::Searchable,
};

/// Answers that a recall is measured on.
const K: usize = 10;
/// Most vectors that serve as questions.
const QUESTIONS: usize = 256;
/// What is tried, ascending.
const STEPS: [usize; 31] = [
    4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512,
    768, 1024,
];

/// What the tuning found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// How many of the closest nodes a search for 10 answers looks around of before it ends.
    pub ef: usize,
    /// Recall@10 that was measured with it.
    pub recall: f64,
    /// The recall that was asked for.
    pub target: f64,
    /// Distances that a search computes, on average.
    pub computed: usize,
    /// Questions it was measured on.
    pub questions: usize,
}

/// How many of `nodes` vectors serve as questions before they go into the graph.
pub(crate) fn questions(nodes: usize) -> usize {
    QUESTIONS.min(nodes / 10)
}

/// The smallest `ef` that reaches `target`, with a standard error to spare; the largest one tried when none does.
pub(crate) fn tune<'a>(seen: &Searchable<'_>, questions: impl Iterator<Item = &'a [f32]>, target: f64) -> Tuning {
    let questions: Vec<&[f32]> = questions.collect();
    let truth: Vec<Vec<u32>> = questions
        .par_iter()
        .map(|q| {
            let all = seen.scan(q, K, 1, |_| (0..seen.nodes as u32).map(|node| (node, node)));
            all.iter().map(|n| n.node()).collect()
        })
        .collect();
    let wanted: usize = truth.iter().map(Vec::len).sum();
    let scratches = ScratchPool::default();
    let mut best = Tuning { ef: K, recall: 0.0, target, computed: 0, questions: questions.len() };
    for ef in STEPS {
        let counts: Vec<(usize, usize)> = questions
            .par_iter()
            .zip(&truth)
            .map(|(question, truth)| {
                scratches.with(|scratch| {
                    scratch.computed = 0;
                    let found = seen.walk(question, View { width: ef, kept: ef.max(K) }, None, scratch);
                    (found.iter().take(K).filter(|n| truth.contains(&n.node())).count(), scratch.computed)
                })
            })
            .collect();
        let hits: usize = counts.iter().map(|c| c.0).sum();
        let recall = if wanted == 0 { 1.0 } else { hits as f64 / wanted as f64 };
        let computed = counts.iter().map(|c| c.1).sum::<usize>() / counts.len().max(1);
        best = Tuning { ef, recall, computed, ..best };
        let error = (recall * (1.0 - recall) / wanted.max(1) as f64).sqrt();
        if recall - error >= target {
            break;
        }
    }
    best
}
