//! What can go wrong with an index.

use std::{
    io,
    path::{Path, PathBuf},
};

/// An error of this crate. Every message says where, what was expected, what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's words.
        source: io::Error,
    },
    /// A vector has another length than the index's.
    #[error(
        "row {row}: expected a vector of {expected} dimensions, found {found}; embed it with the index's own model"
    )]
    WrongDimensions {
        /// Position of the row in the input, from 0.
        row: u64,
        /// Dimensions of the index.
        expected: usize,
        /// Dimensions of the vector.
        found: usize,
    },
    /// A component is NaN or infinite.
    #[error(
        "row {row}: component {component} of the vector is {value}; expected finite numbers, so drop the row or embed it again"
    )]
    NotFinite {
        /// Position of the row in the input, from 0.
        row: u64,
        /// Position in the vector, from 0.
        component: usize,
        /// What stands there.
        value: f32,
    },
    /// A zero vector where the metric is cosine.
    #[error(
        "row {row}: the vector is zero and has no direction; cosine similarity needs one, so drop the row or use `ip` or `l2`"
    )]
    ZeroVector {
        /// Position of the row in the input, from 0.
        row: u64,
    },
    /// A setting is out of its range.
    #[error("expected {setting} {expected}, found {found}")]
    BadSetting {
        /// Its name.
        setting: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value given.
        found: String,
    },
    /// The folder holds no index.
    #[error("{} holds no index: expected a folder with an {}; build one with `groundloom index build`", path.display(), crate::manifest::FILE)]
    NoIndex {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds something that is no index.
    #[error("{} holds files but no index; name an empty or a new folder", path.display())]
    ForeignFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}; build the index anew or restore the file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        problem: String,
    },
    /// Another process is changing the index.
    #[error("{} is being changed by process {process}; wait for it to finish", path.display())]
    Locked {
        /// The index.
        path: PathBuf,
        /// Its process id.
        process: String,
    },
    /// A vector column that the index lacks.
    #[error("the index has no vector column {name:?}; it has {known}")]
    UnknownColumn {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Two parts that should be of one kind are not.
    #[error("{what} differs: expected {expected}, found {found}; {remedy}")]
    Mismatch {
        /// What was compared.
        what: String,
        /// On this side.
        expected: String,
        /// On the other.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Rows that should be a table for an index are not.
    #[error("{origin}: {problem}")]
    BadRows {
        /// The file or column.
        origin: String,
        /// Expected, found, remedy.
        problem: String,
    },
    /// A filter is no predicate over the rows.
    #[error("--where {predicate:?}: {problem}")]
    BadPredicate {
        /// The text given.
        predicate: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl IndexError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), problem: problem.into() }
    }
}
