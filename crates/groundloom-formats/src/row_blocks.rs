//! Blocks of rows whose borders depend on the rows alone.
//!
//! Writers see rows in whatever batches the plan happens to deliver, and what they write (pages, row groups) depends on those borders. Cutting the stream of rows into blocks by their own
//! count and bytes first makes the bytes of a part a function of its rows.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray},
    compute::concat_batches,
    datatypes::{ArrowNativeType, DataType, SchemaRef},
    error::ArrowError,
    record_batch::RecordBatch,
};

/// Most rows in a block: a multiple of the Parquet writer's own step (1024 rows), so that steps do not straddle blocks.
const BLOCK_ROWS: usize = 8192;
/// A block is closed by the row that brings it to this many bytes of values.
const BLOCK_BYTES: u64 = 8 << 20;

/// Cuts a stream of rows into blocks.
#[derive(Debug)]
pub(crate) struct RowBlocks {
    schema: SchemaRef,
    open: Vec<RecordBatch>,
    rows: usize,
    bytes: u64,
}

impl RowBlocks {
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Self { schema, open: Vec::new(), rows: 0, bytes: 0 }
    }

    /// Adds rows and returns the blocks that they complete.
    pub(crate) fn push(&mut self, rows: &RecordBatch) -> Result<Vec<RecordBatch>, ArrowError> {
        let mut blocks = Vec::new();
        let mut start = 0;
        while start < rows.num_rows() {
            // As many as there is room for, by their number.
            let some = rows.slice(start, (BLOCK_ROWS - self.rows).min(rows.num_rows() - start));
            start += some.num_rows();
            let bytes: u64 = some.columns().iter().map(value_bytes).sum();
            if self.bytes + bytes >= BLOCK_BYTES {
                self.push_large(&some, &mut blocks)?;
                continue;
            }
            self.rows += some.num_rows();
            self.bytes += bytes;
            self.open.push(some);
            if self.rows == BLOCK_ROWS {
                blocks.extend(self.close()?);
            }
        }
        Ok(blocks)
    }

    /// The same for rows whose bytes close a block: each is looked at.
    fn push_large(&mut self, rows: &RecordBatch, blocks: &mut Vec<RecordBatch>) -> Result<(), ArrowError> {
        let mut sizes = vec![0u64; rows.num_rows()];
        for column in rows.columns() {
            add_value_bytes(column, &mut sizes);
        }
        let mut start = 0;
        for (row, size) in sizes.iter().enumerate() {
            self.rows += 1;
            self.bytes += size;
            if self.rows == BLOCK_ROWS || self.bytes >= BLOCK_BYTES {
                self.open.push(rows.slice(start, row + 1 - start));
                blocks.extend(self.close()?);
                start = row + 1;
            }
        }
        if start < rows.num_rows() {
            self.open.push(rows.slice(start, rows.num_rows() - start));
        }
        Ok(())
    }

    /// The last, unfinished block.
    pub(crate) fn close(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        (self.rows, self.bytes) = (0, 0);
        let mut open = std::mem::take(&mut self.open);
        match open.len() {
            0 => Ok(None),
            1 => Ok(open.pop()),
            _ => concat_batches(&self.schema, &open).map(Some),
        }
    }
}

/// The bytes that all values of a column take: what [`add_value_bytes`] adds up to.
fn value_bytes(array: &ArrayRef) -> u64 {
    let width = |data_type: &DataType| data_type.primitive_width().unwrap_or(1) as u64;
    match array.data_type() {
        DataType::Utf8 => between(array.as_string::<i32>().value_offsets()).len() as u64,
        DataType::LargeUtf8 => between(array.as_string::<i64>().value_offsets()).len() as u64,
        DataType::Binary => between(array.as_binary::<i32>().value_offsets()).len() as u64,
        DataType::LargeBinary => between(array.as_binary::<i64>().value_offsets()).len() as u64,
        DataType::Struct(_) => array.as_struct().columns().iter().map(value_bytes).sum(),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            children_bytes(list.values(), list.value_offsets())
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            children_bytes(list.values(), list.value_offsets())
        }
        DataType::FixedSizeList(item, size) => {
            array.len() as u64 * width(item.data_type()) * u64::from(size.unsigned_abs())
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let entries: ArrayRef = Arc::new(map.entries().clone());
            children_bytes(&entries, map.value_offsets())
        }
        other => array.len() as u64 * width(other),
    }
}

/// The range that offsets cover.
fn between<O: ArrowNativeType>(offsets: &[O]) -> std::ops::Range<usize> {
    match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) => first.as_usize()..last.as_usize(),
        _ => 0..0,
    }
}

fn children_bytes<O: ArrowNativeType>(values: &ArrayRef, offsets: &[O]) -> u64 {
    let range = between(offsets);
    value_bytes(&values.slice(range.start, range.len()))
}

/// Adds the bytes that each row's value takes to `sizes`; offsets, validity and dictionaries are left out.
pub(crate) fn add_value_bytes(array: &ArrayRef, sizes: &mut [u64]) {
    match array.data_type() {
        DataType::Utf8 => add_offsets(array.as_string::<i32>().value_offsets(), sizes),
        DataType::LargeUtf8 => add_offsets(array.as_string::<i64>().value_offsets(), sizes),
        DataType::Binary => add_offsets(array.as_binary::<i32>().value_offsets(), sizes),
        DataType::LargeBinary => add_offsets(array.as_binary::<i64>().value_offsets(), sizes),
        DataType::Struct(_) => array.as_struct().columns().iter().for_each(|child| add_value_bytes(child, sizes)),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            add_children(list.values(), list.value_offsets(), sizes);
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            add_children(list.values(), list.value_offsets(), sizes);
        }
        DataType::FixedSizeList(item, size) => {
            let width = item.data_type().primitive_width().unwrap_or(1) as u64 * u64::from(size.unsigned_abs());
            sizes.iter_mut().for_each(|bytes| *bytes += width);
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let entries: ArrayRef = Arc::new(map.entries().clone());
            add_children(&entries, map.value_offsets(), sizes);
        }
        other => {
            let width = other.primitive_width().unwrap_or(1) as u64;
            sizes.iter_mut().for_each(|size| *size += width);
        }
    }
}

fn add_offsets<O: ArrowNativeType>(offsets: &[O], sizes: &mut [u64]) {
    for (size, ends) in sizes.iter_mut().zip(offsets.windows(2)) {
        *size += (ends[1].as_usize() - ends[0].as_usize()) as u64;
    }
}

fn add_children<O: ArrowNativeType>(values: &ArrayRef, offsets: &[O], sizes: &mut [u64]) {
    let mut children = vec![0u64; values.len()];
    add_value_bytes(values, &mut children);
    for (size, ends) in sizes.iter_mut().zip(offsets.windows(2)) {
        *size += children[ends[0].as_usize()..ends[1].as_usize()].iter().sum::<u64>();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use arrow::array::{BinaryArray, Int64Array, ListArray, StringArray};
    use arrow::datatypes::Int32Type;
    use proptest::prelude::*;

    fn batch(lengths: &[usize]) -> RecordBatch {
        let blobs = lengths.iter().map(|n| vec![7u8; *n]).collect::<Vec<_>>();
        RecordBatch::try_from_iter([("blob", Arc::new(BinaryArray::from_iter_values(blobs)) as ArrayRef)]).unwrap()
    }

    #[test]
    fn value_bytes_of_nested_rows() {
        let list =
            ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), Some(2)]), None, Some(vec![])]);
        let columns: [(ArrayRef, [u64; 3]); 3] = [
            (Arc::new(StringArray::from(vec!["abc", "", "dé"])), [3, 0, 3]),
            (Arc::new(Int64Array::from(vec![1, 2, 3])), [8, 8, 8]),
            (Arc::new(list), [8, 0, 0]),
        ];
        for (column, expected) in columns {
            let mut sizes = [0; 3];
            add_value_bytes(&column, &mut sizes);
            assert_eq!(sizes, expected);
            assert_eq!(value_bytes(&column), expected.iter().sum::<u64>());
            assert_eq!(value_bytes(&column.slice(1, 2)), expected[1..].iter().sum::<u64>());
            let mut sliced = [0; 2];
            add_value_bytes(&column.slice(1, 2), &mut sliced);
            assert_eq!(sliced, expected[1..], "a slice counts its own rows only");
        }
    }

    fn cut(rows: &RecordBatch, cuts: &[usize]) -> Vec<usize> {
        let mut blocks = RowBlocks::new(rows.schema());
        let mut sizes = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([rows.num_rows()]) {
            let end = end.clamp(start, rows.num_rows());
            sizes.extend(blocks.push(&rows.slice(start, end - start)).unwrap().iter().map(RecordBatch::num_rows));
            start = end;
        }
        sizes.extend(blocks.close().unwrap().map(|b| b.num_rows()));
        sizes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn blocks_do_not_depend_on_batches(
            lengths in prop::collection::vec(prop_oneof![0usize..100, 1_000_000usize..3_000_000], 1..40),
            mut cuts in prop::collection::vec(0usize..40, 0..6),
        ) {
            cuts.sort_unstable();
            let rows = batch(&lengths);
            let whole = cut(&rows, &[]);
            prop_assert_eq!(&cut(&rows, &cuts), &whole);
            prop_assert_eq!(whole.iter().sum::<usize>(), lengths.len());
        }
    }

    #[test]
    fn a_block_holds_8192_short_rows() {
        assert_eq!(cut(&batch(&vec![1; 20_000]), &[3, 9_000]), [8192, 8192, 3616]);
    }
}
