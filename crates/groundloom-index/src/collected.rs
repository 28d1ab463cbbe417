//! Vectors on their way into a segment: checked, made unit length for cosine, equal ones stored once.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::{IndexError, beam::NO_NODE, lines::Rows, metric::Metric};

/// The vectors of one column of a segment. Row `i` of the segment has the vector `rows[node_of_row[i]]`.
#[derive(Debug, Clone)]
pub(crate) struct Collected {
    pub(crate) dims: usize,
    pub(crate) metric: Metric,
    pub(crate) rows: Rows,
    pub(crate) node_of_row: Vec<u32>,
    seen: HashMap<u64, Vec<u32>>,
    padded: Vec<f32>,
}

/// Largest number of dimensions: above it, sums of bytes no longer fit 32 bits.
pub const MOST_DIMENSIONS: usize = 32_768;

/// Checks a vector and makes it unit length for cosine. `row` is for the message.
pub(crate) fn checked(
    vector: &[f32],
    dims: usize,
    metric: Metric,
    row: u64,
    out: &mut Vec<f32>,
) -> Result<(), IndexError> {
    if vector.len() != dims {
        return Err(IndexError::WrongDimensions { row, expected: dims, found: vector.len() });
    }
    if let Some((component, value)) = vector.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        return Err(IndexError::NotFinite { row, component, value: *value });
    }
    out.clear();
    if metric == Metric::Cosine {
        let norm = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if norm == 0.0 {
            return Err(IndexError::ZeroVector { row });
        }
        out.extend(vector.iter().map(|v| (f64::from(*v) / norm) as f32));
    } else {
        out.extend_from_slice(vector);
    }
    Ok(())
}

impl Collected {
    /// No rows yet.
    pub(crate) fn new(dims: usize, metric: Metric) -> Result<Self, IndexError> {
        if !(1..=MOST_DIMENSIONS).contains(&dims) {
            return Err(IndexError::BadSetting {
                setting: "dimensions",
                expected: "from 1 to 32768",
                found: dims.to_string(),
            });
        }
        Ok(Self {
            dims,
            metric,
            rows: Rows::new(dims),
            node_of_row: Vec::new(),
            seen: HashMap::new(),
            padded: Vec::new(),
        })
    }

    /// Adds the next row's vector, or that it has none.
    pub(crate) fn push(&mut self, vector: Option<&[f32]>) -> Result<(), IndexError> {
        let Some(vector) = vector else {
            self.node_of_row.push(NO_NODE);
            return Ok(());
        };
        checked(vector, self.dims, self.metric, self.node_of_row.len() as u64, &mut self.padded)?;
        // -0 equals 0 and must hash so.
        self.padded.iter_mut().for_each(|v| *v += 0.0);
        let hash = xxh3_64(bytemuck::cast_slice(&self.padded));
        let same = self.seen.entry(hash).or_default();
        let known = same.iter().copied().find(|node| self.rows.row(*node as usize)[..self.dims] == self.padded[..]);
        let node = known.unwrap_or_else(|| {
            let node = self.rows.len() as u32;
            self.rows.push(&self.padded);
            same.push(node);
            node
        });
        self.node_of_row.push(node);
        Ok(())
    }

    /// Number of different vectors.
    pub(crate) fn nodes(&self) -> usize {
        self.rows.len()
    }

    /// The same with its vectors in another order: the new node `i` is the old `order[i]`.
    pub(crate) fn reordered(self, order: &[u32]) -> Self {
        let mut rows = Rows::zeros(order.len(), self.dims);
        let mut moved = vec![0; order.len()];
        for (new, old) in order.iter().enumerate() {
            rows.row_mut(new).copy_from_slice(self.rows.row(*old as usize));
            moved[*old as usize] = new as u32;
        }
        let node_of_row =
            self.node_of_row.iter().map(|node| moved.get(*node as usize).copied().unwrap_or(NO_NODE)).collect();
        Self { rows, node_of_row, seen: HashMap::new(), ..self }
    }

    /// The rows of each node: where they begin in the second list (one more than nodes), and the rows, ascending.
    pub(crate) fn rows_of_nodes(&self) -> (Vec<u32>, Vec<u32>) {
        let mut starts = vec![0_u32; self.nodes() + 1];
        for node in self.node_of_row.iter().filter(|n| **n != NO_NODE) {
            starts[*node as usize + 1] += 1;
        }
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut next = starts.clone();
        let mut rows = vec![0_u32; starts.last().copied().unwrap_or(0) as usize];
        for (row, node) in self.node_of_row.iter().enumerate().filter(|(_, n)| **n != NO_NODE) {
            rows[next[*node as usize] as usize] = row as u32;
            next[*node as usize] += 1;
        }
        (starts, rows)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn equal_vectors_are_stored_once_and_bad_ones_are_named() {
        let mut all = Collected::new(3, Metric::Cosine).unwrap();
        all.push(Some(&[1.0, 0.0, 0.0])).unwrap();
        all.push(None).unwrap();
        all.push(Some(&[7.0, -0.0, 0.0])).unwrap();
        all.push(Some(&[0.0, 2.0, 0.0])).unwrap();
        assert_eq!(all.node_of_row, [0, NO_NODE, 0, 1]);
        let all = all.reordered(&[1, 0]);
        assert_eq!(all.node_of_row, [1, NO_NODE, 1, 0]);
        assert_eq!(all.rows_of_nodes(), (vec![0, 1, 3], vec![3, 0, 2]));
        let mut all = Collected::new(2, Metric::Cosine).unwrap();
        assert!(matches!(all.push(Some(&[0.0, 0.0])), Err(IndexError::ZeroVector { row: 0 })));
        all.push(None).unwrap();
        assert!(matches!(all.push(Some(&[0.0, f32::NAN])), Err(IndexError::NotFinite { row: 1, component: 1, .. })));
        assert!(matches!(all.push(Some(&[0.0])), Err(IndexError::WrongDimensions { row: 1, expected: 2, found: 1 })));
        assert!(Collected::new(0, Metric::L2).is_err());
    }
}
