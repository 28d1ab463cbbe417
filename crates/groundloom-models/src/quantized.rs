//! Llama, Qwen2 and Qwen3 in GGUF files, computed by candle's own networks on weights that stay as small as they are stored; by one of ours where positions are scaled.

mod turning;

use std::{
    io::Cursor,
    sync::{Mutex, PoisonError},
};

use candle_core::{
    Device, Tensor,
    quantized::gguf_file::{Content, Value},
};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};

use crate::{
    ModelError,
    folder::{ModelFolder, hexadecimal},
    language_model::{room, row},
    layers::compute,
    weights::{bytes, digest},
    writing::{Ending, Texts, Writing, Written, write},
};

use turning::Turning;

type Candle<T> = candle_core::Result<T>;

/// What the name of such a file ends in.
pub(crate) const EXTENSION: &str = ".gguf";
/// Tokens of a prompt that are read at once, at most. The networks keep a mask for each length and place.
const AT_ONCE: usize = 64;

/// What a GGUF file says about itself, without its tensors' values.
pub(crate) struct Gguf {
    file: String,
    content: Content,
    pub(crate) architecture: String,
    pub(crate) sha256: String,
    /// Of the file.
    pub(crate) bytes: u64,
}

impl Gguf {
    /// Reads the head of the file `name` and takes its fingerprint.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadWeights`].
    pub(crate) fn open(folder: &ModelFolder, name: &str) -> Result<Self, ModelError> {
        let file = folder.file_name(name);
        let bytes = bytes(folder, name)?;
        let bad = |problem: String| ModelError::BadWeights { origin: file.clone(), problem };
        let content = Content::read(&mut Cursor::new(&*bytes))
            .map_err(|e| bad(format!("expected a GGUF file, found bytes that do not parse as one ({e})")))?;
        let architecture = match content.metadata.get("general.architecture") {
            Some(Value::String(name)) => name.clone(),
            found => return Err(bad(format!("expected general.architecture to be a text, found {found:?}"))),
        };
        let sha256 = hexadecimal(&digest(&file, &bytes));
        Ok(Self { content, architecture, sha256, bytes: bytes.len() as u64, file })
    }

    /// A text of its metadata.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.content.metadata.get(key).and_then(|value| value.to_string().ok().cloned())
    }

    /// A number of its metadata.
    pub(crate) fn number(&self, key: &str) -> Option<u32> {
        self.content.metadata.get(key).and_then(|value| value.to_u32().ok())
    }

    /// Reads the network, the file's name in `folder` being `name`.
    ///
    /// # Errors
    /// [`ModelError::UnsupportedArchitecture`], [`ModelError::BadWeights`], [`ModelError::Unreadable`].
    pub(crate) fn network(self, folder: &ModelFolder, name: &str) -> Result<Quantized, ModelError> {
        let Self { file, mut content, architecture, .. } = self;
        let bad = |problem: String| ModelError::BadWeights { origin: file.clone(), problem };
        let scaled = turning::scaling(&content, &architecture).map_err(&bad)?;
        let length = content.metadata.get(&format!("{architecture}.context_length"));
        let longest = length.and_then(|length| length.to_u32().ok()).unwrap_or(2048) as usize;
        let bytes = bytes(folder, name)?;
        // candle's Qwen3 would turn places in half precision, in which those beyond 2,048 are not even whole numbers; 0 is its word for single.
        content.metadata.insert("general.dtype".to_owned(), Value::U32(0));
        let (mut reader, device) = (Cursor::new(&*bytes), Device::Cpu);
        let network = match architecture.as_str() {
            "llama" | "qwen2" | "qwen3" if scaled.is_some() => {
                Turning::read(&content, &bytes, &architecture).map(|network| Network::Turning(Box::new(network)))
            }
            "llama" => quantized_llama::ModelWeights::from_gguf(content, &mut reader, &device).map(Network::Llama),
            "qwen2" => quantized_qwen2::ModelWeights::from_gguf(content, &mut reader, &device).map(Network::Qwen2),
            "qwen3" => quantized_qwen3::ModelWeights::from_gguf(content, &mut reader, &device).map(Network::Qwen3),
            _ => {
                return Err(ModelError::UnsupportedArchitecture {
                    origin: file,
                    found: architecture,
                    supported: "llama, qwen2, qwen3".to_owned(),
                });
            }
        };
        let network = network.map_err(|e| bad(format!("expected the tensors of a {architecture}, found: {e}")))?;
        // candle's Llama has a table of so many places.
        let most = if matches!(network, Network::Llama(_)) { quantized_llama::MAX_SEQ_LEN } else { usize::MAX };
        Ok(Quantized { network: Mutex::new(network), longest: longest.min(most) })
    }
}

/// A network that remembers what it has read: it writes one text at a time.
pub(crate) struct Quantized {
    network: Mutex<Network>,
    longest: usize,
}

enum Network {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
    Turning(Box<Turning>),
}

impl Network {
    fn forget(&mut self) {
        match self {
            Self::Llama(network) => network.clear_kv_cache(),
            Self::Qwen2(network) => network.clear_kv_cache(),
            Self::Qwen3(network) => network.clear_kv_cache(),
            Self::Turning(network) => network.forget(),
        }
    }

    /// Values behind the last of `ids`, which stand behind `before` others.
    fn forward(&mut self, ids: &Tensor, before: usize) -> Candle<Vec<f32>> {
        let values = match self {
            Self::Llama(network) => network.forward(ids, before),
            Self::Qwen2(network) => network.forward(ids, before),
            Self::Qwen3(network) => network.forward(ids, before),
            Self::Turning(network) => network.forward(ids, before),
        };
        values?.flatten_all()?.to_vec1()
    }
}

impl Quantized {
    /// Writes on behind `context`; `waited_for` is asked between parts of a long one.
    ///
    /// # Errors
    /// [`ModelError::NoRoom`], those of `waited_for`, and [`crate::writing::write`]'s; [`ModelError::BadWriting`] for beams.
    pub(crate) fn write(
        &self,
        context: &[u32],
        writing: &Writing,
        seed: u64,
        ending: Ending<'_>,
        waited_for: &dyn Fn() -> Result<(), ModelError>,
    ) -> Result<Written, ModelError> {
        if writing.beams() > 1 {
            let (expected, found) = ("1 for a GGUF file, whose network remembers one text", writing.beams() as f32);
            return Err(ModelError::BadWriting { option: "beams", expected, found });
        }
        let room = room(context.len(), self.longest)?;
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        network.forget();
        let mut before = 0;
        let mut next = |texts: Texts<'_>| {
            let ids = match texts {
                Texts::Begun => context,
                Texts::Grown { ids, .. } => ids,
            };
            let (mut rest, mut values) = (ids, Vec::new());
            while !rest.is_empty() {
                waited_for()?;
                let (part, behind) = rest.split_at(at_once(rest.len()));
                let run = row(part).and_then(|ids| network.forward(&ids, before));
                values = run.map_err(compute("a GGUF file's network"))?;
                before += part.len();
                rest = behind;
            }
            Ok(vec![values])
        };
        let written = write(writing, seed, context, ending, room, &mut next, &mut |_| ());
        network.forget();
        written
    }
}

#[cfg(test)]
impl Quantized {
    /// Values behind `ids`, read `piece` at a time.
    pub(crate) fn values(&self, ids: &[u32], piece: usize) -> Vec<f32> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        network.forget();
        let (mut before, mut values) = (0, Vec::new());
        for piece in ids.chunks(piece) {
            values = row(piece).and_then(|ids| network.forward(&ids, before)).unwrap_or_default();
            before += piece.len();
        }
        network.forget();
        values
    }
}

/// How many of `left` tokens are read at once: powers of two, so that few masks are kept.
fn at_once(left: usize) -> usize {
    match left {
        0 => 0,
        left => AT_ONCE.min(1 << left.ilog2()),
    }
}
