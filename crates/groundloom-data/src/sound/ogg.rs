//! What is looked at in an Ogg file before a decoder sees it: that it is whole, and that Vorbis' code books are no larger than real ones.
//!
//! A header of a few bytes can announce a book of 2^24 vectors of 65535 values, for which the decoder would ask for terabytes.

use std::collections::BTreeMap;

use super::{SoundError, SoundFormat, damaged};

/// Values of a vector in a code book, and vectors in it: many times those of any encoder in use.
const MOST_DIMENSIONS: u32 = 32;
const MOST_ENTRIES: u32 = 1 << 17;
/// Values of all code books of a setup together: 32 MiB.
const MOST_VALUES: u32 = 1 << 23;

/// A page of an Ogg file.
struct Page<'a> {
    /// How many samples lie before its end; -1 where no packet ends in it.
    position: i64,
    first: bool,
    last: bool,
    serial: u32,
    /// The pieces of packets, and whether each ends its packet.
    pieces: Vec<(&'a [u8], bool)>,
}

/// A stream of the file, as far as it has been read.
#[derive(Default)]
struct Stream {
    ended: bool,
    /// Whether it is Vorbis, whose third packet has the code books.
    vorbis: bool,
    /// The greatest position of its pages.
    samples: u64,
    packets: usize,
    /// The packet that has begun.
    packet: Vec<u8>,
}

/// Checks a whole file, and tells how many samples of a channel each stream has.
///
/// # Errors
/// [`SoundError::Truncated`], [`SoundError::Damaged`], and [`SoundError::Unsupported`] for several sounds behind each other.
pub(super) fn check(bytes: &[u8]) -> Result<BTreeMap<u32, u64>, SoundError> {
    let mut streams: BTreeMap<u32, Stream> = BTreeMap::new();
    let (mut at, mut begun) = (0, false);
    while bytes.get(at..).is_some_and(|rest| rest.starts_with(b"OggS")) {
        let page = page(bytes, &mut at)?;
        if page.first && begun {
            return Err(SoundError::Unsupported { what: "an Ogg file of several sounds behind each other".to_owned() });
        }
        begun |= !page.first;
        let stream = streams.entry(page.serial).or_default();
        stream.ended |= page.last;
        stream.samples = stream.samples.max(u64::try_from(page.position).unwrap_or_default());
        for (piece, ends) in page.pieces {
            stream.take(piece, ends)?;
        }
    }
    let whole = !streams.is_empty() && streams.values().all(|stream| stream.ended);
    match (whole, bytes.get(at..)) {
        (true, _) => Ok(streams.into_iter().map(|(serial, stream)| (serial, stream.samples)).collect()),
        (false, None | Some([])) => Err(cut("it ends without a last page")),
        (false, Some(_)) => Err(damaged(SoundFormat::Ogg, format!("expected a page at byte {at}"))),
    }
}

fn cut(message: &str) -> SoundError {
    SoundError::Truncated { format: SoundFormat::Ogg.name(), message: message.to_owned() }
}

/// Reads the page at `at` and moves behind it.
fn page<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Page<'a>, SoundError> {
    let ends = || cut("it ends within a page");
    let header: &[u8; 27] = bytes[*at..].first_chunk().ok_or_else(ends)?;
    let lengths = bytes.get(*at + 27..).and_then(|rest| rest.get(..usize::from(header[26]))).ok_or_else(ends)?;
    let (mut from, mut piece) = (*at + 27 + lengths.len(), 0);
    let mut pieces = Vec::new();
    for length in lengths {
        piece += usize::from(*length);
        // A piece of 255 bytes goes on in the next.
        if *length < 255 {
            pieces.push((bytes.get(from..from + piece).ok_or_else(ends)?, true));
            (from, piece) = (from + piece, 0);
        }
    }
    pieces.push((bytes.get(from..from + piece).ok_or_else(ends)?, false));
    *at = from + piece;
    let number =
        |place: usize| u32::from_le_bytes([header[place], header[place + 1], header[place + 2], header[place + 3]]);
    let (serial, position) = (number(14), (i64::from(number(10)) << 32) | i64::from(number(6)));
    Ok(Page { position, first: header[5] & 2 != 0, last: header[5] & 4 != 0, serial, pieces })
}

impl Stream {
    /// Takes a piece of a packet; headers of Vorbis are checked as soon as they are whole.
    fn take(&mut self, piece: &[u8], ends: bool) -> Result<(), SoundError> {
        // What comes behind the headers is not put together.
        if self.packets >= 3 || (self.packets > 0 && !self.vorbis) {
            return Ok(());
        }
        self.packet.extend_from_slice(piece);
        if !ends {
            return Ok(());
        }
        match self.packets {
            0 => self.vorbis = self.packet.starts_with(b"\x01vorbis"),
            2 => check_books(&self.packet)?,
            _ => {}
        }
        self.packets += 1;
        self.packet.clear();
        Ok(())
    }
}

/// Checks the code books of a setup header (Vorbis I, 3.2.1).
fn check_books(packet: &[u8]) -> Result<(), SoundError> {
    let Some(body) = packet.strip_prefix(b"\x05vorbis") else {
        return Err(damaged(SoundFormat::Ogg, "expected Vorbis' setup as the third packet"));
    };
    let mut bits = Bits { bytes: body, at: 0 };
    let books = bits.take(8)? + 1;
    let mut values = 0;
    for _ in 0..books {
        values += check_book(&mut bits)?;
        if values > MOST_VALUES {
            return Err(damaged(
                SoundFormat::Ogg,
                format!("its code books have more than {MOST_VALUES} values together"),
            ));
        }
    }
    Ok(())
}

/// Checks a code book and tells how many values it has.
fn check_book(bits: &mut Bits<'_>) -> Result<u32, SoundError> {
    let wrong = |what: String| damaged(SoundFormat::Ogg, what);
    if bits.take(24)? != 0x56_4342 {
        return Err(wrong("a code book does not begin as one".to_owned()));
    }
    let (dimensions, entries) = (bits.take(16)?, bits.take(24)?);
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) || !(1..=MOST_ENTRIES).contains(&entries) {
        let expected =
            format!("expected code books of at most {MOST_ENTRIES} vectors of 1 to {MOST_DIMENSIONS} values");
        return Err(wrong(format!("{expected}, found {entries} of {dimensions}")));
    }
    if bits.take(1)? == 1 {
        bits.take(5)?;
        let mut entry = 0;
        while entry < entries {
            entry += bits.take(32 - (entries - entry).leading_zeros())?;
        }
        if entry > entries {
            return Err(wrong("a code book has more words than it announces".to_owned()));
        }
    } else {
        let sparse = bits.take(1)? == 1;
        for _ in 0..entries {
            if !sparse || bits.take(1)? == 1 {
                bits.take(5)?;
            }
        }
    }
    let lookup = bits.take(4)?;
    if lookup > 2 {
        return Err(wrong(format!("expected a code book of the kinds 0 to 2, found {lookup}")));
    }
    if lookup > 0 {
        bits.skip(64)?;
        let width = bits.take(4)? + 1;
        bits.take(1)?;
        let values = if lookup == 1 { root(entries, dimensions) } else { entries * dimensions };
        bits.skip(u64::from(values) * u64::from(width))?;
    }
    Ok(entries * dimensions)
}

/// The greatest whole number whose `exponent`-th power is at most `n`.
fn root(n: u32, exponent: u32) -> u32 {
    let fits = |base: u32| base.checked_pow(exponent).is_some_and(|power| power <= n);
    let (mut low, mut high) = (1, n);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// Bits, the lowest of a byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Result<u32, SoundError> {
        let mut value = 0;
        for bit in 0..count {
            let byte = self.bytes.get((self.at / 8) as usize).ok_or_else(|| cut("Vorbis' setup ends early"))?;
            value |= u32::from(byte >> (self.at % 8) & 1) << bit;
            self.at += 1;
        }
        Ok(value)
    }

    fn skip(&mut self, count: u64) -> Result<(), SoundError> {
        self.at += count;
        if self.at > self.bytes.len() as u64 * 8 { Err(cut("Vorbis' setup ends early")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// A page that holds one packet of less than 255 bytes.
    fn page_of(packet: &[u8], serial: u8, flags: u8) -> Vec<u8> {
        let mut page = b"OggS\0".to_vec();
        page.push(flags);
        page.extend([0; 8]);
        page.extend([serial, 0, 0, 0]);
        page.extend([0; 8]);
        page.extend([1, packet.len() as u8]);
        page.extend(packet);
        page
    }

    /// A setup header with one code book of this shape; its words are not there.
    fn setup(dimensions: u16, entries: u32) -> Vec<u8> {
        let mut packet = b"\x05vorbis\0BCV".to_vec();
        packet.extend(dimensions.to_le_bytes());
        packet.extend(&entries.to_le_bytes()[..3]);
        packet.extend([0; 40]);
        packet
    }

    #[test]
    fn roots_are_whole() {
        assert_eq!([root(1, 1), root(81, 4), root(80, 4), root(131_072, 1), root(131_072, 32)], [1, 3, 2, 131_072, 1]);
    }

    #[test]
    fn a_header_cannot_ask_for_terabytes() {
        let file = |setup: &[u8]| {
            [page_of(b"\x01vorbis", 1, 2), page_of(b"\x03vorbis", 1, 0), page_of(setup, 1, 0), page_of(b"x", 1, 4)]
                .concat()
        };
        for (dimensions, entries) in [(65_535, 0xff_ffff), (33, 1), (0, 1), (1, 0), (1, 131_073)] {
            let error = check(&file(&setup(dimensions, entries))).unwrap_err();
            assert!(error.to_string().contains(&format!("found {entries} of {dimensions}")), "{error}");
        }
        assert!(check(&file(&setup(2, 8))).is_ok());
        assert!(check(&file(&setup(32, 131_072))).unwrap_err().to_string().contains("setup ends early"));
        // Three books of 4 Mi values, each in 14 bytes: words in order of their length, all of one length, and no vectors.
        let book = || {
            let mut bits: Vec<bool> = Vec::new();
            for (value, count) in [(0x56_4342_u32, 24), (32, 16), (131_072, 24), (1, 1), (16, 5), (131_072, 18), (0, 4)]
            {
                bits.extend((0..count).map(|bit| value >> bit & 1 == 1));
            }
            bits
        };
        let bits = [book(), book(), book(), vec![false; 7]].concat();
        let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        let setup: Vec<u8> = b"\x05vorbis\x02".iter().copied().chain(bits.chunks(8).map(byte)).collect();
        assert!(
            check(&file(&setup)).unwrap_err().to_string().contains("values together"),
            "{:?}",
            check(&file(&setup))
        );
    }

    #[test]
    fn a_cut_file_is_told_from_a_whole_one() {
        let pages = [page_of(b"a", 1, 2), page_of(b"b", 1, 0), page_of(b"c", 1, 4)];
        let whole = pages.concat();
        assert!(check(&whole).is_ok());
        for length in 1..whole.len() {
            let error = check(&whole[..length]).unwrap_err();
            assert!(length < 4 || error.kind() == "truncated" || length % pages[0].len() < 4, "{length}: {error}");
        }
        let chained = [&pages[..], &pages[..]].concat().concat();
        assert!(check(&chained).unwrap_err().to_string().contains("several sounds"), "{:?}", check(&chained));
        // Tags that some program put behind the last page do no harm.
        assert!(check(&[whole.as_slice(), b"TAG"].concat()).is_ok());
    }
}
