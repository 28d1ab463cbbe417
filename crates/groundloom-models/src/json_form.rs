//! JSON in the form of a schema, as what a model may write next: an automaton over bytes with a stack.
//!
//! The words of JSON Schema that it knows are those that say what comes next while a text is written; others are refused by name, since a text that breaks them could only be
//! thrown away. What it lets through fits the schema, and from everywhere there is a known number of bytes to the end, so that a text can be ended in time.
//! The idea is that of Willard and Louf, "Efficient Guided Generation for Large Language Models" (2023), with a stack for what is nested.

mod text;
mod vocabulary;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub(crate) use text::{State, initial};
pub(crate) use vocabulary::{Following, FormVocabulary};

/// What a schema lets a text be.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonForm {
    nodes: Vec<Node>,
    /// The fewest bytes of each node's texts.
    least: Vec<usize>,
    root: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    /// Exactly these bytes.
    Exactly(Vec<u8>),
    /// A text of so many characters.
    Text { least: usize, most: usize },
    /// A number, whole or not.
    Number { whole: bool },
    /// Any of these.
    Any(Vec<usize>),
    /// Keys in this order.
    Object(Vec<Key>),
    /// So many items.
    Array { item: usize, least: usize, most: usize },
}

#[derive(Debug, Clone, PartialEq)]
struct Key {
    /// The key as it is written, with its colon.
    written: Vec<u8>,
    required: bool,
    value: usize,
}

/// Where a schema cannot be followed while a text is written, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormError {
    /// A JSON pointer.
    pub place: String,
    /// What is not followed, and what to do.
    pub message: String,
}

impl std::fmt::Display for FormError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the schema at {}: {}", self.place, self.message)
    }
}

/// Words that say nothing about what comes next.
const NOTES: &[&str] = &[
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "format",
    "contentEncoding",
    "contentMediaType",
];
/// Whole numbers between bounds are a list of so many at most.
const MOST_NUMBERS: i64 = 1_000;
/// Schemas that one schema may become.
const MOST_NODES: usize = 100_000;
/// More than any text is long.
const NEVER: usize = usize::MAX;

impl JsonForm {
    /// Reads a JSON Schema: `type` (also a list), `enum`, `const`, `properties`, `required`, `items`, `anyOf`, `$ref` into the schema itself (also in circles), `minItems`,
    /// `maxItems`, `minLength`, `maxLength`; `minimum` and `maximum` together, of integers. Keys come in the order of `properties`, and no others come, whatever `additionalProperties` says.
    ///
    /// # Errors
    /// [`FormError`] names a word that is not among these, and schemas that no text that ends fits.
    pub fn new(schema: &Value) -> Result<Self, FormError> {
        let mut reader = Reader { root: schema, nodes: Vec::new(), references: BTreeMap::new() };
        let root = reader.read(schema, "#")?;
        let nodes = reader.nodes;
        let least = least(&nodes);
        if least[root] == NEVER {
            return refused("#", "no text that ends fits it: it asks for itself again and again".to_owned());
        }
        Ok(Self { nodes, least, root })
    }
}

fn refused<T>(place: impl Into<String>, message: String) -> Result<T, FormError> {
    Err(FormError { place: place.into(), message })
}

struct Reader<'a> {
    root: &'a Value,
    nodes: Vec<Node>,
    /// Nodes of what references name.
    references: BTreeMap<String, usize>,
}

impl Reader<'_> {
    fn add(&mut self, node: Node, place: &str) -> Result<usize, FormError> {
        if self.nodes.len() >= MOST_NODES {
            return refused(place, format!("expected at most {MOST_NODES} parts"));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn read(&mut self, schema: &Value, place: &str) -> Result<usize, FormError> {
        let Value::Object(words) = schema else {
            return refused(place, format!("expected a schema that says `type`, found {schema}"));
        };
        let only = |known: &[&str], beside: &str| match words
            .keys()
            .find(|word| !known.contains(&word.as_str()) && !NOTES.contains(&word.as_str()) && !word.starts_with("x-"))
        {
            Some(word) => refused(
                format!("{place}/{}", escaped(word)),
                format!(
                    "a local model cannot follow this word{beside} while it writes; leave it out, or say in the prompt what you want and check it in a later stage"
                ),
            ),
            None => Ok(()),
        };
        if let Some(reference) = words.get("$ref") {
            only(&["$ref"], " beside `$ref`")?;
            return self.refer(reference, &format!("{place}/$ref"));
        }
        for (word, list) in [("const", false), ("enum", true)] {
            if let Some(value) = words.get(word) {
                only(&[word, "type"], &format!(" beside `{word}`"))?;
                let one = std::slice::from_ref(value);
                let values = if list { value.as_array().map(Vec::as_slice).unwrap_or_default() } else { one };
                return self.values(values, words.get("type"), &format!("{place}/{word}"));
            }
        }
        if let Some(alternatives) = words.get("anyOf") {
            only(&["anyOf"], " beside `anyOf`")?;
            let alternatives = alternatives.as_array().map(Vec::as_slice).unwrap_or_default();
            let nodes = alternatives
                .iter()
                .enumerate()
                .map(|(i, schema)| self.read(schema, &format!("{place}/anyOf/{i}")))
                .collect::<Result<_, _>>()?;
            return self.add(Node::Any(nodes), place);
        }
        let types: Vec<&str> = match words.get("type") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if types.is_empty() {
            only(&[], "")?;
            return refused(
                place,
                "a local model needs to know what to write here: say `type`, `enum`, `const`, `anyOf` or `$ref`"
                    .to_owned(),
            );
        }
        let mut known = vec!["type"];
        for kind in &types {
            known.extend_from_slice(match *kind {
                "object" => &["properties", "required", "additionalProperties"],
                "array" => &["items", "minItems", "maxItems"],
                "string" => &["minLength", "maxLength"],
                "integer" => &["minimum", "maximum"],
                _ => &[],
            });
        }
        only(&known, "")?;
        let nodes = types.iter().map(|kind| self.of_type(kind, words, place)).collect::<Result<Vec<_>, _>>()?;
        match nodes.as_slice() {
            [one] => Ok(*one),
            _ => self.add(Node::Any(nodes), place),
        }
    }

    fn of_type(&mut self, kind: &str, words: &Map<String, Value>, place: &str) -> Result<usize, FormError> {
        let count =
            |word: &str, otherwise: usize| words.get(word).and_then(Value::as_f64).map_or(otherwise, |n| n as usize);
        let node = match kind {
            "null" => Node::Exactly(b"null".to_vec()),
            "boolean" => {
                let nodes = [b"true".to_vec(), b"false".to_vec()].map(|text| self.add(Node::Exactly(text), place));
                Node::Any(nodes.into_iter().collect::<Result<_, _>>()?)
            }
            "string" => Node::Text { least: count("minLength", 0), most: count("maxLength", NEVER) },
            "number" => Node::Number { whole: false },
            "integer" => return self.integer(words, place),
            "array" => {
                let (least, most) = (count("minItems", 0), count("maxItems", NEVER));
                let item = match words.get("items") {
                    Some(schema) if most > 0 => self.read(schema, &format!("{place}/items"))?,
                    _ if most == 0 => self.add(Node::Exactly(b"null".to_vec()), place)?,
                    _ => {
                        return refused(
                            place,
                            "a local model needs to know what to write here: say `items`".to_owned(),
                        );
                    }
                };
                Node::Array { item, least, most }
            }
            "object" => return self.object(words, place),
            other => return refused(format!("{place}/type"), format!("expected a type, found {other:?}")),
        };
        self.add(node, place)
    }

    fn integer(&mut self, words: &Map<String, Value>, place: &str) -> Result<usize, FormError> {
        let bound = |word: &str| words.get(word).and_then(Value::as_f64);
        match (bound("minimum"), bound("maximum")) {
            (None, None) => self.add(Node::Number { whole: true }, place),
            (Some(least), Some(most)) if most - least < MOST_NUMBERS as f64 && least.abs() < 1e15 => {
                let values: Vec<Value> = (least.ceil() as i64..=most.floor() as i64).map(Value::from).collect();
                self.values(&values, None, place)
            }
            _ => refused(
                place,
                format!(
                    "a local model can follow `minimum` and `maximum` together only, of at most {MOST_NUMBERS} numbers; say both, or leave them out"
                ),
            ),
        }
    }

    fn object(&mut self, words: &Map<String, Value>, place: &str) -> Result<usize, FormError> {
        let none = Map::new();
        let properties = words.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required: Vec<&str> =
            words.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        if let Some(missing) = required.iter().find(|key| !properties.contains_key(**key)) {
            return refused(format!("{place}/required"), format!("`properties` does not say what {missing:?} is"));
        }
        let mut keys = Vec::new();
        for (key, schema) in properties {
            let value = self.read(schema, &format!("{place}/properties/{}", escaped(key)))?;
            keys.push(Key {
                written: format!("{}:", Value::from(key.as_str())).into_bytes(),
                required: required.contains(&key.as_str()),
                value,
            });
        }
        self.add(Node::Object(keys), place)
    }

    /// Any of some values, of a type where that is given.
    fn values(&mut self, values: &[Value], kind: Option<&Value>, place: &str) -> Result<usize, FormError> {
        let kinds: Vec<&str> = match kind {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let fits = |value: &Value| {
            kinds.is_empty()
                || kinds.iter().any(|kind| match *kind {
                    "null" => value.is_null(),
                    "boolean" => value.is_boolean(),
                    "string" => value.is_string(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    "number" => value.is_number(),
                    _ => value.as_f64().is_some_and(|n| n.fract() == 0.0),
                })
        };
        let nodes = values
            .iter()
            .filter(|value| fits(value))
            .map(|value| self.add(Node::Exactly(value.to_string().into_bytes()), place))
            .collect::<Result<Vec<_>, _>>()?;
        match nodes.is_empty() {
            true => refused(place, "no value is allowed here".to_owned()),
            false => self.add(Node::Any(nodes), place),
        }
    }

    fn refer(&mut self, reference: &Value, place: &str) -> Result<usize, FormError> {
        let name = reference.as_str().unwrap_or_default();
        if let Some(node) = self.references.get(name) {
            return Ok(*node);
        }
        let target = name.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let Some(target) = target else {
            return refused(
                place,
                format!("expected a reference to a place in this schema, such as #/$defs/name, found {reference}"),
            );
        };
        // Known before it is read: it may name itself.
        let node = self.add(Node::Any(Vec::new()), place)?;
        self.references.insert(name.to_owned(), node);
        let read = self.read(target, name)?;
        self.nodes[node] = Node::Any(vec![read]);
        Ok(node)
    }
}

/// The fewest bytes of each node: from above, until nothing gets less.
fn least(nodes: &[Node]) -> Vec<usize> {
    let mut least = vec![NEVER; nodes.len()];
    loop {
        let before = least.clone();
        for (i, node) in nodes.iter().enumerate() {
            least[i] = match node {
                Node::Exactly(bytes) => bytes.len(),
                Node::Text { least, most } if least > most => NEVER,
                Node::Text { least, .. } => least.saturating_add(2),
                Node::Number { .. } => 1,
                Node::Any(nodes) => nodes.iter().map(|node| before[*node]).min().unwrap_or(NEVER),
                Node::Object(keys) => rest_of_keys(keys, &before, true).saturating_add(1),
                Node::Array { least, most, .. } if least > most => NEVER,
                Node::Array { item, least, .. } => match least {
                    0 => 2,
                    least => least.saturating_mul(before[*item].saturating_add(1)).saturating_add(1),
                },
            };
        }
        if least == before {
            return least;
        }
    }
}

/// Bytes that all keys still to come take at least, with the brace behind them: `first` where none came before.
fn rest_of_keys(keys: &[Key], least: &[usize], first: bool) -> usize {
    let (mut sum, mut comma) = (1_usize, usize::from(!first));
    for key in keys.iter().filter(|key| key.required) {
        sum = sum.saturating_add(comma).saturating_add(key.written.len()).saturating_add(least[key.value]);
        comma = 1;
    }
    sum
}

/// A key as a token of a JSON pointer (RFC 6901, section 3).
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests;
