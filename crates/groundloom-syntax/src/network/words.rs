//! What depends on a word alone, remembered from text to text.
//!
//! A word's mix vector and its terms in the first residual block depend on its text, its
//! norm and whether a space follows, not on its neighbours. They are half of the
//! network's arithmetic, and captions repeat their words.

use std::collections::HashMap;

use super::aligned::Aligned;
use super::kernels::{self, PRE, ROW_BLOCK};
use super::packed::Network;
use crate::attribute_ruler::WordClass;
use crate::lexeme::Rows;
use crate::model::{COLUMNS, WIDTH};
use crate::tokenizer::NormId;

/// Vectors that a cache holds before it starts anew: about 3.8 kB each.
const MAX_SLOTS: usize = 1 << 14;
/// Words that are computed at once.
const BATCH: usize = 64;
/// No word, no slot.
const NONE: u32 = u32::MAX;

/// What the pipeline needs to know of a word beside its vectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WordFacts {
    pub(crate) class: WordClass,
    /// Length in characters.
    pub(crate) chars: u32,
    /// Whether all characters are white space.
    pub(crate) is_space: bool,
}

#[derive(Debug)]
struct Word {
    norm: Option<NormId>,
    facts: WordFacts,
    /// Table rows of NORM, PREFIX, SUFFIX, SHAPE.
    rows: [Rows; 4],
    /// Where its vectors are: without and with a space after it.
    slots: [u32; 2],
    /// The next word of the same text with another norm.
    next: u32,
}

/// Words and their vectors. Owned by one worker; bounded.
#[derive(Debug, Default)]
pub(crate) struct WordCache {
    by_text: HashMap<Box<str>, u32>,
    words: Vec<Word>,
    /// Table rows of every slot.
    rows: Vec<[Rows; COLUMNS]>,
    /// `[slots][WIDTH]`: the mix layer's output.
    mixed: Aligned,
    /// `[slots][3][PRE]`: terms for the word after, the word itself, the word before.
    terms: Aligned,
    /// Slots whose vectors have been computed.
    filled: usize,
    embedded: Aligned,
    pre: Aligned,
}

impl WordCache {
    /// Makes room for `tokens` tokens; slots handed out before are void if it clears.
    pub(crate) fn reserve(&mut self, tokens: usize) {
        if self.rows.len() + tokens > MAX_SLOTS {
            self.by_text.clear();
            self.words.clear();
            self.rows.clear();
            self.filled = 0;
        }
    }

    /// The slot and the facts of a word. `describe` is asked about words met first;
    /// `flags` gives the rows of SPACY and IS_SPACE.
    pub(crate) fn slot(
        &mut self,
        text: &str,
        norm: Option<NormId>,
        space_after: bool,
        describe: impl FnOnce() -> (WordFacts, [Rows; 4]),
        flags: impl FnOnce(&WordFacts) -> [Rows; 2],
    ) -> (u32, WordFacts) {
        let first = self.by_text.get(text).copied().unwrap_or(NONE);
        let mut id = first;
        while id != NONE && self.words[id as usize].norm != norm {
            id = self.words[id as usize].next;
        }
        if id == NONE {
            let (facts, rows) = describe();
            id = self.words.len() as u32;
            self.words.push(Word { norm, facts, rows, slots: [NONE; 2], next: first });
            self.by_text.insert(text.into(), id);
        }
        let word = &mut self.words[id as usize];
        let slot = &mut word.slots[usize::from(space_after)];
        if *slot == NONE {
            *slot = self.rows.len() as u32;
            let [a, b, c, d] = word.rows;
            let [e, f] = flags(&word.facts);
            self.rows.push([a, b, c, d, e, f]);
        }
        (*slot, word.facts)
    }

    /// Computes the vectors of the slots that were handed out since the last call.
    pub(super) fn fill(&mut self, network: &Network) {
        while self.filled < self.rows.len() {
            let rows = &self.rows[self.filled..self.rows.len().min(self.filled + BATCH)];
            let padded = rows.len().next_multiple_of(ROW_BLOCK);
            let inputs = COLUMNS * WIDTH;
            self.embedded.resize(padded * inputs);
            for (rows, out) in rows.iter().zip(self.embedded.chunks_exact_mut(inputs)) {
                network.embed(rows, out);
            }
            self.pre.resize(padded * PRE);
            kernels::linear(network.class, &self.embedded, inputs, &network.mix.panels, &mut self.pre);

            let end = self.filled + padded;
            if self.mixed.len() < end * WIDTH {
                // Grown by doubling: a large cache must not be copied for each new batch.
                let slots = end.max(2 * self.mixed.len() / WIDTH);
                self.mixed.resize(slots * WIDTH);
                self.terms.resize(slots * 3 * PRE);
            }
            let mixed = &mut self.mixed[self.filled * WIDTH..end * WIDTH];
            let layer = &network.mix;
            let zeros = [0.0; PRE];
            for (pre, out) in self.pre.chunks_exact(PRE).zip(mixed.chunks_exact_mut(WIDTH)) {
                let terms = [pre, &layer.bias, &zeros, &zeros];
                let base = &zeros[..WIDTH];
                kernels::maxout_norm(network.class, terms, base, &layer.gain, &layer.shift, out);
            }
            let terms = &mut self.terms[self.filled * 3 * PRE..end * 3 * PRE];
            kernels::linear(network.class, mixed, WIDTH, &network.first, terms);
            self.filled += rows.len();
        }
    }

    /// The mix layer's output for a slot, `[WIDTH]`.
    pub(super) fn mixed(&self, slot: u32) -> &[f32] {
        &self.mixed[slot as usize * WIDTH..][..WIDTH]
    }

    /// A slot's term in the first block as seen from the token after it (0), from itself
    /// (1), and from the token before it (2): `[PRE]`.
    pub(super) fn term(&self, slot: u32, part: usize) -> &[f32] {
        &self.terms[(slot as usize * 3 + part) * PRE..][..PRE]
    }
}

impl Network {
    /// The six embeddings of a word side by side, each the sum of four rows.
    pub(super) fn embed(&self, rows: &[Rows; COLUMNS], out: &mut [f32]) {
        for ((out, table), rows) in out.chunks_exact_mut(WIDTH).zip(&self.embed).zip(rows) {
            out.fill(0.0);
            for &row in rows {
                let row = &table[row as usize * WIDTH..][..WIDTH];
                out.iter_mut().zip(row).for_each(|(out, &e)| *out += e);
            }
        }
    }
}
