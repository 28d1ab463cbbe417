//! Ids for the rows of a query that has no ids of its own to give: made from what a row holds, and unique.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, StringBuilder},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Schema},
    error::ArrowError,
    record_batch::RecordBatch,
    row::{RowConverter, SortField},
};
use groundloom_data::{columns::ROW_ID, row_id::RowId};
use xxhash_rust::xxh3::xxh3_128;

use crate::error::EngineError;

/// Gives ids to the rows of a set stage, in their order: the hash of a row's content (or the `row_id` it selects), and for a content that came before the hash of it and of how
/// often it did.
///
/// What came before is kept in Bloom filters, so that a row costs about two bytes (eight where it brings its id) and not fifty. They take about one new content in two hundred for
/// an old one, which then gets an id as a first repetition would: still unique, and the same in every run, as the filters know nothing but the rows before. An id that a row
/// brings is its own and must stay: of those one in a hundred thousand million would be taken for a repetition.
#[derive(Default)]
pub(crate) struct ContentIds {
    converter: Option<RowConverter>,
    seen: Option<Seen>,
    /// How often the contents came that the filters knew.
    repeated: HashMap<u128, u64>,
}

impl ContentIds {
    /// The batch with `row_id` as its first column.
    pub(crate) fn give(&mut self, batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
        let internal = |e: ArrowError| EngineError::Internal(e.to_string());
        let selected = batch.schema().index_of(ROW_ID).ok();
        if self.seen.is_none() {
            self.seen = Some(Seen::new(if selected.is_some() { Density::OF_IDS } else { Density::OF_CONTENTS }));
        }
        let mut ids = StringBuilder::with_capacity(batch.num_rows(), batch.num_rows() * RowId::HEX_LEN);
        if let Some(index) = selected {
            let column = cast(batch.column(index), &DataType::Utf8).map_err(internal)?;
            for text in column.as_string::<i32>() {
                let text = text.unwrap_or_default();
                ids.append_value(self.id(xxh3_128(text.as_bytes()), Some(text).filter(|t| !t.is_empty())));
            }
        } else {
            let converter = match self.converter.take() {
                Some(converter) => converter,
                None => {
                    let fields =
                        batch.schema().fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
                    RowConverter::new(fields).map_err(internal)?
                }
            };
            for row in &converter.convert_columns(batch.columns()).map_err(internal)? {
                ids.append_value(self.id(xxh3_128(row.as_ref()), None));
            }
            self.converter = Some(converter);
        }
        let mut fields: Vec<FieldRef> = vec![Arc::new(Field::new(ROW_ID, DataType::Utf8, false))];
        let mut columns: Vec<ArrayRef> = vec![Arc::new(ids.finish())];
        for (i, field) in batch.schema().fields().iter().enumerate() {
            if Some(i) != selected {
                fields.push(Arc::clone(field));
                columns.push(Arc::clone(batch.column(i)));
            }
        }
        let schema = Arc::new(Schema::new_with_metadata(fields, batch.schema().metadata().clone()));
        RecordBatch::try_new(schema, columns).map_err(internal)
    }

    fn id(&mut self, content: u128, chosen: Option<&str>) -> String {
        if self.seen.as_mut().is_none_or(|seen| seen.is_new(content)) {
            return chosen.map_or_else(|| format!("{content:032x}"), str::to_owned);
        }
        let again = self.repeated.entry(content).or_default();
        *again += 1;
        RowId::from_key(&format!("{content:032x}#{again}")).to_string()
    }
}

/// How much a Bloom filter spends on what it holds.
#[derive(Clone, Copy)]
struct Density {
    /// Bits of the filter for each content.
    bits: u64,
    /// Bits that are set for it.
    hashes: u128,
}

impl Density {
    /// Full, it knows a new content wrongly with a probability of (1 - exp(-7/12))^7 = 0.003.
    const OF_CONTENTS: Self = Self { bits: 12, hashes: 7 };
    /// (1 - exp(-20/64))^20 = 4e-12.
    const OF_IDS: Self = Self { bits: 64, hashes: 20 };
}

/// Bloom filters that double: a full one is left for the next.
struct Seen {
    density: Density,
    filters: Vec<Filter>,
}

/// Contents that the first filter holds.
const FIRST_HOLDS: u64 = 1 << 16;

impl Seen {
    fn new(density: Density) -> Self {
        Self { density, filters: Vec::new() }
    }

    /// Notes a content, and says whether it was not there.
    fn is_new(&mut self, content: u128) -> bool {
        let hashes = self.density.hashes;
        if self.filters.iter().any(|f| f.places(content, hashes).all(|(word, bit)| f.bits[word] & bit != 0)) {
            return false;
        }
        if self.filters.last().is_none_or(|f| f.room == 0) {
            let room = FIRST_HOLDS << self.filters.len();
            self.filters.push(Filter { bits: vec![0; (room * self.density.bits / 64) as usize], room });
        }
        if let Some(filter) = self.filters.last_mut() {
            for (word, bit) in filter.places(content, hashes) {
                filter.bits[word] |= bit;
            }
            filter.room -= 1;
        }
        true
    }
}

struct Filter {
    bits: Vec<u64>,
    /// Contents that may still be added.
    room: u64,
}

impl Filter {
    /// Where a content's bits are: double hashing with the halves of its hash (Kirsch and Mitzenmacher, 2006).
    fn places(&self, content: u128, hashes: u128) -> impl Iterator<Item = (usize, u64)> + use<> {
        let bits = self.bits.len() as u128 * 64;
        let (first, step) = (content & u128::from(u64::MAX), (content >> 64) | 1);
        (0..hashes).map(move |i| {
            let bit = (((first + i * step) & u128::from(u64::MAX)) * bits) >> 64;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use arrow::array::Int64Array;

    use super::*;

    fn ids(values: impl IntoIterator<Item = i64>) -> Vec<String> {
        let mut content_ids = ContentIds::default();
        let values: Vec<i64> = values.into_iter().collect();
        let mut ids = Vec::new();
        for part in values.chunks(1000) {
            let column: ArrayRef = Arc::new(Int64Array::from(part.to_vec()));
            let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
            let batch = content_ids.give(&batch).unwrap();
            ids.extend(batch.column(0).as_string::<i32>().iter().map(|id| id.unwrap().to_owned()));
        }
        ids
    }

    #[test]
    fn ids_are_unique_and_few_depend_on_the_rows_before() {
        let rows = 300_000;
        let forwards = ids(0..rows);
        assert_eq!(forwards.iter().collect::<HashSet<_>>().len(), rows as usize);
        let mut backwards = ids((0..rows).rev());
        backwards.reverse();
        let moved = forwards.iter().zip(&backwards).filter(|(a, b)| a != b).count();
        assert!(moved < rows as usize / 50, "{moved} of {rows} ids depend on the order");
    }

    #[test]
    fn ids_that_rows_bring_stay() {
        let mut seen = Seen::new(Density::OF_IDS);
        assert!((0..1_000_000_u64).all(|i| seen.is_new(xxh3_128(&i.to_le_bytes()))));
        assert!((0..1_000_000_u64).all(|i| !seen.is_new(xxh3_128(&i.to_le_bytes()))));
    }

    #[test]
    fn repeated_rows_have_ids_of_their_own() {
        let all = ids((0..9_000).map(|i| i % 3));
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 9_000);
        assert_eq!(all, ids((0..9_000).map(|i| i % 3)));
    }
}
