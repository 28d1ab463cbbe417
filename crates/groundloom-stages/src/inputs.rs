//! The columns that a stage reads: found by name while the pipeline file is checked, opened once per window.

use arrow::{
    array::{Array, ArrayRef, AsArray, LargeStringArray, StringArray, StringViewArray},
    compute::cast,
    datatypes::{DataType, Schema},
    record_batch::RecordBatch,
};
use groundloom_data::{ColumnTypeError, columns};

use crate::stage::{ColumnError, StageError};

/// Checks that `schema` has the column that the config key `key` names, and that `check` accepts its type.
pub(crate) fn require(
    schema: &Schema,
    key: &'static str,
    column: &str,
    check: impl Fn(&DataType) -> Result<(), ColumnTypeError>,
) -> Result<(), ColumnError> {
    let error = |message| ColumnError { key, column: column.to_owned(), message };
    let Ok(field) = schema.field_with_name(column) else {
        return Err(error(format!("there is no column `{column}` here, only {}", names(schema))));
    };
    check(field.data_type()).map_err(|e| error(format!("column `{column}`: {e}")))
}

fn names(schema: &Schema) -> String {
    let names: Vec<String> = schema
        .fields()
        .iter()
        .map(|f| f.name())
        .filter(|n| *n != columns::ROW_ID && *n != columns::ERROR)
        .map(|n| format!("`{n}`"))
        .collect();
    if names.is_empty() { "row ids".to_owned() } else { names.join(", ") }
}

/// The column `name` of a window. Its presence was checked with the schema, so that a lack of it is a broken promise of the caller.
pub(crate) fn column<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, StageError> {
    rows.column_by_name(name).ok_or_else(|| {
        StageError::Other(format!("the rows have no column `{name}` although the stage was opened with it"))
    })
}

/// A broken promise of the caller: the type was checked before any work.
pub(crate) fn type_changed(name: &str) -> impl Fn(ColumnTypeError) -> StageError {
    move |error| StageError::Other(format!("column `{name}` changed its type during the run: {error}"))
}

/// A column of texts, of any of Arrow's string types.
#[derive(Debug, Clone)]
pub(crate) enum Texts {
    Small(StringArray),
    Large(LargeStringArray),
    View(StringViewArray),
}

impl Texts {
    /// Opens `column`; dictionaries are unpacked.
    pub(crate) fn try_new(column: &ArrayRef) -> Result<Self, ColumnTypeError> {
        let wrong =
            || ColumnTypeError { expected: "a text column, utf8".to_owned(), found: column.data_type().to_string() };
        match column.data_type() {
            DataType::Utf8 => Ok(Self::Small(column.as_string().clone())),
            DataType::LargeUtf8 => Ok(Self::Large(column.as_string().clone())),
            DataType::Utf8View => Ok(Self::View(column.as_string_view().clone())),
            DataType::Dictionary(_, values)
                if matches!(**values, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) =>
            {
                Self::try_new(&cast(column, values).map_err(|_| wrong())?)
            }
            // A source whose captions are all null infers no type.
            DataType::Null => Ok(Self::Small(StringArray::new_null(column.len()))),
            _ => Err(wrong()),
        }
    }

    /// Checks a type as [`Texts::try_new`] does, before there is data.
    pub(crate) fn check_type(data_type: &DataType) -> Result<(), ColumnTypeError> {
        Self::try_new(&arrow::array::new_empty_array(data_type)).map(|_| ())
    }

    /// The text of a row; `None` where it is null.
    pub(crate) fn get(&self, row: usize) -> Option<&str> {
        match self {
            Self::Small(a) => a.is_valid(row).then(|| a.value(row)),
            Self::Large(a) => a.is_valid(row).then(|| a.value(row)),
            Self::View(a) => a.is_valid(row).then(|| a.value(row)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::sync::Arc;

    use arrow::{
        array::{DictionaryArray, Int32Array, NullArray},
        datatypes::{Field, Int32Type},
    };

    use super::*;

    #[test]
    fn texts_of_every_string_type_read_alike() {
        let given = [Some("a dog"), None, Some("🐕")];
        let dictionary: DictionaryArray<Int32Type> = given.into_iter().collect();
        let columns: [ArrayRef; 4] = [
            Arc::new(StringArray::from_iter(given)),
            Arc::new(LargeStringArray::from_iter(given)),
            Arc::new(StringViewArray::from_iter(given)),
            Arc::new(dictionary),
        ];
        for column in columns {
            let texts = Texts::try_new(&column).unwrap();
            assert_eq!([texts.get(0), texts.get(1), texts.get(2)], given, "{}", column.data_type());
        }
        let nulls: ArrayRef = Arc::new(NullArray::new(2));
        assert_eq!(Texts::try_new(&nulls).unwrap().get(1), None);
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        assert_eq!(Texts::try_new(&numbers).unwrap_err().to_string(), "expected a text column, utf8, found Int32");
    }

    #[test]
    fn a_missing_column_is_named_with_those_that_are_there() {
        let schema = Schema::new(vec![
            Field::new("row_id", DataType::Utf8, false),
            Field::new("image", columns::media_type(), true),
            Field::new("text", DataType::Utf8, true),
        ]);
        let error = require(&schema, "text", "caption", Texts::check_type).unwrap_err();
        assert_eq!((error.key, error.column.as_str()), ("text", "caption"));
        assert_eq!(error.message, "there is no column `caption` here, only `image`, `text`");
        let error = require(&schema, "text", "image", Texts::check_type).unwrap_err();
        assert!(
            error.message.starts_with("column `image`: expected a text column, utf8, found Struct"),
            "{}",
            error.message
        );
    }
}
