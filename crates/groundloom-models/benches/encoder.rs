//! How many images or texts a second an encoder embeds: `cargo bench -p groundloom-models --bench encoder -- FOLDER…`.
//!
//! One line of JSON a measurement. `scripts/bench_encoders.py` makes folders of real size, and runs torch beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use groundloom_models::resolve_embedder;
use image::RgbImage;

/// A caption of about thirty tokens.
const TEXT: &str = "two brown dogs and a small grey cat are sleeping on a pink couch beside two remote controls, a red \
                    blanket and a wooden table";
const BATCHES: [usize; 3] = [1, 8, 32];

fn main() {
    for folder in std::env::args().skip(1).filter(|argument| !argument.starts_with("--")) {
        let model = resolve_embedder(&folder).unwrap();
        let image = RgbImage::from_fn(224, 224, |x, y| image::Rgb([(x * 3) as u8, (y * 2) as u8, (x ^ y) as u8]));
        for batch in BATCHES {
            let (images, texts) = (vec![&image; batch], vec![TEXT; batch]);
            let run = || {
                let vectors = if model.info().images { model.embed_images(&images) } else { model.embed_texts(&texts) };
                assert!(vectors.iter().all(Result::is_ok));
            };
            run();
            let (start, mut rounds) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_secs(4) || rounds < 3 {
                run();
                rounds += 1;
            }
            let rate = f64::from(rounds) * batch as f64 / start.elapsed().as_secs_f64();
            println!("{{\"model\": {folder:?}, \"batch\": {batch}, \"per_second\": {rate:.2}}}");
        }
    }
}
