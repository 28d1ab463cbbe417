//! `image_info`: size, format, content hash and decodability of images.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanBuilder, Int32Builder, Int64Builder, StringBuilder},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{
    DecodeLimits, ImageInfo, MediaError, MediaView, columns,
    media::{decode_rgb, probe},
};
use groundloom_models::ModelPool;
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    inputs,
    pictures::{default_image, default_max_pixels},
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// Adds what a file says about an image: `width` and `height` in pixels after EXIF orientation (int32), `format` (`jpeg`, `png`, …, from the bytes and not from the file
/// name), `file_bytes` (int64), `content_hash` (XXH3-128 of the encoded file, 32 hexadecimal digits: equal files have equal hashes) and `decodable` (boolean).
///
/// By default every image is decoded to its last pixel, so that a picture that ends in the middle is found here and not while training.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageProperties {
    /// Column with the image: `struct<bytes, path>`.
    #[serde(default = "default_image")]
    pub image: String,
    /// What the names of the new columns begin with; empty for `width`, `height`, … as the released GrIT has them. A column of that name is replaced.
    #[serde(default)]
    pub prefix: String,
    /// How much of an image is looked at.
    #[serde(default)]
    pub check: ImageCheck,
    /// What happens to an image that cannot be decoded.
    #[serde(default)]
    pub on_error: OnImageError,
    /// The largest number of pixels that is decoded; a header that announces more is refused before anything is allocated.
    /// The default is where Pillow refuses an image as a decompression bomb.
    #[serde(default = "default_max_pixels")]
    #[schemars(range(min = 1))]
    pub max_pixels: u64,
}

/// How much of an image is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageCheck {
    /// All of it is decoded.
    #[default]
    Pixels,
    /// The header only: many times faster, and `decodable` then means that the header is sound.
    Header,
}

/// What happens to an image that cannot be decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnImageError {
    /// The row goes to quarantine: `undecodable_image`, `image_too_large`, or `missing_value` where there is no image.
    #[default]
    Quarantine,
    /// The row stays with `decodable: false`, and what could not be read is null.
    Mark,
}

impl Config for ImageProperties {
    const NAME: &'static str = "image_info";
    const SUMMARY: &'static str = "Add size, format, content hash and decodability of images";
    const EXAMPLE: &'static str = "size: { type: image_info, image: image }";
}

impl ImageProperties {
    /// What is known of an encoded image: its header where that is sound, and why it cannot be used, if so.
    pub fn examine(&self, bytes: &[u8]) -> (Option<ImageInfo>, Option<MediaError>) {
        let limits = DecodeLimits { max_pixels: self.max_pixels, ..DecodeLimits::default() };
        let info = match probe(bytes) {
            Ok(info) => info,
            Err(error) => return (None, Some(error)),
        };
        let error = match self.check {
            ImageCheck::Pixels => decode_rgb(bytes, &limits).err(),
            ImageCheck::Header if bytes.len() > limits.max_bytes => {
                Some(MediaError::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes })
            }
            ImageCheck::Header if u64::from(info.width) * u64::from(info.height) > limits.max_pixels => {
                Some(MediaError::TooLarge { width: info.width, height: info.height, limit: limits.max_pixels })
            }
            ImageCheck::Header => None,
        };
        (Some(info), error)
    }
}

impl Stage for ImageProperties {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "image", &self.image, MediaView::check_type)?;
        let columns = [
            ("width", DataType::Int32),
            ("height", DataType::Int32),
            ("format", DataType::Utf8),
            ("file_bytes", DataType::Int64),
            ("content_hash", DataType::Utf8),
            ("decodable", DataType::Boolean),
        ];
        Ok(columns
            .into_iter()
            .map(|(name, data_type)| columns::column(&format!("{}{name}", self.prefix), data_type))
            .collect())
    }

    fn open(&self, _input: SchemaRef, _models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Arc::new(Examining { config: self.clone() }))
    }
}

#[derive(Debug)]
struct Examining {
    config: ImageProperties,
}

/// The stage's columns under construction.
#[derive(Default)]
struct Properties {
    width: Int32Builder,
    height: Int32Builder,
    format: StringBuilder,
    file_bytes: Int64Builder,
    content_hash: StringBuilder,
    decodable: BooleanBuilder,
}

impl Properties {
    fn append(&mut self, bytes: Option<&[u8]>, info: Option<ImageInfo>, decodable: bool) {
        self.width.append_option(info.and_then(|i| i32::try_from(i.width).ok()));
        self.height.append_option(info.and_then(|i| i32::try_from(i.height).ok()));
        self.format.append_option(info.map(|i| i.format.name()));
        self.file_bytes.append_option(bytes.and_then(|b| i64::try_from(b.len()).ok()));
        self.content_hash.append_option(bytes.map(|b| format!("{:032x}", xxh3_128(b))));
        self.decodable.append_value(decodable);
    }

    fn finish(mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.width.finish()),
            Arc::new(self.height.finish()),
            Arc::new(self.format.finish()),
            Arc::new(self.file_bytes.finish()),
            Arc::new(self.content_hash.finish()),
            Arc::new(self.decodable.finish()),
        ]
    }
}

#[async_trait]
impl RowWise for Examining {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let name = &self.config.image;
        let images = MediaView::try_new(inputs::column(rows, name)?).map_err(inputs::type_changed(name))?;
        let (mut window, mut output) = (Window::default(), Properties::default());
        let quarantine = self.config.on_error == OnImageError::Quarantine;
        for row in 0..rows.num_rows() {
            let Some(bytes) = images.bytes(row) else {
                if quarantine {
                    window.fail(row, Fault::missing(name, "give each row an image"));
                } else {
                    window.count("image_missing", 1);
                }
                output.append(None, None, false);
                continue;
            };
            let (info, error) = self.config.examine(bytes);
            match &error {
                Some(error) if quarantine => window.fail(row, Fault::image(error, images.path(row))),
                Some(_) => window.count("image_undecodable", 1),
                None => window.count("images", 1),
            }
            output.append(Some(bytes), info, error.is_none());
        }
        Ok(window.finish(output.finish()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;
    use crate::{fixtures, stage::codes};

    fn stage(config: serde_json::Value) -> ImageProperties {
        serde_json::from_value(config).unwrap()
    }

    /// A 24-bit BMP of these pixels.
    fn bmp(width: u32, height: u32) -> Vec<u8> {
        let row = (width * 3).div_ceil(4) * 4;
        let mut bytes = b"BM".to_vec();
        for value in [54 + row * height, 0, 54, 40, width, height, 1 | 24 << 16, 0, row * height, 2835, 2835, 0, 0] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend((0..row * height).map(|n| n as u8));
        bytes
    }

    #[test]
    fn images_are_measured_and_hashed() {
        let (small, large) = (bmp(3, 2), bmp(40, 50));
        let cut = &large[..large.len() / 2];
        let images = fixtures::media([
            Some((&small, "a.bmp")),
            Some((&small, "b.jpg")),
            Some((cut, "cut.bmp")),
            Some((b"hello", "note.txt")),
            Some((b"", "empty")),
            None,
        ]);
        let rows = fixtures::rows([("image", images)]);

        let outcome = fixtures::run(&stage(json!({"prefix": "image_"})), &rows);
        let values = |column: usize| fixtures::json(&outcome.columns[column]);
        assert_eq!(
            (&values(0)[..2], &values(1)[..2], &values(2)[..2]),
            (&[json!(3), json!(3)][..], &[json!(2), json!(2)][..], &[json!("bmp"), json!("bmp")][..])
        );
        assert_eq!(values(3)[0], json!(small.len()));
        assert_eq!(values(4)[0].as_str().unwrap().len(), 32);
        assert_eq!(values(4)[0], values(4)[1]);
        assert_ne!(values(4)[0], values(4)[2]);
        assert_eq!(values(5), [json!(true), json!(true), json!(false), json!(false), json!(false), json!(false)]);
        let failures = fixtures::failures(&outcome);
        let undecodable = codes::UNDECODABLE_IMAGE;
        assert_eq!(
            failures.iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(),
            [(2, undecodable), (3, undecodable), (4, undecodable), (5, codes::MISSING_VALUE)]
        );
        assert!(failures[1].2.starts_with("note.txt: expected a JPEG"), "{}", failures[1].2);
        assert_eq!(fixtures::counts(&outcome), [("images", 2)]);

        let outcome = fixtures::run(&stage(json!({"on_error": "mark"})), &rows);
        assert_eq!(outcome.failures, []);
        assert_eq!(
            fixtures::json(&outcome.columns[5]),
            [json!(true), json!(true), json!(false), json!(false), json!(false), json!(false)]
        );
        assert_eq!(fixtures::json(&outcome.columns[0])[2], json!(40), "the header of a cut image still says its size");
        assert_eq!(fixtures::counts(&outcome), [("image_missing", 1), ("image_undecodable", 3), ("images", 2)]);

        let outcome = fixtures::run(&stage(json!({"check": "header"})), &rows);
        assert_eq!(
            fixtures::failures(&outcome).iter().map(|f| f.0).collect::<Vec<_>>(),
            [3, 4, 5],
            "a sound header is enough"
        );
    }

    #[test]
    fn too_many_pixels_are_refused_by_the_header() {
        let mut header = bmp(1, 1);
        header[18..22].copy_from_slice(&50_000_u32.to_le_bytes());
        header[22..26].copy_from_slice(&50_000_u32.to_le_bytes());
        for check in ["pixels", "header"] {
            let rows = fixtures::rows([("image", fixtures::media([Some((&header, "big.bmp"))]))]);
            let outcome = fixtures::run(&stage(json!({ "check": check })), &rows);
            let failures = fixtures::failures(&outcome);
            assert_eq!((failures[0].0, failures[0].1), (0, codes::IMAGE_TOO_LARGE));
            assert!(failures[0].2.starts_with("big.bmp: the image has 50000 x 50000 pixels"), "{}", failures[0].2);
        }
    }

    #[test]
    fn the_columns_have_the_names_of_the_released_data() {
        let schema = Schema::new(vec![columns::column("image", columns::media_type())]);
        let names =
            |config| stage(config).outputs(&schema).unwrap().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
        assert_eq!(names(json!({})), ["width", "height", "format", "file_bytes", "content_hash", "decodable"]);
        assert_eq!(names(json!({"prefix": "i_"}))[0], "i_width");
    }
}
