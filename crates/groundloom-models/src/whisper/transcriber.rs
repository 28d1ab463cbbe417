//! Whisper as an encoder of speech and as a transcriber.

use candle_core::Tensor;

use super::{
    LogMel, Prompts, STRIDE, Whisper,
    alignment::token_times,
    prompt::Stretch,
    words::{Splitter, Timed},
};
use crate::{
    ModelError, ModelIdentity,
    decoder::{Memory, Past},
    language_model::{last, row},
    layers::compute,
    speech::{AudioEncoder, Features, SAMPLE_RATE, Segment, Transcriber, Transcribing, Transcript, heard_samples},
    text_tokenizer::TextTokenizer,
    writing::{Ending, Texts, Writing, Written, write},
};

const OPERATION: &str = "Whisper";

/// The encoder of Whisper, with what makes its spectra.
pub(crate) struct WhisperEncoder {
    pub(crate) info: ModelIdentity,
    pub(crate) network: Whisper,
    pub(crate) log_mel: LogMel,
}

impl WhisperEncoder {
    /// What the encoder gives for a window's spectrum, behind its last norm: `[1, frames, width]`.
    fn encoded(&self, spectrum: &[f32]) -> Result<Tensor, ModelError> {
        let network = &self.network;
        let run = || network.normed(&network.encode(spectrum, network.layers(), &mut |_| ())?);
        run().map_err(compute(OPERATION))
    }
}

impl AudioEncoder for WhisperEncoder {
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
        let (layers, network) = (self.layers(), &self.network);
        let one = |waveform: &&[f32]| {
            if let Some(layer) = layer.filter(|&layer| layer > layers) {
                return Err(ModelError::NoLayer { model: self.info.name.clone(), layer, layers });
            }
            heard_samples(waveform, 1)?;
            let mut values = Vec::new();
            for window in waveform.chunks(self.log_mel.samples) {
                let run = || -> candle_core::Result<Vec<f32>> {
                    let spectrum = self.log_mel.apply(window);
                    let x = network.encode(&spectrum, layer.unwrap_or(layers), &mut |_| ())?;
                    if layer.is_none() { network.normed(&x)? } else { x }.flatten_all()?.to_vec1()
                };
                let all = run().map_err(compute(OPERATION))?;
                // The silence behind the waveform is not part of it.
                let frames = window.len().div_ceil(STRIDE * self.log_mel.hop);
                values.extend_from_slice(&all[..frames * network.width]);
            }
            Ok(Features { frames: values.len() / network.width, width: network.width, values })
        };
        waveforms.iter().map(one).collect()
    }
}

/// Whisper, with its tokenizer and its rules of writing.
pub(crate) struct WhisperTranscriber {
    pub(crate) encoder: WhisperEncoder,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) prompts: Prompts,
}

/// What is said in a waveform, as tokens.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// The token of the language.
    pub(crate) language: Option<u32>,
    pub(crate) timed: bool,
    pub(crate) stretches: Vec<Stretch>,
    /// When the tokens of all stretches end, in seconds, where words were asked for.
    pub(crate) times: Vec<f64>,
}

impl Heard {
    /// The tokens of all stretches.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.stretches.iter().flat_map(|stretch| &stretch.ids).copied().collect()
    }
}

impl WhisperTranscriber {
    /// What the decoder sees of a window's spectrum.
    pub(crate) fn remember(&self, spectrum: &[f32]) -> Result<Memory, ModelError> {
        let encoded = self.encoder.encoded(spectrum)?;
        self.encoder.network.remember(&encoded).map_err(compute(OPERATION))
    }

    /// The likeliest language of a window.
    pub(crate) fn hear_language(&self, memory: &Memory) -> Result<Option<u32>, ModelError> {
        if !self.prompts.has_languages() {
            return Ok(None);
        }
        let run =
            || last(&self.encoder.network.decode(&row(&[self.prompts.start()])?, &mut Past::default(), memory)?);
        Ok(self.prompts.heard(&run().map_err(compute(OPERATION))?.pop().unwrap_or_default()))
    }

    /// Writes behind `prompt`. `each` sees the values that the network gives, before any of them is forbidden.
    pub(crate) fn write(
        &self,
        memory: &Memory,
        prompt: &[u32],
        timed: bool,
        writing: &Writing,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<Written, ModelError> {
        let network = &self.encoder.network;
        let mut past = Past::default();
        let mut next = |texts: Texts<'_>| {
            let mut run = || {
                let ids = texts.follow([&mut past])?.map_or_else(|| row(prompt), Ok)?;
                last(&network.decode(&ids, &mut past, memory)?)
            };
            run().map_err(compute(OPERATION))
        };
        let room = self.prompts.room(prompt.len(), network.longest);
        let forbid = |values: &mut [f32], written: &[u32]| self.prompts.forbid(values, written, timed);
        let ends = [self.prompts.end];
        write(writing, 0, prompt, Ending::at(&ends).forbidding(&forbid), room, &mut next, each)
    }

    /// Writes down a waveform, window after window.
    pub(crate) fn listen(
        &self,
        waveform: &[f32],
        asked: &Transcribing,
        writing: &Writing,
    ) -> Result<Heard, ModelError> {
        let WhisperEncoder { info, log_mel, network } = &self.encoder;
        let unable = |what: &'static str, supported: &'static str| ModelError::Unable {
            model: info.name.clone(),
            architecture: info.architecture.clone(),
            what,
            supported,
        };
        if asked.translate && !self.prompts.translates() {
            return Err(unable("translate speech", "a Whisper of several languages"));
        }
        let mut language = self.prompts.language(&info.name, asked)?;
        heard_samples(waveform, 1)?;
        let spectrum = log_mel.apply(waveform);
        let frames = spectrum.len() / network.mels;
        // Where a window is not the last, times say where the next begins.
        let timed = asked.timestamps || asked.words || frames > log_mel.window();
        if asked.words && self.prompts.alignment_heads.is_none() {
            return Err(unable(
                "tell when words are said",
                "a Whisper whose generation_config.json names its alignment_heads",
            ));
        }
        // The silence behind the sound is not listened to.
        let sounding = if frames > log_mel.window() { frames } else { waveform.len().div_ceil(log_mel.hop) };
        if timed && !self.prompts.tells_times() {
            return Err(unable(
                "tell times, which waveforms longer than a window need",
                "a Whisper with <|notimestamps|>",
            ));
        }
        let mut heard = Heard { timed, ..Heard::default() };
        let mut start = 0;
        while start < frames {
            let memory = self.remember(&log_mel.cut(&spectrum, start))?;
            if language.is_none() {
                language = self.hear_language(&memory)?;
            }
            let prompt = self.prompts.prompt(language, asked.translate, timed);
            let written = self.write(&memory, &prompt, timed, writing, &mut |_| ())?;
            let (stretches, further) = self.prompts.cut(&written.ids, start, log_mel.window().min(frames - start));
            if asked.words {
                let times = self.times(&memory, &prompt, &written.ids, sounding.saturating_sub(start))?;
                let offset = (start * log_mel.hop) as f64 / f64::from(SAMPLE_RATE);
                let of_stretches =
                    stretches.iter().flat_map(|stretch| times.iter().skip(stretch.from).take(stretch.ids.len()));
                heard.times.extend(of_stretches.map(|time| offset + time));
            }
            heard.stretches.extend(stretches);
            start += further;
        }
        heard.language = language;
        Ok(heard)
    }

    /// When the tokens that were written behind `prompt` end, in seconds from the beginning of a window of which `frames`
    /// of the spectrum hold sound.
    fn times(&self, memory: &Memory, prompt: &[u32], written: &[u32], frames: usize) -> Result<Vec<f64>, ModelError> {
        let network = &self.encoder.network;
        let heads = self.prompts.alignment_heads.as_deref().unwrap_or_default();
        let frames = (frames / STRIDE).min(network.frames);
        // The last is not read any more: it ends with the one before it.
        let Some((_, read)) = written.split_last() else { return Ok(Vec::new()) };
        if read.is_empty() || frames == 0 {
            return Ok(vec![0.0; written.len()]);
        }
        let ids = [prompt, read].concat();
        let attended = network.attended(&ids, memory, heads, prompt.len(), frames).map_err(compute(OPERATION))?;
        let mut times = token_times(&attended, read.len(), frames, network.median_width);
        times.push(times.last().copied().unwrap_or(0.0));
        Ok(times)
    }

    /// The words of what was heard.
    pub(crate) fn words_of(&self, heard: &Heard) -> Result<Vec<Segment>, ModelError> {
        let tokens: Vec<Timed> =
            heard.ids().into_iter().zip(&heard.times).map(|(id, &end)| Timed { id, end }).collect();
        self.split_words(&tokens, heard.language.and_then(|id| self.prompts.language_name(id)))
    }

    /// The words of tokens in a language.
    pub(crate) fn split_words(&self, tokens: &[Timed], language: Option<&str>) -> Result<Vec<Segment>, ModelError> {
        let added = self.tokenizer.inner().get_added_tokens_decoder();
        let special = |id: u32| added.get(&id).is_some_and(|token| token.special);
        let decode = |ids: &[u32]| self.tokenizer.decode(ids);
        let first_time = self.prompts.first_time();
        Splitter { decode: &decode, special: &special, first_time, language }.words(tokens)
    }

    /// The text of tokens, timestamps left out.
    pub(crate) fn text(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.tokenizer.decode(&self.prompts.words(ids))
    }
}

impl Transcriber for WhisperTranscriber {
    fn info(&self) -> &ModelIdentity {
        &self.encoder.info
    }

    fn transcribe(&self, waveforms: &[&[f32]], asked: &Transcribing) -> Vec<Result<Transcript, ModelError>> {
        let writing = Writing { max_new_tokens: usize::MAX, beams: asked.beams, ..Writing::default() };
        let writing = self.prompts.generation.fill(&writing);
        let one = |waveform: &&[f32]| {
            let heard = self.listen(waveform, asked, &writing)?;
            let ids = heard.ids();
            let segment = |stretch: &Stretch| {
                let text = self.text(&stretch.ids)?.trim().to_owned();
                Ok(Segment { start: stretch.start, end: stretch.end, text })
            };
            let stretches = if heard.timed { heard.stretches.as_slice() } else { &[] };
            Ok(Transcript {
                text: self.text(&ids)?.trim().to_owned(),
                language: heard.language.and_then(|id| self.prompts.language_name(id)).map(str::to_owned),
                segments: stretches.iter().map(segment).collect::<Result<_, ModelError>>()?,
                words: if asked.words { self.words_of(&heard)? } else { Vec::new() },
            })
        };
        waveforms.iter().map(one).collect()
    }
}
