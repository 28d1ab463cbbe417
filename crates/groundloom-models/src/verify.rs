//! Whether a model computes what its reference does: a fixture folder is a model folder with `expected.safetensors`
//! beside it, inputs `in.NAME` and the reference's outputs `out.NAME`. Names may have neither: then `image`, `text` and
//! `MODALITY.input` are inputs, the others are outputs.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor, safetensors};
use image::RgbImage;
use serde_json::Value;

use crate::{
    ModelError, config::Config, family::Family, folder::ModelFolder, grounding_dino::replay::STEEPEST_NORMS,
    layers::compute, owl::Generation, weights::Weights,
};

mod beams;
mod clap;
mod detectors;
mod dual;
mod imagebind;
mod speech;
mod text;
mod vision;
mod whisper;
mod writers;

/// How far hidden states and embeddings may lie from the reference, absolute.
pub const HIDDEN_TOLERANCE: f32 = 2e-5;
/// How far logits, scores and boxes may lie from the reference, absolute.
pub const LOGIT_TOLERANCE: f32 = 1e-4;

/// How far what Grounding DINO's decoder gives may lie from the reference. Its samples between pixels of maps multiply
/// every error, with random weights the more: the reference in single precision was up to 7e-5 from itself in double
/// precision, and this crate up to 2e-4.
pub const DECODED_TOLERANCE: f32 = 3e-4;
/// How far boxes in pixels may lie from the reference's, in pixels: [`LOGIT_TOLERANCE`] of an image of 100.
pub const PIXEL_TOLERANCE: f32 = 1e-2;

/// The reference's outputs.
const EXPECTED: &str = "expected.safetensors";
/// Captions, token tables and the like.
const NOTES: &str = "expected.json";
/// A picture that a fixture may have beside its tensors.
const PICTURE: &str = "image.png";

/// What came of one output.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The output's name in the fixture, or what else was compared.
    pub name: String,
    /// What was found.
    pub outcome: Outcome,
}

/// How one output compares with the reference's.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Computed, and of the reference's shape.
    Compared {
        /// The largest absolute difference.
        difference: f32,
        /// Where it is.
        place: Vec<usize>,
        /// What it may be.
        tolerance: f32,
    },
    /// Computed, but not comparable: what differs.
    Different(String),
    /// Not computed, and why that is no failure.
    Skipped(&'static str),
}

impl Comparison {
    /// Whether the output is within its tolerance, or skipped for a reason.
    pub fn passed(&self) -> bool {
        match &self.outcome {
            Outcome::Compared { difference, tolerance, .. } => difference <= tolerance,
            Outcome::Different(_) => false,
            Outcome::Skipped(_) => true,
        }
    }
}

/// The inputs and expected outputs of a fixture.
pub(crate) struct Fixture {
    folder: ModelFolder,
    tensors: BTreeMap<String, Tensor>,
    notes: Value,
    /// Beam searches.
    beams: beams::Cases,
    /// Names that stand in the file without `in.` or `out.`, by the names here.
    bare: BTreeMap<String, String>,
    /// Where the network computes.
    device: crate::Device,
}

/// Outputs by their names in the fixture (without `out.`; inputs that were made from images and texts as `in.NAME`).
pub(crate) type Outputs = Vec<(String, Tensor)>;

impl Fixture {
    fn open(folder: &Path, device: crate::Device) -> Result<Self, ModelError> {
        let path = folder.join(EXPECTED);
        let folder = ModelFolder::OnDisk(folder.to_owned());
        let tensors = safetensors::load(&path, &Device::Cpu)
            .map_err(|e| ModelError::Unreadable { path, reason: format!("{e}; expected a fixture's outputs") })?;
        let notes = folder.json_if_there(NOTES)?.unwrap_or_default();
        let mut bare = BTreeMap::new();
        let beams = beams::Cases::open(&folder)?;
        let tensors = tensors.into_iter().map(|(name, tensor)| {
            if name.starts_with("in.") || name.starts_with("out.") {
                return (name, tensor);
            }
            let is_input = ["image", "text", "audio.waveform"].contains(&name.as_str()) || name.ends_with(".input");
            let full = format!("{}.{name}", if is_input { "in" } else { "out" });
            bare.insert(full.clone(), name);
            (full, tensor)
        });
        let mut tensors: BTreeMap<String, Tensor> = tensors.collect();
        tensors.extend(beams.expected()?);
        let mut this = Self { tensors, folder, notes, bare, device, beams };
        for (name, case) in this.words() {
            let words = case["words"].as_array().into_iter().flatten();
            let times =
                words.flat_map(|word| [&word[1], &word[2]]).map(|time| time.as_f64().unwrap_or(f64::NAN) as f32);
            let times: Vec<f32> = times.collect();
            let times = Tensor::from_vec(times.clone(), (times.len() / 2, 2), &Device::Cpu);
            this.tensors.insert(format!("out.{name}"), times.map_err(compute("a fixture"))?);
        }
        Ok(this)
    }

    /// Where the network computes.
    pub(crate) fn device(&self) -> crate::Device {
        self.device
    }

    /// The folder itself.
    pub(crate) fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// The input `in.NAME` as f32.
    pub(crate) fn input(&self, name: &str) -> Result<Tensor, ModelError> {
        let found = self.tensors.get(&format!("in.{name}")).ok_or_else(|| ModelError::BadWeights {
            origin: self.folder.file_name(EXPECTED),
            problem: format!("expected the input in.{name}, found none"),
        })?;
        found.to_dtype(DType::F32).map_err(compute("an input"))
    }

    /// The expected output `out.NAME`.
    pub(crate) fn output(&self, name: &str) -> Result<&Tensor, ModelError> {
        self.tensors.get(&format!("out.{name}")).ok_or_else(|| ModelError::BadWeights {
            origin: self.folder.file_name(EXPECTED),
            problem: format!("expected the output out.{name}, found none"),
        })
    }

    /// The input `in.NAME` as u32: ids and masks.
    pub(crate) fn ids(&self, name: &str) -> Result<Tensor, ModelError> {
        self.input(name)?.to_dtype(DType::U32).map_err(compute("an input"))
    }

    /// Whether there is an input `in.NAME`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&format!("in.{name}"))
    }

    /// The images `in.image_a`, `in.image_b`, …, `[height, width, 3]` of bytes.
    pub(crate) fn images(&self) -> Result<Vec<RgbImage>, ModelError> {
        let mut images = Vec::new();
        // A mask of tokens may begin with the same name.
        let is_image = |name: &str, tensor: &Tensor| name.starts_with("in.image_") && tensor.rank() == 3;
        for (name, tensor) in self.tensors.iter().filter(|(name, tensor)| is_image(name, tensor)) {
            let read = || -> candle_core::Result<Option<RgbImage>> {
                let (height, width, _) = tensor.dims3()?;
                let bytes = tensor.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?;
                Ok(RgbImage::from_raw(width as u32, height as u32, bytes))
            };
            let image = read().map_err(compute("an image"))?;
            images.push(image.ok_or_else(|| ModelError::BadWeights {
                origin: self.folder.file_name(EXPECTED),
                problem: format!("expected {name} to be an image of three channels, found {:?}", tensor.dims()),
            })?);
        }
        Ok(images)
    }

    /// The picture `image.png`, if there is one.
    pub(crate) fn picture(&self) -> Result<Option<RgbImage>, ModelError> {
        let Some(bytes) = self.folder.read_if_there(PICTURE)? else { return Ok(None) };
        let picture = image::load_from_memory(&bytes).map_err(|e| ModelError::BadConfig {
            origin: self.folder.file_name(PICTURE),
            problem: format!("expected a PNG, found: {e}"),
        })?;
        Ok(Some(picture.into_rgb8()))
    }

    /// The strings of the notes at `key`.
    pub(crate) fn strings(&self, key: &str) -> Vec<&str> {
        let list = self.notes.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Word times of the notes, by the names of their outputs.
    fn words(&self) -> Vec<(String, Value)> {
        let cases = self.notes.get("words").and_then(Value::as_array).into_iter().flatten();
        cases.enumerate().map(|(i, case)| (format!("words.{i}_times"), case.clone())).collect()
    }

    /// The number of the notes at `key`.
    pub(crate) fn number(&self, key: &str) -> Result<f32, ModelError> {
        let found = self.notes.get(key).and_then(Value::as_f64);
        found.map(|number| number as f32).ok_or_else(|| ModelError::BadConfig {
            origin: self.folder.file_name(NOTES),
            problem: format!("expected a number {key}, found none"),
        })
    }

    /// Texts and their ids, with special tokens and without a longest length, from the notes' token table.
    fn token_table(&self) -> Vec<(&str, Vec<u32>)> {
        let ids = |row: &Value| -> Option<Vec<u32>> {
            row.get("ids")?.as_array()?.iter().map(|id| id.as_u64().map(|id| id as u32)).collect()
        };
        let rows = self.notes.get("tokenizer").and_then(Value::as_array);
        rows.into_iter().flatten().filter_map(|row| Some((row.get("text")?.as_str()?, ids(row)?))).collect()
    }
}

/// Loads the model of a fixture folder on `device`, runs what is there of processor, tokenizer and network on the fixture's
/// inputs, and compares every output.
///
/// # Errors
/// What keeps the model from loading or running, and a folder that is no fixture. A difference is no error: see
/// [`Comparison::passed`].
pub fn verify(folder: &Path, device: crate::Device) -> Result<Vec<Comparison>, ModelError> {
    let opened = device.open()?;
    let fixture = Fixture::open(folder, device)?;
    let family = Family::of(&folder.display().to_string(), fixture.folder())?;
    let (config, weights) = (Config::open(fixture.folder())?, Weights::open(fixture.folder())?.on(&opened));
    let outputs = match family {
        Family::Clip => dual::clip(&fixture, &config, &weights)?,
        Family::Siglip => dual::siglip(&fixture, &config, &weights)?,
        Family::Siglip2 => dual::siglip2(&fixture, &config, &weights)?,
        Family::TextEncoder(kind) => text::encoder(&fixture, &config, kind, &weights)?,
        Family::VisionTransformer(kind) => vision::transformer(&fixture, &config, kind, &weights)?,
        Family::GroundingDino => detectors::grounding_dino(&fixture)?,
        Family::Owl(generation) => detectors::owl(&fixture, generation)?,
        Family::Blip => writers::blip(&fixture)?,
        Family::Blip2 => writers::blip2(&fixture)?,
        Family::Llava => writers::llava(&fixture)?,
        Family::Clap => clap::towers(&fixture, &config, &weights)?,
        Family::Kosmos2 => writers::kosmos2(&fixture)?,
        Family::Coca => dual::coca(&fixture, &config, &weights)?,
        Family::Fromage => dual::fromage(&fixture, &config, &weights)?,
        Family::ImageBind => imagebind::embedder(&fixture, &config, &weights)?,
        Family::Opt | Family::Gpt2 | Family::Llama(_) => writers::language_model(&fixture)?,
        Family::T5 => writers::t5(&fixture)?,
        Family::Whisper => whisper::transcriber(&fixture)?,
        Family::VideoMae => vision::video(&fixture, &config, &weights)?,
        Family::Speech(kind) => speech::encoder(&fixture, &config, kind, &weights)?,
        Family::Ssd => {
            return Err(ModelError::BadConfig {
                origin: fixture.folder().file_name("config.json"),
                problem: "this family is verified by the tests of the crate, not by a fixture folder".to_owned(),
            });
        }
    };
    let outputs: BTreeMap<String, Tensor> = outputs
        .into_iter()
        .map(|(name, tensor)| (if name.starts_with("in.") { name } else { format!("out.{name}") }, tensor))
        .collect();
    let steepest = match outputs.get(STEEPEST_NORMS) {
        Some(steepest) => steepest.to_vec1::<f32>().map_err(compute("a comparison"))?,
        None => Vec::new(),
    };
    let mut found = Vec::new();
    for (name, expected) in &fixture.tensors {
        let tolerance = tolerance(family, name) * conditioning(name, &steepest);
        let outcome = match outputs.get(name) {
            Some(output) => compare(output, expected, tolerance).map_err(compute("a comparison"))?,
            None if name.starts_with("in.") => continue,
            None if name.ends_with("_torchvision") => {
                Outcome::Skipped("the reference's other image library; pixel values are PIL's")
            }
            None => Outcome::Different("not computed".to_owned()),
        };
        found.push(Comparison { name: fixture.bare.get(name).unwrap_or(name).clone(), outcome });
    }
    Ok(found)
}

/// Pixels, ids and masks must be equal.
fn tolerance(family: Family, name: &str) -> f32 {
    let name = name.trim_start_matches("out.");
    let of_family = match (family, name) {
        (Family::Owl(Generation::Second), "in.pixel_values") => Some(1e-5),
        (Family::Speech(_), "in.input_values" | "in.batch_input_values") => Some(speech::INPUT_TOLERANCE),
        (Family::Clap, "in.input_features") => Some(clap::INPUT_TOLERANCE),
        (Family::Clap, "audio_reshaped_mel") => Some(clap::SQUARE_TOLERANCE),
        (Family::Whisper, name) if name.starts_with("in.input_features") => Some(whisper::INPUT_TOLERANCE),
        (Family::Whisper, name) if name.starts_with("words.") => Some(whisper::WORD_TOLERANCE),
        (Family::GroundingDino, "logits" | "default_logits" | "last_hidden_state" | "intermediate_hidden_states") => {
            Some(DECODED_TOLERANCE)
        }
        (Family::GroundingDino, name) if name.starts_with("enc_outputs_") || name.ends_with("_reference_points") => {
            Some(LOGIT_TOLERANCE)
        }
        (Family::Coca, "greedy") => Some(0.0),
        (Family::ImageBind, "audio.fbank") => Some(imagebind::ENERGY_TOLERANCE),
        (Family::GroundingDino, "text_self_attention_masks" | "text_position_ids") => Some(0.0),
        (Family::GroundingDino | Family::Owl(_), name) if name.starts_with("post.") && name.ends_with(".boxes") => {
            Some(PIXEL_TOLERANCE)
        }
        (Family::Owl(_), name) if name.starts_with("post.") && name.ends_with(".labels") => Some(0.0),
        _ => None,
    };
    if let Some(tolerance) = of_family {
        tolerance
    } else if name.starts_with("in.") || name.ends_with("_ids") {
        0.0
    } else if ["logits", "prob", "score", "boxes"].iter().any(|part| name.contains(part)) {
        LOGIT_TOLERANCE
    } else {
        HIDDEN_TOLERANCE
    }
}

/// By how much more the outputs right behind a steep normalisation may differ. Grounding DINO normalises groups of channels; on
/// a tiny network a group is one channel of one map, of the coarsest map two numbers, and where these are nearly equal they
/// are multiplied by a hundred and more, with every error of the convolution before. There the reference in single
/// precision was up to 1.5e-4 from itself in double precision.
fn conditioning(name: &str, steepest: &[f32]) -> f32 {
    const HARMLESS: f32 = 20.0;
    let own = name.strip_prefix("out.input_proj.").and_then(|level| steepest.get(level.parse::<usize>().ok()?));
    let all = name.starts_with("out.msda0.") || name == "out.encoder_last_hidden_state_vision";
    let factors = if all { steepest } else { own.map_or(&[][..], std::slice::from_ref) };
    factors.iter().fold(1.0, |most, factor| (factor / HARMLESS).max(most))
}

fn compare(output: &Tensor, expected: &Tensor, tolerance: f32) -> candle_core::Result<Outcome> {
    if output.dims() != expected.dims() {
        return Ok(Outcome::Different(format!("the shape is {:?}, expected {:?}", output.dims(), expected.dims())));
    }
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (mut difference, mut at) = (0.0_f32, 0);
    for (i, (a, b)) in values(output)?.into_iter().zip(values(expected)?).enumerate() {
        // Infinities of the same sign are equal; a NaN is not equal to anything.
        let apart = if a == b { 0.0 } else { (a - b).abs() };
        if apart > difference || apart.is_nan() {
            (difference, at) = (if apart.is_nan() { f32::INFINITY } else { apart }, i);
        }
    }
    let mut place = Vec::with_capacity(expected.rank());
    for &side in expected.dims().iter().rev() {
        // A tensor of no values has no place.
        place.push(at % side.max(1));
        at /= side.max(1);
    }
    place.reverse();
    Ok(Outcome::Compared { difference, place, tolerance })
}

/// Names the tensors that a network shows on its way `NAME.0`, `NAME.1`, …
pub(crate) fn numbered(name: &str, tensors: Vec<Tensor>) -> Outputs {
    tensors.into_iter().enumerate().map(|(i, tensor)| (format!("{name}.{i}"), tensor)).collect()
}
