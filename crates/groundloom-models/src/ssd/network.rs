//! The forward pass on the CPU kernels: one image, one thread, f32.
//!
//! An inverted residual is computed in strips of lines, so that its expanded activations (up to 8.6 MB a block) never
//! leave the core's own cache: expand the lines a strip needs, filter them by depth, project, go on. All maps are
//! `[height, width, channels]`.

use super::shape::{BlockShape, EXTRAS, FEATURES, MapShape, NetworkShape, STEM, TAP, Window};
use crate::{
    ModelError,
    kernels::{Aligned, Dense, Depthwise, Epilogue, Isa, Placement},
    weights::Weights,
};

/// Activations of one strip, in f32 values: a fraction of the 1 MB second-level cache of current server cores.
const STRIP: usize = 96 * 1024;

/// The detector's layers, packed for the kernels.
pub(crate) struct Network {
    isa: Isa,
    shape: NetworkShape,
    rescale: [f32; 2],
    stem: Dense,
    blocks: Vec<Block>,
    last: Dense,
    extras: Vec<Extra>,
    heads: Vec<Dense>,
}

struct Block {
    shape: BlockShape,
    expand: Option<Dense>,
    depthwise: Depthwise,
    project: Dense,
}

struct Extra {
    window: Window,
    reduce: Dense,
    conv: Dense,
}

/// What the network says of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct RawOutputs {
    /// Offsets from each anchor: `[yc, xc, h, w]` before the box coder's division.
    pub boxes: Vec<[f32; 4]>,
    /// Logits, `[anchors, classes]` row-major; class 0 is background.
    pub logits: Vec<f32>,
}

/// Buffers of one forward pass, kept between passes.
#[derive(Default)]
pub(crate) struct Workspace {
    image: Aligned,
    patches: Aligned,
    band: Aligned,
    filtered: Aligned,
    maps: [Aligned; 2],
    tap: Aligned,
    features: Aligned,
    reduced: Aligned,
    extra: Aligned,
    head: Aligned,
}

fn dense(weights: &Weights, name: &str, inputs: usize, outputs: usize) -> Result<Dense, ModelError> {
    let weight = weights.values(&format!("{name}.weight"), &[inputs, outputs])?;
    let bias = weights.values(&format!("{name}.bias"), &[outputs])?;
    Ok(Dense::pack(&weight, &bias))
}

/// A full 3×3 convolution as a product over its unrolled 3×3×inputs patches.
fn window3x3(weights: &Weights, name: &str, inputs: usize, outputs: usize) -> Result<Dense, ModelError> {
    let weight = weights.values(&format!("{name}.weight"), &[3, 3, inputs, outputs])?;
    let bias = weights.values(&format!("{name}.bias"), &[outputs])?;
    Ok(Dense::pack(&weight, &bias))
}

/// The box and the class predictor of a map as one product with `[boxes | classes]` columns.
fn head(weights: &Weights, map: usize, shape: MapShape, classes: usize) -> Result<Dense, ModelError> {
    let part = |kind: &str, columns: usize| -> Result<_, ModelError> {
        let weight = weights.values(&format!("heads.{map}.{kind}.weight"), &[shape.channels, columns])?;
        Ok((columns, weight, weights.values(&format!("heads.{map}.{kind}.bias"), &[columns])?))
    };
    let (box_columns, boxes, mut bias) = part("boxes", shape.anchors * 4)?;
    let (class_columns, scores, class_bias) = part("classes", shape.anchors * classes)?;
    let rows = boxes.chunks(box_columns).zip(scores.chunks(class_columns));
    let joined: Vec<f32> = rows.flat_map(|(boxes, scores)| boxes.iter().chain(scores)).copied().collect();
    bias.extend(class_bias);
    Ok(Dense::pack(&joined, &bias))
}

impl Network {
    /// Packs the layers of `weights`. `rescale` is `[factor, offset]` of a pixel.
    pub(crate) fn load(
        weights: &Weights,
        shape: NetworkShape,
        rescale: [f32; 2],
        isa: Isa,
    ) -> Result<Self, ModelError> {
        let mut blocks = Vec::with_capacity(shape.blocks.len());
        for (i, &block) in shape.blocks.iter().enumerate() {
            let expand = if i == 0 {
                None
            } else {
                Some(dense(weights, &format!("blocks.{i}.expand"), block.inputs, block.expanded)?)
            };
            let taps = weights.values(&format!("blocks.{i}.depthwise.weight"), &[3, 3, block.expanded])?;
            let bias = weights.values(&format!("blocks.{i}.depthwise.bias"), &[block.expanded])?;
            let depthwise = Depthwise::pack(&taps, &bias);
            blocks.push(Block {
                shape: block,
                expand,
                depthwise,
                project: dense(weights, &format!("blocks.{i}.project"), block.expanded, block.outputs)?,
            });
        }
        let mut extras = Vec::with_capacity(EXTRAS.len());
        for (i, (&window, (reduced, outputs))) in shape.extras.iter().zip(EXTRAS).enumerate() {
            let inputs = shape.maps[i + 1].channels;
            let reduce = dense(weights, &format!("extras.{i}.reduce"), inputs, reduced)?;
            extras.push(Extra {
                window,
                reduce,
                conv: window3x3(weights, &format!("extras.{i}.conv"), reduced, outputs)?,
            });
        }
        let heads = shape
            .maps
            .iter()
            .enumerate()
            .map(|(i, &map)| head(weights, i, map, shape.classes))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            isa,
            rescale,
            stem: window3x3(weights, "conv", 3, STEM)?,
            blocks,
            last: dense(weights, "conv_1", shape.blocks[shape.blocks.len() - 1].outputs, FEATURES)?,
            extras,
            heads,
            shape,
        })
    }

    pub(crate) fn shape(&self) -> &NetworkShape {
        &self.shape
    }

    /// Offsets and logits of every anchor for RGB `pixels` (`[image, image, 3]`).
    pub(crate) fn detect(&self, pixels: &[u8], work: &mut Workspace) -> RawOutputs {
        let anchors = self.shape.anchor_count();
        let mut raw =
            RawOutputs { boxes: Vec::with_capacity(anchors), logits: Vec::with_capacity(anchors * self.shape.classes) };
        self.backbone(pixels, work);
        let Workspace { patches, tap, features, reduced, extra, head, .. } = work;
        self.predict(0, tap, head, &mut raw);
        let mut map: &[f32] = features;
        self.predict(1, map, head, &mut raw);
        for (i, layer) in self.extras.iter().enumerate() {
            let window = layer.window;
            // `[side, side, channels of the map]` → `[side, side, reduced]` → `[side / 2, side / 2, channels]`
            let reduced = reduced.at_least(window.input * window.input * layer.reduce.outputs());
            layer.reduce.apply(
                self.isa,
                &map[..window.input * window.input * layer.reduce.inputs()],
                reduced,
                Placement::CONTIGUOUS,
                Epilogue::Relu6,
            );
            let patches = patches.at_least(window.output * window.output * layer.conv.inputs());
            unroll(reduced, window, layer.reduce.outputs(), patches);
            let out = extra.at_least(window.output * window.output * layer.conv.outputs());
            layer.conv.apply(self.isa, patches, out, Placement::CONTIGUOUS, Epilogue::Relu6);
            self.predict(i + 2, out, head, &mut raw);
            map = out;
        }
        raw
    }

    /// The backbone's last activations averaged over the image: [`FEATURES`] values.
    pub(crate) fn features(&self, pixels: &[u8], work: &mut Workspace) -> Vec<f32> {
        self.backbone(pixels, work);
        let cells = self.shape.maps[1].cells.pow(2);
        let mut sums = vec![0.0_f32; FEATURES];
        for cell in work.features[..cells * FEATURES].chunks_exact(FEATURES) {
            for (sum, value) in sums.iter_mut().zip(cell) {
                *sum += value;
            }
        }
        sums.iter_mut().for_each(|sum| *sum /= cells as f32);
        sums
    }

    /// Fills `work.tap` and `work.features`, the detector's two finest maps.
    fn backbone(&self, pixels: &[u8], work: &mut Workspace) {
        self.normalise(pixels, &mut work.image);
        for (i, block) in self.blocks.iter().enumerate() {
            let [even, odd] = &mut work.maps;
            let (input, out) = if i % 2 == 0 { (&*odd, even) } else { (&*even, odd) };
            let window = block.shape.window;
            let out = out.at_least(window.output * window.output * block.shape.outputs);
            let mut strips = Strips {
                isa: self.isa,
                block,
                band: &mut work.band,
                filtered: &mut work.filtered,
                tap: (i == TAP).then(|| work.tap.at_least(window.input * window.input * block.shape.expanded)),
            };
            match &block.expand {
                None => strips.run(out, None, |strip, lines, place| {
                    let side = self.shape.stem.output;
                    let patches = work.patches.at_least(lines.len() * side * self.stem.inputs());
                    self.stem_patches(&work.image, lines, patches);
                    self.stem.apply(self.isa, patches, strip, place, Epilogue::Relu6);
                }),
                Some(expand) => {
                    let line = window.input * block.shape.inputs;
                    let residual = block.shape.residual().then_some(&**input);
                    strips.run(out, residual, |strip, lines, place| {
                        expand.apply(
                            self.isa,
                            &input[lines.start * line..lines.end * line],
                            strip,
                            place,
                            Epilogue::Relu6,
                        );
                    });
                }
            }
        }
        let cells = self.shape.maps[1].cells.pow(2);
        let map = &work.maps[(self.blocks.len() - 1) % 2][..cells * self.last.inputs()];
        self.last.apply(
            self.isa,
            map,
            work.features.at_least(cells * FEATURES),
            Placement::CONTIGUOUS,
            Epilogue::Relu6,
        );
    }

    /// `[image, image, 3]` bytes → the padded, rescaled input of the first convolution.
    fn normalise(&self, pixels: &[u8], image: &mut Aligned) {
        let (window, [factor, offset]) = (self.shape.stem, self.rescale);
        let side = window.padded();
        let image = image.at_least(side * side * 3);
        image.fill(0.0);
        for (line, pixels) in
            image.chunks_exact_mut(side * 3).skip(window.before).zip(pixels.chunks_exact(window.input * 3))
        {
            for (value, &pixel) in line[window.before * 3..].iter_mut().zip(pixels) {
                *value = f32::from(pixel) * factor + offset;
            }
        }
    }

    /// The 3×3×3 patches of the output lines `lines` of the first convolution, `[lines, width, 27]`.
    fn stem_patches(&self, image: &[f32], lines: std::ops::Range<usize>, patches: &mut [f32]) {
        let window = self.shape.stem;
        let line = window.padded() * 3;
        for (y, patches) in lines.zip(patches.chunks_exact_mut(window.output * 27)) {
            let rows: [&[f32]; 3] = std::array::from_fn(|dy| &image[(y * window.stride + dy) * line..][..line]);
            for (x, patch) in patches.as_chunks_mut::<27>().0.iter_mut().enumerate() {
                for (to, row) in patch.as_chunks_mut::<9>().0.iter_mut().zip(rows) {
                    to.copy_from_slice(&row[x * window.stride * 3..][..9]);
                }
            }
        }
    }

    /// Appends the predictions from feature map `index`.
    fn predict(&self, index: usize, map: &[f32], buffer: &mut Aligned, raw: &mut RawOutputs) {
        let (layer, shape) = (&self.heads[index], self.shape.maps[index]);
        let cells = shape.cells * shape.cells;
        let out = buffer.at_least(cells * layer.outputs());
        layer.apply(self.isa, &map[..cells * layer.inputs()], out, Placement::CONTIGUOUS, Epilogue::Linear);
        for cell in out.chunks_exact(layer.outputs()) {
            let (boxes, scores) = cell.split_at(shape.anchors * 4);
            raw.boxes.extend_from_slice(boxes.as_chunks::<4>().0);
            raw.logits.extend_from_slice(scores);
        }
    }
}

/// The 3×3 patches of a whole small map, `[output, output, 9, channels]`, zeros outside.
fn unroll(map: &[f32], window: Window, channels: usize, patches: &mut [f32]) {
    let inside =
        |at: usize, tap: usize| (at * window.stride + tap).checked_sub(window.before).filter(|&i| i < window.input);
    for (cell, patch) in patches.chunks_exact_mut(9 * channels).enumerate() {
        let (y, x) = (cell / window.output, cell % window.output);
        for (tap, to) in patch.chunks_exact_mut(channels).enumerate() {
            match (inside(y, tap / 3), inside(x, tap % 3)) {
                (Some(row), Some(column)) => {
                    to.copy_from_slice(&map[(row * window.input + column) * channels..][..channels])
                }
                _ => to.fill(0.0),
            }
        }
    }
}

/// One inverted residual, strip by strip.
struct Strips<'a> {
    isa: Isa,
    block: &'a Block,
    /// Expanded lines of the current strip with their zero borders.
    band: &'a mut Aligned,
    /// The strip after the depthwise convolution.
    filtered: &'a mut Aligned,
    /// Where the expanded map is wanted as a whole.
    tap: Option<&'a mut [f32]>,
}

impl Strips<'_> {
    /// Computes the block's output map. `expand` fills a part of the band with the given input lines, placed as it is
    /// told.
    fn run(
        &mut self,
        out: &mut [f32],
        residual: Option<&[f32]>,
        mut expand: impl FnMut(&mut [f32], std::ops::Range<usize>, Placement),
    ) {
        let Window { input, output, stride, before, .. } = self.block.shape.window;
        let channels = self.block.depthwise.channels();
        let (line, filtered_line) = (self.block.shape.window.padded() * channels, output * channels);
        let lines_of = |strip: usize| (strip - 1) * stride + 3;
        let mut strip = 1;
        while strip < output && lines_of(strip + 1) * line + (strip + 1) * filtered_line <= STRIP {
            strip += 1;
        }
        let band = self.band.at_least(lines_of(strip) * line);
        let filtered = self.filtered.at_least(strip * filtered_line);
        // Band lines that hold the end of the strip before.
        let mut kept = 0;
        for first in (0..output).step_by(strip) {
            let count = strip.min(output - first);
            // Band line `l` is input line `top + l - before`.
            let (top, lines) = (first * stride, lines_of(count));
            let inside = |l: usize| (top + l).checked_sub(before).filter(|&y| y < input);
            let start = (kept..lines).find(|&l| inside(l).is_some()).unwrap_or(lines);
            let end = (start..lines).find(|&l| inside(l).is_none()).unwrap_or(lines);
            band[kept * line..start * line].fill(0.0);
            band[end * line..lines * line].fill(0.0);
            for l in start..end {
                band[l * line..][..before * channels].fill(0.0);
                band[l * line + (before + input) * channels..(l + 1) * line].fill(0.0);
            }
            if start < end {
                let wanted = top + start - before..top + end - before;
                let place = Placement { start: start * line + before * channels, per_line: input, line_stride: line };
                expand(band, wanted.clone(), place);
                if let Some(tap) = &mut self.tap {
                    for (y, l) in wanted.zip(start..end) {
                        tap[y * input * channels..][..input * channels]
                            .copy_from_slice(&band[l * line + before * channels..][..input * channels]);
                    }
                }
            }
            for (l, out) in filtered[..count * filtered_line].chunks_exact_mut(filtered_line).enumerate() {
                let input = std::array::from_fn(|dy| &band[(l * stride + dy) * line..][..line]);
                self.block.depthwise.line(self.isa, input, out, stride);
            }
            let place = first * output * self.block.shape.outputs..(first + count) * output * self.block.shape.outputs;
            let epilogue = residual.map_or(Epilogue::Linear, |map| Epilogue::Add(&map[place.clone()]));
            self.block.project.apply(
                self.isa,
                &filtered[..count * filtered_line],
                &mut out[place],
                Placement::CONTIGUOUS,
                epilogue,
            );
            kept = 3 - stride;
            band.copy_within((lines - kept) * line..lines * line, 0);
        }
    }
}
