//! The same network in candle's own operations, on any device: the oracle of the CPU kernels, and the form to read
//! first.
//!
//! Convolutions are written as sums over the taps of their window, on channels-last tensors.

use candle_core::{D, Device, Result, Tensor};

use super::{
    network::RawOutputs,
    shape::{EXTRAS, FEATURES, NetworkShape, STEM, TAP, Window},
};
use crate::{ModelError, weights::Weights};

/// A convolution's weight and bias.
struct Conv {
    weight: Tensor,
    bias: Tensor,
}

/// SSD MobileNetV2 on candle tensors.
pub struct PlainNetwork {
    shape: NetworkShape,
    rescale: [f64; 2],
    device: Device,
    stem: Conv,
    blocks: Vec<PlainBlock>,
    last: Conv,
    extras: Vec<[Conv; 2]>,
    heads: Vec<[Conv; 2]>,
}

struct PlainBlock {
    expand: Option<Conv>,
    depthwise: Conv,
    project: Conv,
}

/// Everything the forward pass gives, batch first.
struct Maps {
    /// `[n, anchors, 4]`.
    boxes: Tensor,
    /// `[n, anchors, classes]`.
    logits: Tensor,
    /// `[n, 1280]`.
    features: Tensor,
}

impl PlainNetwork {
    /// Loads the layers of `weights` onto `device`.
    pub(crate) fn load(
        weights: &Weights,
        shape: NetworkShape,
        rescale: [f64; 2],
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        let conv = |name: &str, dims: &[usize]| -> std::result::Result<Conv, ModelError> {
            let on_device = |tensor: &Tensor| tensor.to_device(device).map_err(|e| compute("a weight", e));
            let weight = on_device(&weights.tensor(&format!("{name}.weight"), dims)?)?;
            let bias = on_device(&weights.tensor(&format!("{name}.bias"), &dims[dims.len() - 1..])?)?;
            Ok(Conv { weight, bias })
        };
        let mut blocks = Vec::new();
        for (i, block) in shape.blocks.iter().enumerate() {
            blocks.push(PlainBlock {
                expand: if i == 0 {
                    None
                } else {
                    Some(conv(&format!("blocks.{i}.expand"), &[block.inputs, block.expanded])?)
                },
                depthwise: conv(&format!("blocks.{i}.depthwise"), &[3, 3, block.expanded])?,
                project: conv(&format!("blocks.{i}.project"), &[block.expanded, block.outputs])?,
            });
        }
        let mut extras = Vec::new();
        for (i, (reduced, outputs)) in EXTRAS.into_iter().enumerate() {
            let reduce = conv(&format!("extras.{i}.reduce"), &[shape.maps[i + 1].channels, reduced])?;
            extras.push([reduce, conv(&format!("extras.{i}.conv"), &[3, 3, reduced, outputs])?]);
        }
        let mut heads = Vec::new();
        for (i, map) in shape.maps.iter().enumerate() {
            let boxes = conv(&format!("heads.{i}.boxes"), &[map.channels, map.anchors * 4])?;
            heads.push([boxes, conv(&format!("heads.{i}.classes"), &[map.channels, map.anchors * shape.classes])?]);
        }
        let outputs = shape.blocks[shape.blocks.len() - 1].outputs;
        let (stem, last) = (conv("conv", &[3, 3, 3, STEM])?, conv("conv_1", &[outputs, FEATURES])?);
        Ok(Self { shape, rescale, device: device.clone(), stem, blocks, last, extras, heads })
    }

    /// Offsets and logits of every anchor for RGB `pixels` (`[image, image, 3]`).
    ///
    /// # Errors
    /// [`ModelError::Compute`] where candle refuses.
    pub fn detect(&self, pixels: &[u8]) -> std::result::Result<RawOutputs, ModelError> {
        let run = || -> Result<RawOutputs> {
            let maps = self.forward(pixels)?;
            let boxes = maps.boxes.flatten_all()?.to_vec1::<f32>()?;
            Ok(RawOutputs { boxes: boxes.as_chunks::<4>().0.to_vec(), logits: maps.logits.flatten_all()?.to_vec1()? })
        };
        run().map_err(|e| compute("the detector", e))
    }

    /// The averaged features of RGB `pixels` (`[image, image, 3]`).
    ///
    /// # Errors
    /// [`ModelError::Compute`] where candle refuses.
    pub fn features(&self, pixels: &[u8]) -> std::result::Result<Vec<f32>, ModelError> {
        self.forward(pixels)
            .and_then(|maps| maps.features.flatten_all()?.to_vec1())
            .map_err(|e| compute("the backbone", e))
    }

    fn forward(&self, pixels: &[u8]) -> Result<Maps> {
        let side = self.shape.image;
        let image = Tensor::from_slice(pixels, (1, side, side, 3), &self.device)?;
        let image = image.to_dtype(candle_core::DType::F32)?.affine(self.rescale[0], self.rescale[1])?;
        let mut x = relu6(&window(&image, &self.stem, self.shape.stem)?)?;
        let mut found = Vec::new();
        for (i, (block, shape)) in self.blocks.iter().zip(&self.shape.blocks).enumerate() {
            let expanded = match &block.expand {
                Some(expand) => relu6(&pointwise(&x, expand)?)?,
                None => x.clone(),
            };
            if i == TAP {
                found.push(expanded.clone());
            }
            let filtered = relu6(&depthwise(&expanded, &block.depthwise, shape.window)?)?;
            let projected = pointwise(&filtered, &block.project)?;
            x = if shape.residual() { (projected + x)? } else { projected };
        }
        let backbone = relu6(&pointwise(&x, &self.last)?)?;
        found.push(backbone.clone());
        let mut map = backbone.clone();
        for ([reduce, conv], &shape) in self.extras.iter().zip(&self.shape.extras) {
            map = relu6(&window(&relu6(&pointwise(&map, reduce)?)?, conv, shape)?)?;
            found.push(map.clone());
        }
        let (mut boxes, mut logits) = (Vec::new(), Vec::new());
        for (map, [box_head, class_head]) in found.iter().zip(&self.heads) {
            // [n, h, w, anchors * k] → [n, h * w * anchors, k]
            boxes.push(pointwise(map, box_head)?.reshape((1, (), 4))?);
            logits.push(pointwise(map, class_head)?.reshape((1, (), self.shape.classes))?);
        }
        Ok(Maps { boxes: Tensor::cat(&boxes, 1)?, logits: Tensor::cat(&logits, 1)?, features: backbone.mean((1, 2))? })
    }
}

fn compute(operation: &'static str, error: candle_core::Error) -> ModelError {
    ModelError::Compute { operation, reason: error.to_string() }
}

fn relu6(x: &Tensor) -> Result<Tensor> {
    x.clamp(0.0, 6.0)
}

/// `[n, h, w, inputs]` → `[n, h, w, outputs]`.
fn pointwise(x: &Tensor, conv: &Conv) -> Result<Tensor> {
    let (n, h, w, inputs) = x.dims4()?;
    let outputs = conv.bias.dim(0)?;
    x.reshape((n * h * w, inputs))?.matmul(&conv.weight)?.broadcast_add(&conv.bias)?.reshape((n, h, w, outputs))
}

/// The nine views of `[n, h, w, c]` that a 3×3 window sees, each `[n, output, output, c]`, top left first.
fn taps(x: &Tensor, window: Window) -> Result<Vec<Tensor>> {
    let padded = x.pad_with_zeros(1, window.before, window.after)?.pad_with_zeros(2, window.before, window.after)?;
    let every = |from: usize| -> Result<Tensor> {
        let places = (0..window.output).map(|i| (from + i * window.stride) as u32).collect::<Vec<_>>();
        Tensor::new(places, x.device())
    };
    let mut views = Vec::with_capacity(9);
    for dy in 0..3 {
        let lines = padded.index_select(&every(dy)?, 1)?;
        for dx in 0..3 {
            views.push(lines.index_select(&every(dx)?, 2)?);
        }
    }
    Ok(views)
}

/// A full 3×3 convolution; the weight is `[3, 3, inputs, outputs]`.
fn window(x: &Tensor, conv: &Conv, window: Window) -> Result<Tensor> {
    let unrolled = Tensor::cat(&taps(x, window)?, D::Minus1)?;
    let weight = conv.weight.flatten(0, 2)?;
    pointwise(&unrolled, &Conv { weight, bias: conv.bias.clone() })
}

/// A 3×3 convolution of each channel by itself; the weight is `[3, 3, channels]`.
fn depthwise(x: &Tensor, conv: &Conv, window: Window) -> Result<Tensor> {
    let weight = conv.weight.flatten(0, 1)?;
    let mut sum: Option<Tensor> = None;
    for (i, view) in taps(x, window)?.iter().enumerate() {
        let term = view.broadcast_mul(&weight.get(i)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term.broadcast_add(&conv.bias)?,
        });
    }
    sum.ok_or_else(|| candle_core::Error::Msg("a window has nine taps".to_owned()))
}
