//! Pictures small enough to stand in a page.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use groundloom_data::{
    Filter,
    media::{self, DecodeLimits, MediaError},
    resize::resize,
};

/// Longest side of a thumbnail in pixels.
const LONGEST_SIDE: u32 = 640;
/// JPEG quality: artefacts are not seen at this size, and forty pictures stay within a few megabytes.
const QUALITY: u8 = 80;

/// A picture of a row.
#[derive(Debug)]
pub(super) struct Thumbnail {
    /// `data:image/jpeg;base64,…`.
    pub(super) uri: String,
    /// Width and height of the thumbnail in pixels.
    pub(super) size: (u32, u32),
    /// Width and height of the oriented original in pixels.
    pub(super) original: (u32, u32),
    /// `JPEG`, `PNG`, ….
    pub(super) format: &'static str,
}

/// Decodes, orients and shrinks a picture; one that is small enough keeps its size.
pub(super) fn thumbnail(bytes: &[u8]) -> Result<Thumbnail, MediaError> {
    let info = media::probe(bytes)?;
    let image = media::decode_rgb(bytes, &DecodeLimits::default())?;
    let original = image.dimensions();
    let size = fit(original, LONGEST_SIDE);
    let small = if size == original { image } else { resize(&image, size.0, size.1, Filter::Bicubic) };
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&small).map_err(|e| {
        MediaError::Damaged { format: info.format.name(), message: format!("no thumbnail can be made: {e}") }
    })?;
    Ok(Thumbnail {
        uri: format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)),
        size,
        original,
        format: info.format.name(),
    })
}

/// The size within `longest` by `longest` pixels that keeps the proportions; at least one pixel each way.
fn fit((width, height): (u32, u32), longest: u32) -> (u32, u32) {
    let side = width.max(height);
    if side <= longest {
        return (width, height);
    }
    let scale = |v: u32| ((u64::from(v) * u64::from(longest) + u64::from(side) / 2) / u64::from(side)).max(1) as u32;
    (scale(width), scale(height))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn proportions_are_kept() {
        let cases = [
            ((640, 480), (640, 480)),
            ((4000, 3000), (640, 480)),
            ((3000, 4000), (480, 640)),
            ((10_000, 1), (640, 1)),
            ((1, 1), (1, 1)),
        ];
        for (original, small) in cases {
            assert_eq!(fit(original, 640), small);
        }
    }

    #[test]
    fn a_text_file_has_no_thumbnail() {
        assert!(thumbnail(b"not an image").is_err());
        assert!(thumbnail(b"").is_err());
    }
}
