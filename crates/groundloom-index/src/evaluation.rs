//! How good an index is: what a walk misses beside a scan, and how well one column retrieves another.

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    IndexError,
    graph::SplitMix,
    index::{Index, Position, Search, as_close},
};

/// Recall of walks beside exact answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Recall {
    /// Answers of each search.
    pub k: usize,
    /// Searches.
    pub queries: usize,
    /// Share of the exact answers that the walks found.
    pub recall: f64,
}

/// Retrieval of paired rows: a query is right when it finds its own row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Retrieval {
    /// Rows that have both vectors: queries and gallery.
    pub rows: usize,
    /// Share of queries whose row is first.
    pub recall_at_1: f64,
    /// Share of queries whose row is among the first five.
    pub recall_at_5: f64,
    /// Share of queries whose row is among the first ten.
    pub recall_at_10: f64,
    /// The middle rank, from 1; the mean of the two middle ones for an even number.
    pub median_rank: f64,
}

impl Index {
    /// Searches for up to `queries` rows' own vectors, chosen by `seed`, by walk and by scan, and compares the answers other
    /// than the row itself. Equal distances count as equally right.
    ///
    /// # Errors
    /// A damaged file, a `k` out of its range.
    pub fn recall(&self, column: usize, k: usize, queries: usize, seed: u64) -> Result<Recall, IndexError> {
        let metric = self.manifest().columns.get(column).map_or(crate::Metric::Ip, |c| c.metric);
        let all = self.positions();
        let order = SplitMix(seed).permutation(all.len());
        let chosen: Vec<Position> = order.iter().take(queries).map(|i| all[*i as usize]).collect();
        let one = |position: &Position| -> Result<(usize, usize), IndexError> {
            let Some(vector) = self.vector(*position, column)? else { return Ok((0, 0)) };
            let others = |exact| -> Result<Vec<f32>, IndexError> {
                let answer = self.search(vector, &Search { column, k: k + 1, ef: None, exact, filter: None })?;
                let others = answer.hits.iter().filter(|h| h.position != *position);
                Ok(others.take(k).map(|h| h.score).collect())
            };
            let (truth, found) = (others(true)?, others(false)?);
            let Some(last) = truth.last() else { return Ok((0, 0)) };
            Ok((found.iter().filter(|score| as_close(metric, **score, *last)).count(), truth.len()))
        };
        let counts: Vec<(usize, usize)> = chosen.par_iter().map(one).collect::<Result<_, _>>()?;
        let wanted: usize = counts.iter().map(|c| c.1).sum();
        let hits: usize = counts.iter().map(|c| c.0).sum();
        let recall = if wanted == 0 { 1.0 } else { hits as f64 / wanted as f64 };
        Ok(Recall { k, queries: chosen.len(), recall })
    }

    /// Searches the column `gallery` for each row's vector of the column `queries`, among all rows that have both. The rank of
    /// a row is one more than the rows that are closer or as close and stand before it.
    ///
    /// # Errors
    /// [`IndexError::Mismatch`] when the columns are not of one space, a damaged file.
    pub fn retrieval(&self, queries: usize, gallery: usize) -> Result<Retrieval, IndexError> {
        let columns = &self.manifest().columns;
        let (Some(a), Some(b)) = (columns.get(queries), columns.get(gallery)) else {
            return Err(IndexError::UnknownColumn {
                name: queries.max(gallery).to_string(),
                known: format!("{} columns", columns.len()),
            });
        };
        if (a.dims, a.metric) != (b.dims, b.metric) {
            return Err(IndexError::Mismatch {
                what: format!("the space of {:?} and {:?}", a.name, b.name),
                expected: format!("{} dimensions, {}", a.dims, a.metric.name()),
                found: format!("{} dimensions, {}", b.dims, b.metric.name()),
                remedy: "evaluate columns that one model made, such as CLIP's text and image vectors",
            });
        }
        let mut pairs = Vec::new();
        for position in self.positions() {
            if let (Some(q), Some(g)) = (self.vector(position, queries)?, self.vector(position, gallery)?) {
                pairs.push((position, q, g));
            }
        }
        let only = self.only(pairs.iter().map(|p| p.0));
        let ranks: Vec<usize> = pairs
            .par_iter()
            .map(|(position, query, _)| -> Result<usize, IndexError> {
                // All of the gallery is ranked, so `k` grows until the row itself is among the answers.
                let mut k = 10;
                loop {
                    let search = Search { column: gallery, k, ef: None, exact: true, filter: Some(&only) };
                    let hits = self.search(query, &search)?.hits;
                    if let Some(rank) = hits.iter().position(|h| h.position == *position) {
                        return Ok(rank + 1);
                    }
                    if k >= pairs.len() || k == crate::index::MOST_ANSWERS {
                        return Ok(k + 1);
                    }
                    k = (8 * k).min(crate::index::MOST_ANSWERS);
                }
            })
            .collect::<Result<_, _>>()?;
        let at = |n: usize| ranks.iter().filter(|r| **r <= n).count() as f64 / ranks.len().max(1) as f64;
        let mut sorted = ranks.clone();
        sorted.sort_unstable();
        let middle = |i: usize| sorted.get(i).copied().unwrap_or(0) as f64;
        let half = sorted.len() / 2;
        let median_rank =
            if sorted.len() % 2 == 1 { middle(half) } else { (middle(half.saturating_sub(1)) + middle(half)) / 2.0 };
        Ok(Retrieval { rows: ranks.len(), recall_at_1: at(1), recall_at_5: at(5), recall_at_10: at(10), median_rank })
    }
}
