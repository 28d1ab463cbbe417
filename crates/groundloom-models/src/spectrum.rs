//! From a waveform to the energies of its frequencies: frames, Fourier transforms, mel filters.
//!
//! Reference: transformers' `audio_utils.py`. Everything is computed in double precision.

use std::f64::consts::TAU;

use rayon::prelude::*;

use crate::{ModelError, config::Config};

/// A complex number: real part, imaginary part.
type Complex = [f64; 2];

/// Fourier transforms of one length, which is cut into its prime factors (Cooley and Tukey, "An Algorithm for the Machine
/// Calculation of Complex Fourier Series", 1965): quick where these are small.
#[derive(Debug)]
pub(crate) struct Fourier {
    /// The powers of the length's root of one.
    roots: Vec<Complex>,
    factors: Vec<usize>,
}

impl Fourier {
    /// Of `length` values, at least one.
    pub(crate) fn new(length: usize) -> Self {
        let roots = (0..length)
            .map(|k| {
                let (sine, cosine) = (TAU * k as f64 / length as f64).sin_cos();
                [cosine, -sine]
            })
            .collect();
        let (mut factors, mut rest, mut prime) = (Vec::new(), length, 2);
        while rest > 1 {
            if rest.is_multiple_of(prime) {
                factors.push(prime);
                rest /= prime;
            } else {
                prime += 1;
            }
        }
        Self { roots, factors }
    }

    /// The squared size of each frequency of `x` (as many values as the transform is long), from 0 to half the rate of
    /// the samples: ⌊length / 2⌋ + 1 values.
    pub(crate) fn power(&self, x: &[f64]) -> Vec<f64> {
        let mut out = vec![[0.0; 2]; self.roots.len()];
        let mut scratch = vec![[0.0; 2]; self.factors.iter().copied().max().unwrap_or(1)];
        self.run(x, 1, &mut out, &self.factors, &mut scratch);
        out[..=x.len() / 2].iter().map(|[re, im]| re * re + im * im).collect()
    }

    /// The transform of every `stride`th value of `x`.
    fn run(&self, x: &[f64], stride: usize, out: &mut [Complex], factors: &[usize], scratch: &mut [Complex]) {
        let Some((&parts, rest)) = factors.split_first() else {
            out[0] = [x[0], 0.0];
            return;
        };
        let (length, part) = (out.len(), out.len() / parts);
        for (i, out) in out.chunks_exact_mut(part).enumerate() {
            self.run(&x[i * stride..], stride * parts, out, rest, scratch);
        }
        let step = self.roots.len() / length;
        for k in 0..part {
            for (i, turned) in scratch.iter_mut().take(parts).enumerate() {
                *turned = times(out[i * part + k], self.roots[i * k * step]);
            }
            for j in 0..parts {
                let mut sum = [0.0; 2];
                for (i, turned) in scratch.iter().take(parts).enumerate() {
                    let [re, im] = times(*turned, self.roots[i * j % parts * part * step]);
                    sum = [sum[0] + re, sum[1] + im];
                }
                out[j * part + k] = sum;
            }
        }
    }
}

fn times([a, b]: Complex, [c, d]: Complex) -> Complex {
    [a * c - b * d, a * d + b * c]
}

/// Samples of the longest stretch that is transformed.
const LONGEST: usize = 1 << 16;

/// The option `key`: samples of a stretch that is transformed.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn stretch(config: &Config, key: &str, default: usize) -> Result<usize, ModelError> {
    match config.size_or(key, default)? {
        length if length <= LONGEST => Ok(length),
        found => Err(config.bad(key, format!("at most {LONGEST} samples"), found)),
    }
}

/// Hann's window of `length` values, as the first of a period: the last is not zero again.
pub(crate) fn hann(length: usize) -> Vec<f64> {
    (0..length).map(|i| 0.5 - 0.5 * (TAU * i as f64 / length as f64).cos()).collect()
}

/// How pitch grows with frequency, and with it the form of the filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MelScale {
    /// Slaney, "Auditory Toolbox", 1998: even up to 1 kHz, logarithmic above; filters of one area.
    Slaney,
    /// The Hidden Markov Model Toolkit's: 2595 log₁₀(1 + f / 700 Hz); filters of one height.
    Htk,
}

/// Triangles over the frequencies of a spectrum, evenly wide on a mel scale.
#[derive(Debug)]
pub(crate) struct MelFilters {
    /// For each filter the first frequency that it sees, and its weights from there on.
    filters: Vec<(usize, Vec<f64>)>,
    /// Frequencies of a spectrum.
    bins: usize,
}

impl MelFilters {
    /// `count` filters from `lowest` to `highest` Hz, over the frequencies of a Fourier transform of `length` samples taken
    /// `rate` times a second.
    pub(crate) fn new(scale: MelScale, count: usize, [lowest, highest]: [f64; 2], rate: usize, length: usize) -> Self {
        let bins = length / 2 + 1;
        let (from, to) = (scale.mels(lowest), scale.mels(highest));
        let corner = |i: usize| scale.hertz(from + (to - from) * i as f64 / (count + 1) as f64);
        let bin_width = (rate / 2) as f64 / (bins - 1).max(1) as f64;
        Self::of(count, bins, |i, bin| {
            let [left, middle, right] = [i, i + 1, i + 2].map(corner);
            let frequency = bin as f64 * bin_width;
            let (up, down) = ((frequency - left) / (middle - left), (right - frequency) / (right - middle));
            up.min(down) * if scale == MelScale::Slaney { 2.0 / (right - left) } else { 1.0 }
        })
    }

    /// As [`MelFilters::new`] of [`MelScale::Htk`], as Kaldi has them: triangles on the scale itself, not by frequency.
    pub(crate) fn kaldi(count: usize, [lowest, highest]: [f64; 2], rate: usize, length: usize) -> Self {
        let [lowest, highest] = [lowest, highest].map(|hertz| MelScale::Htk.mels(hertz));
        let width = (highest - lowest) / (count + 1) as f64;
        Self::of(count, length / 2 + 1, |i, bin| {
            let place = (MelScale::Htk.mels(bin as f64 * rate as f64 / length as f64) - lowest) / width - i as f64;
            place.min(2.0 - place)
        })
    }

    /// Of the weight that each filter has for each frequency, where it is above 0.
    fn of(count: usize, bins: usize, weight: impl Fn(usize, usize) -> f64) -> Self {
        let filter = |i: usize| {
            let first = (0..bins).find(|&bin| weight(i, bin) > 0.0).unwrap_or(bins);
            (first, (first..bins).map(|bin| weight(i, bin)).take_while(|&weight| weight > 0.0).collect())
        };
        Self { filters: (0..count).map(filter).collect(), bins }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.filters.len()
    }

    /// What the filters make of a spectrum.
    pub(crate) fn apply<'a>(&'a self, spectrum: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        self.filters.iter().map(|(first, weights)| weights.iter().zip(&spectrum[*first..]).map(|(w, x)| w * x).sum())
    }

    /// As a matrix `[frequencies, filters]`, row-major.
    pub(crate) fn matrix(&self) -> Vec<f32> {
        let mut matrix = vec![0.0; self.bins * self.len()];
        for (i, (first, weights)) in self.filters.iter().enumerate() {
            for (bin, weight) in weights.iter().enumerate() {
                matrix[(first + bin) * self.len() + i] = *weight as f32;
            }
        }
        matrix
    }
}

/// From which frequency on Slaney's scale is logarithmic, and where that lies on it.
const LOGARITHMIC: [f64; 2] = [1000.0, 15.0];

impl MelScale {
    fn mels(self, hertz: f64) -> f64 {
        let [from, mels] = LOGARITHMIC;
        match self {
            Self::Htk => 2595.0 * (1.0 + hertz / 700.0).log10(),
            Self::Slaney if hertz < from => 3.0 * hertz / 200.0,
            Self::Slaney => mels + (hertz / from).ln() * log_step(),
        }
    }

    fn hertz(self, mels: f64) -> f64 {
        let [hertz, from] = LOGARITHMIC;
        match self {
            Self::Htk => 700.0 * (10.0_f64.powf(mels / 2595.0) - 1.0),
            Self::Slaney if mels < from => 200.0 * mels / 3.0,
            Self::Slaney => hertz * ((mels - from) / log_step()).exp(),
        }
    }
}

/// Slaney's mels for each e-fold of the frequency, where the scale is logarithmic.
fn log_step() -> f64 {
    27.0 / 6.4_f64.ln()
}

/// Energies by mel filter of overlapping stretches of a waveform.
#[derive(Debug)]
pub(crate) struct MelSpectrum {
    fourier: Fourier,
    window: Vec<f64>,
    /// Samples from one stretch to the next.
    hop: usize,
    pub(crate) filters: MelFilters,
}

impl MelSpectrum {
    /// Stretches of `length` samples, each `hop` behind the one before.
    pub(crate) fn new(length: usize, hop: usize, filters: MelFilters) -> Self {
        Self { fourier: Fourier::new(length), window: hann(length), hop, filters }
    }

    /// `[⌊samples / hop⌋ + 1, filters]`, row-major. The first stretch has its middle at the first sample; what lies
    /// beyond an end of the waveform is its mirror image.
    pub(crate) fn energies(&self, waveform: &[f32]) -> Vec<f64> {
        let frames = waveform.len() / self.hop + 1;
        let energies = |frame: usize| {
            let start = (frame * self.hop) as isize - (self.window.len() / 2) as isize;
            let sample = |(i, weight): (usize, &f64)| {
                weight * mirrored(start + i as isize, waveform.len()).map_or(0.0, |place| f64::from(waveform[place]))
            };
            let stretch: Vec<f64> = self.window.iter().enumerate().map(sample).collect();
            self.filters.apply(&self.fourier.power(&stretch)).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<f64>> = (0..frames).into_par_iter().map(energies).collect();
        rows.concat()
    }
}

/// The place among `length` that `place` is in a row of mirrors at the first and the last; none of none.
fn mirrored(place: isize, length: usize) -> Option<usize> {
    let last = length.checked_sub(1)?;
    if last == 0 {
        return Some(0);
    }
    let place = place.unsigned_abs() % (2 * last);
    Some(if place > last { 2 * last - place } else { place })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f64> {
        (0..count).map(|i| (i * 7919 % 2003) as f64 / 1001.0 - 1.0).collect()
    }

    #[test]
    fn a_transform_is_the_sum_that_defines_it() {
        for length in [1, 2, 3, 8, 12, 35, 97, 400, 512] {
            let x = values(length);
            let found = Fourier::new(length).power(&x);
            assert_eq!(found.len(), length / 2 + 1);
            for (k, found) in found.iter().enumerate() {
                let angle = |i: usize| TAU * (i * k % length) as f64 / length as f64;
                let sum = |f: fn(f64) -> f64| x.iter().enumerate().map(|(i, x)| x * f(angle(i))).sum::<f64>();
                let expected = sum(f64::cos).powi(2) + sum(f64::sin).powi(2);
                assert!((found - expected).abs() < 1e-9 * (1.0 + expected), "{length} {k}: {found} {expected}");
            }
        }
    }

    #[test]
    fn mels_and_hertz_undo_each_other() {
        for scale in [MelScale::Slaney, MelScale::Htk] {
            for frequency in [0.0, 50.0, 999.0, 1000.0, 1001.0, 8000.0] {
                assert!((scale.hertz(scale.mels(frequency)) - frequency).abs() < 1e-9);
            }
        }
        assert_eq!([0.0, 200.0, 1000.0].map(|frequency| MelScale::Slaney.mels(frequency)), [0.0, 3.0, 15.0]);
    }

    #[test]
    fn beyond_its_ends_a_waveform_is_mirrored() {
        let places: Vec<_> = (-4..9).map(|place| mirrored(place, 4)).collect();
        assert_eq!(places.into_iter().flatten().collect::<Vec<_>>(), [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]);
        assert_eq!([mirrored(-3, 1), mirrored(0, 0)], [Some(0), None]);
    }

    #[test]
    fn a_tone_is_heard_by_the_filter_around_it() {
        let filters = MelFilters::new(MelScale::Slaney, 20, [0.0, 8000.0], 16_000, 400);
        let spectrum = MelSpectrum::new(400, 160, filters);
        // The middle of the filter 4: the mels of 8 kHz in 21 parts, of which it is the fifth.
        let pitch = MelScale::Slaney.hertz(MelScale::Slaney.mels(8000.0) / 21.0 * 5.0);
        let tone: Vec<f32> = (0..1600).map(|i| (TAU * pitch * f64::from(i) / 16_000.0).sin() as f32).collect();
        let energies = spectrum.energies(&tone);
        assert_eq!(energies.len(), 11 * 20);
        let loudest = |frame: &[f64]| (0..20).max_by(|&a, &b| frame[a].total_cmp(&frame[b]));
        // The ends are mirrored, with a kink.
        assert!(energies.chunks(20).skip(2).take(7).all(|frame| loudest(frame) == Some(4)));
    }
}
