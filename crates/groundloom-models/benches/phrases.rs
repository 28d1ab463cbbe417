//! Seconds that a detector of open vocabulary takes for a picture: `cargo bench --bench phrases -- FOLDER [WIDTH HEIGHT
//! ROUNDS]`. `scripts/bench_grounding_dino.py` makes a folder of the released size and runs transformers beside it.

use std::time::Instant;

use groundloom_models::{DetectOptions, resolve};
use image::{Rgb, RgbImage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Some(folder) = arguments.first() else {
        println!("phrases: no folder given, nothing measured");
        return Ok(());
    };
    let number = |at: usize, default: u32| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (width, height, rounds) = (number(1, 640)?, number(2, 480)?, number(3, 3)?);
    let detector = resolve(folder)?;
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7 + y) as u8, (x * y / 9) as u8, (y * 3) as u8]));
    let phrases = ["a cat", "a dog", "the remote control", "two birds on a tree"];
    let options = DetectOptions::default();
    // Memory is touched for the first time in a round that does not count.
    for round in 0..=rounds {
        let begun = Instant::now();
        let found = detector.detect_phrases(&picture, &phrases, &options)?.len();
        if round > 0 {
            println!("{:.3} s, {found} found", begun.elapsed().as_secs_f64());
        }
    }
    Ok(())
}
