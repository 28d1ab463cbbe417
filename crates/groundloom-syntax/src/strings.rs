//! spaCy's string ids: a small number for reserved names, a 64-bit hash for the rest.
//!
//! `spacy/strings.pyx` and `spacy/symbols.pyx` 3.8; the hash is MurmurHash64A by Austin
//! Appleby with seed 1.

use std::collections::HashMap;

use crate::error::{Result, bad_model};

/// The reserved names and their ids, data of spaCy (MIT).
const SYMBOLS: &str = include_str!("../model/spacy_symbols.json");
/// Norms that every language shares, data of spaCy (MIT).
const BASE_NORMS: &str = include_str!("../model/spacy_base_norms.json");

/// MurmurHash64A with seed 1.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    const R: u32 = 47;
    let mut h = 1 ^ (bytes.len() as u64).wrapping_mul(M);
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        let mut k = u64::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ k >> R).wrapping_mul(M);
        h = (h ^ k).wrapping_mul(M);
    }
    if !tail.is_empty() {
        let k = tail.iter().rev().fold(0, |acc, &b| acc << 8 | u64::from(b));
        h = (h ^ k).wrapping_mul(M);
    }
    h = (h ^ h >> R).wrapping_mul(M);
    h ^ h >> R
}

/// String ids, with the reserved names.
#[derive(Debug)]
pub(crate) struct StringIds {
    symbols: HashMap<String, u64>,
}

impl StringIds {
    pub(crate) fn new() -> Result<Self> {
        let symbols = serde_json::from_str(SYMBOLS).map_err(|e| bad_model("spacy_symbols.json", e.to_string()))?;
        Ok(Self { symbols })
    }

    /// The id of a string: 0 if it is empty, the reserved id, or the hash.
    pub(crate) fn id(&self, text: &str) -> u64 {
        if text.is_empty() {
            return 0;
        }
        self.symbols.get(text).copied().unwrap_or_else(|| hash(text.as_bytes()))
    }
}

/// The norms of quotes and currency signs that spaCy's languages share.
pub(crate) fn base_norms() -> Result<HashMap<String, String>> {
    serde_json::from_str(BASE_NORMS).map_err(|e| bad_model("spacy_base_norms.json", e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_are_spacys() {
        let ids = StringIds::new().unwrap();
        // Printed by `spacy.strings.hash_string` and `StringStore`.
        for (text, id) in [
            ("", 0),
            ("X", 101),
            ("num", 431),
            ("apple", 8_566_208_034_543_834_098),
            ("coffee", 3_197_928_453_018_144_401),
            ("a long string of words", 11_075_278_935_178_102_859),
            ("é中", 4_852_514_497_845_605_908),
        ] {
            assert_eq!(ids.id(text), id, "{text}");
        }
    }
}
