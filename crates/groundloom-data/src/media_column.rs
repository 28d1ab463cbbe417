//! Media columns ([`columns::media_type`]): encoded files and where they came from.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BinaryViewArray, LargeBinaryArray, StringArray,
        StringBuilder, StructArray,
    },
    buffer::NullBuffer,
    compute::cast,
    datatypes::DataType,
};

use crate::{column_views::ColumnTypeError, columns};

/// Builds a media column row by row. One column holds less than 2 GiB of media: close the batch before.
#[derive(Debug, Default)]
pub struct MediaBuilder {
    bytes: BinaryBuilder,
    path: StringBuilder,
    valid: Vec<bool>,
}

impl MediaBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty builder with room for this many rows and bytes of media.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        let paths = StringBuilder::new();
        Self { bytes: BinaryBuilder::with_capacity(rows, bytes), path: paths, valid: Vec::with_capacity(rows) }
    }

    /// Appends a row.
    pub fn append(&mut self, bytes: Option<&[u8]>, path: Option<&str>) {
        self.bytes.append_option(bytes);
        self.path.append_option(path);
        self.valid.push(true);
    }

    /// Appends a row without a value.
    pub fn append_null(&mut self) {
        self.bytes.append_null();
        self.path.append_null();
        self.valid.push(false);
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.valid.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.valid.is_empty()
    }

    /// The column, of [`columns::media_type`].
    pub fn finish(mut self) -> StructArray {
        let DataType::Struct(fields) = columns::media_type() else { unreachable!("a media column is a struct") };
        let nulls = self.valid.contains(&false).then(|| NullBuffer::from(self.valid));
        StructArray::new(fields, vec![Arc::new(self.bytes.finish()), Arc::new(self.path.finish())], nulls)
    }
}

#[derive(Debug, Clone)]
enum Bytes {
    Small(BinaryArray),
    Large(LargeBinaryArray),
    View(BinaryViewArray),
}

/// Reads a media column, ours or an outside one's; borrows the bytes, copies nothing.
#[derive(Debug, Clone)]
pub struct MediaView {
    bytes: Bytes,
    path: Option<StringArray>,
    nulls: Option<NullBuffer>,
    len: usize,
}

impl MediaView {
    /// A view of `column`: a struct with `bytes` (binary, large binary or binary view) and, if it has one, `path` (any string type).
    ///
    /// # Errors
    /// A [`ColumnTypeError`] for any other type.
    pub fn try_new(column: &ArrayRef) -> Result<Self, ColumnTypeError> {
        let wrong = || ColumnTypeError {
            expected: "a media column, struct<bytes: binary, path: utf8>".to_owned(),
            found: column.data_type().to_string(),
        };
        let media = column.as_struct_opt().ok_or_else(wrong)?;
        let bytes = media.column_by_name("bytes").ok_or_else(wrong)?;
        let bytes = match bytes.data_type() {
            DataType::Binary => Bytes::Small(bytes.as_binary().clone()),
            DataType::LargeBinary => Bytes::Large(bytes.as_binary().clone()),
            DataType::BinaryView => Bytes::View(bytes.as_binary_view().clone()),
            _ => return Err(wrong()),
        };
        let path = media.column_by_name("path").map(|p| cast(p, &DataType::Utf8).map_err(|_| wrong())).transpose()?;
        let path = path.map(|p| p.as_string_opt::<i32>().cloned().ok_or_else(wrong)).transpose()?;
        Ok(Self { bytes, path, nulls: media.nulls().cloned(), len: media.len() })
    }

    /// Checks a type as [`MediaView::try_new`] does, before there is data.
    ///
    /// # Errors
    /// As [`MediaView::try_new`].
    pub fn check_type(data_type: &DataType) -> Result<(), ColumnTypeError> {
        Self::try_new(&arrow::array::new_empty_array(data_type)).map(|_| ())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn has(&self, row: usize, field: &dyn Array) -> bool {
        row < self.len && field.is_valid(row) && self.nulls.as_ref().is_none_or(|n| n.is_valid(row))
    }

    /// The encoded file; `None` where it is null.
    pub fn bytes(&self, row: usize) -> Option<&[u8]> {
        match &self.bytes {
            Bytes::Small(a) => self.has(row, a).then(|| a.value(row)),
            Bytes::Large(a) => self.has(row, a).then(|| a.value(row)),
            Bytes::View(a) => self.has(row, a).then(|| a.value(row)),
        }
    }

    /// Where the file came from; `None` where that is null.
    pub fn path(&self, row: usize) -> Option<&str> {
        let path = self.path.as_ref()?;
        self.has(row, path).then(|| path.value(row))
    }
}
