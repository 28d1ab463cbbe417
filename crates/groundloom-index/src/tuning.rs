//! How much of the graph a search must look at: measured on vectors that the graph has not seen.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    IndexError,
    beam::{Allowed, ScratchPool, View},
    bitmap::Bitmap,
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

/// Filters that a walk is tuned with let one node of so many pass.
const FILTERS: [usize; 4] = [2, 4, 8, 16];

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
    /// The same as `ef` where a filter lets one node of 2, 4, 8 and 16 pass, drawn without regard to the vectors; absent in indices
    /// from before it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtered: Option<[usize; FILTERS.len()]>,
}

impl Tuning {
    /// The `ef` for a filter that lets `matching` of `rows` pass: between those for the measured shares around it.
    pub(crate) fn filtered_ef(&self, matching: usize, rows: usize) -> usize {
        // Some of the ways that the walk was tuned with are closed: as much again, where it was not measured how many.
        let Some(filtered) = self.filtered else { return 2 * self.ef };
        let one_of = rows as f64 / matching.max(1) as f64;
        let measured = || std::iter::once((1, self.ef)).chain(FILTERS.into_iter().zip(filtered));
        let between = measured().zip(measured().skip(1)).find(|(_, (every, _))| one_of <= *every as f64);
        let ef = between.map_or(filtered[FILTERS.len() - 1], |((more, wide), (_, wider))| {
            let (wide, wider) = (wide as f64, wider as f64);
            (wide * (wider / wide).powf((one_of / more as f64).log2())).ceil() as usize
        });
        // Filters that know something of the vectors need more than those that were measured.
        ef.max(K)
    }
}

/// How many of `nodes` vectors serve as questions before they go into the graph.
pub(crate) fn questions(nodes: usize) -> usize {
    QUESTIONS.min(nodes / 10)
}

/// The smallest `ef` that reaches `target`, with a standard error to spare; the largest one tried when none does. And the
/// same for filters: nodes are numbered in random order here, so that every so many of them is a fair draw.
pub(crate) fn tune<'a>(
    seen: &Searchable<'_>,
    questions: impl Iterator<Item = &'a [f32]>,
    target: f64,
) -> Result<Tuning, IndexError> {
    let questions: Vec<&[f32]> = questions.collect();
    let mut filtered = [0; FILTERS.len()];
    for (ef, every) in filtered.iter_mut().zip(FILTERS) {
        let allowed = Bitmap::from_fn(seen.nodes, |node| node % every == 0);
        *ef = narrowest(seen, &questions, target, Some(&allowed))?.ef;
    }
    Ok(Tuning { filtered: Some(filtered), ..narrowest(seen, &questions, target, None)? })
}

fn narrowest(
    seen: &Searchable<'_>,
    questions: &[&[f32]],
    target: f64,
    allowed: Option<&Bitmap>,
) -> Result<Tuning, IndexError> {
    let is_allowed = |node: &u32| allowed.is_none_or(|a| a.contains(*node as usize));
    let truth: Vec<Vec<u32>> = questions
        .par_iter()
        .map(|q| {
            let all = seen.scan(q, K, 1, |_| (0..seen.nodes as u32).filter(is_allowed).map(|node| (node, node)));
            all.iter().map(|n| n.node()).collect()
        })
        .collect();
    let wanted: usize = truth.iter().map(Vec::len).sum();
    let scratches = ScratchPool::default();
    let mut best = Tuning { ef: K, recall: 0.0, target, computed: 0, questions: questions.len(), filtered: None };
    for ef in STEPS {
        let counts: Vec<(usize, usize)> = questions
            .par_iter()
            .zip(&truth)
            .map(|(question, truth)| {
                scratches.with(|scratch| {
                    scratch.computed = 0;
                    let allowed = allowed.map(|a| Allowed {
                        nodes: a.words(),
                        share: 1.0,
                        width_within: ef,
                        width_elsewhere: ef,
                    });
                    let found = seen.walk(question, K, View { width: ef, kept: ef.max(K) }, allowed, scratch)?;
                    Ok((found.iter().take(K).filter(|n| truth.contains(&n.node())).count(), scratch.computed))
                })
            })
            .collect::<Result<_, IndexError>>()?;
        let hits: usize = counts.iter().map(|c| c.0).sum();
        let recall = if wanted == 0 { 1.0 } else { hits as f64 / wanted as f64 };
        let computed = counts.iter().map(|c| c.1).sum::<usize>() / counts.len().max(1);
        best = Tuning { ef, recall, computed, ..best };
        let error = (recall * (1.0 - recall) / wanted.max(1) as f64).sqrt();
        if recall - error >= target {
            break;
        }
    }
    Ok(best)
}
