//! CLAP (Wu et al., "Large-Scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption
//! Augmentation", 2023): sounds and texts in one space, without the blending of several spectra of a long sound.
//!
//! Reference: transformers' `modeling_clap.py`, `feature_extraction_clap.py`.

use candle_core::{Device, Tensor};

use crate::{
    ModelError,
    bert::{Kind, TextEncoder, TextEncoderConfig},
    clip::{scalar, sub_config},
    config::Config,
    embedder::{Embedder, EmbedderInfo, Modality},
    embedders::in_text_batches,
    folder::ModelFolder,
    layers::{Activation, Linear, activation, compute, normalise, with_values},
    resample,
    spectrum::{MelFilters, MelScale, MelSpectrum, stretch},
    speech::heard_samples,
    swin::{FeatureMap, Swin, SwinConfig},
    text_tokenizer::{Padding, TextTokenizer, TokenBatch},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

const FILE: &str = "preprocessor_config.json";
/// Samples a second where the file is silent.
const RATE: usize = 48_000;
/// Energies below this count as this.
const FLOOR: f64 = 1e-10;
/// What keeps a variance from being zero in the norm of the spectra: torch's default, no option.
const NORM_EPS: f64 = 1e-5;

/// `ClapModel`.
pub(crate) struct Clap {
    pub(crate) audio: AudioTower,
    pub(crate) text: TextEncoder,
    pub(crate) audio_projection: Projection,
    pub(crate) text_projection: Projection,
    /// Natural logarithms of the factors on the cosine, of a sound among texts and of a text among sounds.
    pub(crate) logit_scales: [f64; 2],
}

/// A Swin Transformer over a spectrum that is folded into a square.
pub(crate) struct AudioTower {
    swin: Swin,
    /// For each mel filter, what a value is multiplied by and what is added then.
    norm: Vec<[f32; 2]>,
    /// Pixels along a side of the square.
    side: usize,
    /// How many stretches of the spectrum lie below each other in it.
    folds: usize,
}

/// Two layers into the common space.
pub(crate) struct Projection {
    first: Linear,
    activation: Activation,
    second: Linear,
}

impl Clap {
    /// Reads the network of a `config.json` with `model_type` `clap`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let dims = config.size_or("projection_dim", 512)?;
        let hears = sub_config(config, "audio_config")?;
        let reads = sub_config(config, "text_config")?;
        for sub in [&hears, &reads] {
            sub.only("projection_dim", dims)?;
        }
        // The halves say their own; the reference reads these two nowhere.
        for inert in ["hidden_size", "num_hidden_layers", "projection_hidden_act"] {
            config.value(inert);
        }
        config.finish()?;
        let acts = [&hears, &reads].map(|sub| activation(sub, "projection_hidden_act", Activation::Relu));
        let [audio_act, text_act] = acts;
        if reads.id_if_there("pad_token_id")?.is_none() {
            return Err(reads.bad("pad_token_id", "a token id", "none"));
        }
        let text_config = TextEncoderConfig::read(&reads, Kind::Roberta)?;
        let audio = AudioTower::load(&hears, &weights.at("audio_model.audio_encoder"))?;
        let project = |name: &str, inputs: usize, activation: Activation| -> Result<Projection, ModelError> {
            let place = weights.at(name);
            Ok(Projection {
                first: Linear::load(&place.at("linear1"), inputs, dims, true)?,
                activation,
                second: Linear::load(&place.at("linear2"), dims, dims, true)?,
            })
        };
        let this = Self {
            audio_projection: project("audio_projection", audio.swin.width(), audio_act?)?,
            text_projection: project("text_projection", text_config.stack.width, text_act?)?,
            logit_scales: [scalar(weights, "logit_scale_a")?, scalar(weights, "logit_scale_t")?],
            text: TextEncoder::load_at(&weights.at("text_model"), text_config)?,
            audio,
        };
        // How many batches the norm has seen; zeros.
        weights.finish(&[
            "audio_model.audio_encoder.batch_norm.num_batches_tracked",
            "text_model.embeddings.token_type_ids",
        ])?;
        Ok(this)
    }

    /// What stands for each text, before the projection: `[n, width]`.
    ///
    /// # Errors
    /// candle's, and where the checkpoint has no pooler.
    pub(crate) fn text_pooled(&self, tokens: &TokenBatch) -> Candle<Tensor> {
        let hidden = self.text.forward(&tokens.ids, &tokens.types, &tokens.mask, &mut |_| ())?;
        let Some(pooled) = self.text.pooled(&hidden)? else { candle_core::bail!("CLAP's text tower has no pooler") };
        Ok(pooled)
    }
}

impl AudioTower {
    fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let (side, mels) = (config.size_or("spec_size", 256)?, config.size_or("num_mel_bins", 64)?);
        if !side.is_multiple_of(mels) {
            return Err(config.bad("num_mel_bins", format!("a divisor of spec_size, which is {side}"), mels));
        }
        let swin = Swin::load(SwinConfig::read_clap(config)?, weights)?;
        let norm = weights.at("batch_norm");
        let values = |name: &str| norm.values(name, &[mels]);
        let (weight, bias) = (values("weight")?, values("bias")?);
        let (mean, variance) = (values("running_mean")?, values("running_var")?);
        let norm = (0..mels).map(|i| {
            let factor = f64::from(weight[i]) / (f64::from(variance[i]) + NORM_EPS).sqrt();
            [factor as f32, (f64::from(bias[i]) - f64::from(mean[i]) * factor) as f32]
        });
        Ok(Self { swin, norm: norm.collect(), side, folds: side / mels })
    }

    /// Frames of the longest spectrum.
    fn longest(&self) -> usize {
        self.side * self.folds
    }

    /// A spectrum `[frames, mels]` → the square that the network sees, `[1, 1, side, side]`: normed, stretched to the longest,
    /// cut into as many stretches as fit below each other, frequency downwards and time to the right.
    pub(crate) fn fold(&self, spectrum: &[f32]) -> Candle<Tensor> {
        let mels = self.norm.len();
        let rows = spectrum.chunks_exact(mels);
        let normed = rows.flat_map(|row| row.iter().zip(&self.norm).map(|(x, [factor, offset])| x * factor + offset));
        let (frames, longest) = (spectrum.len() / mels, self.longest());
        let mut grid = Tensor::from_vec(normed.collect::<Vec<_>>(), (frames, mels), &Device::Cpu)?;
        if frames < longest {
            grid = resample::bicubic_aligned(&grid, [frames, 1], [longest, 1])?;
        }
        let stretches = grid.reshape((self.folds, self.side, mels))?.transpose(1, 2)?.contiguous()?;
        stretches.reshape((1, 1, self.side, self.side))
    }

    /// What [`AudioTower::fold`] gives → the map of the last stage, normed.
    pub(crate) fn forward(&self, square: &Tensor) -> Candle<FeatureMap> {
        let map = self.swin.forward(square)?.pop();
        map.ok_or_else(|| candle_core::Error::Msg("the audio tower has no stages".to_owned()))
    }

    /// The map as the reference shows it, the stretches behind each other again: `[1, width, frequencies, times]`.
    pub(crate) fn unfold(&self, map: &FeatureMap) -> Candle<Tensor> {
        let (across, width) = (map.width, map.values.dim(2)?);
        let down = map.height / self.folds;
        let folded = map.values.reshape((self.folds, down, across, width))?.permute((3, 1, 0, 2))?;
        folded.contiguous()?.reshape((1, width, down, self.folds * across))
    }

    /// The mean of a map's vectors, `[1, width]`.
    pub(crate) fn pooled(&self, map: &FeatureMap) -> Candle<Tensor> {
        map.values.mean(1)
    }
}

impl Projection {
    /// `[n, inputs]` → `[n, dims]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        self.second.forward(&self.first.forward_activated(x, self.activation)?)
    }
}

/// Samples a second of the waveforms that a folder's network was trained on.
///
/// # Errors
/// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
pub(crate) fn sample_rate(folder: &ModelFolder) -> Result<u32, ModelError> {
    Ok(Config::read(folder, FILE)?.size_or("sampling_rate", RATE)? as u32)
}

/// The tokenizer of CLAP's texts.
///
/// # Errors
/// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
pub(crate) fn tokenizer(folder: &ModelFolder, network: &Clap) -> Result<TextTokenizer, ModelError> {
    let config = &network.text.config;
    TextTokenizer::open(folder, config.longest(), |pad| Padding::Longest(pad.unwrap_or(config.pad)))
}

/// What fills a window behind a sound that is shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filling {
    /// The sound as often as it fits whole, then silence.
    RepeatPad,
    /// The sound again and again, the last time cut.
    Repeat,
    Silence,
}

/// What `preprocessor_config.json` asks to be done to a waveform.
#[derive(Debug)]
pub(crate) struct LogMel {
    spectrum: MelSpectrum,
    filling: Filling,
    /// Samples of a window.
    samples: usize,
    /// What the filters are made of: how many, from and to which frequency, samples a second and of a stretch.
    shape: (usize, [f64; 2], usize, usize),
}

impl LogMel {
    /// Reads `preprocessor_config.json`, which must fit the network.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
    pub(crate) fn open(folder: &ModelFolder, network: &Clap) -> Result<Self, ModelError> {
        let config = Config::read(folder, FILE)?;
        config.only("feature_extractor_type", "ClapFeatureExtractor")?;
        // Several spectra of a long sound, for a network that blends them.
        if config.text("truncation")? != Some("rand_trunc") {
            config.only("truncation", "rand_trunc")?;
            return Err(config.bad("truncation", "rand_trunc", "none, which stands for fusion"));
        }
        let filling = match config.text("padding")?.unwrap_or("repeatpad") {
            "repeatpad" => Filling::RepeatPad,
            "repeat" => Filling::Repeat,
            "pad" => Filling::Silence,
            other => return Err(config.bad("padding", "repeatpad, repeat or pad", other)),
        };
        config.only("top_db", serde_json::Value::Null)?;
        if config.number_or("padding_value", 0.0)? != 0.0 {
            return Err(config.bad("padding_value", 0, "another number"));
        }
        let rate = config.size_or("sampling_rate", RATE)?;
        let (length, hop) = (stretch(&config, "fft_window_size", 1024)?, stretch(&config, "hop_length", 480)?);
        let mels = config.size_or("feature_size", 64)?;
        let samples = config.size_or("max_length_s", 10)? * rate;
        let range = [config.number_or("frequency_min", 0.0)?, config.number_or("frequency_max", 14_000.0)?];
        if mels != network.audio.norm.len() {
            let expected = format!("{} as num_mel_bins of config.json", network.audio.norm.len());
            return Err(config.bad("feature_size", expected, mels));
        }
        if samples / hop + 1 > network.audio.longest() {
            let expected = format!("so short that a spectrum has at most {} frames", network.audio.longest());
            return Err(config.bad("max_length_s", expected, samples / rate));
        }
        if !(0.0 <= range[0] && range[0] < range[1]) {
            return Err(config.bad("frequency_min", "at least 0 and below frequency_max", range[0]));
        }
        // Said by fft_window_size and max_length_s already; padding is always at the end.
        for inert in ["nb_frequency_bins", "nb_max_samples", "padding_side", "processor_class", "return_attention_mask"]
        {
            config.value(inert);
        }
        config.finish()?;
        let shape = (mels, range, rate, length);
        let filters = MelFilters::new(MelScale::Slaney, mels, range, rate, length);
        Ok(Self { spectrum: MelSpectrum::new(length, hop, filters), filling, samples, shape })
    }

    /// The filters as the reference shows them, `[frequencies, mels]`: those on `scale`.
    pub(crate) fn filters(&self, scale: MelScale) -> Candle<Tensor> {
        let (mels, range, rate, length) = self.shape;
        let filters = MelFilters::new(scale, mels, range, rate, length);
        Tensor::from_vec(filters.matrix(), (length / 2 + 1, mels), &Device::Cpu)
    }

    /// The spectrum of a window's samples, `[frames, mels]` in decibels. A longer waveform is cut behind the window: the
    /// reference takes a window from anywhere in it by chance.
    pub(crate) fn apply(&self, waveform: &[f32]) -> Vec<f32> {
        let mut window = waveform[..waveform.len().min(self.samples)].to_vec();
        let times = match self.filling {
            Filling::Silence => 1,
            Filling::RepeatPad => self.samples / window.len().max(1),
            Filling::Repeat => self.samples / window.len().max(1) + 1,
        };
        if window.len() < self.samples {
            window = window.repeat(times);
            window.resize(self.samples, 0.0);
        }
        self.spectrum.energies(&window).iter().map(|x| (10.0 * x.max(FLOOR).log10()) as f32).collect()
    }
}

/// Sounds and texts in one space; the vectors have length 1.
pub(crate) struct ClapEmbedder {
    pub(crate) info: EmbedderInfo,
    pub(crate) network: Clap,
    pub(crate) front: LogMel,
    pub(crate) tokenizer: TextTokenizer,
}

impl Embedder for ClapEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn embed_texts(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, ModelError>> {
        let read = |text: &str| self.tokenizer.encode(text);
        in_text_batches(texts, read, |tokens| {
            let pooled = self.network.text_pooled(&self.tokenizer.pad(tokens)?);
            let vectors = pooled.and_then(|x| normalise(&self.network.text_projection.forward(&x)?)?.to_vec2());
            vectors.map_err(compute("the text tower"))
        })
    }

    fn embed_images(&self, images: &[&image::RgbImage]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info.refuse(Modality::Image, images.len())
    }

    fn embed_audio(&self, waveforms: &[&[f32]]) -> Vec<Result<Vec<f32>, ModelError>> {
        let Clap { audio, audio_projection, .. } = &self.network;
        let one = |waveform: &&[f32]| {
            heard_samples(waveform, 1)?;
            let run = || {
                let map = audio.forward(&audio.fold(&self.front.apply(waveform))?)?;
                let vector = normalise(&audio_projection.forward(&audio.pooled(&map)?)?)?;
                with_values(&vector, |values| Ok(values.to_vec()))
            };
            run().map_err(compute("the audio tower"))
        };
        waveforms.iter().map(one).collect()
    }
}
