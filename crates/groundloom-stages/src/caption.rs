//! `caption`: what a model says an image shows.

use std::{num::NonZeroUsize, sync::Arc};

use arrow::{
    array::{ArrayRef, StringBuilder},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{MediaView, columns};
use groundloom_models::{
    Ability, CaptionOptions, Captioner, EarlyStopping, ModelError, ModelOn, ModelPool, Sampling, Work, Writing,
    WrittenText, resolve_captioner,
};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    dialogue::{instructions::row_seed, row_ids},
    embeddable, inputs,
    opened::Opened,
    pictures::{Picture, Seen, answered, default_image, default_max_pixels, see},
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// Adds a caption of each row's image, written by a model that looks at it. BLIP's CapFilt, which made its training data, draws captions with `top_p: 0.9`,
/// `repetition_penalty: 1.1`, 10 to 30 tokens behind the prompt "a picture of", and then has `match` judge both captions.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    /// Column with the image: `struct<bytes, path>`. EXIF orientation is applied.
    #[serde(default = "default_image")]
    #[schemars(length(min = 1))]
    pub image: String,
    /// The path of a model folder in Hugging Face layout: BLIP for captions, BLIP-2 with an OPT or a T5, CoCa (open_clip's layout), LLaVA 1.5 or Kosmos-2.
    #[schemars(length(min = 1))]
    pub model: String,
    /// What the caption goes on from, such as "a picture of"; it is not part of the output. BLIP-2 also answers "Question: … Answer:"; LLaVA is asked a question.
    #[serde(default)]
    pub prompt: String,
    /// The caption ends after so many tokens, or where the model ends it before.
    #[serde(default = "default_max_new_tokens")]
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// Before so many tokens it does not end.
    #[serde(default)]
    pub min_new_tokens: usize,
    /// Draws each token from the likeliest that together have this probability; without it, the likeliest token is taken.
    #[serde(default)]
    #[schemars(range(min = 0.000001, max = 1))]
    pub top_p: Option<f64>,
    /// Below 1 the draws keep to likely tokens, above 1 they roam; without `top_p` it does nothing.
    #[serde(default = "default_temperature")]
    #[schemars(range(min = 0.01))]
    pub temperature: f64,
    /// Above 1, tokens that are there already become less likely. Default: what `generation_config.json` in the model's folder says, else 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01))]
    pub repetition_penalty: Option<f64>,
    /// No run of so many tokens comes twice, the prompt's included; 0 lets all come. Default: what `generation_config.json` says, else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_repeat_ngram_size: Option<usize>,
    /// Writes so many captions side by side and takes the likeliest, by the beam search of transformers' `generate`; 1 takes the likeliest token each time. LAVIS captions with 3 (BLIP)
    /// and 5 (BLIP-2). Default: `num_beams` of `generation_config.json`, else 1; with `top_p` always 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub beams: Option<usize>,
    /// With beams, captions are compared by the logarithm of their probability over their length to the power of this: above 0 long ones gain, below 0 short ones.
    /// Default: what `generation_config.json` says, else 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_penalty: Option<f64>,
    /// With beams, whether the search ends once as many captions have ended as there are beams (`true`), once the open ones are unlikely to become better (`false`), or once they cannot
    /// (`never`, which where `length_penalty` is above 0 compares them at their greatest length). Default: what `generation_config.json` says, else `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<Stopping>,
    /// Another seed draws other captions; a row's draws depend on this and on its `row_id`.
    #[serde(default)]
    pub seed: u64,
    /// Column to write: the caption, without the prompt.
    #[serde(default = "default_output")]
    #[schemars(length(min = 1))]
    pub output: String,
    /// The largest number of pixels that is decoded; a header that announces more is refused before anything is allocated.
    #[serde(default = "default_max_pixels")]
    #[schemars(range(min = 1))]
    pub max_pixels: u64,
}

/// When a beam search ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Stopping {
    /// As soon as there are enough captions that ended, or not.
    Soon(bool),
    /// Not before nothing better can come.
    Late(Never),
}

/// The word for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Never {
    /// `never`
    Never,
}

impl From<Stopping> for EarlyStopping {
    fn from(stopping: Stopping) -> Self {
        match stopping {
            Stopping::Soon(true) => Self::True,
            Stopping::Soon(false) => Self::False,
            Stopping::Late(Never::Never) => Self::Never,
        }
    }
}

fn default_max_new_tokens() -> usize {
    30
}

fn default_temperature() -> f64 {
    1.0
}

fn default_output() -> String {
    "synthetic_caption".to_owned()
}

impl Config for Caption {
    const NAME: &'static str = "caption";
    const SUMMARY: &'static str = "Add a caption of each row's image, written by a model that looks at it";
    const EXAMPLE: &'static str =
        "captioned: { type: caption, image: image, model: models/blip-image-captioning-base, top_p: 0.9 }";
}

impl Caption {
    fn options(&self) -> CaptionOptions {
        CaptionOptions {
            prompt: self.prompt.clone(),
            writing: Writing {
                max_new_tokens: self.max_new_tokens,
                min_new_tokens: self.min_new_tokens,
                repetition_penalty: self.repetition_penalty.map(|penalty| penalty as f32),
                no_repeat_ngram_size: self.no_repeat_ngram_size,
                beams: self.beams,
                length_penalty: self.length_penalty,
                early_stopping: self.early_stopping.map(EarlyStopping::from),
                sampling: self
                    .top_p
                    .map_or(Sampling::Greedy, |p| Sampling::TopP { p: p as f32, temperature: self.temperature as f32 }),
            },
        }
    }
}

impl Stage for Caption {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "image", &self.image, MediaView::check_type)?;
        embeddable::require_ability(&self.model, Ability::Caption)?;
        Ok(vec![columns::column(&self.output, DataType::Utf8)])
    }

    fn open(&self, _input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        self.options().writing.check()?;
        Ok(Opened::new(self, models))
    }

    /// A few of the pool's batches, so that its threads share them.
    fn window(&self) -> usize {
        64
    }

    fn models(&self) -> Result<Vec<String>, StageError> {
        embeddable::writer_identity(&self.model)
    }
}

/// An image, with the seed of its draws and the options of its caption.
struct Request {
    picture: Picture,
    seed: u64,
    options: Arc<CaptionOptions>,
}

/// Decodes and captions.
struct CaptionEncoded {
    captioner: Arc<dyn Captioner>,
}

impl Work for CaptionEncoded {
    type Item = Request;
    type Output = Seen<WrittenText>;

    fn batch(&self) -> NonZeroUsize {
        const { NonZeroUsize::new(8).unwrap() }
    }

    fn weights_bytes(&self) -> u64 {
        self.captioner.info().weights_bytes
    }

    fn run(&self, items: &[Request]) -> Vec<Result<Self::Output, ModelError>> {
        see(
            items,
            |item| &item.picture,
            |images| {
                // Stages of other options may share the model: runs of equal ones are captioned together.
                let runs = images.chunk_by(|a, b| a.1.options == b.1.options);
                let caption = |run: &[(_, &Request)]| {
                    let images: Vec<_> = run.iter().map(|(image, item)| (*image, item.seed)).collect();
                    run.first().map_or_else(Vec::new, |(_, item)| self.captioner.caption(&images, &item.options))
                };
                runs.flat_map(caption).collect()
            },
        )
    }
}

#[async_trait]
impl RowWise for Opened<Caption> {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let Caption { image, model: name, seed, max_pixels, .. } = &self.config;
        let images = Arc::new(MediaView::try_new(inputs::column(rows, image)?).map_err(inputs::type_changed(image))?);
        let ids = row_ids(rows)?;
        let load = |model: ModelOn<'_>| resolve_captioner(model).map(|captioner| CaptionEncoded { captioner });
        let model = self.model("captioner", name, load).await?;
        let options = Arc::new(self.config.options());
        let there = (0..rows.num_rows()).filter(|&row| images.bytes(row).is_some());
        let request = |row: usize| Request {
            picture: Picture::new(&images, row, *max_pixels),
            seed: row_seed(ids.get(row).unwrap_or_default(), *seed, "caption"),
            options: Arc::clone(&options),
        };
        let mut answers = model.submit(there.map(request).collect()).await.into_iter();

        let (mut window, mut output) = (Window::default(), StringBuilder::new());
        for row in 0..rows.num_rows() {
            let caption = match images.bytes(row) {
                Some(_) => answered(answers.next(), images.path(row), name)?,
                None => Err(Fault::missing(image, "give each row an image")),
            };
            let caption = window.settle(row, caption);
            window.count("captioned", usize::from(caption.is_some()));
            output.append_option(caption.map(|c| c.text));
        }
        Ok(window.finish(vec![Arc::new(output.finish()) as ArrayRef]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::{collections::BTreeSet, fs, path::Path};

    use serde_json::json;

    use super::*;
    use crate::{fixtures, stage::codes};

    #[test]
    fn rows_are_captioned_by_themselves_and_draw_for_themselves() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let cat = fs::read(here.join("../../examples/photos/chelsea.png")).unwrap();
        let good = Some((&cat[..], "a.png"));
        let rows =
            fixtures::rows([("image", fixtures::media([good, None, Some((&cat[..99], "cut.png")), good, good, good]))]);
        for family in ["blip_caption", "blip2"] {
            let model = here.join("../groundloom-models/tests/data/fixtures").join(family);
            let run = |more: serde_json::Value| {
                let mut config = json!({"model": model, "max_new_tokens": 8});
                config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                let stage: Caption = serde_json::from_value(config).unwrap();
                assert_eq!(stage.models().unwrap().len(), 1);
                let outcome = fixtures::run(&stage, &rows);
                let failures: Vec<_> = fixtures::failures(&outcome).iter().map(|f| (f.0, f.1)).collect();
                assert_eq!(failures, [(1, codes::MISSING_VALUE), (2, codes::UNDECODABLE_IMAGE)]);
                assert_eq!(fixtures::counts(&outcome), [("captioned", 4)]);
                [0, 3, 4, 5].map(|row| fixtures::json(&outcome.columns[0])[row].as_str().unwrap().to_owned())
            };
            let greedy = run(json!({}));
            assert_eq!(run(json!({"beams": 1})), greedy);
            assert!(greedy.iter().all(|caption| caption == &greedy[0]), "{greedy:?}");
            let drawn = run(json!({"top_p": 0.95, "seed": 3, "min_new_tokens": 4, "prompt": "a picture of"}));
            assert!(drawn.iter().collect::<BTreeSet<_>>().len() > 1, "{drawn:?}");
            assert_eq!(run(json!({"top_p": 0.95, "seed": 3, "min_new_tokens": 4, "prompt": "a picture of"})), drawn);
            assert_ne!(run(json!({"top_p": 0.95, "seed": 4, "min_new_tokens": 4, "prompt": "a picture of"})), drawn);
            let searched = run(json!({"beams": 4, "length_penalty": 2.0, "early_stopping": "never"}));
            assert!(searched.iter().all(|caption| caption == &searched[0]), "{searched:?}");
            assert_ne!(searched, run(json!({"beams": 4, "no_repeat_ngram_size": 1, "early_stopping": true})));
        }
    }
}
