//! `filter_boxes`: checks boxes, ties them to noun chunks, and keeps the sure ones that do not overlap better ones.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{BoxesBuilder, BoxesView, CharSpan, Chunk, ChunksView, GroundedBox, columns};
use groundloom_models::ModelPool;
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    inputs,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    suppression::suppress,
    window::{Fault, Window},
};

/// A row with more boxes than this is refused: suppression compares pairs, and no detector means that many.
pub const MAX_BOXES_PER_ROW: usize = 10_000;

/// Keeps the boxes above a score, and of boxes that overlap the best, whichever phrase they answer (non-maximum suppression across phrases, as GrIT does).
/// The boxes that stay are ordered by descending score.
///
/// It is also the gate for boxes that another program made. Each may name its phrase by `chunk` (index into the chunks), by `start` and `end` (characters of the
/// caption), or by `phrase` (text; the first chunk with that text, whatever the case). A box that matches no chunk is dropped and counted as `box_without_chunk`.
/// A box that is none sends its row to quarantine (`invalid_value`): not a number, outside the image, corners the wrong way round, a score outside [0, 1].
/// A box of no area is dropped and counted as `empty_box`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterBoxes {
    /// Column with the boxes: `list<struct<x1, y1, x2, y2, score, label, chunk | start, end | phrase>>`, fractions of the oriented image's size. It is replaced by
    /// `list<struct<chunk, label, score, x1, y1, x2, y2>>`. Where `score` is no field, every box counts as certain (1.0).
    #[serde(default = "default_boxes")]
    pub boxes: String,
    /// Column with the noun chunks that the boxes answer.
    #[serde(default = "default_chunks")]
    pub chunks: String,
    /// The smallest score that is kept, from 0 to 1. The default is GrIT's, on the scores of GLIP; other detectors need other thresholds
    /// (0.45 for the embedded `ssd-mobilenet-v2-oidv4`). A score that is equal stays, as in Kosmos-2's loader.
    #[serde(default = "default_min_score")]
    #[schemars(range(min = 0, max = 1))]
    pub min_score: f64,
    /// A box is dropped when its intersection over union with a better one is above this, from 0 to 1; 1 turns it off. Equal scores go in the order of the column: of
    /// two phrases with the very same box and score (a class detector gives "a man" and "the player" both *Person*) the earlier keeps it.
    /// GrIT's value is unpublished; 0.5 is the usual one.
    #[serde(default = "default_nms_iou")]
    #[schemars(range(min = 0, max = 1))]
    pub nms_iou: f64,
    /// The smallest area that is kept, as a fraction of the image's; 0 keeps all that have one.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    pub min_area: f64,
    /// Keep at most this many boxes of an image, the best ones; none means all.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_boxes: Option<u32>,
}

fn default_boxes() -> String {
    "boxes".to_owned()
}

fn default_chunks() -> String {
    "chunks".to_owned()
}

fn default_min_score() -> f64 {
    0.65
}

fn default_nms_iou() -> f64 {
    0.5
}

impl Config for FilterBoxes {
    const NAME: &'static str = "filter_boxes";
    const SUMMARY: &'static str = "Keep boxes above a score that overlap no better one, across phrases";
    const EXAMPLE: &'static str = "confident: { type: filter_boxes, min_score: 0.45, nms_iou: 0.5 }";
}

/// The boxes of one row that stay, and how many went why.
#[derive(Debug, Default, PartialEq)]
pub struct Kept<'a> {
    /// By descending score; each has its `chunk`.
    pub boxes: Vec<GroundedBox<'a>>,
    /// Boxes whose phrase is no chunk.
    pub without_chunk: usize,
    /// Boxes of no area.
    pub empty: usize,
    /// Boxes below the score.
    pub below_min_score: usize,
    /// Boxes below the area.
    pub below_min_area: usize,
    /// Boxes that overlap a better one.
    pub suppressed: usize,
    /// Boxes beyond the number.
    pub over_max_boxes: usize,
}

impl FilterBoxes {
    /// Ties `boxes` to `chunks` and keeps those that pass.
    ///
    /// # Errors
    /// A sentence for a box whose `chunk` is no index into `chunks`, or for too many boxes.
    pub fn keep<'a>(&self, boxes: Vec<GroundedBox<'a>>, chunks: &[Chunk<'_>]) -> Result<Kept<'a>, String> {
        if boxes.len() > MAX_BOXES_PER_ROW {
            return Err(format!(
                "expected at most {MAX_BOXES_PER_ROW} boxes in a row, found {}; lower the detector's output",
                boxes.len()
            ));
        }
        let (mut kept, mut candidates) = (Kept::default(), Vec::with_capacity(boxes.len()));
        let phrases = Phrases::new(chunks);
        for (entry, mut candidate) in boxes.into_iter().enumerate() {
            let Some(chunk) = phrases.chunk_of(&candidate).map_err(|message| format!("entry {entry}: {message}"))?
            else {
                kept.without_chunk += 1;
                continue;
            };
            candidate.chunk = Some(chunk);
            candidate.label = candidate.label.or(candidate.phrase);
            let area = candidate.rect.area();
            if area <= 0.0 {
                kept.empty += 1;
            } else if candidate.score < self.min_score as f32 {
                kept.below_min_score += 1;
            } else if area < self.min_area as f32 {
                kept.below_min_area += 1;
            } else {
                candidates.push(candidate);
            }
        }
        let rects: Vec<_> = candidates.iter().map(|b| b.rect).collect();
        let scores: Vec<_> = candidates.iter().map(|b| b.score).collect();
        let mut order = suppress(&rects, &scores, self.nms_iou as f32);
        kept.suppressed = candidates.len() - order.len();
        if let Some(limit) = self.max_boxes.and_then(|m| usize::try_from(m).ok()) {
            kept.over_max_boxes = order.len().saturating_sub(limit);
            order.truncate(limit);
        }
        kept.boxes = order.into_iter().map(|at| candidates[at]).collect();
        Ok(kept)
    }
}

/// Finds the chunk that a box speaks of.
struct Phrases {
    chunks: usize,
    by_span: HashMap<CharSpan, usize>,
    by_text: HashMap<String, usize>,
}

impl Phrases {
    fn new(chunks: &[Chunk<'_>]) -> Self {
        // Reversed, so that of equal texts the first stays.
        Self {
            chunks: chunks.len(),
            by_span: chunks.iter().enumerate().rev().map(|(at, c)| (c.span, at)).collect(),
            by_text: chunks.iter().enumerate().rev().map(|(at, c)| (c.text.to_lowercase(), at)).collect(),
        }
    }

    fn chunk_of(&self, grounded: &GroundedBox<'_>) -> Result<Option<usize>, String> {
        if let Some(chunk) = grounded.chunk {
            return if chunk < self.chunks {
                Ok(Some(chunk))
            } else {
                Err(format!("expected `chunk` to be an index into the row's {} chunks, found {chunk}", self.chunks))
            };
        }
        let by_span = grounded.span.and_then(|span| self.by_span.get(&span));
        let by_text = || grounded.phrase.and_then(|phrase| self.by_text.get(&phrase.trim().to_lowercase()));
        Ok(by_span.or_else(by_text).copied())
    }
}

impl Stage for FilterBoxes {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "boxes", &self.boxes, BoxesView::check_type)?;
        inputs::require(input, "chunks", &self.chunks, ChunksView::check_type)?;
        Ok(vec![columns::column(&self.boxes, columns::boxes_type())])
    }

    fn open(&self, _input: SchemaRef, _models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Arc::new(Filtering { config: self.clone() }))
    }

    fn notes(&self) -> Vec<String> {
        vec![format!(
            "Boxes were kept from a score of {} and suppressed across phrases above an IoU of {}; GrIT's authors kept GLIP's boxes above 0.65 and did not publish their IoU.",
            self.min_score, self.nms_iou
        )]
    }
}

#[derive(Debug)]
struct Filtering {
    config: FilterBoxes,
}

impl Filtering {
    fn row<'a>(&self, boxes: &'a BoxesView, chunks: &ChunksView, row: usize) -> Result<Kept<'a>, Fault> {
        let FilterBoxes { boxes: boxes_column, chunks: chunks_column, .. } = &self.config;
        let given = boxes.row(row).map_err(|e| Fault::invalid(boxes_column, e))?;
        let given = given.ok_or_else(|| Fault::missing(boxes_column, "write an empty list where there is no box"))?;
        let chunks = chunks.row(row).map_err(|e| Fault::invalid(chunks_column, e))?;
        let chunks = chunks.ok_or_else(|| Fault::missing(chunks_column, "run noun_chunks before"))?;
        self.config.keep(given, &chunks).map_err(|e| Fault::invalid(boxes_column, e))
    }
}

#[async_trait]
impl RowWise for Filtering {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let FilterBoxes { boxes: boxes_column, chunks: chunks_column, .. } = &self.config;
        let boxes =
            BoxesView::try_new(inputs::column(rows, boxes_column)?).map_err(inputs::type_changed(boxes_column))?;
        let chunks =
            ChunksView::try_new(inputs::column(rows, chunks_column)?).map_err(inputs::type_changed(chunks_column))?;
        let (mut window, mut output) = (Window::default(), BoxesBuilder::new());
        for row in 0..rows.num_rows() {
            match window.settle(row, self.row(&boxes, &chunks, row)) {
                Some(kept) => {
                    window.count("boxes", kept.boxes.len());
                    window.count("box_without_chunk", kept.without_chunk);
                    window.count("empty_box", kept.empty);
                    window.count("below_min_score", kept.below_min_score);
                    window.count("below_min_area", kept.below_min_area);
                    window.count("overlaps_better_box", kept.suppressed);
                    window.count("over_max_boxes", kept.over_max_boxes);
                    output.append_row(&kept.boxes);
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

    use arrow::datatypes::{DataType, Field};
    use groundloom_data::Box2d;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{fixtures, stage::codes};

    fn stage(config: Value) -> FilterBoxes {
        serde_json::from_value(config).unwrap()
    }

    fn boxed(chunk: usize, score: f64, x1: f64, y1: f64, x2: f64, y2: f64) -> Value {
        json!({"chunk": chunk, "score": score, "x1": x1, "y1": y1, "x2": x2, "y2": y2})
    }

    fn run(config: Value, boxes: Value) -> Outcome {
        let rows = fixtures::rows([
            ("chunks", fixtures::column(columns::chunks_type(), [fixtures::dog_chunks()])),
            ("boxes", fixtures::column(columns::boxes_type(), [boxes])),
        ]);
        fixtures::run(&stage(config), &rows)
    }

    fn chunks_and_scores(outcome: &Outcome) -> Vec<(u64, f64)> {
        let row = fixtures::json(&outcome.columns[0]).remove(0);
        row.as_array()
            .unwrap()
            .iter()
            .map(|b| (b["chunk"].as_u64().unwrap(), (b["score"].as_f64().unwrap() * 100.0).round() / 100.0))
            .collect()
    }

    /// A config, the (chunk, score) pairs that stay, and the counts.
    type Case<'a> = (Value, &'a [(u64, f64)], &'a [(&'a str, u64)]);

    #[test]
    fn boxes_are_kept_by_score_area_overlap_and_number() {
        let boxes = json!([
            boxed(0, 0.7, 0.0, 0.0, 0.5, 1.0),
            boxed(1, 0.9, 0.02, 0.0, 0.5, 1.0), // nearly the first
            boxed(1, 0.64, 0.5, 0.0, 1.0, 1.0),
            boxed(2, 0.65, 0.9, 0.9, 1.0, 1.0), // an equal score stays
            boxed(2, 0.99, 0.9, 0.9, 0.9, 1.0),
        ]);
        let cases: &[Case<'_>] = &[
            (
                json!({}),
                &[(1, 0.9), (2, 0.65)],
                &[("below_min_score", 1), ("boxes", 2), ("empty_box", 1), ("overlaps_better_box", 1)],
            ),
            (
                json!({"nms_iou": 1}),
                &[(1, 0.9), (0, 0.7), (2, 0.65)],
                &[("below_min_score", 1), ("boxes", 3), ("empty_box", 1)],
            ),
            (
                json!({"min_score": 0}),
                &[(1, 0.9), (2, 0.65), (1, 0.64)],
                &[("boxes", 3), ("empty_box", 1), ("overlaps_better_box", 1)],
            ),
            (
                json!({"min_score": 0.0, "min_area": 0.1}),
                &[(1, 0.9), (1, 0.64)],
                &[("below_min_area", 1), ("boxes", 2), ("empty_box", 1), ("overlaps_better_box", 1)],
            ),
            (
                json!({"max_boxes": 1}),
                &[(1, 0.9)],
                &[
                    ("below_min_score", 1),
                    ("boxes", 1),
                    ("empty_box", 1),
                    ("over_max_boxes", 1),
                    ("overlaps_better_box", 1),
                ],
            ),
        ];
        for (config, expected, counts) in cases {
            let outcome = run(config.clone(), boxes.clone());
            assert_eq!(chunks_and_scores(&outcome), *expected, "{config}");
            assert_eq!(fixtures::counts(&outcome), *counts, "{config}");
        }
    }

    #[test]
    fn one_box_for_two_phrases_goes_to_the_earlier_in_the_column() {
        let outcome = run(json!({}), json!([boxed(2, 0.8, 0.1, 0.1, 0.4, 0.4), boxed(0, 0.8, 0.1, 0.1, 0.4, 0.4)]));
        assert_eq!(chunks_and_scores(&outcome), [(2, 0.8)]);
    }

    #[test]
    fn an_empty_list_is_no_fault() {
        let outcome = run(json!({}), json!([]));
        assert_eq!((chunks_and_scores(&outcome), outcome.failures.len()), (vec![], 0));
    }

    #[test]
    fn boxes_of_an_outside_detector_find_their_phrase() {
        let fields = [("phrase", DataType::Utf8), ("start", DataType::Int64), ("end", DataType::Int64)]
            .into_iter()
            .chain(["x1", "y1", "x2", "y2"].map(|name| (name, DataType::Float64)))
            .map(|(name, data_type)| Field::new(name, data_type, true));
        let outside = DataType::List(Arc::new(Field::new("item", DataType::Struct(fields.collect()), true)));
        let with = |x1: f64, mut more: Value| {
            let corners = json!({"x1": x1, "y1": 0.0, "x2": x1 + 0.1, "y2": 1.0});
            more.as_object_mut().unwrap().extend(corners.as_object().unwrap().clone());
            more
        };
        let boxes = json!([
            with(0.0, json!({"phrase": " A Field "})),
            with(0.2, json!({"start": 0, "end": 5, "phrase": "whatever"})),
            with(0.4, json!({"start": 1, "end": 5, "phrase": "flowers"})),
            with(0.6, json!({"phrase": "a cat"})),
            with(0.8, json!({})),
        ]);
        let rows = fixtures::rows([
            ("chunks", fixtures::column(columns::chunks_type(), [fixtures::dog_chunks()])),
            ("found", fixtures::column(outside, [boxes])),
        ]);
        let outcome = fixtures::run(&stage(json!({"boxes": "found"})), &rows);
        assert_eq!(chunks_and_scores(&outcome), [(1, 1.0), (0, 1.0), (2, 1.0)], "without scores all are certain");
        assert_eq!(fixtures::counts(&outcome), [("box_without_chunk", 2), ("boxes", 3)]);
        let labels: Vec<Value> =
            fixtures::json(&outcome.columns[0])[0].as_array().unwrap().iter().map(|b| b["label"].clone()).collect();
        assert_eq!(labels, [" A Field ", "whatever", "flowers"]);
    }

    #[test]
    fn what_is_no_box_sends_its_row_to_quarantine() {
        let cases = [
            (
                json!([boxed(3, 0.9, 0.0, 0.0, 1.0, 1.0)]),
                "entry 0: expected `chunk` to be an index into the row's 3 chunks, found 3",
            ),
            (
                json!([boxed(0, 0.9, 0.0, 0.0, 0.5, 0.5), boxed(0, 0.9, 0.0, 0.0, 320.0, 1.0)]),
                "entry 1: expected box coordinates in [0, 1]",
            ),
            (json!([boxed(0, 0.9, 0.6, 0.0, 0.5, 1.0)]), "x1 = 0.6 and x2 = 0.5"),
            (json!([boxed(0, 1.9, 0.0, 0.0, 0.5, 1.0)]), "score in [0, 1], found 1.9"),
            (json!([{"chunk": -1, "score": 0.5, "x1": 0, "y1": 0, "x2": 1, "y2": 1}]), "`chunk`, found -1"),
            (json!([null]), "entry 0: expected a struct, found null"),
        ];
        for (boxes, message) in cases {
            let outcome = run(json!({}), boxes);
            let failures = fixtures::failures(&outcome);
            assert_eq!(failures.len(), 1, "{message}");
            assert_eq!(failures[0].1, codes::INVALID_VALUE);
            assert!(
                failures[0].2.starts_with("column `boxes`, ") && failures[0].2.contains(message),
                "{}",
                failures[0].2
            );
        }
        let outcome = run(json!({}), json!(null));
        assert_eq!(outcome.failures[0].code, codes::MISSING_VALUE);
        let rect = Box2d::new(0.0, 0.0, 1.0, 1.0).unwrap();
        let one = GroundedBox { chunk: Some(0), span: None, phrase: None, label: None, score: 1.0, rect };
        assert!(
            stage(json!({})).keep(vec![one; MAX_BOXES_PER_ROW + 1], &[]).unwrap_err().contains("at most 10000 boxes")
        );
    }

    #[test]
    fn missing_columns_are_found_before_any_work() {
        let schema = Schema::new(vec![
            columns::column("chunks", columns::chunks_type()),
            columns::column("text", DataType::Utf8),
        ]);
        let error = stage(json!({})).outputs(&schema).unwrap_err();
        assert_eq!(
            (error.key, error.message.as_str()),
            ("boxes", "there is no column `boxes` here, only `chunks`, `text`")
        );
        let error = stage(json!({"boxes": "text"})).outputs(&schema).unwrap_err();
        assert!(error.message.starts_with("column `text`: expected boxes: list<struct<"), "{}", error.message);
    }

    proptest! {
        #[test]
        fn no_box_is_invented_or_moved(
            given in prop::collection::vec((0_usize..3, 0.0_f32..=1.0, 0.0_f32..0.5, 0.0_f32..0.5, 0.0_f32..0.5, 0.0_f32..0.5), 0..20),
            min_score in 0.0_f64..1.0, nms_iou in 0.0_f64..1.0, min_area in 0.0_f64..0.2, max_boxes in prop::option::of(1_u32..8),
        ) {
            let config = stage(json!({"min_score": min_score, "nms_iou": nms_iou, "min_area": min_area, "max_boxes": max_boxes}));
            let span = CharSpan { start: 0, end: 1 };
            let chunk = Chunk { span, text: "a", root: "a", lemma: "a", subtree: span, has_conjunct: false, has_children: false };
            let boxes: Vec<GroundedBox<'_>> = given.iter().map(|&(chunk, score, x, y, w, h)| GroundedBox {
                chunk: Some(chunk), span: None, phrase: None, label: Some("l"), score, rect: Box2d::new(x, y, x + w, y + h).unwrap(),
            }).collect();
            let kept = config.keep(boxes.clone(), &[chunk; 3]).unwrap();
            prop_assert!(kept.boxes.iter().all(|b| boxes.contains(b) && b.score >= min_score as f32 && b.rect.area() >= min_area as f32));
            prop_assert!(kept.boxes.windows(2).all(|w| w[0].score >= w[1].score));
            let gone = kept.without_chunk + kept.empty + kept.below_min_score + kept.below_min_area + kept.suppressed + kept.over_max_boxes;
            prop_assert_eq!(kept.boxes.len() + gone, boxes.len());
            prop_assert!(max_boxes.is_none_or(|m| kept.boxes.len() <= m as usize));
        }
    }
}
