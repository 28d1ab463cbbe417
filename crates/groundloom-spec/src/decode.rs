//! Nodes to typed values: the schema finds all that is wrong, serde makes the value.

use schemars::JsonSchema;
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use crate::component_type::schema_of;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::node::{Entry, Node, NumberValue, Value};
use crate::schema_check::SchemaCheck;
use crate::source::Span;

/// Reads `node` as a `T`. `title` names what the node belongs to in messages; `place` is where what
/// is missing is reported, and `other_keys` are keys that its owner has taken out of it.
pub(crate) fn decode<T: DeserializeOwned + JsonSchema>(
    node: &Node,
    title: &str,
    other_keys: &[&str],
    place: Span,
) -> Result<T, Diagnostics> {
    let diagnostics = SchemaCheck::new(&schema_of::<T>(), title, other_keys).run(node, place);
    if diagnostics.has_errors() || node.has_unresolved() {
        return Err(diagnostics);
    }
    T::deserialize(Reading(node)).map_err(|error| {
        let span = error.span.filter(|span| span.start < span.end).unwrap_or(place);
        let path = error.path();
        let subject = match path.as_str() {
            "" => title.to_owned(),
            path => format!("`{path}` of {title}"),
        };
        let diagnostic = Diagnostic::error("invalid_value", format!("{subject}: {}", error.message)).at(span);
        match &error.origin {
            Some(node) => with_origin(diagnostic, node).into(),
            None => diagnostic.into(),
        }
    })
}

/// Adds where the value came from, if a param brought it.
pub(crate) fn with_origin(diagnostic: Diagnostic, node: &Node) -> Diagnostic {
    match &node.origin {
        Some(origin) => match origin.defined {
            Some(span) => diagnostic.note_at(span, format!("the value of `{}`", origin.param)),
            None => diagnostic.note(format!("the value of `{}` was given by --set", origin.param)),
        },
        None => diagnostic,
    }
}

/// What serde found, and the innermost node it was about.
#[derive(Debug)]
struct Found {
    message: String,
    span: Option<Span>,
    origin: Option<Box<Node>>,
    /// The steps to it, innermost first: `key` or `[0]`.
    steps: Vec<String>,
}

impl Found {
    /// The path to what it is about, like `store.headers[0]`.
    fn path(&self) -> String {
        let mut path = String::new();
        for step in self.steps.iter().rev() {
            if !path.is_empty() && !step.starts_with('[') {
                path.push('.');
            }
            path.push_str(step);
        }
        path
    }

    /// The error, one step further out.
    fn in_step(mut self, step: String) -> Self {
        self.steps.push(step);
        self
    }

    /// The error, at `node` unless something inside has it already.
    fn in_node(mut self, node: &Node) -> Self {
        if self.span.is_none() {
            self.span = Some(node.span);
            self.origin = node
                .origin
                .is_some()
                .then(|| Box::new(Node { span: node.span, origin: node.origin.clone(), value: Value::Null }));
        }
        self
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Found {}

impl de::Error for Found {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), span: None, origin: None, steps: Vec::new() }
    }
}

/// A node as serde reads it.
#[derive(Clone, Copy)]
struct Reading<'de>(&'de Node);

impl<'de> Deserializer<'de> for Reading<'de> {
    type Error = Found;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        match &self.0.value {
            Value::Null | Value::Unresolved => visitor.visit_unit(),
            Value::Bool(bool) => visitor.visit_bool(*bool),
            Value::Number(number) => match number.value {
                NumberValue::Int(int) => match (i64::try_from(int), u64::try_from(int)) {
                    // Unsigned first: serde takes it for signed types too.
                    (_, Ok(int)) => visitor.visit_u64(int),
                    (Ok(int), _) => visitor.visit_i64(int),
                    _ => visitor.visit_i128(int),
                },
                NumberValue::Float(float) => visitor.visit_f64(float),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Secret(secret) => visitor.visit_borrowed_str(secret.template()),
            Value::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Value::Map(entries) => visitor.visit_map(Entries { rest: entries.iter(), entry: None }),
        }
        .map_err(|error: Found| error.in_node(self.0))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        match self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_newtype_struct(self).map_err(|error| error.in_node(self.0))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Found> {
        match &self.0.value {
            Value::String(variant) => {
                visitor.visit_enum(IntoDeserializer::<Found>::into_deserializer(variant.as_str()))
            }
            Value::Map(entries) => match entries.as_slice() {
                [entry] => visitor.visit_enum(Variant(entry)),
                _ => Err(de::Error::custom("expected a map with one key")),
            },
            _ => Err(de::Error::custom(format!("expected a name or a map with one key, found {}", self.0.found()))),
        }
        .map_err(|error: Found| error.in_node(self.0))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

struct Items<'de>(std::iter::Enumerate<std::slice::Iter<'de, Node>>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Found;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Found> {
        let Some((index, node)) = self.0.next() else {
            return Ok(None);
        };
        seed.deserialize(Reading(node)).map(Some).map_err(|error| error.in_node(node).in_step(format!("[{index}]")))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'de> {
    rest: std::slice::Iter<'de, Entry>,
    /// The entry whose key was given last.
    entry: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Found;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Found> {
        let Some(entry) = self.rest.next() else {
            return Ok(None);
        };
        self.entry = Some(entry);
        seed.deserialize(Key(&entry.key)).map(Some).map_err(|mut error| {
            error.span.get_or_insert(entry.key_span);
            error
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Found> {
        let Some(Entry { key, value, .. }) = self.entry.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(Reading(value)).map_err(|error| error.in_node(value).in_step(key.clone()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// A key: text, or an integer where the map's type asks for one.
struct Key<'de>(&'de str);

macro_rules! integer_keys {
    ($($deserialize:ident $visit:ident $type:ty),*) => {$(
        fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
            match self.0.parse::<$type>() {
                Ok(int) => visitor.$visit(int),
                Err(_) => visitor.visit_borrowed_str(self.0),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Found;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Found> {
        StrDeserializer::new(self.0).deserialize_enum(name, variants, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_newtype_struct(self)
    }

    integer_keys! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }

    serde::forward_to_deserialize_any! {
        bool i128 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// An enum variant with data: `{ variant: data }`.
struct Variant<'de>(&'de Entry);

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Found;
    type Variant = Reading<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self::Variant), Found> {
        let variant = seed.deserialize(Key(&self.0.key)).map_err(|mut error| {
            error.span.get_or_insert(self.0.key_span);
            error
        })?;
        Ok((variant, Reading(&self.0.value)))
    }
}

impl<'de> VariantAccess<'de> for Reading<'de> {
    type Error = Found;

    fn unit_variant(self) -> Result<(), Found> {
        match self.0.value {
            Value::Null => Ok(()),
            _ => Err(<Found as de::Error>::custom("this variant takes no value").in_node(self.0)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Found> {
        seed.deserialize(self).map_err(|error| error.in_node(self.0))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Found> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], visitor: V) -> Result<V::Value, Found> {
        self.deserialize_any(visitor)
    }
}
