//! Scaled dot-product attention of several heads (Vaswani et al., "Attention Is All You Need", 2017, section 3.2).

use rayon::prelude::*;

use super::{Dense, Epilogue, Isa, Placement, norm::softmax};

/// Queries whose scores are held at once.
const QUERIES: usize = 144;

/// Vectors of all heads: of row `r` of sequence `n` those of head `h` begin at
/// `start + (n · length + r) · stride + h · width`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) start: usize,
    pub(crate) stride: usize,
    /// Rows of a sequence.
    pub(crate) length: usize,
    /// Values of a head.
    pub(crate) width: usize,
}

impl<'a> Rows<'a> {
    /// One head of one sequence, from its first value to the end of everything.
    fn head(&self, sequence: usize, head: usize) -> &'a [f32] {
        &self.values[self.start + sequence * self.length * self.stride + head * self.width..]
    }
}

/// Attention over a batch of sequences.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) queries: Rows<'a>,
    pub(crate) keys: Rows<'a>,
    pub(crate) values: Rows<'a>,
    /// Added to the scaled scores.
    pub(crate) bias: Option<Bias<'a>>,
}

/// `[batch or 1, heads or 1, queries or 1, keys]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bias<'a> {
    pub(crate) values: &'a [f32],
    /// From one sequence to the next; 0 where all have the same.
    pub(crate) sequence: usize,
    pub(crate) head: usize,
    pub(crate) query: usize,
}

impl Attention<'_> {
    /// The attended values, `[batch, queries, heads, width]`.
    pub(crate) fn run(&self, isa: Isa) -> Vec<f32> {
        let (length, width) = (self.queries.length, self.values.width);
        let mut heads = vec![0.0; self.batch * self.heads * length * width];
        if heads.is_empty() {
            return heads;
        }
        heads.par_chunks_mut(length * width).enumerate().for_each(|(i, out)| {
            self.head(isa, i / self.heads, i % self.heads, out);
        });
        // [batch, heads, queries, width] → [batch, queries, heads, width]
        let mut rows = vec![0.0; heads.len()];
        let sequence = self.heads * length * width;
        rows.par_chunks_mut(sequence).zip(heads.par_chunks(sequence)).for_each(|(rows, heads)| {
            for (head, values) in heads.chunks_exact(length * width).enumerate() {
                for (row, value) in values.chunks_exact(width).enumerate() {
                    rows[(row * self.heads + head) * width..][..width].copy_from_slice(value);
                }
            }
        });
        rows
    }

    fn head(&self, isa: Isa, sequence: usize, head: usize, out: &mut [f32]) {
        let (keys, values) = (self.keys.head(sequence, head), self.values.head(sequence, head));
        let count = self.keys.length;
        let keys = Dense::pack_transposed(keys, self.keys.stride, self.keys.width, &vec![0.0; count]);
        let values = Dense::pack_strided(values, self.values.stride, count, &vec![0.0; self.values.width]);
        let (inputs, outputs) = (self.queries.width, self.values.width);
        let queries = self.queries.head(sequence, head);
        let block = QUERIES.min(self.queries.length);
        let (mut input, mut scores) = (vec![0.0; block * inputs], vec![0.0; block * count]);
        let mut spread = Vec::new();
        for (block_index, out) in out.chunks_mut(block * outputs).enumerate() {
            let (first, rows) = (block_index * block, out.len() / outputs);
            let (input, scores) = (&mut input[..rows * inputs], &mut scores[..rows * count]);
            for (to, from) in input.chunks_exact_mut(inputs).zip(queries.chunks(self.queries.stride).skip(first)) {
                to.copy_from_slice(&from[..inputs]);
            }
            keys.apply(isa, input, scores, Placement::CONTIGUOUS, Epilogue::Linear);
            let bias = self.bias.map_or(&[][..], |bias| bias.rows(sequence, head, first, rows, count, &mut spread));
            softmax(isa, scores, count, self.scale, bias);
            values.apply(isa, scores, out, Placement::CONTIGUOUS, Epilogue::Linear);
        }
    }
}

impl<'a> Bias<'a> {
    /// The rows for `rows` queries from `first` on; `spread` holds them where all queries share one.
    fn rows<'b>(
        &self,
        sequence: usize,
        head: usize,
        first: usize,
        rows: usize,
        keys: usize,
        spread: &'b mut Vec<f32>,
    ) -> &'b [f32]
    where
        'a: 'b,
    {
        let start = &self.values[sequence * self.sequence + head * self.head..];
        if self.query == 0 {
            spread.clear();
            (0..rows).for_each(|_| spread.extend_from_slice(&start[..keys]));
            spread
        } else {
            &start[first * self.query..][..rows * keys]
        }
    }
}
