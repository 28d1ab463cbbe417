//! Fixtures of detectors.

use serde_json::Value;

use super::{Fixture, Outputs, text::token_table};
use crate::{
    ModelError,
    grounding_dino::{self, GroundingDinoDetector},
    owl::{self, Generation, OwlDetector},
};

/// The fixture's name of a detector.
const NAME: &str = "fixture";

pub(super) fn grounding_dino(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let detector = GroundingDinoDetector::load(NAME, fixture.folder(), &fixture.device().open()?)?;
    token_table(fixture, detector.tokenizer())?;
    let images = fixture.images()?;
    let replayed = detector.replay(&grounding_dino::replay::Recorded {
        images: &images,
        texts: &fixture.strings("texts"),
        threshold: fixture.number("threshold")?,
        text_threshold: fixture.number("text_threshold")?,
    })?;
    same_labels(fixture, &replayed.labels)?;
    Ok(named(replayed.tensors))
}

pub(super) fn owl(fixture: &Fixture, generation: Generation) -> Result<Outputs, ModelError> {
    let detector = OwlDetector::load(NAME, fixture.folder(), generation, &fixture.device().open()?)?;
    token_table(fixture, detector.tokenizer())?;
    let images = fixture.images()?;
    let lists = fixture.notes.get("text_labels").and_then(Value::as_array);
    let strings = |list: &'_ Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let texts: Vec<Vec<String>> = lists.into_iter().flatten().map(strings).collect();
    let texts: Vec<Vec<&str>> = texts.iter().map(|list| list.iter().map(String::as_str).collect()).collect();
    let threshold = fixture.number("threshold")?;
    let replayed = detector.replay(&owl::replay::Recorded { images: &images, texts: &texts, threshold })?;
    same_labels(fixture, &replayed.labels)?;
    Ok(named(replayed.tensors))
}

/// Names as [`Outputs`] has them.
fn named(tensors: Outputs) -> Outputs {
    let bare = |name: String| name.strip_prefix("out.").map_or(name.clone(), str::to_owned);
    tensors.into_iter().map(|(name, tensor)| (bare(name), tensor)).collect()
}

/// The phrase of every box must be the reference's: labels are no tensors of the fixture, so a difference is an error.
///
/// # Errors
/// [`ModelError::BadConfig`] with the image and both lists.
fn same_labels(fixture: &Fixture, found: &[Vec<String>]) -> Result<(), ModelError> {
    let expected = fixture.notes.get("post_text_labels").and_then(Value::as_array);
    for (number, expected) in expected.into_iter().flatten().enumerate() {
        let mut labels = serde_json::json!(found.get(number));
        // Of no box the reference makes one empty label.
        if labels == serde_json::json!([]) && *expected == serde_json::json!([""]) {
            labels = expected.clone();
        }
        if labels != *expected {
            return Err(ModelError::BadConfig {
                origin: fixture.folder().file_name("expected.json"),
                problem: format!("expected the phrases {expected} in image {number}, found {labels}"),
            });
        }
    }
    Ok(())
}
