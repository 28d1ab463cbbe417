//! Best-first search in a graph of neighbours (Malkov and Yashunin, "Efficient and robust approximate nearest neighbor
//! search using Hierarchical Navigable Small World graphs", algorithm 2), with and without a filter.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Mutex};

use pulp::Simd;

use crate::space::Space;

/// A node and its distance from the query; the order is by distance, then by node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Neighbour {
    pub(crate) distance: f32,
    pub(crate) node: u32,
}

impl Eq for Neighbour {}

impl Ord for Neighbour {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.distance.total_cmp(&other.distance).then(self.node.cmp(&other.node))
    }
}

impl PartialOrd for Neighbour {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
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
    /// The neighbours of `node`. Ids past the level's nodes end the list, so that a damaged file cannot lead outside.
    #[inline(always)]
    pub(crate) fn of(&self, node: u32) -> impl Iterator<Item = u32> + use<'a> {
        let start = node as usize * self.cap;
        let nodes = self.nodes;
        self.ids.get(start..start + self.cap).unwrap_or_default().iter().copied().take_while(move |id| *id < nodes)
    }
}

/// What a search needs and leaves behind for the next one.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    visited: Vec<u16>,
    round: u16,
    fresh: Vec<u32>,
    /// The closest nodes found, ascending, after a search.
    pub(crate) pool: Vec<Neighbour>,
    expanded: Vec<bool>,
    open: BinaryHeap<Reverse<Neighbour>>,
    /// Distances computed since it was last set to 0.
    pub(crate) computed: usize,
}

impl Scratch {
    fn begin(&mut self, nodes: u32) {
        self.visited.resize(self.visited.len().max(nodes as usize), 0);
        self.round = self.round.wrapping_add(1);
        if self.round == 0 {
            self.visited.fill(0);
            self.round = 1;
        }
        self.pool.clear();
        self.expanded.clear();
        self.open.clear();
    }

    /// Whether `node` is met for the first time in this search.
    #[inline(always)]
    fn first_visit(&mut self, node: u32) -> bool {
        match self.visited.get_mut(node as usize) {
            Some(seen) if *seen != self.round => {
                *seen = self.round;
                true
            }
            _ => false,
        }
    }

    /// Puts a neighbour into the pool of at most `ef`; the place where it went.
    #[inline(always)]
    fn offer(&mut self, found: Neighbour, ef: usize) -> Option<usize> {
        if self.pool.len() == ef {
            // Most are turned away here.
            if self.pool.last().is_none_or(|worst| found.distance > worst.distance || found >= *worst) {
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

/// Nodes that may be found, and how many distances a walk may compute before it gives up.
#[derive(Clone, Copy)]
pub(crate) struct NodeFilter<'a> {
    pub(crate) allowed: &'a (dyn Fn(u32) -> bool + Sync),
    pub(crate) limit: usize,
}

/// How many vectors ahead of the one being computed are asked for.
const AHEAD: usize = 2;

/// The node nearest to the query that can be reached from `start` by steps that each come nearer.
#[inline(always)]
pub(crate) fn greedy<S: Simd>(
    simd: S,
    space: &impl Space,
    links: Links<'_>,
    start: Neighbour,
    computed: &mut usize,
) -> Neighbour {
    let mut best = start;
    loop {
        let here = best.node;
        for id in links.of(here) {
            space.prefetch(id);
        }
        for id in links.of(here) {
            *computed += 1;
            best = best.min(Neighbour { distance: space.distance(simd, id), node: id });
        }
        if best.node == here {
            return best;
        }
    }
}

/// The `ef` nearest nodes that best-first search from `start` finds; they are in the scratch's pool.
#[inline(always)]
pub(crate) fn beam<S: Simd>(
    simd: S,
    space: &impl Space,
    links: Links<'_>,
    start: &[Neighbour],
    ef: usize,
    scratch: &mut Scratch,
) {
    scratch.begin(links.nodes);
    for found in start {
        if scratch.first_visit(found.node) {
            scratch.offer(*found, ef);
        }
    }
    let mut at = 0;
    let mut fresh = std::mem::take(&mut scratch.fresh);
    while at < scratch.pool.len() {
        if std::mem::replace(&mut scratch.expanded[at], true) {
            at += 1;
            continue;
        }
        let node = scratch.pool[at].node;
        fresh.clear();
        fresh.extend(links.of(node).filter(|id| scratch.first_visit(*id)));
        fresh.iter().take(AHEAD).for_each(|id| space.prefetch(*id));
        scratch.computed += fresh.len();
        at += 1;
        for (i, id) in fresh.iter().enumerate() {
            if let Some(next) = fresh.get(i + AHEAD) {
                space.prefetch(*next);
            }
            let distance = space.distance(simd, *id);
            if let Some(place) = scratch.offer(Neighbour { distance, node: *id }, ef) {
                at = at.min(place);
            }
        }
    }
    scratch.fresh = fresh;
}

/// As [`beam`], but only nodes that the filter allows count as found; the others are still ways. False when more than
/// its limit of distances would be needed: the pool is incomplete then.
#[inline(always)]
pub(crate) fn filtered_beam<S: Simd>(
    simd: S,
    space: &impl Space,
    links: Links<'_>,
    start: Neighbour,
    ef: usize,
    filter: NodeFilter<'_>,
    scratch: &mut Scratch,
) -> bool {
    let NodeFilter { allowed, limit } = filter;
    scratch.begin(links.nodes);
    scratch.first_visit(start.node);
    scratch.open.push(Reverse(start));
    if allowed(start.node) {
        scratch.offer(start, ef);
    }
    let begun = scratch.computed;
    let mut fresh = std::mem::take(&mut scratch.fresh);
    let mut complete = true;
    while let Some(Reverse(nearest)) = scratch.open.pop() {
        let full = scratch.pool.len() == ef;
        if full && scratch.pool.last().is_some_and(|worst| nearest > *worst) {
            break;
        }
        if scratch.computed - begun > limit {
            complete = false;
            break;
        }
        fresh.clear();
        fresh.extend(links.of(nearest.node).filter(|id| scratch.first_visit(*id)));
        fresh.iter().take(AHEAD).for_each(|id| space.prefetch(*id));
        scratch.computed += fresh.len();
        for (i, id) in fresh.iter().enumerate() {
            if let Some(next) = fresh.get(i + AHEAD) {
                space.prefetch(*next);
            }
            let found = Neighbour { distance: space.distance(simd, *id), node: *id };
            if scratch.pool.len() < ef || scratch.pool.last().is_some_and(|worst| found < *worst) {
                scratch.open.push(Reverse(found));
                if allowed(*id) {
                    scratch.offer(found, ef);
                }
            }
        }
    }
    scratch.fresh = fresh;
    complete
}
