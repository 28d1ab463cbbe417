//! From what a user has to what ImageBind sees.
//!
//! Reference: facebookresearch/ImageBind, `data.py`, for images, films and audio. It has no loader of depth, thermal images
//! and motion; what is known of them stands at each.

use candle_core::{Device, IndexOp, Tensor};
use image::RgbImage;

use super::{MOTION, SIDE, SPECTRUM};
use crate::{
    ModelError, Plane,
    config::Config,
    fbank::{FRAME, FilterBank},
    image_processor::{ImageProcessor, Middle},
    layers::compute,
    resample,
    speech::SAMPLE_RATE,
};

type Candle<T> = candle_core::Result<T>;

/// Samples of a clip of audio: two seconds.
const CLIP: usize = 2 * SAMPLE_RATE as usize;
/// Clips of a waveform.
const CLIPS: usize = 3;
/// Mean and deviation of the logarithms of energies.
const AUDIO_MOMENTS: [f32; 2] = [-4.268, 9.138];
/// Disparities above this count as this, and become 1.
const GREATEST_DISPARITY: f32 = 75.0;
/// Mean and deviation of disparities.
const DEPTH_MOMENTS: [f32; 2] = [0.0418, 0.0295];
/// Most values of an image of one channel after the resize.
const MOST_VALUES: usize = 1 << 26;

/// The processor of images: the shorter side becomes 224 pixels, the middle is kept, CLIP's mean and deviation.
///
/// # Errors
/// None: these are open_clip's defaults.
pub(crate) fn processor(config: &Config) -> Result<ImageProcessor, ModelError> {
    ImageProcessor::read_open_clip(&config.empty("preprocess_cfg"), SIDE)
}

/// `[n, 3, height, width]` as films that stand still, `[n, 3, 2, height, width]`.
pub(crate) fn still(pixels: &Tensor) -> Candle<Tensor> {
    Tensor::stack(&[pixels, pixels], 2)
}

/// Two frames at three places, `[3, 3, 2, 224, 224]`: the first, the middle and the last square of the longer side.
///
/// # Errors
/// [`ModelError::EmptyImage`], [`ModelError::ImageTooLong`].
pub(crate) fn crops(processor: &ImageProcessor, frames: [&RgbImage; 2]) -> Result<Tensor, ModelError> {
    let [first, second] = frames.map(|frame| scaled_frame(processor, frame));
    let (first, second) = (first?, second?);
    let two = |place: usize| Tensor::stack(&[crop(&first, place)?, crop(&second, place)?], 1);
    let run = || Tensor::stack(&[two(0)?, two(1)?, two(2)?], 0);
    run().map_err(compute("the frames of a film"))
}

/// A frame with its shorter side of 224 pixels, `[3, height, width]`, normalised.
fn scaled_frame(processor: &ImageProcessor, frame: &RgbImage) -> Result<Tensor, ModelError> {
    let (width, height) = frame.dimensions();
    let [to_width, to_height] = shorter_side(width, height)?;
    let values = frame.pixels().flat_map(|pixel| pixel.0.map(|byte| f32::from(byte) / 255.0)).collect::<Vec<_>>();
    let (from, to) = ([height as usize, width as usize], [to_height, to_width]);
    let run = || -> Candle<Tensor> {
        let grid = Tensor::from_vec(values, (from[0] * from[1], 3), &Device::Cpu)?;
        let planes = resample::bilinear(&grid, from, to)?.t()?.contiguous()?.to_vec2::<f32>()?;
        let normalised = |(channel, plane): (usize, Vec<f32>)| {
            plane.into_iter().map(move |value| processor.normalised(channel, value)).collect::<Vec<_>>()
        };
        let planes = planes.into_iter().enumerate().flat_map(normalised).collect::<Vec<_>>();
        Tensor::from_vec(planes, (3, to[0], to[1]), &Device::Cpu)
    };
    run().map_err(compute("the frames of a film"))
}

/// Width and height with a shorter side of 224 pixels.
fn shorter_side(width: u32, height: u32) -> Result<[usize; 2], ModelError> {
    if width == 0 || height == 0 {
        return Err(ModelError::EmptyImage { width, height });
    }
    let scaled = |long: u32, short: u32| (f64::from(long) / f64::from(short) * SIDE as f64).floor() as usize;
    let [to_width, to_height] =
        if width < height { [SIDE, scaled(height, width)] } else { [scaled(width, height), SIDE] };
    if to_width.saturating_mul(to_height) > MOST_VALUES {
        let [to_width, to_height] = [to_width, to_height].map(|side| side as u32);
        return Err(ModelError::ImageTooLong { width, height, to_width, to_height });
    }
    Ok([to_width, to_height])
}

/// A square of `[3, height, width]`: at the beginning (0), in the middle (1) or at the end (2) of the longer side.
fn crop(frame: &Tensor, place: usize) -> Candle<Tensor> {
    let (_, height, width) = frame.dims3()?;
    let start = |side: usize| [0, (side - SIDE).div_ceil(2), side - SIDE][place];
    let middle = |side: usize| (side - SIDE).div_ceil(2);
    let (top, left) = if height > width { (start(height), middle(width)) } else { (middle(height), start(width)) };
    frame.narrow(1, top, SIDE)?.narrow(2, left, SIDE)?.contiguous()
}

/// What the tower of audio sees of a waveform.
#[derive(Debug)]
pub(crate) struct Spectra {
    bank: FilterBank,
}

impl Spectra {
    pub(crate) fn new() -> Self {
        Self { bank: FilterBank::new(SPECTRUM[0]) }
    }

    /// Clips of two seconds, evenly spread, `[3, 1, 128, 204]`; one clip of a waveform that has no more.
    ///
    /// # Errors
    /// [`ModelError::ShortWaveform`], [`ModelError::BadSample`].
    pub(crate) fn of(&self, waveform: &[f32]) -> Result<Tensor, ModelError> {
        if let Some(place) = waveform.iter().position(|x| !x.is_finite()) {
            return Err(ModelError::BadSample { place, found: waveform[place].to_string() });
        }
        if waveform.len() < FRAME {
            return Err(ModelError::ShortWaveform { samples: waveform.len(), least: FRAME });
        }
        let mut waveform = waveform.to_vec();
        let (mut values, starts) = (Vec::new(), clip_starts(waveform.len()));
        for &start in &starts {
            let end = waveform.len().min(start + CLIP);
            // The mean is taken from the waveform itself: where clips overlap, the later one begins with what the
            // earlier one left.
            let clip = &mut waveform[start..end];
            let mean = (clip.iter().map(|&x| f64::from(x)).sum::<f64>() / clip.len() as f64) as f32;
            clip.iter_mut().for_each(|x| *x -= mean);
            values.extend(normalised(&self.energies(clip)));
        }
        let [mels, frames] = SPECTRUM;
        Tensor::from_vec(values, (starts.len(), 1, mels, frames), &Device::Cpu).map_err(compute("a waveform's spectra"))
    }

    /// Logarithms of the energies of a clip whose mean is 0, `[128, 204]`, row-major: cut, or with zeros behind them.
    pub(crate) fn energies(&self, clip: &[f32]) -> Vec<f32> {
        let [mels, frames] = SPECTRUM;
        let rows = self.bank.frames(clip);
        let mut energies = vec![0.0; mels * frames];
        for (frame, row) in rows.chunks_exact(mels).take(frames).enumerate() {
            row.iter().enumerate().for_each(|(mel, value)| energies[mel * frames + frame] = *value);
        }
        energies
    }
}

/// Energies as the network takes them, the zeros behind a clip's end too.
pub(crate) fn normalised(energies: &[f32]) -> Vec<f32> {
    let [mean, deviation] = AUDIO_MOMENTS;
    energies.iter().map(|energy| (energy - mean) / deviation).collect()
}

/// Where the clips of a waveform of so many samples begin.
fn clip_starts(samples: usize) -> Vec<usize> {
    // The reference divides the seconds as an exact fraction of a rounded number.
    let rest = samples as f64 / f64::from(SAMPLE_RATE) - 2.0;
    if rest <= 0.0 {
        return vec![0];
    }
    let step = f64::from(SAMPLE_RATE) / (CLIPS - 1) as f64;
    (0..CLIPS).map(|i| whole_product(rest, step * i as f64)).collect()
}

/// ⌊a · b⌋ of the exact product, which a rounded one may lie above.
fn whole_product(a: f64, b: f64) -> usize {
    let product = a * b;
    let below = product.fract() == 0.0 && a.mul_add(b, -product) < 0.0;
    product as usize - usize::from(below && product >= 1.0)
}

/// Disparities as the network takes them, `[1, 1, 224, 224]`: cut at 75 and divided by it, as DepthNorm of
/// facebookresearch/omnivore does, whose mean and deviation these are; a resize between neighbours, the middle kept.
///
/// # Errors
/// [`ModelError::EmptyImage`], [`ModelError::ImageTooLong`].
pub(crate) fn depth(map: &Plane) -> Result<Tensor, ModelError> {
    let [mean, deviation] = DEPTH_MOMENTS;
    let values = |disparity: f32| disparity.min(GREATEST_DISPARITY) / GREATEST_DISPARITY;
    let placed = place(map, values)?;
    placed.affine(1.0 / f64::from(deviation), -f64::from(mean) / f64::from(deviation)).map_err(compute("a depth map"))
}

/// A thermal image as the network takes it, `[1, 1, 224, 224]`: resized as [`depth`], its values as they are.
///
/// # Errors
/// As [`depth`].
pub(crate) fn thermal(image: &Plane) -> Result<Tensor, ModelError> {
    place(image, |value| value)
}

/// The middle of a plane whose shorter side became 224 pixels.
fn place(plane: &Plane, value: impl Fn(f32) -> f32) -> Result<Tensor, ModelError> {
    let (width, height) = plane.dimensions();
    let [to_width, to_height] = shorter_side(width, height)?;
    if let Some((place, found)) = plane.iter().enumerate().find(|(_, x)| !x.is_finite()) {
        return Err(ModelError::BadSample { place, found: found.to_string() });
    }
    let values: Vec<f32> = plane.iter().map(|&x| value(x)).collect();
    let (from, to) = ([height as usize, width as usize], [to_height, to_width]);
    let run = || -> Candle<Tensor> {
        let grid = Tensor::from_vec(values, (from[0] * from[1], 1), &Device::Cpu)?;
        let grid = resample::bilinear_antialiased(&grid, from, to)?.reshape((1, 1, to[0], to[1]))?;
        let [top, left] = to.map(|side| Middle::Even.offset(side as u32, SIDE as u32).unsigned_abs() as usize);
        grid.i((.., .., top..top + SIDE, left..left + SIDE))?.contiguous()
    };
    run().map_err(compute("an image of one channel"))
}

/// A recording as the network takes it, `[1, 6, 2000]`, as it is: the paper cuts five seconds of Ego4D, and says nothing of
/// units.
///
/// # Errors
/// [`ModelError::WrongCount`], [`ModelError::BadSample`].
pub(crate) fn motion(recording: &[[f32; 6]]) -> Result<Tensor, ModelError> {
    let [values, moments] = MOTION;
    if recording.len() != moments {
        let expected = format!("a recording of {moments} moments");
        return Err(ModelError::WrongCount { expected, found: recording.len() });
    }
    if let Some(place) = recording.iter().position(|moment| moment.iter().any(|x| !x.is_finite())) {
        return Err(ModelError::BadSample { place, found: format!("{:?}", recording[place]) });
    }
    let rows = (0..values).flat_map(|i| recording.iter().map(move |moment| moment[i])).collect::<Vec<_>>();
    Tensor::from_vec(rows, (1, values, moments), &Device::Cpu).map_err(compute("a recording"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn clips_are_spread_to_the_ends() {
        assert_eq!(clip_starts(FRAME), [0]);
        assert_eq!(clip_starts(CLIP), [0]);
        assert_eq!(clip_starts(CLIP + 8), [0, 4, 8]);
        assert_eq!(clip_starts(10 * CLIP), [0, 9 * CLIP / 2, 9 * CLIP]);
        // A length in seconds that is rounded down is cut down to the sample before, as in the reference.
        for samples in CLIP..CLIP + 5000 {
            let starts = clip_starts(samples);
            let last = *starts.last().unwrap();
            assert!(last == samples - CLIP || last + 1 == samples - CLIP, "{samples} {starts:?}");
        }
    }

    #[test]
    fn a_film_is_seen_at_three_places_of_its_longer_side() {
        let frame = Tensor::arange(0.0_f32, 226.0 * 224.0, &Device::Cpu).unwrap().reshape((1, 226, 224)).unwrap();
        let frame = frame.broadcast_as((3, 226, 224)).unwrap().contiguous().unwrap();
        let first = |place| crop(&frame, place).unwrap().i((0, 0, 0)).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!([first(0), first(1), first(2)], [0.0, 224.0, 448.0]);
        let wide = frame.transpose(1, 2).unwrap().contiguous().unwrap();
        let first = |place| crop(&wide, place).unwrap().i((0, 0, 0)).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!([first(0), first(1), first(2)], [0.0, 224.0, 448.0]);
        assert_eq!(shorter_side(100, 333).unwrap(), [224, 745]);
        assert!(matches!(shorter_side(1, 10_000_000), Err(ModelError::ImageTooLong { .. })));
    }

    #[test]
    fn planes_are_placed_and_normalised() {
        let flat = Plane::from_pixel(40, 30, image::Luma([150.0]));
        let near = depth(&flat).unwrap();
        assert_eq!(near.dims(), [1, 1, SIDE, SIDE]);
        let expected = (1.0 - 0.0418) / 0.0295;
        assert!(near.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| (x - expected).abs() < 1e-4));
        let ramp = Plane::from_fn(448, 224, |x, _| image::Luma([x as f32 / 448.0]));
        let seen = thermal(&ramp).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // The middle of a wide image begins at its column 112.
        assert!((seen[0] - 0.25).abs() < 1e-6 && (seen[SIDE - 1] - 335.0 / 448.0).abs() < 1e-6);
        assert!(matches!(thermal(&Plane::new(0, 3)), Err(ModelError::EmptyImage { .. })));
    }

    #[test]
    fn recordings_of_another_length_are_refused() {
        let message = motion(&[[0.0; 6]; 7]).unwrap_err().to_string();
        assert_eq!(message, "expected a recording of 2000 moments, found 7");
        let recording: Vec<[f32; 6]> = (0..2000).map(|i| [0, 1, 2, 3, 4, 5].map(|j| (i * 6 + j) as f32)).collect();
        let rows = motion(&recording).unwrap();
        assert_eq!(rows.i((0, 1, 2)).unwrap().to_scalar::<f32>().unwrap(), 13.0);
    }
}
