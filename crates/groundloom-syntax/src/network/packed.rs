//! Weights laid out for the kernels.

use super::aligned::Aligned;
use super::kernels::{CLASS_BLOCK, COMPONENTS, ConvolutionWeights, GROUPS, KernelClass, LOWER, PANEL, PRE, UNITS};
use crate::model::{COLUMNS, DEPTH, HIDDEN, HIDDEN_PIECES, LayerNorm, Maxout, PIECES, SLOTS, WIDTH, Weights};

/// Columns of the parser's first layer, all slots, filled up to whole panels.
pub(super) const LOWER_COLUMNS: usize = (SLOTS * LOWER).next_multiple_of(PANEL);

/// A maxout layer: panels, and vectors in the panels' order of columns.
#[derive(Debug)]
pub(super) struct MaxoutLayer {
    /// `[GROUPS][inputs][PIECES][UNITS]`.
    pub(super) panels: Aligned,
    /// `[GROUPS][PIECES][UNITS]`.
    pub(super) bias: Aligned,
    /// `[WIDTH]`.
    pub(super) gain: Aligned,
    /// `[WIDTH]`.
    pub(super) shift: Aligned,
}

/// The network's weights, for both ways of computing.
#[derive(Debug)]
pub(crate) struct Network {
    pub(super) class: KernelClass,
    /// `[rows][WIDTH]` per attribute.
    pub(super) embed: [Vec<f32>; COLUMNS],
    pub(super) mix: MaxoutLayer,
    /// The blocks as they are, for the exact order.
    pub(super) blocks: Vec<MaxoutLayer>,
    /// First block by the neighbour that a term comes from: `[3][GROUPS][WIDTH][PANEL]`.
    pub(super) first: Aligned,
    /// The other blocks for [`super::kernels::convolve`]:
    /// `[GROUPS][COMPONENTS][WIDTH][PIECES][UNITS]`.
    pub(super) winograd: Vec<Aligned>,
    /// Parser's reduction and tag scores side by side: HIDDEN, then tags, then nothing.
    pub(super) head: Aligned,
    pub(super) head_bias: Aligned,
    pub(super) tags: usize,
    /// `[LOWER_COLUMNS / PANEL][HIDDEN][PANEL]`, columns `[SLOTS][HIDDEN_PIECES][HIDDEN]`.
    pub(super) lower: Aligned,
    /// `[HIDDEN_PIECES][HIDDEN]`.
    pub(super) lower_bias: Aligned,
    /// `[SLOTS][HIDDEN_PIECES][HIDDEN]`.
    pub(super) lower_pad: Aligned,
    /// `[blocks][HIDDEN][CLASS_BLOCK]`.
    pub(super) upper: Aligned,
    /// Filled up to whole blocks.
    pub(super) upper_bias: Aligned,
    pub(super) classes: usize,
}

/// Panels of a matrix whose element is `weight(column, input)`; absent columns are zero.
fn panels(columns: usize, inputs: usize, weight: impl Fn(usize, usize) -> Option<f32>) -> Aligned {
    let columns = columns.next_multiple_of(PANEL);
    let mut out = Aligned::zeroed(columns * inputs);
    for (panel, out) in out.chunks_exact_mut(PANEL * inputs).enumerate() {
        for (input, out) in out.chunks_exact_mut(PANEL).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                *out = weight(panel * PANEL + i, input).unwrap_or(0.0);
            }
        }
    }
    out
}

fn vector(len: usize, value: impl Fn(usize) -> Option<f32>) -> Aligned {
    let mut out = Aligned::zeroed(len);
    out.iter_mut().enumerate().for_each(|(i, out)| *out = value(i).unwrap_or(0.0));
    out
}

/// The row of a maxout layer's weights that a panel column holds.
fn maxout_row(column: usize) -> usize {
    let (group, piece, unit) = (column / PANEL, column % PANEL / UNITS, column % UNITS);
    (group * UNITS + unit) * PIECES + piece
}

impl MaxoutLayer {
    fn new((maxout, norm): &(Maxout, LayerNorm)) -> Self {
        let inputs = maxout.inputs;
        Self {
            panels: panels(PRE, inputs, |column, input| {
                maxout.weight.get(maxout_row(column) * inputs + input).copied()
            }),
            bias: vector(PRE, |column| maxout.bias.get(maxout_row(column)).copied()),
            gain: vector(WIDTH, |i| norm.gain.get(i).copied()),
            shift: vector(WIDTH, |i| norm.bias.get(i).copied()),
        }
    }
}

/// The weights of a window's part: 0 the row before, 1 the row itself, 2 the row after.
fn part(maxout: &Maxout, column: usize, part: usize, input: usize) -> f64 {
    f64::from(maxout.weight[maxout_row(column) * maxout.inputs + part * WIDTH + input])
}

/// Weights for Winograd's F(2, 3), in the order in which the kernel takes them.
fn winograd(maxout: &Maxout) -> Aligned {
    let mut out = Aligned::zeroed(COMPONENTS * WIDTH * PRE);
    for (i, out) in out.iter_mut().enumerate() {
        let (column, input) = (i % PANEL, i / PANEL % WIDTH);
        let (component, group) = (i / (PANEL * WIDTH) % COMPONENTS, i / (PANEL * WIDTH * COMPONENTS));
        let g = |p: usize| part(maxout, group * PANEL + column, p, input);
        *out = match component {
            0 => (g(0) + g(1) + g(2)) / 2.0,
            1 => (g(0) - g(1) + g(2)) / 2.0,
            2 => g(0),
            _ => g(2),
        } as f32;
    }
    out
}

impl Network {
    pub(crate) fn new(weights: Weights, class: KernelClass) -> Self {
        let tags = weights.tagger_bias.len();
        let classes = weights.upper_bias.len();
        let padded_classes = classes.next_multiple_of(CLASS_BLOCK);
        let first = &weights.encoder[0].0;
        let head_columns = HIDDEN + tags;
        // Panel columns of the parser's first layer, and the file's index of the output.
        let lower_output = |column: usize| {
            let (slot, piece, unit) = (column / LOWER, column % LOWER / HIDDEN, column % HIDDEN);
            (slot * HIDDEN + unit) * HIDDEN_PIECES + piece
        };
        Self {
            class,
            mix: MaxoutLayer::new(&weights.mix),
            blocks: weights.encoder.iter().map(MaxoutLayer::new).collect(),
            first: panels(3 * PRE, WIDTH, |column, input| Some(part(first, column % PRE, column / PRE, input) as f32)),
            winograd: weights.encoder[1..DEPTH].iter().map(|(maxout, _)| winograd(maxout)).collect(),
            head: panels(head_columns, WIDTH, |column, input| match column.checked_sub(HIDDEN) {
                None => weights.reduce_weight.get(column * WIDTH + input).copied(),
                Some(tag) => weights.tagger_weight.get(tag * WIDTH + input).copied(),
            }),
            head_bias: vector(head_columns.next_multiple_of(PANEL), |column| match column.checked_sub(HIDDEN) {
                None => weights.reduce_bias.get(column).copied(),
                Some(tag) => weights.tagger_bias.get(tag).copied(),
            }),
            tags,
            lower: panels(LOWER_COLUMNS, HIDDEN, |column, input| {
                weights.lower_weight.get(lower_output(column) * HIDDEN + input).copied()
            }),
            lower_bias: vector(LOWER, |i| weights.lower_bias.get(lower_output(i)).copied()),
            lower_pad: vector(SLOTS * LOWER, |i| weights.lower_pad.get(lower_output(i)).copied()),
            upper: vector(padded_classes * HIDDEN, |i| {
                let (block, input, column) = (i / (CLASS_BLOCK * HIDDEN), i / CLASS_BLOCK % HIDDEN, i % CLASS_BLOCK);
                let class = block * CLASS_BLOCK + column;
                (class < classes).then(|| weights.upper_weight[class * HIDDEN + input])
            }),
            upper_bias: vector(padded_classes, |i| weights.upper_bias.get(i).copied()),
            classes,
            embed: weights.embed,
        }
    }

    /// The kernels' view of a block behind the first.
    pub(super) fn convolution(&self, block: usize) -> ConvolutionWeights<'_> {
        let layer = &self.blocks[block];
        ConvolutionWeights {
            panels: &self.winograd[block - 1],
            bias: &layer.bias,
            gain: &layer.gain,
            shift: &layer.shift,
        }
    }

    /// Columns of the head's output per token.
    pub(super) fn head_columns(&self) -> usize {
        self.head_bias.len()
    }
}

const _: () = assert!(GROUPS * UNITS == WIDTH && HIDDEN.is_multiple_of(UNITS));
