#![doc = include_str!("../README.md")]

pub mod animation;
pub mod boxes;
pub mod chunks;
pub mod column_views;
pub mod columns;
pub mod conversations;
pub mod expressions;
pub mod funnel;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod geometry;
mod list_rows;
pub mod media;
pub mod media_column;
pub mod resize;
pub mod row_id;
pub mod sound;
pub mod span;

pub use boxes::{BoxesBuilder, BoxesView, GroundedBox};
pub use chunks::{Chunk, ChunksBuilder, ChunksView};
pub use column_views::{ColumnTypeError, ColumnValueError};
pub use conversations::{ConversationsBuilder, ConversationsView, Turn};
pub use expressions::{Expression, ExpressionsBuilder, ExpressionsView};
pub use geometry::{BOX_TOLERANCE, Box2d, BoxError};
pub use media::{DecodeLimits, ImageFormat, ImageInfo, MediaError};
pub use media_column::{MediaBuilder, MediaView};
pub use resize::{Filter, resize};
pub use row_id::{Place, RowId, RowIdError, file_hash};
pub use sound::{Sound, SoundError, SoundFormat, SoundLimits};
pub use span::{CharIndex, CharSpan};
