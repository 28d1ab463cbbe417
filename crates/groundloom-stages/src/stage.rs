//! What a stage is: a config struct that states its schema rule and opens its work.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_llm::Clients;
use groundloom_models::ModelPool;

/// A stage that works row by row. The implementor is the stage's config struct: plain data, so that a plan can be stored and sent.
pub trait Stage: Debug + Send + Sync {
    /// The columns that the stage appends, or replaces where the name exists already, given the columns it gets.
    ///
    /// # Errors
    /// A [`ColumnError`] for a column that is missing or has the wrong type. It runs while the pipeline file is checked, before any work.
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError>;

    /// Makes the stage ready to work on batches of the schema `input` (models are loaded here, once per process through the pool).
    ///
    /// # Errors
    /// A [`StageError`] when a model or a file cannot be had; it ends the run.
    fn open(&self, input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError>;

    /// As [`Stage::open`], with the clients of the servers that this process asks. The engine opens stages through this one; only stages that ask servers differ in it.
    ///
    /// # Errors
    /// As [`Stage::open`], and when a server cannot be asked (no key, no price for a cost limit).
    fn open_with(
        &self,
        input: SchemaRef,
        models: &Arc<ModelPool>,
        clients: &Arc<Clients>,
    ) -> Result<Arc<dyn RowWise>, StageError> {
        let _ = clients;
        self.open(input, models)
    }

    /// The stage as one that asks a language model, for `prompt preview` and `plan`.
    fn as_generate(&self) -> Option<&crate::Generate> {
        None
    }

    /// Changes whenever the same config would give other bytes than before; part of the segment's fingerprint.
    fn version(&self) -> u32 {
        1
    }

    /// The largest number of consecutive rows in one call. A window never crosses a task, so what is in it depends on the data alone.
    fn window(&self) -> usize {
        1024
    }

    /// Weights that decide the output, as `name@sha256`; part of the fingerprint and named on the data-set card.
    ///
    /// # Errors
    /// As [`Stage::open`].
    fn models(&self) -> Result<Vec<String>, StageError> {
        Ok(Vec::new())
    }

    /// Sentences for the data-set card: where this run differs from the recipe's authors, and by which source.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A stage at work.
#[async_trait]
pub trait RowWise: Debug + Send + Sync {
    /// Works on up to [`Stage::window`] consecutive good rows (rows that failed earlier are never shown to it).
    ///
    /// CPU work may run right here; waiting (models, network) must be awaited.
    ///
    /// # Errors
    /// A [`StageError`] ends the run; what is wrong with one row goes into [`Outcome::failures`].
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError>;
}

/// What a stage made of a window of rows.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The columns of [`Stage::outputs`], in that order, each as long as the window.
    pub columns: Vec<ArrayRef>,
    /// Rows that cannot be processed; they go to quarantine with the reason (their values in `columns` are ignored).
    pub failures: Vec<RowFailure>,
    /// Counts for the funnel, in `snake_case` (`chunks`, `phrase_outside_vocabulary`, …).
    pub counts: BTreeMap<&'static str, u64>,
}

/// One row that cannot be processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFailure {
    /// Index in the window.
    pub row: usize,
    /// One of the codes in [`codes`].
    pub code: &'static str,
    /// What was expected, what was found, what to do.
    pub message: String,
}

/// The quarantine codes that stages and sources use. Few, and each documented.
pub mod codes {
    /// A column that the stage needs is null in this row.
    pub const MISSING_VALUE: &str = "missing_value";
    /// A text is longer than the stage accepts.
    pub const TEXT_TOO_LONG: &str = "text_too_long";
    /// A value contradicts the column's contract: a span outside the text, a box outside the image, NaN.
    pub const INVALID_VALUE: &str = "invalid_value";
    /// The bytes are no image of a supported format, or a damaged one.
    pub const UNDECODABLE_IMAGE: &str = "undecodable_image";
    /// The image's header announces more pixels than the limit.
    pub const IMAGE_TOO_LARGE: &str = "image_too_large";
    /// The bytes are no sound of a supported format, or a damaged or cut one.
    pub const UNDECODABLE_AUDIO: &str = "undecodable_audio";
    /// The sound is longer than the limit.
    pub const AUDIO_TOO_LONG: &str = "audio_too_long";
    /// The model failed on this row.
    pub const MODEL_FAILED: &str = "model_failed";
}

/// A column that is missing or has the wrong type, found while the pipeline file is checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ColumnError {
    /// The config key that names the column, e.g. `text`; empty for a column with a fixed name.
    pub key: &'static str,
    /// The column.
    pub column: String,
    /// What was expected and found.
    pub message: String,
}

/// What ends a run: a model that cannot be loaded, a file that cannot be read, a broken invariant.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A model cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] groundloom_models::ModelError),
    /// The embedded or loaded syntax model cannot be used.
    #[error("syntax model: {0}")]
    Syntax(String),
    /// A language model cannot be asked; answers that arrived are kept.
    #[error(transparent)]
    Llm(#[from] groundloom_llm::LlmError),
    /// Arrow refused to build a column.
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}
