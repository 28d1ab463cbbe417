//! What can go wrong, said so that a reader can act on it.

use std::path::PathBuf;

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyntaxError {
    /// The text is longer than the pipeline's limit, which spaCy calls `max_length`.
    #[error(
        "the text has {found} characters and at most {limit} are parsed; split it into paragraphs, \
         or raise the limit with `Pipeline::with_max_chars`"
    )]
    TextTooLong {
        /// Length of the text in Unicode scalar values.
        found: usize,
        /// The limit in force.
        limit: usize,
    },
    /// Bytes that are not UTF-8 were given where a text is expected.
    #[error("the text is not UTF-8: byte {valid_up_to} does not continue it; decode the text first")]
    NotUtf8 {
        /// Number of leading bytes that are valid.
        valid_up_to: usize,
    },
    /// A file of a model folder cannot be read.
    #[error(
        "cannot read {}: {source}; expected the folder of an installed spaCy model, the one that \
         holds `config.cfg` and `tokenizer`", path.display()
    )]
    Unreadable {
        /// The file that was tried.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A model file is damaged or not of the expected form.
    #[error("model file `{file}`: {problem}")]
    BadModel {
        /// Name of the file or section.
        file: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// The model is sound, but not of a kind that this crate computes.
    #[error(
        "this model is not supported: expected {expected}, found {found}; supported are spaCy 3.7 \
         and 3.8 English models with the components of `en_core_web_sm`"
    )]
    UnsupportedModel {
        /// What the crate can run.
        expected: String,
        /// What the model has.
        found: String,
    },
}

/// Shorthand for the crate's results.
pub type Result<T, E = SyntaxError> = std::result::Result<T, E>;

/// A damaged file or section.
pub(crate) fn bad_model(file: impl Into<String>, problem: impl Into<String>) -> SyntaxError {
    SyntaxError::BadModel { file: file.into(), problem: problem.into() }
}

/// A model of another kind.
pub(crate) fn unsupported(expected: impl Into<String>, found: impl Into<String>) -> SyntaxError {
    SyntaxError::UnsupportedModel { expected: expected.into(), found: found.into() }
}
