//! Everything that can stand behind `type:` in a pipeline file.

use std::sync::{Arc, LazyLock};

use groundloom_formats::{Sink, Source, source::source_types};
use groundloom_spec::{Component, ComponentType, Diagnostics, Role};
use groundloom_stages::{stage::Stage, stage_types};
use serde_json::Value;

use crate::{
    index_sink::sink_types,
    relation::{Dedup, Filter, Limit, Sample, Shuffle, Sql},
};

/// A component whose config has been read.
#[derive(Debug, Clone)]
pub enum Decoded {
    /// A source.
    Source(Arc<dyn Source>),
    /// A row-wise stage.
    Stage(Arc<dyn Stage>),
    /// `filter`.
    Filter(Filter),
    /// `sample`.
    Sample(Sample),
    /// `limit`.
    Limit(Limit),
    /// `dedup`.
    Dedup(Dedup),
    /// `shuffle`.
    Shuffle(Shuffle),
    /// `sql`.
    Sql(Sql),
    /// A sink.
    Sink(Arc<dyn Sink>),
}

/// All component types, sources first, then stages, then sinks, each group by name.
pub fn component_types() -> &'static [ComponentType] {
    static ALL: LazyLock<Vec<ComponentType>> = LazyLock::new(|| {
        let mut all: Vec<ComponentType> = source_types().into_iter().map(|t| t.component).collect();
        all.extend(stage_types().into_iter().map(|t| t.component));
        all.extend([
            ComponentType::of::<Filter>(Role::Stage),
            ComponentType::of::<Sample>(Role::Stage),
            ComponentType::of::<Limit>(Role::Stage),
            ComponentType::of::<Dedup>(Role::Stage),
            ComponentType::of::<Shuffle>(Role::Stage),
            ComponentType::of::<Sql>(Role::Stage),
        ]);
        all.extend(sink_types().into_iter().map(|t| t.component));
        all.sort_by_key(|t| (rank(t.role), t.name));
        all
    });
    &ALL
}

fn rank(role: Role) -> u8 {
    match role {
        Role::Source => 0,
        Role::Stage => 1,
        Role::Sink => 2,
    }
}

/// Reads a component's config: the decoded form, and the canonical one for fingerprints.
///
/// # Errors
/// What is wrong with it, all at once, each with its place.
pub fn decode(component: &Component) -> Result<(Decoded, Value), Diagnostics> {
    let kind = component.kind.as_str();
    match component.role {
        Role::Source => {
            if let Some(t) = source_types().into_iter().find(|t| t.component.name == kind) {
                return (t.decode)(component).map(|(source, config)| (Decoded::Source(source), config));
            }
        }
        Role::Sink => {
            if let Some(t) = sink_types().into_iter().find(|t| t.component.name == kind) {
                return (t.decode)(component).map(|(sink, config)| (Decoded::Sink(sink), config));
            }
        }
        Role::Stage => {
            if let Some(t) = stage_types().into_iter().find(|t| t.component.name == kind) {
                return (t.decode)(component).map(|(stage, config)| (Decoded::Stage(stage), config));
            }
            return match kind {
                "filter" => relation(component, Decoded::Filter),
                "sample" => relation(component, Decoded::Sample),
                "limit" => relation(component, Decoded::Limit),
                "dedup" => relation(component, Decoded::Dedup),
                "shuffle" => relation(component, Decoded::Shuffle),
                "sql" => relation(component, Decoded::Sql),
                _ => Err(unknown(component)),
            };
        }
    }
    Err(unknown(component))
}

fn relation<T: groundloom_spec::Config>(
    component: &Component,
    wrap: fn(T) -> Decoded,
) -> Result<(Decoded, Value), Diagnostics> {
    let config: T = component.decode()?;
    let canonical = serde_json::to_value(&config).unwrap_or(Value::Null);
    Ok((wrap(config), canonical))
}

// `Spec::check_types` has said so already, with a suggestion; this keeps the match total.
fn unknown(component: &Component) -> Diagnostics {
    Diagnostics::from(component.diagnostic("type", "unknown_type", format!("unknown type `{}`", component.kind)))
}
