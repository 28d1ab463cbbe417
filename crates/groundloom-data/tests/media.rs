//! Decoding sees the pixels that Pillow sees, on the images of `scripts/media_fixtures.py`, and refuses what Pillow refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::PathBuf};

use groundloom_data::media::{DecodeLimits, ImageFormat, MediaError, RgbImage, decode_rgb, probe};
use proptest::prelude::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/media")
}

fn file(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap()
}

fn decode(bytes: &[u8]) -> Result<RgbImage, MediaError> {
    decode_rgb(bytes, &DecodeLimits::default())
}

/// Every image that has its pixels beside it.
fn fixtures() -> BTreeMap<String, Vec<u8>> {
    let names: Vec<String> =
        fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let images: BTreeMap<String, Vec<u8>> =
        names.iter().filter(|n| names.contains(&format!("{n}.png"))).map(|n| (n.clone(), file(n))).collect();
    assert!(images.len() > 30);
    images
}

fn mean_difference(a: &RgbImage, b: &RgbImage) -> f64 {
    let sum: u64 = a.as_raw().iter().zip(b.as_raw()).map(|(&a, &b)| u64::from(a.abs_diff(b))).sum();
    sum as f64 / a.as_raw().len() as f64
}

#[test]
fn pixels_are_pillows() {
    for (name, bytes) in fixtures() {
        let expected = decode(&file(&format!("{name}.png"))).unwrap();
        let decoded = decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(decoded.dimensions(), expected.dimensions(), "{name}");
        let difference = mean_difference(&decoded, &expected);
        let lossy = name.ends_with(".jpg") || name == "lossy.webp";
        println!("{name}: mean difference {difference:.4}");
        if lossy {
            assert!(difference < 0.6, "{name}: mean difference {difference}");
        } else {
            assert!(difference == 0.0, "{name}: mean difference {difference}");
        }
        let info = probe(&bytes).unwrap();
        assert_eq!((info.width, info.height), decoded.dimensions(), "{name}");
        assert_eq!(Some(info.format), ImageFormat::sniff(&bytes));
    }
}

#[test]
fn orientation_is_reported() {
    for orientation in 1..=8 {
        let info = probe(&file(&format!("orientation{orientation}.jpg"))).unwrap();
        assert_eq!(info.orientation, orientation);
        assert_eq!((info.width, info.height), if orientation >= 5 { (23, 37) } else { (37, 23) });
    }
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let cases: [(&[u8], &str, &str); 8] = [
        (b"", "empty", "empty file"),
        (b"a caption, not a picture\n", "not_an_image", "text starting \"a caption, not a picture"),
        (b"<!DOCTYPE html><html>", "not_an_image", "HTML page"),
        (b"<?xml version='1.0'?><svg/>", "not_an_image", "SVG"),
        (&[0; 64], "not_an_image", "zero bytes"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "not_an_image", "7f 45 4c 46"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "unsupported", "heic"),
        (b"\xff\xd8\xff", "damaged", "jpeg"),
    ];
    for (bytes, kind, message) in cases {
        let error = decode(bytes).unwrap_err();
        assert!(error.kind() == kind || (kind == "damaged" && error.kind() == "truncated"), "{error:?}");
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.code(), "undecodable_image");
        assert_eq!(probe(bytes).unwrap_err().code(), "undecodable_image");
    }
}

#[test]
fn truncated_images_are_errors() {
    for (name, bytes) in fixtures() {
        let format = ImageFormat::sniff(&bytes).unwrap();
        for keep in [bytes.len() / 2, bytes.len() * 3 / 4, bytes.len() - 2] {
            let result = decode(&bytes[..keep]);
            // Nothing that holds pixels is missing when an image's last bytes are a check sum or metadata.
            let rest_is_no_pixels = !matches!(format, ImageFormat::Jpeg) && keep + 2 == bytes.len()
                || name.ends_with(".tiff")
                || name.starts_with("animated");
            match result {
                Ok(_) => assert!(rest_is_no_pixels, "{name} cut at {keep} of {} was decoded", bytes.len()),
                Err(error) => {
                    assert!(matches!(error.kind(), "truncated" | "damaged"), "{name} cut at {keep}: {error:?}")
                }
            }
        }
        if format == ImageFormat::Jpeg {
            let error = decode(&bytes[..bytes.len() - 2]).unwrap_err();
            assert_eq!(error.kind(), "truncated", "{error}");
        }
    }
}

#[test]
fn a_bomb_is_refused_before_it_is_unpacked() {
    // The header of a 50,000 x 50,000 PNG, and no pixels.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\xc3\x50\0\0\xc3\x50\x08\x02\0\0\0".to_vec();
    png.extend(0x2a2e_6166u32.to_be_bytes());
    let error = match decode(&png).unwrap_err() {
        // The decoder may want to see the first chunk of pixels first.
        MediaError::Damaged { .. } | MediaError::Truncated { .. } => {
            png.truncate(29);
            png.extend(crc32(&png[12..29]).to_be_bytes());
            png.extend(b"\0\0\0\x01IDAT\x78");
            decode(&png).unwrap_err()
        }
        error => error,
    };
    assert_eq!(error, MediaError::TooLarge { width: 50_000, height: 50_000, limit: 178_956_970 });
    assert_eq!(error.code(), "image_too_large");
    let small = DecodeLimits { max_pixels: 37 * 23 - 1, ..DecodeLimits::default() };
    assert_eq!(decode_rgb(&file("rgb.png"), &small).unwrap_err().kind(), "too_large");
    let exact = DecodeLimits { max_pixels: 37 * 23, ..DecodeLimits::default() };
    for (name, bytes) in fixtures().into_iter().filter(|(n, _)| n != "grey_two_bits.png") {
        decode_rgb(&bytes, &exact).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let short = DecodeLimits { max_bytes: 10, ..DecodeLimits::default() };
    assert_eq!(decode_rgb(&file("rgb.png"), &short).unwrap_err().code(), "image_too_large");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { 0xEDB8_8320 ^ (c >> 1) } else { c >> 1 })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn damaged_images_never_panic(pick: prop::sample::Index, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), cut: Option<prop::sample::Index>) {
        let fixtures = fixtures();
        let (name, bytes) = fixtures.iter().nth(pick.index(fixtures.len())).unwrap();
        let mut bytes = bytes.clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let limits = DecodeLimits { max_pixels: 1 << 20, ..DecodeLimits::default() };
        match decode_rgb(&bytes, &limits) {
            Ok(image) => prop_assert!(u64::from(image.width()) * u64::from(image.height()) <= 1 << 20, "{}", name),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        let _ = probe(&bytes);
    }

    #[test]
    fn noise_is_no_image(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&bytes).is_err());
    }
}
