//! One column of a segment: written once, then mapped and searched.

use std::{path::Path, sync::OnceLock};

use pulp::Arch;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    IndexError,
    beam::{Allowed, Links, NO_NODE, ScratchPool, View},
    bitmap::Bitmap,
    codes::{Coding, byte_scale, byte_stride, encode_bits, encode_bytes, means, word_stride},
    collected::{Collected, MOST_DIMENSIONS},
    graph::{Builder, ByteCodes, GraphBuilder, GraphSettings, MOST_LINKS, SplitMix, renumbered, walk_order},
    hnsw::HnswRs,
    lines::padded,
    metric::Metric,
    space::row,
    tuning::{self, Tuning},
    vector_file::{self, FileEntry, Header, VectorFile},
    walk::{Codes, Ranked, Searchable},
};

/// How the vectors of a column are kept and found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ColumnSettings {
    /// What the graph is walked with.
    pub coding: Coding,
    /// The graph.
    pub graph: GraphSettings,
    /// Segments with fewer different vectors have no graph: all of them are looked at.
    pub graph_from: usize,
    /// The recall@10 that a search without further settings is tuned to, above 0 and below 1.
    pub target_recall: f64,
}

impl Default for ColumnSettings {
    fn default() -> Self {
        Self { coding: Coding::default(), graph: GraphSettings::default(), graph_from: 2000, target_recall: 0.95 }
    }
}

impl ColumnSettings {
    /// # Errors
    /// [`IndexError::BadSetting`] for a value out of its range.
    pub fn check(&self) -> Result<(), IndexError> {
        self.graph.check()?;
        if !(self.target_recall > 0.0 && self.target_recall < 1.0) {
            return Err(IndexError::BadSetting {
                setting: "target_recall",
                expected: "above 0 and below 1",
                found: self.target_recall.to_string(),
            });
        }
        Ok(())
    }
}

/// Codes in memory, while a segment is built.
enum OwnedCodes {
    F32,
    Int8 { codes: Vec<i8>, scale: f32 },
    Binary { codes: Vec<u64>, means: Vec<f32> },
}

impl OwnedCodes {
    fn of(collected: &Collected, coding: Coding) -> Self {
        let (dims, rows) = (collected.dims, &collected.rows);
        match coding {
            Coding::F32 => Self::F32,
            Coding::Int8 => {
                let (codes, scale) = byte_codes(collected);
                Self::Int8 { codes, scale }
            }
            Coding::Binary => {
                let means = means(rows, dims);
                let mut codes = vec![0; rows.len() * word_stride(dims)];
                codes
                    .par_chunks_mut(word_stride(dims))
                    .enumerate()
                    .for_each(|(node, code)| encode_bits(&rows.row(node)[..dims], &means, code));
                Self::Binary { codes, means }
            }
        }
    }

    /// The same of nodes in another order: the new node `i` is the old `order[i]`.
    fn reordered(self, order: &[u32]) -> Self {
        fn rows<T: Copy>(codes: &[T], order: &[u32]) -> Vec<T> {
            let stride = codes.len() / order.len().max(1);
            order.iter().flat_map(|node| row(codes, stride, *node)).copied().collect()
        }
        match self {
            Self::F32 => Self::F32,
            Self::Int8 { codes, scale } => Self::Int8 { codes: rows(&codes, order), scale },
            Self::Binary { codes, means } => Self::Binary { codes: rows(&codes, order), means },
        }
    }

    fn view(&self, dims: usize) -> Codes<'_> {
        match self {
            Self::F32 => Codes::F32,
            Self::Int8 { codes, scale } => Codes::Int8 { codes, stride: byte_stride(dims), scale: *scale },
            Self::Binary { codes, means } => Codes::Binary { codes, stride: word_stride(dims), means },
        }
    }
}

/// The byte codes of all vectors, and what 127 stands for.
fn byte_codes(collected: &Collected) -> (Vec<i8>, f32) {
    let (dims, rows) = (collected.dims, &collected.rows);
    let scale = byte_scale(rows, dims);
    let mut codes = vec![0; rows.len() * byte_stride(dims)];
    codes
        .par_chunks_mut(byte_stride(dims))
        .enumerate()
        .for_each(|(node, code)| encode_bytes(&rows.row(node)[..dims], scale, code));
    (codes, scale)
}

/// A column that is ready to be written.
struct Built {
    collected: Collected,
    codes: OwnedCodes,
    /// Nodes and links of every level, from 0 up; none without a graph.
    levels: Vec<(usize, Vec<u32>)>,
    tuned: Option<Tuning>,
}

impl Built {
    /// The same with neighbours near each other in the file.
    fn in_walk_order(self, m: usize) -> Self {
        if self.levels.is_empty() {
            return self;
        }
        let order = walk_order(&self.levels, m);
        let levels = renumbered(&self.levels, m, &order);
        Self { collected: self.collected.reordered(&order), codes: self.codes.reordered(&order), levels, ..self }
    }
}

fn by_batches(collected: Collected, settings: &ColumnSettings) -> Result<Built, IndexError> {
    let nodes = collected.nodes();
    let codes = OwnedCodes::of(&collected, settings.coding);
    let made;
    let bytes = match &codes {
        OwnedCodes::Int8 { codes, .. } => codes,
        _ => {
            made = byte_codes(&collected).0;
            &made
        }
    };
    let bytes = ByteCodes { codes: bytes, stride: byte_stride(collected.dims) };
    let mut builder = GraphBuilder::new(&collected.rows, bytes, collected.metric == Metric::L2, settings.graph);
    // The last vectors to go in are questions first: the graph has not seen them.
    let seen = nodes - tuning::questions(nodes);
    builder.insert_until(seen);
    let tuned = tuned(&collected, &codes, builder.view(), seen, settings)?;
    builder.insert_until(nodes);
    let levels = builder.finish();
    Ok(Built { collected, codes, levels, tuned: Some(tuned) })
}

fn by_hnsw_rs(collected: Collected, settings: &ColumnSettings) -> Result<Built, IndexError> {
    let nodes = collected.nodes();
    let mut graph = HnswRs::new(&collected.rows, collected.metric == Metric::L2, settings.graph);
    let seen = nodes - tuning::questions(nodes);
    graph.insert_until(&collected.rows, seen);
    let tuned = {
        let part = graph.take();
        let arranged = part.arranged(&collected);
        let codes = OwnedCodes::of(&arranged, settings.coding);
        tuned(&arranged, &codes, part.view(settings.graph.m), seen, settings)?
    };
    graph.insert_until(&collected.rows, nodes);
    let whole = graph.take();
    drop(graph);
    let collected = whole.arranged(&collected);
    let codes = OwnedCodes::of(&collected, settings.coding);
    Ok(Built { collected, codes, levels: whole.levels, tuned: Some(tuned) })
}

/// Tunes a search over the first `seen` nodes with the others as questions.
fn tuned(
    collected: &Collected,
    codes: &OwnedCodes,
    levels: Vec<Links<'_>>,
    seen: usize,
    settings: &ColumnSettings,
) -> Result<Tuning, IndexError> {
    let searchable = Searchable {
        vectors: collected.rows.values(),
        stored: None,
        stride: collected.rows.stride(),
        nodes: seen,
        l2: collected.metric == Metric::L2,
        codes: codes.view(collected.dims),
        levels,
    };
    let questions = (seen..collected.nodes()).map(|question| collected.rows.row(question));
    tuning::tune(&searchable, questions, settings.target_recall)
}

/// Builds the graph of a column, tunes its search and writes the column's file.
pub(crate) fn write(
    path: &Path,
    collected: Collected,
    settings: &ColumnSettings,
) -> Result<(FileEntry, Option<Tuning>), IndexError> {
    settings.check()?;
    let nodes = collected.nodes();
    let order = SplitMix(settings.graph.seed).permutation(nodes);
    let collected = collected.reordered(&order);
    let with_graph = nodes >= settings.graph_from.max(2);
    let Built { collected, codes, levels, tuned } = match (with_graph, settings.graph.builder) {
        (false, _) => Built { collected, codes: OwnedCodes::F32, levels: Vec::new(), tuned: None },
        (true, Builder::Batches) => by_batches(collected, settings)?,
        (true, Builder::HnswRs) => by_hnsw_rs(collected, settings)?,
    }
    .in_walk_order(settings.graph.m);
    let (starts, rows) = collected.rows_of_nodes();
    let header = Header {
        dims: collected.dims,
        metric: collected.metric,
        coding: if with_graph { settings.coding } else { Coding::F32 },
        rows: collected.node_of_row.len(),
        nodes,
        m: if with_graph { settings.graph.m } else { 0 },
        levels: levels.iter().map(|(nodes, _)| *nodes).collect(),
        scale: if let OwnedCodes::Int8 { scale, .. } = &codes { *scale } else { 0.0 },
        sections: Vec::new(),
    };
    let mut sections: Vec<(String, &[u8])> = vec![
        ("vectors".into(), bytemuck::cast_slice(collected.rows.values())),
        ("node_of_row".into(), bytemuck::cast_slice(&collected.node_of_row)),
        ("row_starts".into(), bytemuck::cast_slice(&starts)),
        ("rows".into(), bytemuck::cast_slice(&rows)),
    ];
    match &codes {
        OwnedCodes::F32 => {}
        OwnedCodes::Int8 { codes, .. } => sections.push(("codes".into(), bytemuck::cast_slice(codes))),
        OwnedCodes::Binary { codes, means } => {
            sections.push(("codes".into(), bytemuck::cast_slice(codes)));
            sections.push(("means".into(), bytemuck::cast_slice(means)));
        }
    }
    for (level, (_, ids)) in levels.iter().enumerate() {
        sections.push((format!("links_{level}"), bytemuck::cast_slice(ids)));
    }
    let named: Vec<(&str, &[u8])> = sections.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    Ok((vector_file::write(path, header, &named)?, tuned))
}

/// A mapped column of a segment.
#[derive(Debug)]
pub(crate) struct Column {
    file: VectorFile,
    scratches: ScratchPool,
}

/// Rows of a segment that may be found.
#[derive(Debug, Clone)]
pub(crate) struct RowSet {
    rows: Bitmap,
    count: usize,
    /// For each column the nodes that have one of the rows, once somebody asked.
    nodes: Vec<OnceLock<Bitmap>>,
}

impl RowSet {
    pub(crate) fn new(rows: Bitmap, columns: usize) -> Self {
        Self { count: rows.count(), rows, nodes: vec![OnceLock::new(); columns] }
    }

    pub(crate) fn rows(&self) -> &Bitmap {
        &self.rows
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn of_column(&self, column: usize) -> Option<RowFilter<'_>> {
        self.nodes.get(column).map(|nodes| RowFilter { rows: &self.rows, count: self.count, nodes })
    }
}

/// A filter over the rows of a segment, for one column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowFilter<'a> {
    rows: &'a Bitmap,
    pub(crate) count: usize,
    nodes: &'a OnceLock<Bitmap>,
}

/// How much a search looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// The width of a walk.
    pub(crate) ef: usize,
    /// At least this where most of what is near the query is allowed by a filter.
    pub(crate) ef_within: usize,
    /// At least this where what a filter allows lies elsewhere than the query.
    pub(crate) ef_elsewhere: usize,
    /// How many distances a walk with `ef` computes, as measured when the segment was tuned.
    pub(crate) cost: usize,
}

/// Which way a search went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    /// Every allowed row was looked at: the answer is exact.
    Scan,
    /// The graph was walked.
    Graph,
    /// The graph was walked, and only allowed rows counted.
    FilteredGraph,
}

/// A filter that lets fewer rows pass than one of so many is answered by a scan.
const SPARSE: usize = 16;

/// Vectors of more bytes than this are read where they are needed when a walk over codes has found them, instead of looked at in the mapping: a read
/// costs half a microsecond, the mapping the whole set in the process's memory.
const MAPPED_BYTES: u64 = 64 << 20;

/// Rows that a part of a scan looks at.
const PART: usize = 1 << 14;

impl Column {
    pub(crate) fn open(folder: &Path, entry: &FileEntry) -> Result<Self, IndexError> {
        let file = VectorFile::open(folder, entry)?;
        let column = Self { file, scratches: ScratchPool::default() };
        let h = &column.file.header;
        // Within these no product of them overflows.
        if h.dims > MOST_DIMENSIONS || h.m > MOST_LINKS || h.nodes >= NO_NODE as usize {
            return Err(column.file.damaged(format!(
                "expected at most {MOST_DIMENSIONS} dimensions, {MOST_LINKS} links and {} vectors, found {}, {} and {}",
                NO_NODE - 1,
                h.dims,
                h.m,
                h.nodes
            )));
        }
        if h.levels.windows(2).any(|w| w[1] > w[0]) || h.levels.first().is_some_and(|n| *n != h.nodes) {
            return Err(column.file.damaged("the levels of the graph do not fit its nodes"));
        }
        column.searchable()?;
        column.rows()?;
        column.file.section::<u32>("node_of_row", h.rows)?;
        Ok(column)
    }

    pub(crate) fn header(&self) -> &Header {
        &self.file.header
    }

    pub(crate) fn file(&self) -> &VectorFile {
        &self.file
    }

    fn searchable(&self) -> Result<Searchable<'_>, IndexError> {
        let h = &self.file.header;
        let codes = match h.coding {
            Coding::F32 => Codes::F32,
            Coding::Int8 => {
                let stride = byte_stride(h.dims);
                Codes::Int8 { codes: self.file.section("codes", h.nodes * stride)?, stride, scale: h.scale }
            }
            Coding::Binary => {
                let stride = word_stride(h.dims);
                let codes = self.file.section("codes", h.nodes * stride)?;
                Codes::Binary { codes, stride, means: self.file.section("means", h.dims)? }
            }
        };
        let mut levels = Vec::with_capacity(h.levels.len());
        for (level, nodes) in h.levels.iter().enumerate() {
            let cap = if level == 0 { 2 * h.m } else { h.m };
            let ids = self.file.section(&format!("links_{level}"), nodes * cap)?;
            levels.push(Links { ids, cap, nodes: *nodes as u32 });
        }
        let stride = padded(h.dims);
        let vectors: &[f32] = self.file.section("vectors", h.nodes * stride)?;
        let stored = if size_of_val(vectors) as u64 > MAPPED_BYTES { Some(self.file.stored("vectors")?) } else { None };
        Ok(Searchable { vectors, stored, stride, nodes: h.nodes, l2: h.metric == Metric::L2, codes, levels })
    }

    fn rows(&self) -> Result<RowsOfNodes<'_>, IndexError> {
        let starts: &[u32] = self.file.section("row_starts", self.file.header.nodes + 1)?;
        let rows = self.file.section("rows", starts.last().copied().unwrap_or(0) as usize)?;
        Ok(RowsOfNodes { starts, rows })
    }

    /// The vector of a row, as it is stored; `None` when it has none.
    pub(crate) fn vector(&self, row: usize) -> Result<Option<&[f32]>, IndexError> {
        let h = &self.file.header;
        let nodes: &[u32] = self.file.section("node_of_row", h.rows)?;
        let vectors: &[f32] = self.file.section("vectors", h.nodes * padded(h.dims))?;
        let start = nodes.get(row).filter(|n| **n != NO_NODE).map(|n| *n as usize * padded(h.dims));
        Ok(start.and_then(|start| vectors.get(start..start + h.dims)))
    }

    /// The `k` nearest rows, ascending by distance, then by row. `query` is checked and padded to the stride.
    pub(crate) fn search(
        &self,
        query: &[f32],
        k: usize,
        Effort { ef, ef_within, ef_elsewhere, cost }: Effort,
        filter: Option<RowFilter<'_>>,
        exact: bool,
    ) -> Result<(Vec<Ranked>, Plan), IndexError> {
        let searchable = self.searchable()?;
        let of_nodes = self.rows()?;
        if k == 0 || searchable.nodes == 0 || filter.is_some_and(|f| f.count == 0) {
            return Ok((Vec::new(), Plan::Scan));
        }
        let matching = filter.map_or(searchable.nodes, |f| f.count);
        // A walk reads vectors in random order, which makes each about twice as dear as in a scan. With a filter it reads the
        // links of those that may not be found as well: as much as a scan of sixteen rows for each distance.
        let walk_cost = cost.saturating_mul(if filter.is_some() { 16 } else { 2 });
        // Where fewer match, two links hardly lead from one to the next: at 1 % a walk found half of what there was.
        let sparse = filter.is_some() && matching.saturating_mul(SPARSE) < self.file.header.rows;
        if exact || sparse || searchable.levels.is_empty() || matching <= k || walk_cost >= matching {
            return Ok((self.scan(&searchable, of_nodes, query, k, filter)?, Plan::Scan));
        }
        let expand = |nodes: Vec<Ranked>| {
            let mut found: Vec<Ranked> = Vec::with_capacity(nodes.len());
            for at in nodes {
                let rows =
                    of_nodes.of(at.node()).iter().filter(|r| filter.is_none_or(|f| f.rows.contains(**r as usize)));
                found.extend(rows.map(|row| Ranked::new(at.distance(), *row)));
            }
            found.sort_unstable();
            found.truncate(k);
            found
        };
        let (plan, allowed) = match filter {
            None => (Plan::Graph, None),
            Some(filter) => {
                let share = matching as f32 / self.file.header.rows.max(1) as f32;
                let nodes = self.nodes_of(filter)?.words();
                (
                    Plan::FilteredGraph,
                    Some(Allowed { nodes, share, width_within: ef_within, width_elsewhere: ef_elsewhere }),
                )
            }
        };
        let view = View { width: ef, kept: ef.max(k) };
        let found = expand(self.scratches.with(|scratch| searchable.walk(query, k, view, allowed, scratch))?);
        if found.len() >= k || filter.is_none() && found.len() == of_nodes.rows.len() {
            return Ok((found, plan));
        }
        Ok((self.scan(&searchable, of_nodes, query, k, filter)?, Plan::Scan))
    }

    /// The nodes that have one of the filter's rows.
    fn nodes_of<'a>(&self, filter: RowFilter<'a>) -> Result<&'a Bitmap, IndexError> {
        let h = &self.file.header;
        let of_row: &[u32] = self.file.section("node_of_row", h.rows)?;
        Ok(filter.nodes.get_or_init(|| {
            let mut nodes = Bitmap::none(h.nodes);
            // `NO_NODE` lies past the end and is ignored.
            filter.rows.iter().filter_map(|row| of_row.get(row)).for_each(|node| nodes.insert(*node as usize));
            nodes
        }))
    }

    fn scan(
        &self,
        searchable: &Searchable<'_>,
        of_nodes: RowsOfNodes<'_>,
        query: &[f32],
        k: usize,
        filter: Option<RowFilter<'_>>,
    ) -> Result<Vec<Ranked>, IndexError> {
        let rows = self.file.header.rows;
        Ok(match filter {
            None => searchable.scan(query, k, searchable.nodes.div_ceil(PART), |part| {
                (part * PART..((part + 1) * PART).min(searchable.nodes))
                    .flat_map(move |node| of_nodes.of(node as u32).iter().map(move |row| (node as u32, *row)))
            }),
            Some(filter) => {
                let nodes: &[u32] = self.file.section("node_of_row", rows)?;
                searchable.scan(query, k, rows.div_ceil(PART), |part| {
                    filter.rows.iter_range(part * PART, (part + 1) * PART).filter_map(move |row| {
                        nodes.get(row).filter(|node| **node != NO_NODE).map(|node| (*node, row as u32))
                    })
                })
            }
        })
    }
}

/// The rows of each node.
#[derive(Debug, Clone, Copy)]
struct RowsOfNodes<'a> {
    starts: &'a [u32],
    rows: &'a [u32],
}

impl<'a> RowsOfNodes<'a> {
    #[inline]
    fn of(&self, node: u32) -> &'a [u32] {
        let node = node as usize;
        match (self.starts.get(node), self.starts.get(node + 1)) {
            (Some(from), Some(to)) => self.rows.get(*from as usize..*to as usize).unwrap_or_default(),
            _ => &[],
        }
    }
}

/// Whether this processor has vector instructions; for reports.
pub fn instruction_set() -> String {
    format!("{:?}", Arch::new())
}
