//! The network's layers and sizes: what both implementations and the loader agree on.

use super::{anchors, config::AnchorConfig};

/// One row of the MobileNetV2 table: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018,
/// table 2.
struct Stage {
    expansion: usize,
    channels: usize,
    repeats: usize,
    stride: usize,
}

const STAGES: [Stage; 7] = [
    Stage { expansion: 1, channels: 16, repeats: 1, stride: 1 },
    Stage { expansion: 6, channels: 24, repeats: 2, stride: 2 },
    Stage { expansion: 6, channels: 32, repeats: 3, stride: 2 },
    Stage { expansion: 6, channels: 64, repeats: 4, stride: 2 },
    Stage { expansion: 6, channels: 96, repeats: 3, stride: 1 },
    Stage { expansion: 6, channels: 160, repeats: 3, stride: 2 },
    Stage { expansion: 6, channels: 320, repeats: 1, stride: 1 },
];

/// Channels of the first convolution.
pub(crate) const STEM: usize = 32;
/// Channels of the last convolution of the backbone: the image's features.
pub(crate) const FEATURES: usize = 1280;
/// The block whose expansion is the finest feature map (stride 16) of the detector.
pub(crate) const TAP: usize = 13;
/// Channels of the reducing and of the strided convolution behind each further feature map.
pub(crate) const EXTRAS: [(usize, usize); 4] = [(256, 512), (128, 256), (128, 256), (64, 128)];

/// A 3×3 window that slides by `stride` over a square map, padded as TensorFlow's `SAME`: the odd pixel goes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Pixels along a side of the input.
    pub(crate) input: usize,
    /// Pixels along a side of the output.
    pub(crate) output: usize,
    pub(crate) stride: usize,
    /// Zero pixels before the first one.
    pub(crate) before: usize,
    /// Zero pixels after the last one.
    pub(crate) after: usize,
}

impl Window {
    pub(crate) fn new(input: usize, stride: usize) -> Self {
        let output = input.div_ceil(stride);
        let padding = ((output - 1) * stride + 3).saturating_sub(input);
        Self { input, output, stride, before: padding / 2, after: padding - padding / 2 }
    }

    /// Pixels along a side of the padded input.
    pub(crate) fn padded(&self) -> usize {
        self.before + self.input + self.after
    }
}

/// One inverted residual.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockShape {
    pub(crate) inputs: usize,
    /// Channels between; the first block has no expansion of its own, the first convolution stands in its place.
    pub(crate) expanded: usize,
    pub(crate) outputs: usize,
    pub(crate) window: Window,
}

impl BlockShape {
    /// Whether the input is added to the output.
    pub(crate) fn residual(&self) -> bool {
        self.window.stride == 1 && self.inputs == self.outputs
    }
}

/// Sizes of every layer for one input size.
#[derive(Debug, Clone)]
pub(crate) struct NetworkShape {
    /// Pixels along a side of the image.
    pub(crate) image: usize,
    /// Classes, background among them.
    pub(crate) classes: usize,
    pub(crate) stem: Window,
    pub(crate) blocks: Vec<BlockShape>,
    pub(crate) extras: Vec<Window>,
    pub(crate) maps: Vec<MapShape>,
}

/// A feature map that boxes are predicted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapShape {
    /// Cells along a side.
    pub(crate) cells: usize,
    pub(crate) channels: usize,
    /// Anchors of a cell.
    pub(crate) anchors: usize,
}

impl NetworkShape {
    /// The shape for an image size and anchors, or the disagreement between them.
    pub(crate) fn new(anchor_config: &AnchorConfig, image_size: u32, classes: usize) -> Result<Self, String> {
        let image = image_size as usize;
        let stem = Window::new(image, 2);
        let mut blocks = Vec::new();
        let (mut inputs, mut side) = (STEM, stem.output);
        for stage in STAGES {
            for repeat in 0..stage.repeats {
                let window = Window::new(side, if repeat == 0 { stage.stride } else { 1 });
                blocks.push(BlockShape { inputs, expanded: inputs * stage.expansion, outputs: stage.channels, window });
                (inputs, side) = (stage.channels, window.output);
            }
        }
        let mut maps = vec![(blocks[TAP].window.input, blocks[TAP].expanded), (side, FEATURES)];
        let mut extras = Vec::new();
        for (_, channels) in EXTRAS {
            let window = Window::new(side, 2);
            extras.push(window);
            side = window.output;
            maps.push((side, channels));
        }
        let grid = anchors::grid_sizes(anchor_config, image_size);
        let cells: Vec<usize> = maps.iter().map(|&(cells, _)| cells).collect();
        if grid != cells {
            return Err(format!(
                "expected anchors for feature maps of {cells:?} cells a side, \
                 found strides {:?} that give {grid:?} at {image} pixels",
                anchor_config.strides
            ));
        }
        let maps = maps
            .into_iter()
            .enumerate()
            .map(|(map, (cells, channels))| MapShape {
                cells,
                channels,
                anchors: anchors::cell_shapes(anchor_config, map).len(),
            })
            .collect();
        Ok(Self { image, classes, stem, blocks, extras, maps })
    }

    /// Boxes that one image gives.
    pub(crate) fn anchor_count(&self) -> usize {
        self.maps.iter().map(|map| map.cells * map.cells * map.anchors).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_pad_as_tensorflow_does() {
        let cases = [
            (300, 2, 150, 0, 1),
            (75, 2, 38, 1, 1),
            (38, 2, 19, 0, 1),
            (19, 1, 19, 1, 1),
            (2, 2, 1, 0, 1),
            (1, 1, 1, 1, 1),
        ];
        for (input, stride, output, before, after) in cases {
            assert_eq!(Window::new(input, stride), Window { input, output, stride, before, after });
        }
    }
}
