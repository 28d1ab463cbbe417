//! The network's weights by layer, with their shapes checked.

use super::ModelFiles;
use crate::error::{Result, unsupported};

/// Width of token vectors.
pub(crate) const WIDTH: usize = 96;
/// Pieces of each maxout unit in tok2vec.
pub(crate) const PIECES: usize = 3;
/// Embedded attributes: NORM, PREFIX, SUFFIX, SHAPE, SPACY, IS_SPACE.
pub(crate) const COLUMNS: usize = 6;
/// Residual blocks of the encoder.
pub(crate) const DEPTH: usize = 4;
/// Width of the parser's hidden layer.
pub(crate) const HIDDEN: usize = 64;
/// Pieces of each of its maxout units.
pub(crate) const HIDDEN_PIECES: usize = 2;
/// Tokens that the parser looks at: B0 B1 S0 S1 S2 L1(B0) L1(S0) R1(S0).
pub(crate) const SLOTS: usize = 8;

/// A maxout layer: `y[o] = max over p of weight[o][p]·x + bias[o][p]`.
#[derive(Debug)]
pub(crate) struct Maxout {
    /// `[WIDTH][PIECES][inputs]`.
    pub(crate) weight: Vec<f32>,
    /// `[WIDTH][PIECES]`.
    pub(crate) bias: Vec<f32>,
    /// Number of inputs.
    pub(crate) inputs: usize,
}

/// Layer normalisation: `(x - mean) / sqrt(variance + 1e-8) * gain + bias`.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    /// `[WIDTH]`.
    pub(crate) gain: Vec<f32>,
    /// `[WIDTH]`.
    pub(crate) bias: Vec<f32>,
}

/// All weights of inference, as the model file has them.
#[derive(Debug)]
pub(crate) struct Weights {
    /// One table `[rows][WIDTH]` per attribute.
    pub(crate) embed: [Vec<f32>; COLUMNS],
    pub(crate) mix: (Maxout, LayerNorm),
    /// Inputs are the rows before, at and after the token: `3 * WIDTH`.
    pub(crate) encoder: Vec<(Maxout, LayerNorm)>,
    /// `[tags][WIDTH]`.
    pub(crate) tagger_weight: Vec<f32>,
    /// `[tags]`.
    pub(crate) tagger_bias: Vec<f32>,
    /// `[HIDDEN][WIDTH]`.
    pub(crate) reduce_weight: Vec<f32>,
    /// `[HIDDEN]`.
    pub(crate) reduce_bias: Vec<f32>,
    /// `[SLOTS][HIDDEN][HIDDEN_PIECES][HIDDEN]`: slot, unit, piece, input.
    pub(crate) lower_weight: Vec<f32>,
    /// `[HIDDEN][HIDDEN_PIECES]`.
    pub(crate) lower_bias: Vec<f32>,
    /// `[SLOTS][HIDDEN][HIDDEN_PIECES]`: what an empty slot adds.
    pub(crate) lower_pad: Vec<f32>,
    /// `[classes][HIDDEN]`.
    pub(crate) upper_weight: Vec<f32>,
    /// `[classes]`.
    pub(crate) upper_bias: Vec<f32>,
}

impl Weights {
    /// Takes the tensors out of the files; `tags` and `classes` come from the label lists.
    pub(crate) fn take(files: &mut ModelFiles, tags: usize, classes: usize) -> Result<Self> {
        let mut embed: [Vec<f32>; COLUMNS] = Default::default();
        for (column, table) in embed.iter_mut().enumerate() {
            let name = format!("embed.{column}");
            let rows = files.rows(&name)?;
            *table = files.tensor(&name, &[rows, WIDTH])?;
        }
        let mut layer = |name: &str, inputs: usize| -> Result<(Maxout, LayerNorm)> {
            let weight = files.tensor(&format!("{name}.weight"), &[WIDTH, PIECES, inputs])?;
            let bias = files.tensor(&format!("{name}.bias"), &[WIDTH, PIECES])?;
            let norm_gain = files.tensor(&format!("{name}.norm.gain"), &[WIDTH])?;
            let norm_bias = files.tensor(&format!("{name}.norm.bias"), &[WIDTH])?;
            Ok((Maxout { weight, bias, inputs }, LayerNorm { gain: norm_gain, bias: norm_bias }))
        };
        let mix = layer("mix", COLUMNS * WIDTH)?;
        let encoder = (0..DEPTH).map(|k| layer(&format!("encoder.{k}"), 3 * WIDTH)).collect::<Result<Vec<_>>>()?;
        let weights = Self {
            embed,
            mix,
            encoder,
            tagger_weight: files.tensor("tagger.weight", &[tags, WIDTH])?,
            tagger_bias: files.tensor("tagger.bias", &[tags])?,
            reduce_weight: files.tensor("parser.reduce.weight", &[HIDDEN, WIDTH])?,
            reduce_bias: files.tensor("parser.reduce.bias", &[HIDDEN])?,
            lower_weight: files.tensor("parser.lower.weight", &[SLOTS, HIDDEN, HIDDEN_PIECES, HIDDEN])?,
            lower_bias: files.tensor("parser.lower.bias", &[HIDDEN, HIDDEN_PIECES])?,
            lower_pad: files.tensor("parser.lower.pad", &[1, SLOTS, HIDDEN, HIDDEN_PIECES])?,
            upper_weight: files.tensor("parser.upper.weight", &[classes, HIDDEN])?,
            upper_bias: files.tensor("parser.upper.bias", &[classes])?,
        };
        if let Some(left) = files.tensors.keys().next() {
            return Err(unsupported("only the layers of `en_core_web_sm`", format!("also `{left}`")));
        }
        Ok(weights)
    }
}
