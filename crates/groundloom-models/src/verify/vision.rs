//! Fixtures of images.

use super::{Fixture, Outputs, dual::pixels, numbered};
use crate::{
    ModelError,
    config::Config,
    layers::compute,
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
