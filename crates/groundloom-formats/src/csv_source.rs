//! The `csv` source: tables as text.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Cursor, ErrorKind, Read},
    sync::Arc,
};

use arrow::{
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use csv_core::ReadRecordResult;
use futures::stream::BoxStream;
use groundloom_data::{Place, RowId, file_hash};
use groundloom_spec::Config;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    BatchLimits, DiscoverOptions, Discovery, FormatError, Reader, Shard, ShardFile, ShardReader, Source, column_types,
    compression::{Compression, Decompressed},
    json_decoder::excerpt,
    jsonl::Projection,
    quarantine_codes as codes,
    shard_rows::{BatchShape, Batches, End, Fault, Rows, find_key, on_thread, shard_schema},
    shards::{shard, whole_file},
    store::{Entry, Stores, blocking, io_error},
    text_types::{TextColumn, TextType},
};

/// Files of comma-separated values (RFC 4180: values in double quotes may hold commas, line breaks and doubled quotes).
///
/// All files must have the same header. A record with more or fewer values than the header, one that is not UTF-8, one whose value does not fit its column, and one whose quote is
/// never closed go to quarantine. Empty values are null, blank lines are skipped, `\r\n` and a byte order mark are fine. A file is read in one piece, so several files are read faster
/// than one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CsvSource {
    /// Files: a path, a pattern (`data/*.csv`, `part-{00000..00099}.csv.gz`), a folder, or a URL (s3, gs, az, https). `.gz` and `.zst` are unpacked.
    #[schemars(length(min = 1))]
    pub path: String,
    /// The character between values: one ASCII character, such as `;` or a tab (`"\t"`).
    #[serde(default = "comma")]
    pub delimiter: char,
    /// Whether the first record of each file names the columns. Without it they are `column_1`, `column_2`, …, as is a column whose name is empty.
    #[serde(default = "yes")]
    pub header: bool,
    /// Types of columns (`text`, `int`, `float`, `bool`). Those of the others are found in the first megabyte of each file (of 64 files spread evenly, if there are more): whole
    /// numbers, numbers, true or false, else text. Numbers with leading zeros are text.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(with = "BTreeMap<String, String>")]
    pub types: IndexMap<String, String>,
    /// Column that identifies a row. Without it a row is identified by its file and place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

fn comma() -> char {
    ','
}

fn yes() -> bool {
    true
}

impl Config for CsvSource {
    const NAME: &'static str = "csv";
    const SUMMARY: &'static str = "Comma-separated values, plain or compressed";
    const EXAMPLE: &'static str = "pairs: { type: csv, path: \"data/*.csv\" }";
}

/// Ends of file names that a folder is searched for.
const EXTENSIONS: [&str; 4] = ["csv", "csv.gz", "csv.zst", "csv.zstd"];

/// Bytes of a file that column types are found in.
const SAMPLE_BYTES: u64 = 1 << 20;
/// Files that column types are found in.
const SAMPLE_FILES: usize = 64;
/// A longer record goes to quarantine.
const LONGEST_RECORD: usize = 64 << 20;
/// And so does one of more values.
const MOST_FIELDS: usize = 1 << 20;

#[async_trait]
impl Source for CsvSource {
    async fn discover(&self, stores: &Stores, _options: &DiscoverOptions) -> Result<Discovery, FormatError> {
        let form = Form { delimiter: self.delimiter()?, header: self.header };
        let mut entries = stores.list(&self.path, &EXTENSIONS).await?;
        let first = entries.first().map(|e| e.location.to_string()).unwrap_or_default();
        entries.retain(|e| e.size > 0);
        let shards = entries.iter().map(|entry| shard(vec![whole_file(entry.clone())], None)).collect();
        let (sampled, stated) = (stores.clone(), column_types::parse_all("types", &self.types)?);
        let schema = blocking(move || infer(&sampled, &entries, &first, form, &stated)).await?;
        let key = self.key.as_deref().map(|k| find_key(&schema, k)).transpose()?;
        let reader = CsvReader { stores: stores.clone(), schema: Arc::clone(&schema), form, key };
        Ok(Discovery { schema, shards, reader: Reader::Rows(Arc::new(reader)) })
    }

    fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

impl CsvSource {
    fn delimiter(&self) -> Result<u8, FormatError> {
        let byte = u8::try_from(self.delimiter).ok().filter(|b| b.is_ascii() && !matches!(b, b'"' | b'\n' | b'\r' | 0));
        byte.ok_or_else(|| FormatError::Input {
            key: "delimiter",
            message: format!(
                "expected one ASCII character other than a quote or a line break, found `{}`",
                self.delimiter.escape_debug()
            ),
        })
    }
}

/// How files are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    pub(crate) delimiter: u8,
    pub(crate) header: bool,
}

/// The columns of the files: names of the header, types of the sampled values and those that are stated.
fn infer(
    stores: &Stores,
    entries: &[Entry],
    path: &str,
    form: Form,
    stated: &[Field],
) -> Result<SchemaRef, FormatError> {
    let mut found: Option<(String, Vec<String>, Vec<TextType>)> = None;
    let files = entries.len().min(SAMPLE_FILES);
    for i in 0..files {
        let entry = &entries[i * entries.len() / files];
        let mut records = Records::open(stores, &whole_file(entry.clone()), form)?;
        let Some(names) = records.names(form)? else { continue };
        let (_, _, types) = match &mut found {
            Some(first) => {
                same_header(&first.0, &first.1, &entry.location, &names)?;
                first
            }
            None => found.insert((entry.location.to_string(), names.clone(), vec![TextType::Empty; names.len()])),
        };
        // Bad records are for the quarantine, not for the types.
        while let Some(record) = records.next()? {
            if record.offset >= SAMPLE_BYTES {
                break;
            }
            if record.fault.is_none() && records.fields().len() == names.len() {
                for (found, value) in types.iter_mut().zip(records.fields()) {
                    *found = found.merge(TextType::of(&String::from_utf8_lossy(value)));
                }
            }
        }
    }
    let Some((location, names, types)) = found else {
        return Err(FormatError::Malformed {
            location: path.to_owned(),
            message: "expected records of values, found none that can be read".to_owned(),
        });
    };
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        let message = format!("expected columns of different names, found `{}` twice; rename one", twice.1);
        return Err(FormatError::Malformed { location, message });
    }
    for field in stated {
        let message = match names.contains(field.name()) {
            false => format!("there is no column `{}`; there are {}", field.name(), names.join(", ")),
            true if TextColumn::new(field.data_type()).is_none() => {
                format!(
                    "column `{}`: expected text, int, float or bool, since CSV holds no lists or structs",
                    field.name()
                )
            }
            true => continue,
        };
        return Err(FormatError::Input { key: "types", message });
    }
    let data_type = |name: &str, found: TextType| -> DataType {
        stated.iter().find(|f| f.name() == name).map_or(found.data_type(), |f| f.data_type().clone())
    };
    let fields: Vec<Field> =
        names.iter().zip(types).map(|(name, found)| Field::new(name, data_type(name, found), true)).collect();
    Ok(Arc::new(Schema::new(fields)))
}

fn same_header(first: &str, expected: &[String], location: &str, names: &[String]) -> Result<(), FormatError> {
    if expected == names {
        return Ok(());
    }
    Err(FormatError::Malformed {
        location: location.to_owned(),
        message: format!("expected the columns {}, as in {first}, found {}", expected.join(", "), names.join(", ")),
    })
}

/// A record that was read, of which [`Records::fields`] holds the values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Of its first byte, after decompression.
    pub(crate) offset: u64,
    pub(crate) fault: Option<Fault>,
}

/// Records of a file, in order.
pub(crate) struct Records {
    reader: BufReader<io::Chain<Cursor<Vec<u8>>, Decompressed>>,
    location: String,
    parser: csv_core::Reader,
    /// Of the next byte, after decompression.
    offset: u64,
    /// The values of the record, one behind the other, and where each ends.
    text: Vec<u8>,
    ends: Vec<usize>,
    fields: usize,
    /// Whether the record's values are already there (it was read to see how many there are).
    again: Option<Record>,
    /// What opening the file met with; told when the first record is read.
    damage: Option<io::Error>,
    most: usize,
    finished: bool,
}

impl Records {
    fn open(stores: &Stores, file: &ShardFile, form: Form) -> Result<Self, FormatError> {
        let source = stores.reader(&file.location, None)?;
        let reader = Decompressed::new(source, Compression::of_path(&file.path));
        let reader = reader.map_err(|e| io_error(&file.location, e))?;
        Ok(Self::new(reader, &file.location, form.delimiter, LONGEST_RECORD))
    }

    /// `most` is the longest record in bytes.
    pub(crate) fn new(mut reader: Decompressed, location: &str, delimiter: u8, most: usize) -> Self {
        let mut start = Vec::new();
        let damage = reader.by_ref().take(3).read_to_end(&mut start).err();
        let mark = start.starts_with(b"\xef\xbb\xbf");
        let start = if mark { Vec::new() } else { start };
        Self {
            reader: BufReader::with_capacity(256 << 10, Cursor::new(start).chain(reader)),
            location: location.to_owned(),
            parser: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            offset: if mark { 3 } else { 0 },
            text: vec![0; 4096],
            ends: vec![0; 64],
            fields: 0,
            again: None,
            damage,
            most,
            finished: false,
        }
    }

    /// The names of the columns, from the first record; `None` for a file without one that can be read.
    pub(crate) fn names(&mut self, form: Form) -> Result<Option<Vec<String>>, FormatError> {
        let Some(record) = self.next()? else { return Ok(None) };
        let malformed = |message: String| FormatError::Malformed { location: self.location.clone(), message };
        if record.fault.is_some() {
            // It is a row of its own, behind which nothing can be told without a header.
            self.finished |= form.header;
            self.again = Some(record);
            return Ok(None);
        }
        let name = |i: usize| format!("column_{}", i + 1);
        if !form.header {
            let names = (0..self.fields).map(name).collect();
            self.again = Some(record);
            return Ok(Some(names));
        }
        let names = self.fields().enumerate().map(|(i, field)| match str::from_utf8(field) {
            Ok("") => Ok(name(i)),
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(malformed(format!("expected a header in UTF-8, found `{}`", excerpt(field)))),
        });
        names.collect::<Result<_, _>>().map(Some)
    }

    pub(crate) fn fields(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.fields).map(|i| {
            let start = if i == 0 { 0 } else { self.ends[i - 1] };
            self.text.get(start..self.ends[i]).unwrap_or_default()
        })
    }

    pub(crate) fn next(&mut self) -> Result<Option<Record>, FormatError> {
        if let Some(record) = self.again.take() {
            return Ok(Some(record));
        }
        self.fields = 0;
        let (mut length, mut count, mut read) = (0, 0, 0);
        let (mut offset, mut too_long, mut open) = (None, false, false);
        while !self.finished {
            if let Err(e) = self.damage.take().map_or_else(|| self.reader.fill_buf().map(|_| ()), Err) {
                if e.kind() == ErrorKind::Interrupted {
                    continue;
                }
                if self.reader.get_ref().get_ref().1.source_failed() {
                    return Err(io_error(&self.location, e));
                }
                self.finished = true;
                let message = format!("the compressed file is damaged or ends early: {e}; the rows before are good");
                let fault = Some(Fault::new(codes::DAMAGED_FILE, message));
                return Ok(Some(Record { offset: offset.unwrap_or(self.offset), fault }));
            }
            let input = self.reader.buffer();
            if offset.is_none() {
                // The parser would pass over blank lines too, but the record's offset is behind them.
                let blank = input.iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
                if blank > 0 {
                    self.reader.consume(blank);
                    self.offset += blank as u64;
                    continue;
                }
                if !input.is_empty() {
                    offset = Some(self.offset);
                }
            }
            let Some(start) = offset else {
                self.finished = true;
                break;
            };
            // A line break ends the last record, unless a quote is open.
            let last = input.is_empty();
            let input = if last && !open { b"\n" } else { input };
            let (result, used, written, ended) =
                self.parser.read_record(input, &mut self.text[length..], &mut self.ends[count..]);
            if last {
                open |= used > 0 && result == ReadRecordResult::InputEmpty;
            } else {
                self.reader.consume(used);
                self.offset += used as u64;
                read += used;
            }
            (length, count) = (length + written, count + ended);
            too_long |= read > self.most || count > MOST_FIELDS;
            if too_long {
                // It is passed over to its end, and takes no more room.
                (length, count) = (0, 0);
            }
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.text.resize(self.text.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::End => self.finished = true,
                ReadRecordResult::Record => {
                    let fault = if too_long {
                        let message = format!(
                            "expected at most {} bytes and {MOST_FIELDS} values in a record, found one of {read} bytes; is a quote never closed?",
                            self.most
                        );
                        Some(Fault::new(codes::TOO_LONG, message))
                    } else if open {
                        Some(Fault::new(
                            codes::RAGGED_ROW,
                            "a quote is opened and never closed; what follows it is taken for one value",
                        ))
                    } else {
                        None
                    };
                    self.fields = if fault.is_some() { 0 } else { count };
                    return Ok(Some(Record { offset: start, fault }));
                }
            }
        }
        Ok(None)
    }
}

#[derive(Debug)]
struct CsvReader {
    stores: Stores,
    schema: SchemaRef,
    form: Form,
    key: Option<(usize, Vec<String>)>,
}

impl ShardReader for CsvReader {
    fn read(
        &self,
        shard: &Shard,
        columns: &[usize],
        limits: BatchLimits,
    ) -> BoxStream<'static, Result<RecordBatch, FormatError>> {
        let table = Table {
            schema: Arc::clone(&self.schema),
            form: self.form,
            projection: Projection::new(columns, self.key.as_ref()),
            shape: BatchShape { schema: shard_schema(&self.schema, columns), source: CsvSource::NAME },
            limits,
        };
        let (stores, files) = (self.stores.clone(), shard.files.clone());
        on_thread(move |batches| files.iter().try_for_each(|file| table.read(&stores, &file, batches)))
    }
}

/// The reading of one shard.
struct Table {
    schema: SchemaRef,
    form: Form,
    projection: Projection,
    shape: BatchShape,
    limits: BatchLimits,
}

impl Table {
    fn read(&self, stores: &Stores, file: &ShardFile, batches: &Batches) -> Result<(), End> {
        let mut records = Records::open(stores, file, self.form)?;
        if let Some(names) = records.names(self.form)?
            && self.form.header
        {
            let expected: Vec<String> = self.schema.fields().iter().map(|f| f.name().clone()).collect();
            same_header("the other files", &expected, &file.location, &names)?;
        }
        let hash = file_hash(&file.path);
        let fields: Vec<&Field> = self.projection.decoded.iter().map(|c| self.schema.field(*c)).collect();
        let mut columns: Vec<TextColumn> = fields.iter().filter_map(|f| TextColumn::new(f.data_type())).collect();
        loop {
            let (mut rows, mut held) = (Rows::new(), 0);
            while rows.len() < self.limits.rows.max(1) && (rows.is_empty() || held < self.limits.bytes) {
                let Some(record) = records.next()? else { break };
                let checked = match record.fault {
                    Some(fault) => Err(fault),
                    None => self.values(&records, &fields, &columns),
                };
                let fault = match checked {
                    Ok(values) => {
                        for (column, value) in columns.iter_mut().zip(values) {
                            held += value.len() + 8;
                            if value.is_empty() { column.push_null() } else { column.push(value) }
                        }
                        None
                    }
                    Err(fault) => {
                        columns.iter_mut().for_each(TextColumn::push_null);
                        held += fault.message.len();
                        let message = format!("{} at byte {}: {}", file.path, record.offset, fault.message);
                        Some(Fault { message, ..fault })
                    }
                };
                rows.push_with(RowId::in_file(hash, Place::Offset(record.offset)), fault);
            }
            if rows.is_empty() {
                return Ok(());
            }
            let values = columns.iter_mut().map(TextColumn::finish).collect();
            batches.send(self.projection.finish(rows, &self.shape, values)?)?;
        }
    }

    /// The values of the decoded columns, if the record is good.
    fn values<'a>(
        &self,
        records: &'a Records,
        fields: &[&Field],
        columns: &[TextColumn],
    ) -> Result<Vec<&'a str>, Fault> {
        let expected = self.schema.fields().len();
        if records.fields().len() != expected {
            let found: Vec<u8> = records.fields().collect::<Vec<_>>().join(&self.form.delimiter);
            let message = format!(
                "expected {expected} values as in the header, found {}; the record is: {}",
                records.fields().len(),
                excerpt(&found)
            );
            return Err(Fault::new(codes::RAGGED_ROW, message));
        }
        let mut all = Vec::with_capacity(expected);
        for (value, field) in records.fields().zip(self.schema.fields()) {
            all.push(str::from_utf8(value).map_err(|_| {
                let message = format!("expected UTF-8 in `{}`, found `{}`", field.name(), excerpt(value));
                Fault::new(codes::INVALID_UTF8, message)
            })?);
        }
        let values: Vec<&str> = self.projection.decoded.iter().map(|c| all[*c]).collect();
        for ((column, value), field) in columns.iter().zip(&values).zip(fields) {
            if let Some(expected) = column.unfit(value) {
                let message =
                    format!("expected {expected} in `{}`, found `{}`", field.name(), excerpt(value.as_bytes()));
                return Err(Fault::new(codes::TYPE_MISMATCH, message));
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use arrow::{
        array::{Array, AsArray},
        compute::concat_batches,
        util::display::array_value_to_string,
    };
    use futures::TryStreamExt;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::{fs, io::Write};

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn discover(files: &[(&str, &[u8])], mut config: Value) -> (tempfile::TempDir, Result<Discovery, FormatError>) {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
        config["path"] = json!(folder.path().to_str().unwrap());
        let source: CsvSource = serde_json::from_value(config).unwrap();
        let discovery = runtime().block_on(source.discover(&Stores::new(), &DiscoverOptions::default()));
        (folder, discovery)
    }

    fn error(files: &[(&str, &[u8])], config: Value) -> String {
        discover(files, config).1.unwrap_err().to_string()
    }

    fn read_columns(discovery: &Discovery, columns: &[usize], limits: BatchLimits) -> Result<RecordBatch, FormatError> {
        let Reader::Rows(reader) = &discovery.reader else { panic!("a reader of rows") };
        let batches = runtime().block_on(async {
            let mut all = Vec::new();
            for shard in &discovery.shards {
                all.extend(reader.read(shard, columns, limits).try_collect::<Vec<_>>().await?);
            }
            Ok::<_, FormatError>(all)
        })?;
        assert!(batches.iter().all(|b| b.num_rows() <= limits.rows.max(1)));
        Ok(concat_batches(&shard_schema(&discovery.schema, columns), &batches).unwrap())
    }

    fn read(files: &[(&str, &[u8])], config: Value) -> RecordBatch {
        let (_folder, discovery) = discover(files, config);
        let discovery = discovery.unwrap();
        let columns: Vec<usize> = (0..discovery.schema.fields().len()).collect();
        read_columns(&discovery, &columns, BatchLimits::default()).unwrap()
    }

    fn texts(batch: &RecordBatch, column: &str) -> Vec<String> {
        let column = batch.column_by_name(column).unwrap();
        (0..batch.num_rows())
            .map(|i| if column.is_null(i) { "null".to_owned() } else { array_value_to_string(column, i).unwrap() })
            .collect()
    }

    fn errors(batch: &RecordBatch, part: &str) -> Vec<String> {
        let errors = batch.column_by_name("_error").unwrap().as_struct();
        let parts = errors.column_by_name(part).unwrap().as_string::<i32>();
        (0..batch.num_rows())
            .map(|i| if errors.is_null(i) { String::new() } else { parts.value(i).to_owned() })
            .collect()
    }

    fn id(file: &str, offset: u64) -> String {
        RowId::in_file(file_hash(file), Place::Offset(offset)).to_string()
    }

    #[test]
    fn values_types_and_ids() {
        let text =
            "\u{feff}id,name,score,ok,code\r\n1,\"a \"\"dog\"\", \nrunning\",0.5,true,007\r\n\r\n,,1,,1\r\n3,x,,False,";
        let plain = read(&[("a.csv", text.as_bytes())], json!({}));
        let types: Vec<String> = plain.schema().fields()[1..6].iter().map(|f| f.data_type().to_string()).collect();
        assert_eq!(types, ["Int64", "Utf8", "Float64", "Boolean", "Utf8"]);
        assert_eq!(errors(&plain, "message"), ["", "", ""]);
        assert_eq!(texts(&plain, "id"), ["1", "null", "3"]);
        assert_eq!(texts(&plain, "name"), ["a \"dog\", \nrunning", "null", "x"]);
        assert_eq!(texts(&plain, "score"), ["0.5", "1.0", "null"]);
        assert_eq!(texts(&plain, "ok"), ["true", "null", "false"]);
        assert_eq!(texts(&plain, "code"), ["007", "1", "null"]);
        let offsets = ["1,\"", ",,1", "3,x"].map(|start| text.find(start).unwrap() as u64);
        assert_eq!(texts(&plain, "row_id"), offsets.map(|offset| id("a.csv", offset)));
        for (name, bytes) in
            [("a.csv.gz", gzip(text.as_bytes())), ("a.csv.zst", zstd::encode_all(text.as_bytes(), 1).unwrap())]
        {
            let packed = read(&[(name, &bytes)], json!({}));
            assert_eq!(packed.columns()[1..], plain.columns()[1..]);
            assert_eq!(texts(&packed, "row_id"), offsets.map(|offset| id(name, offset)));
        }
    }

    #[test]
    fn settings() {
        let batch = read(&[("a.csv", b"1;x\n2;y")], json!({ "delimiter": ";", "header": false, "key": "column_2" }));
        assert_eq!(texts(&batch, "column_1"), ["1", "2"]);
        assert_eq!(texts(&batch, "row_id"), ["x", "y"].map(|key| RowId::from_key(key).to_string()));
        let batch = read(&[("a.csv", b",b\n1,2")], json!({ "types": { "b": "text" } }));
        assert_eq!((texts(&batch, "column_1"), texts(&batch, "b")), (vec!["1".to_owned()], vec!["2".to_owned()]));
        assert_eq!(*batch.column(2).data_type(), DataType::Utf8);
        let table: &[(&str, &[u8])] = &[("a.csv", b"a,b\n1,2\n")];
        for (files, config, expected) in [
            (table, json!({ "delimiter": "é" }), "expected one ASCII character other"),
            (table, json!({ "delimiter": "\"" }), "expected one ASCII character other"),
            (table, json!({ "types": { "c": "int" } }), "there is no column `c`; there are a, b"),
            (table, json!({ "types": { "a": "list<int>" } }), "expected text, int, float or bool"),
            (table, json!({ "key": "c" }), "there is no column `c`"),
            (&[("a.csv", b"a,a\n1,2\n")], json!({}), "found `a` twice"),
            (&[("a.csv", b"")], json!({}), "found none"),
            (&[("a.csv", b"\n\r\n")], json!({}), "a.csv: expected records"),
            (&[("a.csv", b"\xff\xfe,b\n")], json!({}), "expected a header in UTF-8"),
            (&[("a.csv", b"a,b\n1,2\n"), ("b.csv", b"b,a\n")], json!({}), "b.csv: expected the columns a, b, as in"),
        ] {
            let error = error(files, config);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn bad_records_go_to_quarantine() {
        let mut text = b"n,t\n1,x\n2\n3,y,z\n\xff,x\n5,\xfe\n6,ok\n".to_vec();
        let ends = text.len();
        text.extend_from_slice(b"7,\"never\nclosed\n8,x\n");
        let batch = read(&[("a.csv", &text)], json!({ "types": { "n": "int" } }));
        let expected =
            ["", codes::RAGGED_ROW, codes::RAGGED_ROW, codes::INVALID_UTF8, codes::INVALID_UTF8, "", codes::RAGGED_ROW];
        assert_eq!(errors(&batch, "code"), expected);
        assert_eq!(texts(&batch, "n"), ["1", "null", "null", "null", "null", "6", "null"]);
        assert_eq!(texts(&batch, "row_id")[6], id("a.csv", ends as u64));
        let messages = errors(&batch, "message");
        assert!(
            messages[2].contains("a.csv at byte 10: expected 2 values as in the header, found 3; the record is: 3,y,z")
        );
        assert!(messages[6].contains("never closed"));
        let batch = read(&[("a.csv", b"n,t\n1,x\none,y\n2,z\n")], json!({ "types": { "n": "int" } }));
        assert_eq!(errors(&batch, "code"), ["", codes::TYPE_MISMATCH, ""]);
        assert_eq!(texts(&batch, "t"), ["x", "null", "z"]);
    }

    #[test]
    fn only_what_is_asked_for_is_decoded() {
        let (_folder, discovery) = discover(&[("a.csv", b"n,t\n1,x\n2,y\n3\n4,z")], json!({ "key": "t" }));
        let discovery = discovery.unwrap();
        for (columns, limits) in [
            (&[][..], BatchLimits::default()),
            (&[0], BatchLimits { rows: 1, bytes: 1 << 20 }),
            (&[1, 0], BatchLimits { rows: 0, bytes: 0 }),
        ] {
            let batch = read_columns(&discovery, columns, limits).unwrap();
            assert_eq!(batch.num_columns(), columns.len() + 2);
            assert_eq!(errors(&batch, "code"), ["", "", codes::RAGGED_ROW, ""]);
            assert_eq!(texts(&batch, "row_id")[3], RowId::from_key("z").to_string());
        }
    }

    #[test]
    fn a_damaged_file_keeps_what_came_before() {
        let text: String = std::iter::once("n\n".to_owned()).chain((0..200_000).map(|i| format!("{i}\n"))).collect();
        let bytes = gzip(text.as_bytes());
        let batch = read(&[("a.csv.gz", &bytes[..bytes.len() / 2]), ("b.csv.gz", b"no gzip")], json!({}));
        let codes_of = errors(&batch, "code");
        let good = codes_of.iter().take_while(|code| code.is_empty()).count();
        assert_eq!(codes_of[good..], [codes::DAMAGED_FILE, codes::DAMAGED_FILE]);
        assert!(good > 50_000, "{good}");
        assert!(texts(&batch, "n")[..good].iter().enumerate().all(|(i, n)| *n == i.to_string()));
    }

    /// Offsets and values, or the code, of the records of a text.
    fn records(text: &[u8], most: usize) -> Vec<(u64, Result<Vec<String>, &'static str>)> {
        let reader = Decompressed::new(Box::new(Cursor::new(text.to_vec())), Compression::None).unwrap();
        let mut records = Records::new(reader, "x", b',', most);
        let mut all = Vec::new();
        while let Some(record) = records.next().unwrap() {
            let values = records.fields().map(|f| String::from_utf8_lossy(f).into_owned()).collect();
            all.push((record.offset, record.fault.map_or(Ok(values), |f| Err(f.code))));
        }
        all
    }

    #[test]
    fn long_records_are_passed_over() {
        let many = ",".repeat(MOST_FIELDS + 10);
        let text = format!("a,b\n\"{}\",x\nc,{}\n{many}\nd", "\n".repeat(1 << 20), "z".repeat(70_000));
        let found = records(text.as_bytes(), 1 << 17);
        let codes_of: Vec<_> = found.iter().map(|(_, r)| r.as_ref().err().copied()).collect();
        assert_eq!(codes_of, [None, Some(codes::TOO_LONG), None, Some(codes::TOO_LONG), None]);
        assert_eq!(found[2].1.as_ref().unwrap()[1].len(), 70_000);
        let found = records(text.as_bytes(), usize::MAX);
        let codes_of: Vec<_> = found.iter().map(|(_, r)| r.as_ref().err().copied()).collect();
        assert_eq!(codes_of, [None, None, None, Some(codes::TOO_LONG), None]);
    }

    proptest! {
        #[test]
        fn what_a_csv_writer_writes_is_read(
            rows in prop::collection::vec(prop::collection::vec("[a-z\",\r\n é]{0,8}", 2..5), 1..8),
        ) {
            let (mut writer, mut offsets) = (csv::WriterBuilder::new().flexible(true).from_writer(Vec::new()), Vec::new());
            for row in &rows {
                writer.flush().unwrap();
                offsets.push(writer.get_ref().len() as u64);
                writer.write_record(row).unwrap();
            }
            let text = writer.into_inner().unwrap();
            let expected: Vec<_> = offsets.into_iter().zip(rows.into_iter().map(Ok)).collect();
            prop_assert_eq!(records(&text, 1000), expected);
        }

        #[test]
        fn records_are_those_of_the_csv_crate(text in "[ab\",\r\n]{0,40}") {
            let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
            let expected: Vec<Vec<String>> =
                reader.records().map(|r| r.unwrap().iter().map(str::to_owned).collect()).collect();
            let found = records(text.as_bytes(), 1000);
            prop_assert_eq!(found.len(), expected.len());
            for ((offset, found), expected) in found.into_iter().zip(expected) {
                prop_assert!(!matches!(text.as_bytes()[offset as usize], b'\r' | b'\n'));
                match found {
                    Ok(found) => prop_assert_eq!(found, expected),
                    Err(code) => prop_assert_eq!(code, codes::RAGGED_ROW),
                }
            }
        }

        #[test]
        fn any_bytes_are_tried(text in prop::collection::vec(any::<u8>(), 0..400), header in any::<bool>()) {
            let _ = records(&text, 50);
            let files: [(&str, &[u8]); 3] = [("a.csv", b"a,b\n1,x\n"), ("b.csv.zst", &text), ("c.csv.gz", &text)];
            let (_folder, discovery) = discover(&files, json!({ "header": header }));
            if let Ok(discovery) = discovery {
                let batch = read_columns(&discovery, &[0, 1], BatchLimits::default()).unwrap();
                prop_assert_eq!(texts(&batch, "row_id")[0].clone(), id("a.csv", if header { 4 } else { 0 }));
            }
            let (_folder, discovery) = discover(&[("a.csv", &text)], json!({ "header": header }));
            if let Ok(discovery) = discovery {
                let columns: Vec<usize> = (0..discovery.schema.fields().len()).collect();
                read_columns(&discovery, &columns, BatchLimits::default()).unwrap();
            }
        }
    }
}
