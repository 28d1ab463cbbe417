//! What can end a run.

use std::path::PathBuf;

use groundloom_spec::Diagnostics;

/// What ends a check, a plan or a run. A bad row never does.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The pipeline file is wrong; nothing was started.
    #[error("the pipeline file has errors")]
    Invalid(Diagnostics),
    /// A source or a sink failed.
    #[error(transparent)]
    Format(#[from] groundloom_formats::FormatError),
    /// A stage failed, or DataFusion did.
    #[error("{}", plain(.0))]
    Execution(#[from] datafusion::error::DataFusionError),
    /// A file of ours cannot be read or written.
    #[error("{}: {source}{hint}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
        /// What to do, or empty.
        hint: &'static str,
    },
    /// The target holds something that is not a data set of ours.
    #[error("{}: the folder is not empty and holds no Groundloom data set; name another `path:` or empty it yourself", .0.display())]
    ForeignTarget(PathBuf),
    /// Another run works on the same output.
    #[error("{}: another run (process {process}) is writing to this output; wait for it or stop it", path.display())]
    Locked {
        /// The target.
        path: PathBuf,
        /// Its process id, as it wrote it.
        process: String,
    },
    /// A file that says what was done is damaged.
    #[error("{}: damaged: {message}; delete the folder `{}` to start afresh", path.display(), path.parent().unwrap_or(path).display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The inputs changed the columns of a published data set.
    #[error(
        "{target}: {difference}, although the pipeline is the same: an input has changed. State the types in the pipeline file (a `types:` of the source, or a cast in a `sql` stage), \
         or move the published data set away to accept the new columns"
    )]
    Contract {
        /// The data set.
        target: String,
        /// What is different.
        difference: String,
    },
    /// More rows failed than `settings.max_bad` allows.
    #[error("{bad} of the first {rows} rows failed, more than max_bad allows ({limit}); mostly {code}: {message}")]
    TooManyBad {
        /// Failed rows.
        bad: u64,
        /// Rows judged.
        rows: u64,
        /// The limit as the file gives it.
        limit: String,
        /// The most frequent code.
        code: String,
        /// Where to look.
        message: String,
    },
    /// What was asked for cannot be done here.
    #[error("{0}")]
    Unsupported(String),
    /// The user stopped the run.
    #[error("stopped; run the same command to go on from here")]
    Stopped,
    /// A broken invariant of ours.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

impl EngineError {
    /// An [`EngineError::Io`] at `path`, with a hint where the cause has a usual cure.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        let hint = match source.kind() {
            std::io::ErrorKind::PermissionDenied => " (choose a path you may write to)",
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                " (free some room and run the same command again: finished work is kept)"
            }
            std::io::ErrorKind::ReadOnlyFilesystem => " (the file system is mounted read-only)",
            _ => "",
        };
        Self::Io { path: path.into(), source, hint }
    }
}

/// DataFusion's error without its own prefixes: our stages and sources already say who they are.
fn plain(error: &datafusion::error::DataFusionError) -> String {
    use datafusion::error::DataFusionError as E;
    match error.find_root() {
        E::Execution(message) | E::Plan(message) => message.clone(),
        other => other.to_string(),
    }
}
