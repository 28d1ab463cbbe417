//! JSON objects to Arrow columns, fast while they are good, one by one where one is bad.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, new_empty_array},
    datatypes::{DataType, Field, FieldRef, Float64Type, Schema, SchemaRef},
    json::{ReaderBuilder, reader::Decoder},
};

use crate::{quarantine_codes as codes, shard_rows::Fault};

/// Decodes JSON objects into columns of a fixed schema. Fields that the schema lacks are ignored, missing ones are null.
#[derive(Debug)]
pub(crate) struct JsonDecoder {
    schema: SchemaRef,
    decoder: Option<Decoder>,
    /// The columns with whole numbers, as floats: Arrow cuts off fractions without a word.
    wholes: Option<SchemaRef>,
}

/// Most objects in one call.
pub(crate) const MOST_OBJECTS: usize = 1 << 16;

impl JsonDecoder {
    /// `schema` has at least one column.
    pub(crate) fn new(schema: SchemaRef) -> Self {
        let wholes: Vec<FieldRef> = schema.fields().iter().filter_map(whole_numbers).collect();
        let wholes = (!wholes.is_empty()).then(|| Arc::new(Schema::new(wholes)));
        Self { schema, decoder: None, wholes }
    }

    fn fresh(&self) -> Result<Decoder, String> {
        fresh(&self.schema)
    }

    /// Decodes objects (at most [`MOST_OBJECTS`]): the columns of the good ones, and what is wrong with each of the others.
    pub(crate) fn decode(&mut self, objects: &[&[u8]]) -> (Vec<ArrayRef>, Vec<Option<Fault>>) {
        if let Some(columns) = self.all(objects) {
            return (columns, vec![None; objects.len()]);
        }
        let faults: Vec<Option<Fault>> = objects.iter().map(|object| self.fault(object)).collect();
        let good: Vec<&[u8]> = objects.iter().zip(&faults).filter(|(_, f)| f.is_none()).map(|(o, _)| *o).collect();
        match self.all(&good) {
            Some(columns) => (columns, faults),
            None => {
                // Each was good alone; together they are more than a column can hold.
                let columns = self.schema.fields().iter().map(|f| new_empty_array(f.data_type())).collect();
                let too_much = |f| {
                    Some(Option::unwrap_or(
                        f,
                        Fault::new(codes::TOO_LONG, "its batch holds more text than a column can"),
                    ))
                };
                (columns, faults.into_iter().map(too_much).collect())
            }
        }
    }

    /// The columns if every object is good.
    fn all(&mut self, objects: &[&[u8]]) -> Option<Vec<ArrayRef>> {
        if objects.is_empty() {
            return Some(self.schema.fields().iter().map(|f| new_empty_array(f.data_type())).collect());
        }
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => self.fresh().ok()?,
        };
        for (i, object) in objects.iter().enumerate() {
            let used = decoder.decode(object).ok()?;
            // One line is one object: neither two nor a half.
            if used != object.len() || decoder.len() != i + 1 || decoder.has_partial_record() {
                return None;
            }
        }
        let batch = decoder.flush().ok()??;
        self.decoder = Some(decoder);
        if self.has_cut_fraction(objects) {
            return None;
        }
        (batch.num_rows() == objects.len()).then(|| batch.columns().to_vec())
    }

    /// Whether a number with a fraction stands where the schema wants a whole one.
    fn has_cut_fraction(&self, objects: &[&[u8]]) -> bool {
        let Some(wholes) = &self.wholes else { return false };
        let suspects: Vec<&[u8]> = objects.iter().filter(|o| has_fraction(o)).copied().collect();
        if suspects.is_empty() {
            return false;
        }
        let Ok(mut decoder) = fresh(wholes) else { return true };
        if suspects.iter().any(|o| decoder.decode(o).is_err()) {
            return true;
        }
        match decoder.flush() {
            Ok(Some(batch)) => batch.columns().iter().any(holds_fraction),
            _ => true,
        }
    }

    fn fault(&self, object: &[u8]) -> Option<Fault> {
        if let Err(e) = str::from_utf8(object) {
            return Some(Fault::new(
                codes::INVALID_UTF8,
                format!("expected UTF-8, found other bytes from byte {} on", e.valid_up_to()),
            ));
        }
        let malformed = |message: String| Some(Fault::new(codes::MALFORMED_JSON, message));
        let mut decoder = match self.fresh() {
            Ok(decoder) => decoder,
            Err(message) => return malformed(message),
        };
        if object.trim_ascii_start().first() != Some(&b'{') {
            return malformed("expected a JSON object".to_owned());
        }
        match decoder.decode(object) {
            Err(e) => return malformed(plain(&e)),
            Ok(used) if decoder.has_partial_record() || decoder.is_empty() => {
                return malformed(format!(
                    "expected the end of the object, found the end of the text after {used} bytes"
                ));
            }
            Ok(used) if used != object.len() || decoder.len() != 1 => {
                return malformed("expected one JSON object, found more".to_owned());
            }
            Ok(_) => {}
        }
        match decoder.flush() {
            Ok(_) if self.has_cut_fraction(&[object]) => {
                Some(Fault::new(codes::TYPE_MISMATCH, "expected a whole number, found one with a fraction"))
            }
            Ok(_) => None,
            Err(e) => Some(Fault::new(codes::TYPE_MISMATCH, plain(&e))),
        }
    }
}

fn fresh(schema: &SchemaRef) -> Result<Decoder, String> {
    ReaderBuilder::new(Arc::clone(schema)).with_batch_size(MOST_OBJECTS + 1).build_decoder().map_err(|e| e.to_string())
}

/// The parts of a field that are whole numbers, as floats; `None` if there are none.
fn whole_numbers(field: &FieldRef) -> Option<FieldRef> {
    let data_type = match field.data_type() {
        t if t.is_integer() => DataType::Float64,
        DataType::List(item) => DataType::List(whole_numbers(item)?),
        DataType::Struct(fields) => {
            let fields: Vec<FieldRef> = fields.iter().filter_map(whole_numbers).collect();
            if fields.is_empty() {
                return None;
            }
            DataType::Struct(fields.into())
        }
        _ => return None,
    };
    Some(Arc::new(Field::new(field.name(), data_type, true)))
}

fn holds_fraction(column: &ArrayRef) -> bool {
    match column.data_type() {
        DataType::Float64 => column.as_primitive::<Float64Type>().iter().flatten().any(|v| v.fract() != 0.0),
        DataType::List(_) => holds_fraction(column.as_list::<i32>().values()),
        DataType::Struct(_) => column.as_struct().columns().iter().any(holds_fraction),
        _ => false,
    }
}

/// Whether a good object holds a number written with a point or a negative exponent, outside its texts.
fn has_fraction(object: &[u8]) -> bool {
    let mut rest = object;
    loop {
        // Numbers stand between texts.
        let text = memchr::memchr(b'"', rest).unwrap_or(rest.len());
        if rest[..text]
            .iter()
            .enumerate()
            .any(|(i, b)| *b == b'.' || (matches!(b, b'e' | b'E') && rest.get(i + 1) == Some(&b'-')))
        {
            return true;
        }
        let Some(inside) = rest.get(text + 1..) else { return false };
        let mut at = 0;
        loop {
            match memchr::memchr2(b'"', b'\\', &inside[at.min(inside.len())..]) {
                None => return false,
                Some(found) if inside[at + found] == b'\\' => at += found + 2,
                Some(found) => {
                    rest = &inside[at + found + 1..];
                    break;
                }
            }
        }
    }
}

fn plain(error: &arrow::error::ArrowError) -> String {
    match error {
        arrow::error::ArrowError::JsonError(message) => message.clone(),
        other => other.to_string(),
    }
}

/// The beginning of a text for a message, in one line.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]);
    let more = if bytes.len() > MOST { "…" } else { "" };
    format!("{}{more}", text.escape_debug())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use arrow::{array::RecordBatch, datatypes::Int64Type};

    fn decoder() -> JsonDecoder {
        let fields = vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)];
        JsonDecoder::new(Arc::new(Schema::new(fields)))
    }

    #[test]
    fn bad_objects_are_told_apart() {
        let cases: [(&[u8], Option<&str>); 20] = [
            (br#"{"a":1,"b":"x"}"#, None),
            (br#" {"b":"tab\t nul\u0000 \ud83d\udc15", "zzz": [1, {"y": 2}]} "#, None),
            (br#"{}"#, None),
            (br#"{"a":null,"b":null}"#, None),
            (br#"{"a":"#, Some(codes::MALFORMED_JSON)),
            (br#"{"a":1}}"#, Some(codes::MALFORMED_JSON)),
            (br#"{"a":1}{"a":2}"#, Some(codes::MALFORMED_JSON)),
            (br#"{"a":1} x"#, Some(codes::MALFORMED_JSON)),
            (br#"[1]"#, Some(codes::MALFORMED_JSON)),
            (br#"null"#, Some(codes::MALFORMED_JSON)),
            (br#"5"#, Some(codes::MALFORMED_JSON)),
            (br#"{a:1}"#, Some(codes::MALFORMED_JSON)),
            (b"\0\0\0\0", Some(codes::MALFORMED_JSON)),
            (br#"{"a":"one"}"#, Some(codes::TYPE_MISMATCH)),
            (br#"{"a":1.5}"#, Some(codes::TYPE_MISMATCH)),
            (br#"{"a":99999999999999999999}"#, Some(codes::TYPE_MISMATCH)),
            (br#"{"b":7}"#, Some(codes::TYPE_MISMATCH)),
            (br#"{"b":{"x":1}}"#, Some(codes::TYPE_MISMATCH)),
            (b"{\"b\":\"\xff\xfe\"}", Some(codes::INVALID_UTF8)),
            (br#"{"b":"\ud83d"}"#, Some(codes::MALFORMED_JSON)),
        ];
        let mut decoder = decoder();
        for (object, expected) in cases {
            let (columns, faults) = decoder.decode(&[object]);
            let code = faults[0].as_ref().map(|f| f.code);
            assert_eq!(code, expected, "{} {faults:?}", String::from_utf8_lossy(object));
            assert_eq!(columns[0].len(), usize::from(expected.is_none()));
        }
        let objects: Vec<&[u8]> = cases.iter().map(|c| c.0).collect();
        let (columns, faults) = decoder.decode(&objects);
        assert_eq!(
            faults.iter().map(|f| f.as_ref().map(|f| f.code)).collect::<Vec<_>>(),
            cases.iter().map(|c| c.1).collect::<Vec<_>>()
        );
        let batch = RecordBatch::try_new(decoder.schema.clone(), columns).unwrap();
        assert_eq!(batch.num_rows(), 4);
        assert_eq!(batch.column(0).as_primitive::<Int64Type>().value(0), 1);
        assert_eq!(batch.column(1).as_string::<i32>().value(1), "tab\t nul\0 🐕");
    }

    #[test]
    fn fractions_are_not_cut_off() {
        let item = |t| Arc::new(Field::new("item", t, true));
        let inner = DataType::Struct(
            vec![Field::new("n", DataType::Int64, true), Field::new("w", DataType::Float64, true)].into(),
        );
        let fields = vec![
            Field::new("l", DataType::List(item(DataType::Int64)), true),
            Field::new("s", DataType::List(item(inner)), true),
        ];
        let mut decoder = JsonDecoder::new(Arc::new(Schema::new(fields)));
        let cases: [(&[u8], bool); 7] = [
            (br#"{"l":[1,2],"s":[{"n":3,"w":0.5}]}"#, true),
            (br#"{"l":[1,2.5]}"#, false),
            (br#"{"s":[{"w":0.5},{"n":1.25}]}"#, false),
            (br#"{"l":[15e-1]}"#, false),
            (br#"{"l":[20e-1, 1e3, 2.0]}"#, true),
            (br#"{"zzz":1.5,"l":[1]}"#, true),
            (br#"{"t\\":"1.5 \" 2.5","l":[9223372036854775807]}"#, true),
        ];
        let (columns, faults) = decoder.decode(&cases.map(|c| c.0));
        assert_eq!(faults.iter().map(Option::is_none).collect::<Vec<_>>(), cases.map(|c| c.1));
        assert_eq!(
            columns[0].as_list::<i32>().values().as_primitive::<Int64Type>().values(),
            &[1, 2, 2, 1000, 2, 1, i64::MAX]
        );
    }

    #[test]
    fn halves_do_not_make_a_whole() {
        let objects: [&[u8]; 3] = [br#"{"a":1}{"a":2}"#, br#"{"a":"#, b"3}"];
        let (columns, faults) = decoder().decode(&objects);
        assert!(faults.iter().all(Option::is_some), "{faults:?}");
        assert_eq!(columns[0].len(), 0);
    }

    #[test]
    fn nesting_without_end_is_an_error() {
        let deep = [br#"{"zzz":"#.as_slice(), &b"[".repeat(1 << 20)].concat();
        let (_, faults) = decoder().decode(&[&deep]);
        assert_eq!(faults[0].as_ref().unwrap().code, codes::MALFORMED_JSON);
    }
}
