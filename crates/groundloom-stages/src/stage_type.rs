//! The table of stages: everything that a pipeline file can name in `type:` of a row-wise stage.

use std::sync::Arc;

use groundloom_spec::{Component, ComponentType, Config, Diagnostics, Role};

use crate::{
    Caption, Classify, Dialogue, DropAbstractChunks, DropContained, Embed, ExpandExpressions, FilterBoxes, Generate,
    Ground, ImageProperties, Instruct, Match, NounChunks, Parse, Perplexity, Similarity, Transcribe,
    stage::{Stage, StageError},
};

/// A stage, and its config with every default filled in: what fingerprints and plans hold.
pub type Decoded = (Arc<dyn Stage>, serde_json::Value);

/// A type of stage: its reference page and how its config becomes a [`Stage`].
#[derive(Debug, Clone, Copy)]
pub struct StageType {
    /// Name, summary, JSON Schema and example.
    pub component: ComponentType,
    /// Reads a component of the pipeline file.
    ///
    /// # Errors
    /// [`Diagnostics`] for unknown keys, wrong types and values out of range, all at once.
    pub decode: fn(&Component) -> Result<Decoded, Diagnostics>,
    /// Makes the stage again from the config that [`StageType::decode`] gave, on another machine for example.
    ///
    /// # Errors
    /// [`StageError::Other`] when the config was not made by this version of this stage.
    pub rebuild: fn(&serde_json::Value) -> Result<Arc<dyn Stage>, StageError>,
}

impl StageType {
    /// The type whose config struct is `T`.
    pub fn of<T: Config + Stage + 'static>() -> Self {
        Self { component: ComponentType::of::<T>(Role::Stage), decode: decode::<T>, rebuild: rebuild::<T> }
    }
}

fn decode<T: Config + Stage + 'static>(component: &Component) -> Result<Decoded, Diagnostics> {
    let stage: T = component.decode()?;
    match serde_json::to_value(&stage) {
        Ok(config) => Ok((Arc::new(stage), config)),
        Err(error) => {
            let mut diagnostics = Diagnostics::new();
            diagnostics.push(component.diagnostic("", "config_not_serialisable", error.to_string()));
            Err(diagnostics)
        }
    }
}

fn rebuild<T: Config + Stage + 'static>(config: &serde_json::Value) -> Result<Arc<dyn Stage>, StageError> {
    match serde_json::from_value::<T>(config.clone()) {
        Ok(stage) => Ok(Arc::new(stage)),
        Err(error) => Err(StageError::Other(format!(
            "expected the config of a `{}` stage, found one that cannot be read ({error}); plan the pipeline again",
            T::NAME
        ))),
    }
}

/// Every stage of this crate: first those of a GrIT pipeline in its order, then those that make instruction data.
pub fn stage_types() -> Vec<StageType> {
    vec![
        StageType::of::<ImageProperties>(),
        StageType::of::<NounChunks>(),
        StageType::of::<Parse>(),
        StageType::of::<DropAbstractChunks>(),
        StageType::of::<Ground>(),
        StageType::of::<FilterBoxes>(),
        StageType::of::<ExpandExpressions>(),
        StageType::of::<DropContained>(),
        StageType::of::<Embed>(),
        StageType::of::<Similarity>(),
        StageType::of::<Classify>(),
        StageType::of::<Caption>(),
        StageType::of::<Transcribe>(),
        StageType::of::<Match>(),
        StageType::of::<Perplexity>(),
        StageType::of::<Generate>(),
        StageType::of::<Dialogue>(),
        StageType::of::<Instruct>(),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use groundloom_spec::{SourceFile, describe, parse};
    use serde_json::json;

    use super::*;

    fn decode(kind: &StageType, yaml: &str) -> Result<Decoded, Diagnostics> {
        let text = format!(
            "name: t\nsources:\n  s: {{ type: jsonl, path: x }}\nstages:\n  {yaml}\nsinks:\n  o: {{ type: jsonl, path: y }}\n"
        );
        let spec = parse(SourceFile::new("t.yaml", text), &[], &|_| None).unwrap();
        (kind.decode)(&spec.stages[0])
    }

    #[test]
    fn every_stage_documents_itself_and_its_example_is_read() {
        for kind in stage_types() {
            assert_eq!(kind.component.faults(), Vec::<String>::new(), "{}", kind.component.name);
            assert!(describe(&kind.component).contains(kind.component.summary));
            let (stage, config) = decode(&kind, kind.component.example).unwrap();
            let again = (kind.rebuild)(&config).unwrap();
            assert_eq!(format!("{stage:?}"), format!("{again:?}"), "{}", kind.component.name);
        }
    }

    #[test]
    fn the_canonical_config_holds_every_default() {
        let kinds = stage_types();
        let kind = kinds.iter().find(|k| k.component.name == "filter_boxes").unwrap();
        let (_, config) = decode(kind, "c: { type: filter_boxes, min_score: 0.45 }").unwrap();
        assert_eq!(
            config,
            json!({"boxes": "boxes", "chunks": "chunks", "min_score": 0.45, "nms_iou": 0.5, "min_area": 0.0, "max_boxes": null})
        );
        assert!((kind.rebuild)(&json!({"bxes": 1})).unwrap_err().to_string().contains("plan the pipeline again"));
    }

    /// The pipelines of the repository; the engine's own stages (`filter`) are not in this table.
    #[test]
    fn the_shipped_pipelines_are_read() {
        let kinds = stage_types();
        for name in ["grit.yaml", "grit-boxes.yaml"] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines").join(name);
            let text = std::fs::read_to_string(path).unwrap();
            let spec = parse(SourceFile::new(name, text), &[], &|_| None).unwrap();
            assert!(spec.warnings.is_empty(), "{}", spec.warnings);
            let decoded = spec
                .stages
                .iter()
                .filter_map(|stage| Some((stage, kinds.iter().find(|k| k.component.name == stage.kind)?)));
            let read: Vec<&str> =
                decoded.map(|(stage, kind)| (kind.decode)(stage).map(|_| kind.component.name).unwrap()).collect();
            assert_eq!(read.len(), spec.stages.len() - 1, "{name}: {read:?}");
        }
    }

    #[test]
    fn bad_configs_are_refused_with_their_place() {
        let kinds = stage_types();
        let cases = [
            ("noun_chunks", "c: { type: noun_chunks, txt: caption }", "txt"),
            ("noun_chunks", "c: { type: noun_chunks, max_chars: 0 }", "max_chars"),
            ("filter_boxes", "c: { type: filter_boxes, min_score: 45 }", "min_score"),
            ("drop_contained", "c: { type: drop_contained, form: loadr }", "loader"),
            ("drop_abstract_chunks", "c: { type: drop_abstract_chunks, words: time }", "words"),
            ("ground", "c: { type: ground, model: '' }", "model"),
        ];
        for (name, yaml, mentioned) in cases {
            let kind = kinds.iter().find(|k| k.component.name == name).unwrap();
            let error = decode(kind, yaml).map(drop).unwrap_err().to_string();
            assert!(error.contains(mentioned), "{error}");
        }
    }
}
