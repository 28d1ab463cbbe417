//! A recorded run of the reference, computed again from its images and texts.

use candle_core::{Device, Result, Tensor};
use image::RgbImage;

use super::{
    GroundingDinoDetector,
    deformable::Levels,
    network::{Outputs, Prompts},
    position::PixelMask,
    text::BlockMask,
};
use crate::{ModelError, layers::with_values, text_tokenizer::Tokens};

/// What was put in, beside the folder.
pub(crate) struct Recorded<'a> {
    pub(crate) images: &'a [RgbImage],
    /// A prompt for each image, its phrases ended by full stops.
    pub(crate) texts: &'a [&'a str],
    /// Boxes below it are dropped.
    pub(crate) threshold: f32,
    /// Tokens below it are no part of a box's phrase.
    pub(crate) text_threshold: f32,
}

/// A tensor that no recording has: of each projected map, the most that its normalisation multiplied a value by.
pub(crate) const STEEPEST_NORMS: &str = "out.steepest_norms";

/// Tensors by the names that the recording gives them, and the phrase of each box of each image.
pub(crate) struct Replayed {
    pub(crate) tensors: Vec<(String, Tensor)>,
    pub(crate) labels: Vec<Vec<String>>,
}

impl GroundingDinoDetector {
    /// The tokenizer, for its own comparison.
    pub(crate) fn tokenizer(&self) -> &crate::text_tokenizer::TextTokenizer {
        &self.tokenizer
    }

    /// Runs processor, tokenizer, network and post-processing on a batch, as transformers does with eager attention; as
    /// `default_…` also what it computes by default.
    ///
    /// # Errors
    /// [`ModelError::EmptyImage`], [`ModelError::Untokenized`], [`ModelError::Compute`].
    pub(crate) fn replay(&self, recorded: &Recorded<'_>) -> std::result::Result<Replayed, ModelError> {
        let compute = crate::layers::compute("the recorded run");
        let placed = recorded
            .images
            .iter()
            .map(|image| self.processor.place(image))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let (pixels, mask) = self.padded(&placed).map_err(&compute)?;
        let tokens = recorded
            .texts
            .iter()
            .map(|text| self.tokenizer.encode(text))
            .collect::<std::result::Result<Vec<Tokens>, _>>()?;
        let prompts = self.rectangle(&tokens)?;
        let outputs = self.network.forward(&pixels, &mask, &prompts, BlockMask::Added).map_err(&compute)?;
        let mut tensors = Vec::new();
        self.name(&pixels, &mask, &prompts, &outputs, &mut tensors).map_err(&compute)?;
        let default = self.network.forward(&pixels, &mask, &prompts, BlockMask::Hidden).map_err(&compute)?;
        tensors.push(("out.default_logits".to_owned(), default.logits));
        tensors.push(("out.default_boxes".to_owned(), default.boxes));
        let labels = self.choose(recorded, &prompts, &outputs, &mut tensors)?;
        Ok(Replayed { tensors, labels })
    }

    /// Images of several sizes as one batch, zeros below and right of each.
    fn padded(&self, placed: &[RgbImage]) -> Result<(Tensor, PixelMask)> {
        let most = |side: fn(&RgbImage) -> u32| placed.iter().map(side).max().unwrap_or(0) as usize;
        let (width, height) = (most(RgbImage::width), most(RgbImage::height));
        let mut pixels = vec![0.0; placed.len() * 3 * height * width];
        let mut mask = PixelMask::full(placed.len(), height, width);
        let masks = mask.real.chunks_mut(height * width);
        for ((image, planes), real) in placed.iter().zip(pixels.chunks_mut(3 * height * width)).zip(masks) {
            let (own_width, own_height) = (image.width() as usize, image.height() as usize);
            let mut own = vec![0.0; 3 * own_width * own_height];
            self.processor.write(image, &mut own);
            for (line, from) in own.chunks(own_width).enumerate() {
                let (plane, y) = (line / own_height, line % own_height);
                planes[(plane * height + y) * width..][..own_width].copy_from_slice(from);
            }
            for (at, real) in real.iter_mut().enumerate() {
                *real = at / width < own_height && at % width < own_width;
            }
        }
        Ok((Tensor::from_vec(pixels, (placed.len(), 3, height, width), &Device::Cpu)?, mask))
    }

    fn rectangle(&self, tokens: &[Tokens]) -> std::result::Result<Prompts, ModelError> {
        let padded = self.tokenizer.pad(&tokens.iter().collect::<Vec<_>>())?;
        let flat = |tensor: &Tensor| {
            tensor.flatten_all().and_then(|flat| flat.to_vec1::<u32>()).map_err(crate::layers::compute("the tokens"))
        };
        Ok(Prompts {
            batch: tokens.len(),
            ids: flat(&padded.ids)?,
            types: flat(&padded.types)?,
            real: flat(&padded.mask)?.into_iter().map(|real| real == 1).collect(),
        })
    }

    fn name(
        &self,
        pixels: &Tensor,
        mask: &PixelMask,
        prompts: &Prompts,
        outputs: &Outputs,
        named: &mut Vec<(String, Tensor)>,
    ) -> Result<()> {
        let device = pixels.device();
        let flags = |flags: &[bool]| flags.iter().map(|&flag| f32::from(u8::from(flag))).collect::<Vec<_>>();
        let numbers = |numbers: &[u32]| numbers.iter().map(|&number| number as f32).collect::<Vec<_>>();
        let (batch, tokens) = (prompts.batch, prompts.tokens());
        let table = |values: Vec<f32>| Tensor::from_vec(values, (batch, tokens), device);
        let mut put = |name: &str, tensor: Tensor| named.push((name.to_owned(), tensor));
        put("in.pixel_values", pixels.clone());
        put("in.pixel_mask", Tensor::from_vec(flags(&mask.real), (batch, mask.height, mask.width), device)?);
        put("in.input_ids", table(numbers(&prompts.ids))?);
        put("in.token_type_ids", table(numbers(&prompts.types))?);
        put("in.attention_mask", table(flags(&prompts.real))?);

        let trace = &outputs.trace;
        let sees: Vec<f32> = trace.text_blocks.iter().flat_map(|blocks| flags(&blocks.sees)).collect();
        put("out.text_self_attention_masks", Tensor::from_vec(sees, (batch, tokens, tokens), device)?);
        let positions: Vec<f32> = trace.text_blocks.iter().flat_map(|blocks| numbers(&blocks.positions)).collect();
        put("out.text_position_ids", table(positions)?);
        put("out.text_last_hidden", trace.text_last_hidden.clone());
        put("out.text_projected", trace.text_projected.clone());
        for (name, maps) in [("backbone_feature", &trace.backbone), ("input_proj", &trace.projected)] {
            for (level, map) in maps.iter().enumerate() {
                let channels = map.values.dim(2)?;
                let planes = map.values.transpose(1, 2)?.reshape((batch, channels, map.height, map.width))?;
                put(&format!("out.{name}.{level}"), planes);
            }
        }
        put(STEEPEST_NORMS, Tensor::new(self.network.steepest_norms(trace)?, &Device::Cpu)?);
        if let Some(sampling) = &trace.first_sampling {
            put("out.msda0.value", sampling.value.clone());
            put("out.msda0.sampling_locations", sampling.locations.clone());
            put("out.msda0.attention_weights", sampling.weights.clone());
            put("out.msda0.output", sampling.output.clone());
            let levels = Levels { sizes: trace.projected.iter().map(|map| (map.height, map.width)).collect() };
            let sizes: Vec<f32> = levels.sizes.iter().flat_map(|size| [size.0 as f32, size.1 as f32]).collect();
            put("out.msda0.value_spatial_shapes", Tensor::from_vec(sizes, (levels.sizes.len(), 2), device)?);
            let starts: Vec<f32> = levels.placed().iter().map(|level| level.0 as f32).collect();
            put("out.msda0.level_start_index", Tensor::from_vec(starts, levels.sizes.len(), device)?);
        }
        put("out.encoder_last_hidden_state_vision", trace.encoder_vision.clone());
        put("out.encoder_last_hidden_state_text", trace.encoder_text.clone());
        put("out.enc_outputs_class", trace.proposal_logits.clone());
        put("out.enc_outputs_coord_logits", trace.proposal_boxes.clone());
        put("out.encoder_logits", trace.encoder_logits.clone());
        put("out.encoder_pred_boxes", trace.first_boxes.clone());
        put("out.init_reference_points", trace.first_boxes.clone());
        put("out.intermediate_hidden_states", Tensor::stack(&trace.states, 1)?);
        put("out.intermediate_reference_points", Tensor::stack(&trace.state_boxes, 1)?);
        if let Some(last) = trace.states.last() {
            put("out.last_hidden_state", last.clone());
        }
        put("out.logits", outputs.logits.clone());
        put("out.pred_boxes", outputs.boxes.clone());
        Ok(())
    }

    /// Boxes in pixels over the threshold, in the network's order, and their phrases: the tokens over theirs, decoded.
    fn choose(
        &self,
        recorded: &Recorded<'_>,
        prompts: &Prompts,
        outputs: &Outputs,
        named: &mut Vec<(String, Tensor)>,
    ) -> std::result::Result<Vec<Vec<String>>, ModelError> {
        let compute = crate::layers::compute("the recorded run");
        let flat = |tensor: &Tensor| with_values(tensor, |values| Ok(values.to_vec())).map_err(&compute);
        let (logits, boxes) = (flat(&outputs.logits)?, flat(&outputs.boxes)?);
        let max = self.network.max_text();
        let per_image = logits.len() / max / recorded.images.len().max(1);
        let mut labels = Vec::new();
        for (number, image) in recorded.images.iter().enumerate() {
            let (width, height) = (image.width() as f32, image.height() as f32);
            let ids = &prompts.ids[number * prompts.tokens()..][..prompts.tokens()];
            let (mut scores, mut places, mut phrases) = (Vec::new(), Vec::new(), Vec::new());
            let rows = logits.chunks(max).zip(boxes.as_chunks::<4>().0).skip(number * per_image).take(per_image);
            for (logits, [x, y, w, h]) in rows {
                let probability = |logit: f32| 1.0 / (1.0 + (-logit).exp());
                let score = logits.iter().map(|&logit| probability(logit)).fold(f32::NEG_INFINITY, f32::max);
                if score <= recorded.threshold {
                    continue;
                }
                scores.push(score);
                places.extend([(x - 0.5 * w) * width, (y - 0.5 * h) * height]);
                places.extend([(x + 0.5 * w) * width, (y + 0.5 * h) * height]);
                // The reference leaves out the first column and the last.
                let inner = 1..(max - 1).min(ids.len());
                let over = inner.filter(|&token| probability(logits[token]) > recorded.text_threshold);
                let phrase: Vec<u32> = over.map(|token| ids[token]).collect();
                let decoded = self.tokenizer.inner().decode(&phrase, false);
                phrases.push(decoded.map_err(|e| ModelError::Untokenized { reason: e.to_string() })?);
            }
            let count = scores.len();
            let mut put = |name: &str, values: Vec<f32>, shape: &[usize]| -> std::result::Result<(), ModelError> {
                let tensor = Tensor::from_vec(values, shape, &Device::Cpu).map_err(&compute)?;
                named.push((format!("out.post.{number}.{name}"), tensor));
                Ok(())
            };
            put("scores", scores, &[count])?;
            put("boxes", places, &[count, 4])?;
            labels.push(phrases);
        }
        Ok(labels)
    }
}
