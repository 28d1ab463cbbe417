//! What is added to attention scores by how far a key lies from a query (Raffel et al., 2020, section 2.1): T5, MPNet.

use std::ops::Range;

use candle_core::Tensor;

/// How distances are sorted into the rows of a table: exact near by, then logarithmically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buckets {
    /// Rows of the table.
    pub(crate) count: usize,
    /// From this distance on all are one.
    pub(crate) farthest: usize,
    /// Whether keys behind the query have rows of their own; otherwise they count as the query's own place.
    pub(crate) both_ways: bool,
}

impl Buckets {
    /// Whether there are enough rows, and not more than distances.
    pub(crate) fn usable(&self) -> bool {
        let exact = self.exact();
        exact > 0 && exact < self.farthest
    }

    fn one_way(&self) -> usize {
        if self.both_ways { self.count / 2 } else { self.count }
    }

    /// Distances below this have a row each.
    fn exact(&self) -> usize {
        self.one_way() / 2
    }

    fn row(&self, query: usize, key: usize) -> u32 {
        let (rows, exact) = (self.one_way(), self.exact());
        let behind = key > query;
        let distance = if behind && !self.both_ways { 0 } else { query.abs_diff(key) };
        let place = if distance < exact {
            distance
        } else {
            // In single precision, as the reference does it.
            let whole = (self.farthest as f64 / exact as f64).ln() as f32;
            let far = (distance as f32 / exact as f32).ln() / whole * (rows - exact) as f32;
            (exact + far as usize).min(rows - 1)
        };
        (if behind && self.both_ways { rows + place } else { place }) as u32
    }
}

/// The bias of `queries` (their places in the text) to the first `keys` tokens, `[1, heads, queries, keys]`. `table` is
/// `[buckets, heads]`.
pub(crate) fn relative_bias(
    table: &Tensor,
    buckets: Buckets,
    queries: Range<usize>,
    keys: usize,
) -> candle_core::Result<Tensor> {
    let (length, heads) = (queries.len(), table.dim(1)?);
    let rows: Vec<u32> = queries.flat_map(|query| (0..keys).map(move |key| buckets.row(query, key))).collect();
    let rows = table.index_select(&Tensor::from_vec(rows, length * keys, table.device())?, 0)?;
    rows.reshape((length, keys, heads))?.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_are_exact_and_far_ones_share_rows() {
        let both = Buckets { count: 8, farthest: 20, both_ways: true };
        let rows = |buckets: Buckets, query: usize| (0..8).map(|key| buckets.row(query, key)).collect::<Vec<_>>();
        // Exact up to 1; then 2 + ln(d / 2) / ln 10 · 2.
        assert_eq!(rows(both, 0), [0, 5, 6, 6, 6, 6, 6, 7]);
        assert_eq!(rows(both, 7), [3, 2, 2, 2, 2, 2, 1, 0]);
        let back = Buckets { both_ways: false, ..both };
        assert_eq!(rows(back, 2), [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(back.row(100, 0), 7);
        assert!(!Buckets { count: 3, ..both }.usable() && !Buckets { farthest: 2, ..both }.usable());
    }
}
