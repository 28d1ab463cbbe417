//! Building the graph of neighbours.
//!
//! The graph is HNSW's (Malkov and Yashunin, arXiv 1603.09320): nodes of level 0 have up to `2 m` links, those of the
//! levels above up to `m`, chosen by the paper's heuristic (algorithm 4). Nodes go in by batches, in the manner of
//! ParlayANN (Dobson and others, arXiv 2305.04359): all nodes of a batch look at the graph as it was before the batch,
//! on as many threads as there are, and the links back to them are gathered, sorted and pruned once per target. So the
//! graph is decided by the vectors, the settings and the seed, and not by threads or timing.
//!
//! A node looks for its neighbours with codes of a byte a dimension, which are a quarter of the vectors to read; which of
//! those that were found become links is decided with the vectors.
//!
//! Nodes are numbered in the order in which they go in, those of the highest level first. The nodes of every level are
//! therefore a prefix, and node 0 is where every search begins.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    IndexError,
    beam::{Links, NO_NODE, Neighbour, Scratch, ScratchPool, View, beam, descend},
    lines::Rows,
    space::{ByteSpace, FloatSpace, row},
};

/// What builds a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Builder {
    /// Batches of nodes on all threads.
    #[default]
    Batches,
    /// The crate `hnsw_rs`, one node after the other.
    HnswRs,
}

impl Builder {
    /// Its name in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batches => "batches",
            Self::HnswRs => "hnsw_rs",
        }
    }
}

impl std::str::FromStr for Builder {
    type Err = IndexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "batches" => Ok(Self::Batches),
            "hnsw_rs" => Ok(Self::HnswRs),
            other => Err(IndexError::BadSetting {
                setting: "builder",
                expected: "`batches` or `hnsw_rs`",
                found: format!("{other:?}"),
            }),
        }
    }
}

/// Most links that a node chooses.
pub(crate) const MOST_LINKS: usize = 128;

/// What decides a graph beside its vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphSettings {
    /// Links a node chooses, from 2 to 128; level 0 keeps up to twice as many.
    pub m: usize,
    /// Nodes in view while a node's links are chosen, from `m` to 4096.
    pub ef_construction: usize,
    /// Decides levels and order; with `hnsw_rs`, whose levels have a seed of their own, the order alone.
    pub seed: u64,
    /// What builds it. Indices from before there was a choice were built by batches.
    #[serde(default)]
    pub builder: Builder,
}

impl Default for GraphSettings {
    fn default() -> Self {
        Self { m: 16, ef_construction: 128, seed: 7, builder: Builder::Batches }
    }
}

impl GraphSettings {
    /// # Errors
    /// [`IndexError::BadSetting`] for a value out of its range.
    pub fn check(&self) -> Result<(), IndexError> {
        let bad = |setting, expected, found: usize| {
            Err(IndexError::BadSetting { setting, expected, found: found.to_string() })
        };
        if !(2..=MOST_LINKS).contains(&self.m) {
            return bad("m", "from 2 to 128", self.m);
        }
        if !(self.m..=4096).contains(&self.ef_construction) {
            return bad("ef_construction", "from m to 4096", self.ef_construction);
        }
        Ok(())
    }
}

/// Repeatable random numbers (Steele, Lea and Flood's SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// A number in (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// The numbers `0..len` in random order.
    pub(crate) fn permutation(&mut self, len: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// Levels above which no node is put: enough for 2^32 nodes with `m` = 2.
const HIGHEST: usize = 32;

struct Level {
    cap: usize,
    /// Nodes that belong to the level, once all are in.
    nodes: usize,
    ids: Vec<u32>,
    distances: Vec<f32>,
    /// How many of a node's first links were chosen beside each other.
    settled: Vec<u16>,
}

/// A node that may become a link, and whether it was chosen beside the others that are settled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    at: Neighbour,
    settled: bool,
}

impl Level {
    fn new(nodes: usize, cap: usize) -> Self {
        Self {
            cap,
            nodes,
            ids: vec![NO_NODE; nodes * cap],
            distances: vec![f32::INFINITY; nodes * cap],
            settled: vec![0; nodes],
        }
    }

    fn links(&self, inserted: usize) -> Links<'_> {
        Links { ids: &self.ids, cap: self.cap, nodes: self.nodes.min(inserted) as u32 }
    }

    fn of(&self, node: u32) -> impl Iterator<Item = Candidate> + '_ {
        let start = node as usize * self.cap;
        let ids = &self.ids[start..start + self.cap];
        let distances = &self.distances[start..start + self.cap];
        let settled = usize::from(self.settled[node as usize]);
        ids.iter()
            .zip(distances)
            .take_while(|(id, _)| **id != NO_NODE)
            .enumerate()
            .map(move |(i, (node, distance))| Candidate { at: Neighbour::new(*distance, *node), settled: i < settled })
    }

    /// Makes `links` those of `node`; the settled ones come first.
    fn set(&mut self, node: u32, links: &[Candidate]) {
        let start = node as usize * self.cap;
        let ids = &mut self.ids[start..start + self.cap];
        let distances = &mut self.distances[start..start + self.cap];
        ids.fill(NO_NODE);
        for (i, link) in links.iter().take(self.cap).enumerate() {
            (ids[i], distances[i]) = (link.at.node(), link.at.distance());
        }
        self.settled[node as usize] = links.iter().take_while(|link| link.settled).count() as u16;
    }
}

/// Byte codes of the vectors, `stride` each.
#[derive(Clone, Copy)]
pub(crate) struct ByteCodes<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) stride: usize,
}

/// A graph that grows.
pub(crate) struct GraphBuilder<'a> {
    rows: &'a Rows,
    bytes: ByteCodes<'a>,
    l2: bool,
    settings: GraphSettings,
    levels: Vec<Level>,
    inserted: usize,
    scratches: ScratchPool,
}

/// A link back that a batch asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Back {
    level: usize,
    target: u32,
    link: Neighbour,
}

impl<'a> GraphBuilder<'a> {
    /// A graph without nodes over `rows`.
    pub(crate) fn new(rows: &'a Rows, bytes: ByteCodes<'a>, l2: bool, settings: GraphSettings) -> Self {
        let mut random = SplitMix(settings.seed ^ 0x6C65_7665_6C73);
        let scale = 1.0 / (settings.m as f64).ln();
        let mut counts = vec![0_usize; HIGHEST];
        for _ in 0..rows.len() {
            let level = ((-random.unit().ln() * scale) as usize).min(HIGHEST - 1);
            counts[..=level].iter_mut().for_each(|c| *c += 1);
        }
        let levels = counts
            .iter()
            .enumerate()
            .filter(|(_, nodes)| **nodes > 0)
            .map(|(level, nodes)| Level::new(*nodes, if level == 0 { 2 * settings.m } else { settings.m }))
            .collect();
        Self { rows, bytes, l2, settings, levels, inserted: 0, scratches: ScratchPool::default() }
    }

    /// Puts the nodes up to `end` in.
    pub(crate) fn insert_until(&mut self, end: usize) {
        let arch = Arch::new();
        let end = end.min(self.rows.len());
        while self.inserted < end {
            // A batch does not see itself, so it stays small beside what is there.
            let size = (self.inserted / 16).clamp(1, 4096).min(end - self.inserted);
            let batch = self.inserted as u32..(self.inserted + size) as u32;
            let this = &*self;
            let chosen: Vec<Vec<Vec<Candidate>>> = batch
                .clone()
                .into_par_iter()
                .map(|node| this.scratches.with(|scratch| arch.dispatch(ChooseLinks { builder: this, node, scratch })))
                .collect();
            let mut back = Vec::new();
            for (node, per_level) in batch.zip(&chosen) {
                for (level, links) in per_level.iter().enumerate() {
                    self.levels[level].set(node, links);
                    back.extend(links.iter().map(|link| Back {
                        level,
                        target: link.at.node(),
                        link: Neighbour::new(link.at.distance(), node),
                    }));
                }
            }
            self.inserted += size;
            back.par_sort_unstable();
            let targets: Vec<&[Back]> = back.chunk_by(|a, b| (a.level, a.target) == (b.level, b.target)).collect();
            let this = &*self;
            let pruned: Vec<Vec<Candidate>> =
                targets.par_iter().map(|group| arch.dispatch(Merge { builder: this, group })).collect();
            for (group, links) in targets.iter().zip(&pruned) {
                self.levels[group[0].level].set(group[0].target, links);
            }
        }
    }

    /// The links of every level, from 0 up, with the number of its nodes.
    pub(crate) fn finish(self) -> Vec<(usize, Vec<u32>)> {
        self.levels.into_iter().map(|level| (level.nodes, level.ids)).collect()
    }

    /// The graph as it stands.
    pub(crate) fn view(&self) -> Vec<Links<'_>> {
        self.levels.iter().filter(|l| l.nodes > 0).map(|l| l.links(self.inserted)).collect()
    }

    fn byte_space(&self, node: u32) -> ByteSpace<'_> {
        let ByteCodes { codes, stride } = self.bytes;
        ByteSpace { codes, stride, query: row(codes, stride, node), l2: self.l2 }
    }

    fn space(&self, node: u32) -> FloatSpace<'_> {
        FloatSpace {
            values: self.rows.values(),
            stride: self.rows.stride(),
            query: self.rows.row(node as usize),
            l2: self.l2,
        }
    }
}

/// An order of a graph's nodes in which neighbours stand near each other, so that a walk stays within few pages: breadth
/// first over the links of level 0, the nodes of every level still first. The new node `i` is the old `order[i]`.
pub(crate) fn walk_order(levels: &[(usize, Vec<u32>)], m: usize) -> Vec<u32> {
    let Some((nodes, ids)) = levels.first() else { return Vec::new() };
    let ground = Links { ids, cap: 2 * m, nodes: *nodes as u32 };
    let mut order: Vec<u32> = Vec::with_capacity(*nodes);
    let mut met = vec![false; *nodes];
    for start in 0..*nodes as u32 {
        // What cannot be reached from node 0 comes after what can.
        if std::mem::replace(&mut met[start as usize], true) {
            continue;
        }
        let mut at = order.len();
        order.push(start);
        while let Some(node) = order.get(at).copied() {
            for id in ground.places(node).iter().take_while(|id| **id < ground.nodes) {
                if !std::mem::replace(&mut met[*id as usize], true) {
                    order.push(*id);
                }
            }
            at += 1;
        }
    }
    let levels_above = |node: u32| levels.iter().take_while(|(nodes, _)| (node as usize) < *nodes).count();
    order.sort_by_key(|node| std::cmp::Reverse(levels_above(*node)));
    order
}

/// The links of a graph whose node `order[i]` has become node `i`.
pub(crate) fn renumbered(levels: &[(usize, Vec<u32>)], m: usize, order: &[u32]) -> Vec<(usize, Vec<u32>)> {
    let mut moved = vec![NO_NODE; order.len()];
    order.iter().enumerate().for_each(|(new, old)| moved[*old as usize] = new as u32);
    let of = |(level, (nodes, ids)): (usize, &(usize, Vec<u32>))| {
        let cap = if level == 0 { 2 * m } else { m };
        let old = order[..*nodes].iter().flat_map(|node| &ids[*node as usize * cap..(*node as usize + 1) * cap]);
        (*nodes, old.map(|id| moved.get(*id as usize).copied().unwrap_or(NO_NODE)).collect())
    };
    levels.iter().enumerate().map(of).collect()
}

/// Which of `candidates` (ascending) become links: each that is nearer to the node than to every link before it. Of two
/// that are settled this is known.
#[inline(always)]
fn choose<S: Simd>(simd: S, space: &FloatSpace<'_>, candidates: &[Candidate], cap: usize) -> Vec<Candidate> {
    let mut chosen: Vec<Candidate> = Vec::with_capacity(cap);
    for candidate in candidates {
        if chosen.len() == cap {
            break;
        }
        let (node, distance) = (candidate.at.node(), candidate.at.distance());
        let apart = |link: &Candidate| {
            candidate.settled && link.settled || space.between(simd, node, link.at.node()) >= distance
        };
        if chosen.iter().all(apart) {
            chosen.push(*candidate);
        }
    }
    chosen.iter_mut().for_each(|link| link.settled = true);
    chosen
}

struct ChooseLinks<'a> {
    builder: &'a GraphBuilder<'a>,
    node: u32,
    scratch: &'a mut Scratch,
}

impl WithSimd for ChooseLinks<'_> {
    type Output = Vec<Vec<Candidate>>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { builder, node, scratch } = self;
        if builder.inserted == 0 {
            return Vec::new();
        }
        let (exact, space) = (builder.space(node), builder.byte_space(node));
        let own = builder.levels.iter().take_while(|level| (node as usize) < level.nodes).count();
        let view = View { width: builder.settings.ef_construction, kept: builder.settings.ef_construction };
        scratch.begin(simd, &space, builder.inserted as u32, view.kept);
        let mut chosen = vec![Vec::new(); own];
        let mut found: Vec<Neighbour> = Vec::with_capacity(view.kept);
        let mut candidates: Vec<Candidate> = Vec::with_capacity(view.kept);
        for (level, at) in builder.levels.iter().enumerate().rev() {
            let links = at.links(builder.inserted);
            if level >= own {
                descend(simd, &space, links, view.kept, scratch);
                continue;
            }
            beam(simd, &space, links, view, scratch);
            found.clear();
            found.extend_from_slice(&scratch.pool);
            exact.rescore(simd, &mut found);
            found.sort_unstable();
            candidates.clear();
            candidates.extend(found.iter().map(|at| Candidate { at: *at, settled: false }));
            chosen[level] = choose(simd, &exact, &candidates, builder.settings.m);
        }
        chosen
    }
}

struct Merge<'a> {
    builder: &'a GraphBuilder<'a>,
    group: &'a [Back],
}

impl WithSimd for Merge<'_> {
    type Output = Vec<Candidate>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Some(first) = self.group.first() else { return Vec::new() };
        let level = &self.builder.levels[first.level];
        let back = self.group.iter().map(|b| Candidate { at: b.link, settled: false });
        let mut links: Vec<Candidate> = level.of(first.target).chain(back).collect();
        if links.len() <= level.cap {
            return links;
        }
        links.sort_unstable();
        choose(simd, &self.builder.space(first.target), &links, level.cap)
    }
}
