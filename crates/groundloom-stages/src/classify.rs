//! `classify`: which classes an image belongs to.

use std::{cmp::Ordering, num::NonZeroUsize, sync::Arc};

use arrow::{
    array::{ArrayRef, Float32Builder, ListBuilder, StringBuilder, StructBuilder},
    datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{MediaView, columns};
use groundloom_models::{Ability, Classifier, ModelError, ModelOn, ModelPool, Work, resolve_classifier};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    embeddable, inputs,
    opened::Opened,
    pictures::{Picture, Seen, answered, default_image, default_max_pixels, see},
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// Adds the likeliest classes of each row's image, by a model that was trained on them (ImageNet's thousand, for example).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Classify {
    /// Column with the image: `struct<bytes, path>`. EXIF orientation is applied.
    #[serde(default = "default_image")]
    #[schemars(length(min = 1))]
    pub image: String,
    /// The path of a model folder in Hugging Face layout: ViT, DINOv2 or BEiT for image classification.
    #[schemars(length(min = 1))]
    pub model: String,
    /// How many classes are written, the likeliest first.
    #[serde(default = "default_top")]
    #[schemars(range(min = 1))]
    pub top: usize,
    /// Column to write: `list<struct<label, score>>`; the scores of all classes sum to 1.
    #[serde(default = "default_output")]
    #[schemars(length(min = 1))]
    pub output: String,
    /// The largest number of pixels that is decoded; a header that announces more is refused before anything is allocated.
    #[serde(default = "default_max_pixels")]
    #[schemars(range(min = 1))]
    pub max_pixels: u64,
}

fn default_top() -> usize {
    5
}

fn default_output() -> String {
    "classes".to_owned()
}

impl Config for Classify {
    const NAME: &'static str = "classify";
    const SUMMARY: &'static str = "Add the likeliest classes of each row's image";
    const EXAMPLE: &'static str = "classed: { type: classify, image: image, model: models/vit-base-patch16-224 }";
}

fn class_fields() -> Fields {
    [("label", DataType::Utf8), ("score", DataType::Float32)]
        .map(|(name, kind)| columns::column(name, kind))
        .to_vec()
        .into()
}

impl Stage for Classify {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "image", &self.image, MediaView::check_type)?;
        embeddable::require_ability(&self.model, Ability::Classify)?;
        let item = columns::column("item", DataType::Struct(class_fields()));
        Ok(vec![columns::column(&self.output, DataType::List(item))])
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

/// Decodes and classifies.
struct ClassifyEncoded {
    classifier: Arc<dyn Classifier>,
}

impl Work for ClassifyEncoded {
    type Item = Picture;
    type Output = Seen<Vec<f32>>;

    fn batch(&self) -> NonZeroUsize {
        const { NonZeroUsize::new(32).unwrap() }
    }

    fn weights_bytes(&self) -> u64 {
        self.classifier.info().weights_bytes
    }

    fn run(&self, items: &[Picture]) -> Vec<Result<Self::Output, ModelError>> {
        see(
            items,
            |picture| picture,
            |images| self.classifier.classify(&images.iter().map(|(image, _)| *image).collect::<Vec<_>>()),
        )
    }
}

#[async_trait]
impl RowWise for Opened<Classify> {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let Classify { image, model: name, top, max_pixels, .. } = &self.config;
        let images = Arc::new(MediaView::try_new(inputs::column(rows, image)?).map_err(inputs::type_changed(image))?);
        let load = |model: ModelOn<'_>| resolve_classifier(model).map(|classifier| ClassifyEncoded { classifier });
        let model = self.model("classifier", name, load).await?;
        let there = (0..rows.num_rows()).filter(|&row| images.bytes(row).is_some());
        let items = there.map(|row| Picture::new(&images, row, *max_pixels)).collect();
        let mut answers = model.submit(items).await.into_iter();

        let mut window = Window::default();
        let labels = model.work().classifier.labels();
        let item = columns::column("item", DataType::Struct(class_fields()));
        let classes =
            StructBuilder::new(class_fields(), vec![Box::new(StringBuilder::new()), Box::new(Float32Builder::new())]);
        let mut output = ListBuilder::new(classes).with_field(item);
        for row in 0..rows.num_rows() {
            let scores = match images.bytes(row) {
                Some(_) => answered(answers.next(), images.path(row), name)?,
                None => Err(Fault::missing(image, "give each row an image")),
            };
            let scores = window.settle(row, scores);
            window.count("classified", usize::from(scores.is_some()));
            let classes = output.values();
            for class in scores.iter().flat_map(|scores| likeliest(scores, *top)) {
                if let Some(label) = classes.field_builder::<StringBuilder>(0) {
                    label.append_value(&labels[class]);
                }
                if let Some(score) = classes.field_builder::<Float32Builder>(1) {
                    score.append_option(scores.as_ref().map(|scores| scores[class]));
                }
                classes.append(true);
            }
            output.append(scores.is_some());
        }
        Ok(window.finish(vec![Arc::new(output.finish()) as ArrayRef]))
    }
}

/// The numbers of the `top` greatest scores, the greatest first; equal ones by number.
fn likeliest(scores: &[f32], top: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| match scores[b].total_cmp(&scores[a]) {
        Ordering::Equal => a.cmp(&b),
        other => other,
    });
    order.truncate(top);
    order
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::{fs, path::Path};

    use serde_json::json;

    use super::*;
    use crate::{fixtures, stage::codes};

    #[test]
    fn the_greatest_come_first() {
        assert_eq!(likeliest(&[0.1, 0.4, 0.1, 0.4], 3), [1, 3, 0]);
        assert_eq!(likeliest(&[0.1], 5), [0]);
    }

    #[test]
    fn images_get_classes_and_a_damaged_one_fails_by_itself() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let model = here.join("../groundloom-models/tests/data/fixtures/vit");
        let cat = fs::read(here.join("../../examples/photos/chelsea.png")).unwrap();
        let rows = fixtures::rows([(
            "image",
            fixtures::media([Some((&cat, "a.png")), None, Some((&cat[..99], "cut.png")), Some((&cat, "b.png"))]),
        )]);
        let stage: Classify = serde_json::from_value(json!({"model": model, "top": 2})).unwrap();
        let outcome = fixtures::run(&stage, &rows);
        let found = fixtures::json(&outcome.columns[0]);
        assert_eq!(found[0], found[3]);
        let classes = found[0].as_array().unwrap();
        assert!(classes.len() == 2 && classes[0]["label"].as_str().unwrap().starts_with("LABEL_"), "{classes:?}");
        assert!(classes[0]["score"].as_f64().unwrap() >= classes[1]["score"].as_f64().unwrap());
        let failures: Vec<_> = fixtures::failures(&outcome).iter().map(|f| (f.0, f.1)).collect();
        assert_eq!(failures, [(1, codes::MISSING_VALUE), (2, codes::UNDECODABLE_IMAGE)]);
        let other: Classify = serde_json::from_value(json!({"model": "all-minilm-l6-v2"})).unwrap();
        assert!(other.models().is_ok());
    }
}
