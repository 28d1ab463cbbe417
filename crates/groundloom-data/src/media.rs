//! Images: what the bytes are, and their pixels as the reference implementations see them.
//!
//! The reference is Pillow: `ImageOps.exif_transpose(Image.open(f)).convert("RGB")`. Differences are stated at [`decode_rgb`].

use std::{
    io::{Cursor, ErrorKind},
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits, metadata::Orientation};
pub use image::{Rgb, RgbImage};

/// The image formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// JPEG, baseline and progressive.
    Jpeg,
    /// PNG.
    Png,
    /// GIF (its first frame).
    Gif,
    /// WebP, lossy and lossless (its first frame).
    WebP,
    /// Windows bitmap.
    Bmp,
    /// TIFF (its first page).
    Tiff,
}

impl ImageFormat {
    /// The format that the first bytes announce; `None` if they announce no image or one that is not read (see [`probe`] for which).
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        match image::guess_format(bytes).ok()? {
            image::ImageFormat::Jpeg => Some(Self::Jpeg),
            image::ImageFormat::Png => Some(Self::Png),
            image::ImageFormat::Gif => Some(Self::Gif),
            image::ImageFormat::WebP => Some(Self::WebP),
            image::ImageFormat::Bmp => Some(Self::Bmp),
            image::ImageFormat::Tiff => Some(Self::Tiff),
            _ => None,
        }
    }

    /// Lower-case name: `jpeg`, `png`, `gif`, `webp`, `bmp`, `tiff`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::Gif => "gif",
            Self::WebP => "webp",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
        }
    }

    /// The usual file name ending, without the dot; [`ImageFormat::name`] but `jpg` for JPEG and `tif` for TIFF.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Tiff => "tif",
            other => other.name(),
        }
    }

    /// The media type, for `data:` URIs.
    pub fn mime(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Gif => "image/gif",
            Self::WebP => "image/webp",
            Self::Bmp => "image/bmp",
            Self::Tiff => "image/tiff",
        }
    }

    fn codec(self) -> image::ImageFormat {
        match self {
            Self::Jpeg => image::ImageFormat::Jpeg,
            Self::Png => image::ImageFormat::Png,
            Self::Gif => image::ImageFormat::Gif,
            Self::WebP => image::ImageFormat::WebP,
            Self::Bmp => image::ImageFormat::Bmp,
            Self::Tiff => image::ImageFormat::Tiff,
        }
    }
}

/// What an image's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Width in pixels, after orientation.
    pub width: u32,
    /// Height in pixels, after orientation.
    pub height: u32,
    /// The format that the bytes announce, whatever the file is called.
    pub format: ImageFormat,
    /// EXIF orientation as stored, 1 (upright) to 8; 5 to 8 swap width and height.
    pub orientation: u8,
}

/// Bounds on what is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most pixels an image may have. The default, 178,956,970, is where Pillow raises its `DecompressionBombError`.
    pub max_pixels: u64,
    /// Most bytes an encoded image may have; 256 MiB by default.
    pub max_bytes: usize,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_pixels: 178_956_970, max_bytes: 256 << 20 }
    }
}

/// Why bytes are not the pixels of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    /// No bytes at all.
    #[error("expected an image, found an empty file")]
    Empty,
    /// The first bytes are those of no image format.
    #[error("expected a JPEG, PNG, GIF, WebP, BMP or TIFF image, found {found}")]
    NotAnImage {
        /// What the bytes look like.
        found: String,
    },
    /// The image ends too early.
    #[error("the {format} image is cut off: {message}")]
    Truncated {
        /// Its format.
        format: &'static str,
        /// Where it ends.
        message: String,
    },
    /// The header announces more pixels than the limit; nothing was allocated.
    #[error(
        "the image has {width} x {height} pixels, more than the limit of {limit}; raise the limit if the file is trusted"
    )]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// [`DecodeLimits::max_pixels`].
        limit: u64,
    },
    /// The encoded image is larger than the limit.
    #[error("the encoded image has {bytes} bytes, more than the limit of {limit}")]
    TooManyBytes {
        /// Its size.
        bytes: usize,
        /// [`DecodeLimits::max_bytes`].
        limit: usize,
    },
    /// An image of a kind that is not read: another format, or a rare variant of one that is.
    #[error("{what} is not supported; convert it to PNG or JPEG")]
    Unsupported {
        /// The format or variant.
        what: String,
    },
    /// The content contradicts the format.
    #[error("the {format} image is damaged: {message}")]
    Damaged {
        /// Its format.
        format: &'static str,
        /// What the decoder says.
        message: String,
    },
}

impl MediaError {
    /// The quarantine code: `image_too_large` for [`MediaError::TooLarge`] and [`MediaError::TooManyBytes`], else `undecodable_image`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } | Self::TooManyBytes { .. } => "image_too_large",
            _ => "undecodable_image",
        }
    }

    /// The kind of damage in one word, finer than the code: `empty`, `not_an_image`, `truncated`, `too_large`, `unsupported`, `damaged`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotAnImage { .. } => "not_an_image",
            Self::Truncated { .. } => "truncated",
            Self::TooLarge { .. } | Self::TooManyBytes { .. } => "too_large",
            Self::Unsupported { .. } => "unsupported",
            Self::Damaged { .. } => "damaged",
        }
    }
}

/// Reads an image's header: format, oriented size. Looks at no pixels, so a truncated image still has a size.
///
/// # Errors
/// A [`MediaError`] if the bytes are no image or the header is damaged.
pub fn probe(bytes: &[u8]) -> Result<ImageInfo, MediaError> {
    let format = format_of(bytes)?;
    guarded(format, || Ok(open(bytes, format)?.info))
}

/// Decodes an image to 8-bit RGB, with its EXIF orientation (JPEG, PNG `eXIf`, WebP, TIFF) applied.
///
/// As Pillow's `convert("RGB")`: grey is repeated over the channels, a palette is looked up, alpha is dropped (not blended), CMYK and YCCK JPEGs are taken as
/// Adobe's inverted ones, and of an animation the first frame is taken. Of 16-bit samples the high byte is taken (Pillow does so for colour, but clips 16-bit
/// grey at 255, which makes photographs white). Transparent GIF pixels are black. JPEG pixels differ from libjpeg-turbo's by rounding.
///
/// A truncated image is an error even where a decoder could fill in grey, and so is an image of more pixels than the limit, before anything is allocated.
///
/// # Errors
/// A [`MediaError`]; never panics.
pub fn decode_rgb(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, MediaError> {
    let format = format_of(bytes)?;
    if bytes.len() > limits.max_bytes {
        return Err(MediaError::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes });
    }
    guarded(format, || {
        let Opened { mut decoder, info, orientation } = open(bytes, format)?;
        if u64::from(info.width) * u64::from(info.height) > limits.max_pixels {
            return Err(MediaError::TooLarge { width: info.width, height: info.height, limit: limits.max_pixels });
        }
        if format == ImageFormat::Jpeg {
            check_jpeg_is_whole(bytes)?;
        }
        let mut bounds = Limits::no_limits();
        // The widest sample is four 16-bit channels; decoders also keep a working copy.
        bounds.max_alloc = Some(limits.max_pixels.saturating_mul(16).saturating_add(64 << 20));
        decoder.set_limits(bounds).map_err(|e| media_error(format, e))?;
        let mut image =
            DynamicImage::ImageRgb8(to_rgb(DynamicImage::from_decoder(decoder).map_err(|e| media_error(format, e))?)?);
        image.apply_orientation(orientation);
        Ok(image.into_rgb8())
    })
}

struct Opened<'a> {
    decoder: Box<dyn ImageDecoder + 'a>,
    info: ImageInfo,
    orientation: Orientation,
}

fn open(bytes: &[u8], format: ImageFormat) -> Result<Opened<'_>, MediaError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format.codec());
    reader.no_limits();
    let mut decoder = reader.into_decoder().map_err(|e| media_error(format, e))?;
    let orientation = match format {
        // A TIFF file is itself what an EXIF chunk holds.
        ImageFormat::Tiff => Orientation::from_exif_chunk(bytes).unwrap_or(Orientation::NoTransforms),
        // Damaged metadata does not make the pixels unreadable.
        _ => decoder.orientation().unwrap_or(Orientation::NoTransforms),
    };
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(MediaError::Damaged { format: format.name(), message: format!("its size is {width} x {height}") });
    }
    let swapped = orientation.to_exif() >= 5;
    let (width, height) = if swapped { (height, width) } else { (width, height) };
    Ok(Opened {
        decoder: Box::new(decoder),
        info: ImageInfo { width, height, format, orientation: orientation.to_exif() },
        orientation,
    })
}

fn format_of(bytes: &[u8]) -> Result<ImageFormat, MediaError> {
    if bytes.is_empty() {
        return Err(MediaError::Empty);
    }
    ImageFormat::sniff(bytes).ok_or_else(|| unknown(bytes))
}

/// Names what the first bytes look like, as far as that helps a person.
pub(crate) fn unknown(bytes: &[u8]) -> MediaError {
    if let Ok(other) = image::guess_format(bytes) {
        return MediaError::Unsupported { what: format!("{other:?} (image format)") };
    }
    let brand = bytes.get(4..12).unwrap_or_default();
    if brand.starts_with(b"ftyp") {
        let what =
            format!("an ISO media file of brand {:?} (HEIC, AVIF, MP4, …)", String::from_utf8_lossy(&brand[4..]));
        return MediaError::Unsupported { what };
    }
    if bytes.starts_with(b"\0\0\0\x0cJXL ") || bytes.starts_with(b"\xff\x0a") {
        return MediaError::Unsupported { what: "JPEG XL".to_owned() };
    }
    MediaError::NotAnImage { found: appearance(bytes) }
}

/// What bytes of no known format look like, as far as that helps a person.
pub(crate) fn appearance(bytes: &[u8]) -> String {
    if let Some(format) = ImageFormat::sniff(bytes) {
        return format!("a {} image", format.name());
    }
    let start = bytes.get(..bytes.len().min(512)).unwrap_or_default();
    let trimmed = start.trim_ascii_start();
    if start.iter().all(|&b| b == 0) {
        "zero bytes".to_owned()
    } else if trimmed.starts_with(b"<!DOCTYPE") || trimmed.starts_with(b"<html") || trimmed.starts_with(b"<!doctype") {
        "an HTML page (an error page saved as a file?)".to_owned()
    } else if trimmed.starts_with(b"<svg") || trimmed.starts_with(b"<?xml") {
        "an XML or SVG file".to_owned()
    } else if start.iter().all(|&b| b >= 0x20 || matches!(b, b'\n' | b'\r' | b'\t')) {
        format!("text starting {:?}", String::from_utf8_lossy(&start[..start.len().min(24)]))
    } else {
        let hex: Vec<String> = start.iter().take(8).map(|b| format!("{b:02x}")).collect();
        format!("a file starting with the bytes {}", hex.join(" "))
    }
}

/// Decoders are strangers' code on hostile input: a panic in one is damage of the image.
fn guarded<T>(format: ImageFormat, work: impl FnOnce() -> Result<T, MediaError>) -> Result<T, MediaError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(MediaError::Damaged { format: format.name(), message: "the decoder gave up on it".to_owned() })
    })
}

pub(crate) fn media_error(format: ImageFormat, error: ImageError) -> MediaError {
    let message = error.to_string();
    let format = format.name();
    if ends_early(&error) {
        return MediaError::Truncated { format, message };
    }
    match error {
        ImageError::Unsupported(_) => MediaError::Unsupported { what: message },
        _ => MediaError::Damaged { format, message },
    }
}

/// Whether an end of input is among the causes.
fn ends_early(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if e.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::UnexpectedEof) {
            return true;
        }
        if let Some(ImageError::IoError(io)) = e.downcast_ref::<ImageError>()
            && io.kind() == ErrorKind::UnexpectedEof
        {
            return true;
        }
        cause = e.source();
    }
    let text = error.to_string();
    ["end of file", "failed to fill whole buffer", "unexpected EOF", "UnexpectedEof", "No more bytes"]
        .iter()
        .any(|t| text.contains(t))
}

/// Decoders fill what is missing of a JPEG with grey; the end-of-image marker tells whether something is.
fn check_jpeg_is_whole(bytes: &[u8]) -> Result<(), MediaError> {
    let cut = |at: usize| MediaError::Truncated {
        format: "jpeg",
        message: format!("it ends after {at} bytes without an end-of-image marker"),
    };
    let mut at = 2;
    loop {
        // To the next marker: in a scan 0xff 0x00 is data, and restart markers (0xd0 to 0xd7) are part of it.
        let found = bytes.get(at..).and_then(|rest| memchr::memchr(0xff, rest)).ok_or_else(|| cut(bytes.len()))?;
        at += found + 1;
        match bytes.get(at) {
            None => return Err(cut(bytes.len())),
            Some(0xd9) => return Ok(()),
            Some(0xff) => {}
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            Some(_) => {
                let (Some(&high), Some(&low)) = (bytes.get(at + 1), bytes.get(at + 2)) else {
                    return Err(cut(bytes.len()));
                };
                at += 1 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
}

fn to_rgb(image: DynamicImage) -> Result<RgbImage, MediaError> {
    let (width, height) = (image.width(), image.height());
    let high = |sample: u16| (sample >> 8) as u8;
    let pixels: Vec<u8> = match image {
        DynamicImage::ImageRgb8(rgb) => return Ok(rgb),
        DynamicImage::ImageLuma8(grey) => grey.as_raw().iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(grey) => grey.as_raw().chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgba8(rgba) => rgba.as_raw().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma16(grey) => grey.as_raw().iter().flat_map(|&v| [high(v); 3]).collect(),
        DynamicImage::ImageLumaA16(grey) => grey.as_raw().chunks_exact(2).flat_map(|p| [high(p[0]); 3]).collect(),
        DynamicImage::ImageRgb16(rgb) => rgb.as_raw().iter().map(|&v| high(v)).collect(),
        DynamicImage::ImageRgba16(rgba) => {
            rgba.as_raw().chunks_exact(4).flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect()
        }
        _ => {
            return Err(MediaError::Unsupported { what: "an image of floating-point samples".to_owned() });
        }
    };
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| MediaError::Damaged {
        format: "image",
        message: format!("it holds fewer pixels than {width} x {height}"),
    })
}
