//! `groundloom parse`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
};

use groundloom_syntax::Pipeline;
use serde_json::Value;

use crate::{arguments::Parse, failure::Failure};

/// Texts that are parsed together: enough for the matrix products, few enough to see output soon.
const TOGETHER: usize = 256;

pub fn run(command: &Parse) -> Result<(), Failure> {
    let pipeline = match &command.model {
        Some(folder) => Pipeline::load(folder),
        None => Pipeline::embedded(),
    };
    let pipeline = pipeline.map_err(|e| Failure::Failed(e.to_string()))?;
    let mut input: Box<dyn BufRead> = match &command.file {
        Some(path) => {
            let file = File::open(path).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
            Box::new(BufReader::new(file))
        }
        None => Box::new(io::stdin().lock()),
    };
    let name = command.file.as_ref().map_or_else(|| "<stdin>".to_owned(), |p| p.display().to_string());
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut texts, mut line, mut number) = (Vec::new(), Vec::new(), 0usize);
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        number += 1;
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let text = std::str::from_utf8(text).map_err(|e| {
            Failure::Failed(format!("{name}:{number}: expected UTF-8, found other bytes at byte {}", e.valid_up_to()))
        })?;
        texts.push((
            number,
            text_of(text, command.jsonl.as_deref()).map_err(|e| Failure::Failed(format!("{name}:{number}: {e}")))?,
        ));
        if texts.len() == TOGETHER {
            print(&pipeline, &mut texts, command.chunks, &name, &mut out)?;
        }
    }
    print(&pipeline, &mut texts, command.chunks, &name, &mut out)?;
    out.flush()?;
    Ok(())
}

fn text_of(line: &str, column: Option<&str>) -> Result<String, String> {
    let Some(column) = column else { return Ok(line.to_owned()) };
    let row: Value = serde_json::from_str(line).map_err(|e| format!("no valid JSON: {e}"))?;
    match row.get(column) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("expected text in `{column}`, found {other}")),
        None => Err(format!("there is no `{column}` in the row")),
    }
}

fn print(
    pipeline: &Pipeline,
    texts: &mut Vec<(usize, String)>,
    chunks_only: bool,
    name: &str,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let only: Vec<&str> = texts.iter().map(|(_, t)| t.as_str()).collect();
    for (doc, (number, _)) in pipeline.parse_batch(&only).into_iter().zip(texts.iter()) {
        let doc = doc.map_err(|e| Failure::Failed(format!("{name}:{number}: {e}")))?;
        let record = if chunks_only { doc.chunk_record() } else { doc.record() };
        serde_json::to_writer(&mut *out, &record)?;
        out.write_all(b"\n")?;
    }
    texts.clear();
    Ok(())
}
