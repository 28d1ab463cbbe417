//! Row ids inside plans: made from place or key, and drawn for samples.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, StringArray, StringBuilder},
    compute::cast,
    datatypes::DataType,
};
use datafusion::{
    common::{
        Result, ScalarValue,
        cast::{as_int64_array, as_string_array, as_uint64_array},
        exec_err,
    },
    logical_expr::{ColumnarValue, Expr, ScalarUDF, Volatility, create_udf, lit},
};
use groundloom_data::row_id::RowId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

fn arrays(arguments: &[ColumnarValue]) -> Result<Vec<ArrayRef>> {
    ColumnarValue::values_to_arrays(arguments)
}

/// `row_id(file hash, row number)`: the id of a row of a Parquet file.
pub fn in_file(file_hash: Expr, row_number: Expr) -> Expr {
    let function = |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let arguments = arrays(arguments)?;
        let (files, rows) = (as_uint64_array(&arguments[0])?, as_int64_array(&arguments[1])?);
        Ok(ColumnarValue::Array(Arc::new(RowId::column_of_rows(files.values(), rows.values()))))
    };
    let udf = create_udf(
        "groundloom_row_id",
        vec![DataType::UInt64, DataType::Int64],
        DataType::Utf8,
        Volatility::Immutable,
        Arc::new(function),
    );
    udf.call(vec![file_hash, row_number])
}

/// `row_id(key)`: the id of a row whose key the user named; a row without key keeps the id of its place.
pub fn of_key(key: Expr, place: Expr) -> Expr {
    let function = |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let arguments = arrays(arguments)?;
        let (keys, places) = (as_string_array(&arguments[0])?, as_string_array(&arguments[1])?);
        let mut ids = StringBuilder::with_capacity(keys.len(), keys.len() * RowId::HEX_LEN);
        for row in 0..keys.len() {
            if keys.is_valid(row) {
                RowId::from_key(keys.value(row)).push_hex(&mut ids);
            } else {
                ids.append_value(places.value(row));
            }
        }
        Ok(ColumnarValue::Array(Arc::new(ids.finish())))
    };
    let udf = create_udf(
        "groundloom_row_id_of_key",
        vec![DataType::Utf8, DataType::Utf8],
        DataType::Utf8,
        Volatility::Immutable,
        Arc::new(function),
    );
    udf.call(vec![datafusion::logical_expr::cast(key, DataType::Utf8), place])
}

/// Whether a row's id is one of these.
pub fn is_one_of(row_id: Expr, ids: &Arc<HashSet<String>>) -> Expr {
    let ids = Arc::clone(ids);
    let function = move |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let column = cast(&arguments[0].clone().into_array(1)?, &DataType::Utf8)?;
        let column: &StringArray = as_string_array(&column)?;
        let found: BooleanArray = column.iter().map(|id| Some(id.is_some_and(|id| ids.contains(id)))).collect();
        Ok(ColumnarValue::Array(Arc::new(found)))
    };
    let udf = create_udf(
        "groundloom_is_one_of",
        vec![DataType::Utf8],
        DataType::Boolean,
        Volatility::Immutable,
        Arc::new(function),
    );
    udf.call(vec![row_id])
}

/// Whether a row is in a sample of `fraction` (0..=1) of the rows: a hash of its id under `seed`, so that the draw depends on nothing else.
pub fn in_sample(row_id: Expr, fraction: f64, seed: u64) -> Expr {
    let function = |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let (
            Some(ColumnarValue::Scalar(ScalarValue::Float64(Some(fraction)))),
            Some(ColumnarValue::Scalar(ScalarValue::UInt64(Some(seed)))),
        ) = (arguments.get(1), arguments.get(2))
        else {
            return exec_err!("groundloom_in_sample takes a fraction and a seed that are literals");
        };
        let ids = arguments[0].clone().into_array(1)?;
        let ids = cast(&ids, &DataType::Utf8)?;
        let ids: &StringArray = as_string_array(&ids)?;
        let drawn: BooleanArray = (0..ids.len()).map(|row| Some(unit(ids.value(row), *seed) < *fraction)).collect();
        Ok(ColumnarValue::Array(Arc::new(drawn)))
    };
    let udf: ScalarUDF = create_udf(
        "groundloom_in_sample",
        vec![DataType::Utf8, DataType::Float64, DataType::UInt64],
        DataType::Boolean,
        Volatility::Immutable,
        Arc::new(function),
    );
    udf.call(vec![row_id, lit(fraction), lit(seed)])
}

/// A number in [0, 1) drawn for a row id.
pub fn unit(row_id: &str, seed: u64) -> f64 {
    // 53 bits: every value is exact in an f64.
    (xxh3_64_with_seed(row_id.as_bytes(), seed) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn samples_of_one_seed_are_nested_and_have_the_asked_size() {
        let ids: Vec<String> = (0..20_000).map(|i| RowId::from_key(&i.to_string()).to_string()).collect();
        let half = ids.iter().filter(|id| unit(id, 7) < 0.5).count();
        let tenth = ids.iter().filter(|id| unit(id, 7) < 0.1).count();
        assert!((9_500..10_500).contains(&half), "{half}");
        assert!((1_800..2_200).contains(&tenth), "{tenth}");
        assert!(ids.iter().all(|id| unit(id, 7) < 1.0 && unit(id, 7) >= 0.0));
        assert_ne!(
            ids.iter().map(|id| unit(id, 7) < 0.5).collect::<Vec<_>>(),
            ids.iter().map(|id| unit(id, 8) < 0.5).collect::<Vec<_>>()
        );
    }
}
