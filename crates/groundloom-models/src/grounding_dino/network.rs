//! The whole network, from pixels and token ids to logits and boxes.

use candle_core::{Device, Result, Tensor};

use super::{
    config::GroundingDinoConfig,
    decoder::{Decoder, Memory},
    deformable::{Levels, Sampling},
    encoder::{EncoderLayer, TextContext, VisionContext},
    layers::{GroupNorm, Perceptron, max_last, products, sigmoid},
    position::{self, PixelMask},
    text::{BlockMask, Blocks, mask_of},
};
use crate::{
    ModelError,
    bert::TextEncoder,
    device::by_kernels,
    layers::{LayerNorm, Linear, with_values},
    swin::{FeatureMap, Swin},
    weights::Weights,
};

type Loaded<T> = std::result::Result<T, ModelError>;

/// Groups of the norms behind the projections of the backbone's maps.
const GROUPS: usize = 32;
/// Proposals whose box comes nearer than this to an edge, or to nothing, are no proposals.
const MARGIN: f32 = 0.01;
/// Side of a proposal on the finest level; each level doubles it.
const PROPOSAL: f32 = 0.05;

/// Grounding DINO (Liu et al., "Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object
/// Detection", 2023), as transformers computes it.
pub(crate) struct GroundingDino {
    config: GroundingDinoConfig,
    backbone: Swin,
    text: TextEncoder,
    text_projection: Linear,
    projections: Vec<(Projection, GroupNorm)>,
    level_embeddings: Tensor,
    encoder: Vec<EncoderLayer>,
    proposal: Linear,
    proposal_norm: LayerNorm,
    proposal_boxes: Perceptron,
    queries: Tensor,
    decoder: Decoder,
}

/// From a map of the backbone to the transformer's width.
enum Projection {
    /// 1×1.
    Pointwise(Linear),
    /// 3×3 by steps of two, padded by one.
    Strided(Box<Strided>),
}

/// A batch of prompts, each row padded to the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompts {
    pub(crate) batch: usize,
    /// `[batch, tokens]`.
    pub(crate) ids: Vec<u32>,
    /// `[batch, tokens]`.
    pub(crate) types: Vec<u32>,
    /// `[batch, tokens]`: no padding.
    pub(crate) real: Vec<bool>,
}

impl Prompts {
    /// One prompt without padding.
    pub(crate) fn one(ids: Vec<u32>) -> Self {
        Self { batch: 1, types: vec![0; ids.len()], real: vec![true; ids.len()], ids }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.ids.len() / self.batch.max(1)
    }
}

/// What the network gives, and on the way there what the reference names too.
pub(crate) struct Outputs {
    /// `[batch, queries, max_text]`: of each query for each token, minus infinity where there is none.
    pub(crate) logits: Tensor,
    /// `[batch, queries, 4]`: centre and size, fractions of the padded image.
    pub(crate) boxes: Tensor,
    pub(crate) trace: Trace,
}

/// Intermediate results, named as in the reference.
pub(crate) struct Trace {
    pub(crate) text_blocks: Vec<Blocks>,
    pub(crate) text_last_hidden: Tensor,
    pub(crate) text_projected: Tensor,
    pub(crate) backbone: Vec<FeatureMap>,
    pub(crate) projected: Vec<FeatureMap>,
    pub(crate) first_sampling: Option<Sampling>,
    pub(crate) encoder_vision: Tensor,
    pub(crate) encoder_text: Tensor,
    pub(crate) proposal_logits: Tensor,
    pub(crate) proposal_boxes: Tensor,
    pub(crate) encoder_logits: Tensor,
    pub(crate) first_boxes: Tensor,
    pub(crate) states: Vec<Tensor>,
    pub(crate) state_boxes: Vec<Tensor>,
}

impl GroundingDino {
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(config: GroundingDinoConfig, weights: &Weights) -> Loaded<Self> {
        let model = weights.at("model");
        let width = config.width;
        let backbone = Swin::load(config.backbone.clone(), &model.at("backbone.conv_encoder.model"))?;
        let mut channels = config.backbone.output_channels();
        let maps = channels.len();
        channels.resize(config.levels, width);
        if let Some(first) = channels.get_mut(maps) {
            *first = config.backbone.output_channels()[maps - 1];
        }
        let mut projections = Vec::with_capacity(config.levels);
        for (level, &inputs) in channels.iter().enumerate() {
            let at = model.at(format!("input_proj_vision.{level}"));
            let convolution = at.at("0");
            let projection = if level < maps {
                let weight = convolution.values("weight", &[width, inputs, 1, 1])?;
                let bias = convolution.values("bias", &[width])?;
                Projection::Pointwise(Linear::new(weights.device(), &weight, &bias)?)
            } else {
                Projection::Strided(Box::new(Strided::load(&convolution, inputs, width)?))
            };
            projections.push((projection, GroupNorm::load(&at.at("1"), GROUPS, width, 1e-5)?));
        }
        let encoder = (0..config.encoder.layers)
            .map(|number| EncoderLayer::load(&config, &model.at(format!("encoder.layers.{number}"))))
            .collect::<Loaded<_>>()?;
        let boxes = model.at("encoder_output_bbox_embed");
        Ok(Self {
            backbone,
            text: TextEncoder::load_at(&model.at("text_backbone"), config.text)?,
            text_projection: Linear::load(&model.at("text_projection"), config.text.stack.width, width, true)?,
            projections,
            level_embeddings: model.tensor("level_embed", &[config.levels, width])?,
            encoder,
            proposal: Linear::load(&model.at("enc_output"), width, width, true)?,
            proposal_norm: LayerNorm::load(&model.at("enc_output_norm"), width, config.eps)?,
            proposal_boxes: Perceptron::load(&boxes, &[width, width, width, 4])?,
            queries: model.tensor("query_position_embeddings.weight", &[config.queries, width])?,
            decoder: Decoder::load(&config, weights)?,
            config,
        })
    }

    /// Most tokens of a prompt, special ones among them.
    pub(crate) fn max_text(&self) -> usize {
        self.config.max_text
    }

    /// `pixels` is `[batch, 3, height, width]`, normalised, padded below and right where `mask` says so.
    ///
    /// # Errors
    /// What candle says.
    pub(crate) fn forward(
        &self,
        pixels: &Tensor,
        mask: &PixelMask,
        prompts: &Prompts,
        block_mask: BlockMask,
    ) -> Result<Outputs> {
        let device = self.queries.device();
        if prompts.tokens() > self.config.max_text || prompts.tokens() == 0 {
            candle_core::bail!("expected a prompt of 1 to {} tokens, found {}", self.config.max_text, prompts.tokens());
        }
        let (read, text, text_last_hidden, text_blocks) = self.read(prompts, block_mask, device)?;
        let text_projected = text.clone();

        let backbone = self.backbone.forward(pixels)?;
        let projected = self.project(&backbone)?;
        let (seen, ratios, masks) = self.look(&projected, mask, device)?;
        let maps: Vec<&Tensor> = projected.iter().map(|map| &map.values).collect();
        let (mut vision, mut text) = (Tensor::cat(&maps, 1)?, text);
        let mut first_sampling = None;
        for layer in &self.encoder {
            let (enhanced, enhanced_text, sampling) = layer.forward(&vision, &text, &seen, &read)?;
            (vision, text) = (enhanced, enhanced_text);
            first_sampling.get_or_insert(sampling);
        }

        let real_words = real_words(prompts, device)?;
        let (memory, proposals) = self.propose(&vision, &masks, device)?;
        let proposal_logits = self.match_text(&memory, &text, &real_words)?;
        let proposal_boxes = (self.proposal_boxes.forward(&memory)? + &proposals)?;
        let chosen = best(&max_last(&proposal_logits)?, self.config.queries)?;
        let first_boxes = sigmoid(&gather_rows(&proposal_boxes, &chosen)?)?;
        let (batch, count, _) = first_boxes.dims3()?;
        let queries =
            self.queries.narrow(0, 0, count)?.unsqueeze(0)?.broadcast_as((batch, count, self.config.width))?;
        let queries = queries.contiguous()?;
        let encoder_logits = self.match_text(&queries, &text_projected, &real_words)?;

        let hidden_text = match prompts.real.iter().all(|&real| real) {
            true => None,
            false => Some(additive(prompts, f32::MIN, device)?),
        };
        let decoded = self.decoder.forward(
            &queries,
            &first_boxes,
            &Memory {
                vision: &vision,
                real: seen.real.as_ref(),
                levels: &seen.levels,
                ratios: &ratios,
                text: &text,
                hidden_text: hidden_text.as_ref(),
            },
        )?;
        let boxes = self.decoder.final_boxes(&decoded, &first_boxes)?;
        let logits = self.match_text(&decoded.states[decoded.states.len() - 1], &text, &real_words)?;
        let trace = Trace {
            text_blocks,
            text_last_hidden,
            text_projected,
            backbone,
            projected,
            first_sampling,
            encoder_vision: vision,
            encoder_text: text,
            proposal_logits,
            proposal_boxes,
            encoder_logits,
            first_boxes,
            states: decoded.states,
            state_boxes: decoded.boxes,
        };
        Ok(Outputs { logits, boxes, trace })
    }

    fn read(
        &self,
        prompts: &Prompts,
        block_mask: BlockMask,
        device: &Device,
    ) -> Result<(TextContext, Tensor, Tensor, Vec<Blocks>)> {
        let (batch, tokens) = (prompts.batch, prompts.tokens());
        let blocks: Vec<Blocks> = prompts.ids.chunks(tokens.max(1)).map(Blocks::of).collect();
        let table = |values: Vec<u32>| Tensor::from_vec(values, (batch, tokens), device);
        let positions: Vec<u32> = blocks.iter().flat_map(|b| &b.positions).copied().collect();
        let (ids, types) = (table(prompts.ids.clone())?, table(prompts.types.clone())?);
        let places =
            Tensor::from_vec(positions.iter().map(|&p| p as f32).collect::<Vec<_>>(), (batch, tokens, 1), device)?;
        let bias = mask_of(&blocks, block_mask, device)?;
        let hidden = self.text.forward_with(&ids, &types, &table(positions)?, &bias, &mut |_| ())?;
        let text = self.text_projection.forward(&hidden)?;
        let context = TextContext {
            positions: position::of_coordinates(&places, self.config.width)?,
            blocks: mask_of(&blocks, BlockMask::Hidden, device)?,
            hidden: match prompts.real.iter().all(|&real| real) {
                true => None,
                false => Some(additive(prompts, f32::NEG_INFINITY, device)?),
            },
        };
        Ok((context, text, hidden, blocks))
    }

    fn project(&self, backbone: &[FeatureMap]) -> Result<Vec<FeatureMap>> {
        let mut projected: Vec<FeatureMap> = Vec::with_capacity(self.projections.len());
        for (level, (_, norm)) in self.projections.iter().enumerate() {
            let map = self.unnormalised(level, backbone, &projected)?;
            projected.push(FeatureMap { values: norm.forward(&map.values)?, ..map });
        }
        Ok(projected)
    }

    /// A level in the network's width; `projected` are the levels before it.
    fn unnormalised(&self, level: usize, backbone: &[FeatureMap], projected: &[FeatureMap]) -> Result<FeatureMap> {
        // Levels beyond the backbone's go on from its last map, then from each other.
        let from = match backbone.get(level) {
            Some(map) => map,
            None if level == backbone.len() => &backbone[backbone.len() - 1],
            None => &projected[level - 1],
        };
        Ok(match &self.projections[level].0 {
            Projection::Pointwise(linear) => {
                FeatureMap { values: linear.forward(&from.values)?, height: from.height, width: from.width }
            }
            Projection::Strided(strided) => strided.forward(from)?,
        })
    }

    /// For each level of a recorded run the most that its normalisation multiplied a value by.
    pub(crate) fn steepest_norms(&self, trace: &Trace) -> Result<Vec<f32>> {
        let steepest = |(level, (_, norm)): (usize, &(Projection, GroupNorm))| {
            norm.steepest(&self.unnormalised(level, &trace.backbone, &trace.projected)?.values)
        };
        self.projections.iter().enumerate().map(steepest).collect()
    }

    /// What the layers are given of the image, the real part of each level, and each level's mask.
    fn look(
        &self,
        maps: &[FeatureMap],
        mask: &PixelMask,
        device: &Device,
    ) -> Result<(VisionContext, Tensor, Vec<PixelMask>)> {
        let width = self.config.width;
        let masks: Vec<PixelMask> = maps.iter().map(|map| mask.resized(map.height, map.width)).collect();
        let mut positions = Vec::with_capacity(maps.len());
        for (level, mask) in masks.iter().enumerate() {
            let places = mask.positions(width, self.config.position_temperature, device)?;
            positions.push(places.broadcast_add(&self.level_embeddings.get(level)?)?);
        }
        let levels = Levels { sizes: maps.iter().map(|map| (map.height, map.width)).collect() };
        let tokens = levels.tokens();
        let (mut references, mut ratios, mut real) = (Vec::new(), Vec::new(), Vec::new());
        for image in 0..mask.batch {
            let extents: Vec<(usize, usize)> = masks.iter().map(|mask| mask.extents()[image]).collect();
            let ratio: Vec<(f32, f32)> = extents
                .iter()
                .zip(&masks)
                .map(|(&(rows, columns), mask)| (columns as f32 / mask.width as f32, rows as f32 / mask.height as f32))
                .collect();
            ratios.extend(ratio.iter().flat_map(|&(x, y)| [x, y, x, y]));
            for (mask, own) in masks.iter().zip(&ratio) {
                let pixels = mask.height * mask.width;
                real.extend_from_slice(&mask.real[image * pixels..][..pixels]);
                for pixel in 0..pixels {
                    let (y, x) = (pixel / mask.width, pixel % mask.width);
                    let centre_x = (x as f32 + 0.5) / (own.0 * mask.width as f32);
                    let centre_y = (y as f32 + 0.5) / (own.1 * mask.height as f32);
                    references.extend(ratio.iter().flat_map(|&(x, y)| [centre_x * x, centre_y * y]));
                }
            }
        }
        let levels_count = maps.len();
        let all_real = real.iter().all(|&real| real);
        let as_mask = |inside: f32, outside: f32| -> Vec<f32> {
            real.iter().map(|&real| if real { inside } else { outside }).collect()
        };
        let (kept, hidden) = if all_real {
            (None, None)
        } else {
            let kept = Tensor::from_vec(as_mask(1.0, 0.0), (mask.batch, tokens, 1), device)?;
            let hidden = Tensor::from_vec(as_mask(0.0, f32::NEG_INFINITY), (mask.batch, 1, 1, tokens), device)?;
            (Some(kept), Some(hidden))
        };
        let context = VisionContext {
            positions: Tensor::cat(&positions, 1)?,
            real: kept,
            hidden,
            references: Tensor::from_vec(references, (mask.batch, tokens, levels_count, 2), device)?,
            levels,
        };
        Ok((context, Tensor::from_vec(ratios, (mask.batch, levels_count, 4), device)?, masks))
    }

    /// The memory from which queries are chosen, `[batch, tokens, width]`, and each token's box as logits, `[batch,
    /// tokens, 4]`: infinite where there is no proposal.
    fn propose(&self, vision: &Tensor, masks: &[PixelMask], device: &Device) -> Result<(Tensor, Tensor)> {
        let (batch, tokens, _) = vision.dims3()?;
        let (mut boxes, mut kept) = (Vec::with_capacity(batch * tokens * 4), Vec::with_capacity(batch * tokens));
        for image in 0..batch {
            for (level, mask) in masks.iter().enumerate() {
                let (rows, columns) = mask.extents()[image];
                let side = PROPOSAL * 2.0_f32.powi(level as i32);
                let pixels = mask.height * mask.width;
                for (pixel, &real) in mask.real[image * pixels..][..pixels].iter().enumerate() {
                    let (y, x) = (pixel / mask.width, pixel % mask.width);
                    let centre = [(x as f32 + 0.5) / columns as f32, (y as f32 + 0.5) / rows as f32];
                    let proposal = [centre[0], centre[1], side, side];
                    let valid = real && proposal.iter().all(|&c| c > MARGIN && c < 1.0 - MARGIN);
                    kept.push(if valid { 1.0_f32 } else { 0.0 });
                    boxes.extend(proposal.map(|c| if valid { (c / (1.0 - c)).ln() } else { f32::INFINITY }));
                }
            }
        }
        let kept = Tensor::from_vec(kept, (batch, tokens, 1), device)?;
        let memory = self.proposal_norm.forward(&self.proposal.forward(&vision.broadcast_mul(&kept)?)?)?;
        Ok((memory, Tensor::from_vec(boxes, (batch, tokens, 4), device)?))
    }

    /// Products of states and words, `[batch, n, max_text]`; minus infinity on padding.
    fn match_text(&self, states: &Tensor, text: &Tensor, real_words: &Tensor) -> Result<Tensor> {
        let products = products(states, text)?;
        let (batch, count, words) = products.dims3()?;
        let max = self.config.max_text;
        if !by_kernels(&products) {
            // The logarithms of 1 and 0.
            let products = products.broadcast_add(&real_words.log()?.unsqueeze(1)?)?;
            let padding = Tensor::full(f32::NEG_INFINITY, (batch, count, max - words), products.device())?;
            return Tensor::cat(&[products, padding], 2);
        }
        let real = with_values(real_words, |real| Ok(real.to_vec()))?;
        let padded = with_values(&products, |products| {
            let mut padded = vec![f32::NEG_INFINITY; batch * count * max];
            for (row, (to, from)) in padded.chunks_mut(max).zip(products.chunks(words.max(1))).enumerate() {
                let real = &real[row / count * words..][..words];
                for ((to, from), real) in to.iter_mut().zip(from).zip(real) {
                    if *real > 0.0 {
                        *to = *from;
                    }
                }
            }
            Ok(padded)
        })?;
        Tensor::from_vec(padded, (batch, count, max), states.device())
    }
}

/// `[batch, words]`: 1 for a word, 0 for padding.
fn real_words(prompts: &Prompts, device: &Device) -> Result<Tensor> {
    let real: Vec<f32> = prompts.real.iter().map(|&real| f32::from(u8::from(real))).collect();
    Tensor::from_vec(real, (prompts.batch, prompts.tokens()), device)
}

/// `[batch, 1, 1, words]`: 0 for a word, `outside` for padding.
fn additive(prompts: &Prompts, outside: f32, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = prompts.real.iter().map(|&real| if real { 0.0 } else { outside }).collect();
    Tensor::from_vec(mask, (prompts.batch, 1, 1, prompts.tokens()), device)
}

/// A 3×3 convolution by steps of two over a map padded by one: a layer for each place of the window, each adding to what
/// the others gave. The maps are small, and the norm behind divides by what little they vary: short sums keep it exact.
struct Strided(Vec<Linear>);

/// Places of the window.
const TAPS: usize = 9;

impl Strided {
    fn load(weights: &Weights, inputs: usize, outputs: usize) -> Loaded<Self> {
        let kernel = weights.values("weight", &[outputs, inputs, 3, 3])?;
        let bias = weights.values("bias", &[outputs])?;
        let layer = |tap: usize| {
            let weight: Vec<f32> = kernel.iter().skip(tap).step_by(TAPS).copied().collect();
            let zeros = vec![0.0; outputs];
            Linear::new(weights.device(), &weight, if tap == 0 { &bias } else { &zeros })
        };
        let layers = (0..TAPS).map(layer).collect::<Loaded<Vec<_>>>()?;
        Ok(Self(layers))
    }

    fn forward(&self, from: &FeatureMap) -> Result<FeatureMap> {
        let (batch, count, channels) = from.values.dims3()?;
        let (height, width) = (from.height.div_ceil(2), from.width.div_ceil(2));
        let mut sum: Option<Tensor> = None;
        let by_kernels = by_kernels(&from.values);
        let padded = if by_kernels { None } else { Some(from.values.pad_with_zeros(1, 0, 1)?) };
        for (tap, layer) in self.0.iter().enumerate() {
            // What a pixel of the output sees through this place of the window; nothing in the padding.
            let place = |pixel: usize| {
                // One less for the padding.
                let (y, x) = (2 * (pixel / width) + tap / 3, 2 * (pixel % width) + tap % 3);
                let (y, x) = (y.checked_sub(1)?, x.checked_sub(1)?);
                (y < from.height && x < from.width).then_some(y * from.width + x)
            };
            let seen = match &padded {
                Some(padded) => {
                    let places: Vec<u32> = (0..height * width).map(|at| place(at).unwrap_or(count) as u32).collect();
                    padded.index_select(&Tensor::from_vec(places, height * width, padded.device())?, 1)?
                }
                None => {
                    let seen = with_values(&from.values, |values| {
                        let mut seen = vec![0.0; batch * height * width * channels];
                        for (pixel, out) in seen.chunks_mut(channels).enumerate() {
                            if let Some(at) = place(pixel % (height * width)) {
                                let at = (pixel / (height * width) * count + at) * channels;
                                out.copy_from_slice(&values[at..at + channels]);
                            }
                        }
                        Ok(seen)
                    })?;
                    Tensor::from_vec(seen, (batch, height * width, channels), from.values.device())?
                }
            };
            sum = Some(match sum {
                Some(sum) => layer.forward_onto(&seen, &sum)?,
                None => layer.forward(&seen)?,
            });
        }
        match sum {
            Some(values) => Ok(FeatureMap { height, width, values }),
            None => candle_core::bail!("a window has nine places"),
        }
    }
}

/// For each row of `scores` (`[batch, n]`) the places of its `count` highest, highest first, the earlier of equals
/// first; all of them where there are fewer.
fn best(scores: &Tensor, count: usize) -> Result<Vec<Vec<u32>>> {
    let (_, tokens) = scores.dims2()?;
    with_values(scores, |scores| {
        let best_of = |row: &[f32]| {
            let mut order: Vec<u32> = (0..row.len() as u32).collect();
            order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
            order.truncate(count);
            order
        };
        Ok(scores.chunks(tokens.max(1)).map(best_of).collect())
    })
}

/// The rows `chosen` of each image: `[batch, n, k]` → `[batch, chosen, k]`.
fn gather_rows(x: &Tensor, chosen: &[Vec<u32>]) -> Result<Tensor> {
    let mut rows = Vec::with_capacity(chosen.len());
    for (image, chosen) in chosen.iter().enumerate() {
        rows.push(x.get(image)?.index_select(&Tensor::new(chosen.as_slice(), x.device())?, 0)?);
    }
    Tensor::stack(&rows, 0)
}
