//! `noun_chunks`: parses captions and writes down their noun chunks, with what expression expansion will need.

use std::sync::Arc;

use arrow::{
    array::ArrayRef,
    datatypes::{FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{CharSpan, Chunk, ChunksBuilder, columns};
use groundloom_models::ModelPool;
use groundloom_spec::Config;
use groundloom_syntax::{Doc, NounChunk};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    captions::{Captions, embedded_parser, window_of},
    inputs::{self, Texts},
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::Window,
};

/// Finds the noun chunks of a caption: "a dog in a field of flowers" has a dog / a field / flowers.
///
/// A noun chunk runs from the left edge of a noun, proper noun or pronoun to that noun, as spaCy defines it for English; the parse is that of spaCy's
/// `en_core_web_sm` 3.8.0, which is inside the program. An empty caption has no chunks; a row without a caption goes to quarantine.
/// Each chunk also carries the lemma of its head noun, the span of the head's whole subtree and whether the head has conjuncts, so that nothing is parsed twice.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NounChunks {
    /// Column with the caption.
    #[serde(default = "default_text")]
    pub text: String,
    /// Column to write: `list<struct<start, end, text, root, lemma, subtree_start, subtree_end, has_conjunct, has_children>>`, in text order. Positions count
    /// characters (Unicode scalar values, as Python does), ends exclusive.
    #[serde(default = "default_output")]
    pub output: String,
    /// The longest caption that is parsed, in characters; a longer one goes to quarantine (`text_too_long`). spaCy itself stops at 1,000,000.
    #[serde(default = "default_max_chars")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_chars: u32,
}

pub(crate) fn default_text() -> String {
    "caption".to_owned()
}

fn default_output() -> String {
    "chunks".to_owned()
}

pub(crate) fn default_max_chars() -> u32 {
    10_000
}

impl Config for NounChunks {
    const NAME: &'static str = "noun_chunks";
    const SUMMARY: &'static str = "Find the noun chunks of a caption";
    const EXAMPLE: &'static str = "chunks: { type: noun_chunks, text: caption }";
}

impl Stage for NounChunks {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "text", &self.text, Texts::check_type)?;
        Ok(vec![columns::column(&self.output, columns::chunks_type())])
    }

    fn open(&self, _input: SchemaRef, _models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Arc::new(Chunking { config: self.clone(), captions: Captions::open(&self.text, self.max_chars)? }))
    }

    fn window(&self) -> usize {
        window_of(self.max_chars)
    }

    fn models(&self) -> Result<Vec<String>, StageError> {
        Ok(vec![embedded_parser()?.model_id().to_owned()])
    }

    fn notes(&self) -> Vec<String> {
        vec!["Noun chunks come from spaCy's en_core_web_sm 3.8.0; GrIT's authors used en_core_web_trf, whose chunks differ in places.".to_owned()]
    }
}

#[derive(Debug)]
struct Chunking {
    config: NounChunks,
    captions: Captions,
}

/// Appends the chunks of a parsed caption as one row; returns how many.
fn append_chunks(doc: &Doc, output: &mut ChunksBuilder) -> usize {
    let found = doc.noun_chunks();
    let lemmas: Vec<String> = found
        .iter()
        .map(|chunk| doc.token(chunk.root).map_or_else(String::new, |head| head.lemma().to_lowercase()))
        .collect();
    let chunks: Vec<Chunk<'_>> = found.iter().zip(&lemmas).map(|(chunk, lemma)| facts(doc, chunk, lemma)).collect();
    output.append_row(&chunks);
    chunks.len()
}

fn facts<'a>(doc: &'a Doc, chunk: &NounChunk, lemma: &'a str) -> Chunk<'a> {
    let span = CharSpan { start: chunk.start_char, end: chunk.end_char };
    let subtree = doc.char_span(doc.subtree_span(chunk.root)).unwrap_or(span.start..span.end);
    // A tree with crossing arcs can leave a part of the chunk outside its head's subtree.
    let subtree = CharSpan { start: subtree.start.min(span.start), end: subtree.end.max(span.end) };
    Chunk {
        span,
        text: chunk.text(doc),
        root: doc.token(chunk.root).map_or("", |head| head.text()),
        lemma,
        subtree,
        has_conjunct: doc.has_conjunct(chunk.root),
        has_children: subtree != span,
    }
}

#[async_trait]
impl RowWise for Chunking {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let (mut window, mut output) = (Window::default(), ChunksBuilder::new());
        let texts = Texts::try_new(inputs::column(rows, &self.config.text)?)
            .map_err(inputs::type_changed(&self.config.text))?;
        for (row, doc) in self.captions.parse(&texts, rows.num_rows()).into_iter().enumerate() {
            match window.settle(row, doc) {
                Some(doc) => {
                    let chunks = append_chunks(&doc, &mut output);
                    window.count("chunks", chunks);
                    window.count("caption_without_chunk", usize::from(chunks == 0));
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

    use groundloom_data::{CharIndex, ChunksView};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{fixtures, stage::codes};

    fn stage(config: serde_json::Value) -> NounChunks {
        serde_json::from_value(config).unwrap()
    }

    fn run(caption: &str) -> ArrayRef {
        let outcome =
            fixtures::run(&stage(json!({})), &fixtures::rows([("caption", fixtures::texts([Some(caption)]))]));
        assert_eq!(outcome.failures, []);
        Arc::clone(&outcome.columns[0])
    }

    #[test]
    fn a_caption_gives_its_chunks_with_their_subtrees() {
        let chunks = fixtures::json(&run("a dog in a field of flowers"));
        assert_eq!(chunks, [fixtures::dog_chunks()]);
    }

    /// Answers of spaCy 3.8 with en_core_web_sm 3.8.0: (caption, chunk / lemma of the head / subtree / conjunct).
    #[test]
    fn chunks_carry_what_spacy_says() {
        type Fact<'a> = (&'a str, &'a str, &'a str, bool);
        let cases: &[(&str, &[Fact<'_>])] = &[
            (
                "Two black cats and a dog",
                &[("Two black cats", "cat", "Two black cats and a dog", true), ("a dog", "dog", "a dog", true)],
            ),
            // The bracket misleads the model: the hat is no longer the object of "with".
            (
                "A woman (left) with a red hat sits.",
                &[("A woman", "woman", "A woman (left) with", false), ("a red hat", "hat", "a red hat", false)],
            ),
            (
                "A dog in a field of flowers.",
                &[
                    ("A dog", "dog", "A dog in a field of flowers.", false),
                    ("a field", "field", "a field of flowers", false),
                    ("flowers", "flower", "flowers", false),
                ],
            ),
            (
                "\"A dog in snow\" by Ann Lee",
                &[
                    ("\"A dog", "dog", "\"A dog in snow\" by Ann Lee", false),
                    ("snow", "snow", "snow", false),
                    ("Ann Lee", "lee", "Ann Lee", false),
                ],
            ),
            (
                "A group of people (some with umbrellas) standing in the rain.",
                &[
                    ("A group", "group", "A group of people (some with umbrellas) standing in the rain.", false),
                    ("people", "people", "people", false),
                    ("some", "some", "some with umbrellas)", false),
                    ("umbrellas", "umbrella", "umbrellas", false),
                    ("the rain", "rain", "the rain", false),
                ],
            ),
            (
                "a view of Washington D.C.",
                &[
                    ("a view", "view", "a view of Washington D.C.", false),
                    ("Washington D.C.", "d.c.", "Washington D.C.", false),
                ],
            ),
        ];
        for (caption, expected) in cases {
            let column = run(caption);
            let view = ChunksView::try_new(&column).unwrap();
            let index = CharIndex::new(caption);
            let found: Vec<_> = view
                .row(0)
                .unwrap()
                .unwrap()
                .iter()
                .map(|c| (c.text, c.lemma, index.slice(c.subtree).unwrap(), c.has_conjunct))
                .collect();
            assert_eq!(found, *expected, "{caption}");
        }
    }

    #[test]
    fn captions_that_cannot_be_parsed_fail_alone() {
        let long = "a dog ".repeat(4);
        let captions = fixtures::texts([Some("a dog"), None, Some(""), Some(&long), Some(" \t\n"), Some("a cat")]);
        let outcome = fixtures::run(
            &stage(json!({"text": "t", "output": "c", "max_chars": 20})),
            &fixtures::rows([("t", captions)]),
        );
        assert_eq!(
            fixtures::failures(&outcome),
            [
                (
                    1,
                    codes::MISSING_VALUE,
                    "expected a value in column `t`, found null; give each row a caption, or an empty text"
                ),
                (
                    3,
                    codes::TEXT_TOO_LONG,
                    "column `t`: expected at most 20 characters, found 24; shorten the text or raise `max_chars`"
                ),
            ]
        );
        let lengths: Vec<usize> =
            fixtures::json(&outcome.columns[0]).iter().map(|row| row.as_array().map_or(9, Vec::len)).collect();
        assert_eq!(lengths, [1, 9, 0, 9, 0, 1]);
        assert_eq!(fixtures::counts(&outcome), [("caption_without_chunk", 2), ("chunks", 2)]);
    }

    #[test]
    fn a_window_of_the_longest_captions_fits_a_column() {
        for max_chars in [1, 10_000, 1_000_000] {
            let window = stage(json!({ "max_chars": max_chars })).window();
            assert!(
                (1..=1024).contains(&window) && window * max_chars * 4 < i32::MAX as usize,
                "{max_chars}: {window}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn spans_stand_where_the_texts_stand(caption in "(?s)([a-zA-Z]{1,7}| a | the |,|\\.|🐶|👩🏽\u{200D}🚀|שלום|كلب|é|\u{0}|\t|\n|  |\\(|\\)|\"|\u{200F}){0,16}") {
            let column = run(&caption);
            let view = ChunksView::try_new(&column).unwrap();
            let index = CharIndex::new(&caption);
            let chunks = view.row(0).unwrap().unwrap();
            prop_assert!(chunks.windows(2).all(|w| w[0].span.end <= w[1].span.start));
            for chunk in chunks {
                prop_assert_eq!(index.slice(chunk.span), Some(chunk.text));
                prop_assert!(chunk.text.ends_with(chunk.root) && chunk.subtree.contains(&chunk.span) && index.slice(chunk.subtree).is_some());
                prop_assert_eq!(chunk.has_children, chunk.subtree != chunk.span);
            }
        }
    }
}
