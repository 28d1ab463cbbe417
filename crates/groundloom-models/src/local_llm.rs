//! A language model in this process that answers conversations, from a folder of its files.

use std::sync::OnceLock;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::{
    ModelError,
    chat_template::{ChatMessage, ChatSettings, ChatTemplate, SETTINGS},
    config::Config,
    device::{Device, ModelOn},
    family::Family,
    folder::{ModelFolder, hexadecimal},
    generation,
    json_form::{Following, FormVocabulary, JsonForm},
    language_model::{LanguageModel, continue_until, row},
    layers::compute,
    llama::Llama,
    quantized::{EXTENSION, Gguf, Quantized},
    registry::find,
    text_tokenizer::read_tokenizer,
    weights::Weights,
    writers::ModelIdentity,
    writing::{Ending, Guide, Writing, Written},
};

/// Files beside the weights that decide an answer.
const DECIDING: &[&str] = &["config.json", "generation_config.json", "tokenizer.json", SETTINGS, "chat_template.jinja"];
/// Architectures that answer.
const SUPPORTED: &str = "llama, qwen2, qwen3";

/// What a model is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The turns, the last one being answered.
    pub messages: Vec<ChatMessage>,
    /// How the answer's tokens are chosen.
    pub writing: Writing,
    /// Of the draws. They depend on it and on the prompt, and on nothing else.
    pub seed: u64,
    /// Texts that end the answer, and are no part of it.
    pub stop: Vec<String>,
    /// What the answer has to be, if it is to be JSON. Then no token is written that could not be part of it, and it ends in time.
    pub form: Option<JsonForm>,
    /// Further values for the chat template, such as `enable_thinking`.
    pub template_values: Map<String, Value>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatAnswer {
    /// The text, without special tokens.
    pub text: String,
    /// Whether it was cut, at the limit of the request or of the model, rather than ended.
    pub cut: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer, the one that ended it among them.
    pub answer_tokens: usize,
}

/// A local language model's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLlmInfo {
    /// Who it is.
    pub model: ModelIdentity,
    /// Sha256 of the weights' and of the digests of all other files that decide an answer, in hexadecimal.
    pub fingerprint: String,
}

/// The weights of a folder, opened.
enum Source {
    Tensors { config: Config, kind: crate::llama::Kind, weights: Weights },
    Gguf { name: String, gguf: Gguf },
}

impl Source {
    fn open(name: &str, folder: &ModelFolder, device: Device) -> Result<Self, ModelError> {
        if let Some(file) = gguf_of(name, folder)? {
            return Ok(Self::Gguf { gguf: Gguf::open(folder, &file)?, name: file });
        }
        match Family::of(name, folder)? {
            Family::Llama(kind) => {
                let weights = Weights::open(folder)?.on(&device.open()?);
                Ok(Self::Tensors { config: Config::open(folder)?, kind, weights })
            }
            other => Err(other.unsuited(name, SUPPORTED)),
        }
    }

    fn info(&self, name: &str, folder: &ModelFolder) -> Result<LocalLlmInfo, ModelError> {
        let (architecture, weights_sha256, weights_bytes) = match self {
            Self::Tensors { kind, weights, .. } => {
                (kind.name().to_owned(), weights.sha256().to_owned(), weights.file_bytes())
            }
            Self::Gguf { gguf, .. } => (gguf.architecture.clone(), gguf.sha256.clone(), gguf.bytes),
        };
        let mut all = Sha256::new();
        all.update(b"groundloom local model 1\0");
        all.update(weights_sha256.as_bytes());
        for file in DECIDING {
            // A file that is missing is told from an empty one.
            if let Some(bytes) = folder.read_if_there(file)? {
                all.update(file.as_bytes());
                all.update([0]);
                all.update(Sha256::digest(&bytes));
            }
        }
        let (name, licence) = (name.to_owned(), folder.licence());
        let generation_sha256 = generation::digest(folder)?;
        let model = ModelIdentity { name, architecture, weights_sha256, weights_bytes, generation_sha256, licence };
        Ok(LocalLlmInfo { model, fingerprint: hexadecimal(&all.finalize()) })
    }
}

/// The one GGUF file of a folder that has no weights of another kind.
fn gguf_of(name: &str, folder: &ModelFolder) -> Result<Option<String>, ModelError> {
    let ModelFolder::OnDisk(path) = folder else { return Ok(None) };
    if folder.has(crate::weights::SINGLE) || folder.has(crate::weights::INDEX) {
        return Ok(None);
    }
    let unreadable = |e: std::io::Error| ModelError::Unreadable { path: path.clone(), reason: e.to_string() };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        if file.ends_with(EXTENSION) {
            files.push(file);
        }
    }
    files.sort();
    match files.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        several => Err(ModelError::BadConfig {
            origin: name.to_owned(),
            problem: format!(
                "expected one GGUF file, found {}; put the one that is meant into a folder of its own, with its \
                 tokenizer.json",
                several.join(", ")
            ),
        }),
    }
}

/// Who the language model that `name` stands for is, without reading its weights into memory. Whether it loads,
/// [`LocalLlm::load`] says.
///
/// # Errors
/// As [`LocalLlm::load`].
pub fn describe_local_llm(name: &str) -> Result<LocalLlmInfo, ModelError> {
    let folder = find(name)?;
    Source::open(name, &folder, Device::Cpu)?.info(name, &folder)
}

/// A language model that answers conversations.
pub struct LocalLlm {
    info: LocalLlmInfo,
    network: Network,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// Tokens that end an answer.
    ends: Vec<u32>,
    /// Of forms; read when the first one is asked for.
    vocabulary: OnceLock<Result<FormVocabulary, ModelError>>,
}

enum Network {
    Whole(Llama),
    Quantized(Quantized),
}

/// What `generation_config.json` says about the end of texts; how they are written, requests say.
#[derive(Deserialize, Default)]
struct GenerationConfig {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl LocalLlm {
    /// Loads the model that `name` stands for: the path of a folder, or a model of the hub that is in the cache, in Hugging
    /// Face layout with safetensors of a Llama, Qwen2 or Qwen3; or a folder with one GGUF file of these and the model's
    /// `tokenizer.json`. The chat template is `chat_template.jinja`, that of `tokenizer_config.json` or of the GGUF file.
    ///
    /// A GGUF file computes on the CPU, whatever device is asked for.
    ///
    /// # Errors
    /// As [`crate::resolve`]; [`ModelError::BadConfig`] where there is no chat template.
    pub fn load<'a>(model: impl Into<ModelOn<'a>>) -> Result<Self, ModelError> {
        let ModelOn { name, device } = model.into();
        let folder = find(name)?;
        let source = Source::open(name, &folder, device)?;
        let info = source.info(name, &folder)?;
        let settings: ChatSettings = folder.json_if_there(SETTINGS)?.unwrap_or_default();
        let mut tokenizer = read_tokenizer(&folder)?;
        tokenizer
            .with_truncation(None)
            .map_err(|e| ModelError::Untokenized { reason: e.to_string() })?
            .with_padding(None);
        let generation: GenerationConfig = folder.json_if_there("generation_config.json")?.unwrap_or_default();
        let mut ends = match generation.eos_token_id {
            Some(Ids::One(id)) => vec![id],
            Some(Ids::Several(ids)) => ids,
            None => Vec::new(),
        };
        ends.extend(settings.end().and_then(|token| tokenizer.token_to_id(&token)));
        let (network, template) = match source {
            Source::Tensors { config, kind, weights } => {
                ends.extend(config.ids("eos_token_id")?);
                let template = ChatTemplate::open(&folder, &settings, None)?;
                (Network::Whole(Llama::load(&config, kind, &weights)?), template)
            }
            Source::Gguf { name, gguf } => {
                ends.extend(gguf.number("tokenizer.ggml.eos_token_id"));
                let template = ChatTemplate::open(&folder, &settings, gguf.text("tokenizer.chat_template"))?;
                (Network::Quantized(gguf.network(&folder, &name)?), template)
            }
        };
        ends.sort_unstable();
        ends.dedup();
        Ok(Self { info, network, tokenizer, template, ends, vocabulary: OnceLock::new() })
    }

    /// Who this model is.
    pub fn info(&self) -> &LocalLlmInfo {
        &self.info
    }

    /// Whether it computes on the CPU, whatever device was asked for.
    pub fn stays_on_cpu(&self) -> bool {
        matches!(self.network, Network::Quantized(_))
    }

    /// The prompt of a conversation, and its tokens.
    ///
    /// # Errors
    /// [`ModelError::Untellable`], [`ModelError::Untokenized`].
    pub fn prompt(
        &self,
        messages: &[ChatMessage],
        template_values: &Map<String, Value>,
    ) -> Result<(String, Vec<u32>), ModelError> {
        let prompt = self.template.render(messages, template_values)?;
        // The template names the special tokens itself.
        let encoding = self.tokenizer.encode_fast(prompt.as_str(), false);
        let ids = encoding.map_err(|e| ModelError::Untokenized { reason: e.to_string() })?.get_ids().to_vec();
        Ok((prompt, ids))
    }

    /// Answers a request. It is given up between tokens, where `waited_for` becomes false.
    ///
    /// # Errors
    /// [`ModelError::GivenUp`]; [`ModelError::NoRoom`] where the prompt is longer than the model takes; as
    /// [`LocalLlm::prompt`]; [`ModelError::BadWriting`]; with a form [`ModelError::NoRoomForForm`], and
    /// [`ModelError::BadConfig`] where the tokenizer has no tokens for single bytes.
    pub fn answer(&self, request: &ChatRequest, waited_for: &dyn Fn() -> bool) -> Result<ChatAnswer, ModelError> {
        let waited_for = || if waited_for() { Ok(()) } else { Err(ModelError::GivenUp) };
        waited_for()?;
        let (_, ids) = self.prompt(&request.messages, &request.template_values)?;
        let mut stopped = None;
        let mut when = |written: &[u32]| {
            waited_for()?;
            if !request.stop.is_empty() {
                let text = self.decode(written)?;
                let place =
                    request.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop)).min();
                stopped = place.map(|place| text[..place].to_owned());
            }
            Ok(stopped.is_some())
        };
        let mut following = match &request.form {
            Some(form) => Some(Following::new(form, self.vocabulary()?, &self.ends)),
            None => None,
        };
        let guide = following.as_mut().map(|following| following as &mut dyn Guide);
        let ending = Ending::at_or_when(&self.ends, &mut when).guided(guide);
        let seed = seed_of(request.seed, &ids);
        let written = match &self.network {
            Network::Whole(network) => whole(network, &ids, &request.writing, seed, ending)?,
            Network::Quantized(network) => network.write(&ids, &request.writing, seed, ending, &waited_for)?,
        };
        let ended = written.ids.last().is_some_and(|last| self.ends.contains(last));
        let words = &written.ids[..written.ids.len() - usize::from(ended)];
        let whole = following.is_some_and(|following| following.is_whole());
        let cut = !ended && stopped.is_none() && !whole;
        Ok(ChatAnswer {
            text: stopped.map_or_else(|| self.decode(words), Ok)?,
            cut,
            prompt_tokens: ids.len(),
            answer_tokens: written.ids.len(),
        })
    }

    fn vocabulary(&self) -> Result<&FormVocabulary, ModelError> {
        let read = || FormVocabulary::new(&self.tokenizer, &self.info.model.name);
        self.vocabulary.get_or_init(read).as_ref().map_err(Clone::clone)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.tokenizer.decode(ids, true).map_err(|e| ModelError::Untokenized { reason: e.to_string() })
    }
}

fn whole(
    network: &Llama,
    ids: &[u32],
    writing: &Writing,
    seed: u64,
    ending: Ending<'_>,
) -> Result<Written, ModelError> {
    let vectors: Tensor = row(ids).and_then(|ids| network.embed(&ids)).map_err(compute("a prompt's vectors"))?;
    continue_until(network, vectors, ids, writing, seed, ending, &mut |_| ())
}

/// The seed of a prompt's draws: other prompts draw otherwise by the same seed.
fn seed_of(seed: u64, ids: &[u32]) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    let digest: [u8; 32] = hasher.finalize().into();
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
