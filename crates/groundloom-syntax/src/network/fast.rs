//! The network as fast as it goes: many documents in one pass, nothing computed twice.

use super::aligned::Aligned;
use super::kernels::{self, CLASS_BLOCK, LOWER, PRE, ROW_BLOCK, Tile};
use super::packed::{LOWER_COLUMNS, Network};
use super::words::WordCache;
use crate::model::{DEPTH, HIDDEN, SLOTS, WIDTH};
use crate::parser::{Actions, Decision, Features, Scorer, Validity};

/// Rows between two documents: two for each, since a padding row further out never
/// reaches a token within four blocks and is a constant where it is read.
const GAP: usize = 4;
/// Tokens whose first-layer terms are computed together.
const BLOCK: usize = 64;
/// Blocks of terms that are kept; a step of the parser looks at eight tokens at most.
const KEPT: usize = 16;

/// A run of tokens that is encoded by itself: a document, or a piece of a long one with
/// some of its neighbours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    /// Number of tokens.
    pub(crate) len: usize,
    /// Tokens at the start and at the end that are there for their neighbours' sake.
    pub(crate) context: (usize, usize),
}

/// Tokens on either side that a token's vector depends on.
pub(crate) const REACH: usize = DEPTH;

/// Buffers of the encoder.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    rows: Aligned,
    next: Aligned,
    tiles: Vec<Tile>,
    vectors: Aligned,
    head: Aligned,
}

/// The best tag of a token and its lead.
pub(crate) type TagChoice = (u8, f32);

impl Encoder {
    /// Encodes segments whose tokens have the given slots, one after the other.
    pub(crate) fn encode(&mut self, network: &Network, words: &mut WordCache, slots: &[u32], segments: &[Segment]) {
        words.fill(network);
        let total = GAP + segments.iter().map(|s| s.len + GAP).sum::<usize>();
        self.rows.resize(total * WIDTH);
        self.next.resize(total * WIDTH);
        self.first_block(network, words, slots, segments);
        for block in 1..DEPTH {
            // The block before last needs one row of padding, the one before that two.
            self.lay_tiles(segments, DEPTH - 1 - block);
            let weights = network.convolution(block);
            kernels::convolve(network.class, &self.rows, &self.tiles, &weights, &mut self.next);
            std::mem::swap(&mut self.rows, &mut self.next);
        }
    }

    /// The first block from the words' terms; padding that no token reaches is the same
    /// everywhere.
    fn first_block(&mut self, network: &Network, words: &WordCache, slots: &[u32], segments: &[Segment]) {
        let layer = &network.blocks[0];
        let zeros = [0.0; PRE];
        let block = |terms: [&[f32]; 3], base: &[f32], out: &mut [f32]| {
            let terms = [terms[0], terms[1], terms[2], &layer.bias];
            kernels::maxout_norm(network.class, terms, base, &layer.gain, &layer.shift, out);
        };
        let mut far = [0.0; WIDTH];
        block([&zeros; 3], &zeros[..WIDTH], &mut far);
        let mut row = GAP;
        let mut slots = slots;
        self.rows[..GAP * WIDTH].chunks_exact_mut(WIDTH).for_each(|out| out.copy_from_slice(&far));
        for segment in segments {
            let (own, rest) = slots.split_at(segment.len);
            slots = rest;
            let term = |i: Option<usize>, part: usize| match i.and_then(|i| own.get(i)) {
                Some(&slot) => words.term(slot, part),
                None => &zeros,
            };
            // From the row before the first token to the row after the last.
            for i in 0..segment.len + 2 {
                let out = &mut self.rows[(row + i - 1) * WIDTH..][..WIDTH];
                let at = i.checked_sub(1);
                let base = match at.and_then(|i| own.get(i)) {
                    Some(&slot) => words.mixed(slot),
                    None => &zeros[..WIDTH],
                };
                let terms = [term(i.checked_sub(2), 0), term(at, 1), term(Some(i), 2)];
                block(terms, base, out);
            }
            row += segment.len + GAP;
            let gap = &mut self.rows[(row - GAP + 1) * WIDTH..row * WIDTH];
            gap.chunks_exact_mut(WIDTH).for_each(|out| out.copy_from_slice(&far));
        }
    }

    /// Pairs of rows: each segment with `padding` rows on either side.
    fn lay_tiles(&mut self, segments: &[Segment], padding: usize) {
        self.tiles.clear();
        let mut row = GAP;
        for segment in segments.iter().filter(|s| s.len > 0) {
            let (start, end) = (row - padding, row + segment.len + padding);
            let tiles = (start..end).step_by(2);
            self.tiles.extend(tiles.map(|r| Tile { row: r as u32, both: r + 1 < end }));
            row += segment.len + GAP;
        }
        if let Some(&last) = self.tiles.last() {
            self.tiles.resize(self.tiles.len().next_multiple_of(ROW_BLOCK), last);
        }
    }

    /// Adds to `tags` and `reduced` for each encoded token that isn't context.
    pub(crate) fn choose_tags(
        &mut self,
        network: &Network,
        segments: &[Segment],
        tags: &mut Vec<TagChoice>,
        reduced: &mut Reduced,
    ) {
        let kept: usize = segments.iter().map(|s| s.len - s.context.0 - s.context.1).sum();
        let padded = kept.next_multiple_of(ROW_BLOCK);
        self.vectors.resize(padded * WIDTH);
        let (mut row, mut at) = (GAP, 0);
        for segment in segments {
            let from = (row + segment.context.0) * WIDTH;
            let to = (row + segment.len - segment.context.1) * WIDTH;
            self.vectors[at..at + to - from].copy_from_slice(&self.rows[from..to]);
            at += to - from;
            row += segment.len + GAP;
        }
        let columns = network.head_columns();
        self.head.resize(padded * columns);
        kernels::linear(network.class, &self.vectors, WIDTH, &network.head, &mut self.head);
        let out = reduced.extend(kept);
        for (head, out) in self.head.chunks_exact_mut(columns).zip(out.chunks_exact_mut(HIDDEN)) {
            head.iter_mut().zip(network.head_bias.iter()).for_each(|(x, &bias)| *x += bias);
            let (reduced, scores) = head.split_at(HIDDEN);
            out.copy_from_slice(reduced);
            tags.push(best_of(&scores[..network.tags]));
        }
    }
}

/// Index and lead of the highest score, the first of equals.
pub(super) fn best_of(scores: &[f32]) -> TagChoice {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (i, &score) in scores.iter().enumerate() {
        if score > first {
            second = first;
            (first, best) = (score, i);
        } else if score > second {
            second = score;
        }
    }
    (best as u8, first - second)
}

/// The parser's input per token, and its first layer's terms for the tokens in use.
#[derive(Debug, Default)]
pub(crate) struct Reduced {
    /// `[tokens][HIDDEN]`, filled up to a whole number of blocks.
    vectors: Aligned,
    tokens: usize,
    /// `[KEPT][BLOCK][LOWER_COLUMNS]`.
    terms: Aligned,
    /// Where each block's terms are, or [`Self::ABSENT`].
    places: Vec<u8>,
    /// The block that each place holds, and when it was last looked at.
    holders: [(usize, u64); KEPT],
    clock: u64,
}

impl Reduced {
    const ABSENT: u8 = u8::MAX;

    pub(crate) fn clear(&mut self) {
        self.tokens = 0;
        self.vectors.resize(0);
        self.places.clear();
        self.holders = [(usize::MAX, 0); KEPT];
        self.clock = 0;
    }

    /// Room for the vectors of further tokens.
    fn extend(&mut self, tokens: usize) -> &mut [f32] {
        let from = self.tokens;
        self.tokens += tokens;
        let blocks = self.tokens.div_ceil(BLOCK);
        self.vectors.resize(blocks * BLOCK * HIDDEN);
        self.places.resize(blocks, Self::ABSENT);
        &mut self.vectors[from * HIDDEN..self.tokens * HIDDEN]
    }

    /// Makes sure that a token's terms are there; what was looked at least recently goes.
    fn prepare(&mut self, network: &Network, token: usize) {
        let block = token / BLOCK;
        self.clock += 1;
        let mut place = self.places[block];
        if place == Self::ABSENT {
            let oldest = self.holders.iter().enumerate().min_by_key(|(_, holder)| holder.1);
            let at = oldest.map_or(0, |(i, _)| i);
            place = at as u8;
            if let Some(old) = self.places.get_mut(self.holders[at].0) {
                *old = Self::ABSENT;
            }
            self.places[block] = place;
            self.holders[at].0 = block;
            let size = BLOCK * LOWER_COLUMNS;
            if self.terms.len() < (at + 1) * size {
                self.terms.resize((at + 1) * size);
            }
            let x = &self.vectors[block * BLOCK * HIDDEN..][..BLOCK * HIDDEN];
            let out = &mut self.terms[at * size..][..size];
            kernels::linear(network.class, x, HIDDEN, &network.lower, out);
        }
        self.holders[usize::from(place)].1 = self.clock;
    }

    fn terms(&self, token: usize, slot: usize) -> &[f32] {
        let row = usize::from(self.places[token / BLOCK]) * BLOCK + token % BLOCK;
        &self.terms[row * LOWER_COLUMNS + slot * LOWER..][..LOWER]
    }
}

/// Which classes each combination of allowed actions leaves: 0 or -∞ per class.
#[derive(Debug)]
pub(crate) struct Masks(Vec<Aligned>);

impl Masks {
    pub(crate) fn new(actions: &Actions) -> Self {
        let classes = actions.len().next_multiple_of(CLASS_BLOCK);
        let mask = |combination: usize| {
            let mut mask = Aligned::zeroed(classes);
            mask.fill(f32::NEG_INFINITY);
            let valid = std::array::from_fn(|kind| combination >> kind & 1 == 1);
            actions.allowed(valid).for_each(|class| mask[class] = 0.0);
            mask
        };
        Self((0..1 << 5).map(mask).collect())
    }

    fn of(&self, valid: Validity) -> &[f32] {
        &self.0[valid.iter().rev().fold(0, |acc, &v| acc << 1 | usize::from(v))]
    }
}

/// Decides for one document whose tokens begin at `first`.
pub(crate) struct FastScorer<'a> {
    pub(crate) network: &'a Network,
    pub(crate) masks: &'a Masks,
    pub(crate) reduced: &'a mut Reduced,
    pub(crate) first: usize,
    pub(crate) scores: &'a mut Vec<f32>,
}

impl Scorer for FastScorer<'_> {
    fn decide(&mut self, features: &Features, valid: Validity) -> Decision {
        if !valid.contains(&true) {
            return Decision { class: None, margin: f32::INFINITY };
        }
        for &token in features {
            if token >= 0 {
                self.reduced.prepare(self.network, self.first + token as usize);
            }
        }
        let network = self.network;
        let terms: [&[f32]; SLOTS] = std::array::from_fn(|slot| match usize::try_from(features[slot]) {
            Ok(token) => self.reduced.terms(self.first + token, slot),
            Err(_) => &network.lower_pad[slot * LOWER..][..LOWER],
        });
        self.scores.resize(network.upper_bias.len(), 0.0);
        let (bias, upper) = (&network.lower_bias, &network.upper);
        let mask = self.masks.of(valid);
        let (class, margin) =
            kernels::decide(network.class, terms, bias, upper, &network.upper_bias, mask, self.scores);
        Decision { class: Some(class), margin }
    }
}
