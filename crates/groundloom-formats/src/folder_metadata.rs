//! The metadata file of an image folder: where each file's row stands, and the rows' columns.

use std::{collections::HashMap, io::Read, ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, UInt32Array},
    compute::take,
    datatypes::{Field, Schema, SchemaRef},
};
use indexmap::IndexMap;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    FormatError,
    compression::{Compression, Decompressed},
    json_decoder::{JsonDecoder, excerpt},
    json_types::JsonType,
    lines::Lines,
    quarantine_codes as codes,
    shard_rows::Fault,
    store::{Entry, Stores, io_error},
    text_types::{TextColumn, TextType},
};

/// The column of the metadata that names a row's file.
pub(crate) const FILE_NAME: &str = "file_name";

/// Where a metadata row stands, and a hash of its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowPlace {
    pub(crate) range: Range<u64>,
    pub(crate) hash: u64,
}

/// What is known of a metadata file; its rows are read again when they are needed.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) location: String,
    /// Path relative to the folder.
    pub(crate) path: String,
    /// Columns without `file_name`.
    pub(crate) schema: SchemaRef,
    /// Of a CSV file: every column of it.
    header: Option<Vec<String>>,
}

/// The rows of a metadata file by the file they name.
#[derive(Debug, Default)]
pub(crate) struct RowIndex {
    pub(crate) rows: HashMap<String, RowPlace>,
    /// Later rows for a file that has one.
    pub(crate) again: Vec<(String, RowPlace)>,
    /// Rows that name no file.
    pub(crate) nameless: Vec<RowPlace>,
}

impl RowIndex {
    fn put(&mut self, name: Option<&str>, range: Range<u64>, text: &[u8]) {
        let place = RowPlace { range, hash: xxh3_64(text) };
        let name = name.map(|n| n.trim_start_matches("./")).filter(|n| !n.is_empty());
        match name {
            None => self.nameless.push(place),
            Some(name) if self.rows.contains_key(name) => self.again.push((name.to_owned(), place)),
            Some(name) => {
                self.rows.insert(name.to_owned(), place);
            }
        }
    }
}

impl Metadata {
    /// Reads a metadata file once: its columns, over all of its rows, and where each row stands. Blocks.
    ///
    /// # Errors
    /// It cannot be read, no row names a file, or a column holds several types.
    pub(crate) fn read(stores: &Stores, entry: &Entry) -> Result<(Self, RowIndex), FormatError> {
        if Compression::of_path(entry.path()) != Compression::None {
            return Err(FormatError::Input {
                key: "metadata",
                message: format!(
                    "expected plain JSON lines or CSV, found the compressed file `{}`; unpack it",
                    entry.path()
                ),
            });
        }
        let csv = entry.path().to_ascii_lowercase().ends_with(".csv");
        let (metadata, index) = if csv { Self::read_csv(stores, entry)? } else { Self::read_jsonl(stores, entry)? };
        if index.rows.is_empty() {
            let example = if csv { "a column `file_name`" } else { "{\"file_name\": \"a.jpg\", \"caption\": \"…\"}" };
            return Err(metadata.malformed(format!("no row names a file: expected {example}")));
        }
        Ok((metadata, index))
    }

    fn malformed(&self, message: String) -> FormatError {
        FormatError::Malformed { location: self.location.clone(), message }
    }

    fn new(entry: &Entry) -> Self {
        let schema = Arc::new(Schema::empty());
        Self { location: entry.location.to_string(), path: entry.path().to_owned(), schema, header: None }
    }

    fn read_jsonl(stores: &Stores, entry: &Entry) -> Result<(Self, RowIndex), FormatError> {
        let (mut metadata, mut index) = (Self::new(entry), RowIndex::default());
        let source = stores.reader(&entry.location, None)?;
        let reader = Decompressed::new(source, Compression::None).map_err(|e| io_error(&entry.location, e))?;
        let mut lines = Lines::new(reader, &entry.location, 0..entry.size, LONGEST_ROW)?;
        let mut types = JsonType::Struct(IndexMap::new());
        let mut block = Vec::new();
        loop {
            lines.next_block(8192, 1 << 20, &mut block)?;
            if block.is_empty() {
                break;
            }
            for line in &block {
                let text = &lines.text()[line.place.clone()];
                let value: Option<serde_json::Value> =
                    serde_json::from_slice(text).ok().filter(serde_json::Value::is_object);
                let name = value.as_ref().and_then(|v| v.get(FILE_NAME)).and_then(serde_json::Value::as_str);
                index.put(name, line.offset..line.offset + text.len() as u64, text);
                let Some(value) = &value else { continue };
                let before = std::mem::replace(&mut types, JsonType::Null);
                types = JsonType::of(value).and_then(|row| before.merge(row, "")).map_err(|conflict| {
                    metadata.malformed(format!(
                        "the row at byte {}: {conflict}; make the column's values one type",
                        line.offset
                    ))
                })?;
            }
        }
        if let JsonType::Struct(mut types) = types {
            types.shift_remove(FILE_NAME);
            metadata.schema = Arc::new(Schema::new(JsonType::fields(&types)));
        }
        Ok((metadata, index))
    }

    fn read_csv(stores: &Stores, entry: &Entry) -> Result<(Self, RowIndex), FormatError> {
        let (mut metadata, mut index) = (Self::new(entry), RowIndex::default());
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(stores.reader(&entry.location, None)?);
        let header = reader.headers().map_err(|e| metadata.malformed(e.to_string()))?;
        let header: Vec<String> = header.iter().map(|h| h.trim_start_matches('\u{feff}').to_owned()).collect();
        let Some(name_at) = header.iter().position(|h| h == FILE_NAME) else {
            return Err(metadata
                .malformed(format!("expected a column `{FILE_NAME}` in the header, found {}", header.join(", "))));
        };
        let mut types = vec![TextType::Empty; header.len()];
        let mut record = csv::ByteRecord::new();
        while reader.read_byte_record(&mut record).map_err(|e| metadata.malformed(e.to_string()))? {
            let range = record.position().map_or(0, csv::Position::byte)..reader.position().byte();
            let name = record.get(name_at).and_then(|n| str::from_utf8(n).ok());
            index.put(name, range, record.as_slice());
            if record.len() == header.len() {
                for (found, value) in types.iter_mut().zip(&record) {
                    *found = found.merge(TextType::of(&String::from_utf8_lossy(value)));
                }
            }
        }
        let columns = header.iter().zip(&types).filter(|(h, _)| *h != FILE_NAME);
        metadata.schema =
            Arc::new(Schema::new(columns.map(|(h, t)| Field::new(h, t.data_type(), true)).collect::<Vec<_>>()));
        metadata.header = Some(header);
        Ok((metadata, index))
    }

    /// The columns at the indices `wanted` of [`Metadata::schema`] for rows of which the text is given, or not; one value per row, and what is wrong with it.
    pub(crate) fn columns(
        &self,
        wanted: &[usize],
        rows: &[Option<&[u8]>],
    ) -> Result<(Vec<ArrayRef>, Vec<Option<Fault>>), FormatError> {
        let fields: Vec<_> = wanted.iter().map(|i| Arc::clone(&self.schema.fields()[*i])).collect();
        match &self.header {
            Some(header) => Ok(csv_columns(header, &fields, rows)),
            None => {
                // Rows are checked even where no column is asked for.
                let nothing = Arc::new(Field::new(FILE_NAME, arrow::datatypes::DataType::Utf8, true));
                let decoded = if fields.is_empty() { vec![nothing] } else { fields.clone() };
                let texts: Vec<&[u8]> = rows.iter().flatten().copied().collect();
                let (good, faults) = JsonDecoder::new(Arc::new(Schema::new(decoded))).decode(&texts);
                let mut faults = faults.into_iter();
                let faults: Vec<Option<Fault>> =
                    rows.iter().map(|row| row.and_then(|_| faults.next().flatten())).collect();
                let mut next = 0;
                let places: UInt32Array = rows
                    .iter()
                    .zip(&faults)
                    .map(|(row, fault)| {
                        (row.is_some() && fault.is_none()).then(|| {
                            next += 1;
                            next - 1
                        })
                    })
                    .collect();
                let columns = good[..fields.len()].iter().map(|c| take(c, &places, None)).collect::<Result<_, _>>();
                columns
                    .map(|columns| (columns, faults))
                    .map_err(|source| FormatError::Arrow { location: self.location.clone(), source })
            }
        }
    }
}

/// A longer metadata row names no file as far as we look.
const LONGEST_ROW: usize = 256 << 20;

fn csv_columns(
    header: &[String],
    fields: &[arrow::datatypes::FieldRef],
    rows: &[Option<&[u8]>],
) -> (Vec<ArrayRef>, Vec<Option<Fault>>) {
    let places: Vec<usize> = fields.iter().filter_map(|f| header.iter().position(|h| h == f.name())).collect();
    let mut columns: Vec<TextColumn> = fields.iter().filter_map(|f| TextColumn::new(f.data_type())).collect();
    let faults = rows
        .iter()
        .map(|row| {
            let record = row.map(|text| csv_record(header, text)).transpose();
            let record = record.and_then(|record| {
                let Some(record) = record else { return Ok(None) };
                for ((column, place), field) in columns.iter().zip(&places).zip(fields) {
                    if let Some(expected) = column.unfit(&record[*place]) {
                        let message = format!(
                            "expected {expected} in `{}`, found `{}`",
                            field.name(),
                            excerpt(record[*place].as_bytes())
                        );
                        return Err(Fault::new(codes::TYPE_MISMATCH, message));
                    }
                }
                Ok(Some(record))
            });
            match &record {
                Ok(Some(record)) => columns.iter_mut().zip(&places).for_each(|(c, p)| c.push(&record[*p])),
                _ => columns.iter_mut().for_each(TextColumn::push_null),
            }
            record.err()
        })
        .collect();
    (columns.iter_mut().map(TextColumn::finish).collect(), faults)
}

fn csv_record(header: &[String], text: &[u8]) -> Result<csv::StringRecord, Fault> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text);
    let mut record = csv::ByteRecord::new();
    let read = reader.read_byte_record(&mut record);
    if !read.is_ok_and(|found| found) || record.len() != header.len() {
        return Err(Fault::new(
            codes::RAGGED_ROW,
            format!("expected {} fields as in the header, found {}", header.len(), record.len()),
        ));
    }
    csv::StringRecord::from_byte_record(record).map_err(|e| Fault::new(codes::INVALID_UTF8, e.to_string()))
}

/// Bytes between two ranges that are read along rather than asked for twice.
const GAP: u64 = 64 << 10;

/// Reads ranges of a file, neighbours together, in the order given. Blocks.
pub(crate) fn read_ranges(
    stores: &Stores,
    location: &str,
    ranges: &[Option<Range<u64>>],
) -> Result<Vec<Option<Vec<u8>>>, FormatError> {
    let mut order: Vec<(usize, &Range<u64>)> =
        ranges.iter().enumerate().filter_map(|(i, r)| r.as_ref().map(|r| (i, r))).collect();
    order.sort_by_key(|(_, r)| (r.start, r.end));
    let mut texts = vec![None; ranges.len()];
    let mut rest = order.as_slice();
    while let Some((_, first)) = rest.first() {
        let mut end = first.end;
        let mut count = 0;
        for (_, range) in rest {
            if range.start > end.saturating_add(GAP) {
                break;
            }
            end = end.max(range.end);
            count += 1;
        }
        let mut bytes = Vec::new();
        let mut reader = stores.reader(location, Some(first.start..end))?;
        reader.read_to_end(&mut bytes).map_err(|e| io_error(location, e))?;
        for (i, range) in &rest[..count] {
            let part = bytes.get((range.start - first.start) as usize..(range.end - first.start) as usize);
            let part = part.ok_or_else(|| io_error(location, std::io::ErrorKind::UnexpectedEof.into()))?;
            texts[*i] = Some(part.to_vec());
        }
        rest = &rest[count..];
    }
    Ok(texts)
}
