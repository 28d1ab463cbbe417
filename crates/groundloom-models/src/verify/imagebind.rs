//! Fixtures of ImageBind.

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::{Fixture, Outputs};
use crate::{
    ModelError, Plane,
    config::Config,
    device::ModelOn,
    imagebind::{ImageBind, Spectra, processor, still},
    layers::{compute, normalise},
    registry::resolve_embedder,
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// How far the logarithms of energies (−16 to 7) may lie from the reference's, which computes them in single precision: where
/// next to nothing is heard, that is up to 1.4e-3 from itself in double precision.
pub(super) const ENERGY_TOLERANCE: f32 = 2e-3;

/// What the towers make of a fixture's `MODALITY.input`, or the whole embedder of what a user has.
pub(super) fn embedder(fixture: &Fixture, config: &Config, weights: &Weights) -> Result<Outputs, ModelError> {
    if fixture.has("motion") {
        return embedded(fixture);
    }
    let network = ImageBind::load(config, weights)?;
    let mut outputs = Vec::new();
    let mut see = |name: &str, scale: f64, run: &dyn Fn(&Tensor) -> Candle<Tensor>| -> Result<(), ModelError> {
        if !fixture.has(&format!("{name}.input")) {
            return Ok(());
        }
        let input = match name {
            "text" => fixture.ids("text.input")?,
            _ => fixture.input(&format!("{name}.input"))?,
        };
        let run_all = || -> Candle<[Tensor; 2]> {
            // Only audio and films come in clips, one axis more.
            let clips = if input.rank() == 5 { input.dim(1)? } else { 1 };
            let input = if input.rank() == 5 { input.flatten(0, 1)? } else { input.clone() };
            let head = run(&input)?;
            let vectors = normalise(&head)?.affine(scale, 0.0)?;
            let (rows, width) = vectors.dims2()?;
            Ok([head, vectors.reshape((rows / clips, clips, width))?.mean(1)?])
        };
        let [head, vectors] = run_all().map_err(compute("ImageBind"))?;
        outputs.extend([(format!("{name}.head"), head), (format!("{name}.embedding"), vectors)]);
        Ok(())
    };
    see("vision", network.vision.scale(), &|pixels| network.vision.forward(&still(pixels)?))?;
    see("text", network.text.scale(), &|ids| network.text.forward(ids))?;
    for (name, tower) in
        [("audio", &network.audio), ("depth", &network.depth), ("thermal", &network.thermal), ("imu", &network.motion)]
    {
        see(name, tower.scale(), &|input| tower.forward(input))?;
    }
    outputs.extend(made(fixture, config)?);
    Ok(outputs)
}

/// What is made of the fixture's picture and of its waveform.
fn made(fixture: &Fixture, config: &Config) -> Result<Outputs, ModelError> {
    let mut outputs = Vec::new();
    if let Some(picture) = fixture.picture()? {
        outputs.push(("in.vision.input".to_owned(), processor(config)?.batch(&[&picture])?));
    }
    if fixture.has("audio.waveform") {
        let waveform = fixture.input("audio.waveform")?;
        let run = || -> Candle<Tensor> {
            let waveform = waveform.to_dtype(DType::F32)?.flatten_all()?;
            let waveform = waveform.broadcast_sub(&waveform.mean_all()?)?.to_vec1::<f32>()?;
            let energies = Spectra::new().energies(&waveform);
            Tensor::from_vec(energies, (128, 204), &Device::Cpu)
        };
        outputs.push(("audio.fbank".to_owned(), run().map_err(compute("a waveform's spectra"))?));
    }
    Ok(outputs)
}

/// The vectors of a picture, texts, a waveform, a film, two planes and a recording, by the embedder that users have.
fn embedded(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let name = fixture.folder().file_name("");
    let model = resolve_embedder(ModelOn::new(&name, fixture.device()))?;
    let flat = |name: &str| -> Result<Vec<f32>, ModelError> {
        fixture.input(name)?.flatten_all().and_then(|x| x.to_vec1()).map_err(compute("an input"))
    };
    let (images, texts, waveform) = (fixture.images()?, fixture.strings("captions"), flat("waveform")?);
    let [depth, thermal] = ["depth", "thermal"].map(|name| plane(fixture, name));
    let recording: Vec<[f32; 6]> = flat("motion")?.as_chunks().0.to_vec();
    let film = film(&fixture.input("video")?).map_err(compute("a film"))?;
    [
        ("vision", model.embed_images(&images.iter().collect::<Vec<_>>())),
        ("text", model.embed_texts(&texts)),
        ("audio", model.embed_audio(&[&waveform])),
        ("video", model.embed_videos(&[&film])),
        ("depth", model.embed_depth(&[&depth?])),
        ("thermal", model.embed_thermal(&[&thermal?])),
        ("imu", model.embed_motion(&[&recording])),
    ]
    .into_iter()
    .map(|(name, vectors)| {
        let vectors = vectors.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok((name.to_owned(), Tensor::new(vectors, &Device::Cpu).map_err(compute("vectors"))?))
    })
    .collect()
}

/// The input `name`, `[height, width]`.
fn plane(fixture: &Fixture, name: &str) -> Result<Plane, ModelError> {
    let tensor = fixture.input(name)?;
    let read = || -> Candle<Option<Plane>> {
        let (height, width) = tensor.dims2()?;
        Ok(Plane::from_raw(width as u32, height as u32, tensor.flatten_all()?.to_vec1()?))
    };
    let found = read().map_err(compute("an input"))?;
    found.ok_or(ModelError::EmptyImage { width: 0, height: 0 })
}

/// Frames of `[frames, height, width, 3]`.
fn film(tensor: &Tensor) -> Candle<Vec<RgbImage>> {
    let (_, height, width, _) = tensor.dims4()?;
    let frames = tensor.to_dtype(DType::U8)?.flatten_from(1)?.to_vec2()?;
    Ok(frames.into_iter().filter_map(|frame| RgbImage::from_raw(width as u32, height as u32, frame)).collect())
}
