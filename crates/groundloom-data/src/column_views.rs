//! Reading list-of-struct columns as outside files bring them: fields in any order, extra fields, other widths of integers, floats, strings and lists.

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Float32Array, GenericListArray, Int32Array, OffsetSizeTrait,
        StringArray, StructArray,
    },
    buffer::NullBuffer,
    compute::cast,
    datatypes::{DataType, Float32Type, Int32Type},
};

use crate::span::CharSpan;

/// A column whose Arrow type is not the one that its reader needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub struct ColumnTypeError {
    /// The type that is needed, in words, with the field that is missing or wrong.
    pub expected: String,
    /// The type that is there.
    pub found: String,
}

/// A value inside a row that contradicts its column's contract; the row is at fault, not the column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry}: {message}")]
pub struct ColumnValueError {
    /// Index of the entry in the row's list.
    pub entry: usize,
    /// What was expected and found.
    pub message: String,
}

/// Where each row's entries lie in the flattened fields of a `list<struct<…>>` column.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    starts: Vec<usize>,
    ends: Vec<usize>,
    nulls: Option<NullBuffer>,
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Range of the row's entries; `None` for a null row (and beyond the last row).
    pub(crate) fn entries(&self, row: usize) -> Option<std::ops::Range<usize>> {
        if self.nulls.as_ref().is_some_and(|n| row < n.len() && n.is_null(row)) {
            return None;
        }
        Some(*self.starts.get(row)?..*self.ends.get(row)?)
    }
}

/// The struct fields of a `list<struct<…>>` column, found by name and brought to one Arrow type each.
#[derive(Debug)]
pub(crate) struct Entries {
    pub(crate) rows: Rows,
    entries: StructArray,
    what: &'static str,
}

impl Entries {
    /// `what` names the type in messages, e.g. `chunks: list<struct<start, end, …>>`.
    pub(crate) fn try_new(column: &ArrayRef, what: &'static str) -> Result<Self, ColumnTypeError> {
        let wrong = || ColumnTypeError { expected: what.to_owned(), found: column.data_type().to_string() };
        let (rows, values) = match column.data_type() {
            DataType::List(_) => flatten(column.as_list::<i32>()),
            DataType::LargeList(_) => flatten(column.as_list::<i64>()),
            _ => return Err(wrong()),
        };
        let entries = values.as_struct_opt().ok_or_else(wrong)?.clone();
        Ok(Self { rows, entries, what })
    }

    fn field(
        &self,
        name: &str,
        data_type: &DataType,
        accepts: fn(&DataType) -> bool,
    ) -> Result<Option<ArrayRef>, ColumnTypeError> {
        let Some(field) = self.entries.column_by_name(name) else {
            return Ok(None);
        };
        let wrong = || ColumnTypeError {
            expected: format!("{} with a field `{name}` that can be read as {data_type}", self.what),
            found: self.found(),
        };
        if !accepts(field.data_type()) {
            return Err(wrong());
        }
        // A value that does not fit becomes null here, and then an error of its row.
        cast(field, data_type).map(Some).map_err(|_| wrong())
    }

    fn found(&self) -> String {
        let fields: Vec<String> =
            self.entries.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect();
        format!("a list of struct<{}>", fields.join(", "))
    }

    fn required<T>(&self, name: &str, field: Option<T>) -> Result<T, ColumnTypeError> {
        field.ok_or_else(|| ColumnTypeError {
            expected: format!("{} with a field `{name}`", self.what),
            found: self.found(),
        })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.column_by_name(name).is_some()
    }

    /// Whether the struct itself is null at this entry.
    pub(crate) fn nulls(&self) -> Option<NullBuffer> {
        self.entries.nulls().cloned()
    }

    pub(crate) fn integers(&self, name: &str) -> Result<Option<Int32Array>, ColumnTypeError> {
        let field = self.field(name, &DataType::Int32, |t| t.is_integer() || *t == DataType::Null)?;
        Ok(field.map(|f| f.as_primitive::<Int32Type>().clone()))
    }

    pub(crate) fn floats(&self, name: &str) -> Result<Option<Float32Array>, ColumnTypeError> {
        let field = self.field(name, &DataType::Float32, |t| t.is_numeric() || *t == DataType::Null)?;
        Ok(field.map(|f| f.as_primitive::<Float32Type>().clone()))
    }

    pub(crate) fn texts(&self, name: &str) -> Result<Option<StringArray>, ColumnTypeError> {
        let field = self.field(name, &DataType::Utf8, |t| {
            t.is_string() || matches!(t, DataType::Dictionary(_, v) if v.is_string()) || *t == DataType::Null
        })?;
        Ok(field.map(|f| f.as_string::<i32>().clone()))
    }

    pub(crate) fn booleans(&self, name: &str) -> Result<Option<BooleanArray>, ColumnTypeError> {
        let field = self.field(name, &DataType::Boolean, |t| matches!(t, DataType::Boolean | DataType::Null))?;
        Ok(field.map(|f| f.as_boolean().clone()))
    }

    pub(crate) fn required_integers(&self, name: &str) -> Result<Int32Array, ColumnTypeError> {
        self.required(name, self.integers(name)?)
    }

    pub(crate) fn required_floats(&self, name: &str) -> Result<Float32Array, ColumnTypeError> {
        self.required(name, self.floats(name)?)
    }

    pub(crate) fn required_texts(&self, name: &str) -> Result<StringArray, ColumnTypeError> {
        self.required(name, self.texts(name)?)
    }

    pub(crate) fn required_booleans(&self, name: &str) -> Result<BooleanArray, ColumnTypeError> {
        self.required(name, self.booleans(name)?)
    }
}

fn flatten<O: OffsetSizeTrait>(list: &GenericListArray<O>) -> (Rows, ArrayRef) {
    let offsets: Vec<usize> = list.value_offsets().iter().map(|o| o.as_usize()).collect();
    let rows =
        Rows { starts: offsets[..list.len()].to_vec(), ends: offsets[1..].to_vec(), nulls: list.nulls().cloned() };
    (rows, list.values().clone())
}

/// A field's value at a flattened position, as an error of the row where it is null or does not fit.
pub(crate) struct At {
    pub(crate) position: usize,
    pub(crate) entry: usize,
}

impl At {
    pub(crate) fn error(&self, message: impl Into<String>) -> ColumnValueError {
        ColumnValueError { entry: self.entry, message: message.into() }
    }

    pub(crate) fn index(&self, name: &str, field: &Int32Array) -> Result<usize, ColumnValueError> {
        match self.optional_index(name, field)? {
            Some(value) => Ok(value),
            None => Err(self.error(format!("expected a number in `{name}`, found null"))),
        }
    }

    pub(crate) fn optional_index(&self, name: &str, field: &Int32Array) -> Result<Option<usize>, ColumnValueError> {
        if field.is_null(self.position) {
            return Ok(None);
        }
        let value = field.value(self.position);
        usize::try_from(value)
            .map(Some)
            .map_err(|_| self.error(format!("expected a number of 0 or more in `{name}`, found {value}")))
    }

    pub(crate) fn float(&self, name: &str, field: &Float32Array) -> Result<f32, ColumnValueError> {
        if field.is_null(self.position) {
            return Err(self.error(format!("expected a number in `{name}`, found null")));
        }
        Ok(field.value(self.position))
    }

    pub(crate) fn text<'a>(&self, name: &str, field: &'a StringArray) -> Result<&'a str, ColumnValueError> {
        self.optional_text(field).ok_or_else(|| self.error(format!("expected a text in `{name}`, found null")))
    }

    pub(crate) fn optional_text<'a>(&self, field: &'a StringArray) -> Option<&'a str> {
        field.is_valid(self.position).then(|| field.value(self.position))
    }

    pub(crate) fn boolean(&self, name: &str, field: &BooleanArray) -> Result<bool, ColumnValueError> {
        if field.is_null(self.position) {
            return Err(self.error(format!("expected true or false in `{name}`, found null")));
        }
        Ok(field.value(self.position))
    }

    pub(crate) fn span(
        &self,
        names: (&str, &str),
        start: &Int32Array,
        end: &Int32Array,
    ) -> Result<CharSpan, ColumnValueError> {
        let (from, to) = (self.index(names.0, start)?, self.index(names.1, end)?);
        CharSpan::new(from, to)
            .ok_or_else(|| self.error(format!("expected `{}` <= `{}`, found {from} and {to}", names.0, names.1)))
    }
}

/// Reads the entries of one row with `read`; a null entry is an error of the row.
pub(crate) fn read_row<T>(
    rows: &Rows,
    nulls: Option<&NullBuffer>,
    row: usize,
    read: impl Fn(&At) -> Result<T, ColumnValueError>,
) -> Result<Option<Vec<T>>, ColumnValueError> {
    let Some(range) = rows.entries(row) else {
        return Ok(None);
    };
    let first = range.start;
    range
        .map(|position| {
            let at = At { position, entry: position - first };
            if nulls.is_some_and(|n| n.is_null(position)) {
                return Err(at.error("expected a struct, found null"));
            }
            read(&at)
        })
        .collect::<Result<Vec<T>, _>>()
        .map(Some)
}

/// A character offset or an index as the columns hold it; saturates far beyond any text that Arrow can hold.
pub(crate) fn to_i32(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
