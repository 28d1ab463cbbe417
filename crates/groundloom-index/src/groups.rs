//! Near-duplicates: rows whose vectors are as close as a threshold, joined over chains.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::{
    IndexError,
    index::{Index, MOST_ANSWERS, Position, Search, as_close},
};

/// Rows of one group, in the order of the index; the first is the one to keep.
pub type Group = Vec<Position>;

/// A union of sets.
struct Sets(Vec<usize>);

impl Sets {
    fn of(&mut self, mut at: usize) -> usize {
        while self.0[at] != at {
            self.0[at] = self.0[self.0[at]];
            at = self.0[at];
        }
        at
    }

    /// The smaller representative stays, so that the result does not depend on the order of joins.
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.of(a), self.of(b));
        self.0[a.max(b)] = a.min(b);
    }
}

impl Index {
    /// Groups of at least two rows that are joined by pairs with a score as close as `score`, in the order of their first rows.
    ///
    /// Pairs come from searches for every row, so that with a graph a pair can be missed as a search can miss it; `exact`
    /// compares all rows.
    ///
    /// # Errors
    /// A damaged file.
    pub fn near_duplicates(&self, column: usize, score: f32, exact: bool) -> Result<Vec<Group>, IndexError> {
        let metric = self.manifest().columns.get(column).map_or(crate::Metric::Ip, |c| c.metric);
        let all = self.positions();
        let place: BTreeMap<Position, usize> = all.iter().enumerate().map(|(i, p)| (*p, i)).collect();
        let near = |position: &Position| -> Result<Vec<Position>, IndexError> {
            let Some(vector) = self.vector(*position, column)? else { return Ok(Vec::new()) };
            let mut k = 32;
            loop {
                let answer =
                    self.search(vector, &Search { column, k, ef: Some(64.max(2 * k)), exact, filter: None })?;
                let close = answer.hits.iter().take_while(|h| as_close(metric, h.score, score)).count();
                if close < answer.hits.len() || answer.hits.len() < k || k == MOST_ANSWERS {
                    return Ok(answer.hits[..close].iter().map(|h| h.position).collect());
                }
                k = (4 * k).min(MOST_ANSWERS);
            }
        };
        let found: Vec<Vec<Position>> = all.par_iter().map(near).collect::<Result<_, _>>()?;
        let mut sets = Sets((0..all.len()).collect());
        for (at, near) in found.iter().enumerate() {
            for other in near.iter().filter_map(|p| place.get(p)) {
                sets.join(at, *other);
            }
        }
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        for (at, position) in all.iter().enumerate() {
            groups.entry(sets.of(at)).or_default().push(*position);
        }
        Ok(groups.into_values().filter(|g| g.len() > 1).collect())
    }
}
