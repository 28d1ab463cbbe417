//! From committed parts to a published data set: files of a chosen size, quarantine, card, report, manifest.
//!
//! It reads the ledger only, starts from an empty folder every time, and what it makes depends on the entries alone: killed anywhere, it is simply run again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
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
    ledger::{Entry, Ledger, PartKind, is_superseded},
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

/// Version of the layout of a published generation.
const LAYOUT: u32 = 1;

/// The sink that writes rows which stay inside a run (results between segments) or beside the data (quarantine): plain Parquet with every column.
pub fn kept_sink() -> Arc<dyn Sink> {
    Arc::new(own_sink(Layout::Data))
}

/// The sink that notes which rows were dropped.
pub fn notes_sink() -> Arc<dyn Sink> {
    Arc::new(own_sink(Layout::Notes))
}

fn own_sink(layout: Layout) -> ParquetSink {
    ParquetSink {
        path: String::new(),
        form: None,
        columns: None,
        compression: ParquetCompression::Snappy,
        file_bytes: 256 << 20,
        layout,
    }
}

/// Puts the files of a sink together and publishes them.
///
/// # Errors
/// When a part is damaged, the disk is full, or the target cannot be exchanged; the old generation is in place then.
#[tracing::instrument(name = "publish", skip_all, fields(sink = %finished.plan.graph.nodes[sink_node].name))]
pub fn publish(
    finished: &Finished<'_>,
    sink_node: NodeId,
    sink: &Arc<dyn Sink>,
    target: &Target,
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
    let mut files = data_files(finished, node, sink, &next, &within(sink.folder()))?;
    let joined: Vec<PathBuf> = files.iter().map(|f| next.join(&f.path)).collect();
    if let Some(completed) = sink.complete(&next, &joined) {
        let of = |made: Made| published(&next, &next.join(&made.name), made.rows);
        files = completed?.into_iter().map(of).collect::<Result<_, _>>()?;
    }
    let rows = files.iter().map(|f| f.rows).sum();
    let kept = kept_sink();
    for (kind, folder) in [
        (PartKind::Quarantine, QUARANTINE),
        (PartKind::Rejected, REJECTED),
        (PartKind::Dropped, DROPPED),
        (PartKind::Kept, KEPT),
    ] {
        for (segment, ledger, entries) in &finished.segments {
            files.extend(join_parts(&kept, entries, ledger, kind, &next, &within(folder), |i, _| {
                format!("{}-{i:05}.parquet", segment.name)
            })?);
        }
    }
    let funnel: Vec<StageCounts> = finished.segments.iter().flat_map(|(_, _, entries)| added(entries)).collect();
    let mut quarantined: BTreeMap<String, u64> = BTreeMap::new();
    for (code, n) in funnel.iter().flat_map(|c| &c.failed) {
        *quarantined.entry(code.clone()).or_default() += n;
    }
    let rejected = finished.segments.iter().flat_map(|(_, _, e)| e.iter()).map(|e| e.rows(PartKind::Rejected)).sum();
    let facts = Facts { finished, node, rows, funnel: &funnel, quarantined: &quarantined };
    let data: Vec<PathBuf> = files.iter().filter(|f| is_data(f, sink)).map(|f| next.join(&f.path)).collect();
    write_text(&next, "README.md", &facts.card(&files, sink)?, &mut files)?;
    if sink.extension() == "parquet" {
        let samples = parquet_sink::sample(&data, report::GALLERY_ROWS)?;
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

fn data_files(
    finished: &Finished<'_>,
    node: &Node,
    sink: &Arc<dyn Sink>,
    next: &Path,
    folder: &str,
) -> Result<Vec<PublishedFile>, EngineError> {
    let (ledger, entries) = finished.data;
    let name = |i: usize, of: usize| format!("train-{i:05}-of-{of:05}.{}", sink.extension());
    let files = join_parts(sink, entries, ledger, PartKind::Data, next, folder, name)?;
    if !files.is_empty() {
        return Ok(files);
    }
    // A data set without rows still has its columns.
    let folder = next.join(folder);
    fs::create_dir_all(&folder).map_err(|e| EngineError::io(&folder, e))?;
    let path = folder.join(name(0, 1));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.map_err(|e| EngineError::io(&path, e))?;
    let input = &finished.plan.graph.nodes[node.inputs[0]].schema;
    sink.writer(Arc::clone(input), file, &[])?.finish()?;
    Ok(vec![published(next, &path, 0)?])
}

/// Joins the parts of a kind into files of about [`Sink::file_bytes`]; a part that is a file of its own is linked, not copied.
fn join_parts(
    sink: &Arc<dyn Sink>,
    entries: &[Entry],
    ledger: &Ledger,
    kind: PartKind,
    next: &Path,
    folder: &str,
    name: impl Fn(usize, usize) -> String,
) -> Result<Vec<PublishedFile>, EngineError> {
    // What was tried again has left the quarantine, or stands there once more by its retry.
    let stands = |e: &&Entry| kind != PartKind::Quarantine || !is_superseded(e, entries);
    let parts: Vec<_> = entries.iter().filter(stands).filter_map(|e| e.part(kind)).collect();
    let mut groups: Vec<(Vec<PathBuf>, u64)> = Vec::new();
    // Parts of a quarter of the size are good enough as they are: linking them costs nothing.
    let (good, most) = (sink.file_bytes() / 4, sink.file_bytes());
    let mut filled = u64::MAX;
    for part in parts {
        if filled >= good || filled.saturating_add(part.bytes) > most {
            groups.push((Vec::new(), 0));
            filled = 0;
        }
        if let Some((paths, rows)) = groups.last_mut() {
            paths.push(ledger.part_path(part));
            *rows += part.rows;
        }
        filled += part.bytes;
    }
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    let folder = next.join(folder);
    fs::create_dir_all(&folder).map_err(|e| EngineError::io(&folder, e))?;
    let of = groups.len();
    let mut files = Vec::with_capacity(of);
    for (i, (paths, rows)) in groups.into_iter().enumerate() {
        let path = folder.join(name(i, of));
        match paths.as_slice() {
            [part] if sink.is_whole_file() => link(part, &path)?,
            _ => sink.join(&paths, &path)?,
        }
        files.push(published(next, &path, rows)?);
    }
    Ok(files)
}

fn link(from: &Path, to: &Path) -> Result<(), EngineError> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        // Some file systems know no hard links.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied | io::ErrorKind::CrossesDevices
            ) =>
        {
            fs::copy(from, to).map(drop).map_err(|e| EngineError::io(to, e))
        }
        Err(e) => Err(EngineError::io(to, e)),
    }
}

fn published(root: &Path, path: &Path, rows: u64) -> Result<PublishedFile, EngineError> {
    let bytes = fs::metadata(path).map_err(|e| EngineError::io(path, e))?.len();
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = relative.components().map(|c| c.as_os_str().to_string_lossy()).collect();
    Ok(PublishedFile { path: parts.join("/"), rows, bytes })
}

fn write_text(root: &Path, name: &str, text: &str, files: &mut Vec<PublishedFile>) -> Result<(), EngineError> {
    let path = root.join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| EngineError::io(folder, e))?;
    }
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
