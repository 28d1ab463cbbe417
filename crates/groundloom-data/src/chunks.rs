//! The `chunks` column ([`columns::chunks_type`]): noun chunks of a caption, written by `noun_chunks`.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, BooleanBuilder, Int32Array, Int32Builder, ListArray, StringArray, StringBuilder},
    buffer::NullBuffer,
    datatypes::DataType,
};

use crate::{
    column_views::{ColumnTypeError, ColumnValueError, Entries, Rows, read_row, to_i32},
    columns,
    list_rows::ListRows,
    span::CharSpan,
};

/// A noun chunk: its text runs from its left edge to its head noun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Where it stands in the caption (characters).
    pub span: CharSpan,
    /// Its text.
    pub text: &'a str,
    /// Text of the head noun.
    pub root: &'a str,
    /// Lemma of the head noun, lower case.
    pub lemma: &'a str,
    /// The head's whole subtree, from spaCy's `root.left_edge` to `root.right_edge` (characters).
    pub subtree: CharSpan,
    /// Whether the head has conjuncts; GrIT does not expand those.
    pub has_conjunct: bool,
    /// Whether the head's subtree reaches beyond the chunk.
    pub has_children: bool,
}

/// Builds a `chunks` column row by row.
#[derive(Debug, Default)]
pub struct ChunksBuilder {
    rows: ListRows,
    start: Int32Builder,
    end: Int32Builder,
    text: StringBuilder,
    root: StringBuilder,
    lemma: StringBuilder,
    subtree_start: Int32Builder,
    subtree_end: Int32Builder,
    has_conjunct: BooleanBuilder,
    has_children: BooleanBuilder,
}

impl ChunksBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a row: its chunks in text order, possibly none.
    pub fn append_row(&mut self, chunks: &[Chunk<'_>]) {
        for chunk in chunks {
            self.start.append_value(to_i32(chunk.span.start));
            self.end.append_value(to_i32(chunk.span.end));
            self.text.append_value(chunk.text);
            self.root.append_value(chunk.root);
            self.lemma.append_value(chunk.lemma);
            self.subtree_start.append_value(to_i32(chunk.subtree.start));
            self.subtree_end.append_value(to_i32(chunk.subtree.end));
            self.has_conjunct.append_value(chunk.has_conjunct);
            self.has_children.append_value(chunk.has_children);
        }
        self.rows.append(chunks.len());
    }

    /// Appends a row without a value.
    pub fn append_null(&mut self) {
        self.rows.append_null();
    }

    /// The column, of [`columns::chunks_type`].
    pub fn finish(mut self) -> ListArray {
        self.rows.finish(
            &columns::chunks_type(),
            vec![
                Arc::new(self.start.finish()),
                Arc::new(self.end.finish()),
                Arc::new(self.text.finish()),
                Arc::new(self.root.finish()),
                Arc::new(self.lemma.finish()),
                Arc::new(self.subtree_start.finish()),
                Arc::new(self.subtree_end.finish()),
                Arc::new(self.has_conjunct.finish()),
                Arc::new(self.has_children.finish()),
            ],
        )
    }
}

/// Reads a `chunks` column, ours or an outside one's.
#[derive(Debug, Clone)]
pub struct ChunksView {
    rows: Rows,
    nulls: Option<NullBuffer>,
    start: Int32Array,
    end: Int32Array,
    text: StringArray,
    root: StringArray,
    lemma: StringArray,
    subtree_start: Int32Array,
    subtree_end: Int32Array,
    has_conjunct: BooleanArray,
    has_children: BooleanArray,
}

impl ChunksView {
    /// A view of `column`: `list` or `large_list` of a struct that has every field of [`columns::chunks_type`], in any order and any width.
    ///
    /// # Errors
    /// A [`ColumnTypeError`] that names the field that is missing or has another type.
    pub fn try_new(column: &ArrayRef) -> Result<Self, ColumnTypeError> {
        let entries = Entries::try_new(
            column,
            "chunks: list<struct<start, end, text, root, lemma, subtree_start, subtree_end, has_conjunct, has_children>>",
        )?;
        Ok(Self {
            start: entries.required_integers("start")?,
            end: entries.required_integers("end")?,
            text: entries.required_texts("text")?,
            root: entries.required_texts("root")?,
            lemma: entries.required_texts("lemma")?,
            subtree_start: entries.required_integers("subtree_start")?,
            subtree_end: entries.required_integers("subtree_end")?,
            has_conjunct: entries.required_booleans("has_conjunct")?,
            has_children: entries.required_booleans("has_children")?,
            nulls: entries.nulls(),
            rows: entries.rows,
        })
    }

    /// Checks a type as [`ChunksView::try_new`] does, before there is data.
    ///
    /// # Errors
    /// As [`ChunksView::try_new`].
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

    /// The chunks of a row; `None` for a null row.
    ///
    /// # Errors
    /// A [`ColumnValueError`] for a null or a negative or reversed span.
    pub fn row(&self, row: usize) -> Result<Option<Vec<Chunk<'_>>>, ColumnValueError> {
        read_row(&self.rows, self.nulls.as_ref(), row, |at| {
            Ok(Chunk {
                span: at.span(("start", "end"), &self.start, &self.end)?,
                text: at.text("text", &self.text)?,
                root: at.text("root", &self.root)?,
                lemma: at.text("lemma", &self.lemma)?,
                subtree: at.span(("subtree_start", "subtree_end"), &self.subtree_start, &self.subtree_end)?,
                has_conjunct: at.boolean("has_conjunct", &self.has_conjunct)?,
                has_children: at.boolean("has_children", &self.has_children)?,
            })
        })
    }
}
