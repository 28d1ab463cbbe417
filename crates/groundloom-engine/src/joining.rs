//! Committed parts put together into files of a chosen size: those of a running run as soon as their tasks are done, the rest when it ends.
//!
//! Which parts become a file depends on the parts alone, in the order of their tasks. What is made ahead is named by the list of its parts, lies in the work folder and is linked into the
//! generation; whatever is not there by then is made anew, so that nothing depends on how far that came.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use groundloom_formats::Sink;

use crate::{
    error::EngineError,
    finalise::{BESIDE, make_folder_of, published, sink_beside},
    generation::{PublishedFile, remove_folder},
    ledger::{Entry, Ledger, Part, PartKind, is_superseded},
    segment::SegmentId,
};

/// The files that were put together ahead, by their parts.
pub type Joined = HashMap<Vec<PathBuf>, PathBuf>;

/// Folder of the work folder for them.
const FOLDER: &str = "joined";

/// A file to be made of parts.
pub(crate) struct Join {
    sink: Arc<dyn Sink>,
    parts: Vec<PathBuf>,
    path: PathBuf,
    rows: u64,
}

/// Consecutive parts that become a file.
struct Group {
    parts: Vec<PathBuf>,
    rows: u64,
    bytes: u64,
}

/// Divides parts that come one after the other into groups of about [`Sink::file_bytes`].
struct Groups {
    /// Parts of a quarter of the size are good enough as they are: linking them costs nothing.
    good: u64,
    most: u64,
    open: Option<Group>,
}

impl Groups {
    fn of(sink: &dyn Sink) -> Self {
        Self { good: sink.file_bytes() / 4, most: sink.file_bytes(), open: None }
    }

    /// Takes in the next part; gives the groups that nothing is added to any more.
    fn push(&mut self, path: PathBuf, part: &Part) -> impl Iterator<Item = Group> + use<> {
        let full = self.open.take_if(|open| open.bytes.saturating_add(part.bytes) > self.most);
        let open = self.open.get_or_insert(Group { parts: Vec::new(), rows: 0, bytes: 0 });
        open.parts.push(path);
        open.rows += part.rows;
        open.bytes += part.bytes;
        let good = self.good;
        full.into_iter().chain(self.open.take_if(|open| open.bytes >= good))
    }
}

/// The parts of a kind in the order of their tasks.
pub(crate) fn parts_of(entries: &[Entry], kind: PartKind) -> impl Iterator<Item = &Part> {
    // What was tried again has left the quarantine, or stands there once more by its retry.
    let stands = move |e: &&Entry| kind != PartKind::Quarantine || !is_superseded(e, entries);
    entries.iter().filter(stands).filter_map(move |e| e.part(kind))
}

/// How the parts of a kind become files of about [`Sink::file_bytes`] in `folder`.
pub(crate) fn joins(
    sink: &Arc<dyn Sink>,
    entries: &[Entry],
    ledger: &Ledger,
    kind: PartKind,
    folder: &Path,
    name: impl Fn(usize, usize) -> String,
) -> Vec<Join> {
    let mut groups = Groups::of(sink.as_ref());
    let mut all: Vec<Group> = Vec::new();
    for part in parts_of(entries, kind) {
        all.extend(groups.push(ledger.part_path(part), part));
    }
    all.extend(groups.open);
    let of = all.len();
    let file = |(i, Group { parts, rows, .. })| {
        let path = folder.join(name(i, of));
        Join { sink: Arc::clone(sink), parts, path, rows }
    };
    all.into_iter().enumerate().map(file).collect()
}

/// Makes the files, several at a time: one copies while another waits for the disk.
pub(crate) fn join_all(joins: &[Join], next: &Path, joined: &Joined) -> Result<Vec<PublishedFile>, EngineError> {
    joins.iter().try_for_each(|join| make_folder_of(&join.path))?;
    let at_once = std::thread::available_parallelism().map_or(1, usize::from).min(joins.len());
    let taken = AtomicUsize::new(0);
    let work = || -> Vec<(usize, Result<PublishedFile, EngineError>)> {
        let mut made = Vec::new();
        while let Some((i, join)) = Some(taken.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, joins.get(i)?))) {
            made.push((i, join.publish(next, joined)));
        }
        made
    };
    let mut made = std::thread::scope(|scope| {
        let others: Vec<_> = (1..at_once).map(|_| scope.spawn(work)).collect();
        let mut made = work();
        for other in others {
            let ended = other.join().map_err(|_| EngineError::Internal("a thread that joined parts ended".into()))?;
            made.extend(ended);
        }
        Ok::<_, EngineError>(made)
    })?;
    made.sort_by_key(|(i, _)| *i);
    made.into_iter().map(|(_, file)| file).collect()
}

impl Join {
    fn publish(&self, next: &Path, joined: &Joined) -> Result<PublishedFile, EngineError> {
        match (joined.get(&self.parts), self.parts.as_slice()) {
            (Some(file), _) => link(file, &self.path)?,
            // A part that is a file of its own is linked, not copied.
            (None, [part]) if self.sink.is_whole_file() => link(part, &self.path)?,
            _ => self.sink.join(&self.parts, &self.path)?,
        }
        published(next, &self.path, self.rows)
    }
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

/// Puts files together on a thread of its own while tasks run.
pub(crate) struct Ahead {
    folder: PathBuf,
    segments: Vec<Progress>,
    files: usize,
    worker: Option<Worker>,
}

/// How far a segment is.
struct Progress {
    /// The first entry that was not seen yet.
    next: usize,
    kinds: Vec<(PartKind, Arc<dyn Sink>, Groups)>,
}

struct Worker {
    queue: mpsc::Sender<Join>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Joined>,
}

impl Ahead {
    /// For a run whose segments end in these sinks, if they end in one; `work` is its work folder.
    ///
    /// # Errors
    /// Where what a killed run left cannot be removed.
    pub(crate) fn new<'a>(
        work: &Path,
        sinks: impl Iterator<Item = Option<&'a Arc<dyn Sink>>>,
    ) -> Result<Self, EngineError> {
        let folder = work.join(FOLDER);
        remove_folder(&folder)?;
        // Failed rows may be tried again, and then leave the quarantine.
        let beside = BESIDE.map(|(kind, _)| kind).into_iter().filter(|kind| *kind != PartKind::Quarantine);
        let segments = sinks.map(|data| {
            let data = data.map(|sink| (PartKind::Data, Arc::clone(sink)));
            let kinds = data.into_iter().chain(beside.clone().map(|kind| (kind, sink_beside(kind))));
            let kinds = kinds.map(|(kind, sink)| {
                let groups = Groups::of(sink.as_ref());
                (kind, sink, groups)
            });
            Progress { next: 0, kinds: kinds.collect() }
        });
        Ok(Self { folder, segments: segments.collect(), files: 0, worker: None })
    }

    /// Looks at what is committed of a segment: files whose parts are all there are made.
    pub(crate) fn advance(&mut self, segment: SegmentId, entries: &[Option<Entry>], ledger: &Ledger) {
        let Some(progress) = self.segments.get_mut(segment) else { return };
        let mut ready = Vec::new();
        while let Some(Some(entry)) = entries.get(progress.next) {
            progress.next += 1;
            for (kind, sink, groups) in &mut progress.kinds {
                let Some(part) = entry.part(*kind) else { continue };
                // What is linked as it is costs nothing when the run ends either.
                let closed = groups.push(ledger.part_path(part), part);
                let copied = closed.filter(|group| group.parts.len() > 1 || !sink.is_whole_file());
                ready.extend(copied.map(|group| (Arc::clone(sink), group)));
            }
        }
        for (sink, Group { parts, rows, .. }) in ready {
            let path = self.folder.join(format!("{}.{}", self.files, sink.extension()));
            self.files += 1;
            if self.worker.is_none() {
                self.worker = Worker::start(&self.folder);
            }
            if let Some(worker) = &self.worker {
                // The thread lives as long as the sender does.
                let _ = worker.queue.send(Join { sink, parts, path, rows });
            }
        }
    }

    /// Ends the work, and gives what was made. What is under way is waited for, what waits is left.
    pub(crate) fn finish(&mut self) -> Joined {
        let Some(Worker { queue, ended, thread }) = self.worker.take() else { return Joined::new() };
        ended.store(true, Ordering::Relaxed);
        drop(queue);
        thread.join().unwrap_or_default()
    }
}

impl Drop for Ahead {
    /// Removes what was made: what was published is linked elsewhere.
    fn drop(&mut self) {
        drop(self.finish());
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Worker {
    /// `None` where there is no folder or no thread to be had: the end of the run will say what is wrong.
    fn start(folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).ok()?;
        let (queue, jobs) = mpsc::channel::<Join>();
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        let work = move || {
            let mut made = Joined::new();
            while let Some(join) = jobs.recv().ok().filter(|_| !over.load(Ordering::Relaxed)) {
                match join.sink.join(&join.parts, &join.path) {
                    Ok(()) => {
                        made.insert(join.parts, join.path);
                    }
                    // It is tried once more when the run ends, and told then.
                    Err(error) => {
                        tracing::debug!(%error, file = %join.path.display(), "not put together ahead");
                        let _ = fs::remove_file(&join.path);
                    }
                }
            }
            made
        };
        let thread = std::thread::Builder::new().name("join parts".into()).spawn(work).ok()?;
        Some(Self { queue, ended, thread })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::segment::Fingerprint;
    use groundloom_formats::jsonl_sink::JsonlSink;
    use proptest::prelude::*;

    fn sink(file_bytes: u64) -> Arc<dyn Sink> {
        let config = serde_json::json!({ "path": "out", "file_bytes": file_bytes });
        Arc::new(serde_json::from_value::<JsonlSink>(config).unwrap())
    }

    fn part(number: usize, bytes: u64) -> Part {
        Part { kind: PartKind::Data, file: format!("{number}.data.jsonl"), rows: 1, bytes }
    }

    fn entry(number: usize, parts: Vec<Part>) -> Entry {
        let task = Fingerprint::of(&serde_json::json!(number));
        Entry { task, rows_in: 1, parts, counts: Vec::new(), files: String::new(), again: None }
    }

    proptest! {
        #[test]
        fn files_are_of_the_size_that_is_aimed_for_and_hold_every_part_in_order(
            sizes in prop::collection::vec(0u64..300, 0..40)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let ledger = Ledger::open(folder.path(), &Fingerprint::of(&serde_json::json!("s"))).unwrap();
            let entries: Vec<Entry> = sizes.iter().enumerate().map(|(i, n)| entry(i, vec![part(i, *n)])).collect();
            let joins = joins(&sink(400), &entries, &ledger, PartKind::Data, Path::new("/d"), |i, of| format!("{i}-{of}"));
            let all: Vec<PathBuf> = joins.iter().flat_map(|join| join.parts.clone()).collect();
            let expected: Vec<PathBuf> =
                entries.iter().map(|e| ledger.part_path(e.part(PartKind::Data).unwrap())).collect();
            prop_assert_eq!(all, expected);
            let mut at = 0;
            for (i, join) in joins.iter().enumerate() {
                let of = &sizes[at..at + join.parts.len()];
                at += of.len();
                let bytes: u64 = of.iter().sum();
                prop_assert!(bytes <= 400 && bytes - of[of.len() - 1] < 100, "{of:?}");
                // Only the last one, and one before a part that would not fit, may be small.
                prop_assert!(bytes >= 100 || sizes.get(at).is_none_or(|next| bytes + next > 400), "{of:?}");
                prop_assert_eq!(&join.path, &Path::new("/d").join(format!("{i}-{}", joins.len())));
            }
        }
    }

    #[test]
    fn what_is_complete_is_made_ahead_and_published_as_it_is() {
        let work = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(work.path(), &Fingerprint::of(&serde_json::json!("s"))).unwrap();
        let parts: Vec<Part> = (0..7).map(|i| part(i, 60)).collect();
        let folder = ledger.part_path(&parts[0]).parent().unwrap().to_owned();
        fs::create_dir_all(&folder).unwrap();
        // The file of the fifth is not there yet.
        for i in [0, 1, 2, 3, 5, 6] {
            fs::write(ledger.part_path(&parts[i]), format!("part {i}\n")).unwrap();
        }
        let sink = sink(400);
        let mut ahead = Ahead::new(work.path(), [Some(&sink), None].into_iter()).unwrap();
        let mut entries: Vec<Option<Entry>> = vec![None; 7];
        for i in [1, 0, 3, 4, 6, 5, 2] {
            entries[i] = Some(entry(i, vec![parts[i].clone()]));
            ahead.advance(0, &entries, &ledger);
        }
        // Those of which nothing was begun are left when it ends.
        while fs::read_dir(work.path().join(FOLDER)).unwrap().count() < 2 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(ahead.files, 3);
        let joined = ahead.finish();
        let paths = |numbers: &[usize]| numbers.iter().map(|i| ledger.part_path(&parts[*i])).collect::<Vec<_>>();
        assert!([[0, 1], [2, 3]].iter().all(|parts| joined.contains_key(&paths(parts))), "{joined:?}");
        assert!(!joined.contains_key(&paths(&[4, 5])), "a part is missing");
        let next = work.path().join("next");
        let entries: Vec<Entry> = entries.into_iter().flatten().collect();
        let name = |i: usize, _: usize| format!("{i}.jsonl");
        let all = joins(&sink, &entries, &ledger, PartKind::Data, &next, name);
        assert_eq!(all.len(), 4);
        assert!(join_all(&all, &next, &joined).is_err(), "what could not be made ahead is told now");
        fs::write(ledger.part_path(&parts[4]), "part 4\n").unwrap();
        fs::remove_dir_all(&next).unwrap();
        // Taken from what was made, not made again: the part has other bytes by now.
        fs::write(ledger.part_path(&parts[0]), "PART 0\n").unwrap();
        let files = join_all(&all, &next, &joined).unwrap();
        let texts: Vec<String> = files.iter().map(|f| fs::read_to_string(next.join(&f.path)).unwrap()).collect();
        assert_eq!(texts, ["part 0\npart 1\n", "part 2\npart 3\n", "part 4\npart 5\n", "part 6\n"]);
        drop(ahead);
        assert!(!work.path().join(FOLDER).exists());
        assert_eq!(fs::read_to_string(next.join("0.jsonl")).unwrap(), texts[0], "what was published stays");
    }
}
