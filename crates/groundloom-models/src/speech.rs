//! What every model of speech answers, and how wav2vec 2.0 and HuBERT do (Whisper: `whisper`).

use crate::{
    ModelError, ModelIdentity, config::Config, ctc::Alphabet, folder::ModelFolder, layers::compute, wav2vec2::Wav2Vec2,
};

/// Samples a second of the waveforms that models of speech take.
pub const SAMPLE_RATE: u32 = 16_000;

/// Added to the variance of a waveform before it divides, as transformers' feature extractor does.
const EPS: f64 = 1e-7;

/// Vectors of the frames of a waveform.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// How many frames there are, at least one.
    pub frames: usize,
    /// Length of a frame's vector.
    pub width: usize,
    /// `[frames, width]`, row-major.
    pub values: Vec<f32>,
}

/// A model that turns speech into a vector for each short stretch of it.
pub trait AudioEncoder: Send + Sync {
    /// Who this model is.
    fn info(&self) -> &ModelIdentity;

    /// The last layer that features can be taken from: the number of the transformer's blocks.
    fn layers(&self) -> usize;

    /// Length of a frame's vector.
    fn width(&self) -> usize;

    /// The features of each of `waveforms` (mono, [`SAMPLE_RATE`] samples a second, full scale from −1 to 1): `layer` 0 is
    /// the input of the first block, `layer` n the output of block n; `None` is what the model gives as its last hidden
    /// state, which a network with its norms before its layers norms once more.
    ///
    /// Each waveform is computed by itself and without padding; Whisper sees it in windows of 30 s, the last of them with
    /// silence behind it, whose frames are left out. One fails by itself: [`ModelError::ShortWaveform`],
    /// [`ModelError::BadSample`]; all fail by [`ModelError::NoLayer`].
    fn features(&self, waveforms: &[&[f32]], layer: Option<usize>) -> Vec<Result<Features, ModelError>>;
}

/// A model that writes what is said.
pub trait Transcriber: Send + Sync {
    /// Who this model is.
    fn info(&self) -> &ModelIdentity;

    /// What is said in each of `waveforms`, as in [`AudioEncoder::features`]. CTC: the likeliest token of each frame,
    /// repeats once, blanks left out; it knows no languages and no times. Whisper: the likeliest token each time, window
    /// after window, or a beam search where beams are asked for.
    ///
    /// A waveform fails by itself: [`ModelError::ShortWaveform`], [`ModelError::BadSample`]; all fail by
    /// [`ModelError::Unable`] and [`ModelError::UnknownLanguage`].
    fn transcribe(&self, waveforms: &[&[f32]], asked: &Transcribing) -> Vec<Result<Transcript, ModelError>>;
}

/// How speech is written down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transcribing {
    /// The language that is spoken, as the model calls it (`en`); without, a model of several hears it in the first window.
    pub language: Option<String>,
    /// Whether the text is to be in English, whatever is spoken.
    pub translate: bool,
    /// Whether the segments are to be told. A waveform longer than a window of the model is always cut into them.
    pub timestamps: bool,
    /// Whether words are to be told, and when they are said (Whisper): it is written with timestamps then.
    pub words: bool,
    /// As in [`crate::Writing`] (Whisper); without, as the model's folder says.
    pub beams: Option<usize>,
}

/// What is said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    /// The whole text.
    pub text: String,
    /// The language, where the model knows several.
    pub language: Option<String>,
    /// Stretches of the text in order, where they were asked for or needed and the model tells them.
    pub segments: Vec<Segment>,
    /// Its words in order, where they were asked for, each with the space before it and the punctuation around it.
    pub words: Vec<Segment>,
}

/// A stretch of speech.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// In seconds from the beginning of the waveform.
    pub start: f64,
    /// As `start`.
    pub end: f64,
    /// What is said.
    pub text: String,
}

/// Refuses a waveform of fewer than `least` samples, and one with a sample that is no finite number.
///
/// # Errors
/// [`ModelError::ShortWaveform`], [`ModelError::BadSample`].
pub(crate) fn heard_samples(waveform: &[f32], least: usize) -> Result<(), ModelError> {
    let samples = waveform.len();
    if samples < least {
        return Err(ModelError::ShortWaveform { samples, least });
    }
    match waveform.iter().position(|x| !x.is_finite()) {
        Some(place) => Err(ModelError::BadSample { place, found: waveform[place].to_string() }),
        None => Ok(()),
    }
}

/// What `preprocessor_config.json` asks to be done to a waveform.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standardiser {
    normalise: bool,
}

impl Standardiser {
    /// Reads `preprocessor_config.json`.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
    pub(crate) fn open(folder: &ModelFolder) -> Result<Self, ModelError> {
        let config = Config::read(folder, "preprocessor_config.json")?;
        config.only("feature_extractor_type", "Wav2Vec2FeatureExtractor")?;
        config.only("sampling_rate", SAMPLE_RATE)?;
        config.only("feature_size", 1)?;
        let normalise = config.flag_or("do_normalize", true)?;
        // Nothing is padded here.
        for inert in ["padding_side", "padding_value", "processor_class", "return_attention_mask"] {
            config.value(inert);
        }
        config.finish()?;
        Ok(Self { normalise })
    }

    /// The waveform as the network takes it: with mean 0 and variance 1, where the folder says so.
    pub(crate) fn apply(self, waveform: &[f32]) -> Vec<f32> {
        if !self.normalise {
            return waveform.to_vec();
        }
        let count = waveform.len().max(1) as f64;
        let mean = waveform.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = waveform.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (variance + EPS).sqrt();
        waveform.iter().map(|&x| ((f64::from(x) - mean) * scale) as f32).collect()
    }
}

/// wav2vec 2.0 or HuBERT.
pub(crate) struct Wav2Vec2Encoder {
    pub(crate) info: ModelIdentity,
    pub(crate) network: Wav2Vec2,
    pub(crate) standardiser: Standardiser,
}

impl Wav2Vec2Encoder {
    /// A waveform as the network takes it.
    fn input(&self, waveform: &[f32]) -> Result<Vec<f32>, ModelError> {
        heard_samples(waveform, self.network.least_samples())?;
        Ok(self.standardiser.apply(waveform))
    }
}

impl AudioEncoder for Wav2Vec2Encoder {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn layers(&self) -> usize {
        self.network.layers()
    }

    fn width(&self) -> usize {
        self.network.width
    }

    fn features(&self, waveforms: &[&[f32]], layer: Option<usize>) -> Vec<Result<Features, ModelError>> {
        let (layers, width) = (self.layers(), self.width());
        let one = |waveform: &&[f32]| {
            if let Some(layer) = layer.filter(|&layer| layer > layers) {
                return Err(ModelError::NoLayer { model: self.info.name.clone(), layer, layers });
            }
            let input = self.input(waveform)?;
            let values = self.network.features(&input, layer).and_then(|x| x.flatten_all()?.to_vec1::<f32>());
            let values = values.map_err(compute("the speech encoder"))?;
            Ok(Features { frames: values.len() / width, width, values })
        };
        waveforms.iter().map(one).collect()
    }
}

/// wav2vec 2.0 or HuBERT with a value for each token.
pub(crate) struct Wav2Vec2Transcriber {
    pub(crate) encoder: Wav2Vec2Encoder,
    pub(crate) alphabet: Alphabet,
}

impl Transcriber for Wav2Vec2Transcriber {
    fn info(&self) -> &ModelIdentity {
        &self.encoder.info
    }

    fn transcribe(&self, waveforms: &[&[f32]], asked: &Transcribing) -> Vec<Result<Transcript, ModelError>> {
        let Wav2Vec2Encoder { info, network, .. } = &self.encoder;
        let one = |waveform: &&[f32]| {
            let unable = |what, supported| ModelError::Unable {
                model: info.name.clone(),
                architecture: info.architecture.clone(),
                what,
                supported,
            };
            let several = "a Whisper of several languages";
            if asked.translate {
                return Err(unable("translate speech", several));
            }
            if asked.language.is_some() {
                return Err(unable("choose among languages", several));
            }
            if asked.words {
                return Err(unable("tell when words are said", "a Whisper"));
            }
            if asked.beams.is_some() {
                return Err(unable("search beams", "a Whisper"));
            }
            let input = self.encoder.input(waveform)?;
            let ids = network.features(&input, None).and_then(|x| network.likeliest(&x));
            let text = self.alphabet.text(&ids.map_err(compute("the speech encoder"))?);
            Ok(Transcript { text, ..Transcript::default() })
        };
        waveforms.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waveform_has_mean_0_and_variance_1() {
        let waveform = [0.5, -0.25, 0.125, 0.625];
        let found = Standardiser { normalise: true }.apply(&waveform);
        let mean = found.iter().sum::<f32>() / 4.0;
        let variance = found.iter().map(|x| x * x).sum::<f32>() / 4.0;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5, "{found:?}");
        assert_eq!(Standardiser { normalise: false }.apply(&waveform), waveform);
        // Silence stays silence.
        assert_eq!(Standardiser { normalise: true }.apply(&[0.25; 9]), [0.0; 9]);
    }
}
