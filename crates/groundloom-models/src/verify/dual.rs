//! Fixtures of images and texts.

use candle_core::{DType, Tensor};

use super::{Fixture, Outputs, numbered, text::token_table};
use crate::{
    ModelError,
    clip::{self, Clip},
    coca::{self, Coca},
    config::Config,
    decoder::Past,
    embedders::Towers,
    fromage::{Fromage, Parts},
    image_processor::{ImageDefaults, ImageProcessor},
    language_model::row,
    layers::{compute, normalise},
    naflex::{PatchBatch, PatchProcessor, Siglip2},
    siglip::{self, Siglip},
    text_tokenizer::{Padding, TextTokenizer, TokenBatch, Tokens},
    weights::Weights,
    writing::Writing,
};

/// `in.pixel_values` made from the fixture's images.
pub(super) fn pixels(fixture: &Fixture, defaults: ImageDefaults) -> Result<Outputs, ModelError> {
    let images = fixture.images()?;
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let processor = ImageProcessor::open(fixture.folder(), defaults)?;
    let pixels = processor.batch(&images.iter().collect::<Vec<_>>())?;
    Ok(vec![("in.pixel_values".to_owned(), pixels)])
}

/// The fixture's captions as one padded batch.
pub(super) fn captions(fixture: &Fixture, tokenizer: &TextTokenizer) -> Result<TokenBatch, ModelError> {
    let texts = fixture.strings("captions");
    let tokens = texts.into_iter().map(|text| tokenizer.encode(text)).collect::<Result<Vec<Tokens>, _>>()?;
    tokenizer.pad(&tokens.iter().collect::<Vec<_>>())
}

pub(super) fn clip(fixture: &Fixture, config: &Config, weights: &Weights) -> Result<Outputs, ModelError> {
    let network = Clip::load(config, weights)?;
    let length = network.text.config.positions;
    let mut outputs = pixels(fixture, clip::IMAGE_DEFAULTS)?;
    let tokenizer =
        |padding: fn(u32) -> Padding| TextTokenizer::open(fixture.folder(), length, |pad| padding(pad.unwrap_or(0)));
    let tokens = tokenizer(Padding::Longest)?;
    outputs.extend(token_table(fixture, &tokens)?);
    let batch = captions(fixture, &tokens)?;
    outputs.extend([("in.input_ids".to_owned(), batch.ids), ("in.attention_mask".to_owned(), batch.mask)]);
    let full = captions(fixture, &tokenizer(Padding::MaxLength)?)?;
    outputs.push(("in.input_ids_maxlen".to_owned(), full.ids));

    let (pixels, ids, mask) =
        (fixture.input("pixel_values")?, fixture.ids("input_ids")?, fixture.ids("attention_mask")?);
    let full = fixture.ids("input_ids_maxlen")?;
    let run = || -> candle_core::Result<Outputs> {
        let (mut vision, mut text) = (Vec::new(), Vec::new());
        let tokens = network.vision.forward(&pixels, &mut |x| vision.push(x.clone()))?;
        let vision_pooled = network.vision.pooled(&tokens)?;
        let hidden = network.text.forward(&ids, Some(&mask), &mut |x| text.push(x.clone()))?;
        let text_pooled = network.text.pooled(&hidden, &ids)?;
        let full_hidden = network.text.forward(&full, None, &mut |_| ())?;
        let mut outputs = numbered("vision_hidden", vision);
        outputs.extend(numbered("text_hidden", text));
        let image_embeds = normalise(&network.vision_projection.forward(&vision_pooled)?)?;
        let text_embeds = normalise(&network.text_projection.forward(&text_pooled)?)?;
        let logits = similarities(&text_embeds, &image_embeds, network.logit_scale, 0.0)?;
        outputs.extend(
            [
                ("vision_pooled", vision_pooled),
                ("text_last_hidden", hidden),
                ("text_pooled", text_pooled),
                ("text_pooled_maxlen_nomask", network.text.pooled(&full_hidden, &full)?),
                ("probs", softmax(&logits.t()?)?),
                ("logits_per_image", logits.t()?),
                ("logits_per_text", logits),
                ("image_embeds", image_embeds),
                ("text_embeds", text_embeds),
            ]
            .map(|(name, tensor)| (name.to_owned(), tensor)),
        );
        Ok(outputs)
    };
    outputs.extend(run().map_err(compute("CLIP"))?);
    Ok(outputs)
}

pub(super) fn fromage(fixture: &Fixture, config: &Config, weights: &Weights) -> Result<Outputs, ModelError> {
    let parts = Parts::of(fixture.folder(), config)?;
    let network = Fromage::load(config, &parts, weights)?;
    let tokenizer = parts.tokenizer(&network)?;
    token_table(fixture, &tokenizer)?;
    let images = fixture.images()?;
    let made = ImageProcessor::open(&parts.visual, clip::IMAGE_DEFAULTS)?.batch(&images.iter().collect::<Vec<_>>())?;
    let ids = captions(fixture, &tokenizer)?.ids;
    let pixels = fixture.input("pixel_values")?;
    let run = || -> candle_core::Result<Outputs> {
        let (images, texts) = (Towers::images(&network, &pixels)?, Towers::texts(&network, &ids)?);
        let (image_embeds, text_embeds) = (normalise(&images)?, normalise(&texts)?);
        let logits = similarities(&text_embeds, &image_embeds, network.logit_scale, 0.0)?;
        Ok([
            ("in.pixel_values", made.clone()),
            ("in.input_ids", ids.clone()),
            ("image_mapped", images),
            ("text_mapped", texts),
            ("image_embeds", image_embeds),
            ("text_embeds", text_embeds),
            ("logits_per_text", logits),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into())
    };
    run().map_err(compute("FROMAGe"))
}

pub(super) fn siglip(fixture: &Fixture, config: &Config, weights: &Weights) -> Result<Outputs, ModelError> {
    let network = Siglip::load(config, weights)?;
    let length = network.text.positions;
    let mut outputs = pixels(fixture, siglip::IMAGE_DEFAULTS)?;
    let tokenizer = TextTokenizer::open(fixture.folder(), length, |pad| Padding::MaxLength(pad.unwrap_or(1)))?;
    outputs.extend(token_table(fixture, &tokenizer)?);
    outputs.push(("in.input_ids".to_owned(), captions(fixture, &tokenizer)?.ids));

    let (pixels, ids) = (fixture.input("pixel_values")?, fixture.ids("input_ids")?);
    let run = || -> candle_core::Result<Outputs> {
        let (mut vision, mut text) = (Vec::new(), Vec::new());
        let tokens = network.vision.forward(&pixels, &mut |x| vision.push(x.clone()))?;
        let vision_pooled = network.vision.head.forward(&tokens)?;
        let hidden = network.text.forward(&ids, &mut |x| text.push(x.clone()))?;
        let text_pooled = network.text.pooled(&hidden)?;
        let mut outputs = numbered("vision_hidden", vision);
        outputs.extend(numbered("text_hidden", text));
        let (image_embeds, text_embeds) = (normalise(&vision_pooled)?, normalise(&text_pooled)?);
        let logits = similarities(&text_embeds, &image_embeds, network.logit_scale, network.logit_bias)?;
        let odds = logits.t()?.contiguous()?.neg()?.exp()?;
        outputs.extend(
            [
                ("vision_last_hidden", tokens),
                ("vision_pooled", vision_pooled),
                ("text_pooled", text_pooled),
                ("probs", (odds + 1.0)?.recip()?),
                ("logits_per_image", logits.t()?),
                ("logits_per_text", logits),
                ("image_embeds", image_embeds),
                ("text_embeds", text_embeds),
            ]
            .map(|(name, tensor)| (name.to_owned(), tensor)),
        );
        Ok(outputs)
    };
    outputs.extend(run().map_err(compute("SigLIP"))?);
    Ok(outputs)
}

pub(super) fn siglip2(fixture: &Fixture, config: &Config, weights: &Weights) -> Result<Outputs, ModelError> {
    let network = Siglip2::load(config, weights)?;
    let length = network.text.positions;
    let tokenizer = TextTokenizer::open(fixture.folder(), length, |pad| Padding::MaxLength(pad.unwrap_or(1)))?;
    token_table(fixture, &tokenizer)?;
    let images = fixture.images()?;
    let made = PatchProcessor::open(fixture.folder())?.batch(&images.iter().collect::<Vec<_>>())?;
    let ids = fixture.ids("input_ids")?;
    let given = PatchBatch {
        patches: fixture.input("pixel_values")?,
        mask: fixture.ids("pixel_attention_mask")?,
        grids: {
            let shapes = fixture.ids("spatial_shapes")?.to_vec2::<u32>().map_err(compute("an input"))?;
            shapes.iter().map(|shape| [shape[0] as usize, shape[1] as usize]).collect()
        },
    };
    let run = || -> candle_core::Result<Outputs> {
        let shapes: Vec<u32> = made.grids.iter().flatten().map(|&side| side as u32).collect();
        let tokens = network.vision(&given)?;
        let image_embeds = normalise(&network.pooled(&tokens, &given)?)?;
        let text_embeds = normalise(&network.texts(&ids)?)?;
        let logits = similarities(&text_embeds, &image_embeds, network.logit_scale, network.logit_bias)?;
        let outputs = [
            ("in.spatial_shapes", Tensor::from_vec(shapes, (made.grids.len(), 2), &candle_core::Device::Cpu)?),
            ("in.pixel_values", made.patches),
            ("in.pixel_attention_mask", made.mask),
            ("vision_last_hidden", tokens),
            ("logits_per_image", logits.t()?),
            ("image_embeds", image_embeds),
            ("text_embeds", text_embeds),
        ];
        Ok(outputs.map(|(name, tensor)| (name.to_owned(), tensor)).into())
    };
    let mut outputs = run().map_err(compute("SigLIP 2"))?;
    outputs.push(("in.input_ids".to_owned(), captions(fixture, &tokenizer)?.ids));
    Ok(outputs)
}

/// exp(scale) · cosine + bias, a row for each text.
pub(super) fn similarities(texts: &Tensor, images: &Tensor, scale: f64, bias: f64) -> candle_core::Result<Tensor> {
    texts.matmul(&images.t()?)?.affine(scale.exp(), bias)
}

fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    candle_nn::ops::softmax_last_dim(&x.contiguous()?)
}

pub(super) fn coca(fixture: &Fixture, config: &Config, weights: &Weights) -> Result<Outputs, ModelError> {
    let network = Coca::load(config, weights)?;
    let mut outputs = Vec::new();
    let images = fixture.images()?;
    if !images.is_empty() {
        let processor = coca::processor(config, network.vision.image_size)?;
        outputs.push(("in.image".to_owned(), processor.batch(&images.iter().collect::<Vec<_>>())?));
    }
    if !fixture.strings("captions").is_empty() {
        let (length, pad) = (network.text.longest, network.text.pad);
        let tokenizer = TextTokenizer::open(fixture.folder(), length, |_| Padding::MaxLength(pad))?;
        outputs.push(("in.text".to_owned(), captions(fixture, &tokenizer)?.ids));
    }
    let pixels = fixture.input("image")?;
    let queried = network.vision.forward(&pixels).map_err(compute("CoCa's vision tower"))?;
    let tokens = network.vision.tokens(&queried).map_err(compute("CoCa's vision tower"))?;
    // The reference predicts each token of a text from those before it: the last predicts nothing.
    let read = |name: &str| -> Result<[Tensor; 2], ModelError> {
        let ids = fixture.ids(name)?;
        let run = || {
            let (vectors, words) = network.text.forward(&ids)?;
            let words = words.narrow(1, 0, words.dim(1)?.saturating_sub(1))?.contiguous()?;
            let memory = network.remember(&tokens.narrow(0, 0, words.dim(0)?)?.contiguous()?)?;
            Ok([normalise(&vectors)?, network.logits(words, &mut Past::default(), &memory)?])
        };
        run().map_err(compute("CoCa's text side"))
    };
    for (input, prefix) in [("text", ""), ("odd_text", "odd_")] {
        if fixture.has(input) {
            let [vectors, logits] = read(input)?;
            outputs.extend([(format!("{prefix}text_features"), vectors), (format!("{prefix}logits"), logits)]);
        }
    }
    let expected = fixture.output("greedy")?.to_dtype(DType::U32).and_then(|ids| ids.to_vec2::<u32>());
    let mut greedy = Vec::new();
    for (i, expected) in expected.map_err(compute("a fixture"))?.iter().enumerate() {
        let (start, rest) = expected.split_at(expected.len().min(1));
        let image = tokens.narrow(0, i, 1).and_then(|image| image.contiguous()).map_err(compute("an image"))?;
        // The reference's loop knows no end.
        let writing = Writing { max_new_tokens: rest.len(), ..Writing::default() };
        let written = network.write(&image, start, u32::MAX, &writing, 0)?;
        greedy.push(row(&[start, &written.ids].concat()).map_err(compute("a fixture"))?);
    }
    let run = || -> candle_core::Result<[(&str, Tensor); 3]> {
        let features = normalise(&network.vision.pooled(&queried)?)?;
        Ok([("image_features", features), ("image_embs", tokens.clone()), ("greedy", Tensor::cat(&greedy, 0)?)])
    };
    outputs.extend(run().map_err(compute("CoCa"))?.map(|(name, tensor)| (name.to_owned(), tensor)));
    Ok(outputs)
}
