//! VideoMAE (Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
//! Pre-Training", 2022): features of a clip of frames.
//!
//! Reference: transformers' `modeling_videomae.py`.

use candle_core::Tensor;
use groundloom_data::Filter;
use image::RgbImage;

use crate::{
    ModelError,
    clip::stack_shape,
    config::Config,
    embedder::{Embedder, EmbedderInfo, Modality},
    folder::ModelFolder,
    image_processor::{HALF, ImageDefaults, ImageProcessor},
    layers::{Activation, LayerNorm, Linear, compute, patches},
    registry::sized,
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    vit,
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// What the family's image processor does where its file is silent.
const IMAGE_DEFAULTS: ImageDefaults = ImageDefaults { filter: Filter::Bilinear, mean: HALF, std: HALF, crop: true };

/// Epsilon of the norm before the classes: torch's default, whatever `layer_norm_eps` says.
const HEAD_EPS: f64 = 1e-5;

/// Tubes of the largest clip; the released networks have 1568.
const MOST_TUBES: usize = 1 << 16;

/// A vision transformer over tubes: squares of a few frames.
#[derive(Debug)]
pub(crate) struct VideoMae {
    /// Frames of a clip.
    pub(crate) frames: usize,
    /// Pixels along a side of a frame.
    image_size: usize,
    /// Frames of a tube, and pixels along a side of it.
    tube: [usize; 2],
    patch: Linear,
    /// `[1, tubes, width]`.
    pub(crate) positions: Tensor,
    stack: Stack,
    /// Behind the last block, where tubes are not averaged for the classes.
    norm: Option<LayerNorm>,
    head: Option<Head>,
}

/// A value for each class.
#[derive(Debug)]
struct Head {
    norm: Option<LayerNorm>,
    layer: Linear,
}

impl VideoMae {
    /// Reads the network of a `config.json` with `model_type` `videomae`, with classes or without.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let shape = stack_shape(config, [768, 3072, 12, 12], Activation::Gelu, 1e-12)?;
        let StackShape { width, eps, .. } = shape;
        config.only("num_channels", 3)?;
        config.only("qv_bias", true)?;
        let image_size = config.size_or("image_size", 224)?;
        let square = config.size_or("patch_size", 16)?;
        let frames = frames(config)?;
        let deep = config.size_or("tubelet_size", 2)?;
        for (key, whole, part) in [("patch_size", image_size, square), ("tubelet_size", frames, deep)] {
            if !whole.is_multiple_of(part) {
                return Err(config.bad(key, format!("a divisor of {whole}"), part));
            }
        }
        let across = image_size / square;
        let tubes = (frames / deep).saturating_mul(across.saturating_mul(across));
        if tubes > MOST_TUBES {
            let expected = format!("so few pixels and frames that there are at most {MOST_TUBES} tubes");
            return Err(config.bad("image_size", expected, image_size));
        }
        let averaged = config.flag_or("use_mean_pooling", true)?;
        let labels = vit::labels(config)?.len();
        // The decoder of pre-training.
        for inert in ["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"] {
            config.value(&format!("decoder_{inert}"));
        }
        config.value("norm_pix_loss");
        config.finish()?;

        let body = weights.at_first(&["videomae", ""]);
        let projection = body.at("embeddings.patch_embeddings.projection");
        let kernel = projection.values("weight", &[width, 3, deep, square, square])?;
        let positions = Tensor::from_vec(sinusoids(tubes, width), (1, tubes, width), weights.device());
        let norm = match averaged {
            true => None,
            false => Some(LayerNorm::load(&body.at("layernorm"), width, eps)?),
        };
        let classes = weights.at("classifier");
        let head = match classes.has("weight") {
            false => None,
            true => Some(Head {
                norm: match averaged {
                    true => Some(LayerNorm::load(&weights.at("fc_norm"), width, HEAD_EPS)?),
                    false => None,
                },
                layer: Linear::load(&classes, width, labels, true)?,
            }),
        };
        let this = Self {
            frames,
            image_size,
            tube: [deep, square],
            patch: Linear::new(weights.device(), &kernel, &projection.values("bias", &[width])?)?,
            positions: positions.map_err(compute("the positions"))?,
            stack: Stack::load(&body.at("encoder.layer"), shape, NormPlace::Before, BlockNames::VIDEOMAE)?,
            norm,
            head,
        };
        weights.finish(&["decoder.", "encoder_to_decoder.", "mask_token"])?;
        Ok(this)
    }

    /// The network's processor.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
    pub(crate) fn processor(&self, folder: &ModelFolder) -> Result<ImageProcessor, ModelError> {
        sized(folder, IMAGE_DEFAULTS, self.image_size)
    }

    /// Pixels of a clip, `[frames, 3, height, width]` → vectors of all tubes, `[1, tubes, width]`, those of the first frames
    /// first, before the last norm. `each` sees the embeddings and every block.
    pub(crate) fn forward(&self, pixels: &Tensor, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        let ([deep, square], (frames, channels, height, width)) = (self.tube, pixels.dims4()?);
        // A tube is a square of a picture that has the channels of all its frames.
        let stacked = pixels.reshape((frames / deep, deep, channels, height, width))?.transpose(1, 2)?.contiguous()?;
        let stacked = stacked.reshape((frames / deep, channels * deep, height, width))?;
        let x = self.patch.forward(&patches(&stacked, square)?)?;
        let x = (x.reshape(self.positions.dims())? + &self.positions)?;
        each(&x);
        self.stack.forward(x, None, each)
    }

    /// What the reference calls the last hidden state.
    pub(crate) fn normed(&self, tubes: &Tensor) -> Candle<Tensor> {
        self.norm.as_ref().map_or_else(|| Ok(tubes.clone()), |norm| norm.forward(tubes))
    }

    /// A value for each class, `[1, classes]`, from what [`VideoMae::normed`] gives; `None` without a head.
    pub(crate) fn logits(&self, normed: &Tensor) -> Candle<Option<Tensor>> {
        let Some(Head { norm, layer }) = &self.head else { return Ok(None) };
        let input = match norm {
            Some(norm) => norm.forward(&normed.mean(1)?)?,
            None => normed.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
        };
        layer.forward(&input).map(Some)
    }
}

/// Frames of the clips that a `config.json` describes.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn frames(config: &Config) -> Result<usize, ModelError> {
    config.size_or("num_frames", 16)
}

/// The fixed positions of the first transformer, `[count, width]`: sines at even places of a vector, cosines at odd ones.
fn sinusoids(count: usize, width: usize) -> Vec<f32> {
    let value = |i: usize| {
        let (place, j) = (i / width, i % width);
        let angle = place as f64 / 10_000.0_f64.powf((2 * (j / 2)) as f64 / width as f64);
        (if j.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
    };
    (0..count * width).map(value).collect()
}

/// VideoMAE with its processor: the mean over all places and times of what the network gives last.
pub(crate) struct VideoMaeEmbedder {
    pub(crate) info: EmbedderInfo,
    pub(crate) network: VideoMae,
    pub(crate) processor: ImageProcessor,
}

impl Embedder for VideoMaeEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn embed_texts(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info.refuse(Modality::Text, texts.len())
    }

    fn embed_images(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info.refuse(Modality::Image, images.len())
    }

    fn embed_videos(&self, videos: &[&[RgbImage]]) -> Vec<Result<Vec<f32>, ModelError>> {
        let network = &self.network;
        let one = |frames: &&[RgbImage]| {
            if frames.len() != network.frames {
                let expected = format!("a video of {} frames, chosen evenly from the film", network.frames);
                return Err(ModelError::WrongCount { expected, found: frames.len() });
            }
            let pixels = self.processor.batch(&frames.iter().collect::<Vec<_>>())?;
            let run = || network.normed(&network.forward(&pixels, &mut |_| ())?)?.mean(1)?.flatten_all()?.to_vec1();
            run().map_err(compute("the video transformer"))
        };
        videos.iter().map(one).collect()
    }
}
