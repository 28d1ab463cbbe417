//! The two transformer blocks that the encoders here are made of, with the names that checkpoints give their parts.

use candle_core::Tensor;

use crate::{
    ModelError,
    layers::{Activation, LayerNorm, Linear, attention, self_attention},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// Where a block's parts lie in a checkpoint, behind the block's own place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockNames {
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) output: &'static str,
    /// The norm of the attention: before it, or after it.
    pub(crate) attention_norm: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// The norm of the feed-forward layers.
    pub(crate) feed_forward_norm: &'static str,
    /// The factors that the attention's output is multiplied by.
    pub(crate) attention_scale: Option<&'static str>,
    /// The same of the feed-forward layers.
    pub(crate) feed_forward_scale: Option<&'static str>,
    /// Whether the keys' layer has a bias.
    pub(crate) key_bias: bool,
    /// What the names of one layer in the place of `query`, `key` and `value` begin with, before `weight` and `bias`:
    /// their outputs side by side.
    pub(crate) fused: Option<&'static str>,
    /// What the names of a key and a value begin with that every sequence has behind its own, before `k` and `v`.
    pub(crate) extra: Option<&'static str>,
    /// Where the biases of queries and values lie when not beside their weights; keys have none then.
    pub(crate) apart: Option<[&'static str; 2]>,
}

impl BlockNames {
    /// CLIP, SigLIP, OWL-ViT: text and vision.
    pub(crate) const CLIP: Self = Self {
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        output: "self_attn.out_proj",
        attention_norm: "layer_norm1",
        up: "mlp.fc1",
        down: "mlp.fc2",
        feed_forward_norm: "layer_norm2",
        attention_scale: None,
        feed_forward_scale: None,
        key_bias: true,
        fused: None,
        extra: None,
        apart: None,
    };
    /// BLIP and BLIP-2: vision.
    pub(crate) const BLIP: Self = Self { fused: Some("self_attn.qkv."), output: "self_attn.projection", ..Self::CLIP };
    /// open_clip's towers.
    pub(crate) const OPEN_CLIP: Self = Self {
        fused: Some("attn.in_proj_"),
        output: "attn.out_proj",
        attention_norm: "ln_1",
        up: "mlp.c_fc",
        down: "mlp.c_proj",
        feed_forward_norm: "ln_2",
        ..Self::CLIP
    };
    /// ImageBind's towers of images and texts.
    pub(crate) const IMAGEBIND: Self = Self {
        fused: Some("attn.in_proj_"),
        output: "attn.out_proj",
        attention_norm: "norm_1",
        feed_forward_norm: "norm_2",
        ..Self::CLIP
    };
    /// ViT.
    pub(crate) const VIT: Self = Self {
        query: "attention.attention.query",
        key: "attention.attention.key",
        value: "attention.attention.value",
        output: "attention.output.dense",
        attention_norm: "layernorm_before",
        up: "intermediate.dense",
        down: "output.dense",
        feed_forward_norm: "layernorm_after",
        ..Self::CLIP
    };
    /// BEiT: as ViT, with factors, and keys without a bias.
    pub(crate) const BEIT: Self =
        Self { attention_scale: Some("lambda_1"), feed_forward_scale: Some("lambda_2"), key_bias: false, ..Self::VIT };
    /// VideoMAE.
    pub(crate) const VIDEOMAE: Self = Self {
        key_bias: false,
        apart: Some(["attention.attention.q_bias", "attention.attention.v_bias"]),
        ..Self::VIT
    };
    /// DINOv2.
    pub(crate) const DINOV2: Self = Self {
        attention_norm: "norm1",
        up: "mlp.fc1",
        down: "mlp.fc2",
        feed_forward_norm: "norm2",
        attention_scale: Some("layer_scale1.lambda1"),
        feed_forward_scale: Some("layer_scale2.lambda1"),
        ..Self::VIT
    };
    /// BERT, RoBERTa.
    pub(crate) const BERT: Self = Self {
        query: "attention.self.query",
        key: "attention.self.key",
        value: "attention.self.value",
        output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        up: "intermediate.dense",
        down: "output.dense",
        feed_forward_norm: "output.LayerNorm",
        ..Self::CLIP
    };
    /// MPNet.
    pub(crate) const MPNET: Self = Self {
        query: "attention.attn.q",
        key: "attention.attn.k",
        value: "attention.attn.v",
        output: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        ..Self::BERT
    };
    /// wav2vec 2.0, HuBERT.
    pub(crate) const WAV2VEC2: Self = Self {
        query: "attention.q_proj",
        key: "attention.k_proj",
        value: "attention.v_proj",
        output: "attention.out_proj",
        attention_norm: "layer_norm",
        up: "feed_forward.intermediate_dense",
        down: "feed_forward.output_dense",
        feed_forward_norm: "final_layer_norm",
        ..Self::CLIP
    };

    /// Queries, keys and values of the block at `weights`, side by side.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load_qkv(&self, weights: &Weights, width: usize) -> Result<Linear, ModelError> {
        let parts = [(self.query, true), (self.key, self.key_bias), (self.value, true)];
        if let Some([query, value]) = self.apart.filter(|[query, _]| weights.has(query)) {
            let weight = parts.map(|(name, _)| weights.values(&format!("{name}.weight"), &[width, width]));
            let weight = weight.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
            let bias = [weights.values(query, &[width])?, vec![0.0; width], weights.values(value, &[width])?];
            return Linear::new(weights.device(), &weight, &bias.concat());
        }
        match self.fused {
            Some(fused) => Linear::new(
                weights.device(),
                &weights.values(&format!("{fused}weight"), &[3 * width, width])?,
                &weights.values(&format!("{fused}bias"), &[3 * width])?,
            ),
            None => Linear::load_fused(&parts.map(|(name, bias)| (weights.at(name), bias)), width, width),
        }
    }
}

/// Sizes of a stack of blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StackShape {
    pub(crate) layers: usize,
    /// Length of a token's vector.
    pub(crate) width: usize,
    pub(crate) heads: usize,
    /// Length of the vector inside the feed-forward layers.
    pub(crate) inner: usize,
    pub(crate) activation: Activation,
    pub(crate) eps: f64,
}

/// Where the norms of a block lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// x + f(norm(x)): Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020.
    Before,
    /// norm(x + f(x)), as in the first transformer.
    After,
}

/// Blocks one behind the other.
#[derive(Debug)]
pub(crate) struct Stack {
    norms: NormPlace,
    heads: usize,
    activation: Activation,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    qkv: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    feed_forward_norm: LayerNorm,
    /// Added to the scores of this block, `[1, heads, length, length]`.
    bias: Option<Tensor>,
    /// A key and a value behind those of every sequence, `[1, 1, width]` each.
    extra: Option<[Tensor; 2]>,
}

impl Stack {
    /// Reads the blocks at the places `0`, `1`, … of `weights`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`]; [`ModelError::BadConfig`] where the heads do not divide the width.
    pub(crate) fn load(
        weights: &Weights,
        shape: StackShape,
        norms: NormPlace,
        names: BlockNames,
    ) -> Result<Self, ModelError> {
        if !shape.width.is_multiple_of(shape.heads) {
            return Err(weights.bad(format!(
                "expected a width that the heads divide, found {} values and {} heads in config.json",
                shape.width, shape.heads
            )));
        }
        let blocks = (0..shape.layers).map(|i| Block::load(&weights.at(i), shape, names)).collect::<Result<_, _>>()?;
        Ok(Self { norms, heads: shape.heads, activation: shape.activation, blocks })
    }

    /// The blocks.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Gives the block `i` a bias of its own on its scores, `[1, heads, length, length]`.
    pub(crate) fn set_bias(&mut self, i: usize, bias: Tensor) {
        self.blocks[i].bias = Some(bias);
    }

    /// `[batch, length, width]` → the same; `bias` is added to the scores of every block (see
    /// [`crate::layers::self_attention`]). `each` sees the output of every block.
    pub(crate) fn forward(&self, x: Tensor, bias: Option<&Tensor>, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        self.forward_some(self.len(), x, bias, each)
    }

    /// As [`Stack::forward`], through the first `count` blocks only.
    pub(crate) fn forward_some(
        &self,
        count: usize,
        x: Tensor,
        bias: Option<&Tensor>,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor> {
        // Once for all blocks.
        let bias = bias.map(|bias| bias.to_device(x.device())).transpose()?;
        let (mut x, bias) = (x, bias.as_ref());
        for block in self.blocks.iter().take(count) {
            let both = match (bias, &block.bias) {
                (Some(bias), Some(own)) => Some(bias.broadcast_add(own)?),
                (bias, own) => bias.or(own.as_ref()).cloned(),
            };
            let attend = |x: &Tensor| block.attend(&block.qkv.forward(x)?, self.heads, both.as_ref());
            x = match self.norms {
                NormPlace::Before => {
                    let x = block.output.forward_onto(&attend(&block.attention_norm.forward(&x)?)?, &x)?;
                    let inner = block.feed_forward_norm.forward(&x)?;
                    block.down.forward_onto(&block.up.forward_activated(&inner, self.activation)?, &x)?
                }
                NormPlace::After => {
                    let x = block.attention_norm.forward(&block.output.forward_onto(&attend(&x)?, &x)?)?;
                    let inner = block.up.forward_activated(&x, self.activation)?;
                    block.feed_forward_norm.forward(&block.down.forward_onto(&inner, &x)?)?
                }
            };
            each(&x);
        }
        Ok(x)
    }
}

impl Block {
    fn load(weights: &Weights, shape: StackShape, names: BlockNames) -> Result<Self, ModelError> {
        let StackShape { width, inner, eps, .. } = shape;
        let scaled = |name: &str, inputs: usize, scale: Option<&str>| match scale {
            None => Linear::load(&weights.at(name), inputs, width, true),
            Some(scale) => scaled(&weights.at(name), inputs, &weights.values(scale, &[width])?),
        };
        Ok(Self {
            qkv: names.load_qkv(weights, width)?,
            output: scaled(names.output, width, names.attention_scale)?,
            attention_norm: LayerNorm::load(&weights.at(names.attention_norm), width, eps)?,
            up: Linear::load(&weights.at(names.up), width, inner, true)?,
            down: scaled(names.down, inner, names.feed_forward_scale)?,
            feed_forward_norm: LayerNorm::load(&weights.at(names.feed_forward_norm), width, eps)?,
            bias: None,
            extra: match names.extra {
                None => None,
                Some(extra) => {
                    let row = |part: &str| weights.tensor(&format!("{extra}{part}"), &[1, 1, width]);
                    Some([row("k")?, row("v")?])
                }
            },
        })
    }

    /// Attention of each sequence to itself, and to this block's own key; as [`self_attention`].
    fn attend(&self, qkv: &Tensor, heads: usize, bias: Option<&Tensor>) -> Candle<Tensor> {
        let Some(extra) = &self.extra else { return self_attention(qkv, heads, bias) };
        let (batch, _, triple) = qkv.dims3()?;
        let width = triple / 3;
        let part = |i: usize| qkv.narrow(2, i * width, width)?.contiguous();
        let longer =
            |i: usize| Tensor::cat(&[part(i)?, extra[i - 1].broadcast_as((batch, 1, width))?.contiguous()?], 1);
        attention(&part(0)?, &longer(1)?, &longer(2)?, heads, bias)
    }
}

/// A layer whose outputs are multiplied by `scale` (Touvron et al., "Going deeper with Image Transformers", 2021,
/// LayerScale): the factors go into weight and bias.
fn scaled(weights: &Weights, inputs: usize, scale: &[f32]) -> Result<Linear, ModelError> {
    let outputs = scale.len();
    let mut weight = weights.values("weight", &[outputs, inputs])?;
    let mut bias = weights.values("bias", &[outputs])?;
    for ((row, bias), &factor) in weight.chunks_exact_mut(inputs).zip(&mut bias).zip(scale) {
        row.iter_mut().for_each(|x| *x *= factor);
        *bias *= factor;
    }
    Linear::new(weights.device(), &weight, &bias)
}
