//! The network in spaCy's own order of floating point operations.
//!
//! BLIS's generic kernels, which spaCy's wheels use wherever BLIS doesn't recognise the
//! CPU, add one product after the other in blocks of 256 terms, without fused operations;
//! NumPy sums 96 numbers in eight strands; both are repeated here, so results agree with
//! such a spaCy to the last bit but for one primitive: the power of -1/2 in the layer
//! norm, which NumPy takes from a vector library that is one unit off now and then and
//! which is rounded correctly here.

use super::aligned::Aligned;
use super::fast::{REACH, TagChoice, best_of};
use super::kernels::{self, CLASS_BLOCK, LOWER, PANEL, PRE, ROW_BLOCK, UNITS};
use super::packed::{LOWER_COLUMNS, MaxoutLayer, Network};
use crate::lexeme::Rows;
use crate::model::{COLUMNS, HIDDEN, SLOTS, WIDTH};
use crate::parser::{Actions, Decision, Features, Scorer, Validity};

/// Tokens that are encoded together; bounds the memory of a long document.
const CHUNK: usize = 512;

/// The sum of 96 numbers as NumPy adds them: eight strands, then pairs.
fn strand_sum(x: &[f32; WIDTH]) -> f32 {
    let mut r = [0.0f32; 8];
    for (i, strand) in x.as_chunks::<8>().0.iter().enumerate() {
        r = if i == 0 { *strand } else { std::array::from_fn(|j| r[j] + strand[j]) };
    }
    ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]))
}

/// `out = norm(maxout(x · weights))` row by row; `x` is `[rows][inputs]`.
fn maxout_norm(network: &Network, layer: &MaxoutLayer, x: &[f32], inputs: usize, out: &mut Aligned) {
    let rows = x.len() / inputs;
    let mut pre = Aligned::zeroed(rows * PRE);
    kernels::linear_exact(network.class, x, inputs, &layer.panels, &mut pre);
    out.resize(rows * WIDTH);
    for (pre, out) in pre.chunks_exact(PRE).zip(out.as_chunks_mut::<WIDTH>().0) {
        for (i, out) in out.iter_mut().enumerate() {
            let piece = |p: usize| {
                let at = i / UNITS * PANEL + p * UNITS + i % UNITS;
                pre[at] + layer.bias[at]
            };
            *out = piece(0).max(piece(1)).max(piece(2));
        }
        let mean = strand_sum(out) / WIDTH as f32;
        out.iter_mut().for_each(|x| *x -= mean);
        let variance = strand_sum(&out.map(|x| x * x)) / WIDTH as f32 + 1e-8;
        let scale = (1.0 / f64::from(variance).sqrt()) as f32;
        for (i, x) in out.iter_mut().enumerate() {
            *x = (*x * scale) * layer.gain[i] + layer.shift[i];
        }
    }
}

impl Network {
    /// Tags and the parser's input for one document, given its tokens' table rows.
    pub(crate) fn encode_exactly(&self, rows: &[[Rows; COLUMNS]]) -> (Vec<TagChoice>, Vec<f32>) {
        let (mut tags, mut reduced) = (Vec::new(), Vec::new());
        for start in (0..rows.len()).step_by(CHUNK) {
            let end = rows.len().min(start + CHUNK);
            let from = start.saturating_sub(REACH);
            let to = rows.len().min(end + REACH);
            let vectors = self.token_vectors(&rows[from..to]);
            let vectors = &vectors[(start - from) * WIDTH..];
            let padded = (end - start).next_multiple_of(ROW_BLOCK);
            let mut x = Aligned::zeroed(padded * WIDTH);
            x[..(end - start) * WIDTH].copy_from_slice(&vectors[..(end - start) * WIDTH]);
            let columns = self.head_columns();
            let mut head = Aligned::zeroed(padded * columns);
            kernels::linear_exact(self.class, &x, WIDTH, &self.head, &mut head);
            for head in head.chunks_exact_mut(columns).take(end - start) {
                head.iter_mut().zip(self.head_bias.iter()).for_each(|(x, &bias)| *x += bias);
                reduced.extend_from_slice(&head[..HIDDEN]);
                tags.push(best_of(&head[HIDDEN..][..self.tags]));
            }
        }
        (tags, reduced)
    }

    /// Token vectors `[tokens][WIDTH]`; the outermost ones are off if neighbours are missing.
    fn token_vectors(&self, tokens: &[[Rows; COLUMNS]]) -> Aligned {
        let inputs = COLUMNS * WIDTH;
        let mut embedded = Aligned::zeroed(tokens.len().next_multiple_of(ROW_BLOCK) * inputs);
        for (rows, out) in tokens.iter().zip(embedded.chunks_exact_mut(inputs)) {
            self.embed(rows, out);
        }
        let mut out = Aligned::default();
        maxout_norm(self, &self.mix, &embedded, inputs, &mut out);

        // spaCy pads a document with one row of zeros per block on either side.
        let count = tokens.len() + 2 * REACH;
        let padded = count.next_multiple_of(ROW_BLOCK);
        let mut x = Aligned::zeroed(padded * WIDTH);
        x[REACH * WIDTH..][..tokens.len() * WIDTH].copy_from_slice(&out[..tokens.len() * WIDTH]);
        let mut windows = Aligned::zeroed(padded * 3 * WIDTH);
        for layer in &self.blocks {
            for (i, window) in windows.chunks_exact_mut(3 * WIDTH).take(count).enumerate() {
                // Beyond the padding there are zeros; they never reach a token.
                let (from, to) = (i.saturating_sub(1), (i + 2).min(count));
                let skip = usize::from(i == 0) * WIDTH;
                window.fill(0.0);
                window[skip..][..(to - from) * WIDTH].copy_from_slice(&x[from * WIDTH..to * WIDTH]);
            }
            maxout_norm(self, layer, &windows, 3 * WIDTH, &mut out);
            x[..count * WIDTH].iter_mut().zip(out.iter()).for_each(|(x, &y)| *x += y);
        }
        let mut vectors = Aligned::zeroed(tokens.len() * WIDTH);
        vectors.copy_from_slice(&x[REACH * WIDTH..][..tokens.len() * WIDTH]);
        vectors
    }
}

/// Decides for one document.
pub(crate) struct ExactScorer<'a> {
    network: &'a Network,
    actions: &'a Actions,
    /// `[tokens][HIDDEN]`.
    reduced: &'a [f32],
    /// First-layer terms of some blocks of tokens, `[ROW_BLOCK][LOWER_COLUMNS]` each.
    terms: Vec<Aligned>,
    /// The block that each of them belongs to.
    owners: Vec<Option<usize>>,
}

/// Blocks of tokens whose terms are kept, by their index modulo this.
const KEPT: usize = 128;

impl<'a> ExactScorer<'a> {
    pub(crate) fn new(network: &'a Network, actions: &'a Actions, reduced: &'a [f32]) -> Self {
        let kept = KEPT.min((reduced.len() / HIDDEN).div_ceil(ROW_BLOCK));
        Self { network, actions, reduced, terms: vec![Aligned::default(); kept], owners: vec![None; kept] }
    }

    /// The terms of a token, `[SLOTS][LOWER]` and some padding.
    fn terms(&mut self, token: usize) -> &[f32] {
        let block = token / ROW_BLOCK;
        let at = block % self.owners.len();
        if self.owners[at] != Some(block) {
            self.owners[at] = Some(block);
            let from = block * ROW_BLOCK * HIDDEN;
            let own = &self.reduced[from..self.reduced.len().min(from + ROW_BLOCK * HIDDEN)];
            let mut x = Aligned::zeroed(ROW_BLOCK * HIDDEN);
            x[..own.len()].copy_from_slice(own);
            let out = &mut self.terms[at];
            out.resize(ROW_BLOCK * LOWER_COLUMNS);
            kernels::linear_exact(self.network.class, &x, HIDDEN, &self.network.lower, out);
        }
        &self.terms[at][token % ROW_BLOCK * LOWER_COLUMNS..][..LOWER_COLUMNS]
    }
}

impl Scorer for ExactScorer<'_> {
    fn decide(&mut self, features: &Features, valid: Validity) -> Decision {
        let network = self.network;
        let mut sum = [0.0f32; LOWER];
        for (slot, &token) in features.iter().enumerate() {
            let terms = match usize::try_from(token) {
                Ok(token) => self.terms(token),
                Err(_) => &network.lower_pad,
            };
            let terms = &terms[slot * LOWER..][..LOWER];
            sum.iter_mut().zip(terms).for_each(|(sum, &term)| *sum += term);
        }
        sum.iter_mut().zip(network.lower_bias.iter()).for_each(|(sum, &bias)| *sum += bias);
        let hidden: [f32; HIDDEN] = std::array::from_fn(|i| sum[i].max(sum[HIDDEN + i]));
        let mut scores = vec![0.0f32; network.upper_bias.len()];
        for (block, scores) in scores.chunks_exact_mut(CLASS_BLOCK).enumerate() {
            let upper = &network.upper[block * HIDDEN * CLASS_BLOCK..][..HIDDEN * CLASS_BLOCK];
            for (&h, row) in hidden.iter().zip(upper.chunks_exact(CLASS_BLOCK)) {
                scores.iter_mut().zip(row).for_each(|(score, &w)| *score += h * w);
            }
        }
        scores.iter_mut().zip(network.upper_bias.iter()).for_each(|(score, &bias)| *score += bias);
        self.actions.best(valid, &scores[..network.classes])
    }
}

const _: () = assert!(SLOTS * LOWER <= LOWER_COLUMNS);
