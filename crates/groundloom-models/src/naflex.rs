//! SigLIP 2 with images of any aspect ratio (NaFlex; Tschannen et al., "SigLIP 2", 2025, section 2.4): each image keeps
//! its shape, is cut into at most so many patches, and is padded to that many.
//!
//! Reference: transformers' `modeling_siglip2.py` and `image_processing_siglip2.py`.

use candle_core::{Device, Tensor};
use groundloom_data::{Filter, resize};
use image::{Rgb, RgbImage};
use rayon::prelude::*;

use crate::{
    ModelError,
    clip::{scalar, stack_shape, sub_config},
    config::Config,
    folder::ModelFolder,
    image_processor::{HALF, ImageDefaults, ImageProcessor},
    layers::{Activation, LayerNorm, Linear, compute, padding_bias},
    resample::bilinear_antialiased,
    siglip::{PoolingHead, TextTower, width},
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// What a `Siglip2ImageProcessor` does where its file is silent.
const IMAGE_DEFAULTS: ImageDefaults = ImageDefaults { filter: Filter::Bilinear, mean: HALF, std: HALF, crop: false };

/// Cuts images into patches.
#[derive(Debug, Clone)]
pub(crate) struct PatchProcessor {
    /// Pixel values; it neither resizes nor crops.
    values: ImageProcessor,
    filter: Filter,
    square: usize,
    most: usize,
}

/// Images of one batch.
#[derive(Debug, Clone)]
pub(crate) struct PatchBatch {
    /// `[n, most, 3 · square · square]`: lines, pixels, channels; zeros behind an image's last patch.
    pub(crate) patches: Tensor,
    /// `[n, most]` of u32: 1 for a patch, 0 for padding.
    pub(crate) mask: Tensor,
    /// Patches of each image, down and across.
    pub(crate) grids: Vec<[usize; 2]>,
}

impl PatchProcessor {
    /// Reads `preprocessor_config.json`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn open(folder: &ModelFolder) -> Result<Self, ModelError> {
        let file = Config::read(folder, "preprocessor_config.json")?;
        let (square, most) = (file.size_or("patch_size", 16)?, file.size_or("max_num_patches", 256)?);
        file.only("do_resize", true)?;
        let (filter, values) = ImageProcessor::read_values(&file, IMAGE_DEFAULTS)?;
        file.finish()?;
        Ok(Self { values, filter, square, most })
    }

    /// Patches of an image of `width` × `height` pixels, down and across: the finest grid near its aspect ratio that has
    /// at most as many as the processor allows, found by halving as the reference does.
    fn grid(&self, width: u32, height: u32) -> [usize; 2] {
        const NARROW: f64 = 1e-5;
        let square = self.square as f64;
        let along = |scale: f64, side: u32| ((f64::from(side) * scale / square).ceil()).max(1.0);
        let (mut low, mut high) = (NARROW / 10.0, 100.0);
        while high - low >= NARROW {
            let scale = (low + high) / 2.0;
            if along(scale, height) * along(scale, width) <= self.most as f64 {
                low = scale;
            } else {
                high = scale;
            }
        }
        [along(low, height) as usize, along(low, width) as usize]
    }

    /// Resizes `images` to their grids and cuts them.
    ///
    /// # Errors
    /// [`ModelError::EmptyImage`].
    pub(crate) fn batch(&self, images: &[&RgbImage]) -> Result<PatchBatch, ModelError> {
        let length = 3 * self.square * self.square;
        let mut patches = vec![0.0; images.len() * self.most * length];
        let grids = patches
            .par_chunks_mut(self.most * length)
            .zip(images)
            .map(|(out, image)| self.cut(image, out))
            .collect::<Result<Vec<_>, ModelError>>()?;
        let mask: Vec<u32> =
            grids.iter().flat_map(|[down, across]| (0..self.most).map(move |i| u32::from(i < down * across))).collect();
        let tensors = || {
            let patches = Tensor::from_vec(patches, (images.len(), self.most, length), &Device::Cpu)?;
            Ok((patches, Tensor::from_vec(mask, (images.len(), self.most), &Device::Cpu)?))
        };
        let (patches, mask) = tensors().map_err(compute("the patches of a batch"))?;
        Ok(PatchBatch { patches, mask, grids })
    }

    fn cut(&self, image: &RgbImage, out: &mut [f32]) -> Result<[usize; 2], ModelError> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(ModelError::EmptyImage { width, height });
        }
        let [down, across] = self.grid(width, height);
        let square = self.square;
        let image = resize(image, (across * square) as u32, (down * square) as u32, self.filter);
        for (i, patch) in out.chunks_exact_mut(3 * square * square).take(down * across).enumerate() {
            let (top, left) = (i / across * square, i % across * square);
            for (pixel, values) in patch.chunks_exact_mut(3).enumerate() {
                let (x, y) = (left + pixel % square, top + pixel / square);
                let Rgb(bytes) = *image.get_pixel(x as u32, y as u32);
                values.copy_from_slice(&self.values.pixel(bytes));
            }
        }
        Ok([down, across])
    }
}

/// `Siglip2Model`.
pub(crate) struct Siglip2 {
    pub(crate) text: TextTower,
    patch: Linear,
    /// `[side · side, width]`, on the CPU, where each image's own are made of them.
    positions: Tensor,
    side: usize,
    stack: Stack,
    post_norm: LayerNorm,
    head: PoolingHead,
    /// Natural logarithm of the factor on the cosine.
    pub(crate) logit_scale: f64,
    pub(crate) logit_bias: f64,
}

impl Siglip2 {
    /// Reads the network of a `config.json` with `model_type` `siglip2`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let (vision, text) = (sub_config(config, "vision_config")?, sub_config(config, "text_config")?);
        let shape = |config: &Config| stack_shape(config, [768, 3072, 12, 12], Activation::GeluTanh, 1e-6);
        let (vision_shape, text_shape) = (shape(&vision)?, shape(&text)?);
        let (count, square) = (vision.size_or("num_patches", 256)?, vision.size_or("patch_size", 16)?);
        let side = count.isqrt();
        if side * side != count {
            return Err(vision.bad("num_patches", "a square number", count));
        }
        vision.only("num_channels", 3)?;
        vision.only("vision_use_head", true)?;
        let (vocabulary, positions) =
            (text.size_or("vocab_size", 32_000)?, text.size_or("max_position_embeddings", 64)?);
        let outputs = width(config)?;
        text.value("projection_size");
        if outputs != vision_shape.width {
            return Err(text.bad(
                "projection_size",
                format!("the image's {} values: texts and images share a space", vision_shape.width),
                outputs,
            ));
        }
        [config, &vision, &text].into_iter().try_for_each(Config::finish)?;
        let (tower, StackShape { width, eps, .. }) = (weights.at("vision_model"), vision_shape);
        let embeddings = tower.at("embeddings");
        let this = Self {
            text: TextTower::load(&weights.at("text_model"), text_shape, vocabulary, positions, outputs)?,
            patch: Linear::load(&embeddings.at("patch_embedding"), 3 * square * square, width, true)?,
            positions: embeddings.tensor_on_cpu("position_embedding.weight", &[count, width])?,
            side,
            stack: Stack::load(&tower.at("encoder.layers"), vision_shape, NormPlace::Before, BlockNames::CLIP)?,
            post_norm: LayerNorm::load(&tower.at("post_layernorm"), width, eps)?,
            head: PoolingHead::load(&tower.at("head"), vision_shape)?,
            logit_scale: scalar(weights, "logit_scale")?,
            logit_bias: scalar(weights, "logit_bias")?,
        };
        weights.finish(&[])?;
        Ok(this)
    }

    /// Vectors of the patches behind the last norm, `[n, most, width]`.
    pub(crate) fn vision(&self, batch: &PatchBatch) -> Candle<Tensor> {
        let most = batch.patches.dim(1)?;
        let mut positions = Vec::with_capacity(batch.grids.len());
        for &grid in &batch.grids {
            let own = bilinear_antialiased(&self.positions, [self.side; 2], grid)?;
            // Padding gets the first patch's position.
            let rest = most.saturating_sub(own.dim(0)?);
            let first = own.narrow(0, 0, 1)?.broadcast_as((rest, own.dim(1)?))?;
            positions.push(if rest == 0 { own } else { Tensor::cat(&[own, first], 0)? });
        }
        let x = self.patch.forward(&batch.patches)?;
        let x = (&x + Tensor::stack(&positions, 0)?.to_device(x.device())?)?;
        self.post_norm.forward(&self.stack.forward(x, Some(&padding_bias(&batch.mask)?), &mut |_| ())?)
    }

    /// Embeddings of images, not normalised, `[n, width]`.
    pub(crate) fn images(&self, batch: &PatchBatch) -> Candle<Tensor> {
        self.pooled(&self.vision(batch)?, batch)
    }

    /// `[n, most, width]` → `[n, width]`.
    pub(crate) fn pooled(&self, tokens: &Tensor, batch: &PatchBatch) -> Candle<Tensor> {
        self.head.forward_masked(tokens, Some(&padding_bias(&batch.mask)?))
    }

    /// Embeddings of texts, not normalised, `[n, width]`.
    pub(crate) fn texts(&self, ids: &Tensor) -> Candle<Tensor> {
        self.text.pooled(&self.text.forward(ids, &mut |_| ())?)
    }
}
