//! Column types as a pipeline file writes them: `text`, `int`, `list<float>`, `struct<id: int, tags: list<text>>`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use indexmap::IndexMap;

use crate::FormatError;

/// Types nest no deeper than this.
const DEEPEST: usize = 32;

/// Parses the types of a `schema:` or `types:` section, in its order.
///
/// # Errors
/// A [`FormatError::Input`] that names the column and what is not understood.
pub(crate) fn parse_all(key: &'static str, types: &IndexMap<String, String>) -> Result<Vec<Field>, FormatError> {
    types
        .iter()
        .map(|(column, text)| match parse(text) {
            Ok(data_type) => Ok(Field::new(column, data_type, true)),
            Err(message) => Err(FormatError::Input { key, message: format!("column `{column}`: {message}") }),
        })
        .collect()
}

/// Parses one type.
pub(crate) fn parse(text: &str) -> Result<DataType, String> {
    let mut parser = Parser { rest: text.trim(), depth: 0 };
    let data_type = parser.data_type()?;
    if parser.rest.trim().is_empty() {
        Ok(data_type)
    } else {
        Err(format!("expected the end of the type `{text}`, found `{}`", parser.rest.trim()))
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn name(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(['<', '>', ',', ':']).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        name.trim_end()
    }

    fn expect(&mut self, mark: char) -> Result<(), String> {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(mark) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(format!("expected `{mark}` before `{}`", self.rest)),
        }
    }

    fn data_type(&mut self) -> Result<DataType, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("expected types nested at most {DEEPEST} deep"));
        }
        let parsed = match self.name() {
            "text" => DataType::Utf8,
            "int" => DataType::Int64,
            "float" => DataType::Float64,
            "bool" => DataType::Boolean,
            "list" => {
                self.expect('<')?;
                let item = self.data_type()?;
                self.expect('>')?;
                DataType::List(Arc::new(Field::new("item", item, true)))
            }
            "struct" => {
                self.expect('<')?;
                let mut fields = Vec::new();
                loop {
                    let name = self.name().to_owned();
                    self.expect(':')?;
                    fields.push(Field::new(name, self.data_type()?, true));
                    if self.expect(',').is_err() {
                        break;
                    }
                }
                self.expect('>')?;
                DataType::Struct(fields.into())
            }
            other => {
                return Err(format!("expected text, int, float, bool, list<…> or struct<name: …>, found `{other}`"));
            }
        };
        self.depth -= 1;
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn types_are_read() {
        for (text, expected) in [
            ("text", "Utf8"),
            (" int ", "Int64"),
            ("list<list<float>>", "List(List(Float64))"),
            (
                "struct<id: int, tags: list<text>, ok: bool>",
                r#"Struct("id": Int64, "tags": List(Utf8), "ok": Boolean)"#,
            ),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), expected);
        }
        for (text, message) in [
            ("string", "found `string`"),
            ("list<int", "expected `>`"),
            ("int>", "expected the end"),
            ("struct<a int>", "expected `:`"),
            ("", "found ``"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
        assert!(parse(&"list<".repeat(100_000)).unwrap_err().contains("32 deep"));
    }

    proptest! {
        #[test]
        fn any_text_is_tried(text in "(list<|struct<|int|text|>|,|:|a| ){0,12}") {
            let _ = parse(&text);
        }
    }
}
