//! Changing an index. Every change writes new files beside the old ones and then replaces the manifest, so that a killed
//! process leaves the index as it was, and whoever has it open keeps what it had.

use std::{
    collections::HashSet,
    fs::{self, File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use arrow::{array::RecordBatch, compute::filter_record_batch};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    IndexError,
    bitmap::Bitmap,
    collected::Collected,
    index::{Index, Position},
    manifest::{self, ColumnSpec, Deleted, LAYOUT, Manifest, SegmentColumn, SegmentEntry},
    segment,
    table::{self, TableWriter},
    vector_file::{FileEntry, hex},
};

/// Rows of a segment before the next one begins.
const SEGMENT_ROWS: usize = 2_000_000;

const LOCK: &str = "index.lock";

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// Rows that came.
    pub added: usize,
    /// Rows that went because a row of the same key came.
    pub replaced: usize,
}

/// The one process that may change an index.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    manifest: Manifest,
    /// Held while the writer lives.
    _lock: File,
}

fn file_names(name: &str) -> bool {
    let ours = [("rows-", ".parquet"), ("vectors-", ".glv"), ("deleted-", ".bits")];
    ours.iter().any(|(start, end)| name.starts_with(start) && name.ends_with(end)) || name == "index.json.next"
}

impl Writer {
    /// A new index in `folder`. Nothing is seen of it before the first change is published; an index that stands there
    /// stays until then.
    ///
    /// # Errors
    /// [`IndexError::ForeignFolder`] when the folder holds something else, [`IndexError::Locked`], bad settings.
    pub fn create(folder: &Path, key: &str, columns: Vec<ColumnSpec>) -> Result<Self, IndexError> {
        fs::create_dir_all(folder).map_err(|e| IndexError::io(folder, e))?;
        for column in &columns {
            column.settings.check()?;
            Collected::new(column.dims, column.metric)?;
            if column.name == key || columns.iter().filter(|c| c.name == column.name).count() > 1 {
                return Err(IndexError::BadRows {
                    origin: format!("column {:?}", column.name),
                    problem: "a vector column is named once and is not the key".into(),
                });
            }
        }
        let old = match Manifest::read(folder) {
            Ok(old) => Some(old),
            Err(IndexError::NoIndex { .. }) => {
                let items = fs::read_dir(folder).map_err(|e| IndexError::io(folder, e))?;
                for item in items {
                    let name = item.map_err(|e| IndexError::io(folder, e))?.file_name();
                    let name = name.to_string_lossy();
                    if !file_names(&name) && name != LOCK {
                        return Err(IndexError::ForeignFolder { path: folder.to_owned() });
                    }
                }
                None
            }
            Err(other) => return Err(other),
        };
        let lock = lock(folder)?;
        let manifest = Manifest {
            layout: LAYOUT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: old.as_ref().map_or(0, |m| m.generation),
            key: key.to_owned(),
            next_segment: old.as_ref().map_or(0, |m| m.next_segment),
            columns,
            segments: Vec::new(),
        };
        Ok(Self { folder: folder.to_owned(), manifest, _lock: lock })
    }

    /// The index of `folder`, to change it.
    ///
    /// # Errors
    /// [`IndexError::NoIndex`], [`IndexError::Damaged`], [`IndexError::Locked`].
    pub fn open(folder: &Path) -> Result<Self, IndexError> {
        Manifest::read(folder)?;
        let lock = lock(folder)?;
        // Read under the lock: another process may have changed it before.
        let manifest = Manifest::read(folder)?;
        let writer = Self { folder: folder.to_owned(), manifest, _lock: lock };
        writer.remove_unused()?;
        Ok(writer)
    }

    /// The index as it will be published next.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Adds rows and publishes them. A row with the key of a row that is there replaces it.
    ///
    /// # Errors
    /// Rows that do not fit: the message names row and column. Nothing has changed then.
    pub fn add(
        &mut self,
        batches: impl IntoIterator<Item = Result<RecordBatch, IndexError>>,
    ) -> Result<Changed, IndexError> {
        let mut next = self.manifest.clone();
        let mut keys = HashSet::new();
        write_segments(&self.folder, &mut next, batches, &mut keys)?;
        let replaced = self.mark_deleted(&mut next, &keys)?;
        self.publish(next)?;
        Ok(Changed { added: keys.len(), replaced })
    }

    /// Deletes the rows with these keys and publishes that; how many there were.
    ///
    /// # Errors
    /// When a file cannot be read or written; nothing has changed then.
    pub fn delete(&mut self, keys: &HashSet<String>) -> Result<usize, IndexError> {
        let mut next = self.manifest.clone();
        let gone = self.mark_deleted(&mut next, keys)?;
        if gone > 0 {
            self.publish(next)?;
        }
        Ok(gone)
    }

    /// Takes the rows of another index over, with their graphs, and publishes them. Rows of the same key are replaced.
    ///
    /// # Errors
    /// [`IndexError::Mismatch`] when keys or columns differ; nothing has changed then.
    pub fn merge(&mut self, other: &Index) -> Result<Changed, IndexError> {
        check_same(&self.manifest, other.manifest())?;
        if fs::canonicalize(other.folder()).ok() == fs::canonicalize(&self.folder).ok() {
            return Err(IndexError::Mismatch {
                what: "the index to merge".into(),
                expected: "another folder".into(),
                found: self.folder.display().to_string(),
                remedy: "name two indices",
            });
        }
        let mut next = self.manifest.clone();
        let mut keys = HashSet::new();
        for position_keys in other.live_keys()? {
            keys.insert(position_keys);
        }
        for entry in &other.manifest().segments {
            let id = next.next_segment;
            next.next_segment += 1;
            let take = |file: &FileEntry, name: String| -> Result<FileEntry, IndexError> {
                let (from, to) = (other.folder().join(&file.name), self.folder.join(&name));
                let _ = fs::remove_file(&to);
                if fs::hard_link(&from, &to).is_err() {
                    fs::copy(&from, &to).map_err(|e| IndexError::io(&from, e))?;
                    File::open(&to).and_then(|f| f.sync_all()).map_err(|e| IndexError::io(&to, e))?;
                }
                Ok(FileEntry { name, ..file.clone() })
            };
            let mut columns = Vec::with_capacity(entry.columns.len());
            for (i, column) in entry.columns.iter().enumerate() {
                columns.push(SegmentColumn { file: take(&column.file, vectors_name(id, i))?, tuning: column.tuning });
            }
            let deleted = entry.deleted.as_ref().map(|d| -> Result<Deleted, IndexError> {
                Ok(Deleted { file: take(&d.file, deleted_name(id, next.generation + 1))?, rows: d.rows })
            });
            let table = take(&entry.table, rows_name(id))?;
            next.segments.push(SegmentEntry { id, rows: entry.rows, table, deleted: deleted.transpose()?, columns });
        }
        let replaced = self.mark_deleted(&mut next, &keys)?;
        self.publish(next)?;
        Ok(Changed { added: keys.len(), replaced })
    }

    /// Builds all segments anew as one, without the deleted rows, and publishes that. False when there was nothing to do.
    ///
    /// # Errors
    /// When a file cannot be read or written; nothing has changed then.
    pub fn compact(&mut self) -> Result<bool, IndexError> {
        if self.manifest.segments.len() <= 1 && self.manifest.segments.iter().all(|s| s.deleted.is_none()) {
            return Ok(false);
        }
        let old = Index::open(&self.folder)?;
        let mut next = Manifest { segments: Vec::new(), ..self.manifest.clone() };
        write_segments(&self.folder, &mut next, old.live_rows(), &mut HashSet::new())?;
        self.publish(next)?;
        Ok(true)
    }

    /// Publishes the index as it stands, so that one without rows can be opened.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn publish_empty(&mut self) -> Result<(), IndexError> {
        self.publish(self.manifest.clone())
    }

    fn publish(&mut self, mut next: Manifest) -> Result<(), IndexError> {
        next.generation += 1;
        next.publish(&self.folder)?;
        self.manifest = next;
        self.remove_unused()
    }

    /// Removes files that the manifest does not name: those of earlier generations and of processes that died.
    fn remove_unused(&self) -> Result<(), IndexError> {
        let used: HashSet<&str> = self.manifest.files().map(|f| f.name.as_str()).collect();
        for item in fs::read_dir(&self.folder).map_err(|e| IndexError::io(&self.folder, e))? {
            let item = item.map_err(|e| IndexError::io(&self.folder, e))?;
            let name = item.file_name();
            if name.to_str().is_some_and(|name| file_names(name) && !used.contains(name)) {
                fs::remove_file(item.path()).map_err(|e| IndexError::io(&item.path(), e))?;
            }
        }
        Ok(())
    }

    /// Marks the rows of `keys` deleted in the segments that this writer's published manifest has.
    fn mark_deleted(&self, next: &mut Manifest, keys: &HashSet<String>) -> Result<usize, IndexError> {
        if self.manifest.segments.is_empty() || keys.is_empty() {
            return Ok(0);
        }
        let index = Index::open(&self.folder)?;
        let found: Vec<Position> = index.find(keys)?.into_iter().map(|f| f.1).collect();
        for (place, segment) in index.segments().iter().enumerate() {
            let here: Vec<u32> = found.iter().filter(|p| p.segment == place).map(|p| p.row).collect();
            let Some(entry) = next.segments.get_mut(place).filter(|_| !here.is_empty()) else { continue };
            let mut gone = Bitmap::all(entry.rows);
            match &segment.live {
                Some(live) => gone.subtract(live.rows()),
                None => gone = Bitmap::none(entry.rows),
            }
            here.iter().for_each(|row| gone.insert(*row as usize));
            let name = deleted_name(entry.id, next.generation + 1);
            let path = self.folder.join(&name);
            let bytes: Vec<u8> = gone.words().iter().flat_map(|w| w.to_le_bytes()).collect();
            let mut file = File::create(&path).map_err(|e| IndexError::io(&path, e))?;
            file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(|e| IndexError::io(&path, e))?;
            let file = FileEntry { name, bytes: bytes.len() as u64, xxh3: hex(xxh3_64(&bytes)) };
            entry.deleted = Some(Deleted { file, rows: gone.count() });
        }
        Ok(found.len())
    }
}

fn rows_name(id: u64) -> String {
    format!("rows-{id:06}.parquet")
}

fn vectors_name(id: u64, column: usize) -> String {
    format!("vectors-{id:06}-{column}.glv")
}

fn deleted_name(id: u64, generation: u64) -> String {
    format!("deleted-{id:06}-{generation}.bits")
}

fn lock(folder: &Path) -> Result<File, IndexError> {
    let path = folder.join(LOCK);
    let io = |e| IndexError::io(&path, e);
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            let _ = file.read_to_string(&mut process);
            return Err(IndexError::Locked { path: folder.to_owned(), process: process.trim().to_owned() });
        }
        Err(TryLockError::Error(e)) => return Err(io(e)),
    }
    let written = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
    written.and_then(|_| writeln!(file, "{}", std::process::id())).map_err(io)?;
    Ok(file)
}

fn check_same(mine: &Manifest, other: &Manifest) -> Result<(), IndexError> {
    let differs = |what: String, expected: String, found: String| {
        Err(IndexError::Mismatch { what, expected, found, remedy: "build both indices with the same settings" })
    };
    if mine.key != other.key {
        return differs("the key column".into(), mine.key.clone(), other.key.clone());
    }
    let names = |m: &Manifest| m.columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(", ");
    if names(mine) != names(other) {
        return differs("the set of vector columns".into(), names(mine), names(other));
    }
    for (a, b) in mine.columns.iter().zip(&other.columns) {
        let model = |c: &ColumnSpec| c.model.as_ref().map_or("unknown".into(), |m| format!("{} {}", m.name, m.weights));
        if a.dims != b.dims {
            return differs(format!("the length of {:?}", a.name), a.dims.to_string(), b.dims.to_string());
        }
        if a.metric != b.metric {
            return differs(format!("the metric of {:?}", a.name), a.metric.name().into(), b.metric.name().into());
        }
        if a.model != b.model {
            return differs(format!("the model of {:?}", a.name), model(a), model(b));
        }
    }
    Ok(())
}

/// A segment that is being written.
struct OpenSegment {
    id: u64,
    rows: usize,
    table: TableWriter,
    schema: arrow::datatypes::SchemaRef,
    columns: Vec<Collected>,
}

fn write_segments(
    folder: &Path,
    manifest: &mut Manifest,
    batches: impl IntoIterator<Item = Result<RecordBatch, IndexError>>,
    keys: &mut HashSet<String>,
) -> Result<(), IndexError> {
    let mut open: Option<OpenSegment> = None;
    for batch in batches {
        let batch = batch?;
        for start in (0..batch.num_rows()).step_by(table::GROUP) {
            let part = batch.slice(start, table::GROUP.min(batch.num_rows() - start));
            let mut segment = match open.take() {
                Some(segment) => segment,
                None => begin(folder, manifest, &batch)?,
            };
            segment.push(&part, manifest, keys)?;
            if segment.rows >= SEGMENT_ROWS {
                manifest.segments.push(segment.finish(folder, &manifest.columns)?);
            } else {
                open = Some(segment);
            }
        }
    }
    if let Some(segment) = open {
        manifest.segments.push(segment.finish(folder, &manifest.columns)?);
    }
    Ok(())
}

fn begin(folder: &Path, manifest: &mut Manifest, batch: &RecordBatch) -> Result<OpenSegment, IndexError> {
    let id = manifest.next_segment;
    manifest.next_segment += 1;
    let schema = table::schema(batch.schema_ref(), &manifest.columns);
    let table = TableWriter::create(&folder.join(rows_name(id)), &schema)?;
    let columns = manifest.columns.iter().map(|c| Collected::new(c.dims, c.metric)).collect::<Result<_, _>>()?;
    Ok(OpenSegment { id, rows: 0, table, schema, columns })
}

impl OpenSegment {
    fn push(&mut self, batch: &RecordBatch, manifest: &Manifest, keys: &mut HashSet<String>) -> Result<(), IndexError> {
        let names = table::keys(batch, &manifest.key)?;
        for key in names.iter().flatten() {
            if !keys.insert(key.to_owned()) {
                return Err(IndexError::BadRows {
                    origin: format!("key column {:?}", manifest.key),
                    problem: format!("expected every key once, found {key:?} twice; drop one of the rows"),
                });
            }
        }
        for (spec, collected) in manifest.columns.iter().zip(&mut self.columns) {
            let mut lists = None;
            let lists = table::vectors(batch, &spec.name, &mut lists)?;
            for row in 0..batch.num_rows() {
                collected.push(lists.get(row).as_deref()).map_err(|e| IndexError::BadRows {
                    origin: format!("row {:?}, column {:?}", names.value(row), spec.name),
                    problem: e.to_string(),
                })?;
            }
        }
        self.table.write(&table::normal(batch, &self.schema, &manifest.columns)?)?;
        self.rows += batch.num_rows();
        Ok(())
    }

    fn finish(self, folder: &Path, specs: &[ColumnSpec]) -> Result<SegmentEntry, IndexError> {
        let table = self.table.finish()?;
        let mut columns = Vec::with_capacity(specs.len());
        for (i, (spec, collected)) in specs.iter().zip(self.columns).enumerate() {
            let (file, tuning) = segment::write(&folder.join(vectors_name(self.id, i)), collected, &spec.settings)?;
            columns.push(SegmentColumn { file, tuning });
        }
        manifest::sync_folder(folder)?;
        Ok(SegmentEntry { id: self.id, rows: self.rows, table, deleted: None, columns })
    }
}

impl Index {
    /// Keys of all live rows.
    fn live_keys(&self) -> Result<Vec<String>, IndexError> {
        let mut found = Vec::with_capacity(self.rows());
        for segment in self.segments() {
            let mut at = 0;
            for batch in segment.table.scan(std::slice::from_ref(&self.manifest().key))? {
                for key in &table::keys(&batch?, &self.manifest().key)? {
                    if segment.live.as_ref().is_none_or(|l| l.rows().contains(at)) {
                        found.extend(key.map(str::to_owned));
                    }
                    at += 1;
                }
            }
        }
        Ok(found)
    }

    /// All columns of all live rows, in order.
    pub fn live_rows(&self) -> impl Iterator<Item = Result<RecordBatch, IndexError>> + '_ {
        self.segments().iter().flat_map(|segment| {
            let columns: Vec<String> = segment.table.schema().fields().iter().map(|f| f.name().clone()).collect();
            let mut at = 0;
            let (batches, failed) = match segment.table.scan(&columns) {
                Ok(batches) => (Some(batches), None),
                Err(e) => (None, Some(Err(e))),
            };
            let live = batches.into_iter().flatten().map(move |batch| {
                let batch = batch?;
                let start = at;
                at += batch.num_rows();
                let Some(live) = &segment.live else { return Ok(batch) };
                let keep = (start..at).map(|row| Some(live.rows().contains(row))).collect();
                filter_record_batch(&batch, &keep).map_err(|e| IndexError::damaged(segment.table.path(), e.to_string()))
            });
            failed.into_iter().chain(live)
        })
    }
}
