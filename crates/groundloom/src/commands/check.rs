//! `groundloom check`.

use crate::{arguments::PipelineFile, commands::checked, failure::Failure};

pub async fn run(command: PipelineFile) -> Result<(), Failure> {
    let (file, graph) = checked(&command).await?;
    say!("{}: fine ({} nodes)", file.name, graph.nodes.len());
    Ok(())
}
