//! `settings:` of a pipeline file.

use groundloom_models::DeviceChoice;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a pipeline runs, as far as it does not depend on the machine; and on which devices.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How many rows may fail before the run stops with exit code 3: a share (`"1%"`) or a number (`"500"`). Judged in shard order, so the
    /// verdict does not depend on timing; a share is judged from the first 1,000 rows on. Default: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bad: Option<MaxBad>,
    /// Input bytes of one unit of work, in MiB. Smaller shards lose less at a kill. Default: 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub shard_mib: Option<u64>,
    /// Where models compute: `cpu`, `cuda:0` or `metal:0` (the numbers of a machine's GPUs), or `auto` for the first GPU that is there,
    /// else the CPU. Several GPUs share the rows, each with every model; they must be of one model. What is not there, or not built in
    /// (`cargo build --release --features cuda`, or `metal`), is refused before any work. GPUs give other last bits than CPUs: the kind of
    /// device is part of what decides whether a data set is up to date. The embedded detector, GGUF files and the English parser stay on
    /// the CPU. Default: `[cpu]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceName>,
}

impl Settings {
    /// Input bytes of one shard.
    pub fn shard_bytes(&self) -> u64 {
        self.shard_mib.unwrap_or(64) << 20
    }
}

/// A device as a pipeline file names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct DeviceName(pub DeviceChoice);

impl TryFrom<String> for DeviceName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.trim().parse().map(Self)
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.0.to_string()
    }
}

/// A limit of failed rows: a number, or a share of the rows seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum MaxBad {
    /// At most so many rows.
    Rows(u64),
    /// At most this share, from 0 to 1.
    Share(f64),
}

/// A share is no verdict on fewer rows than this.
const ROWS_FOR_A_SHARE: u64 = 1_000;

impl MaxBad {
    /// Whether `bad` failed rows among the first `rows` are too many; `last` when no more rows come.
    pub fn exceeded(self, bad: u64, rows: u64, last: bool) -> bool {
        match self {
            Self::Rows(limit) => bad > limit,
            Self::Share(share) => (last || rows >= ROWS_FOR_A_SHARE) && bad as f64 > share * rows as f64,
        }
    }
}

impl TryFrom<String> for MaxBad {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("expected a share like \"1%\" or a number of rows like \"500\", found \"{text}\"");
        match text.trim().strip_suffix('%') {
            Some(percent) => match percent.trim().parse::<f64>() {
                Ok(p) if (0.0..=100.0).contains(&p) => Ok(Self::Share(p / 100.0)),
                _ => Err(wrong()),
            },
            None => text.trim().parse().map(Self::Rows).map_err(|_| wrong()),
        }
    }
}

impl From<MaxBad> for String {
    fn from(limit: MaxBad) -> Self {
        match limit {
            MaxBad::Rows(rows) => rows.to_string(),
            MaxBad::Share(share) => format!("{}%", share * 100.0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn limits_are_read_and_judged() {
        let share = MaxBad::try_from("1%".to_owned()).unwrap();
        assert!(!share.exceeded(20, 999, false), "too few rows for a share");
        assert!(share.exceeded(20, 999, true));
        assert!(share.exceeded(11, 1_000, false));
        assert!(!share.exceeded(10, 1_000, false));
        let rows = MaxBad::try_from("500".to_owned()).unwrap();
        assert!(!rows.exceeded(500, 500, true) && rows.exceeded(501, 10_000, false));
        for wrong in ["", "%", "-1", "101%", "many", "1.5"] {
            assert!(MaxBad::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
