#![doc = include_str!("../README.md")]

mod beam;
mod bitmap;
mod codes;
mod collected;
mod error;
mod evaluation;
pub mod exchange;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod graph;
mod groups;
mod hnsw;
mod index;
mod kernels;
mod lines;
pub mod manifest;
mod metric;
mod rescoring;
mod segment;
pub mod serve;
mod space;
mod table;
mod tuning;
mod vector_file;
mod walk;
mod writer;

pub use bitmap::Bitmap;
pub use codes::Coding;
pub use collected::MOST_DIMENSIONS;
pub use error::IndexError;
pub use evaluation::{Recall, Retrieval};
pub use graph::{Builder, GraphSettings};
pub use groups::Group;
pub use index::{Answer, Filter, Hit, Index, MOST_ANSWERS, Position, Predicate, Search, sum_of_directions};
pub use manifest::{ColumnSpec, Manifest, ModelIdentity};
pub use metric::Metric;
pub use segment::{ColumnSettings, Plan, instruction_set};
pub use table::as_json;
pub use tuning::Tuning;
pub use vector_file::FileEntry;
pub use writer::{Changed, Writer};
