//! Searching one segment's vectors: through the graph, or by looking at all of them.

use std::collections::BinaryHeap;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::{
    IndexError,
    beam::{Allowed, Links, Neighbour, Scratch, View, beam, descend, filtered_beam},
    codes::{encode_bits, encode_bytes},
    rescoring::{Stored, candidates, rescore},
    space::{BitSpace, ByteSpace, FloatSpace, Space},
};

/// Vectors, their codes and their graph, wherever they lie.
#[derive(Debug, Clone)]
pub(crate) struct Searchable<'a> {
    pub(crate) vectors: &'a [f32],
    /// Where vectors are read from that are not looked at in `vectors`, to score again what codes found.
    pub(crate) stored: Option<Stored<'a>>,
    pub(crate) stride: usize,
    pub(crate) nodes: usize,
    pub(crate) l2: bool,
    pub(crate) codes: Codes<'a>,
    /// From level 0 up; empty without a graph.
    pub(crate) levels: Vec<Links<'a>>,
}

/// What the graph is walked with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Codes<'a> {
    F32,
    Int8 { codes: &'a [i8], stride: usize, scale: f32 },
    Binary { codes: &'a [u64], stride: usize, means: &'a [f32] },
}

impl Searchable<'_> {
    fn floats<'q>(&'q self, query: &'q [f32]) -> FloatSpace<'q> {
        FloatSpace { values: self.vectors, stride: self.stride, query, l2: self.l2 }
    }

    /// The nearest nodes that a walk finds, ascending, with distances of the vectors themselves; `answers` of them, and
    /// what else was measured on the way. `query` is padded to the stride.
    ///
    /// # Errors
    /// When a vector cannot be read.
    pub(crate) fn walk(
        &self,
        query: &[f32],
        answers: usize,
        view: View,
        allowed: Option<Allowed<'_>>,
        scratch: &mut Scratch,
    ) -> Result<Vec<Neighbour>, IndexError> {
        let arch = Arch::new();
        let levels = &self.levels;
        let mut bytes = Vec::new();
        match self.codes {
            Codes::F32 => {
                arch.dispatch(Walk { space: self.floats(query), levels, view, allowed, scratch: &mut *scratch })
            }
            Codes::Int8 { codes, stride, scale } => {
                bytes.resize(stride, 0);
                encode_bytes(query, scale, &mut bytes);
                let space = ByteSpace { codes, stride, query: &bytes, l2: self.l2 };
                arch.dispatch(Walk { space, levels, view, allowed, scratch: &mut *scratch })
            }
            Codes::Binary { codes, stride, means } => {
                let mut code = vec![0; stride];
                encode_bits(query, means, &mut code);
                let space = BitSpace { codes, stride, query: &code };
                arch.dispatch(Walk { space, levels, view, allowed, scratch: &mut *scratch })
            }
        }
        let mut found = scratch.pool.clone();
        if !matches!(self.codes, Codes::F32) {
            found.truncate(candidates(self.codes, &bytes, self.l2, self.stride, &found, answers));
            rescore(self.floats(query), self.stored, &mut found)?;
        }
        Ok(found)
    }

    /// The `k` nearest of all pairs of a node and something ranked with it (a row), ascending by distance, then by what is
    /// ranked. `pairs` gives those of a part of the work; parts run on all threads.
    pub(crate) fn scan<I>(
        &self,
        query: &[f32],
        k: usize,
        parts: usize,
        pairs: impl Fn(usize) -> I + Sync,
    ) -> Vec<Ranked>
    where
        I: Iterator<Item = (u32, u32)>,
    {
        let arch = Arch::new();
        let one = |part: usize| arch.dispatch(Scan { space: self.floats(query), k, pairs: pairs(part) });
        let mut all: Vec<Ranked> =
            if parts == 1 { one(0) } else { (0..parts).into_par_iter().flat_map_iter(one).collect() };
        all.sort_unstable();
        all.truncate(k);
        all
    }
}

/// A row and its distance; the order is by distance, then by row.
pub(crate) type Ranked = Neighbour;

struct Walk<'a, P> {
    space: P,
    levels: &'a [Links<'a>],
    view: View,
    allowed: Option<Allowed<'a>>,
    scratch: &'a mut Scratch,
}

impl<P: Space> WithSimd for Walk<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { space, levels, view, allowed, scratch } = self;
        let Some((ground, upper)) = levels.split_first() else { return };
        scratch.begin(simd, &space, ground.nodes, view.kept);
        for links in upper.iter().rev() {
            descend(simd, &space, *links, view.kept, scratch);
        }
        match allowed {
            None => beam(simd, &space, *ground, view, scratch),
            Some(allowed) => filtered_beam(simd, &space, *ground, view, allowed, scratch),
        }
    }
}

struct Scan<'a, I> {
    space: FloatSpace<'a>,
    k: usize,
    pairs: I,
}

impl<I: Iterator<Item = (u32, u32)>> WithSimd for Scan<'_, I> {
    type Output = Vec<Ranked>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<Ranked> {
        let mut best: BinaryHeap<Ranked> = BinaryHeap::with_capacity(self.k + 1);
        let mut last = (u32::MAX, 0.0);
        for (node, row) in self.pairs {
            if last.0 != node {
                last = (node, self.space.distance(simd, node));
            }
            let found = Ranked::new(last.1, row);
            if best.len() < self.k {
                best.push(found);
            } else if best.peek().is_some_and(|worst| found < *worst) {
                best.pop();
                best.push(found);
            }
        }
        best.into_vec()
    }
}
