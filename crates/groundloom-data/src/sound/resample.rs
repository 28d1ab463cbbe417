//! From one sample rate to another, as `torchaudio.functional.resample` does by default: a sinc under a Hann window that ends at its
//! sixth zero, with the cut-off at 0.99 of the lower rate's half (`sinc_interp_hann`, `lowpass_filter_width` 6, `rolloff` 0.99).

/// Zeros of the sinc on each side that the window leaves.
const ZEROS: f64 = 6.0;
/// The cut-off, as a part of half the lower rate.
const ROLLOFF: f64 = 0.99;
/// Sums that run beside each other: always in this order, whatever the processor is.
const LANES: usize = 8;
/// Samples that are kept though no output needs them any more, before they are moved out of the way.
const KEPT: usize = 1 << 14;

/// Resamples a waveform that comes in pieces; the answer does not depend on how it is cut.
#[derive(Debug, Clone)]
pub struct Resampler {
    /// The rates without their common factor.
    from: usize,
    to: usize,
    /// Inputs that an output sees.
    taps: usize,
    /// For each of `to` outputs that follow each other, the first input that it sees, from the place of the first of them.
    starts: Vec<i64>,
    /// `[to, taps]`.
    kernel: Vec<f32>,
    /// Inputs that are still needed; the first of them is number `first`, negative ones are zeros.
    held: Vec<f32>,
    first: i64,
    seen: u64,
    made: u64,
}

impl Resampler {
    /// A resampler from `from` to `to` samples a second, neither of them 0.
    pub fn new(from: u32, to: u32) -> Self {
        let common = gcd(from, to).max(1);
        let (from, to) = ((from / common).max(1) as usize, (to / common).max(1) as usize);
        let none = Self { from, to, taps: 0, starts: vec![], kernel: vec![], held: vec![], first: 0, seen: 0, made: 0 };
        if from == to {
            return none;
        }
        let cutoff = from.min(to) as f64 * ROLLOFF;
        let reach = ZEROS * from as f64 / cutoff;
        let taps = (2.0 * reach) as usize + 2;
        let mut kernel = Vec::with_capacity(to * taps);
        let mut starts = Vec::with_capacity(to);
        for phase in 0..to {
            let start = (phase as f64 * from as f64 / to as f64 - reach).floor() as i64;
            starts.push(start);
            // The reference has this place in single precision, and everything behind it in double precision.
            let place = f64::from(-(phase as f32) / to as f32);
            let weight = |i: i64| weight((place + i as f64 / from as f64) * cutoff) * cutoff / from as f64;
            kernel.extend((start..start + taps as i64).map(|i| weight(i) as f32));
        }
        let first = starts.first().copied().unwrap_or_default();
        let held = vec![0.0; first.unsigned_abs() as usize];
        Self { taps, starts, kernel, held, first, ..none }
    }

    /// Takes further samples, and appends those of the new rate that can be told by now.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        self.seen += samples.len() as u64;
        if self.from == self.to {
            out.extend_from_slice(samples);
            return;
        }
        self.held.extend_from_slice(samples);
        self.make(u64::MAX, out);
    }

    /// Appends the last samples: behind the waveform there is silence.
    pub fn finish(mut self, out: &mut Vec<f32>) {
        if self.from == self.to {
            return;
        }
        let all = (self.seen * self.to as u64).div_ceil(self.from as u64);
        self.held.resize(self.held.len() + self.taps + self.from, 0.0);
        self.make(all, out);
    }

    /// Makes samples while there are inputs, `all` together at most.
    fn make(&mut self, all: u64, out: &mut Vec<f32>) {
        while self.made < all {
            let (turn, phase) = (self.made / self.to as u64, (self.made % self.to as u64) as usize);
            let start = (turn * self.from as u64) as i64 + self.starts[phase] - self.first;
            let start = usize::try_from(start).unwrap_or_default();
            let Some(window) = self.held.get(start..start + self.taps) else {
                if start > KEPT {
                    let done = start.min(self.held.len());
                    self.held.drain(..done);
                    self.first += done as i64;
                }
                return;
            };
            out.push(dot(window, &self.kernel[phase * self.taps..][..self.taps]));
            self.made += 1;
        }
    }
}

/// A whole waveform at another rate: `⌈samples · to / from⌉` samples.
pub fn resample(samples: &[f32], from: u32, to: u32) -> Vec<f32> {
    let mut out = Vec::new();
    let mut resampler = Resampler::new(from, to);
    resampler.push(samples, &mut out);
    resampler.finish(&mut out);
    out
}

/// The windowed sinc, at a place counted in its zeros.
fn weight(place: f64) -> f64 {
    let place = place.clamp(-ZEROS, ZEROS);
    let window = (place * std::f64::consts::PI / ZEROS / 2.0).cos().powi(2);
    let angle = place * std::f64::consts::PI;
    let sinc = if angle == 0.0 { 1.0 } else { angle.sin() / angle };
    sinc * window
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hum(samples: usize) -> Vec<f32> {
        (0..samples).map(|i| (i as f32 * 0.05).sin() * 0.4 + (i * 7919 % 101) as f32 / 400.0).collect()
    }

    #[test]
    fn pieces_are_the_whole() {
        for (from, to) in
            [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (16_000, 48_000), (22_050, 22_050), (11_025, 16_001)]
        {
            let waveform = hum(30_011);
            let whole = resample(&waveform, from, to);
            assert_eq!(whole.len(), (30_011 * to as usize).div_ceil(from as usize), "{from} to {to}");
            for piece in [1, 7, 1152, 20_000] {
                let (mut resampler, mut out) = (Resampler::new(from, to), Vec::new());
                waveform.chunks(piece).for_each(|piece| resampler.push(piece, &mut out));
                resampler.finish(&mut out);
                assert_eq!(out, whole, "{from} to {to} in pieces of {piece}");
            }
        }
        assert!(resample(&[], 44_100, 16_000).is_empty());
        assert_eq!(resample(&[0.5], 44_100, 16_000).len(), 1);
    }

    #[test]
    fn a_tone_stays_the_tone_and_what_is_too_high_goes() {
        let tone = |pitch: f64, rate: u32, samples: usize| -> Vec<f32> {
            (0..samples).map(|i| (i as f64 / f64::from(rate) * pitch * std::f64::consts::TAU).sin() as f32).collect()
        };
        let found = resample(&tone(440.0, 44_100, 44_100), 44_100, 16_000);
        let expected = tone(440.0, 16_000, 16_000);
        let apart = found.iter().zip(&expected).skip(100).take(15_800).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == 16_000 && apart < 2e-3, "{apart}");
        let gone = resample(&tone(12_000.0, 44_100, 44_100), 44_100, 16_000);
        let loudest = gone[100..15_900].iter().map(|x| x.abs()).fold(0.0, f32::max);
        assert!(loudest < 3e-3, "{loudest}");
    }
}
