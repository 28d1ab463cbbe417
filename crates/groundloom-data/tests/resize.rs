//! Resizing equals Pillow's to the byte, on the images of `scripts/resize_fixtures.py`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use groundloom_data::{Filter, media::RgbImage, resize};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

/// splitmix64 of the position; the top byte.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    (1..=count as u64)
        .map(|i| {
            let mut z = i.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 56) as u8
        })
        .collect()
}

#[test]
fn equals_pillow() {
    let mut cases = 0;
    for line in include_str!("resize.tsv").lines().filter(|l| !l.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let filter = match fields[0] {
            "box" => Filter::Box,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            "lanczos" => Filter::Lanczos,
            other => panic!("unknown filter {other}"),
        };
        let n: Vec<u32> = fields[1..5].iter().map(|f| f.parse().unwrap()).collect();
        let mut pixels = noise(fields[6].parse().unwrap(), n[0] as usize * n[1] as usize * 3);
        if fields[5] == "black_and_white" {
            pixels.iter_mut().for_each(|p| *p = (*p >> 7) * 255);
        }
        let image = RgbImage::from_raw(n[0], n[1], pixels).unwrap();
        let resized = resize(&image, n[2], n[3], filter);
        assert_eq!(resized.dimensions(), (n[2], n[3]));
        assert_eq!(format!("{:016x}", xxh3_64(resized.as_raw())), fields[7], "{line}");
        cases += 1;
    }
    assert_eq!(cases, 240);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn one_colour_stays_one_colour(width in 1u32..90, height in 1u32..90, to_width in 1u32..90, to_height in 1u32..90, colour: [u8; 3]) {
        let image = RgbImage::from_pixel(width, height, image::Rgb(colour));
        for filter in [Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let resized = resize(&image, to_width, to_height, filter);
            prop_assert!(resized.pixels().all(|p| p.0.iter().zip(colour).all(|(&a, b)| a.abs_diff(b) <= 1)));
        }
    }
}
