//! `similarity`: how near the values of two columns lie in a model's space.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float32Builder},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::columns;
use groundloom_models::{Modality, ModelPool};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    embed::{default_max_seconds, default_model},
    embeddable::{self, MediaLimits, Model},
    pictures::default_max_pixels,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::Window,
};

/// Adds the cosine between the vectors of two columns of a row: with a CLIP model, an image and its caption, that is the CLIP score by which image-text data sets are filtered
/// (LAION-400M kept pairs above 0.3). `filter` drops rows below a threshold.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Similarity {
    /// Column with a text, an image, or a sound where the model takes sounds and no images, as CLAP does.
    #[schemars(length(min = 1))]
    pub left: String,
    /// As `left`.
    #[schemars(length(min = 1))]
    pub right: String,
    /// The model, as in `embed`: one that takes what both columns hold.
    #[serde(default = "default_model")]
    #[schemars(length(min = 1))]
    pub model: String,
    /// Column to write: `float32`, from -1 to 1.
    #[serde(default = "default_output")]
    #[schemars(length(min = 1))]
    pub output: String,
    /// The largest number of pixels that is decoded; a header that announces more is refused before anything is allocated.
    #[serde(default = "default_max_pixels")]
    #[schemars(range(min = 1))]
    pub max_pixels: u64,
    /// The longest sound that is decoded, in seconds; a longer one goes to quarantine.
    #[serde(default = "default_max_seconds")]
    #[schemars(range(min = 0.001))]
    pub max_seconds: f64,
}

/// What a column may hold: of a model that takes images, media are images.
const ALLOWED: &[Modality] = &[Modality::Text, Modality::Image, Modality::Audio];

fn default_output() -> String {
    "similarity".to_owned()
}

impl Config for Similarity {
    const NAME: &'static str = "similarity";
    const SUMMARY: &'static str = "Add the cosine between the vectors of two columns, such as an image and its caption";
    const EXAMPLE: &'static str =
        "scored: { type: similarity, left: caption, right: alt_text, model: all-minilm-l6-v2 }";
}

impl Stage for Similarity {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        let model = embeddable::describe(&self.model)?;
        embeddable::require(input, "left", &self.left, ALLOWED, &model)?;
        embeddable::require(input, "right", &self.right, ALLOWED, &model)?;
        Ok(vec![columns::column(&self.output, DataType::Float32)])
    }

    fn open(&self, _input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        let limits = MediaLimits { max_pixels: self.max_pixels, max_seconds: self.max_seconds };
        let model = Model { name: self.model.clone(), limits, models: Arc::clone(models) };
        Ok(Arc::new(Scorer { config: self.clone(), model }))
    }

    /// A few of the pool's batches, so that its threads share them.
    fn window(&self) -> usize {
        256
    }

    fn models(&self) -> Result<Vec<String>, StageError> {
        embeddable::identity(&self.model)
    }
}

#[derive(Debug)]
struct Scorer {
    config: Similarity,
    model: Model,
}

#[async_trait]
impl RowWise for Scorer {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let (left, right) = (&self.config.left, &self.config.right);
        let all: Vec<usize> = (0..rows.num_rows()).collect();
        let left = self.model.embed(rows, left, ALLOWED, &all).await?;
        // A row that failed on the left is not embedded on the right.
        let good: Vec<usize> = all.iter().copied().filter(|&row| left[row].is_ok()).collect();
        let mut right = self.model.embed(rows, right, ALLOWED, &good).await?.into_iter();
        let mut window = Window::default();
        let mut output = Float32Builder::with_capacity(rows.num_rows());
        for (row, left) in left.into_iter().enumerate() {
            let both = left.and_then(|left| match right.next() {
                Some(right) => right.map(|right| cosine(&left, &right)),
                None => Ok(0.0),
            });
            match both {
                Ok(score) => {
                    output.append_value(score);
                    window.count("scored", 1);
                }
                Err(fault) => {
                    window.fail(row, fault);
                    output.append_null();
                }
            }
        }
        Ok(window.finish(vec![Arc::new(output.finish()) as ArrayRef]))
    }
}

/// The cosine of the angle between two vectors; 0 where one of them is zero.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths).clamp(-1.0, 1.0) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;
    use crate::{fixtures, stage::codes};

    #[test]
    fn near_texts_score_high() {
        let rows = fixtures::rows([
            ("a", fixtures::texts([Some("a small dog runs"), Some("a small dog runs"), None, Some("x")])),
            ("b", fixtures::texts([Some("a puppy is running"), Some("the interest rate"), Some("x"), None])),
        ]);
        let stage: Similarity = serde_json::from_value(json!({"left": "a", "right": "b"})).unwrap();
        let outcome = fixtures::run(&stage, &rows);
        let scores = fixtures::json(&outcome.columns[0]);
        assert!(scores[0].as_f64().unwrap() > 0.6 && scores[1].as_f64().unwrap() < 0.3, "{scores:?}");
        let failures: Vec<_> = fixtures::failures(&outcome).iter().map(|f| (f.0, f.1)).collect();
        assert_eq!(failures, [(2, codes::MISSING_VALUE), (3, codes::MISSING_VALUE)]);
    }

    #[test]
    fn sounds_are_compared_with_texts() {
        let here = env!("CARGO_MANIFEST_DIR");
        let wav = std::fs::read(format!("{here}/../groundloom-data/tests/sounds/pcm_16.wav")).unwrap();
        let rows = fixtures::rows([
            ("said", fixtures::texts([Some("a dog barks"), Some("rain")])),
            ("audio", fixtures::media([Some((&wav, "a.wav")), Some((&wav[..99], "cut.wav"))])),
        ]);
        let model = format!("{here}/../groundloom-models/tests/data/fixtures/clap");
        let stage = json!({"left": "said", "right": "audio", "model": model});
        let stage: Similarity = serde_json::from_value(stage).unwrap();
        let outcome = fixtures::run(&stage, &rows);
        let score = fixtures::json(&outcome.columns[0])[0].as_f64().unwrap();
        assert!(score != 0.0 && score.abs() < 1.0, "{score}");
        let failures: Vec<_> = fixtures::failures(&outcome).iter().map(|f| (f.0, f.1)).collect();
        assert_eq!(failures, [(1, codes::UNDECODABLE_AUDIO)]);
    }

    #[test]
    fn cosines_stay_within_their_bounds() {
        assert_eq!(cosine(&[1e20, 1e20], &[3e19, 3e19]), 1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
        assert_eq!(cosine(&[1.0, 0.0], &[-2.0, 0.0]), -1.0);
    }
}
