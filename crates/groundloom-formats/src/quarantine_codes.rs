//! The codes of rows that a source sends to quarantine. Few, and each documented.

/// A line (or metadata row) is not the JSON object that it should be.
pub const MALFORMED_JSON: &str = "malformed_json";
/// A value does not fit the type of its column.
pub const TYPE_MISMATCH: &str = "type_mismatch";
/// Bytes that should be text are not UTF-8.
pub const INVALID_UTF8: &str = "invalid_utf8";
/// A line, record, member or file is larger than the source's limit.
pub const TOO_LONG: &str = "too_long";
/// A CSV record has more or fewer fields than the header.
pub const RAGGED_ROW: &str = "ragged_row";
/// A compressed file ends early or is damaged; the rows before that are good.
pub const DAMAGED_FILE: &str = "damaged_file";
/// An archive ends in the middle of a member; the rows before that are good.
pub const TRUNCATED_ARCHIVE: &str = "truncated_archive";
/// An archive's header is damaged, or a sample has two members for one column.
pub const MALFORMED_ARCHIVE: &str = "malformed_archive";
/// A metadata row names a file that the folder does not hold.
pub const MISSING_FILE: &str = "missing_file";
/// A file of the folder has no metadata row.
pub const MISSING_METADATA: &str = "missing_metadata";
/// The same key (file name, sample key) was seen before; the first one is kept.
pub const DUPLICATE_KEY: &str = "duplicate_key";
/// A file is there but may not be read.
pub const UNREADABLE_FILE: &str = "unreadable_file";

/// Every code that sources use, with what it means.
pub const ALL: [(&str, &str); 12] = [
    (MALFORMED_JSON, "a line is not one JSON object"),
    (TYPE_MISMATCH, "a value does not fit the type of its column"),
    (INVALID_UTF8, "bytes that should be text are not UTF-8"),
    (TOO_LONG, "a line, record, member or file is larger than the source's limit"),
    (RAGGED_ROW, "a CSV record has more or fewer fields than the header"),
    (DAMAGED_FILE, "a compressed file ends early or is damaged"),
    (TRUNCATED_ARCHIVE, "an archive ends in the middle of a member"),
    (MALFORMED_ARCHIVE, "an archive's header is damaged, or a sample has two members for one column"),
    (MISSING_FILE, "a metadata row names a file that the folder does not hold"),
    (MISSING_METADATA, "a file of the folder has no metadata row"),
    (DUPLICATE_KEY, "the same key was seen before"),
    (UNREADABLE_FILE, "a file may not be read"),
];
