//! What the network sees of a word: norm, prefix, suffix, shape, and their table rows.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::error::{Result, bad_model};
use crate::msgpack::{self, Value};
use crate::strings::{StringIds, base_norms};
use crate::unicode;

/// Attributes whose value is a string: NORM, PREFIX, SUFFIX, SHAPE.
const STRING_COLUMNS: usize = 4;
/// Seeds of the embedding hash per column, fixed by `MultiHashEmbed` (7 plus the position).
const SEEDS: [u32; 6] = [8, 9, 10, 11, 12, 13];
/// Longer words have the shape `LONG`.
const LONG: usize = 100;
/// Equal shape characters beyond this many are left out.
const SHAPE_RUN: usize = 4;

/// The rows of one embedding table that a value is the sum of.
pub(crate) type Rows = [u32; 4];

/// Turns words into attribute values and table rows.
#[derive(Debug)]
pub(crate) struct Lexicon {
    ids: StringIds,
    /// The model's `lexeme_norm` table, by string id.
    norms: HashMap<u64, Box<str>>,
    base_norms: HashMap<String, String>,
    /// Rows of each of the six embedding tables.
    table_rows: [u32; 6],
}

impl Lexicon {
    /// `lookups` is the model's `vocab/lookups.bin`.
    pub(crate) fn read(lookups: &[u8], table_rows: [u32; 6]) -> Result<Self> {
        let file = "vocab/lookups.bin";
        let tables = msgpack::read(lookups, file)?;
        let mut norms = HashMap::new();
        for (key, norm) in tables.get("lexeme_norm").and_then(Value::as_map).unwrap_or_default() {
            match (key.as_u64(), norm.as_str()) {
                (Some(key), Some(norm)) => norms.insert(key, norm.into()),
                _ => return Err(bad_model(file, "`lexeme_norm` is not a map from ids to strings")),
            };
        }
        Ok(Self { ids: StringIds::new()?, norms, base_norms: base_norms()?, table_rows })
    }

    /// The norm of a word that no exception gives a norm to.
    pub(crate) fn norm<'a>(&'a self, text: &'a str) -> Cow<'a, str> {
        if let Some(norm) = self.norms.get(&self.ids.id(text)) {
            return Cow::Borrowed(norm);
        }
        match self.base_norms.get(text) {
            Some(norm) => Cow::Borrowed(norm),
            None => Cow::Owned(unicode::lower(text)),
        }
    }

    /// The rows of NORM, PREFIX, SUFFIX and SHAPE for a word.
    pub(crate) fn string_rows(&self, text: &str, norm: &str) -> [Rows; STRING_COLUMNS] {
        let prefix = text.chars().next().map_or(0, char::len_utf8);
        let suffix = text.char_indices().rev().nth(2).map_or(0, |(i, _)| i);
        let ids =
            [self.ids.id(norm), self.ids.id(&text[..prefix]), self.ids.id(&text[suffix..]), self.ids.id(&shape(text))];
        std::array::from_fn(|column| self.rows(column, ids[column]))
    }

    /// The rows of SPACY and IS_SPACE, whose values are hashed as they are.
    pub(crate) fn flag_rows(&self, space_after: bool, is_space: bool) -> [Rows; 2] {
        [self.rows(4, u64::from(space_after)), self.rows(5, u64::from(is_space))]
    }

    fn rows(&self, column: usize, value: u64) -> Rows {
        hash_row(value, SEEDS[column]).map(|h| h % self.table_rows[column])
    }
}

/// MurmurHash3 x64 128 of an 8-byte key, as `thinc`'s `HashEmbed` computes it: without the
/// multiplication by five and addition that the original has after the key is mixed in.
fn hash_row(value: u64, seed: u32) -> [u32; 4] {
    let seed = u64::from(seed);
    let mut h1 = value.wrapping_mul(0x87c3_7b91_1142_53d5).rotate_left(31).wrapping_mul(0x4cf5_ad43_2745_937f);
    h1 ^= seed ^ 8;
    let mut h2 = seed ^ 8;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    h1 = finish(h1);
    h2 = finish(h2);
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    [h1 as u32, (h1 >> 32) as u32, h2 as u32, (h2 >> 32) as u32]
}

fn finish(mut h: u64) -> u64 {
    h = (h ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ h >> 33
}

/// The word's shape: `Xxxx` for `Brown`, `dd.d` for `12.5`; `spacy/lang/lex_attrs.py`.
pub(crate) fn shape(text: &str) -> String {
    if text.chars().nth(LONG - 1).is_some() {
        return "LONG".to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut last = None;
    let mut run = 0;
    for c in text.chars() {
        let mapped = if unicode::is_alpha(c) {
            if unicode::is_upper(c) { 'X' } else { 'x' }
        } else if unicode::is_digit(c) {
            'd'
        } else {
            c
        };
        run = if last == Some(mapped) { run + 1 } else { 1 };
        last = Some(mapped);
        if run <= SHAPE_RUN {
            out.push(mapped);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let long = "a".repeat(100);
        for (text, expected) in [
            ("Brown", "Xxxxx"),
            ("brownish", "xxxx"),
            ("12.5kg", "dd.dxx"),
            ("AAAAAA111111", "XXXXdddd"),
            ("……………", "…………"),
            ("aaaaXaaaa", "xxxxXxxxx"),
            ("²", "d"),
            ("中文", "xx"),
            ("", ""),
            (long.as_str(), "LONG"),
            (&long[1..], "xxxx"),
        ] {
            assert_eq!(shape(text), expected, "{text}");
        }
    }
}
