//! What changed between two data sets: rows gained, lost and changed, by row id, and by the stage that made the difference.
//!
//! A row is 24 bytes in memory here, whatever it holds: a hash of its id and one of its columns. Rows are read again only where they differ.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    path::Path,
    sync::Arc,
};

use arrow::{
    array::{Array, AsArray},
    compute::cast,
    datatypes::{DataType, Schema},
    record_batch::RecordBatch,
    row::{RowConverter, SortField},
};
use groundloom_data::columns::ROW_ID;
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde::Serialize;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::{
    drops::{REASON, STAGE},
    error::EngineError,
    nodes::shuffle::is_heavy,
    provenance::{Kind, SearchedFile, published},
};

/// Of so many changed rows at most it is told which columns changed.
const MOST_EXPLAINED: usize = 100_000;

/// What changed, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Rows of the old data set.
    pub old_rows: u64,
    /// Rows of the new one.
    pub new_rows: u64,
    /// Rows that only the new one has.
    pub gained: u64,
    /// Rows that only the old one has.
    pub lost: u64,
    /// Rows that both have with other values.
    pub changed: u64,
    /// What the old data set did with the gained rows: `stage: reason`, or `quarantine stage: code`, or empty where it does not say.
    pub gained_from: BTreeMap<String, u64>,
    /// What the new data set did with the lost rows, likewise.
    pub lost_to: BTreeMap<String, u64>,
    /// How many rows differ in which column, of the changed rows (the first 100,000 where there are more).
    pub changed_columns: BTreeMap<String, u64>,
    /// Columns that only the new data set has.
    pub columns_gained: Vec<String>,
    /// Columns that only the old data set has, or has with another type.
    pub columns_lost: Vec<String>,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `gained`, `lost` or `changed`.
    pub change: &'static str,
    /// The row.
    pub row_id: String,
    /// What the other data set did with a gained or lost row; empty where it does not say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stage: String,
    /// The columns that changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
}

/// One side of a comparison.
struct Side {
    files: Vec<SearchedFile>,
    schema: Arc<Schema>,
}

fn damaged(path: &Path, e: impl std::fmt::Display) -> EngineError {
    EngineError::Damaged { path: path.to_owned(), message: e.to_string() }
}

impl Side {
    fn at(target: &Path) -> Result<Self, EngineError> {
        let (_, files) = published(target)?;
        let data = files.iter().find(|f| f.kind == Kind::Kept && !f.name.starts_with('_'));
        let Some(first) = data else {
            return Err(damaged(target, "expected Parquet files; data sets in other formats cannot be compared"));
        };
        let schema = open(&first.path)?.schema().clone();
        Ok(Self { files, schema })
    }

    fn data(&self) -> impl Iterator<Item = &SearchedFile> {
        self.files.iter().filter(|f| f.kind == Kind::Kept && !f.name.starts_with('_'))
    }
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, EngineError> {
    let file = File::open(path).map_err(|e| EngineError::io(path, e))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, e))
}

/// Calls `each` with batches of the columns named.
fn read(
    path: &Path,
    columns: &[&str],
    mut each: impl FnMut(&RecordBatch) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let builder = open(path)?;
    let schema = Arc::clone(builder.schema());
    let roots: Vec<usize> = columns.iter().filter_map(|name| schema.index_of(name).ok()).collect();
    let heavy = roots.iter().any(|i| is_heavy(schema.field(*i).data_type()));
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    // A batch of pictures is large.
    let rows = if heavy { 64 } else { 8192 };
    let reader = builder.with_projection(mask).with_batch_size(rows).build().map_err(|e| damaged(path, e))?;
    for batch in reader {
        each(&batch.map_err(|e| damaged(path, e))?)?;
    }
    Ok(())
}

fn texts(batch: &RecordBatch, column: &str, path: &Path) -> Result<arrow::array::StringArray, EngineError> {
    let found = batch.column_by_name(column).ok_or_else(|| damaged(path, format!("expected a column `{column}`")))?;
    Ok(cast(found, &DataType::Utf8).map_err(|e| damaged(path, e))?.as_string::<i32>().clone())
}

/// Hash of id and of the columns, for every row, sorted.
fn hashes(side: &Side, columns: &[&str]) -> Result<Vec<(u128, u64)>, EngineError> {
    let mut all = Vec::new();
    let wanted: Vec<&str> = std::iter::once(ROW_ID).chain(columns.iter().copied()).collect();
    let mut converter = converter(&side.schema, columns)?;
    for file in side.data() {
        read(&file.path, &wanted, |batch| {
            let ids = texts(batch, ROW_ID, &file.path)?;
            let values = converter_rows(&mut converter, batch, columns, &file.path)?;
            all.extend((0..ids.len()).map(|row| {
                let value = values.as_ref().map_or(0, |v| xxh3_64(v.row(row).data()));
                (xxh3_128(ids.value(row).as_bytes()), value)
            }));
            Ok(())
        })?;
    }
    all.sort_unstable();
    Ok(all)
}

fn converter(schema: &Schema, columns: &[&str]) -> Result<Option<RowConverter>, EngineError> {
    if columns.is_empty() {
        return Ok(None);
    }
    let fields = columns.iter().filter_map(|name| schema.field_with_name(name).ok());
    let fields = fields.map(|f| SortField::new(f.data_type().clone())).collect();
    RowConverter::new(fields).map(Some).map_err(|e| EngineError::Internal(e.to_string()))
}

fn converter_rows(
    converter: &mut Option<RowConverter>,
    batch: &RecordBatch,
    columns: &[&str],
    path: &Path,
) -> Result<Option<arrow::row::Rows>, EngineError> {
    let Some(converter) = converter else { return Ok(None) };
    let arrays = columns.iter().map(|name| {
        batch.column_by_name(name).cloned().ok_or_else(|| damaged(path, format!("expected a column `{name}`")))
    });
    let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
    converter.convert_columns(&arrays).map(Some).map_err(|e| damaged(path, e))
}

/// Compares two published data sets; `each` is called for every row that differs.
///
/// # Errors
/// When one is no data set of Parquet files, or damaged.
pub fn diff(
    old: &Path,
    new: &Path,
    mut each: impl FnMut(Difference) -> Result<(), EngineError>,
) -> Result<Diff, EngineError> {
    let (old, new) = (Side::at(old)?, Side::at(new)?);
    let same = |a: &Schema, b: &Schema| -> (Vec<String>, Vec<String>) {
        a.fields()
            .iter()
            .filter(|f| f.name() != ROW_ID)
            .map(|f| f.name().clone())
            .partition(|name| matches!((a.field_with_name(name), b.field_with_name(name)), (Ok(x), Ok(y)) if x.data_type() == y.data_type()))
    };
    let (common, columns_lost) = same(&old.schema, &new.schema);
    let (_, columns_gained) = same(&new.schema, &old.schema);
    let comparable: Vec<&str> = common
        .iter()
        .map(String::as_str)
        .filter(|name| {
            let field = old.schema.field_with_name(name);
            field.is_ok_and(|f| RowConverter::supports_fields(&[SortField::new(f.data_type().clone())]))
        })
        .collect();
    let (before, after) = (hashes(&old, &comparable)?, hashes(&new, &comparable)?);
    let mut diff = Diff {
        old_rows: before.len() as u64,
        new_rows: after.len() as u64,
        columns_gained,
        columns_lost,
        ..Diff::default()
    };
    let (mut lost, mut gained, mut changed) = (HashSet::new(), HashSet::new(), HashSet::new());
    let (mut a, mut b) = (before.into_iter().peekable(), after.into_iter().peekable());
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((x, _)), Some((y, _))) => x.cmp(y),
        };
        match order {
            std::cmp::Ordering::Less => lost.extend(a.next().map(|(id, _)| id)),
            std::cmp::Ordering::Greater => gained.extend(b.next().map(|(id, _)| id)),
            std::cmp::Ordering::Equal => {
                if let (Some((id, x)), Some((_, y))) = (a.next(), b.next())
                    && x != y
                {
                    changed.insert(id);
                }
            }
        }
    }
    (diff.lost, diff.gained, diff.changed) = (lost.len() as u64, gained.len() as u64, changed.len() as u64);
    for (change, ids, here, there, counts) in
        [("lost", &lost, &old, &new, &mut diff.lost_to), ("gained", &gained, &new, &old, &mut diff.gained_from)]
    {
        if ids.is_empty() {
            continue;
        }
        let fates = fates(there, ids)?;
        for id in ids {
            *counts.entry(fates.get(id).cloned().unwrap_or_default()).or_default() += 1;
        }
        for file in here.data() {
            read(&file.path, &[ROW_ID], |batch| {
                for id in texts(batch, ROW_ID, &file.path)?.iter().flatten() {
                    let hash = xxh3_128(id.as_bytes());
                    if ids.contains(&hash) {
                        let stage = fates.get(&hash).cloned().unwrap_or_default();
                        each(Difference { change, row_id: id.to_owned(), stage, columns: Vec::new() })?;
                    }
                }
                Ok(())
            })?;
        }
    }
    let mut explained: Vec<u128> = changed.iter().copied().collect();
    explained.sort_unstable();
    explained.truncate(MOST_EXPLAINED);
    let explained: HashSet<u128> = explained.into_iter().collect();
    if !explained.is_empty() {
        let was = column_hashes(&old, &comparable, &explained)?;
        for file in new.data() {
            let wanted: Vec<&str> = std::iter::once(ROW_ID).chain(comparable.iter().copied()).collect();
            read(&file.path, &wanted, |batch| {
                for (id, now) in rows_of(batch, &comparable, &explained, &file.path)? {
                    let Some(was) = was.get(&xxh3_128(id.as_bytes())) else { continue };
                    let columns = comparable.iter().zip(was.iter().zip(&now)).filter(|(_, (x, y))| x != y);
                    let columns: Vec<String> = columns.map(|(name, _)| (*name).to_owned()).collect();
                    for name in &columns {
                        *diff.changed_columns.entry(name.clone()).or_default() += 1;
                    }
                    each(Difference { change: "changed", row_id: id, stage: String::new(), columns })?;
                }
                Ok(())
            })?;
        }
    }
    Ok(diff)
}

/// What a data set did with rows that it does not hold.
fn fates(side: &Side, ids: &HashSet<u128>) -> Result<HashMap<u128, String>, EngineError> {
    let mut all = HashMap::new();
    for file in side.files.iter().filter(|f| f.kind != Kind::Kept) {
        let reason = match file.kind {
            Kind::Quarantined => "code",
            Kind::Rejected => "message",
            _ => REASON,
        };
        read(&file.path, &[ROW_ID, STAGE, reason], |batch| {
            let [rows, stages, reasons] = [ROW_ID, STAGE, reason].map(|column| texts(batch, column, &file.path));
            let (rows, stages, reasons) = (rows?, stages?, reasons?);
            for row in 0..rows.len() {
                let id = xxh3_128(rows.value(row).as_bytes());
                if ids.contains(&id) {
                    let kind = if file.kind == Kind::Quarantined { "quarantine " } else { "" };
                    all.entry(id).or_insert_with(|| format!("{kind}{}: {}", stages.value(row), reasons.value(row)));
                }
            }
            Ok(())
        })?;
    }
    Ok(all)
}

/// Row id and one hash per column, of the rows among `ids`.
fn rows_of(
    batch: &RecordBatch,
    columns: &[&str],
    ids: &HashSet<u128>,
    path: &Path,
) -> Result<Vec<(String, Vec<u64>)>, EngineError> {
    let names = texts(batch, ROW_ID, path)?;
    let wanted: Vec<usize> =
        (0..names.len()).filter(|row| ids.contains(&xxh3_128(names.value(*row).as_bytes()))).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows: Vec<(String, Vec<u64>)> =
        wanted.iter().map(|row| (names.value(*row).to_owned(), Vec::with_capacity(columns.len()))).collect();
    for name in columns {
        let mut converter = converter(batch.schema_ref(), &[name])?;
        let values = converter_rows(&mut converter, batch, &[name], path)?;
        for (row, (_, hashes)) in wanted.iter().zip(&mut rows) {
            hashes.push(values.as_ref().map_or(0, |v| xxh3_64(v.row(*row).data())));
        }
    }
    Ok(rows)
}

fn column_hashes(side: &Side, columns: &[&str], ids: &HashSet<u128>) -> Result<HashMap<u128, Vec<u64>>, EngineError> {
    let mut all = HashMap::new();
    let wanted: Vec<&str> = std::iter::once(ROW_ID).chain(columns.iter().copied()).collect();
    for file in side.data() {
        read(&file.path, &wanted, |batch| {
            let rows = rows_of(batch, columns, ids, &file.path)?;
            all.extend(rows.into_iter().map(|(id, hashes)| (xxh3_128(id.as_bytes()), hashes)));
            Ok(())
        })?;
    }
    Ok(all)
}
