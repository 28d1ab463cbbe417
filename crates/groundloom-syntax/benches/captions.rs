//! Captions per second, with the time that each part takes.
//!
//! ```console
//! $ cargo bench -p groundloom-syntax -- [--threads N] [--seconds S] [--kernels CLASS] [texts.jsonl]
//! ```
//!
//! `texts.jsonl` holds one JSON string a line (`scripts/gather_texts.py --only sentences`);
//! `scripts/benchmark.py` runs this beside spaCy on the same file. Without one the frozen
//! test sample is taken, which is small and so flatters the caches, and whose texts are
//! more difficult than captions.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use groundloom_syntax::{KernelClass, Pipeline, Timings};

const BATCH: usize = 256;

/// A line of the test sample; its answers are not looked at.
#[derive(serde::Deserialize)]
struct Sample {
    doc: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut threads, mut seconds, mut path) = (1, 5.0, None);
    let mut kernels = KernelClass::detect();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--bench" => {}
            "--threads" => threads = value()?.parse()?,
            "--seconds" => seconds = value()?.parse()?,
            "--kernels" => {
                kernels = match value()?.as_str() {
                    "portable" => KernelClass::Portable,
                    "avx2" => KernelClass::Avx2,
                    "avx512" => KernelClass::Avx512,
                    other => return Err(format!("kernels are portable, avx2 or avx512, not {other}").into()),
                }
            }
            _ => path = Some(arg),
        }
    }
    let start = Instant::now();
    let pipeline = Pipeline::embedded_with(kernels)?;
    println!("load {:.1} ms, kernels {kernels:?}", start.elapsed().as_secs_f64() * 1e3);

    let texts = match path {
        Some(path) => {
            let lines = std::fs::read_to_string(path)?;
            lines.lines().map(serde_json::from_str).collect::<Result<Vec<String>, _>>()?
        }
        None => {
            let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/sample.jsonl.gz");
            let lines = BufReader::new(GzDecoder::new(File::open(sample)?)).lines();
            let texts = lines.map(|line| Ok(serde_json::from_str::<Sample>(&line?)?.doc));
            texts.collect::<Result<Vec<String>, Box<dyn Error>>>()?
        }
    };
    let run = |seconds: f64| {
        let workers: Vec<_> = std::thread::scope(|scope| {
            let spawn = |t| {
                scope.spawn({
                    let (pipeline, texts) = (pipeline.clone(), &texts);
                    move || measure(&pipeline, texts, t * texts.len() / threads, Duration::from_secs_f64(seconds))
                })
            };
            let handles: Vec<_> = (0..threads).map(spawn).collect();
            handles.into_iter().map(|h| h.join()).collect()
        });
        workers
    };
    run(0.5);
    let mut total = (0.0, 0.0);
    for worker in run(seconds) {
        let Ok(m) = worker else { return Err("a worker panicked".into()) };
        let spent = m.elapsed.as_secs_f64();
        let per = |d: Duration| d.as_secs_f64() * 1e6 / m.captions as f64;
        let t = m.timings;
        println!(
            "{:.0} captions/s, {:.0} tokens/s, {:.1} tokens each, {:.2}% exact; µs per caption: tokenizer {:.2}, words {:.2}, \
             tok2vec {:.2}, tagger {:.2}, parser {:.2}, exact {:.2}, rules {:.2}",
            m.captions as f64 / spent,
            m.tokens as f64 / spent,
            m.tokens as f64 / m.captions as f64,
            1e2 * m.exact as f64 / m.captions as f64,
            per(t.tokenizer),
            per(t.words),
            per(t.tok2vec),
            per(t.tagger),
            per(t.parser),
            per(t.exact),
            per(t.rules),
        );
        total.0 += m.captions as f64 / spent;
        total.1 += m.tokens as f64 / spent;
    }
    println!("total {:.0} captions/s {:.0} tokens/s, {threads} threads", total.0, total.1);
    Ok(())
}

#[derive(Default)]
struct Measurement {
    captions: usize,
    tokens: usize,
    exact: usize,
    elapsed: Duration,
    timings: Timings,
}

/// Goes through the texts from `at` on, round and round, until the time is over.
fn measure(pipeline: &Pipeline, texts: &[String], mut at: usize, limit: Duration) -> Measurement {
    let mut m = Measurement::default();
    let start = Instant::now();
    while m.elapsed < limit {
        let batch = &texts[at..texts.len().min(at + BATCH)];
        at = if at + BATCH >= texts.len() { 0 } else { at + BATCH };
        let (docs, t) = pipeline.parse_batch_timed(batch);
        m.captions += docs.len();
        for doc in docs.iter().flatten() {
            m.tokens += doc.len();
            m.exact += usize::from(doc.margins().exact);
        }
        for (sum, t) in [
            (&mut m.timings.tokenizer, t.tokenizer),
            (&mut m.timings.words, t.words),
            (&mut m.timings.tok2vec, t.tok2vec),
            (&mut m.timings.tagger, t.tagger),
            (&mut m.timings.parser, t.parser),
            (&mut m.timings.exact, t.exact),
            (&mut m.timings.rules, t.rules),
        ] {
            *sum += t;
        }
        m.elapsed = start.elapsed();
    }
    m
}
