//! `embed`: a vector for the text, the image, the sound or the film of a row.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, FixedSizeListBuilder, Float32Builder},
    datatypes::{FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::columns;
use groundloom_models::{DEFAULT_SENTENCE_ENCODER, Modality, ModelPool, describe_embedder};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    embeddable::{self, MediaLimits, Model},
    pictures::default_max_pixels,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::Window,
};

/// Adds a vector for the text, the image, the sound or the film of each row, by a model that runs in this process.
///
/// One of `column`, `audio` and `video` says what is embedded. Texts, images and sounds whose vectors are compared must come from one model, as those of CLIP, CLAP or ImageBind do.
/// A text beyond the model's longest is cut, as the model was trained; of a long sound a model hears what it was trained to hear (CLAP the first seconds, ImageBind three clips).
/// A row's vector depends on its own value alone, not on the rows beside it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    /// Column with the text, or with the image (`struct<bytes, path>`; EXIF orientation is applied).
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub column: Option<String>,
    /// Column with the sound (`struct<bytes, path>`): WAV, FLAC, MP3, or Ogg with Vorbis or FLAC. Several channels become their mean; the model's sample rate is reached as
    /// torchaudio's `resample` reaches it by default.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub audio: Option<String>,
    /// Column with the film: its frames in order (`list<struct<bytes, path>>`), or an animated GIF or WebP (`struct<bytes, path>`); other films must be taken apart before. VideoMAE
    /// sees as many frames as it was trained on, evenly from the first to the last; ImageBind all pictures of a list, which are the first and the last of each two seconds,
    /// and of an animation those of five stretches of two seconds.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub video: Option<String>,
    /// The model: the embedded sentence encoder `all-minilm-l6-v2` (384 values, English texts), the embedded detector `ssd-mobilenet-v2-oidv4` (1280 values, images),
    /// or the path of a model folder: CLIP, SigLIP and SigLIP 2, CoCa, FROMAGe (texts and images); BERT, RoBERTa, MPNet and the sentence encoders made of
    /// them (texts); ViT, DINOv2, BEiT (images); CLAP (texts and sounds); VideoMAE (films); ImageBind (all four).
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
    /// The longest sound that is decoded, in seconds; a longer one goes to quarantine.
    #[serde(default = "default_max_seconds")]
    #[schemars(range(min = 0.001))]
    pub max_seconds: f64,
}

pub(crate) fn default_model() -> String {
    DEFAULT_SENTENCE_ENCODER.to_owned()
}

fn default_output() -> String {
    "embedding".to_owned()
}

/// Ten minutes: 115 MB at 48 kHz.
pub(crate) fn default_max_seconds() -> f64 {
    600.0
}

impl Config for Embed {
    const NAME: &'static str = "embed";
    const SUMMARY: &'static str = "Add a vector for the text, the image, the sound or the film of each row";
    const EXAMPLE: &'static str = "embedded: { type: embed, column: caption, model: all-minilm-l6-v2 }";
}

impl Embed {
    /// The key that says what is embedded, the column that it names, and what that may hold.
    fn source(&self) -> Result<(&'static str, &str, &'static [Modality]), ColumnError> {
        const KEYS: [(&str, &[Modality]); 3] = [
            ("column", &[Modality::Text, Modality::Image]),
            ("audio", &[Modality::Audio]),
            ("video", &[Modality::Video]),
        ];
        let named = KEYS.into_iter().zip([&self.column, &self.audio, &self.video]);
        let mut named = named.filter_map(|((key, allowed), column)| Some((key, column.as_deref()?, allowed)));
        let error = |key, message: &str| ColumnError { key, column: String::new(), message: message.to_owned() };
        let first =
            named.next().ok_or_else(|| error("", "expected one of `column`, `audio` and `video`, found none"))?;
        match named.next() {
            None => Ok(first),
            Some((key, ..)) => {
                let message = format!("expected one of `column`, `audio` and `video`, found `{}` and `{key}`", first.0);
                Err(error(key, &message))
            }
        }
    }
}

impl Stage for Embed {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        let (key, column, allowed) = self.source()?;
        let model = embeddable::describe(&self.model)?;
        embeddable::require(input, key, column, allowed, &model)?;
        Ok(vec![columns::column(&self.output, columns::vector_type(model.dims))])
    }

    fn open(&self, _input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        let dims = describe_embedder(&self.model)?.dims;
        let limits = MediaLimits { max_pixels: self.max_pixels, max_seconds: self.max_seconds };
        let model = Model { name: self.model.clone(), limits, models: Arc::clone(models) };
        let (_, column, allowed) = self.source().map_err(|e| StageError::Other(e.message))?;
        Ok(Arc::new(Embedding { column: column.to_owned(), allowed, dims, model }))
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
    allowed: &'static [Modality],
    dims: usize,
    model: Model,
}

#[async_trait]
impl RowWise for Embedding {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let all: Vec<usize> = (0..rows.num_rows()).collect();
        let vectors = self.model.embed(rows, &self.column, self.allowed, &all).await?;
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

    use arrow::datatypes::{DataType, Field};
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

    fn fixture(family: &str) -> String {
        format!("{}/../groundloom-models/tests/data/fixtures/{family}", env!("CARGO_MANIFEST_DIR"))
    }

    fn sound(name: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../groundloom-data/tests/sounds").join(name)).unwrap()
    }

    #[test]
    fn sounds_become_vectors_in_the_space_of_texts() {
        let (wav, flac) = (sound("pcm_16.wav"), sound("mono.flac"));
        let rows = fixtures::rows([(
            "audio",
            fixtures::media([
                Some((&wav, "a.wav")),
                None,
                Some((&wav[..999], "cut.wav")),
                Some((&flac, "a.flac")),
                Some((b"no", "no")),
            ]),
        )]);
        for family in ["clap", "imagebind"] {
            let outcome = fixtures::run(&stage(json!({"audio": "audio", "model": fixture(family)})), &rows);
            let vectors = fixtures::json(&outcome.columns[0]);
            // The same sound in another format, rounded differently.
            assert!(cosine(&vectors[0], &vectors[3]) > 0.999, "{family}");
            let failures = fixtures::failures(&outcome);
            let codes: Vec<_> = failures.iter().map(|f| (f.0, f.1)).collect();
            assert_eq!(
                codes,
                [(1, codes::MISSING_VALUE), (2, codes::UNDECODABLE_AUDIO), (4, codes::UNDECODABLE_AUDIO)]
            );
            assert!(failures[1].2.starts_with("cut.wav: the wav sound is cut off"), "{}", failures[1].2);
        }
        // What the model itself says of the samples.
        let embedder = groundloom_models::resolve_embedder(&fixture("clap")).unwrap();
        let samples =
            groundloom_data::sound::decode_mono(&wav, embedder.info().sample_rate, &Default::default()).unwrap();
        let expected = embedder.embed_audio(&[&samples.samples]).remove(0).unwrap();
        let outcome = fixtures::run(&stage(json!({"audio": "audio", "model": fixture("clap")})), &rows);
        let found: Vec<f32> = serde_json::from_value(fixtures::json(&outcome.columns[0])[0].clone()).unwrap();
        assert_eq!(found, expected);
        let outcome =
            fixtures::run(&stage(json!({"audio": "audio", "model": fixture("clap"), "max_seconds": 0.05})), &rows);
        assert_eq!(fixtures::failures(&outcome)[0].1, codes::AUDIO_TOO_LONG);
    }

    #[test]
    fn films_become_vectors() {
        let media = Path::new(env!("CARGO_MANIFEST_DIR")).join("../groundloom-data/tests/media");
        let gif = fs::read(media.join("animated.gif")).unwrap();
        let frames = groundloom_data::animation::frame_times(&gif, &Default::default()).unwrap().len() - 1;
        assert_eq!(frames, 2);
        let picture = fs::read(media.join("palette.png")).unwrap();
        let rows =
            fixtures::rows([("film", fixtures::media([Some((&gif, "a.gif")), Some((&picture, "a.png")), None]))]);
        // ImageBind sees the ends of the one stretch that there is.
        let outcome = fixtures::run(&stage(json!({"video": "film", "model": fixture("imagebind")})), &rows);
        let failures: Vec<_> = fixtures::failures(&outcome).iter().map(|f| (f.0, f.1)).collect();
        assert_eq!(failures, [(1, codes::UNDECODABLE_IMAGE), (2, codes::MISSING_VALUE)]);
        assert!(fixtures::json(&outcome.columns[0])[0].is_array());
        // VideoMAE needs four frames.
        let outcome = fixtures::run(&stage(json!({"video": "film", "model": fixture("videomae")})), &rows);
        let failures = fixtures::failures(&outcome);
        assert_eq!(failures[0].1, codes::INVALID_VALUE);
        assert!(failures[0].2.contains("at least 4 frames, found 2"), "{}", failures[0].2);

        let item =
            |path: &str| json!({"bytes": bytes_in_hexadecimal(&fs::read(media.join(path)).unwrap()), "path": path});
        let list = |frames: Vec<Value>| Value::Array(frames);
        let column = fixtures::column(
            DataType::List(Arc::new(Field::new("item", columns::media_type(), true))),
            [
                list(["palette.png", "grey.png", "rgb.bmp", "alpha.webp"].map(item).to_vec()),
                list(["palette.png", "grey.png"].map(item).to_vec()),
                Value::Null,
                list(vec![item("palette.png"), json!({"path": "x"}), item("rgb.bmp"), item("grey.png")]),
            ],
        );
        let rows = fixtures::rows([("frames", column)]);
        let outcome = fixtures::run(&stage(json!({"video": "frames", "model": fixture("videomae")})), &rows);
        let failures: Vec<_> = fixtures::failures(&outcome).iter().map(|f| (f.0, f.1)).collect();
        assert_eq!(failures, [(1, codes::INVALID_VALUE), (2, codes::MISSING_VALUE), (3, codes::MISSING_VALUE)]);
        let images = ["palette.png", "grey.png", "rgb.bmp", "alpha.webp"].map(|name| {
            groundloom_data::media::decode_rgb(&fs::read(media.join(name)).unwrap(), &Default::default()).unwrap()
        });
        let embedder = groundloom_models::resolve_embedder(&fixture("videomae")).unwrap();
        let expected = embedder.embed_videos(&[&images]).remove(0).unwrap();
        let found: Vec<f32> = serde_json::from_value(fixtures::json(&outcome.columns[0])[0].clone()).unwrap();
        assert_eq!(found, expected);
    }

    fn bytes_in_hexadecimal(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn what_does_not_fit_is_found_before_any_work() {
        let rows = fixtures::rows([("caption", fixtures::texts([Some("a")])), ("image", fixtures::media([None]))]);
        let schema = rows.schema();
        let clap = fixture("clap");
        let cases = [
            (json!({}), "", "expected one of `column`, `audio` and `video`, found none"),
            (json!({"column": "image", "audio": "image"}), "audio", "found `column` and `audio`"),
            (json!({"audio": "image"}), "audio", "all-minilm-l6-v2 takes texts, but no audio"),
            (json!({"audio": "caption", "model": clap}), "audio", "expected a column of sounds, struct<bytes, path>"),
            (json!({"column": "image", "model": clap}), "column", "expected a text column, utf8, which is what"),
            (json!({"video": "image", "model": clap}), "video", "takes texts, audio, but no videos"),
            (json!({"video": "caption", "model": fixture("videomae")}), "video", "expected a column of films"),
            (json!({"column": "text"}), "column", "there is no column `text` here"),
            (json!({"column": "image"}), "column", "which is what all-minilm-l6-v2 takes"),
            (json!({"column": "caption", "model": "ssd-mobilenet-v2-oidv4"}), "column", "expected an image column"),
            (json!({"column": "caption", "model": "no-such-model"}), "model", "no model is called"),
        ];
        for (config, key, message) in cases {
            let error = stage(config.clone()).outputs(&schema).expect_err(&config.to_string());
            assert!(error.key == key && error.message.contains(message), "{error:?}");
        }
        let models = stage(json!({"column": "caption"})).models().unwrap();
        assert!(models[0].starts_with("all-minilm-l6-v2@") && models.len() == 1, "{models:?}");
    }
}
