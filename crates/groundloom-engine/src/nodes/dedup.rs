//! The work of `dedup`: keys, runs of equal keys, and the merge that leaves repeats out.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, FixedSizeBinaryBuilder, StringArray,
        StringBuilder, UInt64Array, UInt64Builder,
    },
    compute::{cast, filter, filter_record_batch, not},
    datatypes::{DataType, Field, Schema, UInt64Type},
    record_batch::RecordBatch,
    row::{RowConverter, SortField},
};
use datafusion::{
    common::{DataFusionError, Result},
    execution::SendableRecordBatchStream,
};
use futures::{Stream, StreamExt, TryStreamExt};
use groundloom_data::columns::{ROW_ID, is_media};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::{counters::Counters, drops::DropLog};

/// Whether rows can be compared by a column of this type: media by their bytes, everything else by value, where Arrow's row format knows the type.
pub fn is_comparable(data_type: &DataType) -> bool {
    is_media(data_type) || RowConverter::supports_fields(&[SortField::new(data_type.clone())])
}

/// Hashes the chosen columns of batches.
struct KeyColumns {
    by: Vec<String>,
    /// For everything that is no medium.
    values: Option<RowConverter>,
}

impl KeyColumns {
    fn new(schema: &Schema, by: &[String]) -> Result<Self> {
        let plain: Vec<SortField> = by
            .iter()
            .map(|name| schema.field_with_name(name))
            .collect::<Result<Vec<&Field>, _>>()?
            .into_iter()
            .filter(|f| !is_media(f.data_type()))
            .map(|f| SortField::new(f.data_type().clone()))
            .collect();
        let values = if plain.is_empty() { None } else { Some(RowConverter::new(plain)?) };
        Ok(Self { by: by.to_vec(), values })
    }

    /// The key of every row; `None` where a column (or a medium's bytes) is null.
    fn of(&self, batch: &RecordBatch) -> Result<Vec<Option<u128>>> {
        let rows = batch.num_rows();
        let mut known = vec![true; rows];
        let (mut plain, mut media) = (Vec::new(), Vec::new());
        for name in &self.by {
            let column = batch
                .column_by_name(name)
                .ok_or_else(|| DataFusionError::Internal(format!("column `{name}` is gone")))?;
            for (row, known) in known.iter_mut().enumerate() {
                *known &= column.is_valid(row);
            }
            if is_media(column.data_type()) {
                let bytes = column.as_struct().column_by_name("bytes").cloned();
                let bytes = bytes.ok_or_else(|| DataFusionError::Internal(format!("`{name}` holds no bytes")))?;
                media.push(cast(&bytes, &DataType::BinaryView)?);
            } else {
                plain.push(Arc::clone(column));
            }
        }
        for bytes in &media {
            for (row, known) in known.iter_mut().enumerate() {
                *known &= bytes.is_valid(row);
            }
        }
        let values = self.values.as_ref().map(|v| v.convert_columns(&plain)).transpose()?;
        Ok((0..rows)
            .map(|row| {
                known[row].then(|| {
                    let value = values.as_ref().map(|v| v.row(row));
                    if media.is_empty() {
                        return xxh3_128(value.as_ref().map_or(&[][..], |v| v.data()));
                    }
                    let mut hash = Xxh3::new();
                    for bytes in &media {
                        hash.update(&xxh3_128(bytes.as_binary_view().value(row)).to_le_bytes());
                    }
                    if let Some(value) = value {
                        hash.update(value.data());
                    }
                    hash.digest128()
                })
            })
            .collect())
    }
}

/// Key, place and row id of the rows that can be compared.
pub(super) fn keys(
    rows: SendableRecordBatchStream,
    by: &[String],
) -> Result<impl Stream<Item = Result<RecordBatch>> + Send + use<>> {
    let columns = KeyColumns::new(&rows.schema(), by)?;
    let schema = super::set::keys_schema();
    let mut place = 0u64;
    Ok(rows.map(move |batch| {
        let batch = batch?;
        let keys = columns.of(&batch)?;
        let ids = ids_of(&batch)?;
        let mut key_column = FixedSizeBinaryBuilder::with_capacity(keys.len(), 16);
        let mut places = UInt64Builder::with_capacity(keys.len());
        let mut id_column = StringBuilder::with_capacity(keys.len(), keys.len() * 32);
        for (row, key) in keys.iter().enumerate() {
            if let Some(key) = key {
                key_column.append_value(key.to_be_bytes())?;
                places.append_value(place + row as u64);
                id_column.append_value(ids.value(row));
            }
        }
        place += keys.len() as u64;
        let columns: Vec<ArrayRef> =
            vec![Arc::new(key_column.finish()), Arc::new(places.finish()), Arc::new(id_column.finish())];
        Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
    }))
}

pub(super) fn ids_of(batch: &RecordBatch) -> Result<StringArray> {
    let ids = batch.column_by_name(ROW_ID).ok_or_else(|| DataFusionError::Internal("rows without id".into()))?;
    Ok(cast(ids, &DataType::Utf8)?.as_string::<i32>().clone())
}

/// Of keys sorted with their places: every place but the first of its key, with the first one's row id.
pub(super) fn repeats(keys: SendableRecordBatchStream) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let schema = super::set::repeats_schema();
    let mut first: Option<(Vec<u8>, String)> = None;
    keys.map(move |batch| {
        let batch = batch?;
        let (keys, places) = (batch.column(0).as_fixed_size_binary(), batch.column(1).as_primitive::<UInt64Type>());
        let ids = batch.column(2).as_string::<i32>();
        let (mut repeated, mut firsts) = (UInt64Builder::new(), StringBuilder::new());
        for row in 0..batch.num_rows() {
            match &first {
                Some((key, id)) if key == keys.value(row) => {
                    repeated.append_value(places.value(row));
                    firsts.append_value(id);
                }
                _ => first = Some((keys.value(row).to_vec(), ids.value(row).to_owned())),
            }
        }
        let columns: Vec<ArrayRef> = vec![Arc::new(repeated.finish()), Arc::new(firsts.finish())];
        Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
    })
}

/// Places in ascending order, one at a time.
struct Places {
    batches: SendableRecordBatchStream,
    /// The batch that is being read.
    now: Option<(UInt64Array, StringArray)>,
    next: usize,
}

impl Places {
    /// The next place and the row id that goes with it; it stays until [`Places::pass`].
    async fn peek(&mut self) -> Result<Option<(u64, &str)>> {
        while self.now.as_ref().is_none_or(|(places, _)| self.next >= places.len()) {
            let Some(batch) = self.batches.try_next().await? else { return Ok(None) };
            let ids = batch.column(1).as_string::<i32>().clone();
            self.now = Some((batch.column(0).as_primitive::<UInt64Type>().clone(), ids));
            self.next = 0;
        }
        Ok(self.now.as_ref().map(|(places, ids)| (places.value(self.next), ids.value(self.next))))
    }

    fn pass(&mut self) {
        self.next += 1;
    }
}

/// The rows whose place is not among the repeats; the others are counted and told.
pub(super) fn without_repeats(
    rows: SendableRecordBatchStream,
    repeats: SendableRecordBatchStream,
    name: Arc<str>,
    counters: Option<Arc<Counters>>,
    log: Option<Arc<DropLog>>,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let repeats = Places { batches: repeats, now: None, next: 0 };
    futures::stream::try_unfold((rows, repeats, 0u64), move |(mut rows, mut repeats, start)| {
        let (name, counters, log) = (Arc::clone(&name), counters.clone(), log.clone());
        async move {
            let Some(batch) = rows.try_next().await? else { return Ok(None) };
            let end = start + batch.num_rows() as u64;
            let mut kept = BooleanBufferBuilder::new(batch.num_rows());
            kept.append_n(batch.num_rows(), true);
            let mut firsts = StringBuilder::new();
            while let Some((place, first)) = repeats.peek().await?.filter(|(place, _)| *place < end) {
                kept.set_bit((place - start) as usize, false);
                firsts.append_value(first);
                repeats.pass();
            }
            let kept = BooleanArray::from(kept.finish());
            let passed = filter_record_batch(&batch, &kept)?;
            if let Some(counters) = counters {
                counters.add_rows(batch.num_rows() as u64, passed.num_rows() as u64);
            }
            if let Some(log) = log {
                let ids: ArrayRef = Arc::new(ids_of(&batch)?);
                log.tell(&name, "duplicate", &filter(&ids, &not(&kept)?)?, &[Arc::new(firsts.finish())])?;
            }
            Ok(Some((passed, (rows, repeats, end))))
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::collections::HashMap;

    use arrow::{
        array::{BinaryArray, Int64Array, StructArray},
        datatypes::Fields,
    };
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use groundloom_data::columns::media_type;
    use proptest::prelude::*;

    use super::*;

    type Row = (Option<i64>, Option<String>, Option<Vec<u8>>);

    fn batch(rows: &[Row]) -> RecordBatch {
        let DataType::Struct(media) = media_type() else { panic!("media are structs") };
        let bytes: BinaryArray = rows.iter().map(|r| r.2.as_deref()).collect();
        // Every row has a path of its own: it must not count.
        let paths: StringArray = (0..rows.len()).map(|i| Some(format!("{:p}-{i}", rows.as_ptr()))).collect();
        let images = StructArray::new(Fields::clone(&media), vec![Arc::new(bytes), Arc::new(paths)], None);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("a", Arc::new(rows.iter().map(|r| r.0).collect::<Int64Array>())),
            ("b", Arc::new(rows.iter().map(|r| r.1.as_deref()).collect::<StringArray>())),
            ("image", Arc::new(images)),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
    }

    fn row() -> impl Strategy<Value = Row> {
        (
            prop::option::weighted(0.9, 0i64..3),
            prop::option::weighted(0.9, "[ab]{0,2}"),
            prop::option::weighted(0.9, prop::collection::vec(0u8..2, 0..3)),
        )
    }

    proptest! {
        #[test]
        fn keys_are_equal_where_rows_are(rows in prop::collection::vec(row(), 1..60), cut in 0usize..60) {
            let by = ["b", "image", "a"].map(str::to_owned);
            let schema = batch(&rows).schema();
            let columns = KeyColumns::new(&schema, &by).unwrap();
            // Where batches are cut must not matter.
            let (left, right) = rows.split_at(cut.min(rows.len()));
            let mut keys = Vec::new();
            for part in [left, right].into_iter().filter(|p| !p.is_empty()) {
                keys.extend(columns.of(&batch(part)).unwrap());
            }
            let mut by_row: HashMap<&Row, u128> = HashMap::new();
            let mut by_key: HashMap<u128, &Row> = HashMap::new();
            for (row, key) in rows.iter().zip(keys) {
                prop_assert_eq!(key.is_some(), row.0.is_some() && row.1.is_some() && row.2.is_some());
                let Some(key) = key else { continue };
                prop_assert_eq!(*by_row.entry(row).or_insert(key), key);
                prop_assert_eq!(*by_key.entry(key).or_insert(row), row);
            }
        }
    }

    #[tokio::test]
    async fn repeats_name_the_first_of_their_key_over_batches() {
        let schema = super::super::set::keys_schema();
        let make = |rows: &[(u8, u64, &str)]| {
            let mut keys = FixedSizeBinaryBuilder::new(16);
            rows.iter().for_each(|r| keys.append_value([r.0; 16]).unwrap());
            let places: UInt64Array = rows.iter().map(|r| Some(r.1)).collect();
            let ids: StringArray = rows.iter().map(|r| Some(r.2)).collect();
            let columns: Vec<ArrayRef> = vec![Arc::new(keys.finish()), Arc::new(places), Arc::new(ids)];
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns).unwrap())
        };
        let batches = vec![
            make(&[(1, 4, "a"), (1, 7, "b")]),
            make(&[(1, 9, "c"), (2, 0, "d")]),
            make(&[(3, 2, "e"), (3, 3, "f")]),
        ];
        let input = RecordBatchStreamAdapter::new(Arc::clone(&schema), futures::stream::iter(batches));
        let found: Vec<RecordBatch> = repeats(Box::pin(input)).try_collect().await.unwrap();
        let told: Vec<(u64, String)> = found
            .iter()
            .flat_map(|b| {
                let (places, ids) = (b.column(0).as_primitive::<UInt64Type>(), b.column(1).as_string::<i32>());
                (0..b.num_rows()).map(|i| (places.value(i), ids.value(i).to_owned())).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(told, [(7, "a".to_owned()), (9, "a".to_owned()), (3, "e".to_owned())]);
    }
}
