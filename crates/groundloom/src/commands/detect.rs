//! `groundloom detect`.

use std::io::{BufWriter, Write};

use groundloom_data::{DecodeLimits, media::decode_rgb};
use groundloom_models::{DetectOptions, Detection, Detector, resolve};
use groundloom_syntax::Pipeline;
use serde_json::{Value, json};

use crate::{arguments::Detect, failure::Failure};

pub fn run(command: &Detect) -> Result<(), Failure> {
    let detector = resolve(&command.model).map_err(|e| Failure::Usage(e.to_string()))?;
    let options = DetectOptions { min_score: command.min_score, ..DetectOptions::default() };
    options.check().map_err(|e| Failure::Usage(e.to_string()))?;
    let phrases = command.phrases.as_deref().map(|p| phrases(p, detector.as_ref())).transpose()?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut failed = 0;
    for path in &command.images {
        let found = std::fs::read(path)
            .map_err(|e| e.to_string())
            .and_then(|bytes| decode_rgb(&bytes, &DecodeLimits::default()).map_err(|e| e.to_string()))
            .and_then(|image| {
                let found = detector.detect(&image, &options).map_err(|e| e.to_string())?;
                Ok((image.width(), image.height(), found))
            });
        match found {
            Ok((width, height, found)) => {
                let detections: Vec<Value> = labelled(&found, phrases.as_deref());
                let line = json!({ "image": path.display().to_string(), "width": width, "height": height, "detections": detections });
                serde_json::to_writer(&mut out, &line)?;
                out.write_all(b"\n")?;
            }
            Err(message) => {
                eprintln!("error: {}: {message}", path.display());
                failed += 1;
            }
        }
    }
    out.flush()?;
    if failed > 0 {
        return Err(Failure::Failed(format!("{failed} of {} pictures could not be looked at", command.images.len())));
    }
    Ok(())
}

/// The phrases and the class each stands for.
fn phrases(text: &str, detector: &dyn Detector) -> Result<Vec<(String, String)>, Failure> {
    let Some(vocabulary) = detector.vocabulary() else {
        return Err(Failure::Usage("this detector takes no phrases".to_owned()));
    };
    let syntax = Pipeline::embedded().map_err(|e| Failure::Failed(e.to_string()))?;
    let mut known = Vec::new();
    for phrase in text.split('.').map(str::trim).filter(|p| !p.is_empty()) {
        let doc = syntax.parse(phrase).map_err(|e| Failure::Usage(e.to_string()))?;
        let head = doc.noun_chunks().last().map(|c| c.root).and_then(|i| doc.token(i)).or_else(|| doc.tokens().last());
        let lemma = head.map(|t| t.lemma().to_lowercase()).unwrap_or_default();
        match vocabulary.lookup(&phrase.to_lowercase(), &lemma) {
            Some(class) => known.push((phrase.to_owned(), class.to_owned())),
            None => eprintln!("warning: `{phrase}` is none of the classes that {} knows", detector.info().name),
        }
    }
    Ok(known)
}

fn labelled(found: &[Detection], phrases: Option<&[(String, String)]>) -> Vec<Value> {
    let value = |label: &str, d: &Detection| json!({ "label": label, "score": d.score, "box": d.bbox.xyxy() });
    match phrases {
        None => found.iter().map(|d| value(&d.label, d)).collect(),
        Some(phrases) => found
            .iter()
            .flat_map(|d| {
                phrases.iter().filter(|(_, class)| **class == *d.label).map(move |(phrase, _)| value(phrase, d))
            })
            .collect(),
    }
}
