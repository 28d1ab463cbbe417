//! Compressed inputs, told by their file name.

use std::{
    io::{self, BufReader, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use flate2::bufread::MultiGzDecoder;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, also of several members (`.gz`, `.tgz`).
    Gzip,
    /// Zstandard, also of several frames (`.zst`, `.zstd`).
    Zstd,
}

impl Compression {
    /// By the end of the file's name, whatever the case.
    pub fn of_path(path: &str) -> Self {
        let path = path.to_ascii_lowercase();
        if path.ends_with(".gz") || path.ends_with(".tgz") {
            Self::Gzip
        } else if path.ends_with(".zst") || path.ends_with(".zstd") {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// A decompressing reader that tells a damaged file from a disk or network that fails: only the latter is an error of the run.
pub(crate) struct Decompressed {
    reader: Box<dyn Read + Send>,
    source_failed: Arc<AtomicBool>,
}

impl Decompressed {
    pub(crate) fn new(source: Box<dyn Read + Send>, compression: Compression) -> io::Result<Self> {
        let source_failed = Arc::new(AtomicBool::new(false));
        let source = Watched { source, failed: Arc::clone(&source_failed) };
        let buffered = |source| BufReader::with_capacity(256 << 10, source);
        let reader: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(source),
            Compression::Gzip => Box::new(MultiGzDecoder::new(buffered(source))),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered(source))?),
        };
        Ok(Self { reader, source_failed })
    }

    /// Whether the last error came from below the decompression.
    pub(crate) fn source_failed(&self) -> bool {
        self.source_failed.load(Ordering::Relaxed)
    }
}

impl Read for Decompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

struct Watched {
    source: Box<dyn Read + Send>,
    failed: Arc<AtomicBool>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.read(buffer).inspect_err(|e| {
            if e.kind() != io::ErrorKind::Interrupted {
                self.failed.store(true, Ordering::Relaxed);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::io::Write;

    #[test]
    fn files_of_several_members_are_read_to_the_end() {
        let gzip = |text: &str| {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            writer.write_all(text.as_bytes()).unwrap();
            writer.finish().unwrap()
        };
        let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
        for (name, bytes) in [
            ("a.GZ", [gzip("one "), gzip("two")].concat()),
            ("a.zst", [zstd("one "), zstd("two")].concat()),
            ("a", b"one two".to_vec()),
        ] {
            let mut text = String::new();
            let compression = Compression::of_path(name);
            let mut reader = Decompressed::new(Box::new(io::Cursor::new(bytes.clone())), compression).unwrap();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "one two", "{name}");
            if compression != Compression::None {
                let cut = bytes[..bytes.len() - 3].to_vec();
                let mut reader = Decompressed::new(Box::new(io::Cursor::new(cut)), compression).unwrap();
                reader.read_to_end(&mut Vec::new()).unwrap_err();
                assert!(!reader.source_failed(), "the file is damaged, not the disk");
            }
        }
    }
}
