//! From committed parts to a published data set: files of a chosen size, quarantine, card, report, manifest.
//!
//! It reads the ledger only, starts from an empty folder every time, and what it makes depends on the entries alone: killed anywhere, it is simply run again. Files that were
//! [joined](crate::joining) ahead save it time, nothing else.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use groundloom_data::funnel::StageCounts;
use groundloom_formats::{
    Sink,
    card::{self, CardFacts},
    parquet_sink::{self, Layout, ParquetCompression, ParquetSink},
    report::{self, ReportFacts},
    sink::Published as Made,
};

use crate::{
    contract,
    error::EngineError,
    generation::{MANIFEST, Manifest, PublishedFile, Target},
    graph::{Node, NodeId, Work},
    joining::{Joined, join_all, joins, parts_of},
    ledger::PartKind,
    mirror::generation_folder,
    run::{Finished, added},
};

/// Folder of a generation with the rows that failed.
pub const QUARANTINE: &str = "_quarantine";
/// Folder with the rows that filters with `keep_rejected` dropped.
pub const REJECTED: &str = "_rejected";
/// Folder with the ids of the rows that stages dropped, and why.
pub const DROPPED: &str = "_manifest/dropped";
/// Folder with the ids of the rows in the data, where its format cannot be searched for them.
pub const KEPT: &str = "_manifest/kept";

/// What stands beside the data, and where.
pub(crate) const BESIDE: [(PartKind, &str); 4] = [
    (PartKind::Quarantine, QUARANTINE),
    (PartKind::Rejected, REJECTED),
    (PartKind::Dropped, DROPPED),
    (PartKind::Kept, KEPT),
];

/// Version of the layout of a published generation.
const LAYOUT: u32 = 1;

/// The sink that writes rows which stay inside a run (results between segments) or beside the data (quarantine): plain Parquet with every column.
pub fn kept_sink() -> Arc<dyn Sink> {
    Arc::new(own_sink(Layout::Data, 256 << 20))
}

/// The sink that notes which rows were dropped.
pub fn notes_sink() -> Arc<dyn Sink> {
    // Nobody trains on these files: parts of some megabytes stay as they are.
    Arc::new(own_sink(Layout::Notes, 16 << 20))
}

/// What writes the rows that stand beside the data.
pub(crate) fn sink_beside(kind: PartKind) -> Arc<dyn Sink> {
    match kind {
        PartKind::Dropped => notes_sink(),
        _ => kept_sink(),
    }
}

fn own_sink(layout: Layout, file_bytes: u64) -> ParquetSink {
    ParquetSink {
        path: String::new(),
        form: None,
        columns: None,
        compression: ParquetCompression::Snappy,
        file_bytes,
        layout,
    }
}

/// Puts the files of a sink together, as far as they are not among those `joined` ahead, and publishes them.
///
/// # Errors
/// When a part is damaged, the disk is full, or the target cannot be exchanged; the old generation is in place then.
#[tracing::instrument(name = "publish", skip_all, fields(sink = %finished.plan.graph.nodes[sink_node].name))]
pub fn publish(
    finished: &Finished<'_>,
    sink_node: NodeId,
    sink: &Arc<dyn Sink>,
    target: &Target,
    joined: &Joined,
) -> Result<Manifest, EngineError> {
    let graph = &finished.plan.graph;
    let node = &graph.nodes[sink_node];
    let next = target.next()?;
    // On an object store files of two generations stand side by side for a while.
    let within = |folder: &str| match target.url() {
        Some(_) if folder.is_empty() => generation_folder(&finished.fingerprint).to_owned(),
        Some(_) => format!("{folder}/{}", generation_folder(&finished.fingerprint)),
        None => folder.to_owned(),
    };
    let data_folder = within(sink.folder());
    let (ledger, entries) = finished.data;
    let name = |i: usize, of: usize| format!("train-{i:05}-of-{of:05}.{}", sink.extension());
    let mut jobs = joins(sink, entries, ledger, PartKind::Data, &next.join(&data_folder), name);
    let data_jobs = jobs.len();
    for (kind, folder) in BESIDE {
        let sink = sink_beside(kind);
        for (segment, ledger, entries) in &finished.segments {
            let name = |i: usize, _| format!("{}-{i:05}.parquet", segment.name);
            jobs.extend(joins(&sink, entries, ledger, kind, &next.join(within(folder)), name));
        }
    }
    // The rows that the report shows are the parts' own, so they are read while those are joined.
    let shown = || match sink.extension() {
        "parquet" => {
            let parts: Vec<(PathBuf, u64)> =
                parts_of(entries, PartKind::Data).map(|part| (ledger.part_path(part), part.rows)).collect();
            parquet_sink::sample(&parts, report::GALLERY_ROWS).map(Some)
        }
        _ => Ok(None),
    };
    let (samples, files) = std::thread::scope(|scope| {
        let shown = scope.spawn(shown);
        let files = join_all(&jobs, &next, joined);
        (
            shown.join().map_err(|_| EngineError::Internal("the thread that read rows for the report ended".into())),
            files,
        )
    });
    let mut files = files?;
    let samples = samples??;
    let beside = files.split_off(data_jobs);
    if files.is_empty() {
        files.push(no_rows(finished, node, sink, &next, &next.join(&data_folder).join(name(0, 1)))?);
    }
    let joined: Vec<PathBuf> = files.iter().map(|f| next.join(&f.path)).collect();
    if let Some(completed) = sink.complete(&next, &joined) {
        let of = |made: Made| published(&next, &next.join(&made.name), made.rows);
        files = completed?.into_iter().map(of).collect::<Result<_, _>>()?;
    }
    let rows = files.iter().map(|f| f.rows).sum();
    files.extend(beside);
    let funnel: Vec<StageCounts> = finished.segments.iter().flat_map(|(_, _, entries)| added(entries)).collect();
    let mut quarantined: BTreeMap<String, u64> = BTreeMap::new();
    for (code, n) in funnel.iter().flat_map(|c| &c.failed) {
        *quarantined.entry(code.clone()).or_default() += n;
    }
    let rejected = finished.segments.iter().flat_map(|(_, _, e)| e.iter()).map(|e| e.rows(PartKind::Rejected)).sum();
    let facts = Facts { finished, node, rows, funnel: &funnel, quarantined: &quarantined };
    write_text(&next, "README.md", &facts.card(&files, sink)?, &mut files)?;
    if let Some(samples) = samples {
        write_text(&next, "report.html", &report::render(&facts.report()?, &samples)?, &mut files)?;
    }
    let manifest = Manifest {
        layout: LAYOUT,
        pipeline: graph.name.clone(),
        sink: node.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        fingerprint: finished.fingerprint.clone(),
        declared: Some(finished.plan.declared(sink_node)),
        columns: contract::columns(&node.schema),
        rows,
        quarantined,
        rejected,
        files,
        funnel,
    };
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| EngineError::Internal(e.to_string()))?;
    write_text(&next, MANIFEST, &text, &mut Vec::new())?;
    target.publish(&next)?;
    Ok(manifest)
}

/// Whether a file holds rows of the data set.
fn is_data(file: &PublishedFile, sink: &Arc<dyn Sink>) -> bool {
    file.path.starts_with(sink.folder()) && !file.path.starts_with('_') && file.path.ends_with(sink.extension())
}

/// A data set without rows still has its columns.
fn no_rows(
    finished: &Finished<'_>,
    node: &Node,
    sink: &Arc<dyn Sink>,
    next: &Path,
    path: &Path,
) -> Result<PublishedFile, EngineError> {
    make_folder_of(path)?;
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.map_err(|e| EngineError::io(path, e))?;
    let input = &finished.plan.graph.nodes[node.inputs[0]].schema;
    sink.writer(Arc::clone(input), file, &[])?.finish()?;
    published(next, path, 0)
}

pub(crate) fn make_folder_of(path: &Path) -> Result<(), EngineError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    fs::create_dir_all(folder).map_err(|e| EngineError::io(folder, e))
}

pub(crate) fn published(root: &Path, path: &Path, rows: u64) -> Result<PublishedFile, EngineError> {
    let bytes = fs::metadata(path).map_err(|e| EngineError::io(path, e))?.len();
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = relative.components().map(|c| c.as_os_str().to_string_lossy()).collect();
    Ok(PublishedFile { path: parts.join("/"), rows, bytes })
}

fn write_text(root: &Path, name: &str, text: &str, files: &mut Vec<PublishedFile>) -> Result<(), EngineError> {
    let path = root.join(name);
    make_folder_of(&path)?;
    File::create(&path).and_then(|mut f| f.write_all(text.as_bytes())).map_err(|e| EngineError::io(&path, e))?;
    files.push(published(root, &path, 0)?);
    Ok(())
}

/// What the card and the report say.
struct Facts<'a> {
    finished: &'a Finished<'a>,
    node: &'a Node,
    rows: u64,
    funnel: &'a [StageCounts],
    quarantined: &'a BTreeMap<String, u64>,
}

impl Facts<'_> {
    fn card(&self, files: &[PublishedFile], sink: &Arc<dyn Sink>) -> Result<String, EngineError> {
        let graph = &self.finished.plan.graph;
        let data = files.iter().filter(|f| is_data(f, sink));
        let (notes, models) = self.notes_and_models()?;
        Ok(card::render(&CardFacts {
            name: graph.name.clone(),
            description: graph.description.clone().unwrap_or_default(),
            license: None,
            schema: Arc::clone(&self.node.schema),
            rows: self.rows,
            files: data.map(|f| f.path.clone()).collect(),
            funnel: self.funnel.to_vec(),
            sources: self.sources(),
            quarantined: self.quarantined.values().sum(),
            notes,
            models,
            pipeline: graph.text.clone(),
            fingerprint: self.finished.fingerprint.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    fn report(&self) -> Result<ReportFacts, EngineError> {
        let graph = &self.finished.plan.graph;
        let (notes, models) = self.notes_and_models()?;
        Ok(ReportFacts {
            title: graph.name.clone(),
            description: graph.description.clone().unwrap_or_default(),
            rows: self.rows,
            funnel: self.funnel.to_vec(),
            sources: self.sources(),
            quarantined: self.quarantined.clone(),
            notes,
            models,
            pipeline: graph.text.clone(),
            fingerprint: self.finished.fingerprint.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// What the stages behind the sink say of themselves, and the weights they use, each once.
    fn notes_and_models(&self) -> Result<(Vec<String>, Vec<String>), EngineError> {
        let (mut notes, mut models) = (Vec::new(), Vec::new());
        for node in self.upstream() {
            if let Work::Stage(stage) = &node.work {
                notes.extend(stage.notes());
                models.extend(stage.models().map_err(|e| EngineError::Internal(e.to_string()))?);
            }
        }
        for list in [&mut notes, &mut models] {
            let mut seen = std::collections::HashSet::new();
            list.retain(|line| seen.insert(line.clone()));
        }
        Ok((notes, models))
    }

    fn sources(&self) -> Vec<String> {
        let sources = self.upstream().filter(|n| matches!(n.work, Work::Source { .. }));
        let line = |n: &Node| {
            let path = n.config.get("path").and_then(|p| p.as_str()).unwrap_or_default();
            format!("{} ({} {path})", n.name, n.kind)
        };
        sources.map(line).collect()
    }

    /// The sink's node and everything behind it, sources first.
    fn upstream(&self) -> impl Iterator<Item = &Node> {
        let nodes = &self.finished.plan.graph.nodes;
        let mut wanted = vec![false; nodes.len()];
        if let Some(at) = nodes.iter().position(|n| n.name == self.node.name) {
            wanted[at] = true;
        }
        for id in (0..nodes.len()).rev() {
            if wanted[id] {
                for input in &nodes[id].inputs {
                    wanted[*input] = true;
                }
            }
        }
        nodes.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(node, _)| node)
    }
}
