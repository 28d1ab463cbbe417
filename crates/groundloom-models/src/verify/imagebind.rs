//! Fixtures of ImageBind.

use candle_core::{DType, Device, Tensor};

use super::{Fixture, Outputs};
use crate::{
    ModelError,
    config::Config,
    imagebind::{ImageBind, Spectra, processor, still},
    layers::{compute, normalise},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// How far the logarithms of energies (−16 to 7) may lie from the reference's, which computes them in single precision: where
/// next to nothing is heard, that is up to 1.4e-3 from itself in double precision.
pub(super) const ENERGY_TOLERANCE: f32 = 2e-3;

pub(super) fn embedder(fixture: &Fixture, config: &Config, weights: &Weights) -> Result<Outputs, ModelError> {
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
        let compute = || -> Candle<[Tensor; 2]> {
            // Only audio and films come in clips, one axis more.
            let clips = if input.rank() == 5 { input.dim(1)? } else { 1 };
            let input = if input.rank() == 5 { input.flatten(0, 1)? } else { input.clone() };
            let head = run(&input)?;
            let vectors = normalise(&head)?.affine(scale, 0.0)?;
            let (rows, width) = vectors.dims2()?;
            Ok([head, vectors.reshape((rows / clips, clips, width))?.mean(1)?])
        };
        let [head, vectors] = compute().map_err(crate::layers::compute("ImageBind"))?;
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
