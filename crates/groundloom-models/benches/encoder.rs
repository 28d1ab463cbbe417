//! How many images, texts or waveforms a second an encoder embeds: `cargo bench -p groundloom-models --bench encoder --
//! [--batches 1,8,32] [--seconds 4] FOLDER…`.
//!
//! One line of JSON a measurement, with the most memory that the process has held until then.
//! `scripts/bench_encoders.py` makes folders of real size, and runs torch beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use groundloom_models::{SAMPLE_RATE, resolve_audio_encoder, resolve_embedder};
use image::RgbImage;

/// A caption of about thirty tokens.
const TEXT: &str = "two brown dogs and a small grey cat are sleeping on a pink couch beside two remote controls, a red \
                    blanket and a wooden table";
/// Seconds of a waveform.
const SPEECH: u32 = 3;

/// What is done with a batch of this many items.
type Pass = Box<dyn Fn(usize)>;

/// The encoder in a folder, of whatever it takes.
fn pass(folder: &str) -> Pass {
    if let Ok(encoder) = resolve_audio_encoder(folder) {
        let waveform: Vec<f32> = (0..SPEECH * SAMPLE_RATE).map(|i| (i as f32 * 0.07).sin() * 0.3).collect();
        return Box::new(move |batch| {
            let features = encoder.features(&vec![waveform.as_slice(); batch], None);
            assert!(features.iter().all(Result::is_ok));
        });
    }
    let model = resolve_embedder(folder).unwrap();
    let image = RgbImage::from_fn(224, 224, |x, y| image::Rgb([(x * 3) as u8, (y * 2) as u8, (x ^ y) as u8]));
    Box::new(move |batch| {
        let vectors = match model.info().images {
            true => model.embed_images(&vec![&image; batch]),
            false => model.embed_texts(&vec![TEXT; batch]),
        };
        assert!(vectors.iter().all(Result::is_ok));
    })
}

/// The most memory that this process has held, in MiB; nothing where the system does not tell.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok().map(|kib: u64| kib / 1024)
}

fn main() {
    let (mut batches, mut seconds, mut folders) = (vec![1, 8, 32], 4.0, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--batches" => batches = arguments.next().unwrap().split(',').map(|n| n.parse().unwrap()).collect(),
            "--seconds" => seconds = arguments.next().unwrap().parse().unwrap(),
            flag if flag.starts_with("--") => {}
            folder => folders.push(folder.to_owned()),
        }
    }
    for folder in folders {
        let run = pass(&folder);
        for &batch in &batches {
            // Memory is touched for the first time in a pass that does not count.
            run(batch);
            let (start, mut rounds) = (Instant::now(), 0);
            while rounds == 0 || start.elapsed() < Duration::from_secs_f64(seconds) {
                run(batch);
                rounds += 1;
            }
            let rate = f64::from(rounds) * batch as f64 / start.elapsed().as_secs_f64();
            let peak = peak().map_or_else(|| "null".to_owned(), |peak| peak.to_string());
            println!("{{\"batch\": {batch}, \"per_second\": {rate:.3}, \"peak_mib\": {peak}}}");
        }
    }
}
