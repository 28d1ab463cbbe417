//! What a model's tokens cost: a table that the user edits.

use std::path::Path;

use serde::Deserialize;

use crate::{
    answer::Usage,
    error::LlmError,
    money::Money,
    tokens::{Tokenizer, tokenizer_of},
};

/// Tokens that an image is taken for where the table says nothing: OpenAI's tiled models stay below it.
const IMAGE_TOKENS: u64 = 3_000;

/// The price table that is built in, as a file to copy and correct.
pub const BUILT_IN: &str = include_str!("../data/prices.csv");

/// Prices by model, the first line that fits counts.
#[derive(Debug, Clone, Default)]
pub struct PriceTable {
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    model: String,
    price: Price,
}

/// What one model's tokens cost and how they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// One input token.
    pub input: Money,
    /// One input token that the server took from its own cache.
    pub cached_input: Money,
    /// One output token, reasoning included.
    pub output: Money,
    /// How tokens are counted.
    pub tokenizer: Tokenizer,
    /// The most that one image can count as.
    pub image_tokens: u64,
    /// Whether the table has the model. If not, the prices above are zero and no cost limit can be kept.
    pub known: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    model: String,
    input: Money,
    cached_input: Option<Money>,
    output: Money,
    tokenizer: Option<Tokenizer>,
    image_tokens: Option<u64>,
}

impl PriceTable {
    /// The table that is built in.
    ///
    /// # Errors
    /// Never, as a test reads it.
    pub fn built_in() -> Result<Self, LlmError> {
        Self::parse("the built-in price table", BUILT_IN)
    }

    /// A table of one model that costs nothing, as one on this machine.
    pub fn free(model: &str) -> Self {
        let price = Price { known: true, tokenizer: Tokenizer::Bytes, ..Self::default().price(model) };
        Self { lines: vec![Line { model: model.to_owned(), price }] }
    }

    /// Reads a table in the form of [`BUILT_IN`].
    ///
    /// # Errors
    /// [`LlmError::Prices`] naming the file and the line.
    pub fn read(path: &Path) -> Result<Self, LlmError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| LlmError::Prices { file: name.clone(), message: format!("cannot be read: {e}") })?;
        Self::parse(&name, &text)
    }

    /// Reads a table from text; `file` is its name in errors.
    ///
    /// # Errors
    /// As [`PriceTable::read`].
    pub fn parse(file: &str, text: &str) -> Result<Self, LlmError> {
        let mut reader =
            csv::ReaderBuilder::new().comment(Some(b'#')).trim(csv::Trim::All).from_reader(text.as_bytes());
        let mut lines = Vec::new();
        for row in reader.deserialize::<Row>() {
            let row = row.map_err(|e| LlmError::Prices {
                file: file.to_owned(),
                message: format!("{e}; expected the columns model,input,cached_input,output,tokenizer,image_tokens"),
            })?;
            let price = Price {
                input: row.input.per_million(),
                cached_input: row.cached_input.unwrap_or(row.input).per_million(),
                output: row.output.per_million(),
                tokenizer: row.tokenizer.unwrap_or_else(|| tokenizer_of(row.model.trim_end_matches('*'))),
                image_tokens: row.image_tokens.unwrap_or(IMAGE_TOKENS),
                known: true,
            };
            lines.push(Line { model: row.model, price });
        }
        Ok(Self { lines })
    }

    /// The price of `model`; one with `known: false` when no line fits.
    pub fn price(&self, model: &str) -> Price {
        let fits = |line: &&Line| match line.model.strip_suffix('*') {
            Some(start) => model.starts_with(start),
            None => model == line.model,
        };
        self.lines.iter().find(fits).map_or_else(
            || Price {
                input: Money::ZERO,
                cached_input: Money::ZERO,
                output: Money::ZERO,
                tokenizer: tokenizer_of(model),
                image_tokens: IMAGE_TOKENS,
                known: false,
            },
            |line| line.price,
        )
    }
}

impl Price {
    /// What a call cost by the server's own count.
    pub fn cost(&self, usage: &Usage) -> Money {
        let cached = usage.cached_prompt_tokens.min(usage.prompt_tokens);
        let cached_price = self.cached_input.min(self.input);
        self.input
            .times(usage.prompt_tokens - cached)
            .plus(cached_price.times(cached))
            .plus(self.output.times(usage.completion_tokens))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_built_in_table_is_read_and_the_first_fitting_line_counts() {
        let table = PriceTable::built_in().unwrap();
        let mini = table.price("gpt-4o-mini-2024-07-18");
        assert_eq!((mini.input, mini.output), (Money(150_000), Money(600_000)));
        assert_eq!(table.price("gpt-4o").input, Money(2_500_000));
        assert_eq!(table.price("gpt-4").tokenizer, Tokenizer::Cl100kBase);
        assert!(!table.price("qwen2.5").known);
        let usage = Usage { prompt_tokens: 1_000, completion_tokens: 100, cached_prompt_tokens: 400 };
        // 600 × 0.15 + 400 × 0.075 + 100 × 0.60 millionths of a dollar.
        assert_eq!(mini.cost(&usage), Money(180_000_000));
    }

    #[test]
    fn a_broken_table_is_refused_with_its_place() {
        let cases = [
            ("model,input,cached_input,output,tokenizer,image_tokens\nm,1,,x,,\n", "line: 2"),
            ("model,input,cached_input,output,tokenizer,image_tokens\nm,1,,2,klingon,\n", "klingon"),
            ("model,in\nm,1\n", "expected the columns"),
        ];
        for (text, said) in cases {
            let error = PriceTable::parse("my.csv", text).unwrap_err().to_string();
            assert!(error.contains("my.csv") && error.contains(said), "{error}");
        }
        let own = PriceTable::parse("my.csv", "model,input,cached_input,output,tokenizer,image_tokens\nlocal,0,,0,,\n");
        assert!(own.unwrap().price("local").known);
    }
}
