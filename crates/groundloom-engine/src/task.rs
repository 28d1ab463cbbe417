//! One task: a plan over one shard, its rows parted into good, failed and rejected ones, written and committed together.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, StringArray},
    compute::{filter_record_batch, is_null, not},
    datatypes::{DataType, Field, FieldRef, Schema},
    record_batch::RecordBatch,
};
use datafusion::{
    execution::{SessionState, TaskContext},
    physical_plan::{ExecutionPlan, execute_stream},
};
use futures::StreamExt;
use groundloom_data::{
    columns::{ERROR, ROW_ID},
    funnel::StageCounts,
};
use groundloom_formats::{PartWriter, Sink};
use tracing::field::Empty;

use crate::{
    content_ids::ContentIds,
    drops::{DropLog, Told},
    error::EngineError,
    ledger::{Again, Entry, Ledger, OpenPart, PartKind},
    nodes::{
        filter::{FilterExec, REJECTED},
        scan::{SOURCE, ShardScanExec},
        set::SetExec,
        stage::StageExec,
    },
    segment::Fingerprint,
    session,
};

/// Where a task's rows get their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowIds {
    /// They carry them.
    Carried,
    /// Made from a `row_id` they select, or from their content; made unique where it repeats.
    Content,
}

/// All a task needs.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its identity.
    pub task: Fingerprint,
    /// A plan with one partition, over its shard only.
    pub plan: Arc<dyn ExecutionPlan>,
    /// The session it runs in.
    pub session: Arc<SessionState>,
    /// Memory before sorts spill, where it is limited.
    pub memory_bytes: Option<usize>,
    /// Rows of the shard, where known without reading.
    pub rows_in: Option<u64>,
    /// Names of the sources behind the segment, for quarantine rows.
    pub sources: Arc<str>,
    /// Where rows get their ids.
    pub row_ids: RowIds,
    /// Whether the ids of good rows are listed beside them, because the sink's format cannot be searched for them.
    pub lists_kept: bool,
    /// `SHARD:VERSIONS` of its files, as the entry tells it.
    pub files: String,
    /// Whose failed rows it tries again, if it is a retry.
    pub again: Option<Again>,
    /// Writes good rows.
    pub sink: Arc<dyn Sink>,
    /// Writes failed and rejected rows.
    pub aside: Arc<dyn Sink>,
    /// Key-value pairs for formats that can carry them.
    pub metadata: Arc<Vec<(String, String)>>,
}

/// A task whose parts are written; dropped, they vanish again.
#[derive(Debug)]
pub struct Uncommitted {
    /// What the ledger will say of it.
    pub entry: Entry,
    /// Its part files.
    pub parts: Vec<OpenPart>,
}

impl Uncommitted {
    /// Commits the task, which waits for the disk and needs no processor: another task can run meanwhile.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub async fn commit(self, ledger: Ledger) -> Result<Entry, EngineError> {
        tokio::task::spawn_blocking(move || ledger.commit(self.entry, self.parts))
            .await
            .map_err(|e| EngineError::Internal(format!("commit: {e}")))?
    }
}

/// Is told how many rows a running task has finished.
pub type RowsDone = Arc<dyn Fn(u64) + Send + Sync>;

impl Task {
    /// Runs the task, up to the commit.
    ///
    /// # Errors
    /// What ends the run; no part file stays then.
    #[tracing::instrument(
        name = "task",
        skip_all,
        fields(task = %self.task, rows_in = Empty, rows_kept = Empty, rows_quarantined = Empty, rows_dropped = Empty)
    )]
    pub async fn run(&self, ledger: &Ledger, done: &RowsDone) -> Result<Uncommitted, EngineError> {
        let drops = Arc::new(DropLog::new(ledger, &self.task, told(&self.plan)));
        let mut rows = execute_stream(Arc::clone(&self.plan), self.context(&drops))?;
        let mut ids = match self.row_ids {
            RowIds::Carried => None,
            RowIds::Content => Some(ContentIds::default()),
        };
        let mut data = Output::new(PartKind::Data, &self.sink);
        let mut quarantine = Output::new(PartKind::Quarantine, &self.aside);
        let mut rejected = Output::new(PartKind::Rejected, &self.aside);
        let mut kept = Output::new(PartKind::Kept, &self.aside);
        while let Some(batch) = rows.next().await {
            let mut batch = batch?;
            if let Some(ids) = &mut ids {
                batch = ids.give(&batch)?;
            }
            let count = batch.num_rows() as u64;
            let parted = part(&batch)?;
            data.write(self, ledger, &parted.good)?;
            if self.lists_kept {
                kept.write(self, ledger, &ids_only(&parted.good)?)?;
            }
            if let Some(failed) = &parted.failed {
                quarantine.write(self, ledger, &aside(failed, &self.sources)?)?;
            }
            if let Some(refused) = &parted.rejected {
                rejected.write(self, ledger, &aside(refused, &self.sources)?)?;
            }
            done(count);
        }
        drop(rows);
        let mut parts = Vec::new();
        let mut open = Vec::new();
        let written = [data.finish()?, quarantine.finish()?, rejected.finish()?, drops.finish()?, kept.finish()?];
        for (part, handle) in written.into_iter().flatten() {
            parts.push(part);
            open.push(handle);
        }
        let written = parts.iter().filter(|p| p.kind != PartKind::Kept).map(|p| p.rows).sum();
        let (rows_in, counts) = counts(&self.plan, self.rows_in, written, self.again.as_ref());
        let (files, again) = (self.files.clone(), self.again.clone());
        let entry = Entry { task: self.task.clone(), rows_in, parts, counts, files, again };
        let span = tracing::Span::current();
        // OpenTelemetry has no unsigned numbers: they would be sent as texts.
        let rows = |kind| i64::try_from(entry.rows(kind)).unwrap_or(i64::MAX);
        span.record("rows_in", i64::try_from(entry.rows_in).unwrap_or(i64::MAX));
        span.record("rows_kept", rows(PartKind::Data));
        span.record("rows_quarantined", rows(PartKind::Quarantine));
        span.record("rows_dropped", rows(PartKind::Dropped));
        Ok(Uncommitted { entry, parts: open })
    }

    /// The session with the log to which operators tell what they drop.
    fn context(&self, drops: &Arc<DropLog>) -> Arc<TaskContext> {
        let mut config = self.session.config().clone().with_extension(Arc::clone(drops));
        if let Some(bytes) = self.memory_bytes {
            session::leave_room_to_merge(&mut config, &self.plan, bytes);
        }
        Arc::new(TaskContext::from(self.session.as_ref()).with_session_config(config))
    }
}

/// A part file that is opened with its first rows.
struct Output<'a> {
    kind: PartKind,
    sink: &'a Arc<dyn Sink>,
    open: Option<(OpenPart, Box<dyn PartWriter>)>,
    rows: u64,
}

impl<'a> Output<'a> {
    fn new(kind: PartKind, sink: &'a Arc<dyn Sink>) -> Self {
        Self { kind, sink, open: None, rows: 0 }
    }

    fn write(&mut self, task: &Task, ledger: &Ledger, rows: &RecordBatch) -> Result<(), EngineError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        if self.open.is_none() {
            let (part, file) = ledger.start_part(&task.task, self.kind, self.sink.extension())?;
            let writer = self.sink.writer(rows.schema(), file, &task.metadata).map_err(|e| part.failed(e))?;
            self.open = Some((part, writer));
        }
        if let Some((part, writer)) = &mut self.open {
            writer.write(rows).map_err(|e| part.failed(e))?;
        }
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    fn finish(self) -> Result<Option<(crate::ledger::Part, OpenPart)>, EngineError> {
        let Some((mut open, writer)) = self.open else { return Ok(None) };
        let file = writer.finish().map_err(|e| open.failed(e))?;
        let part = open.complete(file, self.rows)?;
        Ok(Some((part, open)))
    }
}

struct Parted {
    good: RecordBatch,
    failed: Option<RecordBatch>,
    rejected: Option<RecordBatch>,
}

/// Parts a batch by its error column; the good rows lose it.
fn part(batch: &RecordBatch) -> Result<Parted, EngineError> {
    let Ok(index) = batch.schema().index_of(ERROR) else {
        return Ok(Parted { good: batch.clone(), failed: None, rejected: None });
    };
    let without: Vec<usize> = (0..batch.num_columns()).filter(|i| *i != index).collect();
    let arrow = |e| EngineError::Execution(datafusion::error::DataFusionError::from(e));
    let good = batch.project(&without).map_err(arrow)?;
    let errors = batch.column(index);
    if errors.null_count() == batch.num_rows() {
        return Ok(Parted { good, failed: None, rejected: None });
    }
    let fine = is_null(errors).map_err(arrow)?;
    let codes = errors.as_struct().column_by_name("code").map(|c| c.as_string::<i32>().clone());
    let refused: BooleanArray = (0..batch.num_rows())
        .map(|row| Some(errors.is_valid(row) && codes.as_ref().is_some_and(|c| c.value(row) == REJECTED)))
        .collect();
    let failed = arrow::compute::and(&not(&fine).map_err(arrow)?, &not(&refused).map_err(arrow)?).map_err(arrow)?;
    let pick = |mask: &BooleanArray| -> Result<Option<RecordBatch>, EngineError> {
        if mask.true_count() == 0 { Ok(None) } else { Ok(Some(filter_record_batch(batch, mask).map_err(arrow)?)) }
    };
    Ok(Parted {
        good: filter_record_batch(&good, &fine).map_err(arrow)?,
        failed: pick(&failed)?,
        rejected: pick(&refused)?,
    })
}

/// Rows as they stand in `_quarantine/` and `_rejected/`: row id, source, stage, code, message, then the row.
fn aside(rows: &RecordBatch, sources: &str) -> Result<RecordBatch, EngineError> {
    let schema = rows.schema();
    let index = schema.index_of(ERROR).map_err(|e| EngineError::Internal(e.to_string()))?;
    let errors = rows.column(index).as_struct();
    let mut fields: Vec<FieldRef> = vec![
        Arc::new(Field::new(ROW_ID, DataType::Utf8, false)),
        Arc::new(Field::new("source", DataType::Utf8, false)),
    ];
    let ids = rows.column_by_name(ROW_ID).cloned().ok_or_else(|| EngineError::Internal("a row without id".into()))?;
    let sources = StringArray::from(vec![sources; rows.num_rows()]);
    let mut columns: Vec<ArrayRef> = vec![ids, Arc::new(sources)];
    for name in ["stage", "code", "message"] {
        let column = errors
            .column_by_name(name)
            .cloned()
            .ok_or_else(|| EngineError::Internal("an error without code".into()))?;
        fields.push(Arc::new(Field::new(name, DataType::Utf8, true)));
        columns.push(column);
    }
    for (field, column) in schema.fields().iter().zip(rows.columns()) {
        if field.name() != ERROR && field.name() != ROW_ID {
            let taken = fields.iter().any(|f| f.name() == field.name());
            let name = if taken { format!("row_{}", field.name()) } else { field.name().clone() };
            fields.push(Arc::new(field.as_ref().clone().with_name(name).with_nullable(true)));
            columns.push(Arc::clone(column));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| EngineError::Internal(e.to_string()))
}

/// What the operators of a chain tell of the rows they drop.
fn told(plan: &Arc<dyn ExecutionPlan>) -> Vec<Told> {
    let mut all = Vec::new();
    let mut at = Some(plan);
    while let Some(node) = at {
        if let Some(filter) = node.downcast_ref::<FilterExec>() {
            all.extend(filter.told());
        } else if let Some(set) = node.downcast_ref::<SetExec>() {
            all.extend(set.told());
        }
        at = node.children().first().copied();
    }
    all
}

fn ids_only(rows: &RecordBatch) -> Result<RecordBatch, EngineError> {
    let internal = |e: arrow::error::ArrowError| EngineError::Internal(e.to_string());
    let index = rows.schema().index_of(ROW_ID).map_err(internal)?;
    rows.project(&[index]).map_err(internal)
}

/// The counts of a chain of operators, source first, and the rows that entered it.
fn counts(
    plan: &Arc<dyn ExecutionPlan>,
    rows_in: Option<u64>,
    written: u64,
    again: Option<&Again>,
) -> (u64, Vec<StageCounts>) {
    let mut chain = Vec::new();
    let mut at = Some(plan);
    while let Some(node) = at {
        if let Some(stage) = node.downcast_ref::<StageExec>() {
            chain.push(stage.counters().snapshot());
        } else if let Some(filter) = node.downcast_ref::<FilterExec>() {
            chain.push(filter.counters().snapshot());
        } else if let Some(counters) = node.downcast_ref::<SetExec>().and_then(SetExec::counters) {
            chain.push(counters.snapshot());
        } else if let Some(scan) = node.downcast_ref::<ShardScanExec>() {
            chain.push(scan.counters().snapshot());
        }
        at = node.children().first().copied();
    }
    chain.reverse();
    // The conditions of one query.
    chain.dedup_by(|next, first| {
        let same = first.stage == next.stage;
        if same {
            first.rows_out = next.rows_out;
        }
        same
    });
    // A retry read past the rows that are not its own.
    if let (Some(again), Some(source)) = (again, chain.first_mut().filter(|c| c.kind == SOURCE)) {
        (source.rows_in, source.rows_out) = (again.rows, again.rows);
    }
    let read = rows_in.or_else(|| chain.first().map(|c| c.rows_in)).unwrap_or(written);
    // Row groups that a Parquet scan skipped hold rows that the first filter would have dropped.
    let mut before = read;
    for stage in &mut chain {
        stage.rows_in = before.max(stage.rows_in);
        before = stage.rows_out;
    }
    (read, chain)
}
