//! Sounds of a window on their way to a model: encoded in the queue, decoded on the model's thread one by one.

use std::sync::Arc;

use groundloom_data::{MediaView, SoundLimits, sound::decode_mono};

use crate::window::Fault;

/// The column of sounds, where a pipeline file names none.
pub(crate) fn default_audio() -> String {
    "audio".to_owned()
}

/// A sound of a window, still encoded.
pub(crate) struct Recording {
    sounds: Arc<MediaView>,
    row: usize,
    limits: SoundLimits,
}

impl Recording {
    /// The sound of `row`, which has one, of at most `max_seconds`.
    pub(crate) fn new(sounds: &Arc<MediaView>, row: usize, max_seconds: f64) -> Self {
        let limits = SoundLimits { max_seconds, ..SoundLimits::default() };
        Self { sounds: Arc::clone(sounds), row, limits }
    }

    /// Its samples, one channel of `rate` samples a second.
    pub(crate) fn decode(&self, rate: u32) -> Result<Vec<f32>, Fault> {
        let bytes = self.sounds.bytes(self.row).unwrap_or_default();
        let sound = decode_mono(bytes, Some(rate), &self.limits);
        sound.map(|sound| sound.samples).map_err(|error| Fault::sound(&error, self.sounds.path(self.row)))
    }
}
