//! Running a pipeline: tasks that are not committed yet, segment by segment, then one publication per sink.

mod preview;

use std::{
    collections::{BTreeMap, HashSet},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use datafusion::{
    common::DataFusionError,
    datasource::provider_as_source,
    execution::context::SessionContext,
    logical_expr::{LogicalPlan, LogicalPlanBuilder, col},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::stream::{FuturesUnordered, StreamExt};
use groundloom_data::{columns::ROW_ID, funnel::StageCounts, row_id::file_hash};
use groundloom_formats::{Discovery, Reader, Shard, ShardFile, ShardFiles, Sink};
use groundloom_llm::Clients;
use groundloom_models::ModelPool;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    contract,
    error::EngineError,
    finalise,
    generation::{Manifest, Target},
    graph::{Graph, Node, NodeId, Work},
    joining::Ahead,
    ledger::{Again, Entry, Ledger, PartKind},
    mirror::Mirror,
    nodes::{
        scan::{self, FILE_COLUMN, Ids, ROW_COLUMN, ShardTable},
        set,
        shuffle::{Late, LateFile, late_columns},
        stage::{Resources, StageSpec},
    },
    plan, quarantine,
    retries::{self, Retries},
    row_ids,
    run_record::{self, OpenRecord},
    segment::{self, Base, Fingerprint, Segment, SegmentId, SegmentWork, Segments},
    session,
    task::{RowIds, RowsDone, Task, Uncommitted},
    telemetry::Telemetry,
};

/// How a run works on this machine. None of it changes a byte of the output, but that a memory limit changes the order in which queries leave rows that they do not order.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Tasks at the same time, and threads of the models.
    pub threads: NonZeroUsize,
    /// Memory of set stages before they spill, in bytes; `None` = no limit.
    pub memory_bytes: Option<usize>,
    /// Stops the run cleanly: no task is started any more, those under way get [`RunOptions::GRACE`] to be committed.
    pub stop: CancellationToken,
    /// Is told what the run measures about itself.
    pub telemetry: Arc<Telemetry>,
    /// The clients that stages ask language models through.
    pub clients: Arc<Clients>,
}

impl RunOptions {
    /// What tasks under way get when the run is told to stop. Batch systems kill a process half a minute after they told it.
    pub const GRACE: Duration = Duration::from_secs(10);
}

/// What happens during a run, for progress.
#[derive(Debug, Clone)]
pub enum Event {
    /// The plan is made.
    Planned {
        /// All tasks.
        tasks: usize,
        /// Tasks that an earlier run committed.
        reused: usize,
    },
    /// A segment starts.
    SegmentStarted {
        /// The node whose rows it leaves.
        segment: Arc<str>,
        /// Tasks to do.
        tasks: usize,
        /// Rows to read, where all shards know theirs.
        rows: Option<u64>,
    },
    /// A running task has finished more rows.
    Rows {
        /// How many.
        rows: u64,
    },
    /// A task is committed.
    TaskDone {
        /// The node whose rows its segment leaves.
        segment: Arc<str>,
        /// Input bytes of its shard.
        bytes: u64,
    },
    /// The files of a sink are being put together.
    Publishing {
        /// The sink.
        sink: Arc<str>,
    },
}

/// Is told what happens.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// What a run did.
#[derive(Debug, Clone)]
pub struct Summary {
    /// One per sink, in the order of the file.
    pub sinks: Vec<SinkSummary>,
    /// Tasks done by this run.
    pub tasks_done: usize,
    /// Tasks that an earlier run had committed.
    pub tasks_reused: usize,
    /// Rows that this run read.
    pub rows_read: u64,
    /// Seconds, planning included.
    pub seconds: f64,
}

/// What became of one sink.
#[derive(Debug, Clone)]
pub struct SinkSummary {
    /// The published generation.
    pub manifest: Manifest,
    /// Its folder; for a data set on an object store, the local one that it was copied from.
    pub path: PathBuf,
    /// Its URL, if it is on an object store.
    pub url: Option<String>,
    /// Whether it was there already, so that nothing was done.
    pub up_to_date: bool,
}

/// A task of the plan.
#[derive(Debug, Clone)]
pub struct PlannedTask {
    /// Decides its bytes.
    pub task: Fingerprint,
    /// The task as the listing of the inputs gives it: itself, unless it mends another one or stands for it.
    pub listed: Fingerprint,
    /// The task whose failed rows it tries again; it reads only these.
    pub again: Option<Fingerprint>,
    /// What it reads: a shard of a source, or the part of an upstream task (whose index is given).
    pub input: TaskInput,
}

impl PlannedTask {
    fn new(identity: &Value, input: TaskInput) -> Self {
        let task = Fingerprint::of(identity);
        Self { listed: task.clone(), task, again: None, input }
    }
}

/// What a task reads.
#[derive(Debug, Clone)]
pub enum TaskInput {
    /// A shard of a source.
    Shard(Shard),
    /// What a task of another segment left.
    Upstream(SegmentId, usize),
    /// Everything (a set stage).
    All,
}

/// A pipeline cut into segments and tasks, before any work.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The pipeline.
    pub graph: Graph,
    /// Its segments.
    pub segments: Segments,
    /// The tasks of each segment.
    pub tasks: Vec<Vec<PlannedTask>>,
    /// Whether queries are planned for a memory limit.
    pub limited: bool,
}

impl Plan {
    /// Plans a checked pipeline. Which task depends on what is known from the inputs' listing alone, and on which of them had failed rows tried again.
    ///
    /// `limited` says that set stages will work under a memory limit: queries are then planned from operators that spill, which leave rows in another order where the query asks
    /// for none, so they are other tasks.
    ///
    /// # Errors
    /// When a stage cannot say which model weights it uses, or the list of retries is damaged.
    pub fn new(graph: Graph, limited: bool) -> Result<Self, EngineError> {
        let segments = Segments::cut(&graph, limited)
            .map_err(|e| EngineError::Execution(DataFusionError::Execution(e.to_string())))?;
        let mut tasks: Vec<Vec<PlannedTask>> = Vec::with_capacity(segments.all.len());
        let target =
            graph.nodes.iter().find_map(|n| if let Work::Sink(sink) = &n.work { Some(sink.path()) } else { None });
        // A target that cannot be is a fault of the run, which says so better.
        let retries = match target.and_then(|path| Target::of(path).ok()) {
            Some(target) => Retries::read(target.work())?,
            None => Retries::default(),
        };
        for segment in &segments.all {
            let planned: Vec<PlannedTask> = match &segment.work {
                SegmentWork::Rows { base: Base::Source(source), .. } => shards(&graph.nodes[*source])
                    .iter()
                    .map(|shard| {
                        let identity = json!({ "segment": segment.fingerprint, "shard": shard_identity(shard) });
                        PlannedTask::new(&identity, TaskInput::Shard(shard.clone()))
                    })
                    .collect(),
                SegmentWork::Rows { base: Base::Segment(upstream), .. } => tasks[*upstream]
                    .iter()
                    .enumerate()
                    .map(|(i, t)| {
                        let identity = json!({ "segment": segment.fingerprint, "upstream": t.task });
                        PlannedTask::new(&identity, TaskInput::Upstream(*upstream, i))
                    })
                    .collect(),
                SegmentWork::Set { inputs, .. } => {
                    let inputs: Vec<Value> = inputs
                        .iter()
                        .map(|base| match base {
                            Base::Source(source) => shards(&graph.nodes[*source]).iter().map(shard_identity).collect(),
                            Base::Segment(upstream) => tasks[*upstream].iter().map(|t| json!(t.task)).collect(),
                        })
                        .collect();
                    let identity = json!({ "segment": segment.fingerprint, "inputs": inputs });
                    vec![PlannedTask::new(&identity, TaskInput::All)]
                }
            };
            tasks.push(planned.into_iter().flat_map(|t| retries.expand(t)).collect());
        }
        Ok(Self { graph, segments, tasks, limited })
    }

    /// The segments that end in a sink, with the sink's node.
    pub fn sinks(&self) -> impl Iterator<Item = (SegmentId, NodeId, &Arc<dyn Sink>)> {
        self.segments.all.iter().enumerate().filter_map(|(id, segment)| match &self.graph.nodes[segment.node].work {
            Work::Sink(sink) => Some((id, segment.node, sink)),
            _ => None,
        })
    }

    /// What decides every byte of a sink's generation.
    pub fn generation(&self, sink: SegmentId) -> Fingerprint {
        let tasks: Vec<Vec<&Fingerprint>> =
            self.segments.upstream(sink).iter().map(|s| self.tasks[*s].iter().map(|t| &t.task).collect()).collect();
        Fingerprint::of(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "name": self.graph.name,
            "description": self.graph.description,
            "text": self.graph.text,
            "tasks": tasks,
        }))
    }

    /// What a person declared behind a node: names, types and configs, without what the inputs hold.
    pub fn declared(&self, node: NodeId) -> Fingerprint {
        let nodes = &self.graph.nodes;
        let mut wanted = vec![false; nodes.len()];
        wanted[node] = true;
        for id in (0..=node).rev() {
            if wanted[id] {
                nodes[id].inputs.iter().for_each(|input| wanted[*input] = true);
            }
        }
        let behind = nodes.iter().zip(wanted).filter(|(_, wanted)| *wanted);
        Fingerprint::of(&behind.map(|(n, _)| json!([n.name, n.kind, n.config])).collect())
    }

    /// The folder in which the work of this pipeline stands: beside the target of its first sink.
    ///
    /// # Errors
    /// As [`Target::at`].
    pub fn targets(&self) -> Result<Vec<Target>, EngineError> {
        self.sinks().map(|(_, _, sink)| Target::of(sink.path())).collect()
    }

    /// How many tasks of each segment are committed already, and why the others are to be done.
    pub fn reuse(&self, work: &Path) -> Vec<Reuse> {
        let known = Ledger::described(work);
        let of_segment = |(segment, tasks): (&Segment, &Vec<PlannedTask>)| {
            let ledger = Ledger::existing(work, &segment.fingerprint);
            let missing: Vec<&PlannedTask> = tasks.iter().filter(|t| ledger.peek(&t.task).is_none()).collect();
            let before = known.iter().find(|k| k["node"] == segment.identity["node"] && **k != segment.identity);
            let why = match (missing.is_empty(), known.contains(&segment.identity), before) {
                (true, ..) => Vec::new(),
                (false, true, _) => not_done(&missing, tasks.len()),
                (false, false, Some(before)) => segment::changes(before, &segment.identity),
                (false, false, None) if known.is_empty() => Vec::new(),
                (false, false, None) => vec!["it is new in this pipeline".to_owned()],
            };
            Reuse { committed: tasks.len() - missing.len(), why }
        };
        self.segments.all.iter().zip(&self.tasks).map(of_segment).collect()
    }
}

/// What a plan finds of a segment's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reuse {
    /// Tasks that are committed.
    pub committed: usize,
    /// Why the others are not; nothing where the pipeline was never run.
    pub why: Vec<String>,
}

/// Why tasks of a segment that is as it was are to be done.
fn not_done(missing: &[&PlannedTask], all: usize) -> Vec<String> {
    let mut files: Vec<String> = missing
        .iter()
        .filter_map(|t| if let TaskInput::Shard(shard) = &t.input { shard.files.first() } else { None })
        .map(|f| f.path)
        .collect();
    files.dedup();
    let shown = files.iter().take(3).map(|f| format!("`{f}`")).collect::<Vec<_>>().join(", ");
    let more = if files.len() > 3 { format!(" and {} more", files.len() - 3) } else { String::new() };
    match (files.is_empty(), missing.len() == all) {
        (false, false) => vec![format!("new or changed input, or not reached yet: from {shown}{more}")],
        (false, true) => vec!["not reached yet, or all of the input changed".to_owned()],
        (true, _) => vec!["what it reads is made anew, or it was not reached yet".to_owned()],
    }
}

/// The files of kept parts, for fetching rows by their place.
fn late_files(shards: &[Shard]) -> Vec<LateFile> {
    let file = |shard: &Shard| {
        let files = shard.files.iter().map(|f| (PathBuf::from(&f.location), f.size));
        files.map(|(path, bytes)| LateFile { path, rows: shard.rows.unwrap_or(0), bytes }).collect::<Vec<_>>()
    };
    shards.iter().flat_map(file).collect()
}

fn shards(node: &Node) -> &[Shard] {
    match &node.work {
        Work::Source { discovery, .. } => &discovery.shards,
        _ => &[],
    }
}

/// A shard's identity and the version of what it holds.
pub(crate) fn shard_identity(shard: &Shard) -> Value {
    let files: Vec<Value> = shard
        .files
        .iter()
        .map(|f| {
            json!([
                f.location,
                f.path,
                f.size,
                f.range.as_ref().map(|r| [r.start, r.end]),
                f.version,
                f.metadata.as_ref().map(|r| [r.start, r.end])
            ])
        })
        .collect();
    json!([shard.id, files])
}

/// Runs a plan.
///
/// # Errors
/// What ends the run; all that was committed stays, and running the same plan again goes on from there.
#[tracing::instrument(name = "run", skip_all, fields(pipeline = %plan.graph.name))]
pub async fn run(plan: &Plan, options: &RunOptions, observer: Observer) -> Result<Summary, EngineError> {
    let started = Instant::now();
    let targets = plan.targets()?;
    let mut up_to_date = Vec::new();
    for ((segment, node, _), target) in plan.sinks().zip(&targets) {
        let generation = plan.generation(segment);
        let mut current = target.is_current(&generation)?;
        let mut published = target.published()?;
        if let Some(url) = target.url() {
            let mirror = Mirror::new(&plan.graph.stores, url);
            mirror.check().await?;
            published = mirror.published().await?;
            if current.is_some() && !mirror.is_current(&generation).await? {
                current = None;
            }
        }
        if let Some(published) = &published {
            contract::check(published, &plan.declared(node), &plan.graph.nodes[node].schema, &target.shown())?;
        }
        up_to_date.push(current);
    }
    // A run that was killed behind its publication has not cleaned up behind itself: the rest of it is done again.
    let cut = targets.first().map_or(Ok(false), |target| run_record::was_cut(target.work(), plan))?;
    if up_to_date.iter().all(Option::is_some) && !cut {
        let sinks = up_to_date.into_iter().flatten().zip(&targets).map(|(manifest, target)| SinkSummary {
            manifest,
            path: target.path().to_owned(),
            url: target.url().map(str::to_owned),
            up_to_date: true,
        });
        let tasks_reused = plan.tasks.iter().map(Vec::len).sum();
        return Ok(Summary {
            sinks: sinks.collect(),
            tasks_done: 0,
            tasks_reused,
            rows_read: 0,
            seconds: started.elapsed().as_secs_f64(),
        });
    }
    let _locks = targets.iter().map(Target::lock).collect::<Result<Vec<_>, _>>()?;
    let Some(work) = targets.first().map(|t| t.work().to_owned()) else {
        return Err(EngineError::Internal("a pipeline without sinks".into()));
    };
    let record = OpenRecord::begin(&work, plan, options)?;
    let outcome = work_through(plan, options, observer, &targets, work, started).await;
    record.end(&outcome, options.telemetry.read())?;
    outcome
}

/// Does the tasks that are missing, then publishes.
async fn work_through(
    plan: &Plan,
    options: &RunOptions,
    observer: Observer,
    targets: &[Target],
    work: PathBuf,
    started: Instant,
) -> Result<Summary, EngineError> {
    let mut runner = Runner::new(plan, options, observer, work)?;
    let result = runner.all().await;
    runner.clean_spill();
    result?;
    let joined = runner.ahead.finish();
    let mut sinks = Vec::new();
    for ((segment, node, sink), target) in plan.sinks().zip(targets) {
        (runner.observer)(Event::Publishing { sink: Arc::clone(&plan.graph.nodes[node].name) });
        let manifest = match target.is_current(&plan.generation(segment))? {
            Some(manifest) => manifest,
            None => finalise::publish(&runner.finished(segment), node, sink, target, &joined)?,
        };
        if let Some(url) = target.url() {
            let mirror = Mirror::new(&plan.graph.stores, url);
            tokio::select! {
                biased;
                () = options.stop.cancelled() => return Err(EngineError::Stopped),
                published = mirror.publish(target.path(), &manifest) => published?,
            }
        }
        sinks.push(SinkSummary {
            manifest,
            path: target.path().to_owned(),
            url: target.url().map(str::to_owned),
            up_to_date: false,
        });
    }
    runner.sweep()?;
    Ok(Summary {
        sinks,
        tasks_done: runner.tasks_done,
        tasks_reused: runner.tasks_reused,
        rows_read: runner.rows_read,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What a finished sink is put together from.
#[derive(Debug)]
pub struct Finished<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Decides the generation.
    pub fingerprint: Fingerprint,
    /// The sink's own segment: ledger and entries in shard order.
    pub data: (&'a Ledger, &'a [Entry]),
    /// Every segment behind it, itself last: name of its node, ledger, entries.
    pub segments: Vec<(&'a Node, &'a Ledger, &'a [Entry])>,
}

struct Runner<'a> {
    plan: &'a Plan,
    options: &'a RunOptions,
    observer: Observer,
    work: PathBuf,
    context: SessionContext,
    ledgers: Vec<Ledger>,
    entries: Vec<Vec<Entry>>,
    aside: Arc<dyn Sink>,
    ahead: Ahead,
    tasks_done: usize,
    tasks_reused: usize,
    rows_read: u64,
}

impl<'a> Runner<'a> {
    fn new(plan: &'a Plan, options: &'a RunOptions, observer: Observer, work: PathBuf) -> Result<Self, EngineError> {
        let spill = work.join("spill");
        crate::generation::remove_folder(&spill)?;
        std::fs::create_dir_all(&spill).map_err(|e| EngineError::io(&spill, e))?;
        let resources = Arc::new(Resources {
            models: Arc::new(
                ModelPool::new(options.threads)
                    .on(plan.graph.devices.clone())
                    .within(options.memory_bytes.map(|b| b as u64)),
            ),
            clients: Arc::clone(&options.clients),
            windows_in_flight: options.threads.get(),
            telemetry: Arc::clone(&options.telemetry),
        });
        options.telemetry.watch(&resources.models);
        let context = session::context(session::runtime(options.memory_bytes, &spill)?, Some(resources), plan.limited);
        for node in &plan.graph.nodes {
            if let Work::Source { discovery: Discovery { reader: Reader::Parquet, shards, .. }, .. } = &node.work {
                scan::register_stores(&context, &plan.graph.stores, shards)?;
            }
        }
        let ledgers =
            plan.segments.all.iter().map(|s| Ledger::open(&work, &s.fingerprint)).collect::<Result<Vec<_>, _>>()?;
        for (ledger, segment) in ledgers.iter().zip(&plan.segments.all) {
            ledger.describe(&segment.identity)?;
        }
        let sink_of = |segment: &Segment| match &plan.graph.nodes[segment.node].work {
            Work::Sink(sink) => Some(sink),
            _ => None,
        };
        let ahead = Ahead::new(&work, plan.segments.all.iter().map(sink_of))?;
        Ok(Self {
            plan,
            options,
            observer,
            work,
            context,
            ledgers,
            entries: Vec::new(),
            aside: finalise::kept_sink(),
            ahead,
            tasks_done: 0,
            tasks_reused: 0,
            rows_read: 0,
        })
    }

    async fn all(&mut self) -> Result<(), EngineError> {
        let mut committed: Vec<Vec<Option<Entry>>> = Vec::new();
        for (ledger, tasks) in self.ledgers.iter().zip(&self.plan.tasks) {
            let entries = tasks.iter().map(|t| ledger.committed(&t.task)).collect::<Result<Vec<_>, _>>()?;
            // What killed attempts left must not stand in the way of new ones.
            ledger.sweep(&entries.iter().flatten().cloned().collect::<Vec<_>>())?;
            committed.push(entries);
        }
        self.tasks_reused = committed.iter().flatten().flatten().count();
        let tasks = committed.iter().map(Vec::len).sum();
        self.options.telemetry.planned(tasks, self.tasks_reused);
        (self.observer)(Event::Planned { tasks, reused: self.tasks_reused });
        for (id, entries) in committed.into_iter().enumerate() {
            let entries = self.segment(id, entries).await?;
            self.entries.push(entries);
        }
        Ok(())
    }

    /// Does what is left of a segment; its entries in shard order.
    #[tracing::instrument(name = "segment", skip_all, fields(node = %self.plan.graph.nodes[self.plan.segments.all[id].node].name))]
    async fn segment(&mut self, id: SegmentId, mut entries: Vec<Option<Entry>>) -> Result<Vec<Entry>, EngineError> {
        let segment = &self.plan.segments.all[id];
        let mut missing: Vec<usize> = (0..entries.len()).filter(|i| entries[*i].is_none()).collect();
        // What is tried again must have been tried.
        missing.sort_by_key(|i| self.plan.tasks[id][*i].again.is_some());
        if !missing.is_empty() && !enough(segment, &entries) {
            let name = Arc::clone(&self.plan.graph.nodes[segment.node].name);
            let rows = missing.iter().map(|i| self.rows_of(id, *i)).sum();
            (self.observer)(Event::SegmentStarted { segment: Arc::clone(&name), tasks: missing.len(), rows });
            let template = self.template(segment, missing[0]).await?;
            let (mut running, mut committing) = (FuturesUnordered::new(), FuturesUnordered::new());
            // Where what was committed decides whether another task is started at all, none is before that is known.
            let waits_for_commits = segment.enough.is_some() || self.plan.graph.settings.max_bad.is_some();
            let at_once = self.options.threads.get();
            let mut waiting = missing.into_iter().peekable();
            let mut stopping: Option<tokio::time::Instant> = None;
            loop {
                // Tasks under way, those included that wait for the disk where they count.
                let room = |running: usize, committing: usize| match waits_for_commits {
                    true => running + committing < at_once,
                    false => running < at_once && committing < at_once,
                };
                while room(running.len(), committing.len()) && stopping.is_none() && !enough(segment, &entries) {
                    let idle = running.is_empty() && committing.is_empty();
                    let Some(index) = waiting.next_if(|i| idle || !self.waits(id, *i, &entries)) else { break };
                    let (task, bytes) = self.task(id, index, &template).await?;
                    let ledger = self.ledgers[id].clone();
                    let observer = Arc::clone(&self.observer);
                    let done: RowsDone = Arc::new(move |rows| observer(Event::Rows { rows }));
                    let work = tokio::spawn(async move { task.run(&ledger, &done).await }.in_current_span());
                    running.push(async move { (index, bytes, AbortOnDrop(work).await) });
                }
                if running.is_empty() && committing.is_empty() {
                    if stopping.is_some() {
                        return Err(EngineError::Stopped);
                    }
                    break;
                }
                let (index, bytes, entry) = tokio::select! {
                    biased;
                    () = self.options.stop.cancelled(), if stopping.is_none() => {
                        stopping = Some(tokio::time::Instant::now() + RunOptions::GRACE);
                        continue;
                    }
                    () = until(stopping) => return Err(EngineError::Stopped),
                    Some(committed) = committing.next(), if !committing.is_empty() => committed,
                    Some((index, bytes, written)) = running.next(), if !running.is_empty() => {
                        let (written, ledger): (Uncommitted, _) = (written?, self.ledgers[id].clone());
                        committing.push(async move { (index, bytes, written.commit(ledger).await) });
                        continue;
                    }
                };
                let entry = entry?;
                self.tasks_done += 1;
                let from_source = matches!(segment.work, SegmentWork::Rows { base: Base::Source(_), .. });
                if from_source {
                    self.rows_read += entry.rows_in;
                }
                self.options.telemetry.committed(&entry, from_source);
                (self.observer)(Event::TaskDone { segment: Arc::clone(&name), bytes });
                entries[index] = Some(entry);
                self.judge(&entries)?;
                // Which entries a limit needs is known in the end only.
                if segment.enough.is_none() {
                    self.ahead.advance(id, &entries, &self.ledgers[id]);
                }
            }
        }
        let mut rows = 0;
        let mut whole = Vec::new();
        for entry in entries {
            // Behind the rows that a `limit` needs, what happened to be done does not count.
            if segment.enough.is_some_and(|n| rows >= n) {
                break;
            }
            let entry = entry.ok_or_else(|| EngineError::Internal("a task was left out".into()))?;
            rows += entry.rows(PartKind::Data);
            whole.push(entry);
        }
        Ok(whole)
    }

    /// Whether a task tries rows again that are not through yet.
    fn waits(&self, id: SegmentId, index: usize, entries: &[Option<Entry>]) -> bool {
        let tasks = &self.plan.tasks[id];
        let Some(before) = &tasks[index].again else { return false };
        tasks.iter().zip(entries).any(|(task, entry)| task.task == *before && entry.is_none())
    }

    fn rows_of(&self, segment: SegmentId, task: usize) -> Option<u64> {
        match &self.plan.tasks[segment][task].input {
            TaskInput::Shard(shard) => shard.rows,
            TaskInput::Upstream(upstream, index) => {
                self.entries.get(*upstream).and_then(|e| e.get(*index)).map(|e| e.rows(PartKind::Data)).or(Some(0))
            }
            TaskInput::All => None,
        }
    }

    /// Stops a run that goes wrong: judged on the unbroken prefix of committed shards, so that timing has no say.
    fn judge(&self, entries: &[Option<Entry>]) -> Result<(), EngineError> {
        let Some(limit) = self.plan.graph.settings.max_bad else { return Ok(()) };
        let (mut rows, mut bad) = (0, 0);
        let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
        for (i, entry) in entries.iter().enumerate() {
            let Some(entry) = entry else { return Ok(()) };
            // Rows that were tried again count once, by how that ended.
            let tried_again = self.is_tried_again(entry, entries);
            rows += if entry.again.is_some() { 0 } else { entry.rows_in };
            bad += if tried_again { 0 } else { entry.rows(PartKind::Quarantine) };
            for (code, n) in entry.counts.iter().filter(|_| !tried_again).flat_map(|c| &c.failed) {
                *reasons.entry(code.clone()).or_default() += n;
            }
            if limit.exceeded(bad, rows, i + 1 == entries.len()) {
                let code = reasons.into_iter().max_by_key(|(_, n)| *n).map(|(code, _)| code).unwrap_or_default();
                return Err(EngineError::TooManyBad {
                    bad,
                    rows,
                    limit: String::from(limit),
                    code,
                    message: format!("see the quarantine parts in {}", self.work.join("segments").display()),
                });
            }
        }
        Ok(())
    }

    fn is_tried_again(&self, entry: &Entry, entries: &[Option<Entry>]) -> bool {
        entries.iter().flatten().any(|e| e.again.as_ref().is_some_and(|a| a.task == entry.task))
    }

    /// The shard that a task of a row-wise segment reads.
    fn shard(&self, segment: SegmentId, task: usize) -> Result<Option<Shard>, EngineError> {
        Ok(match &self.plan.tasks[segment][task].input {
            TaskInput::Shard(shard) => Some(shard.clone()),
            TaskInput::Upstream(upstream, index) => self.kept_shard(*upstream, *index),
            TaskInput::All => None,
        })
    }

    /// A committed part as a shard; `None` where there are no rows.
    fn kept_shard(&self, segment: SegmentId, index: usize) -> Option<Shard> {
        let entry = self.entries.get(segment)?.get(index)?;
        let part = entry.part(PartKind::Data)?;
        let location = self.ledgers[segment].part_path(part);
        Some(Shard {
            id: entry.task.to_string(),
            files: ShardFiles::from_iter([ShardFile {
                location: location.to_string_lossy().into_owned(),
                path: entry.task.to_string(),
                size: part.bytes,
                range: None,
                version: entry.task.to_string(),
                metadata: None,
            }]),
            rows: Some(part.rows),
            bytes: part.bytes,
        })
    }

    fn kept_shards(&self, segment: SegmentId) -> Vec<Shard> {
        (0..self.entries[segment].len()).filter_map(|i| self.kept_shard(segment, i)).collect()
    }

    /// The physical plan that the tasks of a segment are made from, over the shard of its first task.
    async fn template(&self, segment: &Segment, first: usize) -> Result<Option<Arc<dyn ExecutionPlan>>, EngineError> {
        let plan = match &segment.work {
            SegmentWork::Set { node, inputs } => match &self.plan.graph.nodes[*node].work {
                // Plans by hand, which no optimizer rearranges: their operators count on places and orders that it does not see.
                Work::Dedup(_) | Work::Shuffle(_) => return Ok(Some(self.keyed_plan(*node, inputs).await?)),
                _ => self.set_plan(*node, inputs).await?,
            },
            SegmentWork::Rows { base, chain, .. } => {
                let id = self.segment_id(segment);
                // A segment whose inputs hold no rows at all needs no plan.
                let shard =
                    (first..self.plan.tasks[id].len()).find_map(|i| self.shard(id, i).transpose()).transpose()?;
                let Some(shard) = shard else { return Ok(None) };
                self.rows_plan(*base, chain, vec![shard], None).await?
            }
        };
        Ok(Some(self.physical(&plan).await?))
    }

    async fn physical(&self, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>, EngineError> {
        let physical = self.context.state().create_physical_plan(plan).await?;
        let physical = scan::prune_by_first_filter(physical)?;
        if physical.output_partitioning().partition_count() != 1 {
            return Err(EngineError::Internal("a plan was repartitioned".into()));
        }
        tracing::debug!(plan = %datafusion::physical_plan::displayable(physical.as_ref()).indent(false), "segment planned");
        Ok(physical)
    }

    fn segment_id(&self, segment: &Segment) -> SegmentId {
        self.plan.segments.all.iter().position(|s| s.node == segment.node).unwrap_or_default()
    }

    /// The physical plan of `dedup` or `shuffle`.
    async fn keyed_plan(&self, node: NodeId, inputs: &[Base]) -> Result<Arc<dyn ExecutionPlan>, EngineError> {
        let node = &self.plan.graph.nodes[node];
        let Some(base) = inputs.first() else { return Err(EngineError::Internal("a set stage without input".into())) };
        let shards = self.base_shards(*base);
        let rows = self.rows_plan(*base, &[], shards.clone(), None).await?;
        let state = self.context.state();
        match &node.work {
            Work::Dedup(dedup) => {
                let keys = dedup.by.iter().map(String::as_str).filter(|name| *name != ROW_ID);
                let keys = std::iter::once(ROW_ID).chain(keys).map(|name| col(quoted(name)));
                let keys = LogicalPlanBuilder::from(rows.clone()).project(keys)?.build()?;
                let (rows, keys) = (state.create_physical_plan(&rows).await?, state.create_physical_plan(&keys).await?);
                Ok(set::dedup_plan(&node.name, &dedup.by, rows, keys)?)
            }
            Work::Shuffle(shuffle) => {
                let heavy = late_columns(&node.schema);
                let late = (!heavy.is_empty()).then(|| Late { columns: heavy, files: late_files(&shards) });
                let light = node.schema.fields().iter().map(|f| f.name());
                let light = light.filter(|name| late.as_ref().is_none_or(|l| !l.columns.contains(name)));
                let light = light.map(|name| col(quoted(name))).collect::<Vec<_>>();
                let rows = LogicalPlanBuilder::from(rows).project(light)?.build()?;
                let schema = Arc::clone(&node.schema);
                Ok(set::shuffle_plan(&node.name, shuffle.seed, state.create_physical_plan(&rows).await?, schema, late)?)
            }
            _ => Err(EngineError::Internal("no set stage that sorts keys".into())),
        }
    }

    fn base_shards(&self, base: Base) -> Vec<Shard> {
        match base {
            Base::Source(source) => shards(&self.plan.graph.nodes[source]).to_vec(),
            Base::Segment(segment) => self.kept_shards(segment),
        }
    }

    async fn set_plan(&self, node: NodeId, inputs: &[Base]) -> Result<LogicalPlan, EngineError> {
        let node = &self.plan.graph.nodes[node];
        let mut tables = Vec::new();
        for (input, base) in node.inputs.iter().zip(inputs) {
            let plan = self.rows_plan(*base, &[], self.base_shards(*base), None).await?;
            tables.push((Arc::clone(&self.plan.graph.nodes[*input].name), plan));
        }
        match &node.work {
            Work::Limit(limit) => {
                let Some((_, plan)) = tables.pop() else {
                    return Err(EngineError::Internal("a limit without input".into()));
                };
                let rows = usize::try_from(limit.rows).unwrap_or(usize::MAX);
                Ok(LogicalPlanBuilder::from(plan).limit(0, Some(rows))?.build()?)
            }
            Work::Sql { query, .. } => {
                let planned = plan::sql(&node.name, query, &tables)
                    .await
                    .map_err(|r| EngineError::Execution(DataFusionError::Plan(r.message)))?;
                Ok(planned.plan)
            }
            _ => Err(EngineError::Internal("no set stage".into())),
        }
    }

    /// A chain of row-wise nodes over shards of a base, as a logical plan: row id first, the error last. With `only`, over the rows with these ids.
    async fn rows_plan(
        &self,
        base: Base,
        chain: &[NodeId],
        shards: Vec<Shard>,
        only: Option<&Arc<HashSet<String>>>,
    ) -> Result<LogicalPlan, EngineError> {
        let nodes = &self.plan.graph.nodes;
        let mut chain = chain.iter().map(|n| &nodes[*n]).peekable();
        let mut at = match base {
            Base::Segment(segment) => {
                let node = &nodes[self.plan.segments.all[segment].node];
                let columns = Arc::clone(&node.schema);
                self.table(ShardTable::new(&node.name, columns, Reader::Parquet, Ids::Carried, shards))?
            }
            Base::Source(source) => {
                let node = &nodes[source];
                let Work::Source { source, discovery } = &node.work else {
                    return Err(EngineError::Internal("no source".into()));
                };
                let ids = ids_of(discovery);
                let table =
                    ShardTable::new(&node.name, Arc::clone(&discovery.schema), discovery.reader.clone(), ids, shards);
                let mut at = self.table(table)?;
                if ids == Ids::FileAndRow {
                    // Ids are made for the rows that the first filters let through only, unless they come from a key in the end.
                    while let Some(next) = chain.next_if(
                        |n| matches!(&n.work, Work::Filter(f) if source.key().is_none() && only.is_none() && !f.keep_rejected && !f.predicate.contains(ROW_ID)),
                    ) {
                        at = self.node(next, at).await?;
                    }
                    let id = row_ids::in_file(col(FILE_COLUMN), col(ROW_COLUMN)).alias(ROW_ID);
                    let user = discovery.schema.fields().iter().map(|f| col(quoted(f.name())));
                    at = LogicalPlanBuilder::from(at).project(std::iter::once(id).chain(user))?.build()?;
                }
                match source.key() {
                    Some(key) => with_key(at, key)?,
                    None => at,
                }
            }
        };
        if let Some(only) = only {
            at = plan::only(only, at)?;
        }
        for node in chain {
            at = self.node(node, at).await?;
        }
        Ok(plan::ordered(at)?)
    }

    fn table(&self, table: ShardTable) -> Result<LogicalPlan, EngineError> {
        Ok(LogicalPlanBuilder::scan("input", provider_as_source(Arc::new(table)), None)?.build()?)
    }

    async fn node(&self, node: &Node, input: LogicalPlan) -> Result<LogicalPlan, EngineError> {
        let refused = |r: plan::Refusal| {
            EngineError::Execution(DataFusionError::Plan(format!("stage `{}`: {}", node.name, r.message)))
        };
        Ok(match &node.work {
            Work::Stage(stage) => plan::stage(
                StageSpec {
                    name: Arc::clone(&node.name),
                    kind: Arc::clone(&node.kind),
                    config: node.config.to_string().into(),
                    stage: Arc::clone(stage),
                },
                input,
            )?,
            Work::Filter(filter) => plan::filter(&self.context, &node.name, filter, input).map_err(refused)?,
            Work::Sample(sample) => plan::sample(&node.name, sample, input)?,
            Work::Sql { query, .. } => {
                let table = plan::first_table(&self.context, query).map_err(refused)?;
                let planned = plan::sql(&node.name, query, &[(table.into(), input)]).await.map_err(refused)?;
                plan::counted(&node.name, planned.plan)
            }
            _ => return Err(EngineError::Internal(format!("`{}` is not row-wise", node.name))),
        })
    }

    /// The task `index` of a segment, and the bytes it reads.
    async fn task(
        &self,
        id: SegmentId,
        index: usize,
        template: &Option<Arc<dyn ExecutionPlan>>,
    ) -> Result<(Job, u64), EngineError> {
        let segment = &self.plan.segments.all[id];
        let planned = &self.plan.tasks[id][index];
        let nothing = Job::Nothing(Box::new(Entry {
            task: planned.task.clone(),
            rows_in: 0,
            parts: Vec::new(),
            counts: Vec::new(),
            files: String::new(),
            again: None,
        }));
        if planned.again.is_some() {
            return self.retry(id, index).await;
        }
        let Some(template) = template else { return Ok((nothing, 0)) };
        let (plan, rows_in, bytes) = match &segment.work {
            SegmentWork::Set { .. } => (Arc::clone(template), None, 0),
            SegmentWork::Rows { base, .. } => {
                let Some(shard) = self.shard(id, index)? else { return Ok((nothing, 0)) };
                let ids = match base {
                    Base::Segment(_) => Ids::Carried,
                    Base::Source(source) => match &self.plan.graph.nodes[*source].work {
                        Work::Source { discovery, .. } => ids_of(discovery),
                        _ => Ids::Carried,
                    },
                };
                (scan::retarget(template, std::slice::from_ref(&shard), ids)?, shard.rows, shard.bytes)
            }
        };
        Ok((Job::Task(Box::new(self.job(id, index, plan, rows_in))), bytes))
    }

    fn job(&self, id: SegmentId, index: usize, plan: Arc<dyn ExecutionPlan>, rows_in: Option<u64>) -> Task {
        let segment = &self.plan.segments.all[id];
        let planned = &self.plan.tasks[id][index];
        let sink = match &segment.work {
            SegmentWork::Rows { sink: Some(node), .. } => match &self.plan.graph.nodes[*node].work {
                Work::Sink(sink) => Arc::clone(sink),
                _ => Arc::clone(&self.aside),
            },
            _ => Arc::clone(&self.aside),
        };
        let sinks = matches!(&segment.work, SegmentWork::Rows { sink: Some(_), .. });
        let node = &self.plan.graph.nodes[segment.node];
        let row_ids = if matches!(node.work, Work::Sql { .. }) && matches!(segment.work, SegmentWork::Set { .. }) {
            RowIds::Content
        } else {
            RowIds::Carried
        };
        Task {
            task: planned.task.clone(),
            plan,
            session: Arc::new(self.context.state()),
            memory_bytes: self.options.memory_bytes,
            rows_in,
            sources: self.sources(id).into(),
            row_ids,
            files: self.files(planned),
            again: None,
            lists_kept: sinks && sink.extension() != "parquet",
            sink,
            aside: Arc::clone(&self.aside),
            metadata: Arc::new(vec![(
                "groundloom".to_owned(),
                format!("{{\"pipeline\":{},\"node\":{}}}", json!(self.plan.graph.name), json!(node.name)),
            )]),
        }
    }

    /// `SHARD:VERSIONS` of a task whose rows tell by their ids which file they are from.
    fn files(&self, planned: &PlannedTask) -> String {
        match &planned.input {
            TaskInput::Shard(shard) if shard.files.len() <= MOST_FILES => {
                format!("{}:{}", shard.id, retries::file_versions(shard))
            }
            _ => String::new(),
        }
    }

    /// The task `index` of a segment, which tries the failed rows of another one again.
    async fn retry(&self, id: SegmentId, index: usize) -> Result<(Job, u64), EngineError> {
        let planned = &self.plan.tasks[id][index];
        let failed = planned.again.as_ref().and_then(|before| self.ledgers[id].peek(before));
        let Some(before) = failed else {
            return Err(EngineError::Internal("rows are tried again that were not tried".into()));
        };
        let mut again = Again { task: before.task.clone(), rows: 0, failed: BTreeMap::new() };
        let (SegmentWork::Rows { base, chain, .. }, Some(mut shard), Some(part)) =
            (&self.plan.segments.all[id].work, self.shard(id, index)?, before.part(PartKind::Quarantine))
        else {
            let (task, files) = (planned.task.clone(), String::new());
            let nothing = Entry { task, rows_in: 0, parts: Vec::new(), counts: Vec::new(), files, again: Some(again) };
            return Ok((Job::Nothing(Box::new(nothing)), 0));
        };
        let path = self.ledgers[id].part_path(part);
        let only: HashSet<String> = quarantine::row_ids(&path)?.into_iter().collect();
        again.rows = part.rows;
        again.failed = quarantine::failures(&path)?;
        if let Base::Source(source) = base
            && let Work::Source { source, .. } = &self.plan.graph.nodes[*source].work
            && source.key().is_none()
        {
            // Files without a failed row need not be opened.
            let files: HashSet<&str> = only.iter().filter_map(|id| id.get(..16)).collect();
            let wanted = |f: &ShardFile| files.contains(format!("{:016x}", file_hash(&f.path)).as_str());
            let some: Vec<ShardFile> = shard.files.iter().filter(wanted).collect();
            if !some.is_empty() {
                shard.files = some.as_slice().into();
            }
        }
        let bytes = shard.files.iter().map(|f| f.size).sum();
        let plan = self.rows_plan(*base, chain, vec![shard], Some(&Arc::new(only))).await?;
        let mut task = self.job(id, index, self.physical(&plan).await?, Some(again.rows));
        (task.files, task.again) = (String::new(), Some(again));
        Ok((Job::Task(Box::new(task)), bytes))
    }

    /// Names of the sources behind a segment.
    fn sources(&self, id: SegmentId) -> String {
        let mut names: Vec<&str> = Vec::new();
        for segment in self.plan.segments.upstream(id) {
            for base in self.plan.segments.bases(segment) {
                if let Base::Source(source) = base {
                    names.push(&self.plan.graph.nodes[source].name);
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }

    fn finished(&self, sink: SegmentId) -> Finished<'_> {
        let segments = self
            .plan
            .segments
            .upstream(sink)
            .into_iter()
            .map(|s| {
                (&self.plan.graph.nodes[self.plan.segments.all[s].node], &self.ledgers[s], self.entries[s].as_slice())
            })
            .collect();
        Finished {
            plan: self.plan,
            fingerprint: self.plan.generation(sink),
            data: (&self.ledgers[sink], &self.entries[sink]),
            segments,
        }
    }

    /// Removes what no task of this plan names any more.
    fn sweep(&self) -> Result<(), EngineError> {
        for (ledger, entries) in self.ledgers.iter().zip(&self.entries) {
            ledger.sweep(entries)?;
        }
        Ledger::remove_others(&self.work, self.plan.segments.all.iter().map(|s| &s.fingerprint))
    }

    fn clean_spill(&self) {
        let _ = std::fs::remove_dir_all(self.work.join("spill"));
    }
}

/// The versions of so many files of a shard are written into its entry.
const MOST_FILES: usize = 4096;

/// What stands behind a planned task.
enum Job {
    /// A plan to run.
    Task(Box<Task>),
    /// Its input holds no rows: only the entry is written.
    Nothing(Box<Entry>),
}

impl Job {
    async fn run(self, ledger: &Ledger, done: &RowsDone) -> Result<Uncommitted, EngineError> {
        match self {
            Self::Task(task) => task.run(ledger, done).await,
            Self::Nothing(entry) => Ok(Uncommitted { entry: *entry, parts: Vec::new() }),
        }
    }
}

/// A spawned task that ends when nobody waits for it any more.
struct AbortOnDrop(tokio::task::JoinHandle<Result<Uncommitted, EngineError>>);

impl Future for AbortOnDrop {
    type Output = Result<Uncommitted, EngineError>;
    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0)
            .poll(context)
            .map(|joined| joined.unwrap_or_else(|e| Err(EngineError::Internal(format!("a task died: {e}")))))
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for a moment, or for ever where there is none.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Whether the unbroken prefix of committed tasks holds all rows that anyone wants.
fn enough(segment: &Segment, entries: &[Option<Entry>]) -> bool {
    segment
        .enough
        .is_some_and(|n| entries.iter().map_while(Option::as_ref).map(|e| e.rows(PartKind::Data)).sum::<u64>() >= n)
}

fn ids_of(discovery: &groundloom_formats::Discovery) -> Ids {
    match discovery.reader {
        Reader::Parquet if discovery.schema.index_of(ROW_ID).is_err() => Ids::FileAndRow,
        _ => Ids::Carried,
    }
}

/// Ids from the user's key column instead of the place.
fn with_key(plan: LogicalPlan, key: &str) -> Result<LogicalPlan, EngineError> {
    let columns: Vec<_> = plan
        .schema()
        .fields()
        .iter()
        .map(|f| {
            if f.name() == ROW_ID {
                row_ids::of_key(col(quoted(key)), col(ROW_ID)).alias(ROW_ID)
            } else {
                col(quoted(f.name()))
            }
        })
        .collect();
    Ok(LogicalPlanBuilder::from(plan).project(columns)?.build()?)
}

/// A column name that is taken as it stands.
fn quoted(name: &str) -> datafusion::common::Column {
    datafusion::common::Column::new_unqualified(name)
}

/// Adds up the counts of a segment's entries, stage by stage.
pub fn added(entries: &[Entry]) -> Vec<StageCounts> {
    let mut all: Vec<StageCounts> = Vec::new();
    for entry in entries {
        for counts in &entry.counts {
            match all.iter_mut().find(|c| c.stage == counts.stage) {
                Some(sum) => sum.add(counts),
                None => all.push(counts.clone()),
            }
        }
    }
    // Rows that were tried again went through every stage twice, the first time with their error; they count once, by how it ended.
    for again in entries.iter().filter_map(|e| e.again.as_ref()) {
        for counts in &mut all {
            counts.rows_in = counts.rows_in.saturating_sub(again.rows);
            counts.rows_out = counts.rows_out.saturating_sub(again.rows);
        }
        for (stage, codes) in &again.failed {
            // A source is counted by its name and fails rows by its type's.
            let named =
                all.iter().position(|c| c.stage == *stage).or_else(|| all.iter().position(|c| c.kind == scan::SOURCE));
            let Some(counts) = named.and_then(|i| all.get_mut(i)) else { continue };
            for (code, rows) in codes {
                if let Some(n) = counts.failed.get_mut(code) {
                    *n = n.saturating_sub(*rows);
                }
            }
            counts.failed.retain(|_, n| *n > 0);
        }
    }
    all
}
