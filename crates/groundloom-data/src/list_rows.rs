//! Offsets and validity of a `list<struct<…>>` column under construction.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, ListArray, StructArray},
    buffer::{NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::DataType,
};

/// Row lengths of a list column; the entries' fields are built beside it.
#[derive(Debug)]
pub(crate) struct ListRows {
    offsets: Vec<i32>,
    valid: Vec<bool>,
}

impl Default for ListRows {
    fn default() -> Self {
        Self { offsets: vec![0], valid: Vec::new() }
    }
}

impl ListRows {
    pub(crate) fn append(&mut self, entries: usize) {
        let last = self.offsets.last().copied().unwrap_or(0);
        self.offsets.push(last.saturating_add(i32::try_from(entries).unwrap_or(i32::MAX)));
        self.valid.push(true);
    }

    pub(crate) fn append_null(&mut self) {
        self.append(0);
        if let Some(last) = self.valid.last_mut() {
            *last = false;
        }
    }

    /// The column; `list` is its type, `fields` the flattened entries in the order of the type's struct.
    pub(crate) fn finish(self, list: &DataType, fields: Vec<ArrayRef>) -> ListArray {
        let DataType::List(item) = list else { unreachable!("the column types of this crate are lists") };
        let DataType::Struct(names) = item.data_type() else {
            unreachable!("the column types of this crate are lists of structs")
        };
        let entries = StructArray::new(names.clone(), fields, None);
        let nulls = self.valid.contains(&false).then(|| NullBuffer::from(self.valid));
        ListArray::new(Arc::clone(item), OffsetBuffer::new(ScalarBuffer::from(self.offsets)), Arc::new(entries), nulls)
    }
}
