//! ImageBind (Girdhar et al., "ImageBind: One Embedding Space To Bind Them All", 2023): images, films, texts, audio, depth,
//! thermal images and the motion of a sensor in one space.
//!
//! Reference: facebookresearch/ImageBind, `imagebind_model.py` and `multimodal_preprocessors.py`. The released weights may
//! not be used commercially; the user brings them.

use candle_core::{IndexOp, Tensor};

use crate::{
    ModelError,
    clip::{TextPooling, embed, pooled, scalar, with_class_token},
    config::Config,
    layers::{Activation, Embedding, LayerNorm, Linear, causal_bias, compute, patches, patches_every},
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
};

mod embedder;
mod inputs;

pub(crate) use embedder::{ImageBindEmbedder, OTHERS};
pub(crate) use inputs::{Spectra, processor, still};

type Candle<T> = candle_core::Result<T>;

/// Pixels along a side of every image.
const SIDE: usize = 224;
/// Tokens of the longest text.
pub(crate) const POSITIONS: usize = 77;
/// Mel filters and frames of a clip of audio.
const SPECTRUM: [usize; 2] = [128, 204];
/// Values of a moment of a sensor, and moments of a recording.
const MOTION: [usize; 2] = [6, 2000];
/// Moments of one token.
const MOMENTS: usize = 8;
/// Added to variances in the blocks and behind them.
const EPS: f64 = 1e-6;
/// The same behind the first layers, which have torch's default.
const STEM_EPS: f64 = 1e-5;
/// The greatest factor that a cosine is multiplied by.
const GREATEST_SCALE: f64 = 100.0;

/// `ImageBindModel`.
#[derive(Debug)]
pub(crate) struct ImageBind {
    pub(crate) text: TextTower,
    /// Two frames, `[n, 3, 2, 224, 224]`.
    pub(crate) vision: Tower,
    /// `[n, 1, 128, 204]`.
    pub(crate) audio: Tower,
    /// `[n, 1, 224, 224]`.
    pub(crate) depth: Tower,
    /// `[n, 1, 224, 224]`.
    pub(crate) thermal: Tower,
    /// `[n, 6, 2000]`.
    pub(crate) motion: Tower,
}

/// A tower of everything but texts.
#[derive(Debug)]
pub(crate) struct Tower {
    /// From the input to what each token sees of it, `[n, tokens, values]`.
    cut: fn(&Tensor) -> Candle<Tensor>,
    stem: Linear,
    stem_norm: Option<LayerNorm>,
    class: Tensor,
    /// `[1 + tokens, width]`.
    positions: Tensor,
    trunk: Trunk,
}

/// A tower of texts, `[n, length]` of token ids.
#[derive(Debug)]
pub(crate) struct TextTower {
    words: Embedding,
    positions: Embedding,
    trunk: Trunk,
}

/// The blocks of a tower and what lies around them.
#[derive(Debug)]
struct Trunk {
    before: Option<LayerNorm>,
    stack: Stack,
    norm: LayerNorm,
    head: Linear,
    scale: f64,
}

/// How a tower differs from the others.
struct Design {
    /// As the checkpoint names it.
    name: &'static str,
    /// The first layer, behind `modality_preprocessors.NAME.`
    stem: &'static str,
    /// What a token sees, as the first layer's weight has it.
    seen: &'static [usize],
    /// The norm behind it, if there is one.
    stem_norm: Option<&'static str>,
    positions: &'static str,
    tokens: usize,
    cut: fn(&Tensor) -> Candle<Tensor>,
    blocks: BlockNames,
    /// The norm before the blocks, if there is one.
    before: Option<&'static str>,
    /// The last layer, behind `modality_heads.NAME.`; its norm is `0`.
    head: &'static str,
    /// Width, blocks and heads of the released model.
    sizes: [usize; 3],
}

/// Where the tokens of an image learn their places.
const POSITIONS_OF_SQUARES: &str = "pos_embedding_helper.pos_embed";
/// Keys and values of their own in all towers but those of images and texts.
const WITH_EXTRA: BlockNames = BlockNames { extra: Some("attn.bias_"), ..BlockNames::IMAGEBIND };

const VISION: Design = Design {
    name: "vision",
    stem: "rgbt_stem.proj.1",
    seen: &[3, 2, 14, 14],
    stem_norm: None,
    positions: POSITIONS_OF_SQUARES,
    tokens: 256,
    cut: |frames| patches(&frames.flatten(1, 2)?, 14),
    blocks: BlockNames::IMAGEBIND,
    before: Some("pre_transformer_layer.0"),
    head: "2",
    sizes: [1280, 32, 16],
};
const AUDIO: Design = Design {
    name: "audio",
    stem: "rgbt_stem.proj",
    seen: &[1, 16, 16],
    stem_norm: Some("rgbt_stem.norm_layer"),
    tokens: 228,
    cut: |spectra| patches_every(spectra, 16, 10),
    blocks: WITH_EXTRA,
    before: None,
    sizes: [768, 12, 12],
    ..VISION
};
const DEPTH: Design = Design {
    name: "depth",
    stem: "depth_stem.proj",
    stem_norm: Some("depth_stem.norm_layer"),
    tokens: 196,
    cut: |planes| patches(planes, 16),
    sizes: [384, 12, 8],
    ..AUDIO
};
const THERMAL: Design = Design {
    name: "thermal",
    stem: "rgbt_stem.proj",
    stem_norm: Some("rgbt_stem.norm_layer"),
    sizes: [768, 12, 12],
    ..DEPTH
};
const IMU: Design = Design {
    name: "imu",
    stem: "imu_stem.proj",
    seen: &[MOTION[0] * MOMENTS],
    stem_norm: Some("imu_stem.norm_layer"),
    positions: "pos_embed",
    tokens: MOTION[1] / MOMENTS,
    cut: |motion| {
        let (n, values, moments) = motion.dims3()?;
        let tokens = motion.reshape((n, values, moments / MOMENTS, MOMENTS))?.permute((0, 2, 1, 3))?;
        tokens.reshape((n, moments / MOMENTS, values * MOMENTS))
    },
    head: "3",
    sizes: [512, 6, 8],
    ..THERMAL
};

/// Length of the vectors that a `config.json` promises.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn width(config: &Config) -> Result<usize, ModelError> {
    config.size_or("out_embed_dim", 1024)
}

impl ImageBind {
    /// Reads the network of a `config.json` with `model_type` `imagebind`, whose options have the names of the reference's
    /// constructor and the values of `imagebind_huge` where they are missing.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let dims = width(config)?;
        for (key, supported) in [
            ("audio_kernel_size", 16),
            ("audio_num_mel_bins", SPECTRUM[0]),
            ("audio_stride", 10),
            ("audio_target_len", SPECTRUM[1]),
            ("depth_kernel_size", 16),
            ("imu_kernel_size", MOMENTS),
            ("thermal_kernel_size", 16),
            ("video_frames", 2),
        ] {
            config.only(key, supported)?;
        }
        config.only("kernel_size", vec![2, 14, 14])?;
        for inert in ["audio_drop_path", "depth_drop_path", "imu_drop_path", "thermal_drop_path", "seed"] {
            config.value(inert);
        }
        let this = Self {
            text: TextTower::load(config, weights, dims)?,
            vision: Tower::load(config, weights, VISION, dims)?,
            audio: Tower::load(config, weights, AUDIO, dims)?,
            depth: Tower::load(config, weights, DEPTH, dims)?,
            thermal: Tower::load(config, weights, THERMAL, dims)?,
            motion: Tower::load(config, weights, IMU, dims)?,
        };
        config.finish()?;
        // Which tokens of a text see which: always those before them.
        weights.finish(&["modality_preprocessors.text.mask"])?;
        Ok(this)
    }
}

impl Tower {
    fn load(config: &Config, weights: &Weights, design: Design, dims: usize) -> Result<Self, ModelError> {
        let place = weights.at("modality_preprocessors").at(design.name);
        let (trunk, width) = Trunk::load(config, weights, &design, ["0", design.head], dims)?;
        let stem = place.at(design.stem).values("weight", &[&[width], design.seen].concat())?;
        let positions = place.tensor(design.positions, &[1, 1 + design.tokens, width])?;
        Ok(Self {
            cut: design.cut,
            stem: Linear::new(weights.device(), &stem, &vec![0.0; width])?,
            stem_norm: norm(&place, design.stem_norm, width, STEM_EPS)?,
            class: place.tensor("cls_token", &[1, 1, width])?,
            positions: positions.squeeze(0).map_err(compute("the positions"))?,
            trunk,
        })
    }

    /// The vectors of the inputs, neither normalised nor scaled, `[n, dims]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Candle<Tensor> {
        let mut x = self.stem.forward(&(self.cut)(input)?.contiguous()?)?;
        if let Some(norm) = &self.stem_norm {
            x = norm.forward(&x)?;
        }
        let x = with_class_token(&x, &self.class)?.broadcast_add(&self.positions)?;
        let x = self.trunk.blocks(x, None)?;
        self.trunk.vectors(&x.i((.., 0))?.contiguous()?)
    }

    /// What the reference multiplies normalised vectors by.
    pub(crate) fn scale(&self) -> f64 {
        self.trunk.scale
    }
}

impl TextTower {
    fn load(config: &Config, weights: &Weights, dims: usize) -> Result<Self, ModelError> {
        const TEXT: Design = Design { name: "text", sizes: [1024, 24, 16], before: None, ..VISION };
        let place = weights.at("modality_preprocessors.text");
        let (trunk, width) = Trunk::load(config, weights, &TEXT, ["proj.0", "proj.1"], dims)?;
        let vocabulary = config.size_or("vocab_size", 49_408)?;
        let positions = place.tensor("pos_embed", &[1, POSITIONS, width])?;
        Ok(Self {
            words: Embedding::load(&place.at("token_embedding"), vocabulary, width)?,
            positions: Embedding::new(positions.squeeze(0).map_err(compute("the positions"))?),
            trunk,
        })
    }

    /// As [`Tower::forward`], of token ids `[n, length]`; what stands behind the end of a text has no say.
    pub(crate) fn forward(&self, ids: &Tensor) -> Candle<Tensor> {
        let bias = causal_bias(0, ids.dim(1)?, None)?;
        let x = self.trunk.blocks(embed(&self.words, &self.positions, ids)?, Some(&bias))?;
        self.trunk.vectors(&pooled(&x, ids, TextPooling::GreatestId)?)
    }

    /// As [`Tower::scale`].
    pub(crate) fn scale(&self) -> f64 {
        self.trunk.scale
    }
}

impl Trunk {
    /// The trunk and the length of its tokens' vectors; the last norm and the last layer lie at the places given.
    fn load(
        config: &Config,
        weights: &Weights,
        design: &Design,
        [head_norm, head]: [&str; 2],
        dims: usize,
    ) -> Result<(Self, usize), ModelError> {
        let [width, layers, heads] = design.sizes;
        let option = |what: &str, default: usize| config.size_or(&format!("{}_{what}", design.name), default);
        let width = option("embed_dim", width)?;
        let shape = StackShape {
            layers: option("num_blocks", layers)?,
            width,
            heads: option("num_heads", heads)?,
            inner: 4 * width,
            activation: Activation::Gelu,
            eps: EPS,
        };
        let [trunk, heads] = ["modality_trunks", "modality_heads"].map(|part| weights.at(part).at(design.name));
        // Vectors of images stay as long as they are.
        let last = weights.at("modality_postprocessors").at(design.name).at(1);
        let scale = match design.name {
            "vision" => 1.0,
            _ => scalar(&last, "log_logit_scale")?.exp().min(GREATEST_SCALE),
        };
        let trunk = Self {
            before: norm(&trunk, design.before, width, EPS)?,
            stack: Stack::load(&trunk.at("blocks"), shape, NormPlace::Before, design.blocks)?,
            norm: LayerNorm::load(&heads.at(head_norm), width, EPS)?,
            head: Linear::load(&heads.at(head), width, dims, false)?,
            scale,
        };
        Ok((trunk, width))
    }

    fn blocks(&self, x: Tensor, bias: Option<&Tensor>) -> Candle<Tensor> {
        let x = match &self.before {
            Some(norm) => norm.forward(&x)?,
            None => x,
        };
        self.stack.forward(x, bias, &mut |_| ())
    }

    /// From the vectors of the tokens that stand for the whole, `[n, width]`.
    fn vectors(&self, tokens: &Tensor) -> Candle<Tensor> {
        self.head.forward(&self.norm.forward(tokens)?)
    }
}

fn norm(weights: &Weights, name: Option<&str>, width: usize, eps: f64) -> Result<Option<LayerNorm>, ModelError> {
    name.map(|name| LayerNorm::load(&weights.at(name), width, eps)).transpose()
}
