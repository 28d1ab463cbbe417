//! One record of a segment file.
//!
//! ```text
//! magic 4 | kind 1 | zero 3 | payload length 4 | request hash 32 | budget 8 | cost 8 | input tokens 8 | output tokens 8 | payload xxh3 8 | header xxh3 8 | payload
//! ```
//! Numbers are little-endian. Header and payload have checksums of their own, so that opening a store reads headers only.

use xxhash_rust::xxh3::xxh3_64;

use crate::{money::Money, request::RequestHash};

pub(super) const MAGIC: [u8; 4] = *b"GLR1";
pub(super) const HEADER: usize = 92;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An answer: the payload is a compressed [`super::Stored`].
    Answer,
    /// Money that may have been spent on an answer that never arrived: no payload.
    Loss,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: Kind,
    pub hash: RequestHash,
    /// The budget that paid; 0 for none.
    pub budget: u64,
    pub cost: Money,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub payload_len: u32,
    pub payload_sum: u64,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = match self.kind {
            Kind::Answer => 1,
            Kind::Loss => 2,
        };
        out[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        out[12..44].copy_from_slice(&self.hash.0);
        let numbers = [self.budget, self.cost.0, self.prompt_tokens, self.completion_tokens, self.payload_sum]
            .map(u64::to_le_bytes);
        out[44..84].copy_from_slice(numbers.as_flattened());
        let sum = xxh3_64(&out[..84]);
        out[84..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// `None` when these bytes are no whole, undamaged header.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER] = bytes.first_chunk()?;
        let number = |at: usize| bytes[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        if bytes[..4] != MAGIC || number(84) != xxh3_64(&bytes[..84]) {
            return None;
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[12..44]);
        Some(Self {
            kind: match bytes[4] {
                1 => Kind::Answer,
                2 => Kind::Loss,
                _ => return None,
            },
            hash: RequestHash(hash),
            budget: number(44),
            cost: Money(number(52)),
            prompt_tokens: number(60),
            completion_tokens: number(68),
            payload_len: u32::from_le_bytes(*bytes[8..].first_chunk()?),
            payload_sum: number(76),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_comes_back_and_any_changed_byte_is_noticed(
            hash: [u8; 32], budget: u64, cost: u64, prompt_tokens: u64, completion_tokens: u64, payload_len: u32,
            payload_sum: u64, answer: bool, at in 0..HEADER, flip in 1..=255_u8,
        ) {
            let kind = if answer { Kind::Answer } else { Kind::Loss };
            let (hash, cost) = (RequestHash(hash), Money(cost));
            let header = Header { kind, hash, budget, cost, prompt_tokens, completion_tokens, payload_len, payload_sum };
            let mut bytes = header.encode();
            prop_assert_eq!(Header::decode(&bytes), Some(header));
            prop_assert_eq!(Header::decode(&bytes[..HEADER - 1]), None);
            bytes[at] ^= flip;
            prop_assert_eq!(Header::decode(&bytes), None);
        }
    }
}
