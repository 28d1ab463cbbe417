#![doc = include_str!("../README.md")]

mod caption;
mod captions;
mod classify;
pub mod containment;
pub mod dialogue;
mod drop_abstract_chunks;
mod drop_contained;
mod embed;
mod embeddable;
mod expand_expressions;
pub mod expression_edges;
mod films;
mod filter_boxes;
#[cfg(test)]
mod fixtures;
mod generate;
#[cfg(test)]
mod grit_recipe;
mod ground;
mod image_info;
mod inputs;
mod local_model;
mod matching;
mod noun_chunks;
mod opened;
mod parse;
mod perplexity;
mod pictures;
mod row_values;
mod similarity;
mod sounds;
pub mod stage;
mod stage_type;
pub mod suppression;
mod transcribe;
mod window;

pub use caption::Caption;
pub use classify::Classify;
pub use dialogue::{Dialogue, DialogueKind, Instruct, Instructions, checked_exchanges};
pub use drop_abstract_chunks::{ABSTRACT_NOUNS, AbstractMatch, DropAbstractChunks};
pub use drop_contained::{ContainmentForm, DropContained, keep_most_boxes, keep_outermost};
pub use embed::Embed;
pub use expand_expressions::{Edges, ExpandExpressions, MAX_EXPRESSION_BYTES, expand};
pub use filter_boxes::{FilterBoxes, Kept, MAX_BOXES_PER_ROW};
pub use generate::{Generate, ImageDetail, Interface, KeyStyle, RequestMaker};
pub use ground::{Ground, Grounding, ground_by_class, ground_by_phrase};
pub use image_info::{ImageCheck, ImageProperties, OnImageError};
pub use matching::{Match, MatchMeasure};
pub use noun_chunks::NounChunks;
pub use parse::{Parse, parse_type};
pub use perplexity::Perplexity;
pub use similarity::Similarity;
pub use stage::{ColumnError, Outcome, RowFailure, RowWise, Stage, StageError};
pub use stage_type::{Decoded, StageType, stage_types};
pub use transcribe::Transcribe;
