//! `groundloom detect`.

use std::{
    io::{BufWriter, Write},
    path::Path,
};

use groundloom_data::{DecodeLimits, media::RgbImage, media::decode_rgb};
use groundloom_models::{Classes, DetectOptions, Detection, Detector, ModelError, ModelOn, resolve};
use groundloom_syntax::Pipeline;
use serde_json::{Value, json};

use crate::{arguments::Detect, failure::Failure};

pub fn run(command: &Detect) -> Result<(), Failure> {
    let model = ModelOn::new(&command.model, command.on.open()?);
    let detector = resolve(model).map_err(|e| Failure::Usage(e.to_string()))?;
    let options = DetectOptions { min_score: command.min_score, ..DetectOptions::default() };
    options.check().map_err(|e| Failure::Usage(e.to_string()))?;
    let wanted = wanted(command, detector.as_ref())?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut failed = 0;
    for path in &command.images {
        let found = picture(path).and_then(|image| {
            let found = wanted.find(detector.as_ref(), &image, &options).map_err(|e| e.to_string())?;
            Ok((image.width(), image.height(), found))
        });
        match found {
            Ok((width, height, found)) => {
                let detections: Vec<Value> = wanted.labelled(&found);
                let line = json!({ "image": path.display().to_string(), "width": width, "height": height, "detections": detections });
                serde_json::to_writer(&mut out, &line)?;
                out.write_all(b"\n")?;
            }
            Err(message) => {
                say!("error: {}: {message}", path.display());
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

fn picture(path: &Path) -> Result<RgbImage, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    decode_rgb(&bytes, &DecodeLimits::default()).map_err(|e| e.to_string())
}

/// What to look for.
enum Wanted {
    /// All classes of the model.
    Everything,
    /// Phrases, each with the class that it names.
    Classes(Vec<(String, String)>),
    /// Phrases as they are.
    Phrases(Vec<String>),
    /// What another picture shows.
    Example(RgbImage),
}

fn wanted(command: &Detect, detector: &dyn Detector) -> Result<Wanted, Failure> {
    if let Some(path) = &command.like {
        let example = picture(path).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
        return Ok(Wanted::Example(example));
    }
    let open = detector.info().classes == Classes::Open;
    match &command.phrases {
        None if open => Err(Failure::Usage(format!(
            "{} looks for phrases: name them with --phrases \"a cat . a dog .\"",
            detector.info().name
        ))),
        None => Ok(Wanted::Everything),
        Some(text) if open => match split(text).map(str::to_owned).collect::<Vec<_>>() {
            phrases if phrases.is_empty() => {
                Err(Failure::Usage("expected a phrase in --phrases, found none".to_owned()))
            }
            phrases => Ok(Wanted::Phrases(phrases)),
        },
        Some(text) => named_classes(text, detector).map(Wanted::Classes),
    }
}

fn split(phrases: &str) -> impl Iterator<Item = &str> {
    phrases.split('.').map(str::trim).filter(|p| !p.is_empty())
}

/// The phrases and the class each stands for.
fn named_classes(text: &str, detector: &dyn Detector) -> Result<Vec<(String, String)>, Failure> {
    let Some(vocabulary) = detector.vocabulary() else {
        return Err(Failure::Usage("this detector takes no phrases".to_owned()));
    };
    let syntax = Pipeline::embedded().map_err(|e| Failure::Failed(e.to_string()))?;
    let mut known = Vec::new();
    for phrase in split(text) {
        let doc = syntax.parse(phrase).map_err(|e| Failure::Usage(e.to_string()))?;
        let head = doc.noun_chunks().last().map(|c| c.root).and_then(|i| doc.token(i)).or_else(|| doc.tokens().last());
        let lemma = head.map(|t| t.lemma().to_lowercase()).unwrap_or_default();
        match vocabulary.lookup(&phrase.to_lowercase(), &lemma) {
            Some(class) => known.push((phrase.to_owned(), class.to_owned())),
            None => say!("warning: `{phrase}` is none of the classes that {} knows", detector.info().name),
        }
    }
    Ok(known)
}

impl Wanted {
    fn find(
        &self,
        detector: &dyn Detector,
        image: &RgbImage,
        options: &DetectOptions,
    ) -> Result<Vec<Detection>, ModelError> {
        match self {
            Self::Everything | Self::Classes(_) => detector.detect(image, options),
            Self::Phrases(phrases) => {
                detector.detect_phrases(image, &phrases.iter().map(String::as_str).collect::<Vec<_>>(), options)
            }
            Self::Example(example) => detector.detect_like(image, example, options),
        }
    }

    fn labelled(&self, found: &[Detection]) -> Vec<Value> {
        let value = |label: &str, d: &Detection| json!({ "label": label, "score": d.score, "box": d.bbox.xyxy() });
        match self {
            Self::Classes(phrases) => found
                .iter()
                .flat_map(|d| {
                    phrases.iter().filter(|(_, class)| **class == *d.label).map(move |(phrase, _)| value(phrase, d))
                })
                .collect(),
            _ => found.iter().map(|d| value(&d.label, d)).collect(),
        }
    }
}
