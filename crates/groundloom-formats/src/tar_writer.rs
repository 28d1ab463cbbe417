//! Tar archives of plain files, as every reader knows them: POSIX ustar headers, GNU long names where a name needs one, never PAX.
//!
//! Owner, group and time are zero and the mode is 0644, so that the same members give the same bytes.
//!
//! Source of the layout: POSIX.1-1988 `ustar`, and GNU tar's manual for type `L`.

use std::io::{self, Read, Seek, SeekFrom, Write};

/// Tar's unit.
pub(crate) const BLOCK: u64 = 512;
/// Bytes of a header's name field.
const NAME_BYTES: usize = 100;
/// Two empty blocks end an archive.
pub(crate) const END: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];
const LONG_NAME: &str = "././@LongLink";

/// Appends a member.
pub(crate) fn write_member(out: &mut impl Write, name: &str, content: &[u8]) -> io::Result<()> {
    if name.len() > NAME_BYTES {
        // GNU: the next member's name, ended by a NUL, is the content of a member of type L.
        let mut long = name.as_bytes().to_vec();
        long.push(0);
        out.write_all(&header(LONG_NAME.as_bytes(), long.len(), b'L'))?;
        write_padded(out, &long)?;
    }
    let short = &name.as_bytes()[..name.floor_char_boundary(NAME_BYTES)];
    out.write_all(&header(short, content.len(), b'0'))?;
    write_padded(out, content)
}

fn write_padded(out: &mut impl Write, content: &[u8]) -> io::Result<()> {
    out.write_all(content)?;
    let padding = content.len().next_multiple_of(BLOCK as usize) - content.len();
    out.write_all(&END[..padding])
}

fn header(name: &[u8], size: usize, kind: u8) -> [u8; BLOCK as usize] {
    let mut header = [0; BLOCK as usize];
    header[..name.len()].copy_from_slice(name);
    put_octal(&mut header[100..108], 0o644);
    put_octal(&mut header[108..116], 0);
    put_octal(&mut header[116..124], 0);
    put_octal(&mut header[124..136], size as u64);
    put_octal(&mut header[136..148], 0);
    header[156] = kind;
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    let sum = checksum(&header);
    header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    header[154..156].copy_from_slice(b"\0 ");
    header
}

/// An octal number that fills the field but for its closing NUL. A member of Arrow's binary columns is below the 8 GiB that eleven digits hold.
fn put_octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}

/// Sum of the header's bytes, its own checksum field counted as spaces.
fn checksum(header: &[u8; BLOCK as usize]) -> u32 {
    header.iter().enumerate().map(|(i, b)| u32::from(if (148..156).contains(&i) { b' ' } else { *b })).sum()
}

/// What a walk over an archive's headers finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where the end blocks begin.
    pub(crate) end: u64,
    /// Names of the first and of the last member; `None` for an archive without members.
    pub(crate) names: Option<(String, String)>,
}

/// Walks over the headers of an archive that [`write_member`] wrote; contents are skipped.
///
/// # Errors
/// `InvalidData` with the offset, for a damaged header or an archive that ends too early.
pub(crate) fn extent(archive: &mut (impl Read + Seek)) -> io::Result<Extent> {
    let length = archive.seek(SeekFrom::End(0))?;
    let (mut at, mut long_name, mut names) = (0, None, None::<(String, String)>);
    loop {
        let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what} at byte {at}"));
        if at + BLOCK > length {
            return Err(damaged("the archive ends without its end blocks"));
        }
        archive.seek(SeekFrom::Start(at))?;
        let mut header = [0; BLOCK as usize];
        archive.read_exact(&mut header)?;
        if header.iter().all(|b| *b == 0) {
            return Ok(Extent { end: at, names });
        }
        if read_octal(&header[148..156]) != Some(u64::from(checksum(&header))) {
            return Err(damaged("expected a member's header, found other bytes"));
        }
        let size = read_octal(&header[124..136]).ok_or_else(|| damaged("expected an octal size"))?;
        if header[156] == b'L' {
            let mut name = vec![0; usize::try_from(size).map_err(|_| damaged("a name is too long"))?.min(1 << 20)];
            archive.read_exact(&mut name)?;
            name.pop();
            long_name = Some(String::from_utf8_lossy(&name).into_owned());
        } else {
            let short = || {
                String::from_utf8_lossy(header[..NAME_BYTES].split(|b| *b == 0).next().unwrap_or_default()).into_owned()
            };
            let name = long_name.take().unwrap_or_else(short);
            names = Some(match names {
                Some((first, _)) => (first, name),
                None => (name.clone(), name),
            });
        }
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
}

fn read_octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (name, content) in members {
            write_member(&mut tar, name, content).unwrap();
        }
        tar.extend_from_slice(&END);
        tar
    }

    #[test]
    fn a_header_is_posix_ustar() {
        let tar = archive(&[("a.txt".into(), b"hello".to_vec())]);
        assert_eq!(tar.len(), 512 + 512 + 1024);
        assert_eq!(&tar[..6], b"a.txt\0");
        assert_eq!(&tar[100..108], b"0000644\0");
        assert_eq!(&tar[124..136], b"00000000005\0");
        assert_eq!(&tar[136..148], b"00000000000\0");
        assert_eq!(&tar[257..265], b"ustar\x0000");
        assert_eq!(&tar[512..518], b"hello\0");
    }

    proptest! {
        #[test]
        fn a_walk_finds_the_first_and_last_member(
            members in prop::collection::vec(("[a-zé]{1,150}", prop::collection::vec(any::<u8>(), 0..1500)), 0..5),
        ) {
            let tar = archive(&members);
            let extent = extent(&mut io::Cursor::new(&tar)).unwrap();
            prop_assert_eq!(extent.end, (tar.len() - END.len()) as u64);
            let ends = members.first().zip(members.last()).map(|((first, _), (last, _))| (first.clone(), last.clone()));
            prop_assert_eq!(extent.names, ends);
        }

        #[test]
        fn a_cut_archive_is_an_error(length in 0usize..1500) {
            let tar = archive(&[("a".into(), vec![7; 900])]);
            prop_assert!(extent(&mut io::Cursor::new(&tar[..length])).is_err());
        }
    }
}
