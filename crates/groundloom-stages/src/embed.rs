//! `embed`: a vector for the text or the image of a row.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, FixedSizeListBuilder, Float32Builder},
    datatypes::{FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::columns;
use groundloom_models::{DEFAULT_SENTENCE_ENCODER, ModelPool, describe_embedder};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    embeddable::{self, Embeddable, Model},
    pictures::default_max_pixels,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::Window,
};

/// Adds a vector for the text or the image of each row, by a model that runs in this process.
///
/// Texts and images whose vectors are compared must come from one model, as CLIP's do. A text beyond the model's longest is cut, as the model was trained.
/// A row's vector depends on its text or image alone, not on the rows beside it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    /// Column with the text, or with the image (`struct<bytes, path>`; EXIF orientation is applied).
    #[schemars(length(min = 1))]
    pub column: String,
    /// The model: the embedded sentence encoder `all-minilm-l6-v2` (384 values, English texts), the embedded detector `ssd-mobilenet-v2-oidv4` (1280 values, images),
    /// or the path of a model folder in Hugging Face layout: CLIP, SigLIP and SigLIP 2 (texts and images); BERT, RoBERTa, MPNet and the sentence encoders made of
    /// them (texts); ViT, DINOv2, BEiT (images).
    #[serde(default = "default_model")]
    #[schemars(length(min = 1))]
    pub model: String,
    /// Column to write: `fixed_size_list<float32>`, as long as the model's vectors. CLIP's, SigLIP's and most sentence encoders' have length 1, so that a dot product is the cosine.
    #[serde(default = "default_output")]
    #[schemars(length(min = 1))]
    pub output: String,
    /// The largest number of pixels that is decoded; a header that announces more is refused before anything is allocated.
    #[serde(default = "default_max_pixels")]
    #[schemars(range(min = 1))]
    pub max_pixels: u64,
}

pub(crate) fn default_model() -> String {
    DEFAULT_SENTENCE_ENCODER.to_owned()
}

fn default_output() -> String {
    "embedding".to_owned()
}

impl Config for Embed {
    const NAME: &'static str = "embed";
    const SUMMARY: &'static str = "Add a vector for the text or the image of each row";
    const EXAMPLE: &'static str = "embedded: { type: embed, column: caption, model: all-minilm-l6-v2 }";
}

impl Stage for Embed {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        let model = embeddable::describe(&self.model)?;
        embeddable::require(input, "column", &self.column, &model)?;
        Ok(vec![columns::column(&self.output, columns::vector_type(model.dims))])
    }

    fn open(&self, _input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        let dims = describe_embedder(&self.model)?.dims;
        let model = Model { name: self.model.clone(), max_pixels: self.max_pixels, models: Arc::clone(models) };
        Ok(Arc::new(Embedding { column: self.column.clone(), dims, model }))
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
struct Embedding {
    column: String,
    dims: usize,
    model: Model,
}

#[async_trait]
impl RowWise for Embedding {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let column = Embeddable::open(rows, &self.column)?;
        let all: Vec<usize> = (0..rows.num_rows()).collect();
        let vectors = self.model.embed(&column, &all).await?;
        let mut window = Window::default();
        let dims = i32::try_from(self.dims).map_err(|e| StageError::Other(format!("{} values: {e}", self.dims)))?;
        let item = columns::vector_item();
        let mut output = FixedSizeListBuilder::new(Float32Builder::new(), dims).with_field(item);
        for (row, vector) in vectors.into_iter().enumerate() {
            match vector {
                Ok(vector) => {
                    output.values().append_slice(&vector);
                    output.append(true);
                    window.count("vectors", 1);
                }
                Err(fault) => {
                    window.fail(row, fault);
                    // A list of a fixed size has its values even where it is null.
                    output.values().append_value_n(0.0, self.dims);
                    output.append(false);
                }
            }
        }
        let output = output.finish();
        debug_assert_eq!(output.len(), rows.num_rows());
        Ok(window.finish(vec![Arc::new(output) as ArrayRef]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::{fs, path::Path};

    use serde_json::{Value, json};

    use super::*;
    use crate::{fixtures, stage::codes};

    fn stage(config: Value) -> Embed {
        serde_json::from_value(config).unwrap()
    }

    fn cosine(a: &Value, b: &Value) -> f64 {
        let values = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        let (a, b) = (values(a), values(b));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
    }

    #[test]
    fn texts_become_vectors_and_a_missing_one_fails_by_itself() {
        let texts =
            [Some("A cat lies on a sofa."), None, Some("A kitten rests on the couch."), Some("Stock prices fell.")];
        let rows = fixtures::rows([("caption", fixtures::texts(texts))]);
        let outcome = fixtures::run(&stage(json!({"column": "caption"})), &rows);
        let vectors = fixtures::json(&outcome.columns[0]);
        assert_eq!(vectors[0].as_array().unwrap().len(), 384);
        assert_eq!(vectors[1], Value::Null);
        let (near, far) = (cosine(&vectors[0], &vectors[2]), cosine(&vectors[0], &vectors[3]));
        assert!(near > 0.6 && far < 0.2, "{near} {far}");
        assert_eq!(
            fixtures::failures(&outcome).iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(),
            [(1, codes::MISSING_VALUE)]
        );
        assert_eq!(fixtures::counts(&outcome), [("vectors", 3)]);
    }

    #[test]
    fn images_become_vectors() {
        let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/photos");
        let cat = fs::read(photos.join("chelsea.png")).unwrap();
        let rows = fixtures::rows([(
            "image",
            fixtures::media([Some((&cat, "a.png")), Some((&cat[..99], "cut.png")), Some((&cat, "b.png"))]),
        )]);
        let config = stage(json!({"column": "image", "model": "ssd-mobilenet-v2-oidv4", "output": "features"}));
        assert_eq!(config.outputs(&rows.schema()).unwrap()[0].name(), "features");
        let outcome = fixtures::run(&config, &rows);
        let vectors = fixtures::json(&outcome.columns[0]);
        assert_eq!(vectors[0], vectors[2]);
        assert_eq!(vectors[0].as_array().unwrap().len(), 1280);
        let failures = fixtures::failures(&outcome);
        assert_eq!(failures.iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(), [(1, codes::UNDECODABLE_IMAGE)]);
        assert!(failures[0].2.starts_with("cut.png: "));
    }

    #[test]
    fn what_does_not_fit_is_found_before_any_work() {
        let rows = fixtures::rows([("caption", fixtures::texts([Some("a")])), ("image", fixtures::media([None]))]);
        let schema = rows.schema();
        let cases = [
            (json!({"column": "text"}), "column", "there is no column `text` here"),
            (json!({"column": "image"}), "column", "which is what all-minilm-l6-v2 takes"),
            (json!({"column": "caption", "model": "ssd-mobilenet-v2-oidv4"}), "column", "expected an image column"),
            (json!({"column": "caption", "model": "no-such-model"}), "model", "no model is called"),
        ];
        for (config, key, message) in cases {
            let error = stage(config).outputs(&schema).unwrap_err();
            assert!(error.key == key && error.message.contains(message), "{error:?}");
        }
        let models = stage(json!({"column": "caption"})).models().unwrap();
        assert!(models[0].starts_with("all-minilm-l6-v2@") && models.len() == 1, "{models:?}");
    }
}
