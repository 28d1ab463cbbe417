//! What `tests/fuzz` runs on any bytes; here it runs on the corpus.
#![allow(missing_docs, reason = "nothing here is for users")]

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ComponentType, Config, Diagnostics, Role, Secret, SourceFile, parse_partial, render};

/// A config with a key of each kind of schema.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Any {
    #[schemars(length(min = 1))]
    path: String,
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    min_score: Option<f64>,
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    rows: Option<u64>,
    #[serde(default)]
    api_key: Option<Secret>,
    #[serde(default)]
    form: Option<Form>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Form {
    Named(Named),
    Size { width: u32, height: u32 },
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Named {
    Plain,
    Packed,
}

impl Config for Any {
    const NAME: &'static str = "jsonl";
    const SUMMARY: &'static str = "Any";
    const EXAMPLE: &'static str = "rows: { type: jsonl, path: rows.jsonl }";
}

/// A pipeline file: read, checked against types and graph, decoded, and its findings shown. The first line is also a `--set`.
pub fn pipeline(bytes: &[u8]) {
    let Ok(file) = SourceFile::from_bytes("p.yaml", bytes.to_vec()) else { return };
    let file = Arc::new(file);
    let types = [Role::Source, Role::Stage, Role::Sink].map(ComponentType::of::<Any>);
    let first = file.text.lines().next().unwrap_or_default();
    let set = [("input".to_owned(), first.to_owned())];
    for overrides in [&set[..], &[]] {
        let (spec, mut findings) =
            parse_partial(Arc::clone(&file), overrides, &|name| (name.len() % 2 == 0).then(|| name.to_owned()));
        if let Some(spec) = &spec {
            findings.collect(spec.check_types(&types));
            findings.collect(spec.check_graph());
            for component in spec.components() {
                let decoded: Result<Any, Diagnostics> = component.decode();
                findings.collect(decoded);
            }
            findings.collect(spec.decode_settings::<Any>());
        }
        for color in [true, false] {
            let shown = render(&file, &findings, color);
            assert_eq!(shown.is_empty(), findings.is_empty());
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpus.rs"]
#[allow(clippy::unwrap_used)]
mod corpus;

#[cfg(test)]
mod tests {
    use super::corpus::run;

    #[test]
    fn every_corpus_is_read() {
        run("pipeline", super::pipeline);
    }
}
