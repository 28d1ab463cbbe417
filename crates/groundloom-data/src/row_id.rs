//! Identities of rows that do not change between runs, machines and shard counts.

use std::{fmt, str::FromStr};

use arrow::{
    array::{StringArray, StringBuilder},
    buffer::{Buffer, OffsetBuffer},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Identity of a row: 16 bytes, shown as 32 lower-case hexadecimal digits.
///
/// The high half hashes the file's path relative to the root of its source, the low half is the row's own place in that file ([`Place`]), so an id is known
/// without having read the rows before it. A row of a source with a key column is identified by the key alone ([`RowId::from_key`]).
/// The order of ids is the order of their 128-bit numbers, which is the order of their texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(u128);

/// Where a row stands inside its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// The file is the row (an image in a folder).
    WholeFile,
    /// Number of the row in the file, from 0 (Parquet).
    Row(u64),
    /// Offset of the row's first byte in the file, after decompression (JSONL, CSV).
    Offset(u64),
    /// Key of a group of archive members (WebDataset).
    Member(&'a str),
}

impl Place<'_> {
    fn low(self) -> u64 {
        match self {
            Place::WholeFile => 0,
            Place::Row(n) | Place::Offset(n) => n,
            Place::Member(key) => xxh3_64(key.as_bytes()),
        }
    }
}

/// The high half of the ids of a file's rows: xxh3-64 (seed 0) of its path relative to the root of the source, UTF-8 and `/`-separated.
pub fn file_hash(path: &str) -> u64 {
    xxh3_64(path.as_bytes())
}

/// The 16 hexadecimal digits of a number, all at once: every four bits are spread to a byte of their own, and those above 9 moved on to the letters.
fn digits(number: u64) -> [u8; 16] {
    let half = |number: u32| {
        let mut nibbles = u64::from(number);
        nibbles = (nibbles | nibbles << 16) & 0x0000_ffff_0000_ffff;
        nibbles = (nibbles | nibbles << 8) & 0x00ff_00ff_00ff_00ff;
        nibbles = (nibbles | nibbles << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        let letters = (nibbles + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
        nibbles + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'0' - 10)
    };
    let (high, low) = (half((number >> 32) as u32), half(number as u32));
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

impl RowId {
    /// Length of an id's text in bytes.
    pub const HEX_LEN: usize = 32;

    /// The id of the row at `place` in the file whose [`file_hash`] is given (hash a file once, not once a row).
    pub fn in_file(file_hash: u64, place: Place<'_>) -> Self {
        Self((u128::from(file_hash) << 64) | u128::from(place.low()))
    }

    /// The id of the row whose key column holds `key`: xxh3-128 (seed 0) of its text.
    pub fn from_key(key: &str) -> Self {
        Self(xxh3_128(key.as_bytes()))
    }

    /// The id as a number, high half first.
    pub fn to_u128(self) -> u128 {
        self.0
    }

    /// The 32 lower-case hexadecimal digits as ASCII.
    pub fn to_hex(self) -> [u8; Self::HEX_LEN] {
        let mut hex = [0; Self::HEX_LEN];
        hex[..16].copy_from_slice(&digits((self.0 >> 64) as u64));
        hex[16..].copy_from_slice(&digits(self.0 as u64));
        hex
    }

    /// The ids as an Arrow string column; its text is checked once, not row by row.
    pub fn column(ids: impl ExactSizeIterator<Item = Self>) -> StringArray {
        let mut text = Vec::with_capacity(ids.len() * Self::HEX_LEN);
        for id in ids {
            text.extend_from_slice(&id.to_hex());
        }
        texts(text)
    }

    /// The ids of rows of Parquet files, likewise: the [`file_hash`] of each row's file, and the row's number there.
    pub fn column_of_rows(file_hashes: &[u64], rows: &[i64]) -> StringArray {
        let mut text = vec![0; file_hashes.len().min(rows.len()) * Self::HEX_LEN];
        // Neighbours are mostly of one file.
        let (mut file, mut file_digits) = (0, digits(0));
        for (i, id) in text.chunks_exact_mut(Self::HEX_LEN).enumerate() {
            if file_hashes[i] != file {
                (file, file_digits) = (file_hashes[i], digits(file_hashes[i]));
            }
            let (high, low) = id.split_at_mut(16);
            high.copy_from_slice(&file_digits);
            low.copy_from_slice(&digits(rows[i].unsigned_abs()));
        }
        texts(text)
    }

    /// Appends the 32 digits to an Arrow string column, without a detour over the heap.
    pub fn push_hex(self, column: &mut StringBuilder) {
        column.append_value(str::from_utf8(&self.to_hex()).unwrap_or_default());
    }
}

/// A column of texts of [`RowId::HEX_LEN`] digits each.
fn texts(digits: Vec<u8>) -> StringArray {
    let offsets = OffsetBuffer::<i32>::from_lengths(std::iter::repeat_n(RowId::HEX_LEN, digits.len() / RowId::HEX_LEN));
    // Digits are ASCII and the offsets are as many as the ids, so the checks do not fail.
    StringArray::try_new(offsets, Buffer::from_vec(digits), None)
        .unwrap_or_else(|_| StringArray::from(Vec::<&str>::new()))
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A text that is no row id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a row id of 32 lower-case hexadecimal digits, found {found:?}; copy it from the `row_id` column")]
pub struct RowIdError {
    /// The text (its beginning, if it is long).
    pub found: String,
}

impl FromStr for RowId {
    type Err = RowIdError;

    fn from_str(text: &str) -> Result<Self, RowIdError> {
        let digits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u128::from_str_radix(text, 16) {
            Ok(number) if digits => Ok(Self(number)),
            _ => Err(RowIdError { found: text.chars().take(64).collect() }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use arrow::array::Array;
    use proptest::prelude::*;

    #[test]
    fn a_column_of_ids_is_their_texts() {
        let files: Vec<u64> = (0..100).map(|i| file_hash(if i < 60 { "a" } else { "b" })).collect();
        let rows: Vec<i64> = (0..100).map(|i| i * i * 1_234_567_890_123).collect();
        let column = RowId::column_of_rows(&files, &rows);
        assert_eq!(column.len(), 100);
        let ids = files.iter().zip(&rows).map(|(file, row)| RowId::in_file(*file, Place::Row(*row as u64)));
        assert_eq!(column, RowId::column(ids));
        for (i, text) in column.iter().enumerate() {
            let id = RowId::in_file(files[i], Place::Row(rows[i] as u64));
            assert_eq!(text, Some(id.to_string().as_str()));
        }
        assert_eq!(RowId::column_of_rows(&[], &[]).len(), 0);
    }

    #[test]
    fn ids_of_known_places() {
        // The hashes are those of Python's `xxhash` package: `xxhash.xxh3_64_hexdigest(b"a/b.jpg")` and so on.
        let file = file_hash("a/b.jpg");
        let cases = [
            (RowId::in_file(file, Place::WholeFile), "268571dfdaffb0cd0000000000000000"),
            (RowId::in_file(file, Place::Row(7)), "268571dfdaffb0cd0000000000000007"),
            (RowId::in_file(file, Place::Offset(0x1234)), "268571dfdaffb0cd0000000000001234"),
            (RowId::in_file(file, Place::Member("000/x")), "268571dfdaffb0cd797460cbb0fa7f83"),
            (RowId::from_key("ключ"), "d3c7a9156a7094082062ac10e56def38"),
        ];
        for (id, expected) in cases {
            assert_eq!(id.to_string(), expected);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "0",
            &"g".repeat(32),
            &"A".repeat(32),
            &"0".repeat(33),
            &format!("+{}", "0".repeat(31)),
            "é".repeat(16).as_str(),
        ] {
            let error = text.parse::<RowId>().unwrap_err();
            assert!(error.to_string().contains("32 lower-case hexadecimal digits"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_back(high: u64, row: u64) {
            let id = RowId::in_file(high, Place::Row(row));
            prop_assert_eq!(id.to_string().parse::<RowId>().unwrap(), id);
            prop_assert_eq!(id.to_u128(), (u128::from(high) << 64) | u128::from(row));
            let mut column = StringBuilder::new();
            id.push_hex(&mut column);
            let column = column.finish();
            prop_assert_eq!(column.len(), 1);
            prop_assert_eq!(column.value(0), id.to_string());
        }

        #[test]
        fn order_of_texts_is_order_of_ids(a: (u64, u64), b: (u64, u64)) {
            let (a, b) = (RowId::in_file(a.0, Place::Row(a.1)), RowId::in_file(b.0, Place::Row(b.1)));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }
    }
}
