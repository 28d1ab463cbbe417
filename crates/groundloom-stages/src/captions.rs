//! Captions of a window, parsed.

use std::sync::OnceLock;

use groundloom_syntax::{Doc, Pipeline, SyntaxError};

use crate::{
    inputs::Texts,
    stage::{StageError, codes},
    window::Fault,
};

/// Characters that the captions of one window may have together: four bytes each stay inside what one Arrow text column holds.
const WINDOW_CHARS: usize = 1 << 28;

/// Rows of a window whose captions have at most `max_chars` characters.
pub(crate) fn window_of(max_chars: u32) -> usize {
    (WINDOW_CHARS / usize::try_from(max_chars).unwrap_or(usize::MAX).max(1)).clamp(1, 1024)
}

/// The embedded parser. One for the process: its caches get warm with every caption that any task parses.
pub(crate) fn embedded_parser() -> Result<Pipeline, StageError> {
    static PARSER: OnceLock<Pipeline> = OnceLock::new();
    if let Some(parser) = PARSER.get() {
        return Ok(parser.clone());
    }
    let parser = Pipeline::embedded().map_err(|e| StageError::Syntax(e.to_string()))?;
    Ok(PARSER.get_or_init(|| parser).clone())
}

/// The parser with the column and the limit of a stage.
#[derive(Debug)]
pub(crate) struct Captions {
    column: String,
    pipeline: Pipeline,
}

impl Captions {
    /// The embedded parser, limited.
    pub(crate) fn open(column: &str, max_chars: u32) -> Result<Self, StageError> {
        let limit = usize::try_from(max_chars).unwrap_or(usize::MAX);
        Ok(Self { column: column.to_owned(), pipeline: embedded_parser()?.with_max_chars(limit) })
    }

    /// Parses the first `rows` captions; one answer a row.
    pub(crate) fn parse(&self, texts: &Texts, rows: usize) -> Vec<Result<Doc, Fault>> {
        let captions: Vec<Option<&str>> = (0..rows).map(|row| texts.get(row)).collect();
        let given: Vec<&str> = captions.iter().copied().flatten().collect();
        let mut docs = self.pipeline.parse_batch(&given).into_iter();
        let missing = || Fault::missing(&self.column, "give each row a caption, or an empty text");
        captions
            .iter()
            .map(|caption| caption.and_then(|_| docs.next()).ok_or_else(missing)?.map_err(|e| self.fault(&e)))
            .collect()
    }

    fn fault(&self, error: &SyntaxError) -> Fault {
        let column = &self.column;
        match error {
            SyntaxError::TextTooLong { found, limit } => Fault {
                code: codes::TEXT_TOO_LONG,
                message: format!(
                    "column `{column}`: expected at most {limit} characters, found {found}; shorten the text or raise `max_chars`"
                ),
            },
            other => Fault::invalid(column, other),
        }
    }
}
