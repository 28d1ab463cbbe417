//! The graph that a pipeline file describes, and the types its components name.

use std::collections::{BTreeMap, HashMap};

use crate::component_type::{ComponentType, Role};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::pipeline::{Component, Spec};
use crate::source::Span;
use crate::spelling::{did_you_mean, excerpt, listed};

/// The components in an order in which each comes after its inputs; as near to the order of the file
/// as that allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// Sources, stages and sinks.
    pub nodes: Vec<GraphNode>,
    /// Components that nothing reads.
    pub warnings: Diagnostics,
}

/// A component and what it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphNode {
    /// The component's name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The names of the components it reads, in the order of `input:`.
    pub inputs: Vec<String>,
}

impl Spec {
    /// Checks that every component's `type:` is one of `types` and that its config fits the type's
    /// schema.
    ///
    /// # Errors
    /// All findings; an unknown type comes with the nearest known one, or with the section it
    /// belongs to.
    pub fn check_types(&self, types: &[ComponentType]) -> Result<(), Diagnostics> {
        let mut diagnostics = Diagnostics::new();
        for component in self.components().filter(|component| !component.kind.is_empty()) {
            let known = types.iter().find(|known| known.role == component.role && known.name == component.kind);
            match known {
                Some(known) => diagnostics.extend(component.check(&(known.schema)())),
                None => diagnostics.push(unknown_type(component, types)),
            }
        }
        diagnostics.into_result(())
    }

    /// Checks who reads whom, and gives the components in order.
    ///
    /// A stage or sink without `input:` reads the component above it: the stage before it, or for
    /// the first stage the source; a sink reads the last stage, or without stages the source.
    ///
    /// # Errors
    /// All findings: inputs that don't exist or are sinks, cycles, and a missing `input:` where
    /// several sources could be meant.
    pub fn check_graph(&self) -> Result<Graph, Diagnostics> {
        let mut diagnostics = Diagnostics::new();
        let components: Vec<&Component> = self.components().collect();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        for (index, component) in components.iter().enumerate() {
            by_name.entry(&component.name).or_insert(index);
        }
        let inputs: Vec<Vec<usize>> = components
            .iter()
            .enumerate()
            .map(|(index, component)| {
                if component.inputs.is_empty() {
                    self.above(index, component, &mut diagnostics)
                } else {
                    named(component, &components, &by_name, &mut diagnostics)
                }
            })
            .collect();
        let order = in_order(&inputs);
        if order.len() < components.len() {
            cycles(&components, &inputs, &order, &mut diagnostics);
        }
        let warnings = if diagnostics.has_errors() { Diagnostics::new() } else { unread(&components, &inputs) };
        let nodes = order
            .into_iter()
            .map(|index| GraphNode {
                name: components[index].name.clone(),
                role: components[index].role,
                inputs: inputs[index].iter().map(|input| components[*input].name.clone()).collect(),
            })
            .collect();
        diagnostics.into_result(Graph { nodes, warnings })
    }

    /// What a component without `input:` reads, as an index into the components.
    fn above(&self, index: usize, component: &Component, diagnostics: &mut Diagnostics) -> Vec<usize> {
        let (sources, stages) = (self.sources.len(), self.stages.len());
        match component.role {
            Role::Source => Vec::new(),
            Role::Stage if index > sources => vec![index - 1],
            Role::Sink if stages > 0 => vec![sources + stages - 1],
            Role::Stage | Role::Sink if sources == 1 => vec![0],
            Role::Stage | Role::Sink => {
                // No source at all is reported by `parse`.
                if sources > 1 {
                    let names = listed(self.sources.iter().map(|source| source.name.as_str()), "or");
                    diagnostics.push(
                        component
                            .diagnostic(
                                "",
                                "ambiguous_input",
                                format!("{} reads the one above, and there are {sources} sources", component.title()),
                            )
                            .label("which source?")
                            .help(format!("add input: {names}")),
                    );
                }
                Vec::new()
            }
        }
    }
}

fn unknown_type(component: &Component, types: &[ComponentType]) -> Diagnostic {
    let noun = component.role.noun();
    let kind = &component.kind;
    let diagnostic = component
        .diagnostic("type", "unknown_type", format!("there is no {noun} of type {}", excerpt(kind)))
        .label(format!("unknown {noun} type"));
    if let Some(other) = types.iter().find(|other| other.name == kind) {
        return diagnostic.help(format!(
            "`{kind}` is a {}; put it under `{}`",
            other.role.noun(),
            other.role.section()
        ));
    }
    let known = types.iter().filter(|known| known.role == component.role).map(|known| known.name);
    let what = format!("the types of {} are", component.role.section());
    match did_you_mean(kind, &what, known) {
        Some(help) => diagnostic.help(help),
        None => diagnostic,
    }
}

/// What the names in `input:` mean, as indices into the components.
fn named(
    component: &Component,
    components: &[&Component],
    by_name: &HashMap<&str, usize>,
    diagnostics: &mut Diagnostics,
) -> Vec<usize> {
    let mut inputs = Vec::new();
    for (name, span) in &component.inputs {
        match by_name.get(name.as_str()) {
            Some(index) if components[*index].role == Role::Sink => {
                diagnostics.push(sink_as_input(component, name, *span));
            }
            Some(index) => inputs.push(*index),
            None => {
                let known = components
                    .iter()
                    .filter(|other| other.role != Role::Sink && other.name != component.name)
                    .map(|other| other.name.as_str());
                let diagnostic = Diagnostic::error(
                    "unknown_input",
                    format!("{} reads {}, which is no source or stage", component.title(), excerpt(name)),
                );
                let diagnostic = diagnostic.at(*span).label("unknown name");
                diagnostics.push(match did_you_mean(name, "it may read", known) {
                    Some(help) => diagnostic.help(help),
                    None => diagnostic,
                });
            }
        }
    }
    inputs
}

fn sink_as_input(component: &Component, name: &str, span: Span) -> Diagnostic {
    Diagnostic::error("sink_as_input", format!("{} reads `{name}`, which is a sink", component.title()))
        .at(span)
        .label("a sink gives no rows")
        .help("read what the sink reads")
}

/// The components, each after its inputs; those on a cycle and behind one are left out. Of several
/// that are ready, the first of the file comes first.
fn in_order(inputs: &[Vec<usize>]) -> Vec<usize> {
    let mut readers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, inputs) in inputs.iter().enumerate() {
        for input in inputs {
            readers.entry(*input).or_default().push(index);
        }
    }
    let mut waiting: Vec<usize> = inputs.iter().map(Vec::len).collect();
    let mut ready: std::collections::BTreeSet<usize> = (0..inputs.len()).filter(|index| waiting[*index] == 0).collect();
    let mut order = Vec::with_capacity(inputs.len());
    while let Some(index) = ready.pop_first() {
        order.push(index);
        for reader in readers.get(&index).into_iter().flatten() {
            waiting[*reader] -= 1;
            if waiting[*reader] == 0 {
                ready.insert(*reader);
            }
        }
    }
    order
}

/// Reports each cycle once. What is left out of the order lies on a cycle or behind one, so walking
/// up its inputs always ends in one.
fn cycles(components: &[&Component], inputs: &[Vec<usize>], order: &[usize], diagnostics: &mut Diagnostics) {
    let mut done = vec![false; components.len()];
    for index in order {
        done[*index] = true;
    }
    let ordered = done.clone();
    for start in 0..components.len() {
        let mut path: Vec<usize> = Vec::new();
        let mut at = start;
        while !done[at] {
            done[at] = true;
            path.push(at);
            // An input that is on no cycle is in the order, and there is another.
            match inputs[at].iter().find(|input| !ordered[**input]) {
                Some(input) => at = *input,
                None => break,
            }
        }
        let Some(from) = path.iter().position(|index| *index == at) else {
            continue;
        };
        // The path runs against the flow of rows.
        let mut cycle: Vec<usize> = path[from..].to_vec();
        cycle.reverse();
        let first = cycle.iter().enumerate().min_by_key(|(_, index)| **index).map_or(0, |(at, _)| at);
        cycle.rotate_left(first);
        diagnostics.push(cycle_found(components, &cycle));
    }
}

fn cycle_found(components: &[&Component], cycle: &[usize]) -> Diagnostic {
    let mut names: Vec<String> = cycle.iter().map(|index| format!("`{}`", components[*index].name)).collect();
    let first = components[cycle[0]];
    if cycle.len() == 1 {
        return first
            .diagnostic("input", "cycle", format!("{} reads itself", first.title()))
            .label("its own name")
            .help("let `input` name another component");
    }
    names.push(names[0].clone());
    first
        .diagnostic("input", "cycle", format!("stages read each other in a circle: {}", names.join(" → ")))
        .label("closes the circle")
        .help("let one of them read something else")
}

/// Sources and stages whose rows go nowhere.
fn unread(components: &[&Component], inputs: &[Vec<usize>]) -> Diagnostics {
    let mut read = vec![false; components.len()];
    for input in inputs.iter().flatten() {
        read[*input] = true;
    }
    components
        .iter()
        .zip(read)
        .filter(|(component, read)| !read && component.role != Role::Sink)
        .map(|(component, _)| {
            Diagnostic::warning("unread", format!("nothing reads {}, so it will not run", component.title()))
                .at(component.name_span)
                .help(format!("add input: {} where its rows are wanted", component.name))
        })
        .collect()
}
