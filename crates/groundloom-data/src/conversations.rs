//! The `conversations` column ([`columns::conversations_type`]): turns between a person and a model, as LLaVA and ShareGPT write them.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, ListArray, StringArray, StringBuilder},
    buffer::NullBuffer,
    datatypes::DataType,
};

use crate::{
    column_views::{ColumnTypeError, ColumnValueError, Entries, Rows, read_row},
    columns,
    list_rows::ListRows,
};

/// One turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// Who speaks: `human` or `gpt` (`system` in some ShareGPT sets).
    pub from: &'a str,
    /// What is said.
    pub value: &'a str,
}

/// Builds a `conversations` column row by row.
#[derive(Debug, Default)]
pub struct ConversationsBuilder {
    rows: ListRows,
    from: StringBuilder,
    value: StringBuilder,
}

impl ConversationsBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a row: its turns in order.
    pub fn append_row(&mut self, turns: &[Turn<'_>]) {
        for turn in turns {
            self.from.append_value(turn.from);
            self.value.append_value(turn.value);
        }
        self.rows.append(turns.len());
    }

    /// Appends a row without a value.
    pub fn append_null(&mut self) {
        self.rows.append_null();
    }

    /// The column, of [`columns::conversations_type`].
    pub fn finish(mut self) -> ListArray {
        let fields: Vec<ArrayRef> = vec![Arc::new(self.from.finish()), Arc::new(self.value.finish())];
        self.rows.finish(&columns::conversations_type(), fields)
    }
}

/// Reads a `conversations` column, ours or an outside one's.
#[derive(Debug, Clone)]
pub struct ConversationsView {
    rows: Rows,
    nulls: Option<NullBuffer>,
    from: StringArray,
    value: StringArray,
}

impl ConversationsView {
    /// A view of `column`: a list of structs that have the texts `from` and `value`.
    ///
    /// # Errors
    /// A [`ColumnTypeError`] that names the field that is missing or has another type.
    pub fn try_new(column: &ArrayRef) -> Result<Self, ColumnTypeError> {
        let entries = Entries::try_new(column, "conversations: list<struct<from, value>>")?;
        Ok(Self {
            from: entries.required_texts("from")?,
            value: entries.required_texts("value")?,
            nulls: entries.nulls(),
            rows: entries.rows,
        })
    }

    /// Checks a type as [`ConversationsView::try_new`] does, before there is data.
    ///
    /// # Errors
    /// As [`ConversationsView::try_new`].
    pub fn check_type(data_type: &DataType) -> Result<(), ColumnTypeError> {
        Self::try_new(&arrow::array::new_empty_array(data_type)).map(|_| ())
    }

    /// The turns of a row; `None` for a null row.
    ///
    /// # Errors
    /// A [`ColumnValueError`] for a turn without speaker or text.
    pub fn row(&self, row: usize) -> Result<Option<Vec<Turn<'_>>>, ColumnValueError> {
        read_row(&self.rows, self.nulls.as_ref(), row, |at| {
            Ok(Turn { from: at.text("from", &self.from)?, value: at.text("value", &self.value)? })
        })
    }
}
