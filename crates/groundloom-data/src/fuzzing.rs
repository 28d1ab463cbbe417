//! What `tests/fuzz` runs on any bytes; here it runs on the corpus.
#![allow(missing_docs, reason = "nothing here is for users")]

use crate::{
    media::{DecodeLimits, decode_rgb, probe},
    sound::{SoundLimits, decode_mono},
};

/// A picture of any format, looked at and decoded within limits.
pub fn pictures(bytes: &[u8]) {
    let limits = DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 20 };
    let looked = probe(bytes);
    if let Ok(image) = decode_rgb(bytes, &limits) {
        assert!(u64::from(image.width()) * u64::from(image.height()) <= limits.max_pixels);
        let info = looked.map(|info| (info.width, info.height)).ok();
        assert_eq!(info, Some((image.width(), image.height())), "what is decoded can be looked at");
    }
}

/// A sound of any format, decoded within limits.
pub fn sound(bytes: &[u8]) {
    let limits = SoundLimits { max_seconds: 10.0, max_bytes: 1 << 20 };
    if let Ok(sound) = decode_mono(bytes, Some(16_000), &limits) {
        assert!(!sound.samples.is_empty() && sound.samples.len() <= 160_001, "{} samples", sound.samples.len());
        assert!(sound.samples.iter().all(|sample| !sample.is_nan()));
    }
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpus.rs"]
#[allow(clippy::unwrap_used)]
mod corpus;

#[cfg(test)]
mod tests {
    use super::corpus::run;

    #[test]
    fn every_corpus_is_read() {
        run("pictures", super::pictures);
        run("sound", super::sound);
    }
}
