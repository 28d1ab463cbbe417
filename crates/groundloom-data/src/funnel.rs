//! What became of the rows: counts per stage, added up over the committed tasks of a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The counts of one stage of a pipeline.
///
/// `rows_in = rows_out + dropped()`; failed rows stay in the stream (they carry their error to the sink), so they are part of `rows_out`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageCounts {
    /// The name the pipeline file gives the stage.
    pub stage: String,
    /// Its `type:`.
    pub kind: String,
    /// Rows that reached the stage, failed ones included.
    pub rows_in: u64,
    /// Rows that left it, failed ones included.
    pub rows_out: u64,
    /// Rows that this very stage sent to quarantine, by code.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, u64>,
    /// Why rows were dropped here (a `filter`'s `reason`), or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Counts that the stage itself keeps of smaller things: chunks, boxes, expressions (`phrase_outside_vocabulary`, `below_min_score`, …).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, u64>,
}

impl StageCounts {
    /// Rows dropped by the stage.
    pub fn dropped(&self) -> u64 {
        self.rows_in.saturating_sub(self.rows_out)
    }

    /// Adds another task's counts of the same stage.
    pub fn add(&mut self, other: &StageCounts) {
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        for (code, n) in &other.failed {
            *self.failed.entry(code.clone()).or_default() += n;
        }
        for (what, n) in &other.counts {
            *self.counts.entry(what.clone()).or_default() += n;
        }
    }
}
