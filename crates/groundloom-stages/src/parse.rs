//! `parse`: the whole dependency parse of a caption as a column.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanBuilder, Int32Builder, ListArray, StringBuilder, StructArray},
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::columns;
use groundloom_models::ModelPool;
use groundloom_spec::Config;
use groundloom_syntax::{Doc, Token};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    captions::{Captions, embedded_parser, window_of},
    inputs::{self, Texts},
    noun_chunks::{default_max_chars, default_text},
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::Window,
};

/// Parses a caption and writes every token with its part of speech, its head and its place, for SQL or for other tools to work with.
///
/// The parse is that of spaCy's `en_core_web_sm` 3.8.0, which is inside the program. An empty caption has no tokens; a row without a caption goes to quarantine.
/// `noun_chunks` does not need it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parse {
    /// Column with the caption.
    #[serde(default = "default_text")]
    pub text: String,
    /// Column to write: `list<struct<text, start, end, lemma, tag, pos, morph, dep, head, left_edge, right_edge, sentence_start>>`, one entry per token, with spaCy's
    /// names. `start` and `end` count characters of the caption, end exclusive; `head`, `left_edge` and `right_edge` are indices of tokens (a root is its own head).
    #[serde(default = "default_output")]
    pub output: String,
    /// The longest caption that is parsed, in characters; a longer one goes to quarantine (`text_too_long`). spaCy itself stops at 1,000,000.
    #[serde(default = "default_max_chars")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_chars: u32,
}

fn default_output() -> String {
    "parse".to_owned()
}

impl Config for Parse {
    const NAME: &'static str = "parse";
    const SUMMARY: &'static str = "Write the dependency parse of a caption, token by token";
    const EXAMPLE: &'static str = "tokens: { type: parse, text: caption }";
}

/// `list<struct<text, start, end, lemma, tag, pos, morph, dep, head, left_edge, right_edge, sentence_start>>`: see [`Parse::output`].
pub fn parse_type() -> DataType {
    DataType::List(token_field())
}

fn token_field() -> FieldRef {
    Arc::new(Field::new("item", DataType::Struct(token_fields()), true))
}

fn token_fields() -> Fields {
    [
        ("text", DataType::Utf8),
        ("start", DataType::Int32),
        ("end", DataType::Int32),
        ("lemma", DataType::Utf8),
        ("tag", DataType::Utf8),
        ("pos", DataType::Utf8),
        ("morph", DataType::Utf8),
        ("dep", DataType::Utf8),
        ("head", DataType::Int32),
        ("left_edge", DataType::Int32),
        ("right_edge", DataType::Int32),
        ("sentence_start", DataType::Boolean),
    ]
    .into_iter()
    .map(|(name, data_type)| Field::new(name, data_type, true))
    .collect()
}

impl Stage for Parse {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "text", &self.text, Texts::check_type)?;
        Ok(vec![columns::column(&self.output, parse_type())])
    }

    fn open(&self, _input: SchemaRef, _models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Arc::new(Parsing { config: self.clone(), captions: Captions::open(&self.text, self.max_chars)? }))
    }

    /// A token takes some 80 bytes and often one character: fewer rows than `noun_chunks` keeps the column in bounds.
    fn window(&self) -> usize {
        window_of(self.max_chars).div_ceil(16)
    }

    fn models(&self) -> Result<Vec<String>, StageError> {
        Ok(vec![embedded_parser()?.model_id().to_owned()])
    }

    fn notes(&self) -> Vec<String> {
        vec!["Parses come from spaCy's en_core_web_sm 3.8.0.".to_owned()]
    }
}

#[derive(Debug)]
struct Parsing {
    config: Parse,
    captions: Captions,
}

/// The column under construction.
#[derive(Default)]
struct Tokens {
    lengths: Vec<usize>,
    valid: Vec<bool>,
    text: StringBuilder,
    start: Int32Builder,
    end: Int32Builder,
    lemma: StringBuilder,
    tag: StringBuilder,
    pos: StringBuilder,
    morph: StringBuilder,
    dep: StringBuilder,
    head: Int32Builder,
    left_edge: Int32Builder,
    right_edge: Int32Builder,
    sentence_start: BooleanBuilder,
}

impl Tokens {
    fn append_row(&mut self, doc: Option<&Doc>) {
        self.lengths.push(doc.map_or(0, Doc::len));
        self.valid.push(doc.is_some());
        doc.into_iter().flat_map(Doc::tokens).for_each(|token| self.append(&token));
    }

    fn append(&mut self, token: &Token<'_>) {
        // At most 1,000,000 characters, so that every position fits.
        let number = |value: usize| i32::try_from(value).unwrap_or(i32::MAX);
        self.text.append_value(token.text());
        self.start.append_value(number(token.idx()));
        self.end.append_value(number(token.end_idx()));
        self.lemma.append_value(token.lemma());
        self.tag.append_value(token.tag());
        self.pos.append_value(token.pos());
        self.morph.append_value(token.morph());
        self.dep.append_value(token.dep());
        self.head.append_value(number(token.head()));
        self.left_edge.append_value(number(token.left_edge()));
        self.right_edge.append_value(number(token.right_edge()));
        self.sentence_start.append_value(token.is_sentence_start());
    }

    fn finish(mut self) -> Result<ListArray, StageError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.text.finish()),
            Arc::new(self.start.finish()),
            Arc::new(self.end.finish()),
            Arc::new(self.lemma.finish()),
            Arc::new(self.tag.finish()),
            Arc::new(self.pos.finish()),
            Arc::new(self.morph.finish()),
            Arc::new(self.dep.finish()),
            Arc::new(self.head.finish()),
            Arc::new(self.left_edge.finish()),
            Arc::new(self.right_edge.finish()),
            Arc::new(self.sentence_start.finish()),
        ];
        let tokens = StructArray::try_new(token_fields(), columns, None)?;
        let nulls = self.valid.contains(&false).then(|| NullBuffer::from(self.valid));
        Ok(ListArray::try_new(token_field(), OffsetBuffer::from_lengths(self.lengths), Arc::new(tokens), nulls)?)
    }
}

#[async_trait]
impl RowWise for Parsing {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let (mut window, mut output) = (Window::default(), Tokens::default());
        let texts = Texts::try_new(inputs::column(rows, &self.config.text)?)
            .map_err(inputs::type_changed(&self.config.text))?;
        for (row, doc) in self.captions.parse(&texts, rows.num_rows()).into_iter().enumerate() {
            match doc {
                Ok(doc) => {
                    window.count("tokens", doc.len());
                    output.append_row(Some(&doc));
                }
                Err(fault) => {
                    window.fail(row, fault);
                    output.append_row(None);
                }
            }
        }
        Ok(window.finish(vec![Arc::new(output.finish()?) as ArrayRef]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;
    use crate::{fixtures, stage::codes};

    #[test]
    fn tokens_carry_spacys_names() {
        let stage: Parse = serde_json::from_value(json!({})).unwrap();
        let outcome = fixtures::run(
            &stage,
            &fixtures::rows([("caption", fixtures::texts([Some("🐶 Dogs ran. A cat"), Some(""), None]))]),
        );
        let rows = fixtures::json(&outcome.columns[0]);
        let tokens = rows[0].as_array().unwrap();
        let texts: Vec<_> = tokens.iter().map(|t| t["text"].as_str().unwrap()).collect();
        assert_eq!(texts, ["🐶", "Dogs", "ran", ".", "A", "cat"]);
        assert_eq!(
            tokens[5],
            json!({"text": "cat", "start": 14, "end": 17, "lemma": "cat", "tag": "NN", "pos": "NOUN", "morph": "Number=Sing", "dep": "ROOT", "head": 5,
                   "left_edge": 4, "right_edge": 5, "sentence_start": false})
        );
        assert_eq!((&tokens[2]["lemma"], &tokens[4]["sentence_start"]), (&json!("run"), &json!(true)));
        assert_eq!((&rows[1], &rows[2]), (&json!([]), &json!(null)));
        assert_eq!(fixtures::failures(&outcome)[0].1, codes::MISSING_VALUE);
        assert_eq!(fixtures::counts(&outcome), [("tokens", 6)]);
    }
}
