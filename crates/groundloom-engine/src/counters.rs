//! Counts of one operator in one attempt of one task.
//!
//! They live in the operator, so that a failed attempt takes its counts with it; the committed attempt writes them into its ledger entry.

use std::{collections::BTreeMap, sync::Mutex};

use groundloom_data::funnel::StageCounts;
use groundloom_stages::stage::Outcome;

/// Counts that an operator adds to while it runs.
#[derive(Debug)]
pub struct Counters(Mutex<StageCounts>);

impl Counters {
    /// Zero counts for the stage `name` of type `kind`.
    pub fn new(name: &str, kind: &str) -> Self {
        Self(Mutex::new(StageCounts { stage: name.to_owned(), kind: kind.to_owned(), ..StageCounts::default() }))
    }

    /// The same with the reason for which rows are dropped.
    pub fn with_reason(name: &str, kind: &str, reason: &str) -> Self {
        let counters = Self::new(name, kind);
        counters.with(|c| c.reason = reason.to_owned());
        counters
    }

    fn with(&self, change: impl FnOnce(&mut StageCounts)) {
        // A poisoned lock means a panic elsewhere, which ends the task anyway: counts stay usable.
        change(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// Adds a window that a stage worked on.
    pub fn add(&self, rows_in: u64, rows_out: u64, outcome: &Outcome) {
        let mut failed: BTreeMap<&str, u64> = BTreeMap::new();
        for failure in &outcome.failures {
            *failed.entry(failure.code).or_default() += 1;
        }
        self.with(|c| {
            c.rows_in += rows_in;
            c.rows_out += rows_out;
            for (code, n) in failed {
                *c.failed.entry(code.to_owned()).or_default() += n;
            }
            for (what, n) in &outcome.counts {
                *c.counts.entry((*what).to_owned()).or_default() += n;
            }
        });
    }

    /// Adds rows that came and rows that went on.
    pub fn add_rows(&self, rows_in: u64, rows_out: u64) {
        self.with(|c| {
            c.rows_in += rows_in;
            c.rows_out += rows_out;
        });
    }

    /// Adds rows that failed, by code.
    pub fn add_failed(&self, code: &str, rows: u64) {
        self.with(|c| *c.failed.entry(code.to_owned()).or_default() += rows);
    }

    /// The counts so far.
    pub fn snapshot(&self) -> StageCounts {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
