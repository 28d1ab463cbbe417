//! From a waveform to the spectra that Whisper sees.

use crate::{
    ModelError,
    config::Config,
    folder::ModelFolder,
    spectrum::{MelFilters, MelScale, MelSpectrum, stretch},
    speech::SAMPLE_RATE,
};

use super::{STRIDE, Whisper};

const FILE: &str = "preprocessor_config.json";

/// The highest frequency that is looked at, in Hz; no option.
const HIGHEST: f64 = 8000.0;
/// Energies below this count as this.
const FLOOR: f64 = 1e-10;
/// How far below the loudest a value may lie, in powers of ten.
const RANGE: f64 = 8.0;

/// What `preprocessor_config.json` asks to be done to a waveform.
#[derive(Debug)]
pub(crate) struct LogMel {
    spectrum: MelSpectrum,
    /// Samples of a window.
    pub(crate) samples: usize,
    /// Samples from one frame of a spectrum to the next.
    pub(crate) hop: usize,
}

impl LogMel {
    /// Reads `preprocessor_config.json`, which must fit the network.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
    pub(crate) fn open(folder: &ModelFolder, network: &Whisper) -> Result<Self, ModelError> {
        let config = Config::read(folder, FILE)?;
        config.only("feature_extractor_type", "WhisperFeatureExtractor")?;
        config.only("sampling_rate", SAMPLE_RATE)?;
        config.only("do_normalize", false)?;
        let mels = config.size_or("feature_size", 80)?;
        if mels != network.mels {
            return Err(config.bad("feature_size", format!("{} as num_mel_bins of config.json", network.mels), mels));
        }
        let length = stretch(&config, "n_fft", 400)?;
        // Timestamps are in steps of 0.02 s: of two frames of 160 samples.
        config.only("hop_length", 160)?;
        let hop = 160;
        let seconds = config.size_or("chunk_length", 30)?;
        let samples = seconds * SAMPLE_RATE as usize;
        if samples / hop != STRIDE * network.frames {
            let seconds_of_network = STRIDE * network.frames * hop / SAMPLE_RATE as usize;
            let expected = format!("{seconds_of_network} seconds as max_source_positions of config.json");
            return Err(config.bad("chunk_length", expected, seconds));
        }
        for zero in ["dither", "padding_value"] {
            let found = config.number_or(zero, 0.0)?;
            if found != 0.0 {
                return Err(config.bad(zero, 0, found));
            }
        }
        // Said by chunk_length already; the filters, which older files hold; padding is always at the end.
        for inert in ["mel_filters", "n_samples", "nb_max_frames", "padding_side", "processor_class"] {
            config.value(inert);
        }
        config.value("return_attention_mask");
        config.finish()?;
        let filters = MelFilters::new(MelScale::Slaney, mels, [0.0, HIGHEST], SAMPLE_RATE as usize, length);
        Ok(Self { spectrum: MelSpectrum::new(length, hop, filters), samples, hop })
    }

    /// The filters' sums over all frequencies.
    pub(crate) fn filter_sums(&self) -> Vec<f32> {
        let (matrix, count) = (self.spectrum.filters.matrix(), self.spectrum.filters.len());
        (0..count).map(|i| matrix.iter().skip(i).step_by(count).sum()).collect()
    }

    /// Frames of a window.
    pub(crate) fn window(&self) -> usize {
        self.samples / self.hop
    }

    /// The spectrum of a waveform, `[frames, mels]`: of a whole window where it is shorter, the rest being silence.
    pub(crate) fn apply(&self, waveform: &[f32]) -> Vec<f32> {
        let silence = vec![0.0; self.samples.saturating_sub(waveform.len())];
        let frames = waveform.len().max(self.samples) / self.hop;
        let mut values = self.spectrum.energies(&[waveform, &silence].concat());
        // The last frame, whose middle lies at the end, is left out.
        values.truncate(frames * self.spectrum.filters.len());
        values.iter_mut().for_each(|x| *x = x.max(FLOOR).log10());
        let loudest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        values.iter().map(|x| ((x.max(loudest - RANGE) + 4.0) / 4.0) as f32).collect()
    }

    /// The window of a spectrum from the frame `start` on; behind its end there are zeros.
    pub(crate) fn cut(&self, spectrum: &[f32], start: usize) -> Vec<f32> {
        let (mels, frames) = (self.spectrum.filters.len(), self.window());
        let from = (start * mels).min(spectrum.len());
        let to = (from + frames * mels).min(spectrum.len());
        let mut window = spectrum[from..to].to_vec();
        window.resize(frames * mels, 0.0);
        window
    }
}
