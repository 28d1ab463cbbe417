//! Rows as JSON objects.
//!
//! Values are written as Arrow's own JSON writer writes them (RFC 3339 times, decimals as numbers, structs as objects, nulls spelled out so that every row has every key), with two
//! differences: text is escaped eight bytes at a time, and bytes are base64. NaN and infinities, for which JSON has no number, are `null`.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait, RecordBatch, StructArray, new_empty_array},
    datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef},
    error::ArrowError,
    json::writer::{Encoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::FormatError;

/// Each row as a JSON object, without the bytes of media.
///
/// # Errors
/// A column of a type that JSON cannot express.
pub fn objects(rows: &RecordBatch) -> Result<Vec<serde_json::Map<String, serde_json::Value>>, FormatError> {
    let json = JsonRows::new(rows.schema_ref(), Some(MediaInJson::Drop))?;
    let mut objects = Vec::with_capacity(rows.num_rows());
    let mut text = Vec::new();
    json.write(rows, &mut text, b"", |_, object| {
        objects.push(serde_json::from_slice(object).map_err(|e| ArrowError::JsonError(e.to_string()))?);
        object.clear();
        Ok::<(), ArrowError>(())
    })
    .map_err(|source| FormatError::Arrow { location: "rows as JSON".to_owned(), source })?;
    Ok(objects)
}

/// What becomes of bytes (media, and any other binary column) in JSON, which has no type for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MediaInJson {
    /// As base64 text: a third larger, and readable by everything.
    Base64,
    /// Left out; a media column keeps its `path`.
    Drop,
}

/// Turns batches into JSON objects, one a row.
#[derive(Debug)]
pub(crate) struct JsonRows {
    schema: SchemaRef,
    options: EncoderOptions,
}

impl JsonRows {
    /// For rows of the schema `input`; `media` says what becomes of bytes, and without it there must be none.
    pub(crate) fn new(input: &Schema, media: Option<MediaInJson>) -> Result<Self, FormatError> {
        let fields: Fields = match media {
            Some(MediaInJson::Base64) => input.fields().clone(),
            Some(MediaInJson::Drop) => input.fields().iter().filter_map(without_bytes).collect(),
            None => {
                if let Some(field) = input.fields().iter().find(|f| without_bytes(f).as_ref() != Some(f)) {
                    return Err(FormatError::Column {
                        column: field.name().clone(),
                        message: format!(
                            "the column `{0}` holds bytes, and JSON has no type for them: set `media: base64` to write them as text, `media: drop` to leave them out, or name the columns to write in `columns`",
                            field.name()
                        ),
                    });
                }
                input.fields().clone()
            }
        };
        let options = EncoderOptions::default().with_explicit_nulls(true).with_encoder_factory(Arc::new(FastEncoders));
        let rows = Self { schema: Arc::new(Schema::new(fields)), options };
        for field in rows.schema.fields() {
            make_encoder(field, &new_empty_array(field.data_type()), &rows.options).map_err(|_| {
                FormatError::Column {
                    column: field.name().clone(),
                    message: format!(
                        "the column `{}` of type {} cannot be written as JSON; leave it out with `columns`",
                        field.name(),
                        field.data_type()
                    ),
                }
            })?;
        }
        Ok(rows)
    }

    /// The columns that are written.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Appends each row's object and `end` to `out`, and calls `each` after it with the row's index.
    pub(crate) fn write<E: From<ArrowError>>(
        &self,
        rows: &RecordBatch,
        out: &mut Vec<u8>,
        end: &[u8],
        mut each: impl FnMut(usize, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let columns = self
            .schema
            .fields()
            .iter()
            .map(|field| keep(rows.column_by_name(field.name()), field))
            .collect::<Result<Vec<_>, _>>()?;
        let row = StructArray::try_new_with_length(self.schema.fields().clone(), columns, None, rows.num_rows())?;
        let field: FieldRef = Arc::new(Field::new_struct("", self.schema.fields().clone(), false));
        let mut encoder = make_encoder(&field, &row, &self.options)?;
        for i in 0..rows.num_rows() {
            encoder.encode(i, out);
            out.extend_from_slice(end);
            each(i, out)?;
        }
        Ok(())
    }
}

/// The field without binary parts; `None` if nothing is left.
fn without_bytes(field: &FieldRef) -> Option<FieldRef> {
    let with = |data_type| Arc::new(field.as_ref().clone().with_data_type(data_type));
    match field.data_type() {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => None,
        DataType::Struct(fields) => {
            let left: Fields = fields.iter().filter_map(without_bytes).collect();
            (!left.is_empty()).then(|| if left == *fields { field.clone() } else { with(DataType::Struct(left)) })
        }
        DataType::List(item) => Some(with(DataType::List(without_bytes(item)?))),
        DataType::LargeList(item) => Some(with(DataType::LargeList(without_bytes(item)?))),
        _ => Some(field.clone()),
    }
}

/// The column with only the parts that `field` has.
fn keep(column: Option<&ArrayRef>, field: &Field) -> Result<ArrayRef, ArrowError> {
    let column = column.ok_or_else(|| ArrowError::SchemaError(format!("the column {} is missing", field.name())))?;
    if column.data_type() == field.data_type() {
        return Ok(column.clone());
    }
    match field.data_type() {
        DataType::Struct(fields) => {
            let whole = column.as_struct();
            let columns =
                fields.iter().map(|f| keep(whole.column_by_name(f.name()), f)).collect::<Result<Vec<_>, _>>()?;
            Ok(Arc::new(StructArray::try_new_with_length(
                fields.clone(),
                columns,
                whole.nulls().cloned(),
                whole.len(),
            )?))
        }
        DataType::List(item) => keep_items(column.as_list::<i32>(), item),
        DataType::LargeList(item) => keep_items(column.as_list::<i64>(), item),
        _ => Ok(column.clone()),
    }
}

fn keep_items<O: OffsetSizeTrait>(list: &GenericListArray<O>, item: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let values = keep(Some(list.values()), item)?;
    Ok(Arc::new(GenericListArray::try_new(item.clone(), list.offsets().clone(), values, list.nulls().cloned())?))
}

/// Encoders that are faster or say more than Arrow's own.
#[derive(Debug)]
struct FastEncoders;

impl EncoderFactory for FastEncoders {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Utf8 => {
                let array = array.as_string::<i32>();
                Box::new(ByRow(move |i, out: &mut Vec<u8>| push_text(array.value(i), out)))
            }
            DataType::LargeUtf8 => {
                let array = array.as_string::<i64>();
                Box::new(ByRow(move |i, out: &mut Vec<u8>| push_text(array.value(i), out)))
            }
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Box::new(ByRow(move |i, out: &mut Vec<u8>| push_base64(array.value(i), out)))
            }
            DataType::LargeBinary => {
                let array = array.as_binary::<i64>();
                Box::new(ByRow(move |i, out: &mut Vec<u8>| push_base64(array.value(i), out)))
            }
            DataType::FixedSizeBinary(_) => {
                let array = array.as_fixed_size_binary();
                Box::new(ByRow(move |i, out: &mut Vec<u8>| push_base64(array.value(i), out)))
            }
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct ByRow<F>(F);

impl<F: FnMut(usize, &mut Vec<u8>)> Encoder for ByRow<F> {
    fn encode(&mut self, idx: usize, out: &mut Vec<u8>) {
        (self.0)(idx, out);
    }
}

fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    // Base64 is ASCII: no escapes, no line breaks.
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or(0);
    out.truncate(start + written);
    out.push(b'"');
}

/// Appends a JSON string. Only what JSON demands is escaped: quotes, backslashes and control characters.
fn push_text(text: &str, out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let bytes = text.as_bytes();
    let (mut copied, mut i) = (0, 0);
    while i < bytes.len() {
        if let Some(eight) = bytes.get(i..i + 8).and_then(|b| <[u8; 8]>::try_from(b).ok())
            && !needs_escape(u64::from_ne_bytes(eight))
        {
            i += 8;
            continue;
        }
        // A group of eight with an escape in it, or the tail: byte by byte.
        for at in i..(i + 8).min(bytes.len()) {
            let byte = bytes[at];
            if byte >= 0x20 && byte != b'"' && byte != b'\\' {
                continue;
            }
            out.extend_from_slice(&bytes[copied..at]);
            copied = at + 1;
            push_escape(byte, out);
        }
        i += 8;
    }
    out.extend_from_slice(&bytes[copied..]);
    out.push(b'"');
}

/// Whether one of eight bytes is below 0x20, a quote or a backslash. May say yes for none (a borrow between bytes), never no for one.
fn needs_escape(eight: u64) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES * 0x80;
    let below = |x: u64, n: u64| x.wrapping_sub(ONES * n) & !x;
    let quote = eight ^ (ONES * u64::from(b'"'));
    let backslash = eight ^ (ONES * u64::from(b'\\'));
    (below(eight, 0x20) | below(quote, 1) | below(backslash, 1)) & HIGH != 0
}

fn push_escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use arrow::array::{BinaryArray, Float64Array, Int64Array, StringArray};
    use groundloom_data::MediaBuilder;
    use proptest::prelude::*;

    fn lines(rows: &RecordBatch, media: Option<MediaInJson>) -> String {
        let mut out = Vec::new();
        let json = JsonRows::new(&rows.schema(), media).unwrap();
        json.write::<ArrowError>(rows, &mut out, b"\n", |_, _| Ok(())).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn rows() -> RecordBatch {
        let mut image = MediaBuilder::new();
        image.append(Some(b"\xff\xd8"), Some("a.jpg"));
        image.append_null();
        RecordBatch::try_from_iter([
            ("caption", Arc::new(StringArray::from(vec![Some("a \"dog\"\n"), None])) as ArrayRef),
            ("image", Arc::new(image.finish()) as ArrayRef),
            ("n", Arc::new(Int64Array::from(vec![1, -2])) as ArrayRef),
            ("score", Arc::new(Float64Array::from(vec![0.1, f64::NAN])) as ArrayRef),
            ("blob", Arc::new(BinaryArray::from_iter_values([b"abc", b"abd"])) as ArrayRef),
        ])
        .unwrap()
    }

    #[test]
    fn every_row_has_every_key() {
        assert_eq!(
            lines(&rows(), Some(MediaInJson::Base64)),
            "{\"caption\":\"a \\\"dog\\\"\\n\",\"image\":{\"bytes\":\"/9g=\",\"path\":\"a.jpg\"},\"n\":1,\"score\":0.1,\"blob\":\"YWJj\"}\n\
             {\"caption\":null,\"image\":null,\"n\":-2,\"score\":null,\"blob\":\"YWJk\"}\n"
        );
        assert_eq!(
            lines(&rows(), Some(MediaInJson::Drop)),
            "{\"caption\":\"a \\\"dog\\\"\\n\",\"image\":{\"path\":\"a.jpg\"},\"n\":1,\"score\":0.1}\n{\"caption\":null,\"image\":null,\"n\":-2,\"score\":null}\n"
        );
        let error = JsonRows::new(&rows().schema(), None).unwrap_err().to_string();
        assert!(error.contains("`image`") && error.contains("media: base64"), "{error}");
    }

    proptest! {
        #[test]
        fn text_survives(text in prop_oneof![any::<String>(), "[ -~\"\\\\\u{0}-\u{1f}éא🐕]{0,40}"]) {
            let mut out = Vec::new();
            push_text(&text, &mut out);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap(), "the same escapes as serde_json");
        }

        #[test]
        fn bytes_survive(bytes in any::<Vec<u8>>()) {
            let mut out = Vec::new();
            push_base64(&bytes, &mut out);
            prop_assert_eq!(STANDARD.decode(&out[1..out.len() - 1]).unwrap(), bytes);
        }
    }
}
