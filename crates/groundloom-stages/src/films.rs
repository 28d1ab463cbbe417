//! Films of a window: lists of pictures, or animated GIF and WebP.

use std::ops::Range;

use arrow::{
    array::{Array, ArrayRef, AsArray},
    buffer::NullBuffer,
    datatypes::DataType,
};
use groundloom_data::{
    ColumnTypeError, DecodeLimits, MediaView,
    animation::{decode_frames, frame_times},
    columns,
    media::{RgbImage, decode_rgb},
};

use crate::window::Fault;

/// A stretch of a film of which ImageBind sees the first and the last frame, in milliseconds, and how many it takes of a long film.
const STRETCH: u64 = 2000;
const STRETCHES: u64 = 5;

/// A column of films.
#[derive(Debug, Clone)]
pub(crate) struct Films {
    kind: Kind,
    pictures: MediaView,
}

#[derive(Debug, Clone)]
enum Kind {
    /// An animated picture each.
    Animations,
    /// A list of pictures each: which of all pictures.
    Frames { rows: Vec<Range<usize>>, nulls: Option<NullBuffer> },
}

impl Films {
    /// Opens `column`.
    pub(crate) fn try_new(column: &ArrayRef) -> Result<Self, ColumnTypeError> {
        let wrong = || ColumnTypeError {
            expected: "a column of films, list<struct<bytes, path>> or struct<bytes, path>".to_owned(),
            found: column.data_type().to_string(),
        };
        if columns::is_media(column.data_type()) {
            return Ok(Self { kind: Kind::Animations, pictures: MediaView::try_new(column)? });
        }
        let (rows, pictures) = match column.data_type() {
            DataType::List(_) => {
                let list = column.as_list::<i32>();
                let ends = list.value_offsets().windows(2).map(|ends| ends[0] as usize..ends[1] as usize);
                (ends.collect(), list.values())
            }
            DataType::LargeList(_) => {
                let list = column.as_list::<i64>();
                let ends = list.value_offsets().windows(2).map(|ends| ends[0] as usize..ends[1] as usize);
                (ends.collect(), list.values())
            }
            _ => return Err(wrong()),
        };
        if !columns::is_media(pictures.data_type()) {
            return Err(wrong());
        }
        let kind = Kind::Frames { rows, nulls: column.nulls().cloned() };
        Ok(Self { kind, pictures: MediaView::try_new(pictures)? })
    }

    /// Checks a type as [`Films::try_new`] does, before there is data.
    pub(crate) fn check_type(data_type: &DataType) -> Result<(), ColumnTypeError> {
        Self::try_new(&arrow::array::new_empty_array(data_type)).map(|_| ())
    }

    /// Whether the row has a film.
    pub(crate) fn has(&self, row: usize) -> bool {
        match &self.kind {
            Kind::Animations => self.pictures.bytes(row).is_some(),
            Kind::Frames { nulls, .. } => nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)),
        }
    }

    /// The frames that a model sees: `count` of them evenly from the first to the last; without a number, all pictures of a
    /// list, and of an animation the first and the last of stretches of two seconds.
    pub(crate) fn decode(
        &self,
        row: usize,
        count: Option<usize>,
        limits: &DecodeLimits,
    ) -> Result<Vec<RgbImage>, Fault> {
        match &self.kind {
            Kind::Animations => {
                let fault = |error| Fault::image(&error, self.pictures.path(row));
                let bytes = self.pictures.bytes(row).unwrap_or_default();
                let times = frame_times(bytes, limits).map_err(fault)?;
                let wanted = match count {
                    Some(count) => evenly(times.len() - 1, count)?,
                    None => ends_of_stretches(&times),
                };
                decode_frames(bytes, &wanted, limits).map_err(fault)
            }
            Kind::Frames { rows, .. } => {
                let frames = rows.get(row).cloned().unwrap_or_default();
                let wanted = match count {
                    Some(count) => evenly(frames.len(), count)?,
                    None => (0..frames.len()).collect(),
                };
                let decode = |number: &usize| {
                    let place = frames.start + number;
                    let Some(bytes) = self.pictures.bytes(place) else {
                        let message = format!("expected a picture for each frame, found none for frame {number}");
                        return Err(Fault { code: crate::stage::codes::MISSING_VALUE, message });
                    };
                    decode_rgb(bytes, limits).map_err(|error| {
                        let fault = Fault::image(&error, self.pictures.path(place));
                        Fault { message: format!("frame {number}, {}", fault.message), ..fault }
                    })
                };
                wanted.iter().map(decode).collect()
            }
        }
    }
}

/// The numbers of `wanted` frames of `there`, from the first to the last at distances as equal as can be.
fn evenly(there: usize, wanted: usize) -> Result<Vec<usize>, Fault> {
    if there < wanted {
        let message = format!("expected a film of at least {wanted} frames, found {there}");
        return Err(Fault { code: crate::stage::codes::INVALID_VALUE, message });
    }
    Ok((0..wanted).map(|i| i * (there - 1) / (wanted - 1).max(1)).collect())
}

/// The numbers of the frames that are seen at the beginning and at the end of each stretch: five of them evenly from the film's beginning to its end, the whole film where it
/// is no longer than one. Frame `i` is seen from `times[i]` until `times[i + 1]`.
fn ends_of_stretches(times: &[u64]) -> Vec<usize> {
    let end = times.last().copied().unwrap_or_default();
    let seen_at = |time: u64| times.partition_point(|begin| *begin <= time).clamp(1, times.len() - 1) - 1;
    let latest = end.saturating_sub(STRETCH);
    let count = if latest == 0 { 1 } else { STRETCHES };
    let begins = (0..count).map(|i| latest * i / (STRETCHES - 1));
    begins.flat_map(|begin| [seen_at(begin), seen_at((begin + STRETCH).min(end).saturating_sub(1))]).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn frames_are_chosen_evenly() {
        assert_eq!(evenly(4, 4).unwrap(), [0, 1, 2, 3]);
        // As numpy's linspace(0, 9, 4).astype(int).
        assert_eq!(evenly(10, 4).unwrap(), [0, 3, 6, 9]);
        assert_eq!(evenly(9, 1).unwrap(), [0]);
        assert!(evenly(3, 4).unwrap_err().message.contains("at least 4 frames, found 3"));
    }

    #[test]
    fn stretches_begin_and_end_in_the_film() {
        // Three frames of 100 ms.
        assert_eq!(ends_of_stretches(&[0, 100, 200, 300]), [0, 2]);
        assert_eq!(ends_of_stretches(&[0, 100]), [0, 0]);
        // A frame a second, 6 s: stretches from 0, 1, 2, 3 and 4 s on.
        let times: Vec<u64> = (0..=6).map(|i| i * 1000).collect();
        assert_eq!(ends_of_stretches(&times), [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]);
    }
}
