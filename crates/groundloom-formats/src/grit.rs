//! The released form of GrIT: `noun_chunks` and `ref_exps`, each a list of `[start, end, x1, y1, x2, y2, score]`.
//!
//! Source: Kosmos-2 (arXiv 2306.14824) and the data README of `microsoft/unilm`, folder `kosmos-2`. `start` and `end` are character offsets into the caption
//! (Unicode scalar values, end exclusive, as Python counts), the box is normalised `xyxy` in [0, 1] of the whole image, `score` is the detector's.
//!
//! What the two lists hold is decided by the stages that ran before:
//!
//! - **Released form** (no `drop_contained`, or `drop_contained` in its `release` form): every chunk with a box has an expression, and one that could not be expanded is its own
//!   expression. Then the lists are 1:1: entry *i* of both is the same box, first under the chunk's span and then under the expression's. Spans inside other spans are
//!   still there; the authors' training loader drops them while it reads.
//! - **Resolved form** (`drop_contained` in its `loader` form): `noun_chunks` is as above; `ref_exps` holds only the boxes of the expressions that survived, in the same order.
//!
//! Both lists are ordered by score, highest first, as the released rows are; equal scores by the chunk's start, its end, then the box. A box that belongs to no chunk is in neither list
//! (it stays in the typed column `boxes`).

use std::{cmp::Ordering, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Builder, ListBuilder, new_empty_array},
    datatypes::{DataType, Field, FieldRef, Schema},
    record_batch::RecordBatch,
};
use groundloom_data::{
    BoxesView, CharSpan, Chunk, ChunksView, Expression, ExpressionsView, GroundedBox, columns::ROW_ID,
};

use crate::FormatError;

/// The column of chunk spans with their boxes.
pub const NOUN_CHUNKS: &str = "noun_chunks";
/// The column of expression spans with their boxes.
pub const REF_EXPS: &str = "ref_exps";

/// One entry of `noun_chunks` or `ref_exps`: a span of the caption and a box of the image that it names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// The chunk's or the expression's characters.
    pub span: CharSpan,
    /// `x1, y1, x2, y2`, normalised to [0, 1].
    pub xyxy: [f32; 4],
    /// The detector's score in [0, 1].
    pub score: f32,
}

impl Entry {
    /// The seven numbers of the released form. Box and score are `f32` widened, so that they compare equal to the typed columns.
    pub fn numbers(&self) -> [f64; 7] {
        let [x1, y1, x2, y2] = self.xyxy.map(f64::from);
        [self.span.start as f64, self.span.end as f64, x1, y1, x2, y2, f64::from(self.score)]
    }

    fn before(&self, other: &Entry) -> Ordering {
        let by_box = || {
            let edges = self.xyxy.iter().zip(&other.xyxy).map(|(a, b)| a.total_cmp(b));
            edges.fold(Ordering::Equal, Ordering::then)
        };
        other.score.total_cmp(&self.score).then(self.span.cmp(&other.span)).then_with(by_box)
    }
}

/// The two lists of one row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lists {
    /// One entry per box that belongs to a chunk, under the chunk's span.
    pub noun_chunks: Vec<Entry>,
    /// One entry per box whose chunk has an expression, under the expression's span.
    pub ref_exps: Vec<Entry>,
}

/// A box names a chunk that the row does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "box {index} names chunk {chunk}, but the row has {chunks} chunks; a stage between `ground` and the sink replaced the column `chunks`"
)]
pub struct NoSuchChunk {
    /// Index of the box in the row's `boxes`.
    pub index: usize,
    /// The chunk it names.
    pub chunk: usize,
    /// How many chunks the row has.
    pub chunks: usize,
}

/// Renders one row.
///
/// # Errors
/// A box names a chunk that does not exist.
pub fn lists(
    chunks: &[Chunk<'_>],
    boxes: &[GroundedBox<'_>],
    expressions: &[Expression<'_>],
) -> Result<Lists, NoSuchChunk> {
    let mut ordered = Vec::with_capacity(boxes.len());
    for (index, b) in boxes.iter().enumerate() {
        let Some(chunk) = b.chunk else { continue };
        let Some(named) = chunks.get(chunk) else {
            return Err(NoSuchChunk { index, chunk, chunks: chunks.len() });
        };
        ordered.push((Entry { span: named.span, xyxy: b.rect.xyxy(), score: b.score }, chunk));
    }
    ordered.sort_by(|(a, _), (b, _)| a.before(b));
    let of_expressions = |&(entry, chunk): &(Entry, usize)| {
        expressions.iter().filter(move |e| e.chunk == chunk).map(move |e| Entry { span: e.span, ..entry })
    };
    let ref_exps = ordered.iter().flat_map(of_expressions).collect();
    Ok(Lists { noun_chunks: ordered.into_iter().map(|(entry, _)| entry).collect(), ref_exps })
}

/// `list<list<float64>>`, the type of both columns.
pub fn entries_type() -> DataType {
    DataType::List(Arc::new(Field::new(
        "item",
        DataType::List(Arc::new(Field::new("item", DataType::Float64, true))),
        true,
    )))
}

/// The two fields that the form appends.
pub fn fields() -> [FieldRef; 2] {
    [NOUN_CHUNKS, REF_EXPS].map(|name| Arc::new(Field::new(name, entries_type(), true)))
}

/// The columns that the form is made from, and who writes them.
const INPUTS: [(&str, &str); 3] = [
    ("chunks", "the stage `noun_chunks` writes it"),
    ("boxes", "the stage `ground` writes it, or the source brings it"),
    ("expressions", "the stage `expand_expressions` writes it"),
];

/// Checks that the columns the form is made from are there and readable.
///
/// # Errors
/// A [`FormatError::Column`] that names the column and the stage that writes it.
pub fn check(input: &Schema) -> Result<(), FormatError> {
    let empty = INPUTS.map(|(name, _)| input.field_with_name(name).ok().map(|f| new_empty_array(f.data_type())));
    Inputs::try_new(empty.each_ref().map(Option::as_ref)).map(|_| ())
}

/// The columns `noun_chunks` and `ref_exps` of a batch. A row without chunks, boxes or expressions (null or empty) has empty lists.
///
/// # Errors
/// As [`lists_of`].
pub fn columns(rows: &RecordBatch) -> Result<[ArrayRef; 2], FormatError> {
    let (mut noun_chunks, mut ref_exps) = (entries_builder(), entries_builder());
    lists_of(rows, |_, lists| {
        append(&mut noun_chunks, &lists.noun_chunks);
        append(&mut ref_exps, &lists.ref_exps);
        Ok(())
    })?;
    Ok([Arc::new(noun_chunks.finish()), Arc::new(ref_exps.finish())])
}

/// Calls `each` with the lists of every row, in order.
///
/// # Errors
/// A column is missing or has the wrong type; a row's value contradicts its column (the row's `row_id` is named); or what `each` returns.
pub fn lists_of(
    rows: &RecordBatch,
    mut each: impl FnMut(usize, Lists) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let inputs = Inputs::try_new(INPUTS.map(|(name, _)| rows.column_by_name(name)))?;
    for row in 0..rows.num_rows() {
        let lists = inputs.lists(row).map_err(|(column, message)| FormatError::Malformed {
            location: format!("row {}", row_name(rows, row)),
            message: format!("column `{column}`: {message}"),
        })?;
        each(row, lists)?;
    }
    Ok(())
}

/// The row's id for messages.
pub(crate) fn row_name(rows: &RecordBatch, row: usize) -> String {
    rows.column_by_name(ROW_ID)
        .and_then(|ids| arrow::util::display::array_value_to_string(ids, row).ok())
        .unwrap_or_else(|| format!("number {row} of a batch"))
}

struct Inputs {
    chunks: ChunksView,
    boxes: BoxesView,
    expressions: ExpressionsView,
}

impl Inputs {
    /// From the columns of [`INPUTS`], in that order.
    fn try_new(columns: [Option<&ArrayRef>; 3]) -> Result<Self, FormatError> {
        let column = |i: usize| {
            let (name, hint) = INPUTS[i];
            columns[i].ok_or_else(|| {
                no_column(name, format!("the grit form needs the column `{name}`, and there is none: {hint}"))
            })
        };
        let wrong_type =
            |name: &str, e: groundloom_data::ColumnTypeError| no_column(name, format!("column `{name}`: {e}"));
        let boxes = BoxesView::try_new(column(1)?).map_err(|e| wrong_type("boxes", e))?;
        if !boxes.has_chunk() {
            return Err(no_column(
                "boxes",
                "the grit form needs boxes that name their chunk (the field `chunk`), and these name phrases: the stage `filter_boxes` ties them to the chunks".into(),
            ));
        }
        Ok(Self {
            chunks: ChunksView::try_new(column(0)?).map_err(|e| wrong_type("chunks", e))?,
            boxes,
            expressions: ExpressionsView::try_new(column(2)?).map_err(|e| wrong_type("expressions", e))?,
        })
    }

    /// The lists of a row, or the column at fault and why.
    fn lists(&self, row: usize) -> Result<Lists, (&'static str, String)> {
        let chunks = self.chunks.row(row).map_err(|e| ("chunks", e.to_string()))?.unwrap_or_default();
        let boxes = self.boxes.row(row).map_err(|e| ("boxes", e.to_string()))?.unwrap_or_default();
        let expressions = self.expressions.row(row).map_err(|e| ("expressions", e.to_string()))?.unwrap_or_default();
        lists(&chunks, &boxes, &expressions).map_err(|e| ("boxes", e.to_string()))
    }
}

fn no_column(column: &str, message: String) -> FormatError {
    FormatError::Column { column: column.to_owned(), message }
}

type EntriesBuilder = ListBuilder<ListBuilder<Float64Builder>>;

fn entries_builder() -> EntriesBuilder {
    ListBuilder::new(ListBuilder::new(Float64Builder::new()))
}

fn append(builder: &mut EntriesBuilder, entries: &[Entry]) {
    for entry in entries {
        builder.values().values().append_slice(&entry.numbers());
        builder.values().append(true);
    }
    builder.append(true);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use groundloom_data::{Box2d, BoxesBuilder, ChunksBuilder, ExpressionsBuilder};
    use proptest::prelude::*;

    fn chunk(start: usize, end: usize) -> Chunk<'static> {
        let span = CharSpan { start, end };
        Chunk { span, text: "", root: "", lemma: "", subtree: span, has_conjunct: false, has_children: false }
    }

    fn boxed(chunk: Option<usize>, xyxy: [f32; 4], score: f32) -> GroundedBox<'static> {
        let [x1, y1, x2, y2] = xyxy;
        GroundedBox { chunk, span: None, phrase: None, label: None, score, rect: Box2d::new(x1, y1, x2, y2).unwrap() }
    }

    fn expression(start: usize, end: usize, chunk: usize) -> Expression<'static> {
        Expression { span: CharSpan { start, end }, text: "", chunk }
    }

    fn spans(entries: &[Entry]) -> Vec<(usize, usize, f32)> {
        entries.iter().map(|e| (e.span.start, e.span.end, e.score)).collect()
    }

    /// `a red kite above two boats on a lake`, recipe example: the lake has no box.
    fn kite() -> (Vec<Chunk<'static>>, Vec<GroundedBox<'static>>) {
        let chunks = vec![chunk(0, 10), chunk(17, 26), chunk(30, 36)];
        let boxes = vec![boxed(Some(1), [0.0, 0.5, 1.0, 1.0], 0.77), boxed(Some(0), [0.1, 0.2, 0.6, 0.9], 0.81)];
        (chunks, boxes)
    }

    #[test]
    fn released_form_is_one_to_one() {
        let (chunks, boxes) = kite();
        let lists = lists(&chunks, &boxes, &[expression(0, 36, 0), expression(17, 36, 1)]).unwrap();
        assert_eq!(spans(&lists.noun_chunks), [(0, 10, 0.81), (17, 26, 0.77)]);
        assert_eq!(spans(&lists.ref_exps), [(0, 36, 0.81), (17, 36, 0.77)]);
        let numbers = lists.ref_exps[0].numbers();
        assert_eq!(numbers[..2], [0.0, 36.0]);
        assert_eq!(numbers.map(|n| n as f32)[2..], [0.1, 0.2, 0.6, 0.9, 0.81]);
    }

    #[test]
    fn resolved_form_keeps_the_survivors_boxes_only() {
        let (chunks, boxes) = kite();
        let lists = lists(&chunks, &boxes, &[expression(0, 36, 0)]).unwrap();
        assert_eq!(spans(&lists.noun_chunks), [(0, 10, 0.81), (17, 26, 0.77)]);
        assert_eq!(spans(&lists.ref_exps), [(0, 36, 0.81)]);
    }

    #[test]
    fn equal_scores_are_ordered_by_span_and_then_box() {
        let chunks = [chunk(0, 5), chunk(9, 14)];
        let boxes = [
            boxed(Some(1), [0.0, 0.0, 0.5, 0.5], 0.5),
            boxed(Some(0), [0.2, 0.0, 0.5, 0.5], 0.5),
            boxed(Some(0), [0.1, 0.0, 0.5, 0.5], 0.5),
            boxed(None, [0.0, 0.0, 1.0, 1.0], 0.9),
        ];
        let lists = lists(&chunks, &boxes, &[]).unwrap();
        let x1: Vec<_> = lists.noun_chunks.iter().map(|e| (e.span.start, e.xyxy[0])).collect();
        assert_eq!(x1, [(0, 0.1), (0, 0.2), (9, 0.0)], "and a box of no chunk is left out");
        assert!(lists.ref_exps.is_empty());
    }

    #[test]
    fn a_missing_chunk_is_an_error_that_names_it() {
        let error = lists(&[chunk(0, 5)], &[boxed(Some(3), [0.0, 0.0, 1.0, 1.0], 0.5)], &[]).unwrap_err();
        assert!(error.to_string().starts_with("box 0 names chunk 3, but the row has 1 chunks"), "{error}");
    }

    #[test]
    fn columns_of_a_batch() {
        let (chunks, boxes) = kite();
        let mut c = ChunksBuilder::new();
        let mut b = BoxesBuilder::new();
        let mut e = ExpressionsBuilder::new();
        c.append_row(&chunks);
        b.append_row(&boxes);
        e.append_row(&[expression(0, 36, 0)]);
        c.append_null();
        b.append_null();
        e.append_null();
        let batch = RecordBatch::try_from_iter([
            ("chunks", Arc::new(c.finish()) as ArrayRef),
            ("boxes", Arc::new(b.finish()) as ArrayRef),
            ("expressions", Arc::new(e.finish()) as ArrayRef),
        ])
        .unwrap();
        check(&batch.schema()).unwrap();
        let [noun_chunks, ref_exps] = columns(&batch).unwrap();
        assert_eq!(noun_chunks.data_type(), &entries_type());
        let shown = |a: &ArrayRef| arrow::util::display::array_value_to_string(a, 0).unwrap();
        assert!(shown(&noun_chunks).starts_with("[[0.0, 10.0, 0.10000000149011612,"), "{}", shown(&noun_chunks));
        assert!(shown(&ref_exps).starts_with("[[0.0, 36.0,"));
        assert_eq!(arrow::util::display::array_value_to_string(&ref_exps, 1).unwrap(), "[]");

        let without = batch.project(&[0, 1]).unwrap();
        let message = check(&without.schema()).unwrap_err().to_string();
        assert!(message.contains("`expressions`") && message.contains("`expand_expressions`"), "{message}");
    }

    proptest! {
        #[test]
        fn lists_are_ordered_and_aligned(
            boxes in prop::collection::vec((0usize..4, 0u8..4, 0u8..3), 0..12),
        ) {
            let chunks = [chunk(0, 3), chunk(4, 8), chunk(9, 12), chunk(13, 20)];
            let boxes: Vec<_> = boxes.iter()
                .map(|(c, x, s)| boxed(Some(*c), [f32::from(*x) / 8.0, 0.0, 1.0, 1.0], f32::from(*s) / 2.0))
                .collect();
            let expressions: Vec<_> = (0..4).map(|c| expression(chunks[c].span.start, 20, c)).collect();
            let lists = lists(&chunks, &boxes, &expressions).unwrap();
            prop_assert_eq!(lists.noun_chunks.len(), boxes.len());
            prop_assert_eq!(lists.ref_exps.len(), boxes.len());
            prop_assert!(lists.noun_chunks.windows(2).all(|w| w[0].score >= w[1].score));
            for (chunk, expression) in lists.noun_chunks.iter().zip(&lists.ref_exps) {
                prop_assert_eq!(chunk.xyxy, expression.xyxy);
                prop_assert!(expression.span.contains(&chunk.span));
            }
        }
    }
}
