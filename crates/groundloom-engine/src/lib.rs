#![doc = include_str!("../README.md")]

pub mod catalogue;
mod content_ids;
pub mod contract;
pub mod counters;
pub mod diff;
pub mod drops;
pub mod error;
pub mod finalise;
pub mod generation;
pub mod graph;
pub mod index_sink;
pub mod joining;
pub mod ledger;
pub mod mirror;
pub mod nodes;
pub mod plan;
pub mod predicate;
pub mod provenance;
pub mod quarantine;
pub mod relation;
pub mod retries;
pub mod row_ids;
pub mod run;
pub mod run_record;
pub mod segment;
pub mod session;
pub mod settings;
pub mod task;
pub mod telemetry;

pub use error::EngineError;
