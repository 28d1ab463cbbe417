//! Lines of a file and where they begin, in blocks.

use std::{
    io::{ErrorKind, Read},
    ops::Range,
};

use crate::{FormatError, compression::Decompressed, quarantine_codes as codes, shard_rows::Fault, store::io_error};

/// Reads the lines that begin in a range of a file.
///
/// Lines end with `\n`; a `\r` before it is left in (JSON takes it for a space), blank lines are skipped, and a byte order mark at the beginning of the file too.
pub(crate) struct Lines {
    reader: Decompressed,
    location: String,
    /// Lines that begin at or behind this offset are another shard's.
    end: u64,
    most: usize,
    buffer: Vec<u8>,
    /// The part of the buffer that is read and not yet given out.
    unread: Range<usize>,
    /// Offset in the file of the first unread byte.
    offset: u64,
    finished: bool,
    damage: Option<String>,
}

/// A line, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Offset of its first byte in the file (after decompression).
    pub(crate) offset: u64,
    /// Where it stands in [`Lines::text`]; empty if there is a fault.
    pub(crate) place: Range<usize>,
    pub(crate) fault: Option<Fault>,
}

/// Bytes that are read at once.
const STEP: usize = 1 << 20;

impl Lines {
    /// `reader` begins at the byte before `range` (or at 0, as `range` does); `most` is the longest line in bytes.
    pub(crate) fn new(
        reader: Decompressed,
        location: &str,
        range: Range<u64>,
        most: usize,
    ) -> Result<Self, FormatError> {
        let mut lines = Self {
            reader,
            location: location.to_owned(),
            end: range.end,
            most,
            buffer: Vec::new(),
            unread: 0..0,
            offset: range.start.saturating_sub(1),
            finished: false,
            damage: None,
        };
        if range.start > 0 {
            lines.skip_line(&mut 0)?;
        } else {
            lines.fill(3)?;
            if lines.buffer[lines.unread.clone()].starts_with(b"\xef\xbb\xbf") {
                lines.take(3);
            }
        }
        Ok(lines)
    }

    /// The text that [`Line::place`] points into, until the next block.
    pub(crate) fn text(&self) -> &[u8] {
        &self.buffer
    }

    /// The next lines: at most `rows`, and about `bytes`; none at the end.
    pub(crate) fn next_block(&mut self, rows: usize, bytes: usize, lines: &mut Vec<Line>) -> Result<(), FormatError> {
        lines.clear();
        while lines.is_empty() && self.offset < self.end {
            self.fill(bytes)?;
            // Lines keep their places: the buffer is not moved before the next block.
            while lines.len() < rows && self.offset < self.end {
                let unread = &self.buffer[self.unread.clone()];
                let whole = memchr::memchr(b'\n', unread);
                let length = match whole {
                    Some(length) => length,
                    None if self.finished => unread.len(),
                    None => break,
                };
                if whole.is_none() && length == 0 {
                    break;
                }
                let (start, offset) = (self.unread.start, self.offset);
                let blank = unread[..length].iter().all(u8::is_ascii_whitespace);
                let damaged = whole.is_none() && self.damage.is_some();
                self.take(length + usize::from(whole.is_some()));
                let fault = (length > self.most).then(|| self.too_long(length as u64));
                if damaged {
                    // What is left of a damaged file belongs to its last row.
                    break;
                }
                if !blank {
                    let place = if fault.is_some() { 0..0 } else { start..start + length };
                    lines.push(Line { offset, place, fault });
                }
            }
            if !lines.is_empty() {
                return Ok(());
            }
            if self.unread.is_empty() && self.finished {
                break;
            }
            if self.unread.len() > self.most && !self.finished {
                let offset = self.offset;
                let mut length = 0;
                self.skip_line(&mut length)?;
                lines.push(Line { offset, place: 0..0, fault: Some(self.too_long(length)) });
            } else if !self.finished && memchr::memchr(b'\n', &self.buffer[self.unread.clone()]).is_none() {
                let more = self.unread.len() + STEP;
                self.fill(more)?;
            }
        }
        if lines.is_empty()
            && let Some(message) = self.damage.take()
        {
            let fault = Fault::new(codes::DAMAGED_FILE, message);
            lines.push(Line { offset: self.offset, place: 0..0, fault: Some(fault) });
            self.end = self.offset;
        }
        Ok(())
    }

    fn too_long(&self, length: u64) -> Fault {
        Fault::new(
            codes::TOO_LONG,
            format!("expected at most {} bytes in a line, found {length}; raise `max_line_bytes`", self.most),
        )
    }

    fn take(&mut self, count: usize) {
        self.unread.start += count;
        self.offset += count as u64;
    }

    /// Passes over the rest of a line and its end, and adds its length.
    fn skip_line(&mut self, length: &mut u64) -> Result<(), FormatError> {
        loop {
            match memchr::memchr(b'\n', &self.buffer[self.unread.clone()]) {
                Some(at) => {
                    *length += at as u64;
                    self.take(at + 1);
                    return Ok(());
                }
                None => {
                    *length += self.unread.len() as u64;
                    self.take(self.unread.len());
                }
            }
            if self.finished {
                return Ok(());
            }
            self.fill(1)?;
        }
    }

    /// Reads until `wanted` bytes are unread, or the end.
    fn fill(&mut self, wanted: usize) -> Result<(), FormatError> {
        if self.unread.len() >= wanted || self.finished {
            return Ok(());
        }
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        let size = wanted.max(STEP);
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        while self.unread.end < wanted {
            match self.reader.read(&mut self.buffer[self.unread.end..]) {
                Ok(0) => {
                    self.finished = true;
                    return Ok(());
                }
                Ok(n) => self.unread.end += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if self.reader.source_failed() => return Err(io_error(&self.location, e)),
                Err(e) => {
                    self.finished = true;
                    let what = if e.kind() == ErrorKind::UnexpectedEof {
                        "ends early".to_owned()
                    } else {
                        format!("is damaged: {e}")
                    };
                    self.damage = Some(format!("the compressed file {what}; the rows before are good"));
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::compression::Compression;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn read(
        bytes: &[u8],
        range: Range<u64>,
        most: usize,
        rows: usize,
        block: usize,
    ) -> Vec<(u64, Result<String, &'static str>)> {
        let source = Cursor::new(bytes[(range.start.saturating_sub(1) as usize).min(bytes.len())..].to_vec());
        let reader = Decompressed::new(Box::new(source), Compression::None).unwrap();
        let mut lines = Lines::new(reader, "x", range, most).unwrap();
        let (mut block_lines, mut all) = (Vec::new(), Vec::new());
        loop {
            lines.next_block(rows, block, &mut block_lines).unwrap();
            if block_lines.is_empty() {
                return all;
            }
            for line in &block_lines {
                let text = String::from_utf8_lossy(&lines.text()[line.place.clone()]).into_owned();
                all.push((line.offset, line.fault.as_ref().map_or(Ok(text), |f| Err(f.code))));
            }
        }
    }

    #[test]
    fn lines_and_their_offsets() {
        let text = b"\xef\xbb\xbfone\r\n\n  \ntwo\n\x00three";
        let ok = |offset: u64, text: &str| (offset, Ok(text.to_owned()));
        let size = text.len() as u64;
        assert_eq!(read(text, 0..size, 100, 10, 64), vec![ok(3, "one\r"), ok(12, "two"), ok(16, "\0three")]);
        assert_eq!(read(text, 12..size, 100, 10, 64), vec![ok(12, "two"), ok(16, "\0three")]);
        assert_eq!(read(text, 13..size, 100, 1, 1), vec![ok(16, "\0three")]);
        assert_eq!(read(text, 4..13, 100, 10, 64), vec![ok(12, "two")]);
        assert_eq!(read(b"", 0..0, 100, 10, 64), vec![]);
    }

    #[test]
    fn long_lines_are_passed_over() {
        let long = "x".repeat(3 << 20);
        let text = format!("a\n{long}\nb\n{}\nc", "y".repeat(11));
        let size = text.len() as u64;
        let after = 2 + long.len() as u64 + 1;
        let expected = vec![
            (0, Ok("a".to_owned())),
            (2, Err(codes::TOO_LONG)),
            (after, Ok("b".to_owned())),
            (after + 2, Err(codes::TOO_LONG)),
            (after + 14, Ok("c".to_owned())),
        ];
        assert_eq!(read(text.as_bytes(), 0..size, 10, 100, 64), expected);
        assert_eq!(read(text.as_bytes(), 0..size, 10, 100, 1 << 22), expected);
        let all = read(text.as_bytes(), 0..size, 1 << 30, 100, 64);
        assert_eq!(all[1].1.as_ref().unwrap().len(), long.len());
    }

    proptest! {
        #[test]
        fn any_cut_gives_every_line_once(text in "[a-c\n\r ]{0,60}", cuts in prop::collection::vec(0u64..60, 0..4), rows in 1usize..4, block in 1usize..20) {
            let size = text.len() as u64;
            let mut cuts: Vec<u64> = cuts.into_iter().map(|c| c.min(size)).collect();
            cuts.extend([0, size]);
            cuts.sort_unstable();
            cuts.dedup();
            let parts: Vec<_> = cuts.windows(2).flat_map(|w| read(text.as_bytes(), w[0]..w[1], 1000, rows, block)).collect();
            let mut offset = 0;
            let mut expected = Vec::new();
            for line in text.split_inclusive('\n') {
                if !line.trim().is_empty() {
                    expected.push((offset, Ok(line.strip_suffix('\n').unwrap_or(line).to_owned())));
                }
                offset += line.len() as u64;
            }
            prop_assert_eq!(parts, if size == 0 { vec![] } else { expected });
        }
    }
}
