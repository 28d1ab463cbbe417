//! What is asked of a model, and its identity.

use std::fmt;

use base64::Engine as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{tokens::Tokenizer, wire};

/// Which of a server's interfaces a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `POST /chat/completions`: every OpenAI-compatible server has it.
    #[default]
    ChatCompletions,
    /// `POST /responses`: OpenAI's newer one.
    Responses,
}

impl Api {
    /// The path behind the base URL.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/chat/completions",
            Self::Responses => "/responses",
        }
    }
}

/// Who speaks in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model, in few-shot examples and repairs.
    Assistant,
}

impl Role {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// How closely a model looks at an image, in OpenAI's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// A small version of fixed cost.
    Low,
    /// Tiles of the full image.
    High,
    /// The server's choice.
    Auto,
}

/// An image in a message: an encoded file, sent inside the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The encoded file.
    pub bytes: Bytes,
    /// `image/jpeg`, `image/png`, `image/webp` or `image/gif`.
    pub media_type: &'static str,
    /// How closely to look; `None` leaves the field out, since not every server knows it.
    pub detail: Option<Detail>,
}

impl Image {
    /// Takes an encoded image, its type from its first bytes.
    ///
    /// # Errors
    /// A sentence when it is none of the four formats that servers take.
    pub fn new(bytes: Bytes, detail: Option<Detail>) -> Result<Self, String> {
        let media_type = match bytes.as_ref() {
            [0xff, 0xd8, 0xff, ..] => "image/jpeg",
            [0x89, b'P', b'N', b'G', ..] => "image/png",
            [b'G', b'I', b'F', b'8', ..] => "image/gif",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
            _ => return Err("expected a JPEG, PNG, WebP or GIF image, which is what servers take; convert it".into()),
        };
        Ok(Self { bytes, media_type, detail })
    }

    /// As a `data:` URL.
    pub fn data_url(&self) -> String {
        let engine = base64::engine::general_purpose::STANDARD;
        format!("data:{};base64,{}", self.media_type, engine.encode(&self.bytes))
    }

    /// What stands for the bytes where a request is shown or stored.
    pub fn digest_url(&self) -> String {
        format!("data:{};sha256,{}", self.media_type, Hex(&Sha256::digest(&self.bytes)))
    }
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// An image.
    Image(Image),
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A turn of text only.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self { role, parts: vec![Part::Text(text.into())] }
    }
}

/// The form an answer must have: a JSON Schema.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerForm {
    /// A name of letters, digits, `_` and `-`.
    pub name: String,
    /// The schema.
    pub schema: Value,
    /// Whether the server is asked to enforce it (`strict`).
    pub strict: bool,
}

/// How the model chooses words.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampling {
    /// 0 to 2; `None` is the server's own.
    pub temperature: Option<f64>,
    /// Nucleus sampling; `None` is the server's own.
    pub top_p: Option<f64>,
    /// The server's random seed (chat completions only).
    pub seed: Option<i64>,
    /// Texts that end the answer (chat completions only).
    pub stop: Vec<String>,
}

/// One call: everything that decides its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The interface.
    pub api: Api,
    /// The model's name on the server.
    pub model: String,
    /// The turns.
    pub messages: Vec<Message>,
    /// How words are chosen.
    pub sampling: Sampling,
    /// The most tokens of the answer: what a call in flight reserves.
    pub max_output_tokens: u64,
    /// The form of the answer, if any.
    pub form: Option<AnswerForm>,
    /// Further fields of the body, as the server names them; they win over the fields above.
    pub extra: Map<String, Value>,
}

/// Tokens that OpenAI's chat format adds per message and per request, with room to spare.
const TOKENS_PER_MESSAGE: u64 = 8;
const TOKENS_PER_REQUEST: u64 = 16;

impl Request {
    /// The body as it is sent.
    pub fn body(&self) -> Value {
        wire::body(self, &Image::data_url)
    }

    /// The body with every image's bytes replaced by their hash: what is stored, shown and hashed.
    pub fn digest_body(&self) -> Value {
        wire::body(self, &Image::digest_url)
    }

    /// The request's identity: the same for equal bodies to the same interface, whatever server, run or machine.
    ///
    /// `namespace` keeps two servers apart that serve different weights under one model name; it is empty otherwise.
    pub fn hash(&self, namespace: &str) -> RequestHash {
        self.hash_of(&self.digest_body(), namespace)
    }

    /// As [`Request::hash`], `digest_body` being at hand.
    pub(crate) fn hash_of(&self, digest_body: &Value, namespace: &str) -> RequestHash {
        let mut hasher = Sha256::new();
        hasher.update(b"groundloom request 1\0");
        hasher.update(namespace.as_bytes());
        hasher.update([0]);
        hasher.update(self.api.path().as_bytes());
        hasher.update([0]);
        let mut canonical = String::new();
        write_canonical(digest_body, &mut canonical);
        hasher.update(canonical.as_bytes());
        RequestHash(hasher.finalize().into())
    }

    /// Whether what is sent is what is stored.
    pub(crate) fn shows_images(&self) -> bool {
        self.messages.iter().flat_map(|m| &m.parts).any(|part| matches!(part, Part::Image(_)))
    }

    /// The most input tokens that the server can count, images at `image_tokens` each.
    pub fn most_prompt_tokens(&self, tokenizer: Tokenizer, image_tokens: u64) -> u64 {
        self.prompt_tokens(|text| tokenizer.upper_bound(text), image_tokens)
    }

    /// The input tokens to expect.
    pub fn expected_prompt_tokens(&self, tokenizer: Tokenizer, image_tokens: u64) -> u64 {
        self.prompt_tokens(|text| tokenizer.estimate(text), image_tokens)
    }

    fn prompt_tokens(&self, count: impl Fn(&str) -> u64, image_tokens: u64) -> u64 {
        let parts = self.messages.iter().flat_map(|m| &m.parts).map(|part| match part {
            Part::Text(text) => count(text),
            Part::Image(_) => image_tokens,
        });
        let form = self.form.as_ref().map_or(0, |f| count(&f.schema.to_string()) + count(&f.name));
        parts.sum::<u64>() + form + TOKENS_PER_MESSAGE * self.messages.len() as u64 + TOKENS_PER_REQUEST
    }
}

/// Keys in order, no spaces: equal values give equal texts.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// The identity of a request: SHA-256 of its interface and canonical body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestHash(pub [u8; 32]);

impl RequestHash {
    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for RequestHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Hex(&self.0))
    }
}

impl fmt::Debug for RequestHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    pub(crate) fn request(text: &str) -> Request {
        Request {
            api: Api::ChatCompletions,
            model: "m".into(),
            messages: vec![Message::text(Role::User, text)],
            sampling: Sampling::default(),
            max_output_tokens: 10,
            form: None,
            extra: Map::new(),
        }
    }

    #[test]
    fn the_hash_depends_on_what_decides_the_answer_and_on_nothing_else() {
        let base = request("a");
        let hash = base.hash("");
        assert_eq!(RequestHash::parse(&hash.to_string()), Some(hash));
        let mut others = vec![request("b"), request("a"), request("a"), request("a"), request("a")];
        others[1].model = "n".into();
        others[2].sampling.seed = Some(1);
        others[3].api = Api::Responses;
        others[4].extra.insert("top_k".into(), json!(5));
        for other in &others {
            assert_ne!(other.hash(""), hash, "{other:?}");
        }
        assert_ne!(base.hash("other server"), hash);
        let mut ordered = request("a");
        ordered.extra = json!({"x": {"b": 1, "a": 2}}).as_object().unwrap().clone();
        let mut reordered = request("a");
        reordered.extra = json!({"x": {"a": 2, "b": 1}}).as_object().unwrap().clone();
        assert_eq!(ordered.hash(""), reordered.hash(""));
    }

    #[test]
    fn images_are_known_by_their_first_bytes_and_hashed_by_content() {
        let png = Image::new(Bytes::from_static(b"\x89PNG\r\n\x1a\nabc"), None).unwrap();
        assert_eq!(png.media_type, "image/png");
        assert!(png.data_url().starts_with("data:image/png;base64,iVBOR"));
        assert!(Image::new(Bytes::from_static(b"BM...."), None).is_err());
        let with = |image: Image| {
            let mut r = request("look");
            r.messages[0].parts.push(Part::Image(image));
            r.hash("")
        };
        let other = Image::new(Bytes::from_static(b"\x89PNG\r\n\x1a\nabd"), None).unwrap();
        assert_ne!(with(png.clone()), with(other));
        assert_eq!(with(png.clone()), with(png));
    }
}
