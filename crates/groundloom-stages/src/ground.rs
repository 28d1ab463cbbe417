//! `ground`: finds boxes for the noun chunks of a caption in its image.

use std::sync::Arc;

use arrow::{
    array::ArrayRef,
    datatypes::{FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{
    BoxesBuilder, Chunk, ChunksView, DecodeLimits, GroundedBox, MediaError, MediaView, columns, media::decode_rgb,
};
use groundloom_models::{
    Classes, DEFAULT_DETECTOR, DetectOptions, Detection, Detector, ModelError, ModelOn, ModelPool, Vocabulary, Work,
    describe_detector, resolve,
};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    embeddable, inputs,
    opened::Opened,
    pictures::{answered, default_image, default_max_pixels},
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// Looks for the noun chunks of a caption in its image, and adds a box for every place where the detector sees one.
///
/// A detector with fixed classes, as the embedded one is, sees the image once; each chunk then gets the boxes of the class that it names, by the detector's vocabulary
/// file: the longest noun that ends the chunk ("coffee cup"), else the lemma of the head noun. Chunks that name one class share its boxes. A chunk outside the vocabulary
/// gets none and is counted (`phrase_outside_vocabulary`), and so is one whose class is not seen (`phrase_without_detection`).
///
/// A detector of open vocabulary (a folder with Grounding DINO, OWL-ViT or OWLv2) looks for the chunks themselves: Grounding DINO reads all chunks of a caption as one
/// prompt, OWL each by itself. A box that answers several chunks is given to each of them.
/// Rows stay, with an empty list where nothing is found; `filter` drops them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ground {
    /// Column with the image: `struct<bytes, path>`. EXIF orientation is applied before anything is looked for.
    #[serde(default = "default_image")]
    pub image: String,
    /// Column with the noun chunks, as `noun_chunks` writes it.
    #[serde(default = "default_phrases")]
    pub phrases: String,
    /// The detector: the embedded `ssd-mobilenet-v2-oidv4` (23 classes of Open Images), or the path of a model
    /// folder in Hugging Face layout with an SSD MobileNetV2, Grounding DINO, OWL-ViT or OWLv2.
    #[serde(default = "default_model")]
    #[schemars(length(min = 1))]
    pub model: String,
    /// Column to write: `list<struct<chunk, label, score, x1, y1, x2, y2>>`, fractions of the oriented image's size, in the order of the chunks and by descending score.
    #[serde(default = "default_output")]
    pub output: String,
    /// The smallest score that the detector reports, from 0 to 1. Below what you want to keep: `filter_boxes` has the threshold, and may then be changed without
    /// looking at the images again.
    #[serde(default = "default_min_score")]
    #[schemars(range(min = 0, max = 1))]
    pub min_score: f64,
    /// Of two boxes of one class whose intersection over union is above this, the detector keeps the better; from 0 to 1.
    #[serde(default = "default_nms_iou")]
    #[schemars(range(min = 0, max = 1))]
    pub nms_iou: f64,
    /// The largest number of pixels that is decoded; a header that announces more is refused before anything is allocated.
    /// The default is where Pillow refuses an image as a decompression bomb.
    #[serde(default = "default_max_pixels")]
    #[schemars(range(min = 1))]
    pub max_pixels: u64,
}

fn default_phrases() -> String {
    "chunks".to_owned()
}

fn default_model() -> String {
    DEFAULT_DETECTOR.to_owned()
}

fn default_output() -> String {
    "boxes".to_owned()
}

fn default_min_score() -> f64 {
    0.3
}

fn default_nms_iou() -> f64 {
    0.5
}

impl Config for Ground {
    const NAME: &'static str = "ground";
    const SUMMARY: &'static str = "Find boxes for the noun chunks of a caption in its image";
    const EXAMPLE: &'static str =
        "grounded: { type: ground, image: image, phrases: chunks, model: ssd-mobilenet-v2-oidv4 }";
}

/// The boxes of one row, and what became of its phrases.
#[derive(Debug, Default, PartialEq)]
pub struct Grounding<'a> {
    /// In the order of the chunks, and by descending score.
    pub boxes: Vec<GroundedBox<'a>>,
    /// Chunks that name no class of the detector.
    pub outside_vocabulary: usize,
    /// Chunks that name a class of which nothing was detected.
    pub without_detection: usize,
}

/// Gives each of `chunks` chunks the detections that were made for it; `detections` come best first, their class the
/// chunk's place.
pub fn ground_by_phrase(chunks: usize, detections: &[Detection]) -> Grounding<'_> {
    let mut grounding = Grounding::default();
    for at in 0..chunks {
        let before = grounding.boxes.len();
        grounding.boxes.extend(detections.iter().filter(|d| d.class as usize == at).map(|d| GroundedBox {
            chunk: Some(at),
            span: None,
            phrase: None,
            label: Some(&d.label),
            score: d.score,
            rect: d.bbox,
        }));
        grounding.without_detection += usize::from(grounding.boxes.len() == before);
    }
    grounding
}

/// Gives each chunk the detections of the class that it names; `detections` come best first.
pub fn ground_by_class<'a>(
    chunks: &[Chunk<'_>],
    detections: &'a [Detection],
    vocabulary: &Vocabulary,
) -> Grounding<'a> {
    let mut grounding = Grounding::default();
    for (at, chunk) in chunks.iter().enumerate() {
        let Some(class) = vocabulary.lookup(&chunk.text.to_lowercase(), chunk.lemma) else {
            grounding.outside_vocabulary += 1;
            continue;
        };
        let before = grounding.boxes.len();
        grounding.boxes.extend(detections.iter().filter(|d| &*d.label == class).map(|d| GroundedBox {
            chunk: Some(at),
            span: None,
            phrase: None,
            label: Some(&d.label),
            score: d.score,
            rect: d.bbox,
        }));
        grounding.without_detection += usize::from(grounding.boxes.len() == before);
    }
    grounding
}

impl Stage for Ground {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "image", &self.image, MediaView::check_type)?;
        inputs::require(input, "phrases", &self.phrases, ChunksView::check_type)?;
        // The embedded one is there.
        if self.model != DEFAULT_DETECTOR {
            describe_detector(&self.model).map_err(|e| embeddable::model_fault(&self.model, &e))?;
        }
        Ok(vec![columns::column(&self.output, columns::boxes_type())])
    }

    fn open(&self, _input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Opened::new(self, models))
    }

    /// Small, so that progress is seen and the pool's threads never wait for a whole batch of rows.
    fn window(&self) -> usize {
        64
    }

    fn models(&self) -> Result<Vec<String>, StageError> {
        let info = describe_detector(&self.model)?;
        Ok(vec![format!("{}@{}", info.name, info.weights_sha256)])
    }

    fn notes(&self) -> Vec<String> {
        let classes = if self.model == DEFAULT_DETECTOR { ", and not only the names of fixed classes" } else { "" };
        vec![format!(
            "Boxes come from the detector {}; GrIT's authors used GLIP, which takes any phrase{classes}.",
            self.model
        )]
    }
}

/// An image of a window, still encoded: the pool's thread decodes it, so that no more images lie decoded than threads work.
struct Picture {
    images: Arc<MediaView>,
    row: usize,
    limits: DecodeLimits,
    options: DetectOptions,
    /// What to look for, where the detector takes phrases.
    phrases: Vec<String>,
}

/// Decodes and detects, image by image.
struct DetectEncoded {
    detector: Arc<dyn Detector>,
}

impl Work for DetectEncoded {
    type Item = Picture;
    type Output = Result<Vec<Detection>, MediaError>;

    fn weights_bytes(&self) -> u64 {
        self.detector.info().weights_bytes
    }

    fn stays_on_cpu(&self) -> bool {
        self.detector.stays_on_cpu()
    }

    fn run(&self, items: &[Picture]) -> Vec<Result<Self::Output, ModelError>> {
        let detect = |picture: &Picture| match decode_rgb(
            picture.images.bytes(picture.row).unwrap_or_default(),
            &picture.limits,
        ) {
            Ok(image) if self.detector.info().classes == Classes::Open => {
                let phrases: Vec<&str> = picture.phrases.iter().map(String::as_str).collect();
                self.detector.detect_phrases(&image, &phrases, &picture.options).map(Ok)
            }
            Ok(image) => self.detector.detect(&image, &picture.options).map(Ok),
            Err(error) => Ok(Err(error)),
        };
        items.iter().map(detect).collect()
    }
}

impl Opened<Ground> {
    /// The chunks of a row whose image can be looked at.
    fn chunks<'a>(&self, chunks: &'a ChunksView, images: &MediaView, row: usize) -> Result<Vec<Chunk<'a>>, Fault> {
        let Ground { image, phrases, .. } = &self.config;
        let given = chunks
            .row(row)
            .map_err(|e| Fault::invalid(phrases, e))?
            .ok_or_else(|| Fault::missing(phrases, "run noun_chunks before"))?;
        images.bytes(row).ok_or_else(|| Fault::missing(image, "give each row an image"))?;
        Ok(given)
    }
}

#[async_trait]
impl RowWise for Opened<Ground> {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let Ground { image, phrases, model: name, .. } = &self.config;
        let images = Arc::new(MediaView::try_new(inputs::column(rows, image)?).map_err(inputs::type_changed(image))?);
        let chunks = ChunksView::try_new(inputs::column(rows, phrases)?).map_err(inputs::type_changed(phrases))?;
        let limits = DecodeLimits { max_pixels: self.config.max_pixels, ..DecodeLimits::default() };
        let options = DetectOptions { min_score: self.config.min_score as f32, nms_iou: self.config.nms_iou as f32 };

        let load = |model: ModelOn<'_>| resolve(model).map(|detector| DetectEncoded { detector });
        let model = self.model("detector", name, load).await?;
        let detector = &model.work().detector;
        let vocabulary = detector.vocabulary();

        let mut window = Window::default();
        let asked: Vec<Option<Vec<Chunk<'_>>>> =
            (0..rows.num_rows()).map(|row| window.settle(row, self.chunks(&chunks, &images, row))).collect();
        // A row without a chunk that names a class is looked at all the same: what is counted and quarantined must not depend on the caption.
        let pictures = asked.iter().enumerate().filter(|(_, chunks)| chunks.is_some()).map(|(row, chunks)| Picture {
            images: Arc::clone(&images),
            row,
            limits,
            options,
            phrases: match vocabulary {
                Some(_) => Vec::new(),
                None => chunks.iter().flatten().map(|chunk| chunk.text.to_owned()).collect(),
            },
        });
        let mut answers = model.submit(pictures.collect()).await.into_iter();

        let mut output = BoxesBuilder::new();
        for (row, chunks) in asked.iter().enumerate() {
            let Some((chunks, answer)) = chunks.as_ref().zip(chunks.is_some().then(|| answers.next()).flatten()) else {
                output.append_null();
                continue;
            };
            let answer = answered(Some(answer), images.path(row), name)?;
            match window.settle(row, answer) {
                Some(detections) => {
                    let grounding = match vocabulary {
                        Some(vocabulary) => ground_by_class(chunks, &detections, vocabulary),
                        None => ground_by_phrase(chunks.len(), &detections),
                    };
                    window.count("phrases", chunks.len());
                    window.count("detections", detections.len());
                    window.count("boxes", grounding.boxes.len());
                    window.count("phrase_outside_vocabulary", grounding.outside_vocabulary);
                    window.count("phrase_without_detection", grounding.without_detection);
                    output.append_row(&grounding.boxes);
                }
                None => output.append_null(),
            }
        }
        Ok(window.finish(vec![Arc::new(output.finish()) as ArrayRef]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::{fs, path::Path};

    use groundloom_data::{Box2d, CharSpan};
    use serde_json::{Value, json};

    use super::*;
    use crate::{fixtures, stage::codes};

    fn stage(config: Value) -> Ground {
        serde_json::from_value(config).unwrap()
    }

    /// Chelsea the cat, scikit-image's photograph.
    fn cat() -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/photos/chelsea.png")).unwrap()
    }

    fn chunks<const N: usize>(texts: [(&str, &str); N]) -> Value {
        Value::Array(
            texts.iter().map(|(text, lemma)| fixtures::chunk(text, 0..text.len(), lemma, 0..text.len())).collect(),
        )
    }

    #[test]
    fn phrases_get_the_boxes_of_the_class_they_name() {
        let cat = cat();
        let rows = fixtures::rows([
            (
                "image",
                fixtures::media([
                    Some((&cat, "chelsea.png")),
                    Some((&cat[..cat.len() / 2], "cut.png")),
                    Some((&cat, "again.png")),
                    None,
                    Some((&cat, "none.png")),
                ]),
            ),
            (
                "chunks",
                fixtures::column(
                    columns::chunks_type(),
                    [
                        chunks([
                            ("the ginger kitten", "kitten"),
                            ("a field", "field"),
                            ("A Cat", "cat"),
                            ("a dog", "dog"),
                        ]),
                        chunks([("a cat", "cat")]),
                        json!(null),
                        chunks([("a cat", "cat")]),
                        json!([]),
                    ],
                ),
            ),
        ]);
        let outcome = fixtures::run(&stage(json!({})), &rows);
        let found = fixtures::json(&outcome.columns[0]);
        let boxes = found[0].as_array().unwrap();
        assert_eq!(
            boxes.iter().map(|b| (b["chunk"].as_u64().unwrap(), b["label"].as_str().unwrap())).collect::<Vec<_>>(),
            [(0, "Cat"), (2, "Cat")]
        );
        // LiteRT's detection with the same weights.
        for (key, expected, tolerance) in [
            ("score", 0.8472, 0.02),
            ("x1", 0.0066, 0.01),
            ("y1", 0.0025, 0.01),
            ("x2", 0.9393, 0.01),
            ("y2", 0.9985, 0.01),
        ] {
            let value = boxes[0][key].as_f64().unwrap();
            assert!((value - expected).abs() <= tolerance, "{key}: expected {expected}, found {value}");
        }
        assert_eq!(found[4], json!([]));
        let failures = fixtures::failures(&outcome);
        assert_eq!(
            failures.iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(),
            [(1, codes::UNDECODABLE_IMAGE), (2, codes::MISSING_VALUE), (3, codes::MISSING_VALUE)]
        );
        assert!(failures[0].2.starts_with("cut.png: "), "{}", failures[0].2);
        assert_eq!(
            fixtures::counts(&outcome),
            [
                ("boxes", 2),
                ("detections", 2),
                ("phrase_outside_vocabulary", 1),
                ("phrase_without_detection", 1),
                ("phrases", 4)
            ]
        );
    }

    #[test]
    fn limits_are_the_configs() {
        let cat = cat();
        let rows = fixtures::rows([
            ("image", fixtures::media([Some((&cat, "chelsea.png"))])),
            ("chunks", fixtures::column(columns::chunks_type(), [chunks([("a cat", "cat")])])),
        ]);
        let outcome = fixtures::run(&stage(json!({"min_score": 1.0})), &rows);
        assert_eq!(
            (fixtures::json(&outcome.columns[0]), outcome.counts["phrase_without_detection"]),
            (vec![json!([])], 1)
        );
        let outcome = fixtures::run(&stage(json!({"max_pixels": 1000})), &rows);
        assert_eq!(outcome.failures[0].code, codes::IMAGE_TOO_LARGE);
    }

    #[test]
    fn an_unknown_model_ends_the_run() {
        let config = stage(json!({"model": "no-such-model"}));
        assert!(config.models().unwrap_err().to_string().contains("no-such-model"));
        let models = stage(json!({})).models().unwrap();
        assert!(
            models.len() == 1 && models[0].starts_with("ssd-mobilenet-v2-oidv4@") && models[0].len() == 23 + 64,
            "{models:?}"
        );
    }

    #[test]
    fn a_detector_of_open_vocabulary_looks_for_the_chunks_themselves() {
        let cat = cat();
        let rows = fixtures::rows([
            (
                "image",
                fixtures::media([
                    Some((&cat, "chelsea.png")),
                    Some((&cat[..cat.len() / 2], "cut.png")),
                    Some((&cat, "none.png")),
                ]),
            ),
            (
                "chunks",
                fixtures::column(
                    columns::chunks_type(),
                    [
                        chunks([("the remote control", "control"), ("a cat", "cat")]),
                        chunks([("a cat", "cat")]),
                        json!([]),
                    ],
                ),
            ),
        ]);
        for name in ["grounding_dino", "owlvit", "owlv2"] {
            // Random weights: only what surrounds the network is looked at here.
            let folder =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../groundloom-models/tests/data/fixtures").join(name);
            let config = json!({ "model": folder, "min_score": 0.05, "nms_iou": 0.9 });
            let outcome = fixtures::run(&stage(config), &rows);
            let found = fixtures::json(&outcome.columns[0]);
            let boxes = found[0].as_array().unwrap();
            let of = |chunk: u64| boxes.iter().filter(|b| b["chunk"] == chunk).collect::<Vec<_>>();
            assert_eq!(of(0).len() + of(1).len(), boxes.len(), "{name}");
            for (chunk, label) in [(0, "the remote control"), (1, "a cat")] {
                let scores: Vec<f64> = of(chunk).iter().map(|b| b["score"].as_f64().unwrap()).collect();
                assert!(!scores.is_empty() && scores.is_sorted_by(|a, b| a >= b), "{name}: {scores:?}");
                assert!(of(chunk).iter().all(|b| b["label"] == label), "{name}");
            }
            assert_eq!((&found[1], &found[2]), (&json!(null), &json!([])));
            let failures = fixtures::failures(&outcome);
            assert_eq!(failures.iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(), [(1, codes::UNDECODABLE_IMAGE)]);
            let counts = fixtures::counts(&outcome);
            assert!(counts.contains(&("phrases", 2)) && counts.contains(&("boxes", boxes.len() as u64)), "{counts:?}");
        }
    }

    #[test]
    fn one_class_may_serve_several_phrases() {
        let span = CharSpan { start: 0, end: 1 };
        let chunk = |text, lemma| Chunk {
            span,
            text,
            root: lemma,
            lemma,
            subtree: span,
            has_conjunct: false,
            has_children: false,
        };
        let rect = Box2d::new(0.1, 0.1, 0.5, 0.5).unwrap();
        let detection = |label: &str, score| Detection { label: label.into(), class: 1, score, bbox: rect };
        let detections = [detection("Person", 0.9), detection("Dog", 0.8), detection("Person", 0.4)];
        let vocabulary = Vocabulary::read(
            "v",
            "Person\tman, woman\nDog\tdog\nCat\tcat\n",
            &["???", "Person", "Dog", "Cat"].map(Into::into),
        )
        .unwrap();
        let chunks =
            [chunk("a man", "man"), chunk("The Woman", "woman"), chunk("a cat", "cat"), chunk("a kite", "kite")];
        let grounding = ground_by_class(&chunks, &detections, &vocabulary);
        let boxes: Vec<_> = grounding.boxes.iter().map(|b| (b.chunk.unwrap(), b.label.unwrap(), b.score)).collect();
        assert_eq!(boxes, [(0, "Person", 0.9), (0, "Person", 0.4), (1, "Person", 0.9), (1, "Person", 0.4)]);
        assert_eq!((grounding.outside_vocabulary, grounding.without_detection), (1, 1));
    }
}
