//! How close two vectors are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a score means.
///
/// Inside, everything is a distance `d` that is smaller for closer vectors: the negated product for `ip` and `cosine`
/// (over vectors made unit length when they were added), the squared Euclidean distance for `l2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Inner product; a larger score is closer.
    Ip,
    /// Cosine of the angle, in [-1, 1]; a larger score is closer.
    Cosine,
    /// Squared Euclidean distance, as FAISS and hnswlib return it; a smaller score is closer.
    L2,
}

impl Metric {
    /// The score that a person sees for an inner distance.
    pub fn score(self, distance: f32) -> f32 {
        match self {
            Self::Ip | Self::Cosine => -distance,
            Self::L2 => distance,
        }
    }

    /// The inner distance of a score.
    pub fn distance(self, score: f32) -> f32 {
        self.score(score)
    }

    /// Its name in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Cosine => "cosine",
            Self::L2 => "l2",
        }
    }
}

impl std::str::FromStr for Metric {
    type Err = crate::IndexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ip" => Ok(Self::Ip),
            "cosine" => Ok(Self::Cosine),
            "l2" => Ok(Self::L2),
            other => Err(crate::IndexError::BadSetting {
                setting: "metric",
                expected: "`ip`, `cosine` or `l2`",
                found: format!("{other:?}"),
            }),
        }
    }
}
