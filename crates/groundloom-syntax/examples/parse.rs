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

use groundloom_syntax::{Doc, Pipeline};
use serde_json::{Value, json};

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
        serde_json::to_writer(&mut *out, &record(&doc?))?;
        out.write_all(b"\n")?;
    }
    texts.clear();
    Ok(())
}

fn record(doc: &Doc) -> Value {
    let tokens: Vec<Value> = doc
        .tokens()
        .map(|t| {
            json!({
                "i": t.i(), "text": t.text(), "idx": t.idx(),
                "ws": if t.space_after() { " " } else { "" },
                "norm": t.norm(), "shape": t.shape(), "lemma": t.lemma(),
                "tag": t.tag(), "pos": t.pos(), "morph": t.morph(), "dep": t.dep(), "head": t.head(),
                "sent_start": if t.is_sentence_start() { 1 } else { -1 },
                "left_edge": t.left_edge(), "right_edge": t.right_edge(),
            })
        })
        .collect();
    let chunks: Vec<Value> = doc
        .noun_chunks()
        .iter()
        .map(|c| {
            json!({
                "start": c.start_token, "end": c.end_token, "start_char": c.start_char,
                "end_char": c.end_char, "text": c.text(doc), "root": c.root,
            })
        })
        .collect();
    let sentences: Vec<[usize; 2]> = doc.sentences().iter().map(|s| [s.start, s.end]).collect();
    json!({ "text": doc.text(), "tokens": tokens, "noun_chunks": chunks, "sents": sentences })
}
