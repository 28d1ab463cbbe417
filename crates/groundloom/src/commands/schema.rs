//! `groundloom schema`.

use std::io::Write;

use groundloom_engine::{catalogue::component_types, settings::Settings};
use groundloom_spec::pipeline_schema;

use crate::failure::Failure;

pub fn run() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &pipeline_schema::<Settings>(component_types()))?;
    writeln!(out)?;
    Ok(())
}
