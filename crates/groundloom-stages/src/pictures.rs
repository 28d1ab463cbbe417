//! Images of a window on their way to a model: encoded in the queue, decoded on the model's thread, so that no more lie
//! decoded than a batch holds.

use std::sync::Arc;

use groundloom_data::{
    DecodeLimits, MediaError, MediaView,
    media::{RgbImage, decode_rgb},
};
use groundloom_models::ModelError;

use crate::{
    stage::StageError,
    window::{self, Fault},
};

/// The column of images, where a pipeline file names none.
pub(crate) fn default_image() -> String {
    "image".to_owned()
}

/// Where Pillow refuses an image as a decompression bomb.
pub(crate) fn default_max_pixels() -> u64 {
    DecodeLimits::default().max_pixels
}

/// An image of a window, still encoded.
pub(crate) struct Picture {
    images: Arc<MediaView>,
    row: usize,
    limits: DecodeLimits,
}

impl Picture {
    /// The image of `row`, which has one, of at most `max_pixels`.
    pub(crate) fn new(images: &Arc<MediaView>, row: usize, max_pixels: u64) -> Self {
        let limits = DecodeLimits { max_pixels, ..DecodeLimits::default() };
        Self { images: Arc::clone(images), row, limits }
    }

    fn decode(&self) -> Result<RgbImage, MediaError> {
        decode_rgb(self.images.bytes(self.row).unwrap_or_default(), &self.limits)
    }
}

/// What a model says of an image, or why the image could not be decoded.
pub(crate) type Seen<T> = Result<T, MediaError>;

/// Decodes the picture of each item, has `run` answer those that could be decoded, and puts the answers in the items'
/// order.
pub(crate) fn see<I, T>(
    items: &[I],
    picture: impl Fn(&I) -> &Picture,
    run: impl FnOnce(&[(&RgbImage, &I)]) -> Vec<Result<T, ModelError>>,
) -> Vec<Result<Seen<T>, ModelError>> {
    let decoded: Vec<_> = items.iter().map(|item| picture(item).decode()).collect();
    let good: Vec<_> =
        decoded.iter().zip(items).filter_map(|(image, item)| image.as_ref().ok().map(|image| (image, item))).collect();
    let mut answers = run(&good).into_iter();
    let next = |image: &Result<_, MediaError>| match image {
        Ok(_) => answers.next().map(|answer| answer.map(Ok)),
        Err(error) => Some(Ok(Err(error.clone()))),
    };
    decoded.iter().filter_map(next).collect()
}

/// What came of one row: the answer, or the row's fault.
///
/// # Errors
/// [`StageError::Model`] where the model's threads are gone, which concerns every row.
pub(crate) fn answered<T>(
    answer: Option<Result<Seen<T>, ModelError>>,
    path: Option<&str>,
    model: &str,
) -> Result<Result<T, Fault>, StageError> {
    let seen = |seen: Seen<T>| seen.map_err(|error| Fault::image(&error, path));
    window::answered(answer.map(|answer| answer.map(seen)), model)
}
