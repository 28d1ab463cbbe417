//! Kaldi's filter bank: logarithms of the energies of a waveform by mel filter.
//!
//! Reference: torchaudio's `compliance/kaldi.py`, `fbank` with a Hann window and without dither.

use std::f64::consts::TAU;

use rayon::prelude::*;

use crate::{
    spectrum::{Fourier, MelFilters},
    speech::SAMPLE_RATE,
};

/// Samples that a frame sees: 25 ms.
pub(crate) const FRAME: usize = 400;
/// Samples from one frame to the next: 10 ms.
const HOP: usize = 160;
/// Length of the Fourier transform: the power of two from [`FRAME`] on.
const LENGTH: usize = 512;
/// What of a sample is taken from the next.
const PREEMPHASIS: f64 = 0.97;
/// The lowest frequency that is looked at, in Hz; the highest is half the rate of the samples.
const LOWEST: f64 = 20.0;

/// Frames of a waveform of 16 kHz.
#[derive(Debug)]
pub(crate) struct FilterBank {
    fourier: Fourier,
    /// Hann's window, whose first and last are 0.
    window: Vec<f64>,
    filters: MelFilters,
}

impl FilterBank {
    /// Of `count` filters.
    pub(crate) fn new(count: usize) -> Self {
        let rate = SAMPLE_RATE as usize;
        let window = (0..FRAME).map(|i| 0.5 - 0.5 * (TAU * i as f64 / (FRAME - 1) as f64).cos()).collect();
        let filters = MelFilters::kaldi(count, [LOWEST, f64::from(SAMPLE_RATE) / 2.0], rate, LENGTH);
        Self { fourier: Fourier::new(LENGTH), window, filters }
    }

    /// `[⌊(samples − 400) / 160⌋ + 1, filters]`, row-major; nothing of fewer than [`FRAME`] samples.
    pub(crate) fn frames(&self, waveform: &[f32]) -> Vec<f32> {
        let count = waveform.len().checked_sub(FRAME).map_or(0, |rest| rest / HOP + 1);
        let rows: Vec<Vec<f32>> =
            (0..count).into_par_iter().map(|i| self.frame(&waveform[i * HOP..][..FRAME])).collect();
        rows.concat()
    }

    fn frame(&self, samples: &[f32]) -> Vec<f32> {
        let mean = samples.iter().map(|&x| f64::from(x)).sum::<f64>() / FRAME as f64;
        let mut before = f64::from(samples[0]) - mean;
        let mut stretch = vec![0.0; LENGTH];
        for ((to, &sample), window) in stretch.iter_mut().zip(samples).zip(&self.window) {
            let sample = f64::from(sample) - mean;
            *to = (sample - PREEMPHASIS * before) * window;
            before = sample;
        }
        let energies = self.filters.apply(&self.fourier.power(&stretch)).collect::<Vec<_>>();
        energies.into_iter().map(|energy| energy.max(f64::from(f32::EPSILON)).ln() as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_is_loudest_in_the_filter_around_it() {
        let bank = FilterBank::new(23);
        let tone: Vec<f32> = (0..800).map(|i| (TAU * 1000.0 * f64::from(i) / 16_000.0).sin() as f32).collect();
        let frames = bank.frames(&tone);
        assert_eq!(frames.len(), 3 * 23);
        // 1 kHz is at mel 1000, 20 Hz at 31.7, 8 kHz at 2840: the middle of the filter i is at 31.7 + 117 (i + 1).
        let loudest = |frame: &[f32]| (0..23).max_by(|&a, &b| frame[a].total_cmp(&frame[b]));
        assert!(frames.chunks(23).all(|frame| loudest(frame) == Some(7)), "{frames:?}");
    }

    #[test]
    fn silence_is_the_floor_and_a_constant_is_silence() {
        let bank = FilterBank::new(4);
        let floor = f32::EPSILON.ln();
        assert_eq!(bank.frames(&[0.0; FRAME]), [floor; 4]);
        assert_eq!(bank.frames(&[0.25; FRAME + HOP]), [floor; 8]);
        assert!(bank.frames(&[0.0; FRAME - 1]).is_empty());
    }
}
