//! `groundloom index`.

pub mod arguments;
mod build;
mod encoders;
mod query;
mod report;
mod serve;

use std::path::Path;

use groundloom_index::{Index, IndexError};

use crate::{arguments::Machine, commands::index::arguments::IndexCommand, failure::Failure};

pub async fn run(command: IndexCommand, machine: Machine) -> Result<(), Failure> {
    // The pool of the index and of whatever else computes on all threads.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(machine.threads.get()).build_global();
    match command {
        IndexCommand::Build(command) => build::build(&command),
        IndexCommand::Import(command) => build::import(&command),
        IndexCommand::Add(command) => build::add(&command),
        IndexCommand::Delete(command) => build::delete(&command),
        IndexCommand::Merge(command) => build::merge(&command),
        IndexCommand::Compact(command) => build::compact(&command.index),
        IndexCommand::Query(command) => query::run(&command),
        IndexCommand::Eval(command) => report::eval(&command),
        IndexCommand::Stats(command) => report::stats(&command),
        IndexCommand::Dedup(command) => report::dedup(&command),
        IndexCommand::Export(command) => report::export(&command),
        IndexCommand::Serve(command) => serve::run(command, machine).await,
    }
}

fn open(folder: &Path) -> Result<Index, Failure> {
    Index::open(folder).map_err(failure)
}

/// Wrong questions and settings are the user's, the rest is the work's.
fn failure(error: IndexError) -> Failure {
    match error {
        IndexError::Io { .. } | IndexError::Damaged { .. } | IndexError::Locked { .. } | IndexError::BadRows { .. } => {
            Failure::Failed(error.to_string())
        }
        other => Failure::Usage(other.to_string()),
    }
}
