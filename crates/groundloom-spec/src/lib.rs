#![doc = include_str!("../README.md")]

mod component_faults;
mod component_page;
mod component_type;
mod decode;
mod diagnostic;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod graph;
mod node;
mod params;
mod pipeline;
mod pipeline_schema;
mod reference;
mod render;
mod schema_check;
mod schema_words;
mod secret;
mod sections;
mod source;
mod spelling;
mod yaml;

pub use component_page::describe;
pub use component_type::{ComponentType, Config, Role};
pub use diagnostic::{Diagnostic, Diagnostics, Note, Severity};
pub use graph::{Graph, GraphNode};
pub use node::{Entry, Node, Number, NumberValue, Origin, Value};
pub use params::Param;
pub use pipeline::{Component, Spec};
pub use pipeline_schema::pipeline_schema;
pub use render::render;
pub use secret::{Secret, SecretError};
pub use sections::{parse, parse_partial};
pub use source::{Location, SourceFile, Span};
pub use spelling::did_you_mean;
