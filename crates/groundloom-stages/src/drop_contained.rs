//! `drop_contained`: of expressions inside one another, keeps one.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{
    BoxesView, CharIndex, CharSpan, Chunk, ChunksView, Expression, ExpressionsBuilder, ExpressionsView, columns,
};
use groundloom_models::ModelPool;
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    containment::{Candidate, most_boxes, outermost},
    inputs,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// Settles which of several nested expressions stay. Boxes are not touched: each belongs to a chunk, and stays reachable through the expression of that chunk.
///
/// An expression whose chunk has no box any more is dropped first, in every form (`expression_without_box`): a contained expression comes back when the outer one
/// lost its box, as in Kosmos-2's loader, which filters by score before it looks at containment.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DropContained {
    /// Column with the expressions, as `expand_expressions` writes it; it is replaced.
    #[serde(default = "default_expressions")]
    pub expressions: String,
    /// Column with the boxes of the chunks.
    #[serde(default = "default_boxes")]
    pub boxes: String,
    /// Column with the noun chunks. Only `form: most` reads it.
    #[serde(default = "default_chunks")]
    pub chunks: String,
    /// Which expressions stay.
    #[serde(default)]
    pub form: ContainmentForm,
}

/// Which expressions stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainmentForm {
    /// Those that no other, different span covers, as in Kosmos-2's paper and training loader. Equal spans all stay.
    /// "a dog in a field of flowers" stays, "a field of flowers" and "flowers" go.
    #[default]
    Loader,
    /// All of them: one per chunk with a box, as in the released GrIT files, where `ref_exps` matches `noun_chunks` one to one.
    Release,
    /// As many boxes as possible on spans that overlap nowhere, as Qwen-VL cleans GrIT: an expression that is in the way shrinks to its noun chunk. "a dog", "a field"
    /// and "flowers" stay. Among equal numbers of boxes the longest texts win (that tie is ours; Qwen publishes no code).
    Most,
}

fn default_expressions() -> String {
    "expressions".to_owned()
}

fn default_boxes() -> String {
    "boxes".to_owned()
}

fn default_chunks() -> String {
    "chunks".to_owned()
}

impl Config for DropContained {
    const NAME: &'static str = "drop_contained";
    const SUMMARY: &'static str = "Of expressions inside one another, keep the outermost, all, or the most boxes";
    const EXAMPLE: &'static str = "outermost: { type: drop_contained, form: loader }";
}

/// The expressions that no other, different span covers, in their order ([`ContainmentForm::Loader`]).
pub fn keep_outermost<'a>(expressions: &[Expression<'a>]) -> Vec<Expression<'a>> {
    let spans: Vec<CharSpan> = expressions.iter().map(|e| e.span).collect();
    expressions.iter().zip(outermost(&spans)).filter(|(_, stays)| *stays).map(|(e, _)| *e).collect()
}

/// The choice of spans that overlap nowhere and carry the most boxes ([`ContainmentForm::Most`]), in text order; `boxes` has the number of boxes by chunk.
///
/// Each expression may stay as it is or shrink to the part of it that is its noun chunk.
pub fn keep_most_boxes<'a>(
    expressions: &[Expression<'a>],
    chunks: &[Chunk<'_>],
    boxes: &HashMap<usize, u64>,
) -> Vec<Expression<'a>> {
    let mut options = Vec::with_capacity(2 * expressions.len());
    for expression in expressions {
        options.push(*expression);
        options.extend(chunks.get(expression.chunk).and_then(|chunk| narrowed(expression, chunk)));
    }
    let candidates: Vec<Candidate> =
        options.iter().map(|e| Candidate { span: e.span, boxes: boxes.get(&e.chunk).copied().unwrap_or(0) }).collect();
    most_boxes(&candidates).into_iter().map(|at| options[at]).collect()
}

/// The part of an expression that is its noun chunk, where that is less than all of it.
fn narrowed<'a>(expression: &Expression<'a>, chunk: &Chunk<'_>) -> Option<Expression<'a>> {
    let span = CharSpan::new(chunk.span.start.max(expression.span.start), chunk.span.end.min(expression.span.end))?;
    if span.is_empty() || span == expression.span {
        return None;
    }
    let inside = CharSpan::new(span.start - expression.span.start, span.end - expression.span.start)?;
    let text = CharIndex::new(expression.text).slice(inside)?;
    Some(Expression { span, text, chunk: expression.chunk })
}

impl Stage for DropContained {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "expressions", &self.expressions, ExpressionsView::check_type)?;
        inputs::require(input, "boxes", &self.boxes, BoxesView::check_type)?;
        if self.form == ContainmentForm::Most {
            inputs::require(input, "chunks", &self.chunks, ChunksView::check_type)?;
        }
        Ok(vec![columns::column(&self.expressions, columns::expressions_type())])
    }

    fn open(&self, _input: SchemaRef, _models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Arc::new(Settling { config: self.clone() }))
    }

    fn notes(&self) -> Vec<String> {
        let note = match self.form {
            ContainmentForm::Loader => {
                "Expressions inside other expressions were dropped, as Kosmos-2's training loader does; the released GrIT files still hold them."
            }
            ContainmentForm::Release => {
                "Expressions inside other expressions were kept, as in the released GrIT files."
            }
            ContainmentForm::Most => {
                "Nested expressions were resolved for the most boxes, as Qwen-VL does with GrIT, and not for the outermost, as Kosmos-2 does."
            }
        };
        vec![note.to_owned()]
    }
}

#[derive(Debug)]
struct Settling {
    config: DropContained,
}

/// The open columns of a window.
struct Columns {
    expressions: ExpressionsView,
    boxes: BoxesView,
    chunks: Option<ChunksView>,
}

/// What stays of a row, and how many expressions went or shrank why.
struct Settled<'a> {
    expressions: Vec<Expression<'a>>,
    without_box: usize,
    contained: usize,
    narrowed: usize,
}

impl Settling {
    fn row<'a>(&self, columns: &'a Columns, row: usize) -> Result<Settled<'a>, Fault> {
        let DropContained { expressions: name, boxes: boxes_name, chunks: chunks_name, form } = &self.config;
        let given = columns.expressions.row(row).map_err(|e| Fault::invalid(name, e))?;
        let mut given = given.ok_or_else(|| Fault::missing(name, "run expand_expressions before"))?;
        for (entry, expression) in given.iter().enumerate() {
            // Spans and texts of an outside column may disagree; narrowing would then cut the wrong text.
            let characters = expression.text.chars().count();
            if characters != expression.span.len() {
                let CharSpan { start, end } = expression.span;
                return Err(Fault::invalid(
                    name,
                    format!(
                        "entry {entry}: expected a text of {} characters for {start}..{end}, found {characters}",
                        end - start
                    ),
                ));
            }
        }
        let boxes = columns.boxes.row(row).map_err(|e| Fault::invalid(boxes_name, e))?;
        let boxes = boxes.ok_or_else(|| Fault::missing(boxes_name, "write an empty list where there is no box"))?;
        let mut per_chunk: HashMap<usize, u64> = HashMap::new();
        for chunk in boxes.iter().filter_map(|b| b.chunk) {
            *per_chunk.entry(chunk).or_default() += 1;
        }
        let before = given.len();
        given.retain(|e| per_chunk.contains_key(&e.chunk));
        let (without_box, before) = (before - given.len(), given.len());
        let expressions = match (form, &columns.chunks) {
            (ContainmentForm::Release, _) => given.clone(),
            (ContainmentForm::Most, Some(chunks)) => {
                let chunks = chunks
                    .row(row)
                    .map_err(|e| Fault::invalid(chunks_name, e))?
                    .ok_or_else(|| Fault::missing(chunks_name, "run noun_chunks before"))?;
                keep_most_boxes(&given, &chunks, &per_chunk)
            }
            (ContainmentForm::Loader | ContainmentForm::Most, _) => keep_outermost(&given),
        };
        let narrowed = expressions.iter().filter(|e| !given.contains(e)).count();
        Ok(Settled { without_box, contained: before - expressions.len(), narrowed, expressions })
    }
}

#[async_trait]
impl RowWise for Settling {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let DropContained { expressions, boxes, chunks, form } = &self.config;
        let columns = Columns {
            expressions: ExpressionsView::try_new(inputs::column(rows, expressions)?)
                .map_err(inputs::type_changed(expressions))?,
            boxes: BoxesView::try_new(inputs::column(rows, boxes)?).map_err(inputs::type_changed(boxes))?,
            chunks: match form {
                ContainmentForm::Most => {
                    Some(ChunksView::try_new(inputs::column(rows, chunks)?).map_err(inputs::type_changed(chunks))?)
                }
                ContainmentForm::Loader | ContainmentForm::Release => None,
            },
        };
        let (mut window, mut output) = (Window::default(), ExpressionsBuilder::new());
        for row in 0..rows.num_rows() {
            match window.settle(row, self.row(&columns, row)) {
                Some(settled) => {
                    window.count("expressions", settled.expressions.len());
                    window.count("expression_without_box", settled.without_box);
                    window.count("contained", settled.contained);
                    window.count("narrowed_to_chunk", settled.narrowed);
                    output.append_row(&settled.expressions);
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

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{fixtures, stage::codes};

    fn stage(form: &str) -> DropContained {
        serde_json::from_value(json!({ "form": form })).unwrap()
    }

    fn dog_expressions() -> Value {
        json!([
            {"start": 0, "end": 27, "text": "a dog in a field of flowers", "chunk": 0},
            {"start": 9, "end": 27, "text": "a field of flowers", "chunk": 1},
            {"start": 20, "end": 27, "text": "flowers", "chunk": 2},
        ])
    }

    fn run(form: &str, expressions: Value, chunks_with_box: &[usize]) -> Outcome {
        let boxes = chunks_with_box
            .iter()
            .map(|chunk| json!({"chunk": chunk, "score": 0.9, "x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5}))
            .collect();
        let rows = fixtures::rows([
            ("chunks", fixtures::column(columns::chunks_type(), [fixtures::dog_chunks()])),
            ("boxes", fixtures::column(columns::boxes_type(), [Value::Array(boxes)])),
            ("expressions", fixtures::column(columns::expressions_type(), [expressions])),
        ]);
        fixtures::run(&stage(form), &rows)
    }

    fn texts(outcome: &Outcome) -> Vec<String> {
        fixtures::json(&outcome.columns[0])[0]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["text"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn the_forms_keep_the_outermost_all_or_the_most_boxes() {
        type Case<'a> = (&'a str, &'a [usize], &'a [&'a str], &'a [(&'a str, u64)]);
        let whole = "a dog in a field of flowers";
        let cases: &[Case<'_>] = &[
            ("loader", &[0, 1, 2], &[whole], &[("contained", 2), ("expressions", 1)]),
            ("release", &[0, 1, 2], &[whole, "a field of flowers", "flowers"], &[("expressions", 3)]),
            ("most", &[0, 1, 2], &["a dog", "a field", "flowers"], &[("expressions", 3), ("narrowed_to_chunk", 2)]),
            // Without its box the outer expression is gone, and the inner one comes back.
            (
                "loader",
                &[1, 2],
                &["a field of flowers"],
                &[("contained", 1), ("expression_without_box", 1), ("expressions", 1)],
            ),
            ("release", &[2], &["flowers"], &[("expression_without_box", 2), ("expressions", 1)]),
            ("most", &[0], &[whole], &[("expression_without_box", 2), ("expressions", 1)]),
            (
                "most",
                &[0, 1],
                &["a dog", "a field of flowers"],
                &[("expression_without_box", 1), ("expressions", 2), ("narrowed_to_chunk", 1)],
            ),
            ("loader", &[], &[], &[("expression_without_box", 3)]),
        ];
        for (form, with_box, expected, counts) in cases {
            let outcome = run(form, dog_expressions(), with_box);
            assert_eq!(
                (texts(&outcome).as_slice(), fixtures::counts(&outcome).as_slice()),
                (expected.map_to_strings().as_slice(), *counts),
                "{form} {with_box:?}"
            );
        }
    }

    trait MapToStrings {
        fn map_to_strings(&self) -> Vec<String>;
    }

    impl MapToStrings for &[&str] {
        fn map_to_strings(&self) -> Vec<String> {
            self.iter().map(|s| (*s).to_owned()).collect()
        }
    }

    #[test]
    fn equal_spans_do_not_contain_each_other() {
        let twice = json!([{"start": 0, "end": 5, "text": "a dog", "chunk": 0}, {"start": 0, "end": 5, "text": "a dog", "chunk": 1}]);
        assert_eq!(texts(&run("loader", twice, &[0, 1])), ["a dog", "a dog"]);
    }

    #[test]
    fn narrowing_counts_characters() {
        let expression = Expression { span: CharSpan { start: 3, end: 12 }, text: "🐶é dog in", chunk: 0 };
        let span = CharSpan { start: 3, end: 9 };
        let chunk = Chunk {
            span,
            text: "🐶é dog",
            root: "dog",
            lemma: "dog",
            subtree: expression.span,
            has_conjunct: false,
            has_children: true,
        };
        assert_eq!(narrowed(&expression, &chunk), Some(Expression { span, text: "🐶é dog", chunk: 0 }));
    }

    #[test]
    fn rows_that_contradict_themselves_fail() {
        let cases = [
            (json!(null), codes::MISSING_VALUE, "run expand_expressions before"),
            (
                json!([{"start": 0, "end": 9, "text": "a dog", "chunk": 0}]),
                codes::INVALID_VALUE,
                "entry 0: expected a text of 9 characters for 0..9, found 5",
            ),
            (json!([{"start": 9, "end": 3, "text": "a dog", "chunk": 0}]), codes::INVALID_VALUE, "entry 0"),
        ];
        for (expressions, code, message) in cases {
            let outcome = run("loader", expressions, &[0]);
            assert_eq!(outcome.failures[0].code, code);
            assert!(outcome.failures[0].message.contains(message), "{}", outcome.failures[0].message);
        }
    }

    #[test]
    fn only_the_form_most_needs_the_chunks() {
        let schema = Schema::new(vec![
            columns::column("expressions", columns::expressions_type()),
            columns::column("boxes", columns::boxes_type()),
        ]);
        assert!(stage("loader").outputs(&schema).is_ok() && stage("release").outputs(&schema).is_ok());
        assert_eq!(stage("most").outputs(&schema).unwrap_err().key, "chunks");
    }

    proptest! {
        #[test]
        fn settling_twice_changes_nothing(spans in prop::collection::vec((0_usize..10, 1_usize..6, 0_usize..4), 0..8)) {
            let text = "abcdefghijklmnop";
            let expressions: Vec<Expression<'_>> = spans.iter().map(|&(start, len, chunk)| {
                Expression { span: CharSpan { start, end: start + len }, text: &text[start..start + len], chunk }
            }).collect();
            let once = keep_outermost(&expressions);
            prop_assert!(once.iter().all(|e| expressions.contains(e)));
            prop_assert_eq!(keep_outermost(&once), once);
            let boxes = HashMap::from([(0, 1), (1, 2), (3, 1)]);
            let most = keep_most_boxes(&expressions, &[], &boxes);
            prop_assert_eq!(keep_most_boxes(&most, &[], &boxes), most);
        }
    }
}
