//! Phrases that see only themselves.

use candle_core::{Device, Result, Tensor};

/// `[CLS]`, `[SEP]`, `.` and `?` in BERT's vocabulary: what ends a phrase. The reference fixes them by number.
pub(crate) const DELIMITERS: [u32; 4] = [101, 102, 1012, 1029];

/// Which tokens see each other, and their places in their phrases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// `[tokens, tokens]`: a phrase with the delimiter that ends it sees itself, every other token itself only.
    pub(crate) sees: Vec<bool>,
    /// Place of each token in its phrase, from 0; 0 for tokens outside phrases.
    pub(crate) positions: Vec<u32>,
}

impl Blocks {
    /// Of one row of token ids, padding included.
    pub(crate) fn of(ids: &[u32]) -> Self {
        let count = ids.len();
        let mut sees = vec![false; count * count];
        let mut positions = vec![0; count];
        let mut begin = 0;
        for (end, id) in ids.iter().enumerate() {
            sees[end * count + end] = true;
            if !DELIMITERS.contains(id) {
                continue;
            }
            // What ends at the first or at the last place is no phrase.
            if end != 0 && end + 1 != count {
                for (place, token) in (begin..=end).enumerate() {
                    positions[token] = place as u32;
                    sees[token * count + begin..=token * count + end].fill(true);
                }
            }
            begin = end + 1;
        }
        Self { sees, positions }
    }
}

/// How blocks are laid over attention scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockMask {
    /// Tokens of other blocks are not seen: how the model was trained, and what transformers computes by default.
    Hidden,
    /// 1 is added to the scores inside a block: what transformers' eager attention makes of a mask of booleans, and
    /// therefore of reference outputs that were recorded with it.
    Added,
}

/// The blocks of several rows as one mask `[batch, 1, tokens, tokens]` to add to scores.
pub(crate) fn mask_of(blocks: &[Blocks], mask: BlockMask, device: &Device) -> Result<Tensor> {
    let count = blocks.first().map_or(0, |b| b.positions.len());
    let (inside, outside) = match mask {
        BlockMask::Hidden => (0.0, f32::MIN),
        BlockMask::Added => (1.0, 0.0),
    };
    let values: Vec<f32> =
        blocks.iter().flat_map(|b| &b.sees).map(|&sees| if sees { inside } else { outside }).collect();
    Tensor::from_vec(values, (blocks.len(), 1, count, count), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_see_themselves_and_their_delimiter() {
        // [CLS] a cat . dog ? [SEP] [PAD]
        let blocks = Blocks::of(&[101, 7, 8, 1012, 9, 1029, 102, 0]);
        assert_eq!(blocks.positions, [0, 0, 1, 2, 0, 1, 0, 0]);
        let row = |token: usize| (0..8).filter(|&other| blocks.sees[token * 8 + other]).collect::<Vec<_>>();
        assert_eq!(
            (0..8).map(row).collect::<Vec<_>>(),
            [vec![0], vec![1, 2, 3], vec![1, 2, 3], vec![1, 2, 3], vec![4, 5], vec![4, 5], vec![6], vec![7],]
        );
        // Without a delimiter at the end the last words are no phrase.
        let open = Blocks::of(&[101, 7, 8, 102]);
        assert_eq!(open.positions, [0, 0, 0, 0]);
        assert_eq!(open.sees.iter().filter(|sees| **sees).count(), 4);
        assert_eq!(Blocks::of(&[]).positions, [0_u32; 0]);
    }
}
