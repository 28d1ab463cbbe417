//! Fixtures of images and clips.

use super::{Fixture, Outputs, dual::pixels, numbered, writers::named};
use crate::{
    ModelError,
    config::Config,
    layers::compute,
    videomae::VideoMae,
    vit::{Kind, VisionTransformer},
    weights::Weights,
};

pub(super) fn transformer(
    fixture: &Fixture,
    config: &Config,
    kind: Kind,
    weights: &Weights,
) -> Result<Outputs, ModelError> {
    let network = VisionTransformer::load(config, kind, weights)?;
    let mut outputs = pixels(fixture, kind.image_defaults())?;
    let pixels = fixture.input("pixel_values")?;
    let run = || -> candle_core::Result<Outputs> {
        let mut seen = Vec::new();
        let tokens = network.forward(&pixels, &mut |x| seen.push(x.clone()))?;
        let mut outputs = numbered("hidden", seen);
        let normed = network.normed(&tokens)?;
        outputs.extend(
            [
                ("last_hidden_state_ln", normed.clone()),
                ("last_hidden_state", normed),
                ("pooler_output", network.pooled(&tokens)?),
            ]
            .map(|(name, tensor)| (name.to_owned(), tensor)),
        );
        if let Some(logits) = network.logits(&tokens)? {
            outputs.push(("logits".to_owned(), logits));
        }
        Ok(outputs)
    };
    outputs.extend(run().map_err(compute("the vision transformer"))?);
    Ok(outputs)
}

pub(super) fn video(fixture: &Fixture, config: &Config, weights: &Weights) -> Result<Outputs, ModelError> {
    let network = VideoMae::load(config, weights)?;
    let made = network.processor(fixture.folder())?.batch(&fixture.images()?.iter().collect::<Vec<_>>())?;
    let given = fixture.input("pixel_values")?;
    let run = || -> candle_core::Result<Outputs> {
        let mut seen = Vec::new();
        let normed = network.normed(&network.forward(&given.squeeze(0)?, &mut |x| seen.push(x.clone()))?)?;
        let mut outputs = numbered("hidden", seen);
        if let Some(logits) = network.logits(&normed)? {
            outputs.push(("logits".to_owned(), logits));
        }
        outputs.extend(named([
            ("in.pixel_values", made.unsqueeze(0)?),
            ("base_last_hidden_state", normed),
            ("position_embeddings", network.positions.clone()),
        ]));
        Ok(outputs)
    };
    run().map_err(compute("the video transformer"))
}
