//! The prompt that a conversation becomes, by the model folder's own Jinja template, as transformers applies it
//! (`apply_chat_template`): blocks trimmed, `raise_exception`, and the methods of Python's strings.

use std::collections::BTreeMap;

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, Value as Jinja, ValueKind, from_args},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{ModelError, folder::ModelFolder, text_tokenizer::TokenName};

/// Where a template is by itself.
const FILE: &str = "chat_template.jinja";
/// Where it is one of the tokenizer's settings.
pub(crate) const SETTINGS: &str = "tokenizer_config.json";
/// The name of the one that is taken, of several.
const DEFAULT: &str = "default";
/// The name of the template in its environment.
const NAME: &str = "chat";
/// Instructions that a template may take: what a conversation of thousands of turns needs, and no endless loop.
const FUEL: u64 = 10_000_000;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A template with the special tokens that it may name.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: BTreeMap<String, String>,
    origin: String,
}

/// What `tokenizer_config.json` says about conversations. Every other setting is the tokenizer's.
#[derive(Deserialize, Default)]
pub(crate) struct ChatSettings {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Several(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl ChatSettings {
    /// The special tokens by name: `bos_token`, `eos_token`, …
    fn tokens(&self) -> BTreeMap<String, String> {
        let named = self.others.iter().filter(|(name, _)| name.ends_with("_token"));
        let text = |value: &Value| serde_json::from_value::<TokenName>(value.clone()).ok();
        named.filter_map(|(name, value)| Some((name.clone(), text(value)?.text().to_owned()))).collect()
    }

    /// The token that ends a text, if it is named.
    pub(crate) fn end(&self) -> Option<String> {
        self.tokens().remove("eos_token")
    }
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else the template of `settings`, else `other` (of a GGUF file).
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] where there is none or it is no template; [`ModelError::Unreadable`].
    pub(crate) fn open(
        folder: &ModelFolder,
        settings: &ChatSettings,
        other: Option<String>,
    ) -> Result<Self, ModelError> {
        let bad = |file: &str, problem: String| ModelError::BadConfig { origin: folder.file_name(file), problem };
        let (file, text) = match (folder.read_if_there(FILE)?, &settings.chat_template, other) {
            (Some(text), _, _) => (FILE, String::from_utf8_lossy(&text).into_owned()),
            (None, Some(Templates::One(text)), _) => (SETTINGS, text.clone()),
            (None, Some(Templates::Several(all)), _) => {
                let found = all.iter().find(|named| named.name == DEFAULT).ok_or_else(|| {
                    let names = all.iter().map(|named| named.name.as_str()).collect::<Vec<_>>().join(", ");
                    bad(SETTINGS, format!("expected a chat template named {DEFAULT:?}, found {names}"))
                })?;
                (SETTINGS, found.template.clone())
            }
            (None, None, Some(text)) => (SETTINGS, text),
            (None, None, None) => {
                return Err(bad(
                    FILE,
                    format!(
                        "expected this file or `chat_template` in {SETTINGS}, found neither: the model was not trained \
                         for conversations, or its template is missing; put the template of its model card into {FILE}"
                    ),
                ));
            }
        };
        let mut environment = environment().map_err(|e| bad(file, e.to_string()))?;
        environment
            .add_template_owned(NAME, text)
            .map_err(|e| bad(file, format!("expected a Jinja template, found: {}", told(&e))))?;
        Ok(Self { environment, tokens: settings.tokens(), origin: folder.file_name(file) })
    }

    /// The prompt of `messages`, up to where the model's answer begins. `more` are values that the template may know by
    /// name (`enable_thinking`).
    ///
    /// # Errors
    /// [`ModelError::Untellable`] where the template refuses the conversation.
    pub(crate) fn render(&self, messages: &[ChatMessage], more: &Map<String, Value>) -> Result<String, ModelError> {
        let mut values: BTreeMap<&str, Jinja> =
            self.tokens.iter().map(|(name, token)| (name.as_str(), Jinja::from(token.as_str()))).collect();
        values.insert("messages", Jinja::from(Serde(messages)));
        values.insert("add_generation_prompt", Jinja::from(true));
        values.insert("tools", Jinja::from(()));
        values.insert("documents", Jinja::from(()));
        values.extend(more.iter().map(|(name, value)| (name.as_str(), Jinja::from(Serde(value)))));
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(values));
        rendered.map_err(|e| {
            let undated = e.kind() == ErrorKind::UnknownFunction && e.to_string().contains("strftime_now");
            let reason = match undated {
                true => "it asks for today's date (strftime_now), with which no answer could be found again; take the \
                         call out of the template, or give it a date by `chat_template_kwargs`"
                    .to_owned(),
                false => told(&e),
            };
            ModelError::Untellable { template: self.origin.clone(), reason }
        })
    }
}

/// An error of the template engine in one line.
fn told(error: &Error) -> String {
    error.detail().map_or_else(
        || error.to_string(),
        |detail| match error.line() {
            Some(line) => format!("{detail} (line {line})"),
            None => detail.to_owned(),
        },
    )
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_function("raise_exception", |message: String| -> Result<Jinja, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", to_json);
    environment.set_unknown_method_callback(python_method);
    Ok(environment)
}

/// Python's `json.dumps` with `ensure_ascii=False`; `indent` spaces a level where it is given.
fn to_json(value: Jinja, options: Kwargs) -> Result<String, Error> {
    let wrong = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty)).map_err(wrong)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(wrong)?;
        }
    }
    String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// A space behind `,` and `:`, as Python writes JSON.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// The methods of Python's strings and dictionaries that templates call.
fn python_method(_state: &mut State, value: &Jinja, method: &str, args: &[Jinja]) -> Result<Jinja, Error> {
    let unknown = || Error::new(ErrorKind::UnknownMethod, format!("the method {method} of a {}", value.kind()));
    if value.kind() == ValueKind::Map {
        let pairs = || -> Result<Vec<(Jinja, Jinja)>, Error> {
            value.try_iter()?.map(|key| Ok((key.clone(), value.get_item(&key)?))).collect()
        };
        return match method {
            "items" => Ok(pairs()?.into_iter().map(|(key, value)| Jinja::from(vec![key, value])).collect()),
            "keys" => Ok(pairs()?.into_iter().map(|(key, _)| key).collect()),
            "values" => Ok(pairs()?.into_iter().map(|(_, value)| value).collect()),
            "get" => {
                let (key, default): (Jinja, Option<Jinja>) = from_args(args)?;
                let found = value.get_item(&key)?;
                Ok(if found.is_undefined() { default.unwrap_or_else(|| Jinja::from(())) } else { found })
            }
            _ => Err(unknown()),
        };
    }
    let Some(text) = value.as_str() else { return Err(unknown()) };
    // Without an argument white space is meant.
    let trimmed = |at_start: bool, at_end: bool| -> Result<Jinja, Error> {
        let (set,): (Option<&str>,) = from_args(args)?;
        let goes = |c: char| set.map_or(c.is_whitespace(), |set| set.contains(c));
        let text = if at_start { text.trim_start_matches(goes) } else { text };
        Ok(Jinja::from(if at_end { text.trim_end_matches(goes) } else { text }))
    };
    match method {
        "strip" => trimmed(true, true),
        "lstrip" => trimmed(true, false),
        "rstrip" => trimmed(false, true),
        "upper" => Ok(Jinja::from(text.to_uppercase())),
        "lower" => Ok(Jinja::from(text.to_lowercase())),
        "startswith" | "endswith" => {
            let (with,): (&str,) = from_args(args)?;
            Ok(Jinja::from(if method == "startswith" { text.starts_with(with) } else { text.ends_with(with) }))
        }
        "replace" => {
            let (from, to): (&str, &str) = from_args(args)?;
            Ok(Jinja::from(text.replace(from, to)))
        }
        "split" => {
            let (at, most): (Option<&str>, Option<usize>) = from_args(args)?;
            match (at, most) {
                (None, None) => Ok(text.split_whitespace().map(Jinja::from).collect()),
                (Some(at), None) if !at.is_empty() => Ok(text.split(at).map(Jinja::from).collect()),
                (Some(at), Some(most)) if !at.is_empty() => Ok(text.splitn(most + 1, at).map(Jinja::from).collect()),
                _ => Err(unknown()),
            }
        }
        _ => Err(unknown()),
    }
}
