//! The `boxes` column ([`columns::boxes_type`]): boxes of phrases in the image, written by `ground` or brought by a source.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float32Array, Float32Builder, Int32Array, Int32Builder, ListArray, StringArray, StringBuilder},
    buffer::NullBuffer,
    datatypes::DataType,
};

use crate::{
    column_views::{ColumnTypeError, ColumnValueError, Entries, Rows, read_row, to_i32},
    columns,
    geometry::Box2d,
    list_rows::ListRows,
    span::CharSpan,
};

/// A box in the image and the phrase it answers.
///
/// Boxes written by Groundloom have `chunk`. An outside detector's may instead say which phrase they mean by its `span` in the caption (fields `start`, `end`)
/// or by its text (`phrase`); where several are there, they are all given, and `chunk` goes first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroundedBox<'a> {
    /// Index into the row's `chunks`.
    pub chunk: Option<usize>,
    /// Where the phrase stands in the caption (characters).
    pub span: Option<CharSpan>,
    /// The phrase's text.
    pub phrase: Option<&'a str>,
    /// The detector's own class or phrase.
    pub label: Option<&'a str>,
    /// Confidence in [0, 1]; 1 where the source has no field `score` (boxes drawn by people).
    pub score: f32,
    /// The box, normalised, of the oriented image.
    pub rect: Box2d,
}

/// Builds a `boxes` column row by row.
#[derive(Debug, Default)]
pub struct BoxesBuilder {
    rows: ListRows,
    chunk: Int32Builder,
    label: StringBuilder,
    score: Float32Builder,
    corners: [Float32Builder; 4],
}

impl BoxesBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a row. `span` and `phrase` are not part of the column: resolve them to `chunk` first.
    pub fn append_row(&mut self, boxes: &[GroundedBox<'_>]) {
        for b in boxes {
            self.chunk.append_option(b.chunk.map(to_i32));
            self.label.append_option(b.label);
            self.score.append_value(b.score);
            for (column, value) in self.corners.iter_mut().zip(b.rect.xyxy()) {
                column.append_value(value);
            }
        }
        self.rows.append(boxes.len());
    }

    /// Appends a row without a value.
    pub fn append_null(&mut self) {
        self.rows.append_null();
    }

    /// The column, of [`columns::boxes_type`].
    pub fn finish(mut self) -> ListArray {
        let mut fields: Vec<ArrayRef> =
            vec![Arc::new(self.chunk.finish()), Arc::new(self.label.finish()), Arc::new(self.score.finish())];
        fields.extend(self.corners.iter_mut().map(|c| Arc::new(c.finish()) as ArrayRef));
        self.rows.finish(&columns::boxes_type(), fields)
    }
}

/// Reads a `boxes` column, ours or an outside detector's.
#[derive(Debug, Clone)]
pub struct BoxesView {
    rows: Rows,
    nulls: Option<NullBuffer>,
    chunk: Option<Int32Array>,
    span: Option<(Int32Array, Int32Array)>,
    phrase: Option<StringArray>,
    label: Option<StringArray>,
    score: Option<Float32Array>,
    corners: [Float32Array; 4],
}

impl BoxesView {
    /// A view of `column`: `list` or `large_list` of a struct with `x1`, `y1`, `x2`, `y2`, optionally `score` and `label`, and at least one of
    /// `chunk`, `start` with `end`, or `phrase`; in any order and any width, other fields are ignored.
    ///
    /// # Errors
    /// A [`ColumnTypeError`] that names the field that is missing or has another type.
    pub fn try_new(column: &ArrayRef) -> Result<Self, ColumnTypeError> {
        let entries =
            Entries::try_new(column, "boxes: list<struct<x1, y1, x2, y2, score, label, chunk | start, end | phrase>>")?;
        let span = entries.has("start") && entries.has("end");
        if !(span || entries.has("chunk") || entries.has("phrase")) {
            // The error of the field that our own columns have.
            entries.required_integers("chunk")?;
        }
        Ok(Self {
            chunk: entries.integers("chunk")?,
            span: if span {
                Some((entries.required_integers("start")?, entries.required_integers("end")?))
            } else {
                None
            },
            phrase: entries.texts("phrase")?,
            label: entries.texts("label")?,
            score: entries.floats("score")?,
            corners: [
                entries.required_floats("x1")?,
                entries.required_floats("y1")?,
                entries.required_floats("x2")?,
                entries.required_floats("y2")?,
            ],
            nulls: entries.nulls(),
            rows: entries.rows,
        })
    }

    /// Checks a type as [`BoxesView::try_new`] does, before there is data.
    ///
    /// # Errors
    /// As [`BoxesView::try_new`].
    pub fn check_type(data_type: &DataType) -> Result<(), ColumnTypeError> {
        Self::try_new(&arrow::array::new_empty_array(data_type)).map(|_| ())
    }

    /// Whether every box can say its phrase by an index into `chunks`.
    pub fn has_chunk(&self) -> bool {
        self.chunk.is_some()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// The boxes of a row; `None` for a null row.
    ///
    /// # Errors
    /// A [`ColumnValueError`] for a null, a box outside the image or out of order, a score that is not in [0, 1], a negative or reversed span.
    pub fn row(&self, row: usize) -> Result<Option<Vec<GroundedBox<'_>>>, ColumnValueError> {
        read_row(&self.rows, self.nulls.as_ref(), row, |at| {
            let chunk = self.chunk.as_ref().map_or(Ok(None), |c| at.optional_index("chunk", c))?;
            let span = match &self.span {
                Some((start, end)) if at.optional_index("start", start)?.is_some() => {
                    Some(at.span(("start", "end"), start, end)?)
                }
                _ => None,
            };
            let score = self.score.as_ref().map_or(Ok(1.0), |s| at.float("score", s))?;
            if !(0.0..=1.0).contains(&score) {
                return Err(at.error(format!("expected a score in [0, 1], found {score}")));
            }
            let [x1, y1, x2, y2] = &self.corners;
            let rect = Box2d::new(at.float("x1", x1)?, at.float("y1", y1)?, at.float("x2", x2)?, at.float("y2", y2)?);
            Ok(GroundedBox {
                chunk,
                span,
                phrase: self.phrase.as_ref().and_then(|p| at.optional_text(p)),
                label: self.label.as_ref().and_then(|l| at.optional_text(l)),
                score,
                rect: rect.map_err(|e| at.error(e.to_string()))?,
            })
        })
    }
}
