//! Members of a tar archive, read in order from a stream, up to where the archive is damaged.
//!
//! Source of the layout: POSIX.1-1988 `ustar`, POSIX.1-2001 `pax` and GNU tar's manual (long names, base-256 sizes). The `tar` crate tells the fields of a header; the walk is
//! our own, since a hostile archive must neither fill the memory (with a "name" of gigabytes) nor pass for a whole one where it ends early.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use tar::Header;

use crate::{
    FormatError, compression::Decompressed, quarantine_codes as codes, shard_rows::Fault, store::io_error,
    tar_writer::BLOCK,
};

/// Longer names and PAX headers are taken for damage.
const LONGEST_NAME: u64 = 1 << 20;

/// A plain file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// As it stands in the archive; bytes that are not UTF-8 are replaced by U+FFFD.
    pub(crate) name: String,
    /// Bytes of content.
    pub(crate) size: u64,
    /// Where its first header begins, after decompression.
    pub(crate) offset: u64,
}

/// Why there is no further member.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The archive is damaged; what came before is good.
    Damaged(Fault),
    /// The disk or the network failed.
    Failed(FormatError),
}

/// Walks over an archive.
pub(crate) struct TarReader {
    reader: BufReader<Decompressed>,
    location: String,
    /// Of the next byte, after decompression.
    offset: u64,
    /// Bytes of the current member's content that are not read yet.
    content: u64,
    /// Zeros behind that content.
    padding: u64,
}

impl TarReader {
    pub(crate) fn new(reader: Decompressed, location: &str) -> Self {
        let reader = BufReader::with_capacity(256 << 10, reader);
        Self { reader, location: location.to_owned(), offset: 0, content: 0, padding: 0 }
    }

    /// Bytes read so far, after decompression.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next plain file; `None` at the block of zeros that ends an archive. Content that was not asked for is skipped, and so are folders, links and devices.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Stop> {
        let (mut long_name, mut pax, mut first) = (None, Pax::default(), None);
        loop {
            self.skip(self.content + self.padding)?;
            (self.content, self.padding) = (0, 0);
            let offset = self.offset;
            let header = self.header()?;
            if header.as_bytes().iter().all(|b| *b == 0) {
                return Ok(None);
            }
            let malformed = |what: &str| {
                Stop::Damaged(Fault::new(
                    codes::MALFORMED_ARCHIVE,
                    format!(
                        "expected the header of an archive's member at byte {offset}, found {what}; the rest of the archive is not read"
                    ),
                ))
            };
            if !checksum_fits(&header) {
                return Err(malformed("other bytes"));
            }
            let kind = header.entry_type();
            // They say something of the member behind them.
            let named = kind.is_gnu_longname() || kind.is_pax_local_extensions();
            let extension = named || kind.is_gnu_longlink() || kind.is_pax_global_extensions();
            let stated = header.entry_size().map_err(|_| malformed("a size that is no number"))?;
            // An extension's own size is never the one that it states for the member behind it.
            let size = if extension { stated } else { pax.size.unwrap_or(stated) };
            let padded = size.checked_next_multiple_of(BLOCK).filter(|padded| padded.checked_add(offset).is_some());
            let Some(padded) = padded else { return Err(malformed("a size beyond any file's")) };
            (self.content, self.padding) = (size, padded - size);
            if extension {
                first.get_or_insert(offset);
                if !named {
                    continue;
                }
                if size > LONGEST_NAME {
                    return Err(malformed("a name of more than a megabyte"));
                }
                let text = self.content()?;
                if kind.is_gnu_longname() {
                    let name = text.split(|b| *b == 0).next().unwrap_or_default();
                    long_name = Some(String::from_utf8_lossy(name).into_owned());
                } else {
                    pax = Pax::parse(&text).ok_or_else(|| malformed("a PAX header that cannot be understood"))?;
                }
                continue;
            }
            if kind.is_gnu_sparse() {
                return Err(malformed("a sparse file, which is not supported (pack without --sparse)"));
            }
            if !(kind.is_file() || kind.is_contiguous()) {
                (long_name, pax, first) = (None, Pax::default(), None);
                continue;
            }
            let name = long_name
                .take()
                .or(pax.path.take())
                .unwrap_or_else(|| String::from_utf8_lossy(&header.path_bytes()).into_owned());
            return Ok(Some(Member { name, size, offset: first.unwrap_or(offset) }));
        }
    }

    /// The content of the member that [`TarReader::next`] gave; the caller has looked at its size.
    pub(crate) fn content(&mut self) -> Result<Vec<u8>, Stop> {
        // A damaged size must not reserve what never comes.
        let mut bytes = Vec::with_capacity(usize::try_from(self.content.min(8 << 20)).unwrap_or(0));
        let read = self.reader.by_ref().take(self.content).read_to_end(&mut bytes);
        self.offset += bytes.len() as u64;
        match read {
            Ok(n) if n as u64 == self.content => {
                self.content = 0;
                Ok(bytes)
            }
            Ok(_) => Err(self.truncated()),
            Err(e) => Err(self.failure(e)),
        }
    }

    fn header(&mut self) -> Result<Header, Stop> {
        self.content = BLOCK;
        let bytes = self.content()?;
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&bytes);
        Ok(header)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), Stop> {
        while count > 0 {
            let there = match self.reader.fill_buf() {
                Ok(buffer) => buffer.len(),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.failure(e)),
            };
            if there == 0 {
                return Err(self.truncated());
            }
            let now = there.min(usize::try_from(count).unwrap_or(usize::MAX));
            self.reader.consume(now);
            self.offset += now as u64;
            count -= now as u64;
        }
        Ok(())
    }

    fn truncated(&self) -> Stop {
        Stop::Damaged(Fault::new(
            codes::TRUNCATED_ARCHIVE,
            format!(
                "the archive ends early, behind byte {}, without the zeros that end one; pack it again",
                self.offset
            ),
        ))
    }

    fn failure(&self, error: io::Error) -> Stop {
        if self.reader.get_ref().source_failed() {
            return Stop::Failed(io_error(&self.location, error));
        }
        Stop::Damaged(Fault::new(
            codes::DAMAGED_FILE,
            format!("the compressed archive is damaged or ends early: {error}"),
        ))
    }
}

fn checksum_fits(header: &Header) -> bool {
    let mut summed = header.clone();
    summed.set_cksum();
    matches!((header.cksum(), summed.cksum()), (Ok(a), Ok(b)) if a == b)
}

/// What a PAX header says of the member behind it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pax {
    path: Option<String>,
    size: Option<u64>,
}

impl Pax {
    /// Records are `LENGTH KEY=VALUE\n`, where the length counts all of that and a value may hold line breaks.
    fn parse(mut text: &[u8]) -> Option<Self> {
        let mut pax = Self::default();
        while !text.is_empty() && text[0] != 0 {
            let space = text.iter().position(|b| *b == b' ')?;
            let length: usize = str::from_utf8(&text[..space]).ok()?.parse().ok()?;
            let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|b| *b == b'=')?;
            let value = &record[equals + 1..];
            match &record[..equals] {
                b"path" => pax.path = Some(String::from_utf8_lossy(value).into_owned()),
                b"size" => pax.size = Some(str::from_utf8(value).ok()?.parse().ok()?),
                _ => {}
            }
            text = &text[length..];
        }
        Some(pax)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::{
        compression::Compression,
        tar_writer::{END, write_member},
    };
    use proptest::prelude::*;

    /// Name, content and offset.
    type Found = (String, Vec<u8>, u64);

    /// The members, and the code of the damage behind them.
    fn walk(bytes: &[u8]) -> (Vec<Found>, Option<&'static str>) {
        let source = Box::new(io::Cursor::new(bytes.to_vec()));
        let mut tar = TarReader::new(Decompressed::new(source, Compression::None).unwrap(), "x");
        let mut found = Vec::new();
        loop {
            let step = tar.next().and_then(|member| {
                let content = tar.content()?;
                Ok(member.map(|m| (m.name, content, m.offset)))
            });
            match step {
                Ok(Some(member)) => found.push(member),
                Ok(None) => return (found, None),
                Err(Stop::Damaged(fault)) => return (found, Some(fault.code)),
                Err(Stop::Failed(error)) => panic!("{error}"),
            }
        }
    }

    /// A member as the `tar` crate writes it, with a header of `kind`.
    fn packed(header: Header, kind: tar::EntryType, name: &str, content: &[u8]) -> Vec<u8> {
        let mut header = header;
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_data(&mut header, name, content).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - END.len());
        bytes
    }

    #[test]
    fn headers_of_every_age() {
        use tar::EntryType;
        let long = format!("{}/b.jpg", "d".repeat(120));
        let record = |key: &str, value: &str| {
            let body = format!(" {key}={value}\n");
            let digits = (body.len() + 3).to_string().len();
            format!("{}{body}", body.len() + digits)
        };
        let pax = format!("{}{}{}", record("comment", "two\nlines"), record("path", "päx/ä.jpg"), record("size", "5"));
        let mut wrong_size = packed(Header::new_ustar(), EntryType::Regular, "short", b"12345");
        let header: &mut [u8] = &mut wrong_size[..512];
        header[124..135].copy_from_slice(b"00000000000");
        let mut fixed = Header::new_old();
        fixed.as_mut_bytes().copy_from_slice(header);
        fixed.set_cksum();
        header.copy_from_slice(fixed.as_bytes());
        let archive = [
            packed(Header::new_old(), EntryType::Regular, "old.jpg", b"1"),
            packed(Header::new_gnu(), EntryType::Directory, "folder.d/", b""),
            packed(Header::new_ustar(), EntryType::Regular, &long, b"22"),
            packed(Header::new_gnu(), EntryType::Regular, &format!("gnu/{long}"), &[3; 513]),
            packed(Header::new_ustar(), EntryType::XGlobalHeader, "g", record("comment", "x").as_bytes()),
            packed(Header::new_ustar(), EntryType::XHeader, "x", pax.as_bytes()),
            wrong_size,
            END.to_vec(),
            b"anything may follow".to_vec(),
        ]
        .concat();
        let (found, code) = walk(&archive);
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["old.jpg", &long, &format!("gnu/{long}"), "päx/ä.jpg"]);
        assert_eq!(found[2].1, [3; 513]);
        assert_eq!(found[3].1, b"12345");
        assert_eq!(code, None);
    }

    #[test]
    fn an_endless_name_is_not_read() {
        let mut header = Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let archive = [header.as_bytes().to_vec(), vec![b'a'; 4 << 20]].concat();
        assert_eq!(walk(&archive), (vec![], Some(codes::MALFORMED_ARCHIVE)));
    }

    #[test]
    fn pax_records_are_checked() {
        for text in ["x", "5", "8 path=a\n", "10 path=a\n ", "12 size=many\n", "99999999999999999999 a=b\n", "0 a=b\n"]
        {
            assert_eq!(Pax::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Pax::parse(b"10 size=7\n"), Some(Pax { path: None, size: Some(7) }));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            members in prop::collection::vec(("[a-zé.]{1,150}", prop::collection::vec(any::<u8>(), 0..1500)), 0..5),
            cut in 0usize..10_000,
        ) {
            let (mut archive, mut ends) = (Vec::new(), Vec::new());
            for (name, content) in &members {
                write_member(&mut archive, name, content).unwrap();
                ends.push(archive.len() - content.len().next_multiple_of(512) + content.len());
            }
            let written = archive.len();
            archive.extend_from_slice(&END);
            let cut = cut.min(archive.len());
            let (found, code) = walk(&archive[..cut]);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let expected: Vec<_> = members[..whole].to_vec();
            // A member without content ends with its header, so nothing is lost there either.
            prop_assert_eq!(found.into_iter().map(|(n, c, _)| (n, c)).collect::<Vec<_>>(), expected);
            prop_assert_eq!(code, (cut < written + 512).then_some(codes::TRUNCATED_ARCHIVE));
        }

        #[test]
        fn any_bytes_are_tried(bytes in prop::collection::vec(any::<u8>(), 0..3000), at in 0usize..1500, flip in any::<u8>()) {
            let _ = walk(&bytes);
            let mut archive = Vec::new();
            write_member(&mut archive, &"n".repeat(130), &[1; 300]).unwrap();
            archive.extend_from_slice(&END);
            archive[at] ^= flip;
            let (found, _) = walk(&archive);
            prop_assert!(found.len() <= 1);
        }

        #[test]
        fn any_pax_header_is_tried(text in "([0-9]{1,3} )?(path|size)?=?[a-z0-9\n]{0,9}") {
            let _ = Pax::parse(text.as_bytes());
        }
    }
}
