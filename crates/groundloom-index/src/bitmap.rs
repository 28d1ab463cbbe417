//! Sets of row positions.

/// A set of the positions `0..len`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitmap {
    words: Vec<u64>,
    len: usize,
}

impl Bitmap {
    /// No position of `0..len`.
    pub fn none(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    /// Every position of `0..len`.
    pub fn all(len: usize) -> Self {
        let mut words = vec![u64::MAX; len.div_ceil(64)];
        if let Some(last) = words.last_mut().filter(|_| !len.is_multiple_of(64)) {
            *last = (1 << (len % 64)) - 1;
        }
        Self { words, len }
    }

    /// The positions for which `keep` holds.
    pub fn from_fn(len: usize, keep: impl Fn(usize) -> bool) -> Self {
        let mut set = Self::none(len);
        (0..len).filter(|i| keep(*i)).for_each(|i| set.insert(i));
        set
    }

    /// Positions that could be in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position could be in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `position` is in it.
    #[inline]
    pub fn contains(&self, position: usize) -> bool {
        self.words.get(position / 64).is_some_and(|w| w >> (position % 64) & 1 == 1)
    }

    /// Puts `position` in; one beyond the length is ignored.
    pub fn insert(&mut self, position: usize) {
        if position < self.len {
            self.words[position / 64] |= 1 << (position % 64);
        }
    }

    /// Takes `position` out.
    pub fn remove(&mut self, position: usize) {
        if position < self.len {
            self.words[position / 64] &= !(1 << (position % 64));
        }
    }

    /// How many positions are in it.
    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Its positions, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.iter_range(0, self.words.len() * 64)
    }

    /// Its positions from `start` (a multiple of 64) up to `end`, ascending.
    pub(crate) fn iter_range(&self, start: usize, end: usize) -> impl Iterator<Item = usize> + '_ {
        let words = start / 64..end.div_ceil(64).min(self.words.len());
        words.flat_map(|i| {
            let mut left = self.words[i];
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(i * 64 + bit)
            })
        })
    }

    /// Takes out what `other` lacks.
    pub fn intersect(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= b);
    }

    /// Takes out what `other` has.
    pub fn subtract(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= !b);
    }

    /// The words, least significant bit first.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// From words; `None` when they are not of the length or hold positions past it.
    pub(crate) fn from_words(words: Vec<u64>, len: usize) -> Option<Self> {
        let whole = words.len() == len.div_ceil(64);
        let tail = len.is_multiple_of(64) || words.last().is_none_or(|w| w >> (len % 64) == 0);
        (whole && tail).then_some(Self { words, len })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(len in 0_usize..300, puts in prop::collection::vec(0_usize..300, 0..200), takes in prop::collection::vec(0_usize..300, 0..50)) {
            let mut set = Bitmap::none(len);
            let mut model = BTreeSet::new();
            for p in puts {
                set.insert(p);
                if p < len { model.insert(p); }
            }
            for p in takes {
                set.remove(p);
                model.remove(&p);
            }
            prop_assert_eq!(set.count(), model.len());
            prop_assert!(set.iter().eq(model.iter().copied()));
            let mut rest = Bitmap::all(len);
            prop_assert_eq!(rest.count(), len);
            rest.subtract(&set);
            prop_assert_eq!(rest.count(), len - model.len());
            prop_assert_eq!(Bitmap::from_words(set.words().to_vec(), len), Some(set));
        }
    }
}
