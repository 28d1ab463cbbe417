//! Column types from sample rows of JSON.

use std::{fmt, sync::Arc};

use arrow::datatypes::{DataType, Field, Fields};
use indexmap::IndexMap;
use serde_json::Value;

/// The type of a JSON value, as far as its examples say.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum JsonType {
    /// Only nulls were seen.
    Null,
    Bool,
    Int,
    /// Whole numbers of 0 or more, some beyond 63 bits.
    Unsigned,
    Float,
    Text,
    List(Box<JsonType>),
    Struct(IndexMap<String, JsonType>),
}

/// Two rows that disagree on the type of a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conflict {
    /// Dotted path of the value.
    pub(crate) path: String,
    pub(crate) before: &'static str,
    pub(crate) now: &'static str,
}

impl JsonType {
    /// In words.
    fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "true or false",
            Self::Int | Self::Unsigned => "a whole number",
            Self::Float => "a number",
            Self::Text => "a text",
            Self::List(_) => "a list",
            Self::Struct(_) => "an object",
        }
    }

    pub(crate) fn of(value: &Value) -> Result<Self, Conflict> {
        Ok(match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Bool,
            Value::Number(n) if n.is_i64() => Self::Int,
            Value::Number(n) if n.is_u64() => Self::Unsigned,
            Value::Number(_) => Self::Float,
            Value::String(_) => Self::Text,
            Value::Array(items) => {
                let mut item = Self::Null;
                for value in items {
                    item = item.merge(Self::of(value)?, "[]")?;
                }
                Self::List(Box::new(item))
            }
            Value::Object(fields) => {
                let mut types = IndexMap::with_capacity(fields.len());
                for (name, value) in fields {
                    let value = Self::of(value).map_err(|c| c.below(name))?;
                    types.insert(name.clone(), value);
                }
                Self::Struct(types)
            }
        })
    }

    /// The type that holds both.
    pub(crate) fn merge(self, other: Self, path: &str) -> Result<Self, Conflict> {
        Ok(match (self, other) {
            (Self::Null, t) | (t, Self::Null) => t,
            (a, b) if a == b => a,
            (Self::Int, Self::Float | Self::Unsigned)
            | (Self::Unsigned, Self::Float | Self::Int)
            | (Self::Float, Self::Int | Self::Unsigned) => Self::Float,
            (Self::List(a), Self::List(b)) => Self::List(Box::new(a.merge(*b, &format!("{path}[]"))?)),
            (Self::Struct(mut a), Self::Struct(b)) => {
                for (name, now) in b {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    let before = a.get_mut(&name).map_or(Self::Null, |t| std::mem::replace(t, Self::Null));
                    let merged = before.merge(now, &path)?;
                    a.insert(name, merged);
                }
                Self::Struct(a)
            }
            (before, now) => return Err(Conflict { path: path.to_owned(), before: before.name(), now: now.name() }),
        })
    }

    /// The Arrow type: `int64`, `uint64`, `float64`, `utf8`, `boolean`, lists and structs of these. What was always null is text; so are empty objects, since no file
    /// format can hold a struct of no fields.
    pub(crate) fn data_type(&self) -> DataType {
        match self {
            Self::Null | Self::Text => DataType::Utf8,
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int64,
            Self::Unsigned => DataType::UInt64,
            Self::Float => DataType::Float64,
            Self::List(item) => DataType::List(Arc::new(Field::new("item", item.data_type(), true))),
            Self::Struct(fields) if fields.is_empty() => DataType::Utf8,
            Self::Struct(fields) => DataType::Struct(Self::fields(fields)),
        }
    }

    pub(crate) fn fields(types: &IndexMap<String, JsonType>) -> Fields {
        types.iter().map(|(name, t)| Field::new(name, t.data_type(), true)).collect()
    }
}

impl Conflict {
    fn below(mut self, name: &str) -> Self {
        self.path =
            if self.path.starts_with('[') { format!("{name}{}", self.path) } else { format!("{name}.{}", self.path) };
        self
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {} here, but {} before", self.path, self.now, self.before)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn infer(rows: &[&str]) -> Result<DataType, String> {
        let mut all = JsonType::Struct(IndexMap::new());
        for row in rows {
            let row = JsonType::of(&serde_json::from_str(row).unwrap()).map_err(|c| c.to_string())?;
            all = all.merge(row, "").map_err(|c| c.to_string())?;
        }
        Ok(all.data_type())
    }

    #[test]
    fn types_of_rows() {
        let text = |rows: &[&str]| infer(rows).unwrap().to_string();
        assert_eq!(
            text(&[r#"{"a":1,"b":null}"#, r#"{"a":2.5,"c":true}"#]),
            r#"Struct("a": Float64, "b": Utf8, "c": Boolean)"#
        );
        assert_eq!(text(&[r#"{"a":1}"#, r#"{"a":18446744073709551615}"#]), r#"Struct("a": Float64)"#);
        assert_eq!(text(&[r#"{"a":18446744073709551615}"#]), r#"Struct("a": UInt64)"#);
        assert_eq!(text(&[r#"{"a":[]}"#, r#"{"a":[1,null,2]}"#]), r#"Struct("a": List(Int64))"#);
        assert_eq!(
            text(&[r#"{"a":{"x":1}}"#, r#"{"a":{"y":["s"]}}"#, r#"{"a":null}"#]),
            r#"Struct("a": Struct("x": Int64, "y": List(Utf8)))"#
        );
    }

    #[test]
    fn conflicts_name_the_value() {
        assert_eq!(
            infer(&[r#"{"a":1}"#, r#"{"a":"x"}"#]).unwrap_err(),
            "`a` is a text here, but a whole number before"
        );
        assert_eq!(
            infer(&[r#"{"a":{"b":[1]}}"#, r#"{"a":{"b":[[]]}}"#]).unwrap_err(),
            "`a.b[]` is a list here, but a whole number before"
        );
        assert_eq!(infer(&[r#"{"a":[1,"x"]}"#]).unwrap_err(), "`a[]` is a text here, but a whole number before");
    }
}
