//! Graphs that the crate `hnsw_rs` builds, taken over into the layout that is mapped and searched here.
//!
//! Its levels come from a generator with a fixed seed, in the order of insertion, so a graph is repeatable as long as
//! vectors go in one after the other; its parallel insertion is not, and is not used. Our seed decides the order.

use hnsw_rs::prelude::{Distance, Hnsw};
use pulp::{Arch, Simd, WithSimd};

use crate::{
    beam::{Links, NO_NODE},
    collected::Collected,
    graph::GraphSettings,
    kernels,
    lines::Rows,
};

/// Levels that `hnsw_rs` can hold.
const MOST_LEVELS: usize = 16;

/// What is close, in the crate's terms: it asserts that no distance is negative or NaN.
#[derive(Clone, Copy)]
struct Closeness {
    arch: Arch,
    l2: bool,
    /// The largest squared length: no inner product is above it (Cauchy and Schwarz).
    largest: f32,
}

impl Distance<f32> for Closeness {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        let distance = self.arch.dispatch(Pair { a, b, l2: self.l2 });
        let distance = if self.l2 { distance } else { self.largest + distance };
        if distance.is_nan() { f32::MAX } else { distance.max(0.0) }
    }
}

/// Squared distance, or the negated inner product, of two padded vectors.
struct Pair<'a> {
    a: &'a [f32],
    b: &'a [f32],
    l2: bool,
}

impl WithSimd for Pair<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        if self.l2 { kernels::squared_distance(simd, self.a, self.b) } else { -kernels::dot(simd, self.a, self.b) }
    }
}

/// A graph that grows in `hnsw_rs`, with a copy of the vectors that are in.
pub(crate) struct HnswRs {
    graph: Hnsw<'static, f32, Closeness>,
    m: usize,
    inserted: usize,
}

/// A finished graph: the new node `i` is the old `order[i]`, and the links are between new nodes.
pub(crate) struct Taken {
    pub(crate) order: Vec<u32>,
    /// Nodes and links of every level, from 0 up.
    pub(crate) levels: Vec<(usize, Vec<u32>)>,
}

impl Taken {
    /// The vectors in the graph's order; those that are not in it yet stay at the end.
    pub(crate) fn arranged(&self, collected: &Collected) -> Collected {
        let rest = self.order.len() as u32..collected.nodes() as u32;
        let order: Vec<u32> = self.order.iter().copied().chain(rest).collect();
        collected.clone().reordered(&order)
    }

    /// The graph as it is searched. `m` is the one it was built with.
    pub(crate) fn view<'a>(&'a self, m: usize) -> Vec<Links<'a>> {
        let links = |(level, (nodes, ids)): (usize, &'a (usize, Vec<u32>))| Links {
            ids,
            cap: cap(m, level),
            nodes: *nodes as u32,
        };
        self.levels.iter().enumerate().map(links).collect()
    }
}

/// Links of a node of `level`.
fn cap(m: usize, level: usize) -> usize {
    if level == 0 { 2 * m } else { m }
}

impl HnswRs {
    /// A graph without nodes, for vectors like those of `rows`.
    pub(crate) fn new(rows: &Rows, l2: bool, settings: GraphSettings) -> Self {
        let arch = Arch::new();
        let square = |row: usize| -arch.dispatch(Pair { a: rows.row(row), b: rows.row(row), l2: false });
        let largest = (0..rows.len()).map(square).fold(0.0, f32::max);
        let closeness = Closeness { arch, l2, largest };
        let graph = Hnsw::new(settings.m, rows.len(), MOST_LEVELS, settings.ef_construction, closeness);
        Self { graph, m: settings.m, inserted: 0 }
    }

    /// Puts the rows up to `end` in, one after the other.
    pub(crate) fn insert_until(&mut self, rows: &Rows, end: usize) {
        for row in self.inserted..end.min(rows.len()) {
            self.graph.insert_slice((rows.row(row), row));
        }
        self.inserted = self.inserted.max(end.min(rows.len()));
    }

    /// The graph as it stands. Nodes of the highest level come first, as everywhere here; the first of them is where
    /// `hnsw_rs` begins its searches too.
    pub(crate) fn take(&self) -> Taken {
        let points = self.graph.get_point_indexation();
        let top = usize::from(self.graph.get_max_level_observed());
        let mut order: Vec<u32> = Vec::with_capacity(self.inserted);
        let mut counts = vec![0; top + 1];
        for level in (0..=top).rev() {
            order.extend(points.get_layer_iterator(level).map(|point| point.get_origin_id() as u32));
            counts[level] = order.len();
        }
        let mut moved = vec![NO_NODE; self.inserted];
        order.iter().enumerate().for_each(|(new, old)| moved[*old as usize] = new as u32);
        let mut levels: Vec<(usize, Vec<u32>)> = counts
            .iter()
            .enumerate()
            .map(|(level, nodes)| (*nodes, vec![NO_NODE; nodes * cap(self.m, level)]))
            .collect();
        for own in 0..=top {
            for point in points.get_layer_iterator(own) {
                let node = moved[point.get_origin_id()] as usize;
                // The crate also notes the way from the top in levels that the node does not belong to.
                for (level, links) in point.get_neighborhood_id().iter().enumerate().take(own + 1) {
                    let (nodes, ids) = &mut levels[level];
                    let cap = cap(self.m, level);
                    let places = ids[node * cap..(node + 1) * cap].iter_mut();
                    let there = links.iter().map(|link| moved[link.d_id]).filter(|to| (*to as usize) < *nodes);
                    places.zip(there).for_each(|(place, to)| *place = to);
                }
            }
        }
        Taken { order, levels }
    }
}
