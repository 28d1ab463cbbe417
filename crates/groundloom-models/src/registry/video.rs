//! Models of video, by name.

use std::sync::Arc;

use super::{Opened, sized};
use crate::{
    ModelError,
    family::Family,
    videomae::{self, VideoEncoder, VideoMae, VideoMaeEncoder},
};

/// Loads the encoder of video that `name` stands for: the path of a folder in Hugging Face layout that holds VideoMAE, with
/// classes or without.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_video_encoder(name: &str) -> Result<Arc<dyn VideoEncoder>, ModelError> {
    let opened = Opened::by_name(name)?;
    match opened.family {
        Family::VideoMae => Ok(Arc::new(opened.video_encoder()?)),
        _ => Err(opened.unable("make features of clips", "VideoMAE")),
    }
}

impl Opened {
    /// VideoMAE.
    ///
    /// # Errors
    /// What is missing or wrong in the folder.
    pub(crate) fn video_encoder(self) -> Result<VideoMaeEncoder, ModelError> {
        let network = VideoMae::load(&self.config, &self.weights)?;
        let processor = sized(&self.folder, videomae::IMAGE_DEFAULTS, network.image_size)?;
        Ok(VideoMaeEncoder { processor, network, info: self.info })
    }
}
