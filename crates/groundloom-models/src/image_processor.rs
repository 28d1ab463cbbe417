//! From an image to a network's pixels, as `preprocessor_config.json` says: Pillow's resampling to the byte, then the
//! reference's arithmetic in its order.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use groundloom_data::{Filter, resize};
use image::{Rgb, RgbImage};
use rayon::prelude::*;
use serde_json::Value;

use crate::{ModelError, config::Config, folder::ModelFolder};

/// The file of a model folder.
const FILE: &str = "preprocessor_config.json";

/// The steps of transformers' PIL processors (`CLIPImageProcessor`, `SiglipImageProcessor`, `ViTImageProcessor`,
/// `BitImageProcessor`, `BeitImageProcessor`, `OwlViTImageProcessor`, `GroundingDinoImageProcessor`): resize, centre
/// crop, rescale, normalise. All of them differ in their defaults only, and the file says what it does.
#[derive(Debug, Clone)]
pub(crate) struct ImageProcessor {
    size: Option<Size>,
    filter: Filter,
    /// Width and height.
    crop: Option<(u32, u32)>,
    middle: Middle,
    /// What a byte is multiplied by.
    factor: f64,
    /// Mean and deviation of each channel, where values are normalised.
    moments: Option<[(f32, f32); 3]>,
    /// What a value of each channel becomes.
    values: Arc<[[f32; 256]; 3]>,
}

/// Where a crop begins whose margins are an odd number of pixels together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Middle {
    /// At half of them rounded down, as transformers does.
    Down,
    /// At half of them rounded to an even number, as torchvision does.
    Even,
}

impl Middle {
    /// Where the middle `to` of `from` pixels begin; below 0 where `to` are more.
    pub(crate) fn offset(self, from: u32, to: u32) -> i64 {
        let (from, to) = (i64::from(from), i64::from(to));
        match self {
            Self::Even if from >= to => (from - to) / 2 + i64::from((from - to) % 4 == 3),
            Self::Down if from >= to => (from - to) / 2,
            // Reached by transformers' processors only: torchvision's resize leaves no side too short here.
            _ => -((to - from + 1) / 2),
        }
    }
}

/// What an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Squeezed or stretched, in pixels.
    Exact { width: u32, height: u32 },
    /// The shorter side gets this length; the other keeps the aspect ratio, rounded down.
    Shortest(u32),
    /// The shorter side gets the first length, unless the longer one would pass the second: then that gets it.
    ShortestWithin(u32, u32),
}

/// What a processor does where its file is silent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageDefaults {
    pub(crate) filter: Filter,
    pub(crate) mean: [f64; 3],
    pub(crate) std: [f64; 3],
    /// Whether a centre crop follows the resize.
    pub(crate) crop: bool,
}

/// Mean and deviation of OpenAI's CLIP, by channel.
pub(crate) const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub(crate) const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// Mean and deviation of ImageNet.
pub(crate) const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
pub(crate) const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
/// −1 to 1.
pub(crate) const HALF: [f64; 3] = [0.5; 3];

impl ImageProcessor {
    /// Reads `preprocessor_config.json`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] where it asks for something that this processor does not do.
    pub(crate) fn open(folder: &ModelFolder, defaults: ImageDefaults) -> Result<Self, ModelError> {
        let file = Config::read(folder, FILE)?;
        let processor = Self::read(&file, defaults)?;
        file.finish()?;
        Ok(processor)
    }

    /// As [`ImageProcessor::open`], for processors that pad a batch to its largest image: here each image is a batch by
    /// itself and is not padded.
    ///
    /// # Errors
    /// As [`ImageProcessor::open`].
    pub(crate) fn open_padding(folder: &ModelFolder, defaults: ImageDefaults) -> Result<Self, ModelError> {
        let file = Config::read(folder, FILE)?;
        // Annotations are no business of inference.
        for inert in ["do_pad", "format", "do_convert_annotations", "pad_and_return_pixel_mask"] {
            file.value(inert);
        }
        file.only("pad_size", serde_json::Value::Null)?;
        let processor = Self::read(&file, defaults)?;
        file.finish()?;
        Ok(processor)
    }

    /// Reads `preprocess_cfg` of an `open_clip_config.json`, for a network of images of `side` × `side` pixels.
    ///
    /// # Errors
    /// As [`ImageProcessor::open`].
    pub(crate) fn read_open_clip(file: &Config, side: usize) -> Result<Self, ModelError> {
        file.only("mode", "RGB")?;
        // The network's own size goes before it; what lies around an image is cut off.
        for inert in ["size", "fill_color"] {
            file.value(inert);
        }
        let filter = match file.text("interpolation")? {
            // "random" is for training.
            None | Some("bicubic" | "random") => Filter::Bicubic,
            Some("bilinear") => Filter::Bilinear,
            Some(found) => return Err(file.bad("interpolation", "bicubic or bilinear", found)),
        };
        let side = side as u32;
        let (size, crop) = match file.text("resize_mode")? {
            None | Some("shortest") => (Size::Shortest(side), Some((side, side))),
            Some("squash") => (Size::Exact { width: side, height: side }, None),
            Some(found) => return Err(file.bad("resize_mode", "shortest or squash", found)),
        };
        let moments = (channels(file, "mean", CLIP_MEAN)?, channels(file, "std", CLIP_STD)?);
        if moments.1.contains(&0.0) {
            return Err(file.bad("std", "other than 0", 0));
        }
        file.finish()?;
        let values = Self::of_values(filter, Some(1.0 / 255.0), Some(moments));
        Ok(Self { size: Some(size), crop, middle: Middle::Even, ..values })
    }

    /// Reads the options of an opened file, for families that read more of it themselves; they call
    /// [`Config::finish`].
    ///
    /// # Errors
    /// As [`ImageProcessor::open`].
    pub(crate) fn read(file: &Config, defaults: ImageDefaults) -> Result<Self, ModelError> {
        let size = match file.flag_or("do_resize", true)? {
            true => Some(size(file)?),
            false => {
                file.value("size");
                None
            }
        };
        let crop = match file.flag_or("do_center_crop", defaults.crop)? {
            true => Some(crop(file)?),
            false => {
                file.value("crop_size");
                None
            }
        };
        let (filter, values) = Self::read_values(file, defaults)?;
        Ok(Self { size, filter, crop, ..values })
    }

    /// Reads the resampling filter, and what becomes of pixel values: a processor that neither resizes nor crops.
    ///
    /// # Errors
    /// As [`ImageProcessor::open`].
    pub(crate) fn read_values(file: &Config, defaults: ImageDefaults) -> Result<(Filter, Self), ModelError> {
        // Names, and what any RGB image has been through already.
        for inert in ["image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb"] {
            file.value(inert);
        }
        for inert in ["return_tensors", "input_data_format", "data_format", "device", "disable_grouping"] {
            file.value(inert);
        }
        file.only("do_reduce_labels", false)?;
        file.only("reduce_labels", false)?;
        let filter = match file.value("resample").map(Value::as_u64) {
            None => defaults.filter,
            Some(Some(1)) => Filter::Lanczos,
            Some(Some(2)) => Filter::Bilinear,
            Some(Some(3)) => Filter::Bicubic,
            Some(Some(4)) => Filter::Box,
            Some(found) => {
                let found = found.map_or("something else".to_owned(), |n| n.to_string());
                return Err(file.bad("resample", "1 (Lanczos), 2 (bilinear), 3 (bicubic) or 4 (box)", found));
            }
        };
        let factor = file.number_or("rescale_factor", 1.0 / 255.0)?;
        let factor = if file.flag_or("do_rescale", true)? { Some(factor) } else { None };
        let (mean, std) = (channels(file, "image_mean", defaults.mean)?, channels(file, "image_std", defaults.std)?);
        let normalise = file.flag_or("do_normalize", true)?;
        if normalise && std.contains(&0.0) {
            return Err(file.bad("image_std", "other than 0", 0));
        }
        Ok((filter, Self::of_values(filter, factor, normalise.then_some((mean, std)))))
    }

    /// A processor that neither resizes nor crops: a byte is multiplied by `factor`, and normalised by mean and deviation.
    fn of_values(filter: Filter, factor: Option<f64>, moments: Option<([f64; 3], [f64; 3])>) -> Self {
        let moments = moments.map(|(mean, std)| std::array::from_fn(|i| (mean[i] as f32, std[i] as f32)));
        let mut values = [[0.0; 256]; 3];
        for (channel, table) in values.iter_mut().enumerate() {
            for (byte, value) in table.iter_mut().enumerate() {
                // The reference rescales in f64 and rounds, then normalises in f32.
                let rescaled = factor.map_or(byte as f32, |factor| (byte as f64 * factor) as f32);
                *value = moments.map_or(rescaled, |moments: [(f32, f32); 3]| {
                    let (mean, std) = moments[channel];
                    (rescaled - mean) / std
                });
            }
        }
        let (factor, values) = (factor.unwrap_or(1.0), Arc::new(values));
        Self { size: None, filter, crop: None, middle: Middle::Down, factor, moments, values }
    }

    /// A byte before it is normalised, for processors that resize between the two.
    pub(crate) fn rescaled(&self, byte: u8) -> f32 {
        (f64::from(byte) * self.factor) as f32
    }

    /// A rescaled value of `channel`, normalised.
    pub(crate) fn normalised(&self, channel: usize, value: f32) -> f32 {
        self.moments.map_or(value, |moments| (value - moments[channel].0) / moments[channel].1)
    }

    /// Width and height of every image after [`ImageProcessor::place`]; `None` where it depends on the image.
    pub(crate) fn fixed_size(&self) -> Option<(u32, u32)> {
        self.crop.or(match self.size {
            Some(Size::Exact { width, height }) => Some((width, height)),
            _ => None,
        })
    }

    /// `image` resized and cropped.
    ///
    /// # Errors
    /// [`ModelError::EmptyImage`].
    pub(crate) fn place(&self, image: &RgbImage) -> Result<RgbImage, ModelError> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(ModelError::EmptyImage { width, height });
        }
        let resized = match self.size {
            Some(size) => {
                let (to_width, to_height) = size.of(width, height);
                // A sliver of an image must not become a canvas of gigabytes.
                if u64::from(to_width) * u64::from(to_height) > MAX_PIXELS {
                    return Err(ModelError::ImageTooLong { width, height, to_width, to_height });
                }
                resize(image, to_width, to_height, self.filter)
            }
            None => image.clone(),
        };
        Ok(match self.crop {
            Some((width, height)) => centre_crop(&resized, width, height, self.middle),
            None => resized,
        })
    }

    /// Writes the pixels of a placed image as `[3, height, width]`, channel by channel.
    pub(crate) fn write(&self, placed: &RgbImage, planes: &mut [f32]) {
        let plane = planes.len() / 3;
        for (i, Rgb([r, g, b])) in placed.pixels().enumerate().take(plane) {
            planes[i] = self.values[0][usize::from(*r)];
            planes[plane + i] = self.values[1][usize::from(*g)];
            planes[2 * plane + i] = self.values[2][usize::from(*b)];
        }
    }

    /// What a pixel of these bytes becomes.
    pub(crate) fn pixel(&self, bytes: [u8; 3]) -> [f32; 3] {
        [0, 1, 2].map(|channel| self.values[channel][usize::from(bytes[channel])])
    }

    /// Images as one `[n, 3, height, width]`, for processors of one size; the caller sees to that.
    ///
    /// # Errors
    /// [`ModelError::EmptyImage`], [`ModelError::ImageTooLong`], [`ModelError::Compute`] where the sizes differ.
    pub(crate) fn batch(&self, images: &[&RgbImage]) -> Result<Tensor, ModelError> {
        let placed = images.par_iter().map(|image| self.place(image)).collect::<Result<Vec<_>, _>>()?;
        self.stack(&placed)
    }

    /// As [`ImageProcessor::batch`], of images that have been placed.
    ///
    /// # Errors
    /// [`ModelError::Compute`] where the sizes differ.
    pub(crate) fn stack(&self, placed: &[RgbImage]) -> Result<Tensor, ModelError> {
        let failed = |reason: String| ModelError::Compute { operation: "the pixels of a batch", reason };
        let (width, height) = placed.first().map_or((1, 1), RgbImage::dimensions);
        if let Some(other) = placed.iter().find(|image| image.dimensions() != (width, height)) {
            return Err(failed(format!("sizes {:?} and {:?} in one batch", (width, height), other.dimensions())));
        }
        let (width, height) = (width as usize, height as usize);
        let mut pixels = vec![0.0; placed.len() * 3 * width * height];
        for (image, planes) in placed.iter().zip(pixels.chunks_mut(3 * width * height)) {
            self.write(image, planes);
        }
        Tensor::from_vec(pixels, (placed.len(), 3, height, width), &Device::Cpu).map_err(|e| failed(e.to_string()))
    }
}

/// Most pixels that an image may have after the resize.
const MAX_PIXELS: u64 = 1 << 26;

impl Size {
    /// Width and height of an image of `width` × `height` pixels after the resize.
    fn of(self, width: u32, height: u32) -> (u32, u32) {
        let (short, long) = (u64::from(width.min(height)), u64::from(width.max(height)));
        let oriented = |short: u64, long: u64| {
            let [short, long] = [short, long].map(|side| side.clamp(1, u64::from(u32::MAX)) as u32);
            if width <= height { (short, long) } else { (long, short) }
        };
        match self {
            Self::Exact { width, height } => (width, height),
            Self::Shortest(side) => oriented(u64::from(side), u64::from(side) * long / short),
            Self::ShortestWithin(side, most) => within(width, height, side, most),
        }
    }
}

/// DETR's rule (transformers' `get_size_with_aspect_ratio`): where the longer side would pass `most`, the shorter is cut
/// to what fits, in floating point, and rounded.
fn within(width: u32, height: u32, side: u32, most: u32) -> (u32, u32) {
    let (short, long) = (f64::from(width.min(height)), f64::from(width.max(height)));
    let (mut size, mut raw) = (side, None);
    if long / short * f64::from(side) > f64::from(most) {
        let exact = f64::from(most) * short / long;
        raw = Some(exact);
        size = exact.round_ties_even() as u32;
    }
    let other = |other: u32, this: u32| match raw {
        Some(exact) => (exact * f64::from(other) / f64::from(this)) as u32,
        None => (u64::from(size) * u64::from(other) / u64::from(this)) as u32,
    };
    let (w, h) = if (width <= height && width == size) || (height <= width && height == size) {
        (width, height)
    } else if width < height {
        (size, other(height, width))
    } else {
        (other(width, height), size)
    };
    (w.max(1), h.max(1))
}

/// `width` × `height` pixels around the centre; black where the image is smaller. The offsets are the reference's:
/// rounded down, and where the image is smaller, rounded up for the padding before it.
fn centre_crop(image: &RgbImage, width: u32, height: u32, middle: Middle) -> RgbImage {
    let (left, top) = (middle.offset(image.width(), width), middle.offset(image.height(), height));
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (i64::from(x) + left, i64::from(y) + top);
        match (u32::try_from(x), u32::try_from(y)) {
            (Ok(x), Ok(y)) if x < image.width() && y < image.height() => *image.get_pixel(x, y),
            _ => Rgb([0; 3]),
        }
    })
}

const SIZE_FORMS: &str = "a number of pixels, {height, width}, {shortest_edge} or {shortest_edge, longest_edge}";

/// `size`: `224`, `{"height": 224, "width": 224}`, `{"shortest_edge": 224}` or with a `longest_edge`.
fn size(file: &Config) -> Result<Size, ModelError> {
    let Some(found) = file.value("size") else { return Err(file.bad("size", SIZE_FORMS, "nothing")) };
    if found.is_number() {
        let side = pixels(file, "size", found)?;
        // The number is the shorter side of CLIP, BiT and VideoMAE, and everybody else's square.
        let shortest = ["CLIP", "Bit", "VideoMAE"].iter().any(|name| named(file, name));
        return Ok(if shortest { Size::Shortest(side) } else { Size::Exact { width: side, height: side } });
    }
    let (edges, side) = (found.as_object(), |key: &str| found.get(key).filter(|value| !value.is_null()));
    let known = ["height", "width", "shortest_edge", "longest_edge"];
    if edges.is_none_or(|edges| edges.keys().any(|key| !known.contains(&key.as_str()))) {
        return Err(file.bad("size", SIZE_FORMS, found));
    }
    let of = |value: &Value| pixels(file, "size", value);
    match [side("height"), side("width"), side("shortest_edge"), side("longest_edge")] {
        [Some(height), Some(width), None, None] => Ok(Size::Exact { width: of(width)?, height: of(height)? }),
        [None, None, Some(shortest), None] => Ok(Size::Shortest(of(shortest)?)),
        [None, None, Some(shortest), Some(longest)] => Ok(Size::ShortestWithin(of(shortest)?, of(longest)?)),
        _ => Err(file.bad("size", SIZE_FORMS, found)),
    }
}

/// Whether the processor's class begins with `name`.
fn named(file: &Config, name: &str) -> bool {
    let class = file.value("image_processor_type").or(file.value("feature_extractor_type")).and_then(Value::as_str);
    class.is_some_and(|class| class.starts_with(name))
}

/// `crop_size`: `224` or `{"height": 224, "width": 224}`. VideoMAE's older files leave its default out.
fn crop(file: &Config) -> Result<(u32, u32), ModelError> {
    const FORMS: &str = "a number of pixels or {height, width}";
    let Some(found) = file.value("crop_size") else {
        return if named(file, "VideoMAE") { Ok((224, 224)) } else { Err(file.bad("crop_size", FORMS, "nothing")) };
    };
    if found.is_number() {
        let side = pixels(file, "crop_size", found)?;
        return Ok((side, side));
    }
    match (found.get("width"), found.get("height")) {
        (Some(width), Some(height)) => Ok((pixels(file, "crop_size", width)?, pixels(file, "crop_size", height)?)),
        _ => Err(file.bad("crop_size", FORMS, found)),
    }
}

fn pixels(file: &Config, key: &str, found: &Value) -> Result<u32, ModelError> {
    let side = found.as_u64().filter(|side| (1..=8192).contains(side));
    side.map(|side| side as u32).ok_or_else(|| file.bad(key, "1 to 8192 pixels a side", found))
}

/// A number per channel.
fn channels(file: &Config, key: &str, default: [f64; 3]) -> Result<[f64; 3], ModelError> {
    let Some(found) = file.value(key) else { return Ok(default) };
    let numbers = found.as_array().map(|list| list.iter().filter_map(Value::as_f64).collect::<Vec<_>>());
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| file.bad(key, "three numbers", found))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use serde_json::json;

    use super::*;

    const DEFAULTS: ImageDefaults = ImageDefaults { filter: Filter::Bicubic, mean: HALF, std: HALF, crop: false };

    fn processor(value: Value) -> Result<ImageProcessor, ModelError> {
        let Value::Object(values) = value else { panic!("{value}") };
        let file = Config::new(FILE.to_owned(), values);
        let processor = ImageProcessor::read(&file, DEFAULTS)?;
        file.finish()?;
        Ok(processor)
    }

    #[test]
    fn sizes_are_the_references() {
        // Width and height before; then after, by transformers' functions.
        let cases = [
            (json!({ "height": 20, "width": 10 }), (100, 50), (10, 20)),
            (json!({ "shortest_edge": 36 }), (53, 41), (46, 36)),
            (json!({ "shortest_edge": 36 }), (30, 71), (36, 85)),
            (json!({ "shortest_edge": 3 }), (1000, 1), (3000, 3)),
            (json!({ "shortest_edge": 800, "longest_edge": 1333 }), (640, 480), (1066, 800)),
            (json!({ "shortest_edge": 800, "longest_edge": 1333 }), (2000, 500), (1333, 333)),
            (json!({ "shortest_edge": 800, "longest_edge": 1333 }), (800, 800), (800, 800)),
            (json!(24), (5, 6), (24, 24)),
        ];
        for (size, (width, height), expected) in cases {
            let processor = processor(json!({ "size": size })).unwrap();
            assert_eq!(processor.place(&RgbImage::new(width, height)).unwrap().dimensions(), expected, "{size}");
        }
    }

    #[test]
    fn crops_are_centred_and_padded_with_black() {
        let image = RgbImage::from_fn(5, 4, |x, y| Rgb([10 + x as u8, 10 + y as u8, 1]));
        let pixel = |image: &RgbImage, x, y| image.get_pixel(x, y).0;
        let cut = centre_crop(&image, 2, 2, Middle::Down);
        assert_eq!([pixel(&cut, 0, 0), pixel(&cut, 1, 1)], [[11, 11, 1], [12, 12, 1]]);
        // Python's round(3 / 2) is 2, and round(1 / 2) is 0.
        assert_eq!(pixel(&centre_crop(&image, 2, 3, Middle::Even), 0, 0), [12, 10, 1]);
        // Numpy's new_shape: (7 − 4 + 1) / 2 = 2 lines above.
        let padded = centre_crop(&image, 5, 7, Middle::Down);
        assert_eq!([pixel(&padded, 0, 1), pixel(&padded, 0, 2), pixel(&padded, 0, 6)], [[0; 3], [10, 10, 1], [0; 3]]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({}), "size to be a number of pixels"),
            (json!({ "size": { "height": 3 } }), "size to be a number of pixels"),
            (json!({ "size": { "height": 3, "width": 0 } }), "size to be 1 to 8192 pixels a side, found 0"),
            (json!({ "size": 8, "do_center_crop": true }), "crop_size to be a number of pixels or {height, width}"),
            (json!({ "size": 8, "image_mean": [0.5] }), "image_mean to be three numbers"),
            (json!({ "size": 8, "image_std": [1, 0, 1] }), "image_std to be other than 0"),
            (json!({ "size": 8, "crop_pct": 0.9 }), "crop_pct is not supported"),
            (json!({ "size": 8, "resample": "bicubic" }), "resample to be 1 (Lanczos)"),
        ];
        for (file, message) in cases {
            let error = processor(file).err().unwrap().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
