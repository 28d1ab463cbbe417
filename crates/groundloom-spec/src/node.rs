//! YAML values that know where they were written.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::secret::Secret;
use crate::source::Span;
use crate::spelling::excerpt;

/// A value and its place in the pipeline file.
///
/// Serialises as the plain value, secrets as their `${env:NAME}` text.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it was written. A value that a param brought has the place of the `${param}` that it
    /// stands for, and the values inside it their own.
    pub span: Span,
    /// The param that brought the value, if one did.
    pub origin: Option<Origin>,
    /// The value.
    pub value: Value,
}

/// The param that a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The param's name.
    pub param: String,
    /// Where the param's value is written in the file; nothing if it came from `--set`.
    pub defined: Option<Span>,
}

/// A YAML value by the core schema of YAML 1.2: `yes`, `no`, `on` and `off` are text.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer or a finite floating point number.
    Number(Number),
    /// Text.
    String(String),
    /// Text with `${env:NAME}` in it.
    Secret(Secret),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file, its keys unique.
    Map(Vec<Entry>),
    /// A value that couldn't be read; the finding was reported where it arose. Checks accept it, so
    /// that one mistake gives one message.
    Unresolved,
}

/// A number, with the text it was written as, which is what `"run-${version}"` inserts.
#[derive(Clone, Debug)]
pub struct Number {
    /// The value.
    pub value: NumberValue,
    /// As written: `0.50`, `0x1F`, `1e3`.
    pub text: String,
}

/// Numbers are equal when their values are, however they were written.
impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// The value of a [`Number`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NumberValue {
    /// From `i64::MIN` to `u64::MAX`.
    Int(i128),
    /// Finite.
    Float(f64),
}

impl NumberValue {
    /// The nearest `f64`.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }
}

/// One key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key is written.
    pub key_span: Span,
    /// The value.
    pub value: Node,
}

impl Entry {
    /// What to underline for the value: itself, or the key if nothing is written.
    pub(crate) fn spot(&self) -> Span {
        if self.value.span.start < self.value.span.end { self.value.span } else { self.key_span }
    }
}

impl Node {
    /// A value written at `span`.
    pub fn new(span: Span, value: Value) -> Self {
        Self { span, origin: None, value }
    }

    /// The entries, if this is a mapping.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items, if this is a list.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The entry with this key, if this is a mapping that has it.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value of this key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The value at a path like `where`, `columns[0]` or `store.headers[2].name`; the empty path is
    /// the node itself.
    pub fn at(&self, path: &str) -> Option<&Node> {
        path.split('.').filter(|step| !step.is_empty()).try_fold(self, |node, step| {
            let (key, indices) = match step.split_once('[') {
                Some((key, rest)) => (key, rest.trim_end_matches(']')),
                None => (step, ""),
            };
            let node = if key.is_empty() { node } else { node.get(key)? };
            indices
                .split("][")
                .filter(|index| !index.is_empty())
                .try_fold(node, |node, index| node.items().get(index.parse::<usize>().ok()?))
        })
    }

    /// The text, if this is text.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Whether an [`Value::Unresolved`] is anywhere inside.
    pub fn has_unresolved(&self) -> bool {
        match &self.value {
            Value::Unresolved => true,
            Value::List(items) => items.iter().any(Self::has_unresolved),
            Value::Map(entries) => entries.iter().any(|entry| entry.value.has_unresolved()),
            _ => false,
        }
    }

    /// What was found, for messages: `the text "abc"`, `the number 0.5`, `a list`.
    pub(crate) fn found(&self) -> String {
        match &self.value {
            Value::Null => "no value".to_owned(),
            Value::Bool(bool) => format!("`{bool}`"),
            Value::Number(number) => format!("the number {}", number.text),
            Value::String(text) => format!("the text {}", excerpt(text)),
            Value::Secret(secret) => format!("the secret {}", excerpt(secret.template())),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Unresolved => "a value that couldn't be read".to_owned(),
        }
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null | Value::Unresolved => serializer.serialize_unit(),
            Value::Bool(bool) => serializer.serialize_bool(*bool),
            Value::Number(number) => match number.value {
                NumberValue::Int(int) => match (i64::try_from(int), u64::try_from(int)) {
                    (Ok(int), _) => serializer.serialize_i64(int),
                    (_, Ok(int)) => serializer.serialize_u64(int),
                    _ => serializer.serialize_i128(int),
                },
                NumberValue::Float(float) => serializer.serialize_f64(float),
            },
            Value::String(text) => serializer.serialize_str(text),
            Value::Secret(secret) => secret.serialize(serializer),
            Value::List(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Value::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for entry in entries {
                    map.serialize_entry(&entry.key, &entry.value)?;
                }
                map.end()
            }
        }
    }
}
