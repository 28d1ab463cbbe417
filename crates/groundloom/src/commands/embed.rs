//! `groundloom embed`.

use std::{
    io::{BufWriter, Write},
    path::Path,
};

use groundloom_data::{DecodeLimits, SoundLimits, media::RgbImage, media::decode_rgb, sound::decode_mono};
use groundloom_models::{Embedder, ModelOn, resolve_embedder};
use serde_json::{Value, json};

use crate::{arguments::Embed, failure::Failure};

/// Inputs that are embedded together: enough to fill a pass, few enough to see output soon.
const TOGETHER: usize = 32;

pub fn run(command: &Embed) -> Result<(), Failure> {
    if command.text.is_empty() && command.image.is_empty() && command.audio.is_empty() {
        let expected = "expected something to embed: --text \"a dog\", --image photo.jpg or --audio bark.wav";
        return Err(Failure::Usage(expected.to_owned()));
    }
    let model = ModelOn::new(&command.model, command.on.open()?);
    let model = resolve_embedder(model).map_err(|e| Failure::Usage(e.to_string()))?;
    let rate = model.info().sample_rate;
    if rate.is_none() && !command.audio.is_empty() {
        let takes: Vec<&str> = model.info().modalities().map(|modality| modality.plural()).collect();
        let message = format!("--audio: {} takes {}, but no audio", model.info().name, takes.join(", "));
        return Err(Failure::Usage(message));
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut failed = 0;
    let mut print = |key: &str, name: &str, vector: Result<Vec<f32>, String>| -> Result<(), Failure> {
        match vector {
            Ok(vector) => {
                serde_json::to_writer(&mut out, &line(key, name, model.as_ref(), &vector))?;
                out.write_all(b"\n")?;
            }
            Err(message) => {
                say!("error: {name}: {message}");
                failed += 1;
            }
        }
        Ok(())
    };
    for texts in command.text.chunks(TOGETHER) {
        let vectors = model.embed_texts(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        for (text, vector) in texts.iter().zip(vectors) {
            print("text", text, vector.map_err(|e| e.to_string()))?;
        }
    }
    for paths in command.image.chunks(TOGETHER) {
        let images: Vec<Result<RgbImage, String>> = paths.iter().map(|path| read(path)).collect();
        let good: Vec<&RgbImage> = images.iter().filter_map(|image| image.as_ref().ok()).collect();
        let mut vectors = model.embed_images(&good).into_iter();
        for (path, image) in paths.iter().zip(&images) {
            let vector = match image {
                Err(message) => Err(message.clone()),
                Ok(_) => vectors.next().map_or(Ok(Vec::new()), |vector| vector.map_err(|e| e.to_string())),
            };
            print("image", &path.display().to_string(), vector)?;
        }
    }
    for path in &command.audio {
        let vector = hear(path, rate).and_then(|waveform| {
            let vector = model.embed_audio(&[&waveform]).into_iter().next();
            vector.map_or(Ok(Vec::new()), |vector| vector.map_err(|e| e.to_string()))
        });
        print("audio", &path.display().to_string(), vector)?;
    }
    out.flush()?;
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!(
            "{failed} of {} inputs could not be embedded",
            command.text.len() + command.image.len() + command.audio.len()
        ))),
    }
}

fn line(key: &str, name: &str, model: &dyn Embedder, vector: &[f32]) -> Value {
    json!({ key: name, "model": model.info().name, "dims": model.info().dims, "embedding": vector })
}

fn hear(path: &Path, rate: Option<u32>) -> Result<Vec<f32>, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    decode_mono(&bytes, rate, &SoundLimits::default()).map(|sound| sound.samples).map_err(|e| e.to_string())
}

fn read(path: &Path) -> Result<RgbImage, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    decode_rgb(&bytes, &DecodeLimits::default()).map_err(|e| e.to_string())
}
