//! Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021, section 4.1, equation 3).

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use crate::{
    ModelError,
    device::by_kernels,
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
        let shape = [&shape[..], &[2]].concat();
        let locations = match by_kernels(&offsets) {
            true => Tensor::from_vec(self.locations(&offsets, references, levels)?, shape, offsets.device())?,
            false => self.locations_plainly(&offsets.reshape(shape)?, references, levels)?,
        };
        let output = sample(&value, &locations, &weights, levels)?;
        Ok((self.output.forward_onto(&output, residual)?, Sampling { value, locations, weights, output }))
    }

    /// As [`DeformableAttention::locations`] in candle's operations, of offsets `[batch, queries, heads, levels, points, 2]`.
    fn locations_plainly(&self, offsets: &Tensor, references: &References<'_>, levels: &Levels) -> Result<Tensor> {
        let (batch, count) = (offsets.dim(0)?, offsets.dim(1)?);
        let spread = |x: &Tensor| x.reshape(&[batch, count, 1, self.levels, 1, 2][..]);
        match references {
            References::Points(points) => {
                let sizes = levels.sizes.iter().flat_map(|&(height, width)| [width as f32, height as f32]).collect();
                let sizes = Tensor::from_vec(sizes, (self.levels, 1, 2), offsets.device())?;
                offsets.broadcast_div(&sizes)?.broadcast_add(&spread(points)?)
            }
            References::Boxes(boxes) => {
                let [centres, sizes] = [boxes.narrow(3, 0, 2)?, boxes.narrow(3, 2, 2)?];
                let offsets = offsets.affine(0.5 / self.points as f64, 0.0)?.broadcast_mul(&spread(&sizes)?)?;
                offsets.broadcast_add(&spread(&centres)?)
            }
        }
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

/// As [`sample`], in candle's operations: for each level and each of the four pixels around a sample.
fn sample_plainly(value: &Tensor, locations: &Tensor, weights: &Tensor, levels: &Levels) -> Result<Tensor> {
    let ((batch, _, heads, depth), device) = (value.dims4()?, value.device());
    let (count, points) = (locations.dim(1)?, locations.dim(4)?);
    let mut images = Vec::with_capacity(batch);
    for image in 0..batch {
        // [heads, tokens, depth]
        let value = value.get(image)?.transpose(0, 1)?;
        let (locations, weights) = (locations.get(image)?, weights.get(image)?);
        let mut sum = Tensor::zeros((count, heads, depth), DType::F32, device)?;
        for (level, (start, rows, columns)) in levels.placed().into_iter().enumerate() {
            let pixels = rows * columns;
            let map = value.narrow(1, start, pixels)?.contiguous()?.reshape((heads * pixels, depth))?;
            // Whole numbers that f32 holds exactly: a head's map begins behind those of the heads before it.
            let first = (0..heads).map(|head| (head * pixels) as f32).collect();
            let first = Tensor::from_vec(first, (1, heads, 1), device)?;
            let places = locations.narrow(2, level, 1)?.squeeze(2)?;
            let weight = weights.narrow(2, level, 1)?.squeeze(2)?;
            // As the kernel computes it. What lies far outside is brought near, where it meets no pixel either.
            let pixel = |axis: usize, size: usize| -> Result<Tensor> {
                let place = (places.narrow(3, axis, 1)?.squeeze(3)?.affine(2.0, -1.0)? + 1.0)?;
                place.affine(size as f64, -1.0)?.affine(0.5, 0.0)?.clamp(-2.0_f32, (size + 1) as f32)
            };
            // For both neighbours along an axis the pixel, held inside the map, and its share.
            let neighbours = |axis: usize, size: usize| -> Result<[(Tensor, Tensor); 2]> {
                let place = pixel(axis, size)?;
                let below = place.floor()?;
                let share = (&place - &below)?;
                let held = |pixel: Tensor, share: Tensor| -> Result<(Tensor, Tensor)> {
                    let inside = pixel.clamp(0.0_f32, (size - 1) as f32)?;
                    let share = (share * inside.eq(&pixel)?.to_dtype(DType::F32)?)?;
                    Ok((inside, share))
                };
                Ok([held(below.clone(), (1.0 - &share)?)?, held((below + 1.0)?, share)?])
            };
            let across = neighbours(0, columns)?;
            for (y, lower) in neighbours(1, rows)? {
                for (x, right) in &across {
                    let at = ((y.affine(columns as f64, 0.0)? + x)?).broadcast_add(&first)?;
                    let seen = map.index_select(&at.to_dtype(DType::U32)?.flatten_all()?, 0)?;
                    let share = ((&weight * &lower)? * right)?.reshape((count, heads, points, 1))?;
                    let seen = seen.reshape((count, heads, points, depth))?.broadcast_mul(&share)?;
                    sum = (sum + seen.sum(2)?)?;
                }
            }
        }
        images.push(sum.reshape((count, heads * depth))?);
    }
    Tensor::stack(&images, 0)
}

/// For every query the sum over its samples of the value there times its weight. Shapes as in [`Sampling`].
fn sample(value: &Tensor, locations: &Tensor, weights: &Tensor, levels: &Levels) -> Result<Tensor> {
    if !by_kernels(value) {
        return sample_plainly(value, locations, weights, levels);
    }
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
