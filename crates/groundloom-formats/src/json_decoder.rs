//! JSON objects to Arrow columns, fast while they are good, one by one where one is bad.

use arrow::{
    array::{ArrayRef, new_empty_array},
    datatypes::SchemaRef,
    json::{ReaderBuilder, reader::Decoder},
};

use crate::{quarantine_codes as codes, shard_rows::Fault};

/// Decodes JSON objects into columns of a fixed schema. Fields that the schema lacks are ignored, missing ones are null.
#[derive(Debug)]
pub(crate) struct JsonDecoder {
    schema: SchemaRef,
    decoder: Option<Decoder>,
}

/// Most objects in one call.
pub(crate) const MOST_OBJECTS: usize = 1 << 16;

impl JsonDecoder {
    /// `schema` has at least one column.
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Self { schema, decoder: None }
    }

    fn fresh(&self) -> Result<Decoder, String> {
        ReaderBuilder::new(self.schema.clone())
            .with_batch_size(MOST_OBJECTS + 1)
            .build_decoder()
            .map_err(|e| e.to_string())
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
        (batch.num_rows() == objects.len()).then(|| batch.columns().to_vec())
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
            Ok(_) => None,
            Err(e) => Some(Fault::new(codes::TYPE_MISMATCH, plain(&e))),
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
    use arrow::{
        array::{Array, AsArray, RecordBatch},
        datatypes::{DataType, Field, Int64Type, Schema},
    };
    use std::sync::Arc;

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
