//! The text of a pipeline file, and places in it.

use serde::Serialize;

use crate::diagnostic::{Diagnostic, Diagnostics};

/// A half-open range of byte offsets into [`SourceFile::text`], on character boundaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset behind the last byte; equal to `start` where nothing is written (a key without a value).
    pub end: usize,
}

impl Span {
    /// The range `start..end`; an `end` before `start` is raised to it.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end: end.max(start) }
    }

    /// The empty range at `offset`.
    pub fn empty(offset: usize) -> Self {
        Self::new(offset, offset)
    }

    /// The smallest range that covers both.
    pub fn cover(self, other: Self) -> Self {
        Self::new(self.start.min(other.start), self.end.max(other.end))
    }
}

/// A place as people count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Location {
    /// Line, from 1; lines end at `\n`.
    pub line: usize,
    /// Column, from 1, in characters (Unicode scalar values).
    pub column: usize,
}

/// A pipeline file: what to call it in messages, and its whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The path as the user gave it, or a name like `<stdin>`.
    pub name: String,
    /// The text that every [`Span`] points into.
    pub text: String,
}

impl SourceFile {
    /// The largest file that [`SourceFile::from_bytes`] takes: 4 MiB. A pipeline file is written by
    /// hand; something larger is data that was named by mistake.
    pub const MAX_BYTES: usize = 4 << 20;

    /// A file whose text is at hand.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// A file from its bytes; a UTF-8 byte order mark is dropped.
    ///
    /// # Errors
    /// `not_utf8` with the line and column of the first bad byte, or `too_large`. There is no text
    /// to point into, so these carry no span: render them over `SourceFile::new(name, "")`.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self, Diagnostics> {
        if bytes.len() > Self::MAX_BYTES {
            let diagnostic = Diagnostic::error(
                "too_large",
                format!("the file has {} bytes, and a pipeline file has at most {}", bytes.len(), Self::MAX_BYTES),
            );
            return Err(diagnostic.help("is this a data file? a pipeline file is a short YAML text").into());
        }
        let name = name.into();
        match String::from_utf8(bytes) {
            Ok(mut text) => {
                if text.starts_with('\u{feff}') {
                    text.drain(..'\u{feff}'.len_utf8());
                }
                Ok(Self { name, text })
            }
            Err(error) => Err(not_utf8(error.as_bytes(), error.utf8_error().valid_up_to()).into()),
        }
    }

    /// The line and column of a byte offset. An offset behind the end is the end; one inside a
    /// character is that character.
    pub fn location(&self, offset: usize) -> Location {
        let before = &self.text[..self.floor(offset)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Location { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }

    /// The text of a span, cut to the file and to character boundaries.
    pub fn slice(&self, span: Span) -> &str {
        let start = self.floor(span.start);
        &self.text[start..self.floor(span.end).max(start)]
    }

    /// The span cut to the file and to character boundaries, as a renderer needs it.
    pub(crate) fn clamp(&self, span: Span) -> Span {
        let start = self.floor(span.start);
        Span::new(start, self.floor(span.end))
    }

    fn floor(&self, offset: usize) -> usize {
        self.text.floor_char_boundary(offset)
    }
}

fn not_utf8(bytes: &[u8], at: usize) -> Diagnostic {
    let before = &bytes[..at];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[line_start..]).chars().count() + 1;
    let utf16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    let diagnostic = Diagnostic::error(
        "not_utf8",
        format!(
            "the file is not UTF-8: byte 0x{:02x} at line {line}, column {column}",
            bytes.get(at).copied().unwrap_or_default()
        ),
    );
    diagnostic.help(if utf16 { "the file looks like UTF-16; save it as UTF-8" } else { "save the file as UTF-8" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn locations_count_lines_and_characters() {
        let file = SourceFile::new("p.yaml", "a: ü\nß: 漢字\n");
        for (offset, line, column) in
            [(0, 1, 1), (3, 1, 4), (5, 1, 5), (6, 2, 1), (10, 2, 4), (13, 2, 5), (16, 2, 6), (17, 3, 1), (99, 3, 1)]
        {
            assert_eq!(file.location(offset), Location { line, column }, "offset {offset}");
        }
    }

    #[test]
    fn offsets_inside_a_character_are_that_character() {
        let file = SourceFile::new("p.yaml", "ü");
        assert_eq!(file.location(1), Location { line: 1, column: 1 });
        assert_eq!(file.slice(Span::new(0, 1)), "");
        assert_eq!(file.slice(Span::new(0, 99)), "ü");
    }

    #[test]
    fn bytes_that_are_no_pipeline_file() {
        let message = |bytes: Vec<u8>| {
            let error = SourceFile::from_bytes("p.yaml", bytes).unwrap_err();
            crate::render(&SourceFile::new("p.yaml", ""), &error, false)
        };
        insta::assert_snapshot!(message(b"name: a\nx: \xc3\xbc\xff".to_vec()), @r"
        p.yaml: error[not_utf8]: the file is not UTF-8: byte 0xff at line 2, column 5
         = help: save the file as UTF-8
        ");
        insta::assert_snapshot!(message(b"\xff\xfen\0a\0".to_vec()), @r"
        p.yaml: error[not_utf8]: the file is not UTF-8: byte 0xff at line 1, column 1
         = help: the file looks like UTF-16; save it as UTF-8
        ");
        insta::assert_snapshot!(message(vec![b'a'; SourceFile::MAX_BYTES + 1]), @r"
        p.yaml: error[too_large]: the file has 4194305 bytes, and a pipeline file has at most 4194304
         = help: is this a data file? a pipeline file is a short YAML text
        ");
        assert_eq!(SourceFile::from_bytes("p.yaml", b"\xef\xbb\xbfname: a".to_vec()).unwrap().text, "name: a");
    }
}
