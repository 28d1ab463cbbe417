//! Text columns whose neighbours are alike (row ids, the names of stages), as Parquet column chunks in the encoding `DELTA_BYTE_ARRAY`: every text as the length it shares with the one
//! before it, and the rest.
//!
//! These columns have short texts and as many rows as a data set had before it was filtered, so what a row costs counts. Texts are compared eight bytes at a time, lengths are packed a
//! page at a time, and as long as texts ascend, which ids of one file do, a page's bounds are its first and last one.

use std::io::Write;

use arrow::array::{Array, StringArray};
use bytes::Bytes;
use parquet::{
    basic::{BoundaryOrder, Compression, Encoding, PageType, Type},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    data_type::ByteArray,
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats},
        statistics::{Statistics, ValueStatistics},
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnDescPtr,
};

/// Most texts of a page.
const PAGE_ROWS: usize = 20_480;
/// A page is closed by the text that brings what it stores to this many bytes.
const PAGE_BYTES: usize = 1 << 20;

/// A column chunk in the making. What it holds depends on the texts alone, not on how they were divided between calls.
pub(crate) struct DeltaTexts {
    descriptor: ColumnDescPtr,
    /// Whether bounds are noted, of pages and of the chunk.
    bounded: bool,
    /// The level at which pages are compressed by zstd, or `None`: what is left of such texts holds next to no repeats that a faster codec would find.
    zstd_level: Option<i32>,
    page: OpenPage,
    pages: TrackedWrite<Vec<u8>>,
    written: Written,
}

/// What is known of the pages that are complete.
struct Written {
    count: i32,
    rows: u64,
    compressed: usize,
    uncompressed: usize,
    text_bytes: i64,
    bounds: Option<Bounds>,
    /// Whether pages follow each other in ascending order.
    ascending: bool,
    last_page: Option<Bounds>,
    column_index: ColumnIndexBuilder,
    offset_index: OffsetIndexBuilder,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Bounds {
    least: Vec<u8>,
    greatest: Vec<u8>,
}

impl Bounds {
    /// Takes in texts from `first` to `last`, of which no one is outside these two.
    fn take_in(bounds: &mut Option<Self>, first: &[u8], last: &[u8]) {
        match bounds {
            None => *bounds = Some(Self { least: first.to_vec(), greatest: last.to_vec() }),
            Some(bounds) => {
                if first < bounds.least.as_slice() {
                    bounds.least = first.to_vec();
                }
                if last > bounds.greatest.as_slice() {
                    bounds.greatest = last.to_vec();
                }
            }
        }
    }
}

#[derive(Default)]
struct OpenPage {
    shared: Vec<u32>,
    rest: Vec<u32>,
    rest_bytes: Vec<u8>,
    text_bytes: i64,
    /// The last text of an earlier call, in this page.
    last: Vec<u8>,
    /// The first text of the ascending run that is under way.
    run_start: Vec<u8>,
    /// Bounds of the runs before it.
    bounds: Option<Bounds>,
}

impl DeltaTexts {
    /// A chunk of the required column `descriptor`; `bounded` = note the least and greatest texts.
    pub(crate) fn new(descriptor: ColumnDescPtr, bounded: bool, zstd_level: Option<i32>) -> Self {
        let written = Written {
            count: 0,
            rows: 0,
            compressed: 0,
            uncompressed: 0,
            text_bytes: 0,
            bounds: None,
            ascending: true,
            last_page: None,
            column_index: ColumnIndexBuilder::new(Type::BYTE_ARRAY),
            offset_index: OffsetIndexBuilder::new(),
        };
        let pages = TrackedWrite::new(Vec::new());
        Self { descriptor, bounded, zstd_level, page: OpenPage::default(), pages, written }
    }

    /// Adds texts, none of which is null.
    pub(crate) fn write(&mut self, texts: &StringArray) -> Result<()> {
        if texts.null_count() > 0 {
            return Err(ParquetError::General(format!("the column `{}` has a row without value", self.name())));
        }
        let (offsets, data) = (texts.value_offsets(), texts.value_data());
        // Taken out so that the text before may be one of the array or one that was kept.
        let kept = std::mem::take(&mut self.page.last);
        let mut before: &[u8] = &kept;
        self.page.shared.reserve(texts.len());
        self.page.rest.reserve(texts.len());
        for i in 0..texts.len() {
            let text = &data[offsets[i] as usize..offsets[i + 1] as usize];
            let shared = shared_length(before, text);
            if self.page.shared.is_empty() {
                self.page.run_start.clear();
                self.page.run_start.extend_from_slice(text);
            } else if text.get(shared) < before.get(shared) {
                Bounds::take_in(&mut self.page.bounds, &self.page.run_start, before);
                self.page.run_start.clear();
                self.page.run_start.extend_from_slice(text);
            }
            self.page.shared.push(shared as u32);
            self.page.rest.push((text.len() - shared) as u32);
            push_short(&mut self.page.rest_bytes, data, offsets[i] as usize + shared, text.len() - shared);
            self.page.text_bytes += text.len() as i64;
            before = text;
            if self.page.shared.len() == PAGE_ROWS || self.page.rest_bytes.len() >= PAGE_BYTES {
                self.close_page(before)?;
                before = &[];
            }
        }
        self.page.last = before.to_vec();
        Ok(())
    }

    /// Bytes of what is encoded so far, about.
    pub(crate) fn encoded_bytes(&self) -> usize {
        self.pages.bytes_written() + self.page.rest_bytes.len() + self.page.shared.len() / 2
    }

    /// The chunk, whose offsets count from its own start.
    pub(crate) fn close(mut self) -> Result<(Bytes, ColumnCloseResult)> {
        if !self.page.shared.is_empty() {
            let last = std::mem::take(&mut self.page.last);
            self.close_page(&last)?;
        }
        self.pages.flush()?;
        let mut written = self.written;
        let mut metadata = ColumnChunkMetaData::builder(self.descriptor)
            .set_compression(match self.zstd_level {
                Some(_) => Compression::ZSTD(Default::default()),
                None => Compression::UNCOMPRESSED,
            })
            .set_encodings(vec![Encoding::RLE, Encoding::DELTA_BYTE_ARRAY])
            .set_page_encoding_stats(vec![PageEncodingStats {
                page_type: PageType::DATA_PAGE,
                encoding: Encoding::DELTA_BYTE_ARRAY,
                count: written.count,
            }])
            .set_total_compressed_size(written.compressed as i64)
            .set_total_uncompressed_size(written.uncompressed as i64)
            .set_num_values(written.rows as i64)
            .set_data_page_offset(0)
            .set_unencoded_byte_array_data_bytes(Some(written.text_bytes));
        if let Some(bounds) = written.bounds.filter(|_| self.bounded) {
            let (least, greatest) = (ByteArray::from(bounds.least), ByteArray::from(bounds.greatest));
            let statistics = ValueStatistics::new(Some(least), Some(greatest), None, Some(0), false);
            metadata = metadata.set_statistics(Statistics::ByteArray(statistics));
        }
        if written.ascending {
            written.column_index.set_boundary_order(BoundaryOrder::ASCENDING);
        }
        let close = ColumnCloseResult {
            bytes_written: written.compressed as u64,
            rows_written: written.rows,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: if self.bounded { Some(written.column_index.build()?) } else { None },
            offset_index: Some(written.offset_index.build()),
        };
        Ok((self.pages.into_inner()?.into(), close))
    }

    fn name(&self) -> String {
        self.descriptor.path().string()
    }

    /// Writes the page whose last text is `last`.
    fn close_page(&mut self, last: &[u8]) -> Result<()> {
        let page = std::mem::take(&mut self.page);
        let rows = page.shared.len();
        let mut plain = Vec::with_capacity(page.rest_bytes.len() + rows);
        pack_lengths(&page.shared, &mut plain);
        pack_lengths(&page.rest, &mut plain);
        plain.extend_from_slice(&page.rest_bytes);
        let size = plain.len();
        let stored = match self.zstd_level {
            Some(level) => zstd::bulk::compress(&plain, level)?,
            None => plain,
        };
        let data = Page::DataPage {
            buf: stored.into(),
            num_values: rows as u32,
            encoding: Encoding::DELTA_BYTE_ARRAY,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let spec = SerializedPageWriter::new(&mut self.pages).write_page(CompressedPage::new(data, size))?;
        let written = &mut self.written;
        written.count += 1;
        written.rows += rows as u64;
        written.compressed += spec.compressed_size;
        written.uncompressed += spec.uncompressed_size;
        written.text_bytes += page.text_bytes;
        written.offset_index.append_row_count(rows as i64);
        written.offset_index.append_offset_and_size(spec.offset as i64, spec.compressed_size as i32);
        written.offset_index.append_unencoded_byte_array_data_bytes(Some(page.text_bytes));
        let mut bounds = page.bounds;
        Bounds::take_in(&mut bounds, &page.run_start, last);
        if let Some(bounds) = bounds {
            written.column_index.append(false, bounds.least.clone(), bounds.greatest.clone(), 0);
            Bounds::take_in(&mut written.bounds, &bounds.least, &bounds.greatest);
            let behind = |before: &Bounds| before.least <= bounds.least && before.greatest <= bounds.greatest;
            written.ascending &= written.last_page.as_ref().is_none_or(behind);
            written.last_page = Some(bounds);
        }
        Ok(())
    }
}

/// Appends `length` bytes of `data` from `start` on. Most rests are short: sixteen bytes are copied at once, and those too many are cut off.
fn push_short(out: &mut Vec<u8>, data: &[u8], start: usize, length: usize) {
    match data.get(start..).and_then(|rest| rest.first_chunk::<16>()) {
        Some(chunk) if length <= 16 => {
            let end = out.len() + length;
            out.extend_from_slice(chunk);
            out.truncate(end);
        }
        _ => out.extend_from_slice(&data[start..start + length]),
    }
}

/// How many bytes two texts have in common at their beginnings.
fn shared_length(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let (a, b) = (&a[..most], &b[..most]);
    let mut at = 0;
    while let (Some(x), Some(y)) = (a[at..].first_chunk::<8>(), b[at..].first_chunk::<8>()) {
        let difference = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if difference != 0 {
            return at + (difference.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while at < most && a[at] == b[at] {
        at += 1;
    }
    at
}

/// Lengths of a block, and of one of the parts that are packed with a width of their own.
const BLOCK: usize = 128;
const MINI: usize = 32;

/// Appends lengths in the encoding `DELTA_BINARY_PACKED`: differences between neighbours, less the smallest of a block, in as few bits as they need.
fn pack_lengths(lengths: &[u32], out: &mut Vec<u8>) {
    push_varint(BLOCK as u64, out);
    push_varint((BLOCK / MINI) as u64, out);
    push_varint(lengths.len() as u64, out);
    push_zigzag(lengths.first().map_or(0, |first| i64::from(*first)), out);
    let mut differences = [0i64; BLOCK];
    let mut at = 1;
    while at < lengths.len() {
        let count = BLOCK.min(lengths.len() - at);
        for (i, difference) in differences[..count].iter_mut().enumerate() {
            *difference = i64::from(lengths[at + i]) - i64::from(lengths[at + i - 1]);
        }
        at += count;
        let least = differences[..count].iter().copied().min().unwrap_or(0);
        push_zigzag(least, out);
        let mut above = [0u32; BLOCK];
        for (above, difference) in above.iter_mut().zip(&differences[..count]) {
            *above = (difference - least) as u32;
        }
        let minis = count.div_ceil(MINI);
        let widths = out.len();
        out.extend_from_slice(&[0; BLOCK / MINI]);
        for mini in 0..minis {
            let values = &above[mini * MINI..][..MINI];
            let width = 32 - values.iter().fold(0, |bits, value| bits | value).leading_zeros();
            out[widths + mini] = width as u8;
            pack(values, width, out);
        }
    }
}

/// Appends `width` bits of each value, lowest first; of [`MINI`] values they fill whole words.
fn pack(values: &[u32], width: u32, out: &mut Vec<u8>) {
    if width == 0 {
        return;
    }
    let (mut word, mut bits) = (0u64, 0);
    for value in values {
        word |= u64::from(*value) << bits;
        bits += width;
        if bits >= 32 {
            out.extend_from_slice(&(word as u32).to_le_bytes());
            word >>= 32;
            bits -= 32;
        }
    }
}

fn push_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn push_zigzag(value: i64, out: &mut Vec<u8>) {
    push_varint(((value << 1) ^ (value >> 63)) as u64, out);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::{fs::File, sync::Arc};

    use super::*;
    use crate::row_groups::{AlikeTexts, RowGroups};
    use arrow::{
        array::{AsArray, Int64Array, RecordBatch},
        datatypes::{DataType, Field, Schema},
    };
    use parquet::{
        arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection},
        file::{
            metadata::PageIndexPolicy, page_index::column_index::ColumnIndexMetaData, properties::WriterProperties,
        },
    };
    use proptest::prelude::*;

    /// The bytes of a file with these texts and their numbers, written in batches of `step` rows.
    fn written(texts: &[String], step: usize, zstd_level: Option<i32>, most_bytes: usize) -> Vec<u8> {
        let fields = vec![Field::new("text", DataType::Utf8, false), Field::new("n", DataType::Int64, false)];
        let schema = Arc::new(Schema::new(fields));
        let whole = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                Arc::new(StringArray::from_iter_values(texts)),
                Arc::new((0..texts.len() as i64).collect::<Int64Array>()),
            ],
        );
        let whole = whole.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let alike = vec![AlikeTexts { field: 0, bounded: true }];
        let properties = WriterProperties::builder().build();
        let handle = file.reopen().unwrap();
        let mut writer = RowGroups::new(handle, schema, properties, alike, zstd_level).unwrap();
        for start in (0..texts.len()).step_by(step) {
            writer.write(&whole.slice(start, step.min(texts.len() - start)), most_bytes).unwrap();
        }
        writer.close().unwrap();
        std::fs::read(file.path()).unwrap()
    }

    fn opened(bytes: &[u8]) -> (File, ArrowReaderMetadata) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let metadata = ArrowReaderMetadata::load(&file, options).unwrap();
        (file, metadata)
    }

    fn read(bytes: &[u8], selection: Option<RowSelection>) -> Vec<String> {
        let (file, metadata) = opened(bytes);
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        let batches = builder.build().unwrap().map(|b| b.unwrap());
        batches
            .flat_map(|b| b.column(0).as_string::<i32>().iter().map(|t| t.unwrap().to_owned()).collect::<Vec<_>>())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn texts_come_back_however_they_were_divided(
            texts in prop::collection::vec(prop_oneof!["[ab]{0,20}", "prefix-of-some-length-[0-9a-f]{0,3}", ".{0,12}"], 1..700),
            step in 1usize..300,
            zstd in any::<bool>(),
        ) {
            let level = zstd.then_some(3);
            let bytes = written(&texts, texts.len(), level, usize::MAX);
            prop_assert_eq!(&read(&bytes, None), &texts);
            prop_assert!(bytes == written(&texts, step, level, usize::MAX), "other batches, other bytes");
            let (_, metadata) = opened(&bytes);
            let statistics = metadata.metadata().row_group(0).column(0).statistics().unwrap();
            prop_assert_eq!(statistics.min_bytes_opt(), texts.iter().min().map(|t| t.as_bytes()));
            prop_assert_eq!(statistics.max_bytes_opt(), texts.iter().max().map(|t| t.as_bytes()));
        }

        #[test]
        fn lengths_of_any_width_are_packed(lengths in prop::collection::vec(prop_oneof![0usize..4, 0usize..70_000], 1..300)) {
            // Neighbours share as much as the shorter one has, or nothing.
            let texts: Vec<String> = lengths.iter().map(|n| if n % 3 == 0 { "y" } else { "z" }.repeat(*n)).collect();
            prop_assert_eq!(read(&written(&texts, 64, None, usize::MAX), None), texts);
        }
    }

    #[test]
    fn pages_and_groups_are_found_by_their_bounds() {
        let ids: Vec<String> = (0..100_000u64).map(|n| format!("00c0ffee00c0ffee{:016x}", n * 3)).collect();
        let bytes = written(&ids, 8_192, None, usize::MAX);
        let (_, metadata) = opened(&bytes);
        let bounds = &metadata.metadata().column_index().unwrap()[0][0];
        assert_eq!(bounds.get_boundary_order(), Some(BoundaryOrder::ASCENDING));
        let ColumnIndexMetaData::BYTE_ARRAY(index) = bounds else { panic!() };
        assert_eq!(index.min_value(1), Some(ids[PAGE_ROWS].as_bytes()));
        assert_eq!(index.max_value(1), Some(ids[2 * PAGE_ROWS - 1].as_bytes()));
        assert_eq!(
            metadata.metadata().offset_index().unwrap()[0][0].page_locations().len(),
            ids.len().div_ceil(PAGE_ROWS)
        );
        let some = RowSelection::from_consecutive_ranges([70_000..70_003, 99_999..100_000].into_iter(), ids.len());
        assert_eq!(read(&bytes, Some(some)), [&ids[70_000..70_003], &ids[99_999..]].concat());
        // Two bytes of an id at most are new.
        let stored = metadata.metadata().row_group(0).column(0).compressed_size();
        assert!(stored < 3 * ids.len() as i64, "{stored}");
        let groups = written(&ids, 8_192, None, 100 << 10);
        let (_, metadata) = opened(&groups);
        assert!(metadata.metadata().num_row_groups() > 3);
        assert_eq!(read(&groups, None), ids);
    }

    #[test]
    fn large_texts_close_pages() {
        let texts: Vec<String> = (0..9).map(|n| char::from(b'a' + n).to_string().repeat(700_000)).collect();
        let bytes = written(&texts, 2, None, usize::MAX);
        let (_, metadata) = opened(&bytes);
        assert!(metadata.metadata().offset_index().unwrap()[0][0].page_locations().len() >= 4);
        assert_eq!(read(&bytes, None), texts);
    }
}
