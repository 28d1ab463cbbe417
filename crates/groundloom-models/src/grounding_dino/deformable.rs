//! Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021, section 4.1, equation 3).

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::{
    ModelError,
    kernels::{Isa, Maps},
    layers::{Linear, with_values},
    weights::Weights,
};

/// Queries that one task samples for.
const QUERIES_PER_TASK: usize = 64;

/// Where the maps of several levels lie in one list of tokens, finest first.
#[derive(Debug, Clone)]
pub(crate) struct Levels {
    /// Height and width of each.
    pub(crate) sizes: Vec<(usize, usize)>,
}

impl Levels {
    /// Tokens of all levels.
    pub(crate) fn tokens(&self) -> usize {
        self.sizes.iter().map(|(height, width)| height * width).sum()
    }

    /// First token, height and width of each level.
    pub(crate) fn placed(&self) -> Vec<(usize, usize, usize)> {
        let mut start = 0;
        let place = |&(height, width): &(usize, usize)| {
            let placed = (start, height, width);
            start += height * width;
            placed
        };
        self.sizes.iter().map(place).collect()
    }
}

/// Where queries look from: `[batch, queries, levels, 2]` points, or `[…, 4]` boxes (centre, size); fractions of each
/// level's padded map.
pub(crate) enum References<'a> {
    Points(&'a Tensor),
    Boxes(&'a Tensor),
}

/// One layer's attention.
pub(crate) struct DeformableAttention {
    heads: usize,
    levels: usize,
    points: usize,
    width: usize,
    offsets: Linear,
    weights: Linear,
    value: Linear,
    output: Linear,
}

/// What one call saw and gave, for comparison with the reference.
#[derive(Debug, Clone)]
pub(crate) struct Sampling {
    /// `[batch, tokens, heads, width / heads]`.
    pub(crate) value: Tensor,
    /// `[batch, queries, heads, levels, points, 2]`: x, y.
    pub(crate) locations: Tensor,
    /// `[batch, queries, heads, levels, points]`.
    pub(crate) weights: Tensor,
    /// `[batch, queries, width]`, before the output's projection.
    pub(crate) output: Tensor,
}

impl DeformableAttention {
    pub(crate) fn load(
        weights: &Weights,
        width: usize,
        heads: usize,
        levels: usize,
        points: usize,
    ) -> std::result::Result<Self, ModelError> {
        let samples = heads * levels * points;
        Ok(Self {
            heads,
            levels,
            points,
            width,
            offsets: Linear::load(&weights.at("sampling_offsets"), width, 2 * samples, true)?,
            weights: Linear::load(&weights.at("attention_weights"), width, samples, true)?,
            value: Linear::load(&weights.at("value_proj"), width, width, true)?,
            output: Linear::load(&weights.at("output_proj"), width, width, true)?,
        })
    }

    /// `queries` is `[batch, n, width]` with positions added; `tokens` `[batch, levels.tokens(), width]`; `real`
    /// `[batch, levels.tokens(), 1]` is 1 where a token is no padding. The result is added to `residual`, `[batch, n,
    /// width]`.
    pub(crate) fn forward_onto(
        &self,
        queries: &Tensor,
        references: &References<'_>,
        tokens: &Tensor,
        real: Option<&Tensor>,
        levels: &Levels,
        residual: &Tensor,
    ) -> Result<(Tensor, Sampling)> {
        let (batch, count, _) = queries.dims3()?;
        let mut value = self.value.forward(tokens)?;
        if let Some(real) = real {
            value = value.broadcast_mul(real)?;
        }
        let value = value.reshape((batch, (), self.heads, self.width / self.heads))?;
        let shape = [batch, count, self.heads, self.levels, self.points];
        let weights = self.weights.forward(queries)?.reshape((batch, count, self.heads, self.levels * self.points))?;
        let weights = candle_nn::ops::softmax_last_dim(&weights)?.reshape(&shape[..])?;
        let offsets = self.offsets.forward(queries)?;
        let locations = self.locations(&offsets, references, levels)?;
        let locations = Tensor::from_vec(locations, &[&shape[..], &[2]].concat()[..], queries.device())?;
        let output = sample(&value, &locations, &weights, levels)?;
        Ok((self.output.forward_onto(&output, residual)?, Sampling { value, locations, weights, output }))
    }

    /// `[batch, queries, heads, levels, points, 2]`, flat.
    fn locations(&self, offsets: &Tensor, references: &References<'_>, levels: &Levels) -> Result<Vec<f32>> {
        let per_query = self.heads * self.levels * self.points * 2;
        let mut locations = with_values(offsets, |offsets| Ok(offsets.to_vec()))?;
        let (references, coordinates) = match references {
            References::Points(points) => (points, 2),
            References::Boxes(boxes) => (boxes, 4),
        };
        let points = self.points as f32;
        with_values(references, |references| {
            let seen = references.par_chunks(self.levels * coordinates);
            locations.par_chunks_mut(per_query).zip(seen).with_min_len(QUERIES_PER_TASK).for_each(
                |(locations, seen)| {
                    for (number, location) in locations.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                        let level = number / self.points % self.levels;
                        let reference = &seen[level * coordinates..][..coordinates];
                        let (height, width) = levels.sizes[level];
                        for (axis, size) in [width, height].into_iter().enumerate() {
                            location[axis] = match coordinates {
                                2 => reference[axis] + location[axis] / size as f32,
                                _ => reference[axis] + location[axis] / points * reference[2 + axis] * 0.5,
                            };
                        }
                    }
                },
            );
            Ok(())
        })?;
        Ok(locations)
    }
}

/// For every query the sum over its samples of the value there times its weight. Shapes as in [`Sampling`].
fn sample(value: &Tensor, locations: &Tensor, weights: &Tensor, levels: &Levels) -> Result<Tensor> {
    let (batch, tokens, heads, depth) = value.dims4()?;
    let (count, points) = (locations.dim(1)?, locations.dim(4)?);
    let (width, samples) = (heads * depth, heads * levels.sizes.len() * points);
    let (placed, isa) = (levels.placed(), Isa::detect());
    let mut out = vec![0.0_f32; batch * count * width];
    with_values(value, |value| {
        with_values(locations, |locations| {
            with_values(weights, |weights| {
                for image in 0..batch {
                    let values = &value[image * tokens * width..][..tokens * width];
                    let maps = Maps { values, levels: &placed, heads, depth, points };
                    let out = &mut out[image * count * width..][..count * width];
                    let locations = &locations[image * count * samples * 2..][..count * samples * 2];
                    let weights = &weights[image * count * samples..][..count * samples];
                    out.par_chunks_mut(QUERIES_PER_TASK * width)
                        .zip(locations.par_chunks(QUERIES_PER_TASK * samples * 2))
                        .zip(weights.par_chunks(QUERIES_PER_TASK * samples))
                        .for_each(|((out, locations), weights)| maps.sample(isa, locations, weights, out));
                }
                Ok(())
            })
        })
    })?;
    Tensor::from_vec(out, (batch, count, width), value.device())
}
