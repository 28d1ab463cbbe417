//! Sine and cosine features of places.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};

use crate::layers::with_values;

const TURN: f32 = 2.0 * std::f32::consts::PI;

/// `temperature` to the power of the pair's place, for each of `features`.
fn wave_lengths(features: usize, temperature: f64) -> Vec<f32> {
    (0..features).map(|i| (temperature as f32).powf((2 * (i / 2)) as f32 / features as f32)).collect()
}

/// Appends the features of one coordinate: sine and cosine in turn.
fn push(out: &mut Vec<f32>, turned: f32, lengths: &[f32]) {
    let wave = |(i, length): (usize, &f32)| {
        let angle = turned / length;
        if i % 2 == 0 { angle.sin() } else { angle.cos() }
    };
    out.extend(lengths.iter().enumerate().map(wave));
}

/// Features of coordinates: `[…, n]` → `[…, n * features]`. Of several coordinates the first two change places, as in
/// DETR (y before x).
pub(crate) fn of_coordinates(coordinates: &Tensor, features: usize) -> Result<Tensor> {
    let mut shape = coordinates.dims().to_vec();
    let count = shape.pop().unwrap_or_default();
    shape.push(count * features);
    let lengths = wave_lengths(features, 10_000.0);
    let mut order: Vec<usize> = (0..count).collect();
    if count >= 2 {
        order.swap(0, 1);
    }
    let encoded = with_values(coordinates, |coordinates| {
        let mut encoded = Vec::with_capacity(coordinates.len() * features);
        for place in coordinates.chunks(count.max(1)) {
            for &axis in &order {
                push(&mut encoded, place[axis] * TURN, &lengths);
            }
        }
        Ok(encoded)
    })?;
    Tensor::from_vec(encoded, shape, coordinates.device())
}

/// Which pixels of a batch of padded maps are real.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PixelMask {
    pub(crate) batch: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// `[batch, height, width]`.
    pub(crate) real: Vec<bool>,
}

impl PixelMask {
    /// All real.
    pub(crate) fn full(batch: usize, height: usize, width: usize) -> Self {
        Self { batch, height, width, real: vec![true; batch * height * width] }
    }

    /// The nearest pixels of a map of another size, as torch's `interpolate` picks them.
    pub(crate) fn resized(&self, height: usize, width: usize) -> Self {
        let pick = |to: usize, from: usize| {
            let scale = from as f32 / to as f32;
            move |at: usize| ((at as f32 * scale).floor() as usize).min(from - 1)
        };
        let (row, column) = (pick(height, self.height), pick(width, self.width));
        let mut real = Vec::with_capacity(self.batch * height * width);
        for image in self.real.chunks(self.height * self.width) {
            for y in 0..height {
                real.extend((0..width).map(|x| image[row(y) * self.width + column(x)]));
            }
        }
        Self { batch: self.batch, height, width, real }
    }

    /// Real pixels in the first column and in the first row of each image.
    pub(crate) fn extents(&self) -> Vec<(usize, usize)> {
        let extent = |image: &[bool]| {
            let rows = image.iter().step_by(self.width).filter(|real| **real).count();
            (rows, image[..self.width].iter().filter(|real| **real).count())
        };
        self.real.chunks(self.height * self.width).map(extent).collect()
    }

    /// Features of each pixel's place among the real ones of its column and row: `[batch, height * width, features]`,
    /// the first half for y.
    pub(crate) fn positions(&self, features: usize, temperature: f64, device: &Device) -> Result<Tensor> {
        let lengths = wave_lengths(features / 2, temperature);
        let mut encoded = Vec::with_capacity(self.real.len() * features);
        // A whole column or row of pixels has the same places.
        let mut known: HashMap<u32, Vec<f32>> = HashMap::new();
        for image in self.real.chunks(self.height * self.width) {
            // How many are real up to each pixel, down and across.
            let (mut down, mut across) = (vec![0.0_f32; image.len()], vec![0.0_f32; image.len()]);
            for (at, &real) in image.iter().enumerate() {
                let above = if at < self.width { 0.0 } else { down[at - self.width] };
                let before = if at % self.width == 0 { 0.0 } else { across[at - 1] };
                let one = f32::from(u8::from(real));
                (down[at], across[at]) = (above + one, before + one);
            }
            for at in 0..image.len() {
                let (y, x) = (at / self.width, at % self.width);
                let bottom = down[(self.height - 1) * self.width + x];
                let end = across[y * self.width + self.width - 1];
                for turned in [down[at] / (bottom + 1e-6) * TURN, across[at] / (end + 1e-6) * TURN] {
                    let features = known.entry(turned.to_bits()).or_insert_with(|| {
                        let mut features = Vec::with_capacity(lengths.len());
                        push(&mut features, turned, &lengths);
                        features
                    });
                    encoded.extend_from_slice(features);
                }
            }
        }
        Tensor::from_vec(encoded, (self.batch, self.height * self.width, features), device)
    }
}
