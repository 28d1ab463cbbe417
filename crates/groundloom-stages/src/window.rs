//! Book-keeping while a stage goes through a window: failed rows and counts.

use std::collections::BTreeMap;

use arrow::array::ArrayRef;
use groundloom_data::{MediaError, SoundError};
use groundloom_models::ModelError;

use crate::stage::{Outcome, RowFailure, StageError, codes};

/// What goes wrong with a row, before it is known which row of the window it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Fault {
    /// The row's value in `column` is null. `remedy` says what to do, as a clause.
    pub(crate) fn missing(column: &str, remedy: &str) -> Self {
        Self {
            code: codes::MISSING_VALUE,
            message: format!("expected a value in column `{column}`, found null; {remedy}"),
        }
    }

    /// The row's value in `column` contradicts the column's contract.
    pub(crate) fn invalid(column: &str, what: impl std::fmt::Display) -> Self {
        Self { code: codes::INVALID_VALUE, message: format!("column `{column}`, {what}") }
    }

    /// The row's image cannot be used; `path` is where it came from.
    pub(crate) fn image(error: &MediaError, path: Option<&str>) -> Self {
        Self::file(error.code(), error, path)
    }

    /// The row's sound cannot be used; `path` is where it came from.
    pub(crate) fn sound(error: &SoundError, path: Option<&str>) -> Self {
        Self::file(error.code(), error, path)
    }

    fn file(code: &'static str, error: &dyn std::fmt::Display, path: Option<&str>) -> Self {
        let message = match path {
            Some(path) => format!("{path}: {error}"),
            None => error.to_string(),
        };
        Self { code, message }
    }
}

/// What came of one row that a model of the pool was asked about: the answer, or the row's fault.
///
/// # Errors
/// [`StageError::Model`] where the model's threads are gone or its device has no memory left, which concerns every row.
pub(crate) fn answered<T>(
    answer: Option<Result<Result<T, Fault>, ModelError>>,
    model: &str,
) -> Result<Result<T, Fault>, StageError> {
    match answer {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(error @ (ModelError::ShutDown { .. } | ModelError::DeviceMemory { .. }))) => Err(error.into()),
        Some(Err(error)) => {
            // Whether the model failed, or the value is not one that it takes.
            let code = match error {
                ModelError::ShortWaveform { .. } | ModelError::BadSample { .. } | ModelError::WrongCount { .. } => {
                    codes::INVALID_VALUE
                }
                _ => codes::MODEL_FAILED,
            };
            Ok(Err(Fault { code, message: error.to_string() }))
        }
        None => Err(ModelError::ShutDown { model: model.to_owned() }.into()),
    }
}

/// The failures and counts of a window so far.
#[derive(Debug, Default)]
pub(crate) struct Window {
    failures: Vec<RowFailure>,
    counts: BTreeMap<&'static str, u64>,
}

impl Window {
    /// Notes that `row` cannot be processed.
    pub(crate) fn fail(&mut self, row: usize, fault: Fault) {
        self.failures.push(RowFailure { row, code: fault.code, message: fault.message });
    }

    /// The row's value, if it has one; else its fault is noted.
    pub(crate) fn settle<T>(&mut self, row: usize, value: Result<T, Fault>) -> Option<T> {
        value.map_err(|fault| self.fail(row, fault)).ok()
    }

    /// Adds to a count of the funnel; a count of nothing is not mentioned.
    pub(crate) fn count(&mut self, what: &'static str, n: usize) {
        if n > 0 {
            *self.counts.entry(what).or_default() += n as u64;
        }
    }

    /// The outcome with the stage's columns; failures in the order of the rows.
    pub(crate) fn finish(mut self, columns: Vec<ArrayRef>) -> Outcome {
        self.failures.sort_by_key(|failure| failure.row);
        Outcome { columns, failures: self.failures, counts: self.counts }
    }
}
