//! Beam searches of a fixture: `beams.json`, as `scripts/make_beam_fixtures.py` writes it.

use candle_core::Tensor;
use serde_json::Value;

use super::Outputs;
use crate::{
    ModelError,
    config::Config,
    folder::ModelFolder,
    generation::Generation,
    language_model::row,
    layers::compute,
    writing::{Writing, Written},
};

const FILE: &str = "beams.json";

/// What the reference wrote, by how it was asked.
pub(crate) struct Cases(Vec<Case>);

/// One text.
struct Case {
    /// What it is written about or behind, by the name that the family gives it.
    key: String,
    /// Tokens that end it; none where the model's own do.
    ends: Vec<u32>,
    writing: Writing,
    /// Its tokens.
    ids: Vec<u32>,
}

impl Cases {
    /// Reads the file, where the folder has one.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(super) fn open(folder: &ModelFolder) -> Result<Self, ModelError> {
        let notes: Value = folder.json_if_there(FILE)?.unwrap_or_default();
        let rows = notes.get("cases").and_then(Value::as_array);
        let read = |case: &Value| Case::read(folder, case);
        Ok(Self(rows.into_iter().flatten().map(read).collect::<Result<_, _>>()?))
    }

    /// The reference's tokens as outputs.
    ///
    /// # Errors
    /// [`ModelError::Compute`].
    pub(super) fn expected(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        let each = self.0.iter().enumerate();
        each.map(|(i, case)| Ok((format!("out.{}", name(i)), ids(&case.ids)?))).collect()
    }

    /// What `write` gives for the cases of `key`: it is told the tokens that end a text and how it is written.
    ///
    /// # Errors
    /// Those of `write`.
    pub(super) fn found(
        &self,
        key: &str,
        mut write: impl FnMut(&[u32], &Writing) -> Result<Written, ModelError>,
    ) -> Result<Outputs, ModelError> {
        let of_key = self.0.iter().enumerate().filter(|(_, case)| case.key == key);
        of_key.map(|(i, case)| Ok((name(i), ids(&write(&case.ends, &case.writing)?.ids)?))).collect()
    }
}

impl Case {
    fn read(folder: &ModelFolder, case: &Value) -> Result<Self, ModelError> {
        let origin = folder.file_name(FILE);
        let Value::Object(options) = case else {
            return Err(ModelError::BadConfig {
                origin,
                problem: format!("expected objects as cases, found {case:.60}"),
            });
        };
        let options = Config::new(origin, options.clone());
        let asked = Writing {
            max_new_tokens: options.size_or("max_new_tokens", usize::MAX)?,
            min_new_tokens: options.size_if_there("min_new_tokens")?.unwrap_or(0),
            ..Writing::default()
        };
        Ok(Self {
            key: options.text("key")?.unwrap_or_default().to_owned(),
            ends: options.ids("ends")?,
            writing: Generation::read(&options)?.fill(&asked),
            ids: options.ids("ids")?,
        })
    }
}

fn name(case: usize) -> String {
    format!("beams.{case:02}_ids")
}

fn ids(ids: &[u32]) -> Result<Tensor, ModelError> {
    row(ids).map_err(compute("a fixture"))
}
