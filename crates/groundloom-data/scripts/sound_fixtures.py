"""Writes tests/sounds/: a short sound of every kind that is read, and beside it what libsndfile decodes of it, mixed to one channel, as NAME.f32 (32-bit floats, little-endian).

    pip install soundfile numpy torch torchaudio
    python scripts/sound_fixtures.py

`resample.f32` holds what `torchaudio.transforms.Resample` makes (its kernel is in double precision; `functional.resample` computes it in single precision) of a waveform that tests/sounds.rs computes too, for each pair of rates in `resample.tsv`, one after the other.
"""

import pathlib
import struct

import numpy as np
import soundfile
import torch
import torchaudio

OUT = pathlib.Path(__file__).parent.parent / "tests" / "sounds"
RATES = [(44100, 16000), (8000, 16000), (48000, 16000), (16000, 48000), (22050, 16000), (44100, 48000), (11025, 16000), (16000, 44100), (32000, 8000), (12345, 16000)]


def sound(seconds: float, rate: int, channels: int) -> np.ndarray:
    """Tones, another for each channel, that swell, and some noise."""
    t = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(5)
    swell = np.sin(np.pi * t / seconds)
    columns = [0.5 * swell * np.sin(2 * np.pi * 220 * (c + 1) * t) + 0.02 * rng.standard_normal(len(t)) for c in range(channels)]
    return np.stack(columns, -1)


def write(name: str, data: np.ndarray, rate: int, subtype: str, kind: str) -> None:
    soundfile.write(OUT / name, data, rate, subtype=subtype, format=kind)
    expect(name)


def expect(name: str) -> None:
    decoded, _ = soundfile.read(OUT / name, dtype="float32", always_2d=True)
    decoded.mean(axis=1, dtype=np.float64).astype("<f4").tofile(OUT / (name + ".f32"))


def open_ended(name: str, data: np.ndarray, rate: int) -> None:
    """A WAV as FFmpeg writes it into a pipe: it does not know its length."""
    body = (data[:, 0] * 32767).astype("<i2")
    head = b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    (OUT / name).write_bytes(head + b"data\xff\xff\xff\xff" + body.tobytes())
    (body.astype("<f4") / 32768).tofile(OUT / (name + ".f32"))


def tagged(name: str, source: str) -> None:
    """The same file behind an ID3 tag with a title and padding."""
    frame = b"TIT2" + struct.pack(">IH", 6, 0) + b"\x00title"
    body = frame + bytes(100)
    size = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))
    (OUT / name).write_bytes(b"ID3\x03\x00\x00" + size + body + (OUT / source).read_bytes())
    (OUT / (name + ".f32")).write_bytes((OUT / (source + ".f32")).read_bytes())


def waveform(samples: int) -> np.ndarray:
    """Whole numbers by 256: exact in single precision."""
    i = np.arange(samples, dtype=np.int64)
    return ((i * 7919 % 201 - 100 + i * i % 57) / 256).astype(np.float32)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    mono, stereo = sound(0.1, 16000, 1), sound(0.1, 16000, 2)
    for subtype in ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"]:
        write(f"{subtype.lower()}.wav", mono, 16000, subtype, "WAV")
    write("stereo.wav", stereo, 22050, "PCM_16", "WAV")
    write("six_channels.wav", sound(0.05, 8000, 6), 8000, "PCM_16", "WAVEX")
    open_ended("open_ended.wav", mono, 16000)
    write("mono.flac", mono, 16000, "PCM_16", "FLAC")
    write("stereo24.flac", stereo, 44100, "PCM_24", "FLAC")
    write("mono.mp3", sound(0.3, 16000, 1), 16000, "MPEG_LAYER_III", "MP3")
    write("stereo.mp3", sound(0.2, 44100, 2), 44100, "MPEG_LAYER_III", "MP3")
    tagged("tagged.mp3", "mono.mp3")
    write("mono.ogg", sound(0.3, 16000, 1), 16000, "VORBIS", "OGG")
    write("stereo.ogg", sound(0.2, 44100, 2), 44100, "VORBIS", "OGG")
    write("opus.ogg", sound(0.2, 48000, 1), 48000, "OPUS", "OGG")
    (OUT / "opus.ogg.f32").unlink()
    # No samples at all.
    soundfile.write(OUT / "empty.wav", np.zeros((0, 1)), 16000, subtype="PCM_16")

    resampled, lines = [], []
    for source, target in RATES:
        given = torch.from_numpy(waveform(700))
        made = torchaudio.transforms.Resample(source, target)(given).numpy()
        resampled.append(made)
        lines.append(f"{source}\t{target}\t{len(made)}\n")
    np.concatenate(resampled).astype("<f4").tofile(OUT / "resample.f32")
    head = f"# torchaudio {torchaudio.__version__.split('+')[0]}, torch {torch.__version__.split('+')[0]}: from, to, samples\n"
    (OUT / "resample.tsv").write_text(head + "".join(lines))
    version = soundfile.__libsndfile_version__
    print(f"libsndfile {version}")


main()
