//! The network: CLIP's towers, and heads that make a box and a match of every patch.

use candle_core::{IndexOp, Result, Tensor};

use crate::{
    ModelError,
    clip::{TextConfig, TextPooling, TextTower, VisionConfig, VisionTower, stack_shape, sub_config},
    config::Config,
    grounding_dino::products,
    layers::{Activation, LayerNorm, Linear, normalise, with_values},
    weights::Weights,
};

type Loaded<T> = std::result::Result<T, ModelError>;

/// OWL-ViT (Minderer et al., "Simple Open-Vocabulary Object Detection with Vision Transformers", 2022) and OWLv2
/// (Minderer et al., "Scaling Open-Vocabulary Object Detection", 2023).
pub(crate) struct Owl {
    pub(crate) vision: VisionTower,
    pub(crate) text: TextTower,
    text_projection: Linear,
    norm: LayerNorm,
    class: Linear,
    shift: Linear,
    scale: Linear,
    boxes: Head,
    /// OWLv2 only: how much a patch is an object of any kind.
    objectness: Option<Head>,
    /// Where each patch's box begins, as logits of centre and size: `[patches, 4]`.
    box_bias: Tensor,
}

/// Three linear layers with GELU between them.
struct Head([Linear; 3]);

impl Head {
    fn load(weights: &Weights, width: usize, outputs: usize) -> Loaded<Self> {
        let layer = |name: &str, outputs: usize| Linear::load(&weights.at(name), width, outputs, true);
        Ok(Self([layer("dense0", width)?, layer("dense1", width)?, layer("dense2", outputs)?]))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, last] = &self.0;
        let x = first.forward_activated(x, Activation::Gelu)?;
        last.forward(&second.forward_activated(&x, Activation::Gelu)?)
    }
}

/// What is compared with patches.
#[derive(Debug, Clone)]
pub(crate) struct Queries {
    /// `[batch, queries, width]`.
    pub(crate) embeddings: Tensor,
    /// `[batch, queries]`: 0 where there is none.
    pub(crate) real: Option<Vec<bool>>,
}

impl Owl {
    /// Reads the network of a `config.json`; `second` is OWLv2.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights, second: bool) -> Loaded<Self> {
        let (vision, text) = (sub_config(config, "vision_config")?, sub_config(config, "text_config")?);
        config.only("model_type", if second { "owlv2" } else { "owlvit" })?;
        let vision_config = vision_options(&vision)?;
        let text_config = text_options(&text)?;
        let projected = config.size_or("projection_dim", 512)?;
        let (width, words) = (vision_config.stack.width, text_config.stack.width);
        if projected != words {
            let expected = format!("text_config.hidden_size ({words}), the width of the class head");
            return Err(config.bad("projection_dim", expected, projected));
        }
        [config, &vision, &text].into_iter().try_for_each(Config::finish)?;
        let trunk = weights.at(if second { "owlv2" } else { "owlvit" });
        let class = weights.at("class_head");
        let side = vision_config.image_size / vision_config.patch;
        let this = Self {
            vision: VisionTower::load(&trunk.at("vision_model"), vision_config, "pre_layernorm")?,
            text: TextTower::load(&trunk.at("text_model"), text_config)?,
            text_projection: Linear::load(&trunk.at("text_projection"), words, projected, false)?,
            norm: LayerNorm::load(&weights.at("layer_norm"), width, vision_config.stack.eps)?,
            class: Linear::load(&class.at("dense0"), width, words, true)?,
            shift: Linear::load(&class.at("logit_shift"), width, 1, true)?,
            scale: Linear::load(&class.at("logit_scale"), width, 1, true)?,
            boxes: Head::load(&weights.at("box_head"), width, 4)?,
            objectness: if second { Some(Head::load(&weights.at("objectness_head"), width, 1)?) } else { None },
            box_bias: Tensor::from_vec(box_bias(side), (side * side, 4), weights.device())
                .map_err(|e| weights.bad(format!("cannot lay out {side}×{side} boxes: {e}")))?,
        };
        // What compares a whole image with a text; a table that older files carry.
        weights.finish(&[
            "owlvit.logit_scale",
            "owlv2.logit_scale",
            "owlvit.visual_projection.",
            "owlv2.visual_projection.",
            "box_bias",
        ])?;
        Ok(this)
    }

    /// Pixels `[n, 3, size, size]` → what each patch shows, `[n, patches, width]`. `each` sees the tower's embeddings
    /// and the output of every block.
    pub(crate) fn features(&self, pixels: &Tensor, each: &mut dyn FnMut(&Tensor)) -> Result<Tensor> {
        let tokens = self.vision.post_norm.forward(&self.vision.forward(pixels, each)?)?;
        let patches = tokens.dim(1)? - 1;
        let whole = tokens.narrow(1, 0, 1)?;
        self.norm.forward(&tokens.narrow(1, 1, patches)?.broadcast_mul(&whole)?.contiguous()?)
    }

    /// Token ids and their mask, `[n, length]` of u32, → embeddings of length 1, `[n, width]`.
    pub(crate) fn read(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let hidden = self.text.forward(ids, Some(mask), &mut |_| ())?;
        normalise(&self.text_projection.forward(&self.text.pooled(&hidden, ids)?)?)
    }

    /// What each patch is compared by, as it leaves the head: `[n, patches, width]`.
    pub(crate) fn classes(&self, features: &Tensor) -> Result<Tensor> {
        self.class.forward(features)
    }

    /// How well each patch matches each query, as logits `[n, patches, queries]`, and the classes of length 1 that were
    /// compared.
    pub(crate) fn compare(&self, features: &Tensor, queries: &Queries) -> Result<(Tensor, Tensor)> {
        let classes = unit(&self.classes(features)?)?;
        let cosines = products(&classes, &unit(&queries.embeddings)?)?;
        let scale = (self.scale.forward(features)?.elu(1.0)? + 1.0)?;
        let mut logits = cosines.broadcast_add(&self.shift.forward(features)?)?.broadcast_mul(&scale)?;
        if let Some(real) = &queries.real {
            let (batch, patches, count) = logits.dims3()?;
            let masked = with_values(&logits, |logits| {
                let mut masked = logits.to_vec();
                for (row, values) in masked.chunks_mut(count).enumerate() {
                    let real = &real[row / patches * count..][..count];
                    for (value, real) in values.iter_mut().zip(real) {
                        *value = if *real { *value } else { f32::MIN };
                    }
                }
                Ok(masked)
            })?;
            logits = Tensor::from_vec(masked, (batch, patches, count), logits.device())?;
        }
        Ok((logits, classes))
    }

    /// Boxes of all patches: centre and size, fractions of the network's square, `[n, patches, 4]`.
    pub(crate) fn boxes(&self, features: &Tensor) -> Result<Tensor> {
        candle_nn::ops::sigmoid(&self.boxes.forward(features)?.broadcast_add(&self.box_bias)?)
    }

    /// OWLv2: how much each patch is an object, as logits `[n, patches]`.
    pub(crate) fn objectness(&self, features: &Tensor) -> Result<Option<Tensor>> {
        self.objectness.as_ref().map(|head| head.forward(features)?.squeeze(2)).transpose()
    }

    /// The query that an image stands for: the class of one of its patches, `[n, 1, width]`. In OWLv2 that which is
    /// most of an object; in OWL-ViT, among those whose box covers the image nearly best, the least usual one.
    pub(crate) fn query_of(&self, features: &Tensor, boxes: &Tensor) -> Result<Queries> {
        let classes = self.classes(features)?;
        let (batch, patches, width) = classes.dims3()?;
        let objectness = self.objectness(features)?;
        let mut chosen = Vec::with_capacity(batch);
        for image in 0..batch {
            let patch = match &objectness {
                Some(logits) => with_values(&logits.get(image)?, |logits| Ok(first_greatest(logits)))?,
                None => with_values(&boxes.get(image)?, |boxes| {
                    with_values(&classes.get(image)?, |classes| {
                        Ok(least_usual(boxes.as_chunks::<4>().0, classes, width))
                    })
                })?,
            };
            chosen.push(classes.i((image, patch.min(patches - 1)))?);
        }
        Ok(Queries { embeddings: Tensor::stack(&chosen, 0)?.unsqueeze(1)?, real: None })
    }
}

fn vision_options(config: &Config) -> Loaded<VisionConfig> {
    let stack = stack_shape(config, [768, 3072, 12, 12], Activation::QuickGelu, 1e-5)?;
    config.only("num_channels", 3)?;
    let this = VisionConfig {
        stack,
        image_size: config.size_or("image_size", 768)?,
        patch: config.size_or("patch_size", 32)?,
    };
    if this.patch > this.image_size {
        return Err(config.bad("patch_size", format!("at most the image's {} pixels", this.image_size), this.patch));
    }
    Ok(this)
}

fn text_options(config: &Config) -> Loaded<TextConfig> {
    Ok(TextConfig {
        stack: stack_shape(config, [512, 2048, 12, 8], Activation::QuickGelu, 1e-5)?,
        vocabulary: config.size_or("vocab_size", 49408)?,
        positions: config.size_or("max_position_embeddings", 16)?,
        // Whatever eos_token_id says.
        pooling: TextPooling::GreatestId,
    })
}

/// Each row divided by its length and a little.
fn unit(x: &Tensor) -> Result<Tensor> {
    let length = (x.sqr()?.sum_keepdim(candle_core::D::Minus1)?.sqrt()? + 1e-6)?;
    x.broadcast_div(&length)
}

/// Where the boxes of `side` × `side` patches begin: at the patch's lower right corner, as large as a patch.
fn box_bias(side: usize) -> Vec<f32> {
    let logit = |x: f32| (x + 1e-4).ln() - (-x + 1e-4).ln_1p();
    let size = logit(1.0 / side as f32);
    let corner = |at: usize| logit((at + 1) as f32 / side as f32);
    (0..side * side).flat_map(|patch| [corner(patch % side), corner(patch / side), size, size]).collect()
}

fn first_greatest(values: &[f32]) -> usize {
    let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter().position(|&value| value == greatest).unwrap_or(0)
}

/// Among the boxes that cover the whole image at least 0.8 times as well as the best, that whose class is least like
/// the mean of all.
fn least_usual(boxes: &[[f32; 4]], classes: &[f32], width: usize) -> usize {
    let corners: Vec<[f32; 4]> =
        boxes.iter().map(|[x, y, w, h]| [x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h]).collect();
    let mut overlaps: Vec<f32> = corners.iter().map(|corners| overlap(*corners).0).collect();
    if overlaps.iter().all(|&iou| iou == 0.0) {
        overlaps = corners.iter().map(|corners| overlap(*corners).1).collect();
    }
    let best = overlaps.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Where no box touches the image the reference would find nothing at all; here the nearest is taken.
    let least = if best > 0.0 { best * 0.8 } else { best };
    let patches = boxes.len() as f32;
    let mut mean = vec![0.0_f32; width];
    for class in classes.chunks(width) {
        mean.iter_mut().zip(class).for_each(|(sum, value)| *sum += value);
    }
    mean.iter_mut().for_each(|sum| *sum /= patches);
    let mut chosen = (0, f32::INFINITY);
    for (patch, class) in classes.chunks(width).enumerate().filter(|(patch, _)| overlaps[*patch] >= least) {
        let likeness: f32 = mean.iter().zip(class).map(|(mean, value)| mean * value).sum();
        if likeness < chosen.1 {
            chosen = (patch, likeness);
        }
    }
    chosen.0
}

/// Intersection over union with the whole image, and the generalised one (Rezatofighi et al., 2019).
fn overlap([left, top, right, bottom]: [f32; 4]) -> (f32, f32) {
    let area = (right - left) * (bottom - top);
    let shared = (right.min(1.0) - left.max(0.0)).max(0.0) * (bottom.min(1.0) - top.max(0.0)).max(0.0);
    let union = 1.0 + area - shared;
    let around = (right.max(1.0) - left.min(0.0)) * (bottom.max(1.0) - top.min(0.0));
    (shared / union, shared / union - (around - union) / around)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_the_least_usual_of_the_boxes_that_cover_the_image() {
        let boxes = [[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.95, 0.95], [0.2, 0.2, 0.1, 0.1]];
        assert_eq!(least_usual(&boxes, &[1.0, 0.0, 0.0, 1.0, 9.0, 9.0], 2), 0);
        assert_eq!(least_usual(&boxes, &[1.0, 0.5, 0.0, 1.0, 9.0, 9.0], 2), 1);
        // None touches the image: the nearest.
        let away = [[3.0, 3.0, 0.1, 0.1], [1.2, 0.5, 0.1, 0.1]];
        assert_eq!(least_usual(&away, &[0.0, 1.0], 1), 1);
    }

    #[test]
    fn boxes_begin_at_the_corner_of_their_patch() {
        let bias = box_bias(2);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        assert!(
            (sigmoid(bias[0]) - 0.5).abs() < 1e-3 && sigmoid(bias[4]) > 0.999 && (sigmoid(bias[2]) - 0.5).abs() < 1e-3
        );
    }
}
