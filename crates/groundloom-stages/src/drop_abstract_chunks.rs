//! `drop_abstract_chunks`: removes noun chunks that no box could show.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{Chunk, ChunksBuilder, ChunksView, columns};
use groundloom_models::ModelPool;
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    inputs,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// The words of GrIT's authors, who had ChatGPT propose candidates and pruned them by hand (microsoft/unilm issue 1421).
pub const ABSTRACT_NOUNS: [&str; 14] = [
    "time",
    "life",
    "love",
    "freedom",
    "happiness",
    "wisdom",
    "peace",
    "justice",
    "hope",
    "courage",
    "faith",
    "understanding",
    "advantage",
    "pursuit",
];

/// Removes the noun chunks that name something abstract ("time", "love"), which a detector would only guess a box for. The rest keep their order.
///
/// It goes before anything that counts chunks: a column that points into `chunks` by position would point at others afterwards, and is refused.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DropAbstractChunks {
    /// Column with the noun chunks, as `noun_chunks` writes it; it is replaced.
    #[serde(default = "default_chunks")]
    pub chunks: String,
    /// The words. The default is the final list of GrIT's authors, 14 words; the paper names only three of them. Case does not matter.
    #[serde(default = "default_words")]
    pub words: Vec<String>,
    /// What of a chunk is compared with the words.
    #[serde(default)]
    pub r#match: AbstractMatch,
}

/// What of a chunk is compared with the words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AbstractMatch {
    /// The lemma of the head noun: "the good times" goes with "time". GrIT's authors do not say which they did.
    #[default]
    HeadLemma,
    /// The whole text: only a bare "time" goes with "time".
    WholeChunk,
}

fn default_chunks() -> String {
    "chunks".to_owned()
}

fn default_words() -> Vec<String> {
    ABSTRACT_NOUNS.map(str::to_owned).to_vec()
}

impl Config for DropAbstractChunks {
    const NAME: &'static str = "drop_abstract_chunks";
    const SUMMARY: &'static str = "Remove noun chunks that name something abstract, such as time or love";
    const EXAMPLE: &'static str = "concrete: { type: drop_abstract_chunks }";
}

impl DropAbstractChunks {
    /// Whether `chunk` names something on the list of `words` (in lower case).
    pub fn is_abstract(&self, words: &HashSet<String>, chunk: &Chunk<'_>) -> bool {
        match self.r#match {
            AbstractMatch::HeadLemma => words.contains(&chunk.lemma.to_lowercase()),
            AbstractMatch::WholeChunk => words.contains(&chunk.text.to_lowercase()),
        }
    }
}

impl Stage for DropAbstractChunks {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "chunks", &self.chunks, ChunksView::check_type)?;
        for field in input.fields().iter().filter(|f| f.name() != &self.chunks) {
            if points_at_chunks(field.data_type()) {
                let message = format!(
                    "column `{}` points into the chunks by position, which would be wrong once some are removed; \
                     put drop_abstract_chunks before the stage that makes that column, or name phrases by `phrase` or `start` and `end` alone",
                    field.name()
                );
                return Err(ColumnError { key: "chunks", column: field.name().clone(), message });
            }
        }
        Ok(vec![columns::column(&self.chunks, columns::chunks_type())])
    }

    fn open(&self, _input: SchemaRef, _models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        let words = self.words.iter().map(|w| w.to_lowercase()).collect();
        Ok(Arc::new(Dropping { config: self.clone(), words }))
    }
}

/// Whether a column is a list of structs with an integer field `chunk`.
fn points_at_chunks(data_type: &DataType) -> bool {
    let (DataType::List(item) | DataType::LargeList(item)) = data_type else { return false };
    let DataType::Struct(fields) = item.data_type() else { return false };
    fields.iter().any(|f| f.name() == "chunk" && f.data_type().is_integer())
}

#[derive(Debug)]
struct Dropping {
    config: DropAbstractChunks,
    words: HashSet<String>,
}

#[async_trait]
impl RowWise for Dropping {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let name = &self.config.chunks;
        let chunks = ChunksView::try_new(inputs::column(rows, name)?).map_err(inputs::type_changed(name))?;
        let (mut window, mut output) = (Window::default(), ChunksBuilder::new());
        for row in 0..rows.num_rows() {
            let given = chunks.row(row).map_err(|e| Fault::invalid(name, e));
            let given = given.and_then(|chunks| chunks.ok_or_else(|| Fault::missing(name, "run noun_chunks before")));
            match window.settle(row, given) {
                Some(mut chunks) => {
                    let before = chunks.len();
                    chunks.retain(|chunk| !self.config.is_abstract(&self.words, chunk));
                    window.count("abstract_chunk", before - chunks.len());
                    window.count("chunks", chunks.len());
                    output.append_row(&chunks);
                }
                None => output.append_null(),
            }
        }
        Ok(window.finish(vec![Arc::new(output.finish()) as ArrayRef]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;
    use crate::{fixtures, stage::codes};

    fn stage(config: serde_json::Value) -> DropAbstractChunks {
        serde_json::from_value(config).unwrap()
    }

    fn texts(column: &ArrayRef) -> Vec<Vec<String>> {
        let texts = |row: &serde_json::Value| {
            row.as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect()
        };
        fixtures::json(column).iter().map(texts).collect()
    }

    #[test]
    fn abstract_heads_go_and_the_rest_keeps_its_order() {
        let chunks = json!([
            fixtures::chunk("the good times", 0..14, "time", 0..14),
            fixtures::chunk("a dog", 18..23, "dog", 18..23),
            fixtures::chunk("Love", 27..31, "love", 27..31),
            fixtures::chunk("a life jacket", 35..48, "jacket", 35..48),
        ]);
        let rows = fixtures::rows([("chunks", fixtures::column(columns::chunks_type(), [chunks, json!([])]))]);
        let outcome = fixtures::run(&stage(json!({})), &rows);
        assert_eq!(texts(&outcome.columns[0]), [vec!["a dog", "a life jacket"], vec![]]);
        assert_eq!(fixtures::counts(&outcome), [("abstract_chunk", 2), ("chunks", 2)]);
        let outcome = fixtures::run(&stage(json!({"match": "whole_chunk"})), &rows);
        assert_eq!(texts(&outcome.columns[0])[0], ["the good times", "a dog", "a life jacket"]);
        let outcome = fixtures::run(&stage(json!({"words": ["DOG"]})), &rows);
        assert_eq!(texts(&outcome.columns[0])[0], ["the good times", "Love", "a life jacket"]);
    }

    #[test]
    fn a_row_without_chunks_fails_alone() {
        let bad = json!([{ "start": 3, "end": 1, "text": "x", "root": "x", "lemma": "x", "subtree_start": 0, "subtree_end": 3, "has_conjunct": false, "has_children": false }]);
        let rows = fixtures::rows([(
            "chunks",
            fixtures::column(columns::chunks_type(), [json!(null), fixtures::dog_chunks(), bad]),
        )]);
        let outcome = fixtures::run(&stage(json!({})), &rows);
        let failures = fixtures::failures(&outcome);
        assert_eq!(
            failures.iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(),
            [(0, codes::MISSING_VALUE), (2, codes::INVALID_VALUE)]
        );
        assert!(failures[1].2.contains("entry 0"), "{}", failures[1].2);
        assert_eq!(outcome.counts["chunks"], 3);
    }

    #[test]
    fn columns_that_point_into_the_chunks_are_refused() {
        let schema = Schema::new(vec![
            columns::column("chunks", columns::chunks_type()),
            columns::column("dino", columns::boxes_type()),
        ]);
        let error = stage(json!({})).outputs(&schema).unwrap_err();
        assert_eq!(error.column, "dino");
        assert!(error.message.contains("put drop_abstract_chunks before"), "{error}");
    }
}
