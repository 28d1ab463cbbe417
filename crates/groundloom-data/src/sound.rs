//! Sounds: what the bytes are, and their samples as models take them: one channel, at the rate that a model was trained on.
//!
//! Decoding is symphonia's, checked against libsndfile; see [`decode_mono`] for what differs.

mod ogg;
mod resample;

use std::{
    collections::BTreeMap,
    io::{Cursor, ErrorKind},
    panic::{AssertUnwindSafe, catch_unwind},
};

use symphonia::{
    core::{
        audio::SampleBuffer,
        codecs::{CODEC_TYPE_NULL, CodecParameters, Decoder, DecoderOptions},
        errors::Error,
        formats::{FormatOptions, FormatReader},
        io::{MediaSource, MediaSourceStream, MediaSourceStreamOptions, ReadOnlySource},
    },
    default::{
        formats::{FlacReader, MpaReader, OggReader, WavReader},
        get_codecs,
    },
};

use crate::media::appearance;
pub use resample::{Resampler, resample};

/// Sample rates that are believed, in Hz.
const RATES: std::ops::RangeInclusive<u32> = 100..=768_000;
/// What writers that cannot go back put for a length that they do not know yet: this many bytes or more.
const UNKNOWN_LENGTH: u64 = 0x7FFF_0000;
/// Samples that an MP3's header may announce though they are not there: encoders count frames differently.
const MP3_SLACK: u64 = 2 * 1152;

/// The formats of sounds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SoundFormat {
    /// WAV: whole numbers of 8 to 32 bits, floating point, A-law and µ-law.
    Wav,
    /// FLAC.
    Flac,
    /// MPEG audio, layer III.
    Mp3,
    /// Ogg with Vorbis or FLAC.
    Ogg,
}

impl SoundFormat {
    /// The format that the first bytes announce, behind ID3 tags; `None` if they announce no sound or one that is not read.
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        match announced(bytes) {
            Announced::Read(format, _) => Some(format),
            _ => None,
        }
    }

    /// Lower-case name: `wav`, `flac`, `mp3`, `ogg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wav => "wav",
            Self::Flac => "flac",
            Self::Mp3 => "mp3",
            Self::Ogg => "ogg",
        }
    }
}

/// Bounds on what is decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoundLimits {
    /// Longest sound in seconds; 3600 by default. What is decoded is at most four bytes for each sample of this at the rate that is asked for.
    pub max_seconds: f64,
    /// Most bytes an encoded sound may have; 256 MiB by default.
    pub max_bytes: usize,
}

impl Default for SoundLimits {
    fn default() -> Self {
        Self { max_seconds: 3600.0, max_bytes: 256 << 20 }
    }
}

/// A decoded sound.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// One channel, full scale from −1 to 1.
    pub samples: Vec<f32>,
    /// Samples a second.
    pub rate: u32,
    /// The format of the file.
    pub format: SoundFormat,
    /// Samples a second in the file.
    pub file_rate: u32,
    /// Channels in the file.
    pub channels: usize,
}

/// Why bytes are not the samples of a sound.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SoundError {
    /// No bytes at all.
    #[error("expected a sound, found an empty file")]
    Empty,
    /// The first bytes are those of no sound format.
    #[error("expected a WAV, FLAC, MP3 or Ogg sound, found {found}")]
    NotASound {
        /// What the bytes look like.
        found: String,
    },
    /// The sound ends too early.
    #[error("the {format} sound is cut off: {message}")]
    Truncated {
        /// Its format.
        format: &'static str,
        /// Where it ends.
        message: String,
    },
    /// A whole file in which nothing is to be heard, not even silence.
    #[error("the {format} sound has no samples")]
    NoSamples {
        /// Its format.
        format: &'static str,
    },
    /// The sound is longer than the limit; what was decoded is thrown away.
    #[error("the sound is longer than the limit of {limit} seconds; raise the limit, or cut it before")]
    TooLong {
        /// [`SoundLimits::max_seconds`].
        limit: f64,
    },
    /// The encoded sound is larger than the limit.
    #[error("the encoded sound has {bytes} bytes, more than the limit of {limit}")]
    TooManyBytes {
        /// Its size.
        bytes: usize,
        /// [`SoundLimits::max_bytes`].
        limit: usize,
    },
    /// A sound of a kind that is not read: another format, or a rare variant of one that is.
    #[error("{what} is not supported; convert it to WAV or FLAC")]
    Unsupported {
        /// The format or variant.
        what: String,
    },
    /// The content contradicts the format.
    #[error("the {format} sound is damaged: {message}")]
    Damaged {
        /// Its format.
        format: &'static str,
        /// What the decoder says.
        message: String,
    },
}

impl SoundError {
    /// The quarantine code: `audio_too_long` for [`SoundError::TooLong`] and [`SoundError::TooManyBytes`], else `undecodable_audio`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } | Self::TooManyBytes { .. } => "audio_too_long",
            _ => "undecodable_audio",
        }
    }

    /// The kind of damage in one word, finer than the code: `empty`, `not_a_sound`, `truncated`, `no_samples`, `too_long`, `unsupported`, `damaged`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotASound { .. } => "not_a_sound",
            Self::Truncated { .. } => "truncated",
            Self::NoSamples { .. } => "no_samples",
            Self::TooLong { .. } | Self::TooManyBytes { .. } => "too_long",
            Self::Unsupported { .. } => "unsupported",
            Self::Damaged { .. } => "damaged",
        }
    }
}

/// Decodes a sound to one channel at `rate` samples a second, or at its own where that is `None`.
///
/// Whole numbers become floating point by their full scale (16 bits: divided by 32768), several channels their mean, and another rate is reached as
/// `torchaudio.transforms.Resample` reaches it by default ([`resample()`]). What an encoder put before and behind the sound is left out where the file says
/// so (MP3 with LAME's tag, Vorbis). Of a file with several tracks the first sound is taken; tags and pictures are passed over.
///
/// A cut-off sound is an error where the file says how long it is (WAV, FLAC, MP3 with Xing's or Fraunhofer's tag) or where it ends (Ogg), and FLAC's checksum is compared. The samples
/// are mixed and resampled while they are decoded, so that little more than the encoded bytes and the answer is held.
///
/// # Errors
/// A [`SoundError`]; never panics.
pub fn decode_mono(bytes: &[u8], rate: Option<u32>, limits: &SoundLimits) -> Result<Sound, SoundError> {
    if bytes.is_empty() {
        return Err(SoundError::Empty);
    }
    let (format, at) = match announced(bytes) {
        Announced::Read(format, at) => (format, at),
        Announced::Other(what) => return Err(SoundError::Unsupported { what: what.to_owned() }),
        Announced::Nothing => return Err(SoundError::NotASound { found: appearance(bytes) }),
    };
    if bytes.len() > limits.max_bytes {
        return Err(SoundError::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes });
    }
    // Decoders are strangers' code on hostile input: a panic in one is damage of the sound.
    let decode = AssertUnwindSafe(|| decode(&bytes[at..], format, rate, limits));
    catch_unwind(decode).unwrap_or_else(|_| Err(damaged(format, "the decoder gave up on it")))
}

/// What the first bytes say.
enum Announced {
    /// A format that is read, and where it begins.
    Read(SoundFormat, usize),
    /// A format of sounds or films that is not read.
    Other(&'static str),
    Nothing,
}

fn announced(bytes: &[u8]) -> Announced {
    let at = behind_tags(bytes);
    let start = bytes.get(at..).unwrap_or_default();
    let brand = |place: usize, name: &[u8]| start.get(place..).is_some_and(|rest| rest.starts_with(name));
    let read = |format| Announced::Read(format, at);
    match start {
        [b'R', b'I', b'F', b'F', ..] if brand(8, b"WAVE") => read(SoundFormat::Wav),
        [b'f', b'L', b'a', b'C', ..] => read(SoundFormat::Flac),
        [b'O', b'g', b'g', b'S', ..] => match () {
            () if brand(28, b"OpusHead") => Announced::Other("Opus"),
            () if brand(28, b"Speex") => Announced::Other("Speex"),
            () => read(SoundFormat::Ogg),
        },
        [0xff, second, third, ..] if second & 0xe0 == 0xe0 => {
            mpeg(*second, *third).map_or(Announced::Nothing, |kind| match kind {
                Ok(format) => read(format),
                Err(what) => Announced::Other(what),
            })
        }
        _ => {
            let others: [(usize, &[u8], &str); 10] = [
                (4, b"ftyp", "MP4 or another ISO media file"),
                (8, b"AIFF", "AIFF"),
                (8, b"AIFC", "AIFF-C"),
                (0, b"RF64", "RF64, a WAV of more than 4 GiB,"),
                (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
                (0, b"wvpk", "WavPack"),
                (0, b"MAC ", "Monkey's Audio"),
                (0, b"#!AMR", "AMR"),
                (0, b"caff", "Apple's CAF"),
                (0, b"\x30\x26\xb2\x75", "Windows Media"),
            ];
            others
                .iter()
                .find(|(place, mark, _)| brand(*place, mark))
                .map_or(Announced::Nothing, |(.., what)| Announced::Other(what))
        }
    }
}

/// What the second and third byte of a frame of MPEG audio say, if they can be such: a format or one that is not read.
fn mpeg(second: u8, third: u8) -> Option<Result<SoundFormat, &'static str>> {
    let (version, layer) = (second >> 3 & 3, second >> 1 & 3);
    // No version of MPEG, a bit rate and a sample rate that there are not.
    let possible = version != 1 && third >> 4 != 15 && third >> 2 & 3 != 3;
    match layer {
        // The sync word is one bit longer.
        0 => (second & 0xf6 == 0xf0).then_some(Err("AAC")),
        1 => possible.then_some(Ok(SoundFormat::Mp3)),
        2 => possible.then_some(Err("MPEG audio of layer II")),
        // Layer I is nowhere to be found; texts in UTF-16 begin so.
        _ => None,
    }
}

/// Where the sound begins behind ID3 tags, and behind zeros that some writers put there.
fn behind_tags(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some([b'I', b'D', b'3', _, _, flags, a, b, c, d]) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        if (a | b | c | d) & 0x80 != 0 {
            break;
        }
        let size = [a, b, c, d].into_iter().fold(0, |size, byte| size << 7 | usize::from(*byte));
        at += 10 + size + if flags & 0x10 == 0 { 0 } else { 10 };
    }
    let zeros = bytes.get(at..).unwrap_or_default().iter().take_while(|byte| **byte == 0).count();
    if at == 0 { 0 } else { at + zeros }
}

fn decode(bytes: &[u8], format: SoundFormat, rate: Option<u32>, limits: &SoundLimits) -> Result<Sound, SoundError> {
    let fault = |error: Error| sound_error(format, &error);
    let streams = if format == SoundFormat::Ogg { ogg::check(bytes)? } else { BTreeMap::new() };
    let mut reader = open(bytes, format).map_err(fault)?;
    let known = |params: &CodecParameters| params.codec != CODEC_TYPE_NULL;
    let Some(track) = reader.tracks().iter().find(|track| known(&track.codec_params)).cloned() else {
        return Err(SoundError::Unsupported {
            what: format!("a {} file without a sound of a known kind", format.name()),
        });
    };
    let mut decoder = decoder(&track.codec_params, format)?;
    // What Vorbis' encoder put behind the sound lies behind the position of the last page.
    let end = streams.get(&track.id).copied().filter(|samples| *samples > 0).unwrap_or(u64::MAX);
    let mut mix: Option<Mix> = None;
    loop {
        let packet = match reader.next_packet() {
            Ok(packet) => packet,
            // This is also how a file ends that is whole.
            Err(Error::IoError(e)) if e.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(fault(error)),
        };
        if packet.track_id() != track.id {
            continue;
        }
        let decoded = decoder.decode(&packet).map_err(fault)?;
        // The first packet of Vorbis only prepares the next; of no frames several channels cannot be copied.
        if decoded.frames() == 0 {
            continue;
        }
        let (rate_now, channels) = (decoded.spec().rate, decoded.spec().channels.count());
        let mix = match &mut mix {
            Some(mix) => mix,
            none => none.insert(Mix::new(format, rate_now, channels, rate, limits)?),
        };
        if (rate_now, channels) != (mix.file_rate, mix.channels) {
            return Err(SoundError::Unsupported {
                what: "a sound that changes its sample rate or its channels".to_owned(),
            });
        }
        let mut interleaved = SampleBuffer::<f32>::new(decoded.frames() as u64, *decoded.spec());
        interleaved.copy_interleaved_ref(decoded);
        let there = usize::try_from(end.saturating_sub(mix.frames)).unwrap_or(usize::MAX).saturating_mul(channels);
        let samples = interleaved.samples();
        mix.add(&samples[..samples.len().min(there)])?;
    }
    let frames = mix.as_ref().map_or(0, |mix| mix.frames);
    if let Some(expected) = announced_frames(&track.codec_params, format)
        && frames + if format == SoundFormat::Mp3 { MP3_SLACK } else { 0 } < expected
    {
        let message = format!("its header announces {expected} samples, {frames} are there");
        return Err(SoundError::Truncated { format: format.name(), message });
    }
    if decoder.finalize().verify_ok == Some(false) {
        return Err(damaged(format, "its samples do not have the checksum that its header announces"));
    }
    match mix {
        Some(mix) if mix.frames > 0 => Ok(mix.finish()),
        _ => Err(SoundError::NoSamples { format: format.name() }),
    }
}

fn open(bytes: &[u8], format: SoundFormat) -> Result<Box<dyn FormatReader>, Error> {
    let options = FormatOptions { enable_gapless: true, ..FormatOptions::default() };
    let file = Cursor::new(bytes.to_vec());
    let stream = |source: Box<dyn MediaSource>| MediaSourceStream::new(source, MediaSourceStreamOptions::default());
    Ok(match format {
        SoundFormat::Wav => Box::new(WavReader::try_new(stream(Box::new(file)), &options)?),
        SoundFormat::Flac => Box::new(FlacReader::try_new(stream(Box::new(file)), &options)?),
        // Of a source that can be sought the reader guesses a length from the bit rate, and would drop what lies behind it.
        SoundFormat::Mp3 => Box::new(MpaReader::try_new(stream(Box::new(ReadOnlySource::new(file))), &options)?),
        SoundFormat::Ogg => Box::new(OggReader::try_new(stream(Box::new(file)), &options)?),
    })
}

fn decoder(params: &CodecParameters, format: SoundFormat) -> Result<Box<dyn Decoder>, SoundError> {
    if let Some(rate) = params.sample_rate {
        check_rate(format, rate)?;
    }
    get_codecs().make(params, &DecoderOptions { verify: true }).map_err(|e| sound_error(format, &e))
}

/// Samples of a channel that the file says it has; `None` where it does not.
fn announced_frames(params: &CodecParameters, format: SoundFormat) -> Option<u64> {
    let frames = params.n_frames?;
    if format == SoundFormat::Wav {
        let bytes = u64::from(params.bits_per_sample.unwrap_or(8).div_ceil(8));
        let channels = params.channels.map_or(1, |channels| channels.count()) as u64;
        return (frames.saturating_mul(bytes * channels) < UNKNOWN_LENGTH).then_some(frames);
    }
    Some(frames)
}

fn check_rate(format: SoundFormat, rate: u32) -> Result<(), SoundError> {
    match RATES.contains(&rate) {
        true => Ok(()),
        false => Err(damaged(
            format,
            format!("expected {} to {} samples a second, found {rate}", RATES.start(), RATES.end()),
        )),
    }
}

/// Several channels on their way to one of another rate.
struct Mix {
    format: SoundFormat,
    file_rate: u32,
    channels: usize,
    rate: u32,
    resampler: Resampler,
    mono: Vec<f32>,
    samples: Vec<f32>,
    frames: u64,
    most: u64,
    limit: f64,
}

impl Mix {
    fn new(
        format: SoundFormat,
        file_rate: u32,
        channels: usize,
        rate: Option<u32>,
        limits: &SoundLimits,
    ) -> Result<Self, SoundError> {
        check_rate(format, file_rate)?;
        let rate = rate.unwrap_or(file_rate);
        Ok(Self {
            format,
            file_rate,
            channels,
            rate,
            resampler: Resampler::new(file_rate, rate),
            mono: Vec::new(),
            samples: Vec::new(),
            frames: 0,
            most: (limits.max_seconds.max(0.0) * f64::from(file_rate)) as u64,
            limit: limits.max_seconds,
        })
    }

    /// Takes the samples of a packet, those of all channels beside each other.
    fn add(&mut self, interleaved: &[f32]) -> Result<(), SoundError> {
        let frames = interleaved.chunks_exact(self.channels.max(1));
        self.frames += frames.len() as u64;
        if self.frames > self.most {
            return Err(SoundError::TooLong { limit: self.limit });
        }
        self.mono.clear();
        self.mono.extend(frames.map(|frame| frame.iter().sum::<f32>() / self.channels as f32));
        if let Some(place) = self.mono.iter().position(|sample| !sample.is_finite()) {
            let message = format!("a sample is {}, no finite number", self.mono[place]);
            return Err(damaged(self.format, message));
        }
        self.resampler.push(&self.mono, &mut self.samples);
        Ok(())
    }

    fn finish(mut self) -> Sound {
        self.resampler.finish(&mut self.samples);
        let Self { samples, rate, format, file_rate, channels, .. } = self;
        Sound { samples, rate, format, file_rate, channels }
    }
}

fn damaged(format: SoundFormat, message: impl Into<String>) -> SoundError {
    SoundError::Damaged { format: format.name(), message: message.into() }
}

fn sound_error(format: SoundFormat, error: &Error) -> SoundError {
    match error {
        Error::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => {
            SoundError::Truncated { format: format.name(), message: "the file ends in the middle of it".to_owned() }
        }
        Error::Unsupported(what) => {
            SoundError::Unsupported { what: format!("a {} sound of this kind ({what})", format.name()) }
        }
        other => damaged(format, other.to_string()),
    }
}
