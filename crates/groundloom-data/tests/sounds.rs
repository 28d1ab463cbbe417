//! Decoding hears what libsndfile hears, and resampling is torchaudio's, on the files of `scripts/sound_fixtures.py`; what is no whole sound is refused by name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::PathBuf};

use groundloom_data::sound::{Sound, SoundError, SoundFormat, SoundLimits, decode_mono, resample};
use proptest::prelude::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/sounds")
}

fn file(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap()
}

fn floats(name: &str) -> Vec<f32> {
    file(name).chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn decode(bytes: &[u8]) -> Result<Sound, SoundError> {
    decode_mono(bytes, None, &SoundLimits::default())
}

/// Every sound that has its samples beside it.
fn fixtures() -> BTreeMap<String, Vec<u8>> {
    let names: Vec<String> =
        fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let sounds: BTreeMap<String, Vec<u8>> =
        names.iter().filter(|n| names.contains(&format!("{n}.f32"))).map(|n| (n.clone(), file(n))).collect();
    assert_eq!(sounds.len(), 18);
    sounds
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn samples_are_libsndfiles() {
    for (name, bytes) in fixtures() {
        let sound = decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = floats(&format!("{name}.f32"));
        let difference = apart(&sound.samples, &expected);
        println!("{name}: {} of {} samples, {difference:e}", sound.samples.len(), expected.len());
        assert_eq!(sound.samples.len(), expected.len(), "{name}");
        // Lossless ones differ by the rounding of the mean alone.
        let lossy = matches!(sound.format, SoundFormat::Mp3 | SoundFormat::Ogg);
        assert!(difference <= if lossy { 1e-4 } else { 1e-7 }, "{name}: {difference}");
        assert_eq!(SoundFormat::sniff(&bytes), Some(sound.format));
        assert_eq!(sound.rate, sound.file_rate);
        let channels = match name.as_str() {
            "six_channels.wav" => 6,
            _ if name.starts_with("stereo") => 2,
            _ => 1,
        };
        assert_eq!(sound.channels, channels, "{name}");
    }
}

/// The waveform of `resample.f32`.
fn waveform(samples: i64) -> Vec<f32> {
    (0..samples).map(|i| (i * 7919 % 201 - 100 + i * i % 57) as f32 / 256.0).collect()
}

#[test]
fn resampling_is_torchaudios() {
    let (given, all) = (waveform(700), floats("resample.f32"));
    let mut rest = all.as_slice();
    let table = String::from_utf8(file("resample.tsv")).unwrap();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let [from, to, count] = line.split('\t').map(|x| x.parse().unwrap()).collect::<Vec<u32>>()[..] else {
            panic!()
        };
        let (expected, others) = rest.split_at(count as usize);
        rest = others;
        let found = resample(&given, from, to);
        assert_eq!(found.len(), expected.len(), "{line}");
        let difference = apart(&found, expected);
        println!("{from} to {to}: {difference:e}");
        assert!(difference < 1e-5, "{line}: {difference}");
    }
    assert!(rest.is_empty());
}

#[test]
fn a_sound_comes_at_the_rate_that_is_asked_for() {
    for name in ["stereo.wav", "stereo24.flac", "mono.ogg", "mono.mp3"] {
        let bytes = file(name);
        let plain = decode(&bytes).unwrap();
        let sound = decode_mono(&bytes, Some(48_000), &SoundLimits::default()).unwrap();
        assert_eq!((sound.rate, sound.file_rate), (48_000, plain.rate));
        assert_eq!(sound.samples, resample(&plain.samples, plain.rate, 48_000), "{name}");
    }
}

#[test]
fn what_is_no_sound_is_refused_by_name() {
    let image = fs::read(folder().join("../media/palette.png")).unwrap();
    let (silent, opus) = (file("empty.wav"), file("opus.ogg"));
    let cases: [(&[u8], &str, &str); 12] = [
        (b"", "empty", "empty file"),
        (b"a text, not a sound\n", "not_a_sound", "text starting \"a text, not a sound"),
        (b"<!DOCTYPE html><html>", "not_a_sound", "HTML page"),
        (&image, "not_a_sound", "found a png image"),
        (&[0; 64], "not_a_sound", "zero bytes"),
        (b"\xff\xfe\0a\0 \0t", "not_a_sound", "ff fe 00"),
        (&silent, "no_samples", "the wav sound has no samples"),
        (&opus, "unsupported", "Opus is not supported; convert it"),
        (b"\0\0\0\x1cftypM4A \0\0\0\0mp42isom", "unsupported", "MP4"),
        (b"FORM\0\0\0\0AIFF", "unsupported", "AIFF"),
        (b"\xff\xfd\x90\0\0\0", "unsupported", "layer II"),
        (b"RIFF\x24\0\0\0WAVE", "truncated", "wav"),
    ];
    for (bytes, kind, message) in cases {
        let error = decode(bytes).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(message), "{kind}: {error:?}");
        assert_eq!(error.code(), "undecodable_audio");
    }
}

#[test]
fn a_cut_sound_is_told() {
    for name in ["pcm_16.wav", "stereo.wav", "double.wav", "mono.flac", "stereo24.flac", "mono.ogg", "stereo.ogg"] {
        let bytes = file(name);
        for part in [0.3, 0.6, 0.97] {
            let error = decode(&bytes[..(bytes.len() as f64 * part) as usize]).unwrap_err();
            assert_eq!(error.kind(), "truncated", "{name} {part}: {error}");
        }
    }
    // Without its last frames an MP3 is short by less than encoders differ in how they count.
    for part in [0.3, 0.5] {
        let bytes = file("stereo.mp3");
        assert_eq!(decode(&bytes[..(bytes.len() as f64 * part) as usize]).unwrap_err().kind(), "truncated");
    }
    let message = decode(&file("pcm_16.wav")[..2044]).unwrap_err().to_string();
    assert!(message.contains("its header announces 1600 samples, 1000 are there"), "{message}");
    // One that does not know its length ends where it ends.
    assert_eq!(decode(&file("open_ended.wav")[..2044]).unwrap().samples.len(), 1000);
}

#[test]
fn damage_is_told() {
    let mut flac = file("mono.flac");
    // The checksum of the samples stands in the last bytes of the first block.
    flac[30] ^= 1;
    assert!(decode(&flac).unwrap_err().to_string().contains("checksum"), "{:?}", decode(&flac));
    let mut wav = file("float.wav");
    let samples = wav.len() - 400;
    wav[samples..samples + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(decode(&wav).unwrap_err().to_string().contains("NaN, no finite number"), "{:?}", decode(&wav));
    let mut rate = file("pcm_16.wav");
    rate[24..28].copy_from_slice(&7_u32.to_le_bytes());
    assert!(decode(&rate).unwrap_err().to_string().contains("100 to 768000 samples a second, found 7"));
}

#[test]
fn limits_hold() {
    let wav = file("pcm_16.wav");
    let limits = |max_seconds| SoundLimits { max_seconds, ..SoundLimits::default() };
    assert!(decode_mono(&wav, None, &limits(0.1)).is_ok());
    let error = decode_mono(&wav, None, &limits(0.05)).unwrap_err();
    assert_eq!((error.kind(), error.code()), ("too_long", "audio_too_long"));
    let error = decode_mono(&wav, None, &SoundLimits { max_bytes: 100, ..SoundLimits::default() }).unwrap_err();
    assert_eq!((error.kind(), error.code()), ("too_long", "audio_too_long"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever bytes are changed: an answer or an error, within the limits.
    #[test]
    fn damaged_bytes_never_panic(which in 0_usize..18, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let (_, mut bytes) = fixtures().into_iter().nth(which).unwrap();
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        let limits = SoundLimits { max_seconds: 1.0, max_bytes: 1 << 20 };
        if let Ok(sound) = decode_mono(&bytes, Some(16_000), &limits) {
            prop_assert!(!sound.samples.is_empty() && sound.samples.len() <= 16_001);
        }
    }
}
