//! What became of a row: looked up by its id in a published data set, or in what an unfinished run has committed so far.
//!
//! Every file that may hold the row is Parquet with a `row_id` column. Row groups whose statistics exclude the ids are skipped; of the others only the id column is read,
//! on all cores, and of the rows that are found everything but media bytes.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{Array, AsArray},
    compute::cast,
    datatypes::DataType,
};
use groundloom_data::{
    columns::ROW_ID,
    row_id::{Place, RowId, file_hash},
};
use groundloom_formats::json_rows;
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection},
    },
    file::metadata::PageIndexPolicy,
};
use serde_json::{Map, Value};

use crate::{
    drops::{REASON, STAGE},
    error::EngineError,
    finalise::{DROPPED, KEPT, QUARANTINE, REJECTED},
    generation::{MANIFEST, Manifest, Target},
    graph::Work,
    ledger::{Ledger, PartKind, is_superseded},
    nodes::{filter::NOT_SELECTED, shuffle::is_heavy},
    row_ids,
    run::{Plan, TaskInput},
    segment::{Base, SegmentWork},
};

/// What the rows of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Rows of the data set.
    Kept,
    /// Rows that a stage dropped.
    Dropped,
    /// Rows that failed.
    Quarantined,
    /// Rows that a filter dropped and kept aside.
    Rejected,
    /// Rows that have come so far in an unfinished run.
    OnTheWay,
}

/// A file in which rows are looked up.
#[derive(Debug, Clone)]
pub struct SearchedFile {
    /// What its rows are.
    pub kind: Kind,
    /// Where it is.
    pub path: PathBuf,
    /// How it is told: the path inside the data set, or the node whose rows it holds.
    pub name: String,
}

/// A row that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it is there.
    pub kind: Kind,
    /// The file, as [`SearchedFile::name`].
    pub file: String,
    /// Its number in the file, from 0.
    pub row: u64,
    /// Its id.
    pub row_id: String,
    /// Its columns, without media bytes.
    pub columns: Map<String, Value>,
}

impl Found {
    /// A text column.
    pub fn text(&self, column: &str) -> &str {
        self.columns.get(column).and_then(Value::as_str).unwrap_or_default()
    }

    /// What the stage that dropped it told, in its order: expression and value.
    pub fn told(&self) -> Vec<(&str, &Value)> {
        let stage = format!("{}.", self.text(STAGE));
        let told: Vec<_> =
            self.columns.iter().filter_map(|(name, value)| Some((name.strip_prefix(&stage)?, value))).collect();
        // Of a query's conditions only the innermost tells values.
        let by_another = self.reason() == NOT_SELECTED && told.iter().all(|(_, value)| value.is_null());
        if by_another { Vec::new() } else { told }
    }

    /// Why the row was dropped.
    pub fn reason(&self) -> &str {
        match self.kind {
            Kind::Rejected => self.text("message"),
            _ => self.text(REASON),
        }
    }
}

/// The ids that a person may mean by `text`: an id as it stands, else a key, a file of its own (`photos/1.jpg`), or a row of a file (`a.parquet#7`, `a.jsonl#1234`, `a.tar#key`:
/// row number, byte offset or member).
pub fn candidates(text: &str) -> Vec<String> {
    if text.parse::<RowId>().is_ok() {
        return vec![text.to_owned()];
    }
    let mut ids = vec![
        text.to_owned(),
        RowId::from_key(text).to_string(),
        RowId::in_file(file_hash(text), Place::WholeFile).to_string(),
    ];
    if let Some((path, place)) = text.rsplit_once('#') {
        // Members of archives may be named by numbers too.
        let place = match place.parse() {
            Ok(number) if !path.contains(".tar") => Place::Row(number),
            _ => Place::Member(place),
        };
        ids.push(RowId::in_file(file_hash(path), place).to_string());
    }
    ids
}

/// The files of a published generation that hold rows or say what became of them.
///
/// # Errors
/// When there is no data set, or its manifest is damaged.
pub fn published(target: &Path) -> Result<(Manifest, Vec<SearchedFile>), EngineError> {
    let no_data_set = || {
        let cause = std::io::Error::new(std::io::ErrorKind::NotFound, "no data set of Groundloom's is published here");
        EngineError::io(target.join(MANIFEST), cause)
    };
    let manifest = Target::at(target).map_err(|_| no_data_set())?.published()?.ok_or_else(no_data_set)?;
    let files = manifest
        .files
        .iter()
        .filter_map(|file| {
            let inside = |folder: &str| file.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
            let kind = match () {
                () if !file.path.ends_with(".parquet") => return None,
                () if inside(QUARANTINE) => Kind::Quarantined,
                () if inside(REJECTED) => Kind::Rejected,
                () if inside(DROPPED) => Kind::Dropped,
                () if inside(KEPT) => Kind::Kept,
                () if file.path.starts_with('_') => return None,
                () => Kind::Kept,
            };
            Some(SearchedFile { kind, path: target.join(&file.path), name: file.path.clone() })
        })
        .collect();
    Ok((manifest, files))
}

/// The parts of an unfinished run that hold rows or say what became of them, and how many tasks are still to do.
///
/// # Errors
/// When the target cannot be looked at.
pub fn unfinished(plan: &Plan) -> Result<(usize, Vec<SearchedFile>), EngineError> {
    let Some(work) = plan.targets()?.first().map(|t| t.work().to_owned()) else { return Ok((0, Vec::new())) };
    let (mut left, mut files) = (0, Vec::new());
    for (segment, tasks) in plan.segments.all.iter().zip(&plan.tasks) {
        let ledger = Ledger::existing(&work, &segment.fingerprint);
        let node = &plan.graph.nodes[segment.node];
        let entries: Vec<_> = tasks.iter().filter_map(|task| ledger.peek(&task.task)).collect();
        left += tasks.len() - entries.len();
        for entry in &entries {
            let stands = |kind| kind != PartKind::Quarantine || !is_superseded(entry, &entries);
            for part in entry.parts.iter().filter(|p| stands(p.kind) && p.file.ends_with(".parquet")) {
                let kind = match part.kind {
                    PartKind::Data if !matches!(node.work, Work::Sink(_)) => Kind::OnTheWay,
                    PartKind::Data | PartKind::Kept => Kind::Kept,
                    PartKind::Dropped => Kind::Dropped,
                    PartKind::Quarantine => Kind::Quarantined,
                    PartKind::Rejected => Kind::Rejected,
                };
                files.push(SearchedFile { kind, path: ledger.part_path(part), name: node.name.to_string() });
            }
        }
    }
    Ok((left, files))
}

/// Looks the ids up in all files.
///
/// # Errors
/// A file that is gone or damaged.
pub fn find(files: &[SearchedFile], ids: &[String]) -> Result<Vec<Found>, EngineError> {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<(usize, Vec<Found>)>> = Mutex::default();
    let failed: Mutex<Option<EngineError>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((i, file)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, files.get(i)?)))
                {
                    match find_in(file, ids) {
                        Ok(rows) if rows.is_empty() => {}
                        Ok(rows) => found.lock().unwrap_or_else(PoisonError::into_inner).push((i, rows)),
                        Err(error) => {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(i, _)| *i);
    Ok(found.into_iter().flat_map(|(_, rows)| rows).collect())
}

/// An opened file whose rows have ids.
struct Opened {
    file: File,
    metadata: ArrowReaderMetadata,
    id_column: usize,
}

fn damaged(path: &Path, e: impl std::fmt::Display) -> EngineError {
    EngineError::Damaged { path: path.to_owned(), message: e.to_string() }
}

fn open(path: &Path) -> Result<Opened, EngineError> {
    let file = File::open(path).map_err(|e| EngineError::io(path, e))?;
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    let metadata = ArrowReaderMetadata::load(&file, options).map_err(|e| damaged(path, e))?;
    let id_column = metadata.parquet_schema().columns().iter().position(|c| c.path().string() == ROW_ID);
    let id_column = id_column.ok_or_else(|| damaged(path, "expected a column `row_id`"))?;
    Ok(Opened { file, metadata, id_column })
}

fn find_in(file: &SearchedFile, ids: &[String]) -> Result<Vec<Found>, EngineError> {
    let opened = open(&file.path)?;
    let wrong = |e: &dyn std::fmt::Display| damaged(&file.path, e);
    let groups = opened.metadata.metadata().row_groups();
    let (mut start, mut hits) = (0usize, Vec::new());
    for (index, group) in groups.iter().enumerate() {
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        let statistics = group.column(opened.id_column).statistics();
        let bounds = statistics.and_then(|s| Some((s.min_bytes_opt()?, s.max_bytes_opt()?)));
        let possible =
            bounds.is_none_or(|(min, max)| ids.iter().any(|id| min <= id.as_bytes() && id.as_bytes() <= max));
        if possible {
            let handle = opened.file.try_clone().map_err(|e| EngineError::io(&file.path, e))?;
            let mask = ProjectionMask::leaves(opened.metadata.parquet_schema(), [opened.id_column]);
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(handle, opened.metadata.clone())
                .with_row_groups(vec![index])
                .with_projection(mask)
                .with_batch_size(65_536)
                .build()
                .map_err(|e| wrong(&e))?;
            let mut at = start;
            for batch in reader {
                let batch = batch.map_err(|e| wrong(&e))?;
                let column = cast(batch.column(0), &DataType::Utf8).map_err(|e| wrong(&e))?;
                let column = column.as_string::<i32>();
                for row in 0..column.len() {
                    if ids.iter().any(|id| id == column.value(row)) {
                        hits.push((at + row, column.value(row).to_owned()));
                    }
                }
                at += column.len();
            }
        }
        start += rows;
    }
    if hits.is_empty() { Ok(Vec::new()) } else { whole_rows(file, opened, start, hits) }
}

/// The rows with all columns but heavy ones.
fn whole_rows(
    file: &SearchedFile,
    opened: Opened,
    total: usize,
    hits: Vec<(usize, String)>,
) -> Result<Vec<Found>, EngineError> {
    let wrong = |e: &dyn std::fmt::Display| damaged(&file.path, e);
    let schema = Arc::clone(opened.metadata.schema());
    let light = (0..schema.fields().len()).filter(|i| !is_heavy(schema.field(*i).data_type()));
    let mask = ProjectionMask::roots(opened.metadata.parquet_schema(), light);
    let rows = hits.iter().map(|(row, _)| *row..*row + 1);
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(opened.file, opened.metadata)
        .with_projection(mask)
        .with_row_selection(RowSelection::from_consecutive_ranges(rows, total))
        .build()
        .map_err(|e| wrong(&e))?;
    let mut objects = Vec::with_capacity(hits.len());
    for batch in reader {
        objects.extend(json_rows::objects(&batch.map_err(|e| wrong(&e))?)?);
    }
    Ok(hits
        .into_iter()
        .zip(objects)
        .map(|((row, row_id), columns)| Found {
            kind: file.kind,
            file: file.name.clone(),
            row: row as u64,
            row_id,
            columns,
        })
        .collect())
}

/// What can be said of an id that no file holds, from the pipeline and its inputs alone.
#[derive(Debug, Clone, PartialEq)]
pub enum Unwritten {
    /// A `sample` did not draw it; known from the id, if such a row exists.
    NotSampled {
        /// The stage.
        stage: String,
        /// The number that was drawn, from 0 to 1.
        drawn: f64,
        /// Its bound.
        fraction: f64,
    },
    /// Its shard is not done.
    NotReached {
        /// The source.
        source: String,
        /// The file.
        file: String,
    },
    /// The statistics of its part of the file told the first filter that no row there passes, so it was not read.
    Skipped {
        /// The filter.
        stage: String,
        /// Its predicate.
        predicate: String,
        /// The file.
        file: String,
    },
    /// It came as far as a query or limit whose result has no such row.
    LeftOut {
        /// Its id.
        row_id: String,
        /// The last node that had it.
        through: String,
        /// The query or limit.
        stage: String,
        /// Its `type:`.
        kind: String,
        /// What it was asked for: the query, or the number of rows.
        asked: Value,
    },
    /// Its shard was never read: a limit had enough rows before.
    NotNeeded {
        /// The source.
        source: String,
        /// The file.
        file: String,
    },
    /// Its file is an input, but nothing says what became of such a row: it does not exist, or a query or limit lost it.
    Unaccounted {
        /// The file.
        file: String,
        /// Queries and limits of the pipeline that lose rows without naming them.
        suspects: Vec<String>,
    },
}

/// What the plan says of ids that were not found.
///
/// # Errors
/// When the target cannot be looked at.
pub fn unwritten(plan: &Plan, ids: &[String]) -> Result<Vec<Unwritten>, EngineError> {
    let Some(work) = plan.targets()?.first().map(|t| t.work().to_owned()) else { return Ok(Vec::new()) };
    let nodes = &plan.graph.nodes;
    let published = plan
        .sinks()
        .zip(plan.targets()?)
        .map(|((segment, ..), target)| Ok(target.is_current(&plan.generation(segment))?.is_some()))
        .collect::<Result<Vec<bool>, EngineError>>()?
        .into_iter()
        .all(|current| current);
    if published {
        let left_out = left_out(plan, &work, ids)?;
        if !left_out.is_empty() {
            return Ok(left_out);
        }
    }
    let mut said = Vec::new();
    let mut lost = BTreeMap::new();
    for (segment, tasks) in plan.segments.all.iter().zip(&plan.tasks) {
        let SegmentWork::Rows { base: Base::Source(source), chain, .. } = &segment.work else { continue };
        let first_filter = chain.first().and_then(|n| match &nodes[*n].work {
            Work::Filter(filter) if !filter.keep_rejected => Some((nodes[*n].name.to_string(), &filter.predicate)),
            Work::Sql { query, row_wise: true } => Some((nodes[*n].name.to_string(), query)),
            _ => None,
        });
        let ledger = Ledger::existing(&work, &segment.fingerprint);
        for task in tasks {
            let TaskInput::Shard(shard) = &task.input else { continue };
            let prefix = |path: &str| format!("{:016x}", file_hash(path));
            let Some(file) = shard.files.iter().find(|f| ids.iter().any(|id| id.starts_with(&prefix(&f.path)))) else {
                continue;
            };
            let file = file.path;
            if !published && ledger.peek(&task.task).is_none() {
                said.push(Unwritten::NotReached { source: nodes[*source].name.to_string(), file });
                return Ok(said);
            }
            if segment.enough.is_some() && ledger.peek(&task.task).is_none() {
                let source = nodes[*source].name.to_string();
                lost.insert(file.clone(), Unwritten::NotNeeded { source, file });
                continue;
            }
            let parquet = matches!(&nodes[*source].work, Work::Source { discovery, .. } if matches!(discovery.reader, groundloom_formats::Reader::Parquet));
            match &first_filter {
                Some((stage, predicate)) if parquet => {
                    let (stage, predicate) = (stage.clone(), (*predicate).clone());
                    lost.insert(file.clone(), Unwritten::Skipped { stage, predicate, file });
                }
                _ => {
                    let suspects = nodes.iter().filter(|n| n.is_set() && matches!(&*n.kind, "sql" | "limit"));
                    let suspects = suspects.map(|n| n.name.to_string()).collect();
                    lost.entry(file.clone()).or_insert(Unwritten::Unaccounted { file, suspects });
                }
            }
        }
    }
    for node in nodes {
        if let Work::Sample(sample) = &node.work {
            for id in ids.iter().filter(|id| id.parse::<RowId>().is_ok()) {
                let drawn = row_ids::unit(id, sample.seed);
                // Of several meanings of a text only one that an input can have is worth a word.
                let exists =
                    lost.keys().any(|path| id.starts_with(&format!("{:016x}", file_hash(path)))) || ids.len() == 1;
                if exists && drawn >= sample.fraction {
                    let (stage, fraction) = (node.name.to_string(), sample.fraction);
                    said.push(Unwritten::NotSampled { stage, drawn, fraction });
                }
            }
        }
    }
    if said.is_empty() {
        said.extend(lost.into_values());
    }
    Ok(said)
}

/// The rows that a segment of a finished run left for a set stage, where that stage's own result has no such row.
fn left_out(plan: &Plan, work: &Path, ids: &[String]) -> Result<Vec<Unwritten>, EngineError> {
    let nodes = &plan.graph.nodes;
    let mut held: Vec<Vec<Found>> = Vec::with_capacity(plan.segments.all.len());
    for (segment, tasks) in plan.segments.all.iter().zip(&plan.tasks) {
        let kept = !matches!(nodes[segment.node].work, Work::Sink(_));
        let ledger = Ledger::existing(work, &segment.fingerprint);
        let entries = tasks.iter().filter(|_| kept).filter_map(|task| ledger.peek(&task.task));
        let parts = entries.filter_map(|entry| Some(ledger.part_path(entry.part(PartKind::Data)?)));
        // What only an older run needed may be gone.
        let name = nodes[segment.node].name.to_string();
        let files = parts.filter(|path| path.exists());
        let files: Vec<_> = files.map(|path| SearchedFile { kind: Kind::OnTheWay, path, name: name.clone() }).collect();
        held.push(find(&files, ids)?);
    }
    let mut said = Vec::new();
    for (reader, segment) in plan.segments.all.iter().enumerate() {
        let SegmentWork::Set { node, inputs } = &segment.work else { continue };
        let asked = match &nodes[*node].work {
            Work::Sql { query, .. } => Value::from(query.as_str()),
            Work::Limit(limit) => Value::from(limit.rows),
            // These name what they drop.
            _ => continue,
        };
        let given = inputs.iter().filter_map(|i| if let Base::Segment(id) = i { held.get(*id) } else { None });
        for row in given.flatten().filter(|row| !held[reader].iter().any(|r| r.row_id == row.row_id)) {
            said.push(Unwritten::LeftOut {
                row_id: row.row_id.clone(),
                through: row.file.clone(),
                stage: nodes[*node].name.to_string(),
                kind: nodes[*node].kind.to_string(),
                asked: asked.clone(),
            });
        }
    }
    Ok(said)
}
