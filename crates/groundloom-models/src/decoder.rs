//! Transformer blocks that write texts: what came before is kept as keys and values, and what a text is about (an
//! image, a sentence) is attended to between the tokens and the feed-forward layers. Without either they are encoders.

use candle_core::{Device, Tensor};

use crate::{
    ModelError,
    device::by_kernels,
    layers::{Activation, LayerNorm, Linear, RmsNorm, attention_scaled},
    transformer::{BlockNames, NormPlace, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// Blocks one behind the other.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(crate) norms: NormPlace,
    pub(crate) heads: usize,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    pub(crate) activation: Activation,
    /// How queries and keys are turned by their places, where positions are told so.
    pub(crate) rotary: Option<Rotary>,
    pub(crate) blocks: Vec<DecoderBlock>,
}

/// One block.
#[derive(Debug)]
pub(crate) struct DecoderBlock {
    /// Queries, keys and values side by side.
    pub(crate) qkv: Linear,
    /// The norms of each head's queries and of its keys (Qwen3).
    pub(crate) head_norms: Option<[RmsNorm; 2]>,
    pub(crate) output: Linear,
    pub(crate) attention_norm: Norm,
    pub(crate) cross: Option<CrossAttention>,
    pub(crate) up: Linear,
    /// What the activated values are multiplied by (Shazeer, "GLU Variants Improve Transformer", 2020).
    pub(crate) gate: Option<Linear>,
    pub(crate) down: Linear,
    pub(crate) feed_forward_norm: Norm,
    /// Before the last layer of the attention and of the feed-forward layers (Wang et al., "Foundation Transformers", 2022).
    pub(crate) inner_norms: Option<[LayerNorm; 2]>,
}

/// Attention to what a text is about.
#[derive(Debug)]
pub(crate) struct CrossAttention {
    /// What lies between the attention to the text itself and this one (CoCa).
    pub(crate) before: Option<FeedForward>,
    /// The norm of what is attended to (CoCa).
    pub(crate) memory_norm: Option<Norm>,
    pub(crate) query: Linear,
    /// Keys and values side by side, from what is attended to.
    pub(crate) key_value: Linear,
    pub(crate) output: Linear,
    pub(crate) norm: Norm,
}

/// Layers of one token by itself.
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) norm: Norm,
}

/// A norm over the last axis.
#[derive(Debug, Clone)]
pub(crate) enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

/// Keys and values of the tokens that came before, by block: `[batch, length, width]` each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    blocks: Vec<[Tensor; 2]>,
}

impl Past {
    /// How many tokens came before.
    pub(crate) fn len(&self) -> usize {
        self.blocks.first().and_then(|[keys, _]| keys.dim(1).ok()).unwrap_or(0)
    }

    /// Puts the text `from[i]` in the place `i`: a text may come to stand in several places, or in none.
    pub(crate) fn keep(&mut self, from: &[usize]) -> Candle<()> {
        let Some(texts) = self.blocks.first().map(|[keys, _]| keys.dim(0)).transpose()? else { return Ok(()) };
        if from.iter().copied().eq(0..texts) {
            return Ok(());
        }
        let from = Tensor::from_iter(from.iter().map(|&text| text as u32), &Device::Cpu)?;
        for kept in self.blocks.iter_mut().flatten() {
            *kept = kept.index_select(&from.to_device(kept.device())?, 0)?;
        }
        Ok(())
    }

    /// The keys and values of block `i` with those of the newest tokens behind them.
    fn extend(&mut self, i: usize, newest: [Tensor; 2]) -> Candle<[Tensor; 2]> {
        if let Some(block) = self.blocks.get_mut(i) {
            for (known, newest) in block.iter_mut().zip(&newest) {
                *known = Tensor::cat(&[&*known, newest], 1)?;
            }
            return Ok(block.clone());
        }
        self.blocks.push(newest.clone());
        Ok(newest)
    }
}

/// What a text is about, as the blocks see it: keys and values by block, `[batch, length, width]` each, and what is
/// added to the scores, `[batch, 1, 1, length]`. A block without attention to it has none.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    blocks: Vec<Option<[Tensor; 2]>>,
    bias: Option<Tensor>,
}

impl Memory {
    /// The keys of block `i`.
    pub(crate) fn keys(&self, i: usize) -> Option<&Tensor> {
        self.blocks.get(i)?.as_ref().map(|[keys, _]| keys)
    }
}

impl Decoder {
    /// Reads blocks of layer norms at the places `0`, `1`, … of `weights`, without attention to anything else.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`]; [`ModelError::BadConfig`] where the heads do not divide the width.
    pub(crate) fn load(
        weights: &Weights,
        shape: StackShape,
        norms: NormPlace,
        names: BlockNames,
    ) -> Result<Self, ModelError> {
        let blocks = (0..shape.layers).map(|i| DecoderBlock::load(&weights.at(i), shape, names));
        Self::new(weights, shape, norms, blocks.collect::<Result<_, _>>()?)
    }

    /// Of blocks read already; `weights` is where they were read.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] where the heads do not divide the width.
    pub(crate) fn new(
        weights: &Weights,
        shape: StackShape,
        norms: NormPlace,
        blocks: Vec<DecoderBlock>,
    ) -> Result<Self, ModelError> {
        let StackShape { width, heads, activation, .. } = shape;
        if !width.is_multiple_of(heads) {
            return Err(weights.bad(format!(
                "expected a width that the heads divide, found {width} values and {heads} heads in config.json"
            )));
        }
        Ok(Self { norms, heads, scale: 1.0 / ((width / heads) as f32).sqrt(), activation, rotary: None, blocks })
    }

    /// What the blocks make of `x` (`[batch, length, width of what is attended to]`); `bias` is added to the scores,
    /// `[batch, 1, 1, length]`.
    pub(crate) fn remember(&self, x: &Tensor, bias: Option<Tensor>) -> Candle<Memory> {
        let keys_values = |block: &DecoderBlock| {
            let of = |cross: &CrossAttention| {
                let normed = cross.memory_norm.as_ref().map(|norm| norm.forward(x)).transpose()?;
                halves(&cross.key_value.forward(normed.as_ref().unwrap_or(x))?)
            };
            block.cross.as_ref().map(of).transpose()
        };
        let blocks: Vec<Option<[Tensor; 2]>> = self.blocks.iter().map(keys_values).collect::<Candle<_>>()?;
        // To where the keys are, once for all tokens that are written.
        let there = blocks.iter().flatten().map(|[keys, _]| keys.device()).next();
        let bias = bias.map(|bias| there.map_or(Ok(bias.clone()), |device| bias.to_device(device))).transpose()?;
        Ok(Memory { blocks, bias })
    }

    /// `[batch, length, width]` → the same. `bias` is added to the scores, `[batch or 1, heads or 1, length or 1, past +
    /// length]`; `past` grows by these tokens; without `memory` nothing else is attended to, and a memory of one sequence is
    /// that of all. `each` sees the output of every block.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        bias: Option<&Tensor>,
        past: Option<&mut Past>,
        memory: Option<&Memory>,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor> {
        self.forward_watched(x, bias, past, memory, each, &mut |_, _| Ok(()))
    }

    /// As [`Decoder::forward`]; `asks` sees the number of every block that attends to the memory, and its queries, `[batch,
    /// length, width]`.
    pub(crate) fn forward_watched(
        &self,
        x: Tensor,
        bias: Option<&Tensor>,
        mut past: Option<&mut Past>,
        memory: Option<&Memory>,
        each: &mut dyn FnMut(&Tensor),
        asks: &mut dyn FnMut(usize, &Tensor) -> Candle<()>,
    ) -> Candle<Tensor> {
        // Once for all blocks.
        let bias = bias.map(|bias| bias.to_device(x.device())).transpose()?;
        let (mut x, bias) = (x, bias.as_ref());
        let before = past.as_ref().map_or(0, |past| past.len());
        for (i, block) in self.blocks.iter().enumerate() {
            x = self.around(&block.attention_norm, x, |input, residual| {
                let qkv = block.qkv.forward(input)?;
                let width = qkv.dim(2)? / 3;
                let part = |i: usize| qkv.narrow(2, i * width, width)?.contiguous();
                let [query_norm, key_norm] =
                    block.head_norms.as_ref().map_or([None; 2], |norms| norms.each_ref().map(Some));
                let turned = |x: Tensor, norm: Option<&RmsNorm>| {
                    let x = norm.map_or(Ok(x.clone()), |norm| each_head(&x, self.heads, norm))?;
                    self.rotary.as_ref().map_or(Ok(x.clone()), |rotary| rotary.turn(&x, self.heads, before))
                };
                let newest = [turned(part(1)?, key_norm)?, part(2)?];
                let [keys, values] = match &mut past {
                    Some(past) => past.extend(i, newest)?,
                    None => newest,
                };
                let queries = turned(part(0)?, query_norm)?;
                let mut attended = attention_scaled(&queries, &keys, &values, self.heads, self.scale, bias)?;
                if let Some([norm, _]) = &block.inner_norms {
                    attended = norm.forward(&attended)?;
                }
                block.output.forward_onto(&attended, residual)
            })?;
            let remembered = memory.and_then(|memory| memory.blocks.get(i)?.as_ref().map(|both| (both, &memory.bias)));
            if let (Some(cross), Some(([keys, values], bias))) = (&block.cross, remembered) {
                if let Some(FeedForward { up, down, norm }) = &cross.before {
                    x = self.around(norm, x, |input, residual| {
                        down.forward_onto(&up.forward_activated(input, self.activation)?, residual)
                    })?;
                }
                x = self.around(&cross.norm, x, |input, residual| {
                    let queries = cross.query.forward(input)?;
                    asks(i, &queries)?;
                    let (batch, length, width) = queries.dims3()?;
                    // Where all sequences attend to one memory, their queries are those of one sequence.
                    let shared = batch > 1 && keys.dim(0)? == 1;
                    let queries = if shared { queries.reshape((1, batch * length, width))? } else { queries };
                    let attended = attention_scaled(&queries, keys, values, self.heads, self.scale, bias.as_ref())?;
                    let attended = if shared { attended.reshape((batch, length, ()))? } else { attended };
                    cross.output.forward_onto(&attended, residual)
                })?;
            }
            x = self.around(&block.feed_forward_norm, x, |input, residual| {
                let mut inner = block.up.forward_activated(input, self.activation)?;
                if let Some(gate) = &block.gate {
                    inner = (inner * gate.forward(input)?)?;
                }
                if let Some([_, norm]) = &block.inner_norms {
                    inner = norm.forward(&inner)?;
                }
                block.down.forward_onto(&inner, residual)
            })?;
            each(&x);
        }
        Ok(x)
    }

    /// `f` is given what it computes on and what it adds that to.
    fn around(&self, norm: &Norm, x: Tensor, f: impl FnOnce(&Tensor, &Tensor) -> Candle<Tensor>) -> Candle<Tensor> {
        match self.norms {
            NormPlace::Before => f(&norm.forward(&x)?, &x),
            NormPlace::After => norm.forward(&f(&x, &x)?),
        }
    }
}

/// Turns queries and keys by their places (Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
/// 2021): value `i` of a head's first half and of its second are a point.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    /// By how much a point is turned from one place to the next.
    speeds: Vec<f32>,
    /// What the turned points are multiplied by.
    length: f32,
}

impl Rotary {
    /// Point `i` of a head of `width` values turns by `base^(−2i / width)`.
    pub(crate) fn new(base: f64, width: usize) -> Self {
        // In single precision, as the reference multiplies them.
        let speed = |i: usize| 1.0 / (base as f32).powf((2 * i) as f32 / width as f32);
        Self { speeds: (0..width / 2).map(speed).collect(), length: 1.0 }
    }

    /// Every point turns `factor` times slower (Chen et al., "Extending Context Window of Large Language Models via
    /// Positional Interpolation", 2023).
    pub(crate) fn slower(mut self, factor: f64) -> Self {
        self.speeds.iter_mut().for_each(|speed| *speed /= factor as f32);
        self
    }

    /// Point `i` turns `factors[i]` times slower, as GGUF files hold it for Llama 3.1 (`rope_freqs.weight`).
    pub(crate) fn slower_each(mut self, factors: &[f32]) -> Self {
        self.speeds.iter_mut().zip(factors).for_each(|(speed, factor)| *speed /= factor);
        self
    }

    /// YaRN (Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023): points that turn more than `fast` times in the `original` length that the
    /// model was trained with turn as before, those that turn less than `slow` times `factor` times slower, others in between by their place among the points; all become `length`
    /// times as long, which by default is `0.1 ln(factor) + 1`. `base` is what the speeds were made with. As transformers and llama.cpp compute it: bounds are whole points.
    pub(crate) fn yarn(
        mut self,
        base: f64,
        factor: f64,
        [fast, slow]: [f64; 2],
        original: f64,
        length: Option<f64>,
    ) -> Self {
        let width = 2 * self.speeds.len();
        let point =
            |turns: f64| width as f64 * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln());
        let (low, mut high) = (point(fast).floor().max(0.0), point(slow).ceil().min(width as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        for (i, speed) in self.speeds.iter_mut().enumerate() {
            let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let before = f64::from(*speed);
            *speed = (before / factor * slowed + before * (1.0 - slowed)) as f32;
        }
        self.length = length.unwrap_or_else(|| if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }) as f32;
        self
    }

    /// As Llama 3.1 reads texts longer than the `original` length it was trained with: points that turn less than `low`
    /// times in it turn `factor` times slower, those that turn more than `high` times as before, others in between.
    pub(crate) fn slower_where_slow(mut self, factor: f64, [low, high]: [f64; 2], original: usize) -> Self {
        for speed in &mut self.speeds {
            let wave = 2.0 * std::f64::consts::PI / f64::from(*speed);
            let turns = original as f64 / wave;
            let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            *speed = ((1.0 - share) * f64::from(*speed) / factor + share * f64::from(*speed)) as f32;
        }
        self
    }

    /// Turns the vectors of all heads, `[batch, length, heads · width]`, the first being at the place `before`.
    pub(crate) fn turn(&self, x: &Tensor, heads: usize, before: usize) -> Candle<Tensor> {
        let (batch, length, whole) = x.dims3()?;
        let width = whole / heads;
        if !by_kernels(x) {
            let (sines, cosines): (Vec<f32>, Vec<f32>) = (before..before + length)
                .flat_map(|place| self.speeds.iter().map(move |speed| (place as f32 * speed).sin_cos()))
                .map(|(sine, cosine)| (sine * self.length, cosine * self.length))
                .unzip();
            // [batch, length, heads, halves, width / 2] by [length, 1, width / 2]
            let row = |values| Tensor::from_vec(values, (length, 1, width / 2), x.device());
            let (sines, cosines) = (row(sines)?, row(cosines)?);
            let halves = x.reshape((batch, length, heads, 2, width / 2))?;
            let half = |i: usize| halves.narrow(3, i, 1)?.squeeze(3)?.contiguous();
            let (a, b) = (half(0)?, half(1)?);
            let turned = |of: &Tensor, by: &Tensor| of.broadcast_mul(by);
            let first = (turned(&a, &cosines)? - turned(&b, &sines)?)?;
            let second = (turned(&b, &cosines)? + turned(&a, &sines)?)?;
            return Tensor::stack(&[first, second], 3)?.reshape((batch, length, whole));
        }
        let mut values = x.flatten_all()?.to_vec1::<f32>()?;
        for (row, values) in values.chunks_exact_mut(whole).enumerate() {
            let place = (before + row % length) as f32;
            for head in values.chunks_exact_mut(width) {
                let (first, second) = head.split_at_mut(width / 2);
                for ((a, b), speed) in first.iter_mut().zip(second).zip(&self.speeds) {
                    let (sine, cosine) = (place * speed).sin_cos();
                    let (sine, cosine) = (sine * self.length, cosine * self.length);
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        }
        Tensor::from_vec(values, x.dims(), x.device())
    }
}

/// The norm of each head's vectors by themselves, `[batch, length, heads · width]`.
fn each_head(x: &Tensor, heads: usize, norm: &RmsNorm) -> Candle<Tensor> {
    let (batch, length, whole) = x.dims3()?;
    norm.forward(&x.reshape((batch, length, heads, whole / heads))?)?.reshape((batch, length, whole))
}

/// `[batch, length, 2 · width]` as two of `[batch, length, width]`.
fn halves(x: &Tensor) -> Candle<[Tensor; 2]> {
    let width = x.dim(2)? / 2;
    Ok([x.narrow(2, 0, width)?.contiguous()?, x.narrow(2, width, width)?.contiguous()?])
}

impl DecoderBlock {
    /// Reads a block of layer norms.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(weights: &Weights, shape: StackShape, names: BlockNames) -> Result<Self, ModelError> {
        let StackShape { width, inner, eps, .. } = shape;
        let norm = |name: &str| LayerNorm::load(&weights.at(name), width, eps).map(Norm::Layer);
        Ok(Self {
            qkv: names.load_qkv(weights, width)?,
            head_norms: None,
            output: Linear::load(&weights.at(names.output), width, width, true)?,
            attention_norm: norm(names.attention_norm)?,
            cross: None,
            up: Linear::load(&weights.at(names.up), width, inner, true)?,
            gate: None,
            down: Linear::load(&weights.at(names.down), inner, width, true)?,
            feed_forward_norm: norm(names.feed_forward_norm)?,
            inner_norms: None,
        })
    }
}

impl CrossAttention {
    /// Reads attention to vectors of `memory` values as BERT names its parts: `ATTENTION.query`, `.key`, `.value`,
    /// `output.dense`, `output.LayerNorm`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(
        weights: &Weights,
        attention: &str,
        shape: StackShape,
        memory: usize,
    ) -> Result<Self, ModelError> {
        let StackShape { width, eps, .. } = shape;
        let inner = weights.at(attention);
        let output = weights.at("output");
        Ok(Self {
            before: None,
            memory_norm: None,
            query: Linear::load(&inner.at("query"), width, width, true)?,
            key_value: Linear::load_fused(&[(inner.at("key"), true), (inner.at("value"), true)], memory, width)?,
            output: Linear::load(&output.at("dense"), width, width, true)?,
            norm: Norm::Layer(LayerNorm::load(&output.at("LayerNorm"), width, eps)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The speeds are those of transformers 5 (`ROPE_INIT_FUNCTIONS["yarn"]`).
    #[test]
    fn yarn_turns_points_as_transformers_does() {
        for (width, base, factor, original, betas, length, speeds, expected) in [
            (8, 1e4, 4.0, 64.0, [32.0, 1.0], None, &[1.0, 0.0625, 0.002_5, 0.000_25][..], 1.138_629_4),
            (
                16,
                1e6,
                2.5,
                128.0,
                [16.0, 2.0],
                None,
                &[
                    1.0,
                    0.124_479_56,
                    0.012_649_111,
                    0.002_249_365_2,
                    0.000_4,
                    7.113_117e-5,
                    1.264_911e-5,
                    2.249_365_3e-6,
                ],
                1.091_629,
            ),
            (8, 1e4, 4.0, 4096.0, [32.0, 1.0], Some(1.25), &[1.0, 0.1, 0.006_25, 0.000_25], 1.25),
            (128, 1e6, 4.0, 32_768.0, [32.0, 1.0], None, &[1.0, 0.805_842_2, 0.649_381_64, 0.523_299_16], 1.138_629_4),
        ] {
            let rotary = Rotary::new(base, width).yarn(base, factor, betas, original, length);
            assert_eq!(rotary.speeds.len(), width / 2);
            for (found, wanted) in rotary.speeds.iter().zip(speeds) {
                assert!((found / wanted - 1.0).abs() < 1e-5, "{width}: {found} {wanted}");
            }
            assert!((rotary.length - expected).abs() < 1e-6);
        }
    }
}
