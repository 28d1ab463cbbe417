//! The models of an index's columns, each loaded once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use groundloom_data::{DecodeLimits, media::decode_rgb};
use groundloom_index::{Manifest, ModelIdentity, serve::Kind};
use groundloom_models::{Device, Embedder, ModelOn, resolve_embedder};

/// Loaded models by name.
#[derive(Default)]
pub struct Encoders {
    device: Device,
    loaded: Mutex<HashMap<String, Arc<dyn Embedder>>>,
}

impl Encoders {
    /// None yet; they compute on `device`.
    pub fn on(device: Device) -> Self {
        Self { device, ..Self::default() }
    }

    /// The model called `name`.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Embedder>, String> {
        let mut all = self.loaded.lock().map_err(|e| e.to_string())?;
        if let Some(model) = all.get(name) {
            return Ok(Arc::clone(model));
        }
        let model = resolve_embedder(ModelOn::new(name, self.device)).map_err(|e| e.to_string())?;
        all.insert(name.to_owned(), Arc::clone(&model));
        Ok(model)
    }

    /// The model of a column, which must have the weights that made the column.
    pub fn of(&self, column: &str, made_by: Option<&ModelIdentity>) -> Result<Arc<dyn Embedder>, String> {
        let Some(identity) = made_by else {
            return Err(format!(
                "the index does not know which model made {column:?}; ask with --vector or --row, or build it with --vector {column}=MODEL"
            ));
        };
        let model = self.get(&identity.name)?;
        let found = &model.info().weights_sha256;
        if !identity.weights.is_empty() && *found != identity.weights {
            return Err(format!(
                "{column:?} was made by {} with weights {}, found weights {found}; questions embedded by another model have no meaning in this index",
                identity.name, identity.weights
            ));
        }
        Ok(model)
    }

    /// The column to search for questions of `kinds`: `name`, or the first whose model takes all of them.
    pub fn column(&self, manifest: &Manifest, name: Option<&str>, kinds: &[Kind]) -> Result<usize, String> {
        if name.is_some() || kinds.is_empty() {
            return manifest.column(name).map_err(|e| e.to_string());
        }
        let mut refusals = Vec::new();
        for (place, column) in manifest.columns.iter().enumerate() {
            match self.of(&column.name, column.model.as_ref()) {
                Ok(model) if kinds.iter().all(|kind| takes(model.as_ref(), *kind)) => return Ok(place),
                Ok(model) => {
                    refusals.push(format!("the model of {:?}, {}, does not take it", column.name, model.info().name))
                }
                Err(problem) => refusals.push(problem),
            }
        }
        Err(format!("no column can be searched so: {}", refusals.join("; ")))
    }
}

fn takes(model: &dyn Embedder, kind: Kind) -> bool {
    match kind {
        Kind::Text => model.info().texts,
        Kind::Image => model.info().images,
    }
}

/// The vector of a text.
pub fn text(model: &dyn Embedder, text: &str) -> Result<Vec<f32>, String> {
    one(model.embed_texts(&[text]))
}

/// The vector of an encoded picture.
pub fn image(model: &dyn Embedder, bytes: &[u8]) -> Result<Vec<f32>, String> {
    let pixels = decode_rgb(bytes, &DecodeLimits::default()).map_err(|e| e.to_string())?;
    one(model.embed_images(&[&pixels]))
}

fn one(mut answers: Vec<Result<Vec<f32>, groundloom_models::ModelError>>) -> Result<Vec<f32>, String> {
    match answers.pop() {
        Some(answer) => answer.map_err(|e| e.to_string()),
        None => Err("the model gave no answer".to_owned()),
    }
}
