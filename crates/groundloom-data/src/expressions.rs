//! The `expressions` column ([`columns::expressions_type`]): referring expressions that noun chunks expand to, written by `expand_expressions`.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int32Array, Int32Builder, ListArray, StringArray, StringBuilder},
    buffer::NullBuffer,
    datatypes::DataType,
};

use crate::{
    column_views::{ColumnTypeError, ColumnValueError, Entries, Rows, read_row, to_i32},
    columns,
    list_rows::ListRows,
    span::CharSpan,
};

/// A referring expression; it inherits the boxes of its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expression<'a> {
    /// Where it stands in the caption (characters).
    pub span: CharSpan,
    /// Its text.
    pub text: &'a str,
    /// Index into the row's `chunks`.
    pub chunk: usize,
}

/// Builds an `expressions` column row by row.
#[derive(Debug, Default)]
pub struct ExpressionsBuilder {
    rows: ListRows,
    start: Int32Builder,
    end: Int32Builder,
    text: StringBuilder,
    chunk: Int32Builder,
}

impl ExpressionsBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a row: its expressions in text order, possibly none.
    pub fn append_row(&mut self, expressions: &[Expression<'_>]) {
        for expression in expressions {
            self.start.append_value(to_i32(expression.span.start));
            self.end.append_value(to_i32(expression.span.end));
            self.text.append_value(expression.text);
            self.chunk.append_value(to_i32(expression.chunk));
        }
        self.rows.append(expressions.len());
    }

    /// Appends a row without a value.
    pub fn append_null(&mut self) {
        self.rows.append_null();
    }

    /// The column, of [`columns::expressions_type`].
    pub fn finish(mut self) -> ListArray {
        self.rows.finish(
            &columns::expressions_type(),
            vec![
                Arc::new(self.start.finish()),
                Arc::new(self.end.finish()),
                Arc::new(self.text.finish()),
                Arc::new(self.chunk.finish()),
            ],
        )
    }
}

/// Reads an `expressions` column, ours or an outside one's.
#[derive(Debug, Clone)]
pub struct ExpressionsView {
    rows: Rows,
    nulls: Option<NullBuffer>,
    start: Int32Array,
    end: Int32Array,
    text: StringArray,
    chunk: Int32Array,
}

impl ExpressionsView {
    /// A view of `column`: `list` or `large_list` of a struct that has every field of [`columns::expressions_type`], in any order and any width.
    ///
    /// # Errors
    /// A [`ColumnTypeError`] that names the field that is missing or has another type.
    pub fn try_new(column: &ArrayRef) -> Result<Self, ColumnTypeError> {
        let entries = Entries::try_new(column, "expressions: list<struct<start, end, text, chunk>>")?;
        Ok(Self {
            start: entries.required_integers("start")?,
            end: entries.required_integers("end")?,
            text: entries.required_texts("text")?,
            chunk: entries.required_integers("chunk")?,
            nulls: entries.nulls(),
            rows: entries.rows,
        })
    }

    /// Checks a type as [`ExpressionsView::try_new`] does, before there is data.
    ///
    /// # Errors
    /// As [`ExpressionsView::try_new`].
    pub fn check_type(data_type: &DataType) -> Result<(), ColumnTypeError> {
        Self::try_new(&arrow::array::new_empty_array(data_type)).map(|_| ())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// The expressions of a row; `None` for a null row.
    ///
    /// # Errors
    /// A [`ColumnValueError`] for a null or a negative or reversed span.
    pub fn row(&self, row: usize) -> Result<Option<Vec<Expression<'_>>>, ColumnValueError> {
        read_row(&self.rows, self.nulls.as_ref(), row, |at| {
            Ok(Expression {
                span: at.span(("start", "end"), &self.start, &self.end)?,
                text: at.text("text", &self.text)?,
                chunk: at.index("chunk", &self.chunk)?,
            })
        })
    }
}
