//! An open index: searching it and reading its rows.

use std::path::{Path, PathBuf};

use arrow::{
    array::{Array, BooleanArray, RecordBatch},
    datatypes::{DataType, SchemaRef},
};
use rayon::prelude::*;

use crate::{
    IndexError,
    bitmap::Bitmap,
    collected::checked,
    lines::Rows,
    manifest::{Manifest, SegmentEntry},
    metric::Metric,
    segment::{Column, Effort, Plan, RowSet},
    table::{self, Table},
    vector_file::hex,
};

/// Most answers of one search.
pub const MOST_ANSWERS: usize = 10_000;

/// A mapped index. What it answers is one generation of the index, also when another is published meanwhile.
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    manifest: Manifest,
    segments: Vec<Segment>,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) table: Table,
    pub(crate) columns: Vec<Column>,
    /// Rows that are not deleted; absent when all are there.
    pub(crate) live: Option<RowSet>,
}

/// Where a row of an index stands, in one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Place of its segment.
    pub segment: usize,
    /// Its row in the segment.
    pub row: u32,
}

/// A row that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The row.
    pub position: Position,
    /// Its score; see [`Metric`] for what is closer.
    pub score: f32,
}

/// The answer to a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The closest rows first; equal scores in the order of rows.
    pub hits: Vec<Hit>,
    /// Which way each segment was searched.
    pub plans: Vec<Plan>,
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// Place of the vector column in the manifest.
    pub column: usize,
    /// Answers wanted, up to [`MOST_ANSWERS`].
    pub k: usize,
    /// How many of the closest nodes a walk looks around of before it ends, fewer than `k` or more; as the index was tuned
    /// when absent.
    pub ef: Option<usize>,
    /// Look at every row.
    pub exact: bool,
    /// Only these rows.
    pub filter: Option<&'a Filter>,
}

/// The rows that may be found, of every segment.
#[derive(Debug, Clone)]
pub struct Filter(Vec<RowSet>);

impl Filter {
    /// How many rows may be found.
    pub fn count(&self) -> usize {
        self.0.iter().map(RowSet::count).sum()
    }
}

/// A condition on rows.
pub trait Predicate: Sync {
    /// The columns that it reads.
    fn columns(&self) -> Vec<String>;

    /// For each row of `batch` (which holds those columns) whether it may be found; null is no.
    ///
    /// # Errors
    /// [`IndexError::BadPredicate`] when it cannot be computed.
    fn evaluate(&self, batch: &RecordBatch) -> Result<BooleanArray, IndexError>;
}

impl Index {
    /// Maps the index of a folder. Its files are checked for size and header, not read; see [`Index::verify`].
    ///
    /// # Errors
    /// [`IndexError::NoIndex`], [`IndexError::Damaged`] with the file's name, or an I/O error.
    pub fn open(folder: &Path) -> Result<Self, IndexError> {
        let mut tries = 0;
        loop {
            let manifest = Manifest::read(folder)?;
            let generation = manifest.generation;
            match Self::of(folder, manifest) {
                // The index was changed between the manifest and its files.
                Err(IndexError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound
                        && tries < 20
                        && Manifest::read(folder)?.generation != generation =>
                {
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    fn of(folder: &Path, manifest: Manifest) -> Result<Self, IndexError> {
        let segments =
            manifest.segments.iter().map(|s| open_segment(folder, &manifest, s)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { folder: folder.to_owned(), manifest, segments })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the index says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Rows that are not deleted.
    pub fn rows(&self) -> usize {
        self.manifest.segments.iter().map(|s| s.rows - s.deleted.as_ref().map_or(0, |d| d.rows)).sum()
    }

    /// Columns of the rows.
    pub fn schema(&self) -> Option<&SchemaRef> {
        self.segments.first().map(|s| s.table.schema())
    }

    /// Names of the columns that are no vectors, in order.
    pub fn metadata_columns(&self) -> Vec<String> {
        let vectors = |name: &str| self.manifest.columns.iter().any(|c| c.name == name);
        let fields = self.schema().map(|s| s.fields().clone()).unwrap_or_default();
        fields.iter().filter(|f| !vectors(f.name())).map(|f| f.name().clone()).collect()
    }

    /// Names of the columns that a person can read: no vectors, no media.
    pub fn readable_columns(&self) -> Vec<String> {
        let binary = |t: &DataType| matches!(t, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
        let media = |t: &DataType| match t {
            DataType::Struct(fields) => fields.iter().any(|f| binary(f.data_type())),
            other => binary(other),
        };
        let mut columns = self.metadata_columns();
        if let Some(schema) = self.schema() {
            columns.retain(|name| schema.field_with_name(name).is_ok_and(|f| !media(f.data_type())));
        }
        columns
    }

    /// Reads every file and compares it with its checksum.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] with the name of the first file that is not whole.
    pub fn verify(&self) -> Result<(), IndexError> {
        for (entry, segment) in self.manifest.segments.iter().zip(&self.segments) {
            let found = table::entry(segment.table.path())?;
            if found.xxh3 != entry.table.xxh3 {
                let problem = format!("expected checksum {}, found {}", entry.table.xxh3, found.xxh3);
                return Err(IndexError::damaged(segment.table.path(), problem));
            }
            segment.columns.par_iter().try_for_each(|column| column.file().verify())?;
        }
        Ok(())
    }

    /// Asks the operating system to have the vectors and graphs in its cache, if half of the memory that is free can take them: the first queries then don't
    /// wait for the disk. Does nothing where the system doesn't say how much is free.
    pub fn warm(&self) {
        let bytes: u64 = self.manifest.segments.iter().flat_map(|s| &s.columns).map(|c| c.file.bytes).sum();
        if free_memory().is_some_and(|free| bytes <= free / 2) {
            self.segments.iter().flat_map(|s| &s.columns).for_each(|column| column.file().warm());
        }
    }

    /// The rows for which `predicate` holds.
    ///
    /// # Errors
    /// What the predicate says, or a row table that cannot be read.
    pub fn filter(&self, predicate: &dyn Predicate) -> Result<Filter, IndexError> {
        let columns = predicate.columns();
        let of = |segment: &Segment| -> Result<RowSet, IndexError> {
            let rows = segment.table.rows();
            let mut set = Bitmap::none(rows);
            let mut at = 0;
            if columns.is_empty() {
                // A condition on nothing, such as `1 = 1`, still needs to know how many rows there are.
                let key = [self.manifest.key.clone()];
                for batch in segment.table.scan(&key)? {
                    at += mark(&mut set, at, &predicate.evaluate(&batch?)?);
                }
            } else {
                for batch in segment.table.scan(&columns)? {
                    at += mark(&mut set, at, &predicate.evaluate(&batch?)?);
                }
            }
            if let Some(live) = &segment.live {
                set.intersect(live.rows());
            }
            Ok(RowSet::new(set, segment.columns.len()))
        };
        Ok(Filter(self.segments.par_iter().map(of).collect::<Result<_, _>>()?))
    }

    /// The rows at `positions` and no others.
    pub fn only(&self, positions: impl IntoIterator<Item = Position>) -> Filter {
        let mut sets: Vec<Bitmap> = self.segments.iter().map(|s| Bitmap::none(s.table.rows())).collect();
        for position in positions {
            if let Some(set) = sets.get_mut(position.segment) {
                set.insert(position.row as usize);
            }
        }
        let sets = sets.into_iter().zip(&self.segments).map(|(mut set, segment)| {
            if let Some(live) = &segment.live {
                set.intersect(live.rows());
            }
            RowSet::new(set, segment.columns.len())
        });
        Filter(sets.collect())
    }

    /// The rows closest to `query`.
    ///
    /// Whenever `k` rows may be found, there are `k` hits: a walk that finds fewer is followed by a scan.
    ///
    /// # Errors
    /// A query of other dimensions, with NaN, or zero for cosine; settings out of their range.
    pub fn search(&self, query: &[f32], search: &Search<'_>) -> Result<Answer, IndexError> {
        let spec = self.manifest.columns.get(search.column).ok_or_else(|| IndexError::UnknownColumn {
            name: search.column.to_string(),
            known: format!("{} columns", self.manifest.columns.len()),
        })?;
        if !(1..=MOST_ANSWERS).contains(&search.k) {
            return Err(IndexError::BadSetting {
                setting: "k",
                expected: "from 1 to 10000",
                found: search.k.to_string(),
            });
        }
        if let Some(ef) = search.ef.filter(|ef| !(1..=100_000).contains(ef)) {
            return Err(IndexError::BadSetting { setting: "ef", expected: "from 1 to 100000", found: ef.to_string() });
        }
        let mut unit = Vec::with_capacity(spec.dims);
        checked(query, spec.dims, spec.metric, 0, &mut unit)?;
        let mut padded = Rows::new(spec.dims);
        padded.push(&unit);
        let mut found: Vec<(f32, Position)> = Vec::with_capacity(search.k * self.segments.len().min(4));
        let mut plans = Vec::with_capacity(self.segments.len());
        for (place, (entry, segment)) in self.manifest.segments.iter().zip(&self.segments).enumerate() {
            let Some(column) = segment.columns.get(search.column) else { continue };
            let tuning = entry.columns.get(search.column).and_then(|c| c.tuning);
            let set = match search.filter {
                Some(filter) => filter.0.get(place),
                None => segment.live.as_ref(),
            };
            let filter = set.and_then(|set| set.of_column(search.column));
            let tuned = tuning.map_or(search.k, |t| match filter {
                None => t.ef,
                Some(filter) => t.filtered_ef(filter.count, entry.rows),
            });
            // It was tuned for ten answers; more of them need a wider view.
            let of = |tuned: usize| search.ef.unwrap_or(tuned.max(tuned.min(10) + 2 * search.k.saturating_sub(10)));
            let ef = of(tuned);
            let unfiltered = of(tuning.map_or(search.k, |t| t.ef));
            let cost = tuning.map_or(usize::MAX, |t| t.computed.saturating_mul(ef) / t.ef.max(1));
            // Who names an `ef` wants a walk.
            let cost = if search.ef.is_some() && search.filter.is_none() { 0 } else { cost };
            let effort = Effort { ef, ef_within: unfiltered, ef_elsewhere: 2 * unfiltered, cost };
            let (hits, plan) = column.search(padded.row(0), search.k, effort, filter, search.exact)?;
            plans.push(plan);
            found.extend(hits.iter().map(|h| (h.distance(), Position { segment: place, row: h.node() })));
        }
        found.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        found.truncate(search.k);
        let hits = found.iter().map(|(d, position)| Hit { position: *position, score: spec.metric.score(*d) });
        Ok(Answer { hits: hits.collect(), plans })
    }

    /// Many searches at once, on all threads; each answer is what [`Index::search`] gives.
    ///
    /// # Errors
    /// As [`Index::search`], of the first query that has one.
    pub fn search_many(&self, queries: &[&[f32]], search: &Search<'_>) -> Result<Vec<Answer>, IndexError> {
        queries.par_iter().map(|query| self.search(query, search)).collect()
    }

    /// The rows at `positions`, in their order. All columns but the vectors when `columns` is absent.
    ///
    /// # Errors
    /// A row table that cannot be read.
    pub fn rows_at(&self, positions: &[Position], columns: Option<&[String]>) -> Result<RecordBatch, IndexError> {
        let columns = columns.map_or_else(|| self.metadata_columns(), <[String]>::to_vec);
        let mut parts = Vec::new();
        let mut places = vec![(0, 0); positions.len()];
        for (place, segment) in self.segments.iter().enumerate() {
            let (rows, at): (Vec<u32>, Vec<usize>) =
                positions.iter().enumerate().filter(|(_, p)| p.segment == place).map(|(i, p)| (p.row, i)).unzip();
            if rows.is_empty() && !(positions.is_empty() && place == 0) {
                continue;
            }
            for (i, at) in at.iter().enumerate() {
                places[*at] = (parts.len(), i);
            }
            parts.push(segment.table.rows_at(&rows, &columns)?);
        }
        let bad = |e: arrow::error::ArrowError| IndexError::BadRows {
            origin: self.folder.display().to_string(),
            problem: e.to_string(),
        };
        let batches: Vec<&RecordBatch> = parts.iter().collect();
        if batches.is_empty() {
            return Err(IndexError::NoIndex { path: self.folder.clone() });
        }
        arrow::compute::interleave_record_batch(&batches, &places).map_err(bad)
    }

    /// Where the live rows with these keys stand; in no particular order, absent ones are left out.
    ///
    /// # Errors
    /// A row table that cannot be read.
    pub fn find(&self, keys: &std::collections::HashSet<String>) -> Result<Vec<(String, Position)>, IndexError> {
        let column = [self.manifest.key.clone()];
        let of = |(place, segment): (usize, &Segment)| -> Result<Vec<(String, Position)>, IndexError> {
            let mut found = Vec::new();
            let mut at = 0;
            for batch in segment.table.scan(&column)? {
                for key in &table::keys(&batch?, &self.manifest.key)? {
                    let live = segment.live.as_ref().is_none_or(|l| l.rows().contains(at as usize));
                    if let Some(key) = key.filter(|k| live && keys.contains(*k)) {
                        found.push((key.to_owned(), Position { segment: place, row: at }));
                    }
                    at += 1;
                }
            }
            Ok(found)
        };
        Ok(self.segments.par_iter().enumerate().map(of).collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// The vector of a row as it is stored (unit length for cosine); `None` when it has none.
    ///
    /// # Errors
    /// A damaged file.
    pub fn vector(&self, position: Position, column: usize) -> Result<Option<&[f32]>, IndexError> {
        match self.segments.get(position.segment).and_then(|s| s.columns.get(column)) {
            Some(column) => column.vector(position.row as usize),
            None => Ok(None),
        }
    }

    /// All live rows, in order.
    pub fn positions(&self) -> Vec<Position> {
        let of = |(segment, s): (usize, &Segment)| {
            let rows = s.table.rows();
            let live = s.live.as_ref().map_or_else(|| Bitmap::all(rows), |live| live.rows().clone());
            live.iter().map(|row| Position { segment, row: row as u32 }).collect::<Vec<_>>()
        };
        self.segments.iter().enumerate().flat_map(of).collect()
    }
}

fn mark(set: &mut Bitmap, at: usize, keep: &BooleanArray) -> usize {
    for row in 0..keep.len() {
        if keep.is_valid(row) && keep.value(row) {
            set.insert(at + row);
        }
    }
    keep.len()
}

fn open_segment(folder: &Path, manifest: &Manifest, entry: &SegmentEntry) -> Result<Segment, IndexError> {
    let table = Table::open(folder, &entry.table)?;
    if table.rows() != entry.rows {
        let problem = format!("expected {} rows as the manifest says, found {}", entry.rows, table.rows());
        return Err(IndexError::damaged(table.path(), problem));
    }
    let mut columns = Vec::with_capacity(entry.columns.len());
    for (spec, column) in manifest.columns.iter().zip(&entry.columns) {
        let open = Column::open(folder, &column.file)?;
        let h = open.header();
        if (h.dims, h.metric, h.rows) != (spec.dims, spec.metric, entry.rows) {
            return Err(open.file().damaged(format!(
                "expected {} rows of {} dimensions for {} as the manifest says, found {} of {} for {}",
                entry.rows,
                spec.dims,
                spec.metric.name(),
                h.rows,
                h.dims,
                h.metric.name()
            )));
        }
        columns.push(open);
    }
    let live = entry.deleted.as_ref().map(|deleted| -> Result<RowSet, IndexError> {
        let path = folder.join(&deleted.file.name);
        let bytes = std::fs::read(&path).map_err(|e| IndexError::io(&path, e))?;
        let words = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let whole = hex(xxhash_rust::xxh3::xxh3_64(&bytes)) == deleted.file.xxh3;
        let gone = Bitmap::from_words(words, entry.rows).filter(|set| whole && set.count() == deleted.rows);
        let gone =
            gone.ok_or_else(|| IndexError::damaged(&path, "expected a bitmap of the checksum in the manifest"))?;
        let mut live = Bitmap::all(entry.rows);
        live.subtract(&gone);
        Ok(RowSet::new(live, entry.columns.len()))
    });
    Ok(Segment { table, columns, live: live.transpose()? })
}

/// Whether a score is at least as close as another.
pub(crate) fn as_close(metric: Metric, score: f32, as_score: f32) -> bool {
    metric.distance(score) <= metric.distance(as_score)
}

/// The sum of vectors, each made unit length first, as ImageBind adds modalities (Girdhar and others, arXiv 2305.05665,
/// section 4.4); a single one stays as it is.
pub fn sum_of_directions(vectors: Vec<Vec<f32>>) -> Vec<f32> {
    let mut vectors = vectors.into_iter();
    let Some(first) = vectors.next() else { return Vec::new() };
    let Some(second) = vectors.next() else { return first };
    let mut total = vec![0.0; first.len()];
    for vector in [first, second].into_iter().chain(vectors) {
        let norm = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let norm = if norm > 0.0 { norm } else { 1.0 };
        total.iter_mut().zip(&vector).for_each(|(sum, v)| *sum += (f64::from(*v) / norm) as f32);
    }
    total
}

/// Bytes that programs can have without anybody's being moved to disk, as Linux estimates it.
fn free_memory() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
