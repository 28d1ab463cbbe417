//! The kinds of components that a program offers, each described by its config struct.

use std::fmt;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a component does with rows, and thereby the section it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Makes rows.
    Source,
    /// Changes rows.
    Stage,
    /// Takes rows.
    Sink,
}

impl Role {
    /// The section of the pipeline file: `sources`, `stages`, `sinks`.
    pub fn section(self) -> &'static str {
        match self {
            Self::Source => "sources",
            Self::Stage => "stages",
            Self::Sink => "sinks",
        }
    }

    /// `source`, `stage`, `sink`.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Stage => "stage",
            Self::Sink => "sink",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.noun())
    }
}

/// The config struct of one type of component.
///
/// The struct is the component's reference: its doc comments are the `groundloom stages NAME` page
/// and the descriptions in the JSON Schema. It derives `Deserialize`, `Serialize` and `JsonSchema`
/// and has `#[serde(deny_unknown_fields)]`; no field is called `type`, `input` or `checkpoint`.
/// [`ComponentType::faults`] finds what is missing.
///
/// ```
/// use groundloom_spec::Config;
///
/// /// Keeps rows with a confident score.
/// #[derive(serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// struct MinScore {
///     /// The smallest score that is kept, from 0 to 1.
///     #[schemars(range(min = 0, max = 1))]
///     #[serde(default = "half")]
///     score: f32,
/// }
/// fn half() -> f32 { 0.5 }
///
/// impl Config for MinScore {
///     const NAME: &'static str = "min_score";
///     const SUMMARY: &'static str = "Keep rows with a confident score";
///     const EXAMPLE: &'static str = "confident: { type: min_score, score: 0.7 }";
/// }
/// # use groundloom_spec::{ComponentType, Role};
/// # assert_eq!(ComponentType::of::<MinScore>(Role::Stage).faults(), Vec::<String>::new());
/// ```
pub trait Config: DeserializeOwned + Serialize + JsonSchema {
    /// The value of `type:`.
    const NAME: &'static str;
    /// One line for `groundloom stages`, without a full stop.
    const SUMMARY: &'static str;
    /// One component as it's written in a pipeline file's section: `name: { type: …, … }`.
    const EXAMPLE: &'static str;
}

/// A type of component that a pipeline may use.
#[derive(Clone, Copy)]
pub struct ComponentType {
    /// The value of `type:`.
    pub name: &'static str,
    /// The section it belongs to.
    pub role: Role,
    /// One line about it.
    pub summary: &'static str,
    /// The JSON Schema (draft 2020-12) of its config, without `type`, `input` and `checkpoint`.
    pub schema: fn() -> serde_json::Value,
    /// One component as it's written in a pipeline file.
    pub example: &'static str,
    pub(crate) decodes: fn(&crate::Component) -> Result<(), crate::Diagnostics>,
}

impl ComponentType {
    /// The type whose config is `T`.
    pub fn of<T: Config>(role: Role) -> Self {
        Self {
            name: T::NAME,
            role,
            summary: T::SUMMARY,
            schema: schema_of::<T>,
            example: T::EXAMPLE,
            decodes: |component| component.decode::<T>().map(drop),
        }
    }
}

impl fmt::Debug for ComponentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// The schema that a value of `T` is read by.
pub(crate) fn schema_of<T: JsonSchema>() -> serde_json::Value {
    SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<T>().to_value()
}
