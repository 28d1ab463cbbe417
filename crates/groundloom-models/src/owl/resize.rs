//! OWLv2's resize: not Pillow's, but scikit-image's `resize` with anti-aliasing, which is a Gaussian blur and then
//! linear interpolation (SciPy's `gaussian_filter` and `zoom` with mode `mirror`).

use rayon::prelude::*;

/// An image of three channels, `[height, width, 3]`.
pub(crate) struct Floats {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) values: Vec<f32>,
}

const CHANNELS: usize = 3;
/// The blur ends at so many deviations.
const TRUNCATE: f64 = 4.0;

impl Floats {
    /// Resized to `height` × `width`, no value outside the range that was there.
    pub(crate) fn resized(self, height: usize, width: usize) -> Self {
        let range = self
            .values
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)));
        let deviation = |from: usize, to: usize| ((from as f64 / to as f64 - 1.0) / 2.0).max(0.0);
        let (down, across) = (deviation(self.height, height), deviation(self.width, width));
        let mut resized = self.blurred_down(down).blurred_across(across).interpolated(height, width);
        resized.values.iter_mut().for_each(|value| *value = value.clamp(range.0, range.1));
        resized
    }

    fn blurred_down(self, deviation: f64) -> Self {
        let Some(weights) = gaussian(deviation) else { return self };
        let radius = weights.len() / 2;
        let line = self.width * CHANNELS;
        let mut values = vec![0.0; self.values.len()];
        values.par_chunks_mut(line).enumerate().for_each(|(y, out)| {
            let mut sums = vec![0.0_f64; line];
            for (tap, weight) in weights.iter().enumerate() {
                let from = mirrored(y as isize + tap as isize - radius as isize, self.height);
                for (sum, value) in sums.iter_mut().zip(&self.values[from * line..][..line]) {
                    *sum += weight * f64::from(*value);
                }
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
        });
        Self { values, ..self }
    }

    fn blurred_across(self, deviation: f64) -> Self {
        let Some(weights) = gaussian(deviation) else { return self };
        let radius = weights.len() / 2;
        let line = self.width * CHANNELS;
        let mut values = vec![0.0; self.values.len()];
        values.par_chunks_mut(line).zip(self.values.par_chunks(line)).for_each(|(out, from)| {
            for (x, out) in out.chunks_mut(CHANNELS).enumerate() {
                let mut sums = [0.0_f64; CHANNELS];
                for (tap, weight) in weights.iter().enumerate() {
                    let at = mirrored(x as isize + tap as isize - radius as isize, self.width) * CHANNELS;
                    for (sum, value) in sums.iter_mut().zip(&from[at..at + CHANNELS]) {
                        *sum += weight * f64::from(*value);
                    }
                }
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
            }
        });
        Self { values, ..self }
    }

    fn interpolated(self, height: usize, width: usize) -> Self {
        let (rows, columns) = (places(self.height, height), places(self.width, width));
        let mut values = vec![0.0; height * width * CHANNELS];
        values.par_chunks_mut(width * CHANNELS).zip(&rows).for_each(|(out, &(top, bottom, lower))| {
            for (out, &(left, right, farther)) in out.chunks_mut(CHANNELS).zip(&columns) {
                let value = |row: usize, column: usize, channel: usize| {
                    f64::from(self.values[(row * self.width + column) * CHANNELS + channel])
                };
                for (channel, out) in out.iter_mut().enumerate() {
                    let upper = value(top, left, channel) * (1.0 - farther) + value(top, right, channel) * farther;
                    let under =
                        value(bottom, left, channel) * (1.0 - farther) + value(bottom, right, channel) * farther;
                    *out = (upper * (1.0 - lower) + under * lower) as f32;
                }
            }
        });
        Self { height, width, values }
    }
}

/// The two pixels between which each of `to` pixels lies, and the share of the second.
fn places(from: usize, to: usize) -> Vec<(usize, usize, f64)> {
    let step = from as f64 / to as f64;
    let place = |at: usize| {
        let place = (at as f64 + 0.5) * step - 0.5;
        let floor = place.floor();
        (mirrored(floor as isize, from), mirrored(floor as isize + 1, from), place - floor)
    };
    (0..to).map(place).collect()
}

/// `at` in an axis of `length` that goes on mirrored at its end pixels.
fn mirrored(at: isize, length: usize) -> usize {
    if length <= 1 {
        return 0;
    }
    let period = 2 * (length as isize - 1);
    let at = at.rem_euclid(period);
    at.min(period - at) as usize
}

/// Weights of a Gaussian of `deviation` pixels, 1 together; `None` where it would not blur.
fn gaussian(deviation: f64) -> Option<Vec<f64>> {
    if deviation <= 1e-15 {
        return None;
    }
    let radius = (TRUNCATE * deviation + 0.5) as i64;
    let weights: Vec<f64> =
        (-radius..=radius).map(|x| (-0.5 / (deviation * deviation) * (x * x) as f64).exp()).collect();
    let sum: f64 = weights.iter().sum();
    Some(weights.into_iter().map(|weight| weight / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_is_mirrored_without_its_own_pixel() {
        assert_eq!((-2..5).map(|at| mirrored(at, 3)).collect::<Vec<_>>(), [2, 1, 0, 1, 2, 1, 0]);
        assert_eq!((-2..2).map(|at| mirrored(at, 1)).collect::<Vec<_>>(), [0, 0, 0, 0]);
    }

    #[test]
    fn a_flat_image_stays_flat_and_nothing_leaves_the_range() {
        for (from, to) in [((5, 7), (3, 3)), ((1, 1), (4, 4)), ((9, 2), (9, 2))] {
            let flat = Floats { height: from.0, width: from.1, values: vec![0.25; from.0 * from.1 * 3] };
            let resized = flat.resized(to.0, to.1);
            assert_eq!(resized.values.len(), to.0 * to.1 * 3);
            assert!(resized.values.iter().all(|&value| value == 0.25));
        }
    }
}
