//! What `tests/fuzz` runs on any bytes; here it runs on the corpus.
#![allow(missing_docs, reason = "nothing here is for users")]

use std::{io::Cursor, sync::Arc};

use arrow::datatypes::Schema;
use indexmap::IndexMap;

use crate::{
    coco,
    compression::{Compression, Decompressed},
    csv_source::{Form, Records},
    globs,
    json_decoder::{JsonDecoder, MOST_OBJECTS},
    json_types::JsonType,
    lines::Lines,
    tar_reader::TarReader,
    text_types::{TextColumn, TextType},
};

/// Longest line and record; short, so that longer ones come up.
const MOST: usize = 4096;

/// The bytes as a file: compressed if they begin as such a file does.
fn opened(bytes: &[u8]) -> Option<Decompressed> {
    let compression = match bytes {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    };
    Decompressed::new(Box::new(Cursor::new(bytes.to_vec())), compression).ok()
}

/// An archive, packed or not: every member, and the content of the smaller ones.
pub fn tar(bytes: &[u8]) {
    let Some(reader) = opened(bytes) else { return };
    let mut tar = TarReader::new(reader, "x");
    let mut before = None;
    while let Ok(Some(member)) = tar.next() {
        assert!(before < Some(member.offset), "members stand one behind the other");
        before = Some(member.offset);
        if member.size < 1 << 20 {
            let Ok(content) = tar.content() else { return };
            assert_eq!(content.len() as u64, member.size);
        }
        // What unpacks to gigabytes takes time, which is not what is looked for.
        if tar.offset() > 16 << 20 {
            return;
        }
    }
}

/// Lines of JSON: cut, their types found in every second one, all decoded.
pub fn jsonl(bytes: &[u8]) {
    let Some(reader) = opened(bytes) else { return };
    let Ok(mut lines) = Lines::new(reader, "x", 0..16 << 20, MOST) else { return };
    let mut block = Vec::new();
    while lines.next_block(MOST_OBJECTS, 1 << 20, &mut block).is_ok() && !block.is_empty() {
        let whole: Vec<&[u8]> =
            block.iter().filter(|l| l.fault.is_none()).map(|l| &lines.text()[l.place.clone()]).collect();
        let mut types = JsonType::Struct(IndexMap::new());
        for line in whole.iter().step_by(2) {
            let Ok(value @ serde_json::Value::Object(_)) = serde_json::from_slice(line) else { continue };
            let merged = JsonType::of(&value).and_then(|row| types.clone().merge(row, ""));
            types = merged.unwrap_or(types);
        }
        let JsonType::Struct(fields) = types else { return };
        if fields.is_empty() {
            continue;
        }
        let (columns, faults) = JsonDecoder::new(Arc::new(Schema::new(JsonType::fields(&fields)))).decode(&whole);
        let good = faults.iter().filter(|fault| fault.is_none()).count();
        assert_eq!(faults.len(), whole.len());
        assert!(columns.len() == fields.len() && columns.iter().all(|column| column.len() == good));
    }
}

/// Records of values, with a header and without, their types found and all of them decoded.
pub fn csv(bytes: &[u8]) {
    for form in [Form { delimiter: b',', header: true }, Form { delimiter: b'\t', header: false }] {
        let Some(reader) = opened(bytes) else { return };
        let mut records = Records::new(reader, "x", form.delimiter, MOST);
        let Ok(names) = records.names(form) else { continue };
        let (mut rows, mut before) = (Vec::new(), None);
        while let Ok(Some(record)) = records.next() {
            assert!(before < Some(record.offset), "records stand one behind the other");
            before = Some(record.offset);
            if record.fault.is_none() && names.as_ref().is_some_and(|names| names.len() == records.fields().len()) {
                rows.push(records.fields().map(|f| String::from_utf8_lossy(f).into_owned()).collect::<Vec<_>>());
            }
        }
        for column in 0..names.map_or(0, |names| names.len()) {
            let found = rows.iter().fold(TextType::Empty, |found, row| found.merge(TextType::of(&row[column])));
            let Some(mut values) = TextColumn::new(&found.data_type()) else { continue };
            for row in &rows {
                let fits = row[column].is_empty() || values.unfit(&row[column]).is_none();
                assert!(fits, "{:?} does not fit the type that was found in it", row[column]);
                if row[column].is_empty() { values.push_null() } else { values.push(&row[column]) }
            }
            assert_eq!(values.finish().len(), rows.len());
        }
    }
}

/// A pattern, and in the next line a path.
pub fn globs(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (pattern, path) = text.split_once('\n').unwrap_or((text, text));
    assert!(pattern.starts_with(globs::root(pattern)));
    if !globs::is_pattern(pattern) && !pattern.split('/').any(|name| name.starts_with('.')) {
        assert!(globs::path_matches(pattern, pattern), "a path without pattern characters matches itself");
    }
    globs::path_matches(pattern, path);
    globs::component_matches(pattern, path);
    if let Ok(patterns) = globs::expand_braces(pattern) {
        assert!(!patterns.is_empty() && !patterns.iter().any(|p| p.contains('{')));
        for pattern in patterns.iter().take(10) {
            globs::path_matches(pattern, path);
        }
    }
}

/// A COCO annotation file: read, put together with itself, named.
pub fn annotations(bytes: &[u8]) {
    coco::fuzz(bytes);
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpus.rs"]
#[allow(clippy::unwrap_used)]
mod corpus;

#[cfg(test)]
mod tests {
    use super::corpus::run;

    #[test]
    fn every_corpus_is_read() {
        run("tar", super::tar);
        run("jsonl", super::jsonl);
        run("csv", super::csv);
        run("globs", super::globs);
        run("annotations", super::annotations);
    }
}
