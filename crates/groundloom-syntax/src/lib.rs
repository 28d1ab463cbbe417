#![doc = include_str!("../README.md")]

mod attribute_ruler;
mod doc;
mod error;
mod lemmatizer;
mod lexeme;
mod model;
mod msgpack;
mod network;
mod noun_chunks;
mod parser;
mod pipeline;
mod record;
mod strings;
mod tokenizer;
mod unicode;

pub use doc::{Doc, Token};
pub use error::{Result, SyntaxError};
pub use network::KernelClass;
pub use noun_chunks::NounChunk;
pub use pipeline::{DEFAULT_MAX_CHARS, Margins, Pipeline, Timings};
