//! Parses texts and prints them as JSON lines, as `scripts/oracle.py` does with spaCy.
//!
//! One text per line of the file or of standard input; with `--json` each line is a JSON
//! string, which may hold newlines. `--model FOLDER` takes a spaCy model folder instead of
//! the embedded model.
//!
//! ```console
//! $ echo 'A brown dog chases two cats.' | cargo run --example parse
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};

use groundloom_syntax::Pipeline;

fn main() -> Result<(), Box<dyn Error>> {
    let mut json_lines = false;
    let mut input: Box<dyn BufRead> = Box::new(io::stdin().lock());
    let mut pipeline = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json_lines = true,
            "--model" => pipeline = Some(Pipeline::load(args.next().ok_or("--model needs a folder")?)?),
            path => input = Box::new(BufReader::new(File::open(path)?)),
        }
    }
    let pipeline = pipeline.map_or_else(Pipeline::embedded, Ok)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut texts: Vec<String> = Vec::new();
    for line in input.lines() {
        let line = line?;
        texts.push(if json_lines { serde_json::from_str(&line)? } else { line });
        if texts.len() == 256 {
            print(&pipeline, &mut texts, &mut out)?;
        }
    }
    print(&pipeline, &mut texts, &mut out)?;
    out.flush()?;
    Ok(())
}

fn print(pipeline: &Pipeline, texts: &mut Vec<String>, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    for doc in pipeline.parse_batch(texts) {
        serde_json::to_writer(&mut *out, &doc?.record())?;
        out.write_all(b"\n")?;
    }
    texts.clear();
    Ok(())
}
