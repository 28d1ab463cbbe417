//! CoCa (Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", 2022): images and texts in one space,
//! and captions. Checkpoints of open_clip, in its own layout: `open_clip_config.json`, `open_clip_model.safetensors`.
//!
//! Reference: open_clip's `coca_model.py` and `transformer.py`.

use candle_core::{IndexOp, Tensor};

use crate::{
    ModelError,
    clip::{embed_behind, patch_layer, with_class_token},
    config::Config,
    decoder::{CrossAttention, Decoder, DecoderBlock, FeedForward, Memory, Norm, Past},
    embedders::Towers,
    image_processor::ImageProcessor,
    language_model::{last, room, row},
    layers::{Activation, Embedding, LayerNorm, Linear, attention, causal_bias, compute, patches},
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
    writing::{Ending, Texts, Writing, Written, write},
};

type Candle<T> = candle_core::Result<T>;

/// Of every norm; torch's own.
const EPS: f64 = 1e-5;

/// `CoCa`.
#[derive(Debug)]
pub(crate) struct Coca {
    pub(crate) vision: VisionTower,
    pub(crate) text: TextTower,
    /// Writes: attends to the tokens of an image.
    decoder: Decoder,
    decoder_norm: LayerNorm,
    /// From a token's vector to a value for each word.
    words: Linear,
    /// Longest text in tokens that is written.
    longest: usize,
}

/// Whether the options of a folder in open_clip's layout are a CoCa's.
///
/// # Errors
/// [`ModelError::BadConfig`] where there is no `model_cfg`.
pub(crate) fn is_coca(config: &Config) -> Result<bool, ModelError> {
    Ok(part(config, "model_cfg")?.object("multimodal_cfg")?.is_some())
}

/// Length of the vectors of images and texts.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn width(config: &Config) -> Result<usize, ModelError> {
    let model = part(config, "model_cfg")?;
    model.size_if_there("embed_dim")?.ok_or_else(|| model.bad("embed_dim", "a whole number of at least 1", "nothing"))
}

/// What makes pixels for a network of images of `side` × `side` pixels: `preprocess_cfg`, with open_clip's defaults.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn processor(config: &Config, side: usize) -> Result<ImageProcessor, ModelError> {
    let options = config.object("preprocess_cfg")?.unwrap_or_else(|| config.empty("preprocess_cfg"));
    ImageProcessor::read_open_clip(&options, side)
}

fn part(config: &Config, name: &str) -> Result<Config, ModelError> {
    config.object(name)?.ok_or_else(|| config.bad(name, "an object", "nothing"))
}

/// Refuses an option that is not `true`: open_clip's default is another network.
fn must_be_set(config: &Config, key: &str) -> Result<(), ModelError> {
    match config.flag_or(key, false)? {
        true => Ok(()),
        false => Err(config.bad(key, "true, as in a CoCa of its original layout", false)),
    }
}

/// Sizes of a tower's blocks.
fn stack_shape(
    config: &Config,
    [width, heads]: [usize; 2],
    ratio: f64,
    activation: Activation,
) -> Result<StackShape, ModelError> {
    let inner = (width as f64 * ratio) as usize;
    if inner == 0 || inner > u32::MAX as usize {
        return Err(config.bad("mlp_ratio", "a ratio that leaves the feed-forward layers a width", ratio));
    }
    Ok(StackShape { layers: config.size_or("layers", 12)?, width, heads, inner, activation, eps: EPS })
}

/// The vision transformer, and the attention that makes of its tokens as many as there are queries.
#[derive(Debug)]
pub(crate) struct VisionTower {
    /// Pixels along a side.
    pub(crate) image_size: usize,
    patch_size: usize,
    patch: Linear,
    /// `[width]`.
    class: Tensor,
    /// `[1 + patches, width]`.
    positions: Tensor,
    pre_norm: LayerNorm,
    stack: Stack,
    pool: AttentionPool,
    /// Behind the pool.
    post_norm: LayerNorm,
    projection: Linear,
}

/// Learned queries that attend to the tokens of an image.
#[derive(Debug)]
struct AttentionPool {
    heads: usize,
    /// Normed and projected, `[1, queries, embed_dim]`.
    queries: Tensor,
    norm: LayerNorm,
    keys: Linear,
    values: Linear,
    output: Linear,
}

impl AttentionPool {
    /// Reads queries of `width` values that attend to vectors of `seen`.
    fn load(weights: &Weights, [width, seen]: [usize; 2], count: usize, heads: usize) -> Result<Self, ModelError> {
        if !width.is_multiple_of(heads) {
            return Err(weights.bad(format!(
                "expected an embed_dim that attn_pooler_heads divides, found {width} values and {heads} heads"
            )));
        }
        let attention = weights.at("attn");
        let bias = attention.values("in_proj_bias", &[3 * width])?;
        let packed = match attention.has("in_proj_weight") {
            // torch packs the three where all vectors are equally long.
            true => Some(attention.values("in_proj_weight", &[3 * width, seen])?),
            false => None,
        };
        let part = |i: usize, name: &str, inputs: usize| {
            let bias = &bias[i * width..][..width];
            match &packed {
                Some(packed) => Linear::new(weights.device(), &packed[i * width * inputs..][..width * inputs], bias),
                None => Linear::new(weights.device(), &attention.values(name, &[width, inputs])?, bias),
            }
        };
        let query = weights.tensor("query", &[count, width])?;
        let norm = LayerNorm::load(&weights.at("ln_q"), width, EPS)?;
        let projection = part(0, "q_proj_weight", width)?;
        let queries = norm.forward(&query).and_then(|query| projection.forward(&query)?.unsqueeze(0));
        Ok(Self {
            heads,
            queries: queries.map_err(compute("the pooling queries"))?,
            norm: LayerNorm::load(&weights.at("ln_k"), seen, EPS)?,
            keys: part(1, "k_proj_weight", seen)?,
            values: part(2, "v_proj_weight", seen)?,
            output: Linear::load(&attention.at("out_proj"), width, width, true)?,
        })
    }

    /// `[n, tokens, seen]` → `[n, queries, width]`.
    fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        let x = self.norm.forward(x)?;
        let (_, count, width) = self.queries.dims3()?;
        let queries = self.queries.broadcast_as((x.dim(0)?, count, width))?;
        let pooled = attention(&queries, &self.keys.forward(&x)?, &self.values.forward(&x)?, self.heads, None)?;
        self.output.forward(&pooled)
    }
}

impl VisionTower {
    fn load(config: &Config, weights: &Weights, dims: usize, activation: Activation) -> Result<Self, ModelError> {
        must_be_set(config, "attentional_pool")?;
        must_be_set(config, "output_tokens")?;
        config.only("pool_type", "tok")?;
        config.only("no_ln_pre", false)?;
        // Looked at in training, where the positions were first made, or without the attention pool.
        for inert in ["patch_dropout", "pos_embed_type", "final_ln_after_pool"] {
            config.value(inert);
        }
        let width = config.size_or("width", 768)?;
        let head_width = config.size_or("head_width", 64)?;
        if head_width > width {
            return Err(config.bad("head_width", format!("at most the width {width}"), head_width));
        }
        let heads = width / head_width;
        let shape = stack_shape(config, [width, heads], config.number_or("mlp_ratio", 4.0)?, activation)?;
        let (image_size, patch_size) = (config.size_or("image_size", 224)?, config.size_or("patch_size", 16)?);
        if patch_size > image_size {
            return Err(config.bad("patch_size", format!("at most the image's {image_size} pixels"), patch_size));
        }
        let queries = config.size_or("attn_pooler_queries", 256)?;
        let pool_heads = config.size_or("attn_pooler_heads", 8)?;
        config.finish()?;
        let tokens = (image_size / patch_size).pow(2) + 1;
        Ok(Self {
            image_size,
            patch_size,
            patch: patch_layer(&weights.at("conv1"), width, patch_size, false)?,
            class: weights.tensor("class_embedding", &[width])?,
            positions: weights.tensor("positional_embedding", &[tokens, width])?,
            pre_norm: LayerNorm::load(&weights.at("ln_pre"), width, EPS)?,
            stack: Stack::load(&weights.at("transformer.resblocks"), shape, NormPlace::Before, BlockNames::OPEN_CLIP)?,
            pool: AttentionPool::load(&weights.at("attn_pool"), [dims, width], queries, pool_heads)?,
            post_norm: LayerNorm::load(&weights.at("ln_post"), dims, EPS)?,
            projection: Linear::load_matrix(weights, "proj", dims, dims)?,
        })
    }

    /// Pixels `[n, 3, size, size]` → a vector for each query, `[n, queries, embed_dim]`: the first makes the image's vector,
    /// the others are what captions attend to.
    pub(crate) fn forward(&self, pixels: &Tensor) -> Candle<Tensor> {
        let x = with_class_token(&self.patch.forward(&patches(pixels, self.patch_size)?)?, &self.class)?;
        let x = self.pre_norm.forward(&x.broadcast_add(&self.positions)?)?;
        let x = self.stack.forward(x, None, &mut |_| ())?;
        self.post_norm.forward(&self.pool.forward(&x)?)
    }

    /// Images' vectors, not normalised, `[n, embed_dim]`.
    pub(crate) fn pooled(&self, queried: &Tensor) -> Candle<Tensor> {
        self.projection.forward(&queried.i((.., 0))?.contiguous()?)
    }

    /// What captions attend to, `[n, queries − 1, embed_dim]`.
    pub(crate) fn tokens(&self, queried: &Tensor) -> Candle<Tensor> {
        queried.narrow(1, 1, queried.dim(1)?.saturating_sub(1))?.contiguous()
    }
}

/// The text transformer: reads a text for its vector, and token by token for the decoder behind it.
#[derive(Debug)]
pub(crate) struct TextTower {
    words: Embedding,
    /// One more than the longest text has tokens.
    positions: Embedding,
    /// Stands behind every text and becomes its vector, `[width]`.
    class: Tensor,
    blocks: Decoder,
    norm: LayerNorm,
    projection: Linear,
    /// Longest text in tokens.
    pub(crate) longest: usize,
    /// The padding token.
    pub(crate) pad: u32,
}

impl TextTower {
    /// Gives the number of words too.
    fn load(
        config: &Config,
        weights: &Weights,
        dims: usize,
        activation: Activation,
    ) -> Result<(Self, usize), ModelError> {
        must_be_set(config, "embed_cls")?;
        must_be_set(config, "output_tokens")?;
        config.only("text_arch", "clip")?;
        config.only("no_causal_mask", false)?;
        config.only("proj_type", "linear")?;
        config.only("proj_bias", false)?;
        // Looked at in training, by open_clip's own tokenizers, or without a class token.
        for inert in ["variable_text", "hf_tokenizer_name", "bos_id", "eos_id", "pool_type", "final_ln_after_pool"] {
            config.value(inert);
        }
        let (width, heads) = (config.size_or("width", 512)?, config.size_or("heads", 8)?);
        let shape = stack_shape(config, [width, heads], config.number_or("mlp_ratio", 4.0)?, activation)?;
        let (longest, vocabulary) = (config.size_or("context_length", 77)?, config.size_or("vocab_size", 49408)?);
        let pad = config.id_if_there("pad_id")?.unwrap_or(0);
        config.finish()?;
        let blocks = weights.at("transformer.resblocks");
        let positions = weights.tensor("positional_embedding", &[longest + 1, width])?;
        let this = Self {
            words: Embedding::load(&weights.at("token_embedding"), vocabulary, width)?,
            positions: Embedding::new(positions),
            class: weights.tensor("cls_emb", &[width])?,
            blocks: Decoder::load(&blocks, shape, NormPlace::Before, BlockNames::OPEN_CLIP)?,
            norm: LayerNorm::load(&weights.at("ln_final"), width, EPS)?,
            projection: Linear::load_matrix(weights, "text_projection", width, dims)?,
            longest,
            pad,
        };
        Ok((this, vocabulary))
    }

    /// What is hidden from every token, of texts `[n, length]`: the place *behind* each padding token. open_clip's mask,
    /// with which its checkpoints were trained, stands one place too far, as if the class token were the first. So the
    /// class token of a padded text does not see itself. Gives 0 for a hidden place, 1 for any other, `[n, 1 + length]`.
    fn mask(&self, ids: &Tensor) -> Candle<Tensor> {
        let seen = ids.ne(self.pad)?.to_dtype(ids.dtype())?;
        Tensor::cat(&[Tensor::ones((ids.dim(0)?, 1), ids.dtype(), ids.device())?, seen], 1)
    }

    /// Token ids `[n, length]` → texts' vectors, not normalised, `[n, embed_dim]`, and those of their tokens, not normed,
    /// `[n, length, width]`.
    pub(crate) fn forward(&self, ids: &Tensor) -> Candle<(Tensor, Tensor)> {
        let (n, length) = ids.dims2()?;
        let width = self.class.dim(0)?;
        let class = self.class.reshape((1, 1, width))?.broadcast_as((n, 1, width))?;
        let x = Tensor::cat(&[&self.words.forward(ids)?, &class], 1)?;
        let x = x.broadcast_add(&self.positions.table().narrow(0, 0, length + 1)?)?;
        let bias = causal_bias(0, length + 1, Some(&self.mask(ids)?))?;
        let x = self.blocks.forward(x, Some(&bias), None, None, &mut |_| ())?;
        let pooled = self.projection.forward(&self.norm.forward(&x.i((.., length))?.contiguous()?)?)?;
        Ok((pooled, x.narrow(1, 0, length)?.contiguous()?))
    }

    /// A text as it is written: of all its tokens `[n, length]`, those behind `past` → their vectors, `[n, newest, width]`.
    /// None of them sees the class token.
    fn continue_with(&self, ids: &Tensor, past: &mut Past) -> Candle<Tensor> {
        let (length, before) = (ids.dim(1)?, past.len());
        let newest = ids.narrow(1, before, length - before)?;
        let bias = causal_bias(before, length - before, Some(&self.mask(ids)?.narrow(1, 0, length)?))?;
        let x = embed_behind(&self.words, &self.positions, before, &newest)?;
        self.blocks.forward(x, Some(&bias), Some(past), None, &mut |_| ())
    }
}

impl Coca {
    /// Reads the network of an `open_clip_config.json` with a `multimodal_cfg`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let dims = width(config)?;
        let model = part(config, "model_cfg")?;
        let [vision, text, multimodal] = ["vision_cfg", "text_cfg", "multimodal_cfg"].map(|name| part(&model, name));
        let (vision, text, multimodal) = (vision?, text?, multimodal?);
        let activation = if model.flag_or("quick_gelu", false)? { Activation::QuickGelu } else { Activation::Gelu };
        // The class, which multimodal_cfg decides, and what training begins with.
        for inert in ["embed_dim", "custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"] {
            model.value(inert);
        }
        model.finish()?;
        // Read by `processor`; the number that drew a fixture's weights.
        for other in ["preprocess_cfg", "seed"] {
            config.value(other);
        }
        config.finish()?;
        let (text, vocabulary) = TextTower::load(&text, &weights.at("text"), dims, activation)?;
        // The reference reads none of them: the words are those of text_cfg.
        for inert in ["vocab_size", "mlp_ratio", "dim_head", "n_queries", "attn_pooler_heads"] {
            multimodal.value(inert);
        }
        let (width, heads) = (multimodal.size_or("width", 512)?, multimodal.size_or("heads", 8)?);
        // The decoder goes on with the text tower's own vectors, and attends to those of the vision tower as they are.
        if width != dims || width != text.class.elem_count() {
            let expected = format!("embed_dim ({dims}) and text_cfg.width ({})", text.class.elem_count());
            return Err(multimodal.bad("width", expected, width));
        }
        let shape = stack_shape(&multimodal, [width, heads], 4.0, activation)?;
        let longest = multimodal.size_or("context_length", 77)?.min(text.longest);
        multimodal.finish()?;
        let place = weights.at("text_decoder");
        let blocks = (0..shape.layers).map(|i| block(&place, i, shape)).collect::<Result<_, _>>()?;
        let this = Self {
            vision: VisionTower::load(&vision, &weights.at("visual"), dims, activation)?,
            text,
            decoder: Decoder::new(&place, shape, NormPlace::Before, blocks)?,
            decoder_norm: LayerNorm::load(&place.at("ln_final"), width, EPS)?,
            words: Linear::load_matrix(&place, "text_projection", width, vocabulary)?,
            longest,
        };
        // What a similarity is multiplied by in training.
        weights.finish(&["logit_scale", "logit_bias"])?;
        Ok(this)
    }

    /// What the decoder makes of images' tokens ([`VisionTower::tokens`]).
    pub(crate) fn remember(&self, image: &Tensor) -> Candle<Memory> {
        self.decoder.remember(image, None)
    }

    /// Vectors of tokens behind `past` ([`TextTower`]) → a value for each word, `[n, length, vocabulary]`.
    pub(crate) fn logits(&self, tokens: Tensor, past: &mut Past, memory: &Memory) -> Candle<Tensor> {
        let bias = causal_bias(past.len(), tokens.dim(1)?, None)?;
        let x = self.decoder.forward(tokens, Some(&bias), Some(past), Some(memory), &mut |_| ())?;
        self.words.forward(&self.decoder_norm.forward(&x)?)
    }

    /// Writes behind `context` about the image whose tokens are `image`, `[1, length, width]`, until the token `end`.
    ///
    /// # Errors
    /// [`ModelError::NoRoom`], [`ModelError::BadWriting`].
    pub(crate) fn write(
        &self,
        image: &Tensor,
        context: &[u32],
        end: u32,
        writing: &Writing,
        seed: u64,
    ) -> Result<Written, ModelError> {
        let failed = compute("CoCa's text decoder");
        let memory = self.remember(image).map_err(&failed)?;
        let (mut read, mut decoded) = (Past::default(), Past::default());
        let mut ids = row(context).map_err(&failed)?;
        let mut next = |texts: Texts<'_>| {
            let mut run = || {
                if let (Some(newest), Texts::Grown { from, .. }) = (texts.follow([&mut read, &mut decoded])?, texts) {
                    let from = Tensor::from_iter(from.iter().map(|&text| text as u32), ids.device())?;
                    ids = Tensor::cat(&[&ids.index_select(&from, 0)?, &newest], 1)?;
                }
                let tokens = self.text.continue_with(&ids, &mut read)?;
                last(&self.logits(tokens, &mut decoded, &memory)?)
            };
            run().map_err(&failed)
        };
        let room = room(context.len(), self.longest)?;
        write(writing, seed, context, Ending::at(&[end]), room, &mut next, &mut |_| ())
    }
}

/// Block `i` of the decoder: attention to the text itself (`resblocks`), then to the image (`cross_attn`), each with
/// feed-forward layers behind it.
fn block(weights: &Weights, i: usize, shape: StackShape) -> Result<DecoderBlock, ModelError> {
    let StackShape { width, eps, .. } = shape;
    let names = BlockNames::OPEN_CLIP;
    let own = DecoderBlock::load(&weights.at("resblocks").at(i), shape, names)?;
    let place = weights.at("cross_attn").at(i);
    let cross = DecoderBlock::load(&place, shape, names)?;
    let attention = place.at("attn");
    let (weight, bias) =
        (attention.values("in_proj_weight", &[3 * width, width])?, attention.values("in_proj_bias", &[3 * width])?);
    let (query, key_value) = weight.split_at(width * width);
    Ok(DecoderBlock {
        inner_norms: None,
        cross: Some(CrossAttention {
            before: Some(FeedForward { up: own.up, down: own.down, norm: own.feed_forward_norm }),
            memory_norm: Some(Norm::Layer(LayerNorm::load(&place.at("ln_1_kv"), width, eps)?)),
            query: Linear::new(weights.device(), query, &bias[..width])?,
            key_value: Linear::new(weights.device(), key_value, &bias[width..])?,
            output: cross.output,
            norm: cross.attention_norm,
        }),
        up: cross.up,
        down: cross.down,
        feed_forward_norm: cross.feed_forward_norm,
        ..own
    })
}

impl Towers for Coca {
    fn images(&self, pixels: &Tensor) -> Candle<Tensor> {
        self.vision.pooled(&self.vision.forward(pixels)?)
    }

    /// Texts are padded to the longest, as in training: the class token's place is behind the padding.
    fn texts(&self, ids: &Tensor) -> Candle<Tensor> {
        let (n, length) = ids.dims2()?;
        let padding = Tensor::full(self.text.pad, (n, self.text.longest.saturating_sub(length)), ids.device())?;
        Ok(self.text.forward(&Tensor::cat(&[ids, &padding], 1)?)?.0)
    }
}
