//! Films as animated pictures: GIF and WebP, frame by frame.
//!
//! There is no decoder of video here: films of other formats come as their frames, pictures in a list.

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{
    AnimationDecoder, Frame, Frames, ImageDecoder, ImageError, RgbImage, codecs::gif::GifDecoder,
    codecs::webp::WebPDecoder,
};

use crate::media::{DecodeLimits, ImageFormat, MediaError, media_error};

/// All frames of an animation together may have this many times as many pixels as one picture.
const FRAMES_OF_MOST_PIXELS: u64 = 16;
/// How long a frame is shown that says 0, in milliseconds: as browsers do.
const UNSAID: u64 = 100;

/// When each frame of an animated GIF or WebP begins, in milliseconds, and at the end when the last one ends. A still picture has one frame.
///
/// All frames are decoded for it: how many there are, stands nowhere.
///
/// # Errors
/// A [`MediaError`] as of [`crate::media::decode_rgb`]; other formats are [`MediaError::Unsupported`].
pub fn frame_times(bytes: &[u8], limits: &DecodeLimits) -> Result<Vec<u64>, MediaError> {
    let mut times = vec![0];
    each_frame(bytes, limits, |_, frame| {
        let (numerator, denominator) = frame.delay().numer_denom_ms();
        let shown = match u64::from(numerator / denominator.max(1)) {
            0 => UNSAID,
            shown => shown,
        };
        times.push(times.last().copied().unwrap_or_default() + shown);
        true
    })?;
    Ok(times)
}

/// The frames of an animated GIF or WebP whose numbers `wanted` names, in its order; a number that there is not is left out. Alpha is dropped, as in [`crate::media::decode_rgb`].
///
/// # Errors
/// As [`frame_times`].
pub fn decode_frames(bytes: &[u8], wanted: &[usize], limits: &DecodeLimits) -> Result<Vec<RgbImage>, MediaError> {
    let last = wanted.iter().copied().max().unwrap_or_default();
    let mut kept: Vec<(usize, RgbImage)> = Vec::new();
    each_frame(bytes, limits, |number, frame| {
        if wanted.contains(&number) {
            let frame = frame.into_buffer();
            let pixels = frame.as_raw().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
            kept.extend(RgbImage::from_raw(frame.width(), frame.height(), pixels).map(|frame| (number, frame)));
        }
        number < last
    })?;
    Ok(wanted.iter().filter_map(|number| Some(kept.iter().find(|(n, _)| n == number)?.1.clone())).collect())
}

/// Shows the frames one by one until `see` has seen enough.
fn each_frame(bytes: &[u8], limits: &DecodeLimits, see: impl FnMut(usize, Frame) -> bool) -> Result<(), MediaError> {
    if bytes.is_empty() {
        return Err(MediaError::Empty);
    }
    let format = match ImageFormat::sniff(bytes) {
        Some(format @ (ImageFormat::Gif | ImageFormat::WebP)) => format,
        Some(other) => {
            let what =
                format!("a film in a {} file (films are animated GIF or WebP, or lists of pictures)", other.name());
            return Err(MediaError::Unsupported { what });
        }
        None => return Err(crate::media::unknown(bytes)),
    };
    if bytes.len() > limits.max_bytes {
        return Err(MediaError::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes });
    }
    let walk = AssertUnwindSafe(|| walk(bytes, format, limits, see));
    let gave_up = || MediaError::Damaged { format: format.name(), message: "the decoder gave up on it".to_owned() };
    catch_unwind(walk).unwrap_or_else(|_| Err(gave_up()))
}

fn walk(
    bytes: &[u8],
    format: ImageFormat,
    limits: &DecodeLimits,
    mut see: impl FnMut(usize, Frame) -> bool,
) -> Result<(), MediaError> {
    let fault = |error: ImageError| media_error(format, error);
    let (size, frames) = match format {
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(fault)?;
            if !decoder.has_animation() {
                see(
                    0,
                    Frame::new(image::DynamicImage::ImageRgb8(crate::media::decode_rgb(bytes, limits)?).into_rgba8()),
                );
                return Ok(());
            }
            (decoder.dimensions(), decoder.into_frames())
        }
        _ => {
            let decoder = GifDecoder::new(Cursor::new(bytes)).map_err(fault)?;
            (decoder.dimensions(), decoder.into_frames())
        }
    };
    watch(size, frames, limits, &mut see, fault)
}

fn watch(
    (width, height): (u32, u32),
    frames: Frames<'_>,
    limits: &DecodeLimits,
    see: &mut impl FnMut(usize, Frame) -> bool,
    fault: impl Fn(ImageError) -> MediaError,
) -> Result<(), MediaError> {
    let (pixels, mut left) =
        (u64::from(width) * u64::from(height), limits.max_pixels.saturating_mul(FRAMES_OF_MOST_PIXELS));
    let too_large = || MediaError::TooLarge { width, height, limit: limits.max_pixels };
    if pixels > limits.max_pixels {
        return Err(too_large());
    }
    for (number, frame) in frames.enumerate() {
        left = left.checked_sub(pixels).ok_or_else(too_large)?;
        if !see(number, frame.map_err(&fault)?) {
            break;
        }
    }
    Ok(())
}
