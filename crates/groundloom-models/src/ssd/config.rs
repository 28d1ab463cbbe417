//! `config.json` of an SSD MobileNetV2 folder.

use serde::Deserialize;

/// The whole file. Unknown keys are refused: an option that is ignored would give other boxes than the model's author
/// meant.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SsdConfig {
    /// `["SsdMobileNetV2"]`; read by the registry before this struct is.
    #[serde(rename = "architectures")]
    _architectures: Vec<String>,
    /// The model's name.
    pub(crate) name: String,
    /// SPDX identifier.
    pub(crate) license: String,
    /// File of the class names, one a line; line 0 is background.
    pub(crate) labels: String,
    /// Side of the square input in pixels.
    pub(crate) image_size: u32,
    /// How the image is resized; only `bilinear` (PIL's antialiased one) is known.
    pub(crate) resample: Resample,
    /// `[factor, offset]`: a pixel of 0–255 enters the network as `pixel * factor + offset`.
    pub(crate) rescale: [f64; 2],
    pub(crate) anchors: AnchorConfig,
    pub(crate) box_coder: BoxCoder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Resample {
    Bilinear,
}

/// SSD's default boxes (Liu et al., "SSD: Single Shot MultiBox Detector", 2016, section 2.2), in the form of the
/// TensorFlow object detection API's `ssd_anchor_generator`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnchorConfig {
    /// Pixels of the input per cell of each feature map.
    pub(crate) strides: Vec<u32>,
    /// Scale of the lowest map's anchors, a fraction of the image's side; the maps' scales are spaced evenly up to
    /// `max_scale`.
    pub(crate) min_scale: f64,
    pub(crate) max_scale: f64,
    /// Scale of the extra square anchor of the lowest map.
    pub(crate) lowest_scale: f64,
    /// Width to height of a map's anchors.
    pub(crate) aspect_ratios: Vec<f64>,
}

/// What the encoded offsets are divided by before they are applied.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BoxCoder {
    pub(crate) centre: f32,
    pub(crate) size: f32,
}
