//! Best-first search in a graph of neighbours (Malkov and Yashunin, "Efficient and robust approximate nearest neighbor
//! search using Hierarchical Navigable Small World graphs", algorithm 2), with and without a filter.

use std::sync::Mutex;

use pulp::Simd;

use crate::{kernels, space::Space};

/// A node and its distance from the query; the order is by distance, then by node.
///
/// Both are one number, the distance in the upper half with its bits turned so that they order as floats do: a pool of
/// neighbours is sorted by comparing integers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbour(u64);

impl Neighbour {
    #[inline(always)]
    pub(crate) fn new(distance: f32, node: u32) -> Self {
        let bits = distance.to_bits();
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Self(u64::from(ordered) << 32 | u64::from(node))
    }

    #[inline(always)]
    pub(crate) fn distance(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    #[inline(always)]
    pub(crate) fn node(self) -> u32 {
        self.0 as u32
    }
}

impl std::fmt::Debug for Neighbour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.node(), self.distance())
    }
}

/// One level of a graph: `cap` ids a node, those that are not used hold [`NO_NODE`] and come last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Links<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) cap: usize,
    /// Nodes of this level are `0..nodes`.
    pub(crate) nodes: u32,
}

/// Fills the unused places of a node's links.
pub(crate) const NO_NODE: u32 = u32::MAX;

impl<'a> Links<'a> {
    /// The places of a node's links; those from the first id past the level's nodes on are not used.
    #[inline(always)]
    pub(crate) fn places(&self, node: u32) -> &'a [u32] {
        let start = node as usize * self.cap;
        self.ids.get(start..start + self.cap).unwrap_or_default()
    }
}

/// How far a walk looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    /// The walk ends when the links of so many of the closest nodes were followed.
    pub(crate) width: usize,
    /// Closest nodes that are remembered; the walk goes on until there are so many, or no more.
    pub(crate) kept: usize,
}

/// The nodes that a filtered walk may find.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed<'a> {
    /// A bit a node.
    pub(crate) nodes: &'a [u64],
    /// Which part of all nodes they are.
    pub(crate) share: f32,
    /// The width of a walk that sets out where more than twice that part may be found: near there the filter closes few ways.
    pub(crate) width_within: usize,
    /// The width of a walk that sets out where less than a quarter of that part may be found. The view's width was measured with filters that know nothing of the
    /// vectors; what such a filter allows lies elsewhere.
    pub(crate) width_elsewhere: usize,
}

/// What a search needs and leaves behind for the next one.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// A bit a node: whether it was met in this search.
    seen: Vec<u64>,
    /// The nodes whose bits are set.
    met: Vec<u32>,
    /// The nodes met last, and their distances.
    fresh: Vec<u32>,
    distances: Vec<f32>,
    /// The closest nodes found, ascending, after a search.
    pub(crate) pool: Vec<Neighbour>,
    expanded: Vec<bool>,
    seeds: Vec<Neighbour>,
    /// Distances computed since it was last set to 0.
    pub(crate) computed: usize,
}

impl Scratch {
    /// Begins a search among `nodes` nodes at node 0.
    #[inline(always)]
    pub(crate) fn begin<S: Simd>(&mut self, simd: S, space: &impl Space, nodes: u32, kept: usize) {
        for node in self.met.drain(..) {
            if let Some(word) = self.seen.get_mut(node as usize / 64) {
                *word = 0;
            }
        }
        self.seen.resize(self.seen.len().max(nodes as usize / 64 + 1), 0);
        self.pool.clear();
        self.expanded.clear();
        self.meet(&[0], nodes);
        self.measure(simd, space);
        self.offer(0, kept);
    }

    /// Takes those of `ids` in that are met for the first time. Ids from `nodes` on end the list, so that a damaged file
    /// cannot lead outside.
    #[inline(always)]
    fn meet(&mut self, ids: &[u32], nodes: u32) {
        self.fresh.resize(ids.len(), 0);
        let mut count = 0;
        // No branch asks whether a node is new: it would be guessed wrong half of the time.
        for id in ids.iter().take_while(|id| **id < nodes) {
            let word = self.seen.get_mut(*id as usize / 64);
            let (Some(word), Some(place)) = (word, self.fresh.get_mut(count)) else { break };
            *place = *id;
            count += usize::from(*word >> (id % 64) & 1 == 0);
            *word |= 1 << (id % 64);
        }
        self.fresh.truncate(count);
        self.met.extend_from_slice(&self.fresh);
    }

    /// As [`Scratch::meet`] with the links of `node`, but only those that are `allowed`, and behind those that are not
    /// their own links that are: a node's neighbours in the graph of allowed nodes. About as many as a node has links.
    #[inline(always)]
    fn meet_allowed(&mut self, links: Links<'_>, node: u32, allowed: &[u64]) {
        self.fresh.resize(2 * links.cap, 0);
        let mut count = 0;
        let first = self.met.len();
        let places = links.places(node);
        for id in places.iter().take_while(|id| **id < links.nodes) {
            let at = *id as usize / 64;
            let (Some(word), Some(place)) = (self.seen.get_mut(at), self.fresh.get_mut(count)) else { break };
            let new = *word >> (id % 64) & 1 == 0;
            let found = new && allowed.get(at).is_some_and(|word| word >> (id % 64) & 1 == 1);
            *place = *id;
            count += usize::from(found);
            *word |= 1 << (id % 64);
            if new && !found {
                self.met.push(*id);
                kernels::prefetch(links.places(*id));
            }
        }
        let ways = first..self.met.len();
        for way in ways {
            if count >= links.cap {
                break;
            }
            for id in links.places(self.met[way]).iter().take_while(|id| **id < links.nodes) {
                let at = *id as usize / 64;
                let (Some(word), Some(place)) = (self.seen.get_mut(at), self.fresh.get_mut(count)) else { break };
                let found = allowed.get(at).copied().unwrap_or(0) & !*word;
                *place = *id;
                count += (found >> (id % 64) & 1) as usize;
                *word |= found & 1 << (id % 64);
            }
        }
        self.fresh.truncate(count);
        self.met.extend_from_slice(&self.fresh);
    }

    /// Computes the distances of the nodes met last: all of them, before any is judged, so that a wrong guess about one does
    /// not hold up the loads of the next.
    #[inline(always)]
    fn measure<S: Simd>(&mut self, simd: S, space: &impl Space) {
        self.computed += self.fresh.len();
        self.distances.clear();
        self.fresh.iter().take(AHEAD).for_each(|id| space.prefetch(*id));
        for (i, id) in self.fresh.iter().enumerate() {
            if let Some(next) = self.fresh.get(i + AHEAD) {
                space.prefetch(*next);
            }
            self.distances.push(space.distance(simd, *id));
        }
    }

    /// Puts the `i`th of the nodes met last into the pool of at most `kept`; the place where it went.
    #[inline(always)]
    fn offer(&mut self, i: usize, kept: usize) -> Option<usize> {
        let found = Neighbour::new(*self.distances.get(i)?, *self.fresh.get(i)?);
        if self.pool.len() >= kept {
            // Most are turned away here.
            if self.pool.last().is_none_or(|worst| found >= *worst) {
                return None;
            }
            self.pool.pop();
            self.expanded.pop();
        }
        let at = self.pool.partition_point(|n| *n < found);
        self.pool.insert(at, found);
        self.expanded.insert(at, false);
        Some(at)
    }

    /// Measures the nodes met last and puts them into the pool; the first place that changed before `at`, else `at`.
    #[inline(always)]
    fn take_in<S: Simd>(&mut self, simd: S, space: &impl Space, links: Links<'_>, kept: usize, mut at: usize) -> usize {
        self.measure(simd, space);
        for i in 0..self.fresh.len() {
            if let Some(place) = self.offer(i, kept)
                && place < at
            {
                at = place;
                kernels::prefetch(links.places(self.fresh[i]));
            }
        }
        at
    }

    #[inline(always)]
    fn nearest(&self) -> Option<u32> {
        self.pool.first().map(|n| n.node())
    }
}

/// Scratches that searches of many threads share.
#[derive(Debug, Default)]
pub(crate) struct ScratchPool(Mutex<Vec<Scratch>>);

impl ScratchPool {
    /// Runs `work` with a scratch of its own.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let mut scratch = self.0.lock().map_or_else(|_| None, |mut all| all.pop()).unwrap_or_default();
        let answer = work(&mut scratch);
        if let Ok(mut all) = self.0.lock() {
            all.push(scratch);
        }
        answer
    }
}

/// How many vectors ahead of the one being computed are asked for.
const AHEAD: usize = 2;

/// Goes from the nearest node of the pool to the nearest that can be reached by steps that each come nearer. What is met
/// on the way goes into the pool.
#[inline(always)]
pub(crate) fn descend<S: Simd>(simd: S, space: &impl Space, links: Links<'_>, kept: usize, scratch: &mut Scratch) {
    while let Some(here) = scratch.nearest() {
        scratch.meet(links.places(here), links.nodes);
        scratch.take_in(simd, space, links, kept, 0);
        if scratch.nearest() == Some(here) {
            return;
        }
    }
}

/// The nearest nodes that best-first search from those in the pool finds; they are in the pool then.
#[inline(always)]
pub(crate) fn beam<S: Simd>(simd: S, space: &impl Space, links: Links<'_>, view: View, scratch: &mut Scratch) {
    scratch.expanded.fill(false);
    let mut at = 0;
    loop {
        match scratch.expanded.get_mut(at) {
            Some(true) => {
                at += 1;
                continue;
            }
            Some(_) if at >= view.width && scratch.pool.len() >= view.kept => break,
            Some(expanded) => *expanded = true,
            None => break,
        }
        scratch.meet(links.places(scratch.pool[at].node()), links.nodes);
        at = scratch.take_in(simd, space, links, view.kept, at + 1);
    }
}

/// As [`beam`], but in the graph of the nodes that are `allowed` (a bit each): its links are those of ours, and two of ours
/// where the node between is not allowed (Patel and others, "ACORN: Performant and Predictable Search Over Vector Embeddings
/// and Structured Data", arXiv 2403.04871, section 5.3). So no distance is computed of a node that may not be found. Where
/// few are allowed, this graph may fall apart, and fewer nodes are found than there are.
#[inline(always)]
pub(crate) fn filtered_beam<S: Simd>(
    simd: S,
    space: &impl Space,
    links: Links<'_>,
    mut view: View,
    allowed: Allowed<'_>,
    scratch: &mut Scratch,
) {
    let Allowed { nodes: allowed, share, width_within, width_elsewhere } = allowed;
    let is_allowed =
        |n: &Neighbour| allowed.get(n.node() as usize / 64).is_some_and(|word| word >> (n.node() % 64) & 1 == 1);
    std::mem::swap(&mut scratch.pool, &mut scratch.seeds);
    scratch.pool.clear();
    let Scratch { pool, seeds, expanded, .. } = scratch;
    pool.extend(seeds.iter().filter(|n| is_allowed(n)));
    expanded.clear();
    expanded.resize(pool.len(), false);
    let (near, expected) = (pool.len() as f32, share * seeds.len() as f32);
    let at_least = if 4.0 * near < expected {
        width_elsewhere
    } else if near > 2.0 * expected || pool.len() == seeds.len() {
        width_within
    } else {
        0
    };
    view.width = view.width.max(at_least);
    view.kept = view.kept.max(view.width);
    // The nearest node that was met on the way down leads on even when it may not be found; the others when nothing else does.
    seeds.retain({
        let mut first = true;
        move |n| std::mem::replace(&mut first, false) || !is_allowed(n)
    });
    let mut seed = 0;
    let mut at = 0;
    loop {
        let node = match scratch.expanded.get_mut(at) {
            _ if seed == 0 => None,
            Some(true) => {
                at += 1;
                continue;
            }
            Some(_) if at >= view.width && scratch.pool.len() >= view.kept => break,
            Some(expanded) => {
                *expanded = true;
                scratch.pool.get(at).map(|n| n.node())
            }
            None => None,
        };
        let node = node.or_else(|| {
            seed += 1;
            scratch.seeds.get(seed - 1).map(|n| n.node())
        });
        let Some(node) = node else { break };
        scratch.meet_allowed(links, node, allowed);
        at = scratch.take_in(simd, space, links, view.kept, at);
    }
}
