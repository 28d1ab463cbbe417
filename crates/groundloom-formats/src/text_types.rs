//! Column types of values that are written as text (CSV).

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder},
    datatypes::DataType,
};

/// The narrowest type that every value of a column fits, from what was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextType {
    /// Only empty values.
    Empty,
    Bool,
    Int,
    Float,
    Text,
}

impl TextType {
    pub(crate) fn of(text: &str) -> Self {
        if text.is_empty() {
            Self::Empty
        } else if parse_bool(text).is_some() {
            Self::Bool
        } else if is_plain_int(text) {
            Self::Int
        } else if parse_float(text).is_some() && !has_leading_zero(text) {
            Self::Float
        } else {
            Self::Text
        }
    }

    pub(crate) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Empty, t) | (t, Self::Empty) => t,
            (a, b) if a == b => a,
            (Self::Int, Self::Float) | (Self::Float, Self::Int) => Self::Float,
            _ => Self::Text,
        }
    }

    /// A column that was always empty is text.
    pub(crate) fn data_type(self) -> DataType {
        match self {
            Self::Empty | Self::Text => DataType::Utf8,
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
        }
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Numbers with leading zeros are names (`007`, postal codes), and would lose them.
fn has_leading_zero(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
    digits.len() > 1 && digits[0] == b'0' && digits[1].is_ascii_digit()
}

fn is_plain_int(text: &str) -> bool {
    !text.starts_with('+') && !has_leading_zero(text) && text.parse::<i64>().is_ok()
}

fn parse_float(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
    text.parse::<f64>().ok().filter(|v| plain && v.is_finite())
}

/// A column of texts on its way to its type. Empty texts are null, except in a text column.
#[derive(Debug)]
pub(crate) enum TextColumn {
    Text(StringBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Bool(BooleanBuilder),
}

impl TextColumn {
    /// `None` for types that are not written as one text.
    pub(crate) fn new(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Utf8 => Some(Self::Text(StringBuilder::new())),
            DataType::Int64 => Some(Self::Int(Int64Builder::new())),
            DataType::Float64 => Some(Self::Float(Float64Builder::new())),
            DataType::Boolean => Some(Self::Bool(BooleanBuilder::new())),
            _ => None,
        }
    }

    /// What the column wants, if `text` is not that.
    pub(crate) fn unfit(&self, text: &str) -> Option<&'static str> {
        match self {
            Self::Text(_) => None,
            _ if text.is_empty() => None,
            Self::Int(_) => text.parse::<i64>().is_err().then_some("a whole number"),
            Self::Float(_) => parse_float(text).is_none().then_some("a number"),
            Self::Bool(_) => parse_bool(text).is_none().then_some("true or false"),
        }
    }

    /// Appends a text that is not [`TextColumn::unfit`].
    pub(crate) fn push(&mut self, text: &str) {
        match self {
            Self::Text(column) => column.append_value(text),
            Self::Int(column) => column.append_option(text.parse().ok()),
            Self::Float(column) => column.append_option(parse_float(text)),
            Self::Bool(column) => column.append_option(parse_bool(text)),
        }
    }

    pub(crate) fn push_null(&mut self) {
        match self {
            Self::Text(column) => column.append_null(),
            Self::Int(column) => column.append_null(),
            Self::Float(column) => column.append_null(),
            Self::Bool(column) => column.append_null(),
        }
    }

    /// The column; the builder starts anew.
    pub(crate) fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(column) => Arc::new(column.finish()),
            Self::Int(column) => Arc::new(column.finish()),
            Self::Float(column) => Arc::new(column.finish()),
            Self::Bool(column) => Arc::new(column.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn types_of_values() {
        let cases = [
            (&["1", "-2", ""][..], TextType::Int),
            (&["1", "2.5e3"], TextType::Float),
            (&["0.5", "-0.25"], TextType::Float),
            (&["007", "1"], TextType::Text),
            (&["+49"], TextType::Float),
            (&["99999999999999999999"], TextType::Float),
            (&["true", "False"], TextType::Bool),
            (&["true", "1"], TextType::Text),
            (&["", ""], TextType::Empty),
            (&["nan"], TextType::Text),
            (&["inf"], TextType::Text),
            (&["1e999"], TextType::Text),
            (&["00.5"], TextType::Text),
        ];
        for (values, expected) in cases {
            let found = values.iter().map(|v| TextType::of(v)).fold(TextType::Empty, TextType::merge);
            assert_eq!(found, expected, "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn what_types_are_found_in_fits_them(values in prop::collection::vec("[0-9+.eE-]{0,6}|true|x", 1..6)) {
            let found = values.iter().map(|v| TextType::of(v)).fold(TextType::Empty, TextType::merge);
            let mut column = TextColumn::new(&found.data_type()).unwrap();
            for value in &values {
                prop_assert_eq!(column.unfit(value), None, "{} in {:?}", value, found);
                column.push(value);
            }
            let column = column.finish();
            prop_assert_eq!(column.len(), values.len());
            let text = found.data_type() == DataType::Utf8;
            prop_assert!(values.iter().enumerate().all(|(i, v)| column.is_null(i) == (v.is_empty() && !text)));
        }
    }
}
