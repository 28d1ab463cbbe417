//! `groundloom prompt`: what language models are asked, and the store of their answers.

use std::io::Write;

use groundloom_engine::run::Plan;
use groundloom_llm::{Archived, LlmError, Store};
use serde_json::json;

use crate::{
    arguments::{Archive, Preview, Prompt},
    commands::{
        calls::{first_requests, generating},
        checked,
    },
    failure::Failure,
};

pub async fn run(command: Prompt) -> Result<(), Failure> {
    match command {
        Prompt::Preview(command) => preview(command).await,
        Prompt::Prices => Ok(write!(std::io::stdout().lock(), "{}", groundloom_llm::BUILT_IN_PRICES)?),
        Prompt::Export(Archive { file, store }) => {
            let done = Store::open_read_only(&store).and_then(|s| s.export(&file)).map_err(failed)?;
            say!("{} answers written to {}", done.written, file.display());
            Ok(())
        }
        Prompt::Import(Archive { file, store }) => {
            let store = Store::open(&store).map_err(failed)?;
            let Archived { written, known } = store.import(&file).await.map_err(failed)?;
            say!("{written} answers taken into {}, {known} were there already", store.folder().display());
            Ok(())
        }
    }
}

fn failed(error: LlmError) -> Failure {
    Failure::Failed(error.to_string())
}

/// One JSON line a row: the body as it would be sent, and what it may cost.
async fn preview(command: Preview) -> Result<(), Failure> {
    let (file, graph) = checked(&command.pipeline).await?;
    let plan = Plan::new(graph, false).map_err(|e| Failure::of(&file, e))?;
    let named = |name: &str| command.stage.as_deref().is_none_or(|wanted| wanted == name);
    let Some((node, generate)) = generating(&plan).find(|(node, _)| named(&node.name)) else {
        let names: Vec<&str> = generating(&plan).map(|(node, _)| node.name.as_ref()).collect();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Failure::Usage(format!("there is no such `generate` stage in {}; there is {there}", file.name)));
    };
    let (requests, _) = first_requests(&plan, node, generate, command.rows).await.map_err(|e| Failure::of(&file, e))?;
    let namespace = generate.namespace().map_err(|e| Failure::Failed(e.to_string()))?;
    let mut out = std::io::stdout().lock();
    for request in requests {
        let line = match request {
            Ok(request) => {
                let asked = match generate.local {
                    Some(_) => generate.asked(),
                    None => format!("{}{}", generate.url.trim_end_matches('/'), request.api.path()),
                };
                let estimate = generate.estimate(&request).map_err(failed)?;
                json!({
                    "stage": node.name,
                    "url": asked,
                    "request_hash": request.hash(&namespace).to_string(),
                    "prompt_tokens": estimate.prompt_tokens,
                    "max_output_tokens": estimate.most_completion_tokens,
                    "max_cost": estimate.most_cost,
                    "body": if command.full { request.body() } else { request.digest_body() },
                })
            }
            Err(message) => json!({ "stage": node.name, "error": message }),
        };
        writeln!(out, "{line}")?;
    }
    Ok(())
}
