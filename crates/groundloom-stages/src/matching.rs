//! `match`: whether a text fits an image.

use std::{num::NonZeroUsize, sync::Arc};

use arrow::{
    array::{ArrayRef, Float32Builder},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{MediaView, columns};
use groundloom_models::{Ability, Matcher, ModelError, ModelOn, ModelPool, Work, resolve_matcher};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    embeddable,
    inputs::{self, Texts},
    noun_chunks::default_text,
    opened::Opened,
    pictures::{Picture, Seen, answered, default_image, default_max_pixels, see},
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// Adds how well a text fits an image, by a model that looks at both at once. In BLIP's CapFilt a caption is dropped that the model takes for a mismatch: `filter` those
/// at most 0.5.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// Column with the image: `struct<bytes, path>`. EXIF orientation is applied.
    #[serde(default = "default_image")]
    #[schemars(length(min = 1))]
    pub image: String,
    /// Column with the text. What goes beyond the model's longest text is cut.
    #[serde(default = "default_text")]
    #[schemars(length(min = 1))]
    pub text: String,
    /// The path of a model folder in Hugging Face layout: BLIP for image-text retrieval.
    #[schemars(length(min = 1))]
    pub model: String,
    /// What is written.
    #[serde(default)]
    pub measure: MatchMeasure,
    /// Column to write: `float32`.
    #[serde(default = "default_output")]
    #[schemars(length(min = 1))]
    pub output: String,
    /// The largest number of pixels that is decoded; a header that announces more is refused before anything is allocated.
    #[serde(default = "default_max_pixels")]
    #[schemars(range(min = 1))]
    pub max_pixels: u64,
}

/// How the fit of a text to an image is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MatchMeasure {
    /// The probability that they match, from 0 to 1, by the layers that look at both.
    #[default]
    Probability,
    /// The cosine between a vector of the image and one of the text, from -1 to 1.
    Cosine,
}

fn default_output() -> String {
    "match".to_owned()
}

impl Config for Match {
    const NAME: &'static str = "match";
    const SUMMARY: &'static str = "Add the probability that a text fits an image, by a model that looks at both";
    const EXAMPLE: &'static str =
        "judged: { type: match, image: image, text: caption, model: models/blip-itm-base-coco }";
}

impl Stage for Match {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "image", &self.image, MediaView::check_type)?;
        inputs::require(input, "text", &self.text, Texts::check_type)?;
        embeddable::require_ability(&self.model, Ability::Match)?;
        Ok(vec![columns::column(&self.output, DataType::Float32)])
    }

    fn open(&self, _input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Opened::new(self, models))
    }

    /// A few of the pool's batches, so that its threads share them.
    fn window(&self) -> usize {
        256
    }

    fn models(&self) -> Result<Vec<String>, StageError> {
        embeddable::identity(&self.model)
    }
}

/// An image and the row's text.
struct Pair {
    picture: Picture,
    texts: Arc<Texts>,
    row: usize,
    measure: MatchMeasure,
}

/// Decodes and matches.
struct MatchEncoded {
    matcher: Arc<dyn Matcher>,
}

impl Work for MatchEncoded {
    type Item = Pair;
    type Output = Seen<f32>;

    fn batch(&self) -> NonZeroUsize {
        const { NonZeroUsize::new(32).unwrap() }
    }

    fn weights_bytes(&self) -> u64 {
        self.matcher.info().weights_bytes
    }

    fn run(&self, items: &[Pair]) -> Vec<Result<Self::Output, ModelError>> {
        see(
            items,
            |item| &item.picture,
            |images| {
                // Stages of another measure may share the model: runs of one are judged together.
                let judge = |run: &[(_, &Pair)]| {
                    let pairs: Vec<_> = run
                        .iter()
                        .map(|(image, item)| (*image, item.texts.get(item.row).unwrap_or_default()))
                        .collect();
                    match run.first().map(|(_, item)| item.measure) {
                        Some(MatchMeasure::Cosine) => self.matcher.cosines(&pairs),
                        Some(MatchMeasure::Probability) | None => self.matcher.matches(&pairs),
                    }
                };
                images.chunk_by(|a, b| a.1.measure == b.1.measure).flat_map(judge).collect()
            },
        )
    }
}

#[async_trait]
impl RowWise for Opened<Match> {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let Match { image, text, model: name, measure, max_pixels, .. } = &self.config;
        let images = Arc::new(MediaView::try_new(inputs::column(rows, image)?).map_err(inputs::type_changed(image))?);
        let texts = Arc::new(Texts::try_new(inputs::column(rows, text)?).map_err(inputs::type_changed(text))?);
        let load = |model: ModelOn<'_>| resolve_matcher(model).map(|matcher| MatchEncoded { matcher });
        let model = self.model("matcher", name, load).await?;
        let complete = |row: usize| match (images.bytes(row), texts.get(row)) {
            (None, _) => Err(Fault::missing(image, "give each row an image")),
            (_, None) => Err(Fault::missing(text, "drop rows without a text before with `filter`")),
            _ => Ok(()),
        };
        let pair = |row: usize| Pair {
            picture: Picture::new(&images, row, *max_pixels),
            texts: Arc::clone(&texts),
            row,
            measure: *measure,
        };
        let pairs = (0..rows.num_rows()).filter(|&row| complete(row).is_ok()).map(pair).collect();
        let mut answers = model.submit(pairs).await.into_iter();

        let mut window = Window::default();
        let mut output = Float32Builder::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            let score = match complete(row) {
                Ok(()) => answered(answers.next(), images.path(row), name)?,
                Err(fault) => Err(fault),
            };
            let score = window.settle(row, score);
            window.count("judged", usize::from(score.is_some()));
            output.append_option(score);
        }
        Ok(window.finish(vec![Arc::new(output.finish()) as ArrayRef]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::{fs, path::Path};

    use serde_json::json;

    use super::*;
    use crate::{fixtures, stage::codes};

    #[test]
    fn pairs_are_judged_and_incomplete_ones_fail_by_themselves() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let model = here.join("../groundloom-models/tests/data/fixtures/blip_itm");
        let cat = fs::read(here.join("../../examples/photos/chelsea.png")).unwrap();
        let good = Some((&cat[..], "a.png"));
        let rows = fixtures::rows([
            ("image", fixtures::media([good, None, Some((&cat[..99], "cut.png")), good, good, good])),
            (
                "caption",
                fixtures::texts([Some("a cat"), Some("a cat"), Some("a cat"), None, Some("two dogs"), Some("a cat")]),
            ),
        ]);
        let mut found = Vec::new();
        for (measure, lowest) in [("probability", 0.0), ("cosine", -1.0)] {
            let stage: Match = serde_json::from_value(json!({"model": model, "measure": measure})).unwrap();
            let outcome = fixtures::run(&stage, &rows);
            let scores = fixtures::json(&outcome.columns[0]);
            let [cat, dogs, again] = [0, 4, 5].map(|row| scores[row].as_f64().unwrap());
            assert!((lowest..=1.0).contains(&cat) && cat == again && cat != dogs, "{scores:?}");
            let failures: Vec<_> = fixtures::failures(&outcome).iter().map(|f| (f.0, f.1)).collect();
            let expected = [(1, codes::MISSING_VALUE), (2, codes::UNDECODABLE_IMAGE), (3, codes::MISSING_VALUE)];
            assert_eq!(failures, expected);
            assert_eq!(fixtures::counts(&outcome), [("judged", 3)]);
            found.push(cat);
        }
        assert_ne!(found[0], found[1]);
    }
}
