//! Images per second of the embedded detector on one thread and on two.
//!
//! `cargo bench -p groundloom-models` prints the median of several rounds. With `ROUND_SECONDS=S` in the environment
//! it instead reads numbers of threads from standard input, and answers each line with the rate of a round of S
//! seconds, so that another program can take turns with it (`scripts/bench_litert.py` does).

use std::{
    io::{BufRead, Write},
    time::{Duration, Instant},
};

use groundloom_models::{
    DEFAULT_DETECTOR, DetectOptions, Detector, KernelClass, ModelError, resolve_ssd, ssd::SsdMobileNetV2,
};
use image::RgbImage;

/// Images per second of `threads` threads that share the model, each answering for itself.
fn network_rate(model: &SsdMobileNetV2, image: &RgbImage, threads: usize, time: Duration) -> f64 {
    rate(threads, time, || model.raw_outputs(image).map(drop))
}

fn rate(threads: usize, time: Duration, work: impl Fn() -> Result<(), ModelError> + Sync) -> f64 {
    let start = Instant::now();
    let done: usize = std::thread::scope(|scope| {
        let run = || {
            let mut done = 0;
            while start.elapsed() < time {
                if work().is_ok() {
                    done += 1;
                }
            }
            done
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).sum()
    });
    done as f64 / start.elapsed().as_secs_f64()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = resolve_ssd(DEFAULT_DETECTOR)?;
    let photograph =
        image::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/photos/chelsea.png"))?.into_rgb8();
    let image = model.preprocess(&photograph)?;
    if let Ok(seconds) = std::env::var("ROUND_SECONDS") {
        let time = Duration::from_secs_f64(seconds.parse()?);
        for line in std::io::stdin().lock().lines() {
            println!("{}", network_rate(&model, &image, line?.trim().parse()?, time));
            std::io::stdout().flush()?;
        }
        return Ok(());
    }
    println!("kernels: {}", KernelClass::detect());
    let options = DetectOptions::default();
    for threads in [1, 2] {
        let mut rates: Vec<f64> =
            (0..7).map(|_| network_rate(&model, &image, threads, Duration::from_millis(700))).collect();
        rates.sort_by(f64::total_cmp);
        let whole = rate(threads, Duration::from_secs(2), || model.detect(&photograph, &options).map(drop));
        println!(
            "{threads} thread(s): network {:.1} images/s (of 7 rounds {:.1} to {:.1}); \
             resize, network and boxes of a 451×300 image {whole:.1} images/s",
            rates[3], rates[0], rates[6]
        );
    }
    Ok(())
}
