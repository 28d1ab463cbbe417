//! One module per command.

mod calls;
pub mod check;
pub mod detect;
pub mod diff;
pub mod embed;
pub mod index;
pub mod models;
pub mod parse;
pub mod plan;
pub mod prompt;
pub mod quarantine;
pub mod run;
pub mod schema;
pub mod stages;
pub mod why;

use std::sync::Arc;

use groundloom_engine::graph::{self, Graph};
use groundloom_formats::store::Stores;
use groundloom_spec::{SourceFile, parse_partial, render};

use crate::{arguments::PipelineFile, failure::Failure};

/// Reads and checks a pipeline file; warnings are printed.
async fn checked(command: &PipelineFile) -> Result<(Arc<SourceFile>, Graph), Failure> {
    let name = command.file.display().to_string();
    let bytes = std::fs::read(&command.file)
        .map_err(|e| Failure::Usage(format!("{name}: {e}; name a pipeline file such as pipelines/grit.yaml")))?;
    let file = match SourceFile::from_bytes(&name, bytes) {
        Ok(file) => Arc::new(file),
        Err(diagnostics) => return Err(Failure::Invalid(Arc::new(SourceFile::new(&name, "")), diagnostics)),
    };
    let (spec, mut found) = parse_partial(Arc::clone(&file), &command.params, &|name| std::env::var(name).ok());
    let graph = match &spec {
        Some(spec) => found.collect(graph::check(spec, &Stores::new()).await),
        None => None,
    };
    match graph.filter(|_| !found.has_errors()) {
        Some(graph) => {
            found.extend(graph.warnings.clone());
            if !found.is_empty() {
                say!("{}", render(&file, &found, false));
            }
            Ok((file, graph))
        }
        None => Err(Failure::Invalid(file, found)),
    }
}
