//! Cuts a graph into segments: maximal chains of row-wise stages between results that must be whole or that several nodes read.
//!
//! DataFusion plans are trees; without the cut a shared branch would run once per reader.

use std::fmt;

use groundloom_formats::Reader;
use groundloom_stages::stage::StageError;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    graph::{Graph, NodeId, Work},
    nodes::shuffle::late_columns,
};

/// Changes whenever the engine would write other bytes for the same pipeline, or lays out its work folder differently.
const ENGINE_VERSION: u32 = 3;

/// What decides the bytes of a segment or a task: 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of a canonical JSON value.
    pub fn of(value: &Value) -> Self {
        Self(format!("{:032x}", xxh3_128(value.to_string().as_bytes())))
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Index of a segment in [`Segments::all`].
pub type SegmentId = usize;

/// What a segment reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The shards of a source.
    Source(NodeId),
    /// The parts that another segment left.
    Segment(SegmentId),
}

/// What a segment does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentWork {
    /// Row by row, one task per shard of the base.
    Rows {
        /// What is read.
        base: Base,
        /// The row-wise nodes in order; empty where rows are only written.
        chain: Vec<NodeId>,
        /// Where rows go; `None` = they are kept for other segments.
        sink: Option<NodeId>,
    },
    /// All rows at once, in one task.
    Set {
        /// The set stage.
        node: NodeId,
        /// What it reads: the node's inputs in order.
        inputs: Vec<Base>,
    },
}

/// A unit of planning and reuse.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The node whose rows it leaves: the last of the chain, the set stage, or the sink.
    pub node: NodeId,
    /// What it does.
    pub work: SegmentWork,
    /// Decides its bytes, together with a shard.
    pub fingerprint: Fingerprint,
    /// What the fingerprint is of.
    pub identity: Value,
    /// Rows after which nobody needs more, where all readers are `limit`s.
    pub enough: Option<u64>,
}

/// The segments of a pipeline, each behind those it reads.
#[derive(Debug, Clone)]
pub struct Segments {
    /// In working order.
    pub all: Vec<Segment>,
}

impl Segments {
    /// Cuts the graph; `limited` = for a run under a memory limit.
    ///
    /// # Errors
    /// When a stage cannot say which model weights it uses.
    pub fn cut(graph: &Graph, limited: bool) -> Result<Self, StageError> {
        let mut cut = Cut { graph, limited, all: Vec::new(), of_node: vec![None; graph.nodes.len()] };
        for id in 0..graph.nodes.len() {
            cut.node(id)?;
        }
        Ok(Self { all: cut.all })
    }

    /// The segments that a segment reads, directly or not, itself last, each once, in working order.
    pub fn upstream(&self, id: SegmentId) -> Vec<SegmentId> {
        let mut wanted = vec![false; self.all.len()];
        wanted[id] = true;
        for i in (0..=id).rev().filter(|i| wanted[*i]).collect::<Vec<_>>() {
            self.mark(i, &mut wanted);
        }
        (0..=id).filter(|i| wanted[*i]).collect()
    }

    fn mark(&self, id: SegmentId, wanted: &mut [bool]) {
        wanted[id] = true;
        for base in self.bases(id) {
            if let Base::Segment(input) = base {
                self.mark(input, wanted);
            }
        }
    }

    /// What a segment reads.
    pub fn bases(&self, id: SegmentId) -> Vec<Base> {
        match &self.all[id].work {
            SegmentWork::Rows { base, .. } => vec![*base],
            SegmentWork::Set { inputs, .. } => inputs.clone(),
        }
    }
}

struct Cut<'a> {
    graph: &'a Graph,
    limited: bool,
    all: Vec<Segment>,
    /// The segment that leaves a node's rows, for nodes whose rows are kept.
    of_node: Vec<Option<SegmentId>>,
}

impl Cut<'_> {
    fn node(&mut self, id: NodeId) -> Result<(), StageError> {
        let node = &self.graph.nodes[id];
        let work = if let Work::Sink(_) = node.work {
            let (base, chain) = self.chain_to(node.inputs[0]);
            SegmentWork::Rows { base, chain, sink: Some(id) }
        } else if node.is_set() {
            let inputs = node.inputs.iter().map(|i| self.chain_to(*i).0).collect();
            SegmentWork::Set { node: id, inputs }
        } else if self.is_kept(id) {
            let (base, chain) = self.chain_to(id);
            SegmentWork::Rows { base, chain, sink: None }
        } else {
            return Ok(());
        };
        let identity = self.identity(id, &work)?;
        let fingerprint = Fingerprint::of(&identity);
        let limits = node.readers.iter().map(|r| match &self.graph.nodes[*r].work {
            Work::Limit(limit) => Some(limit.rows),
            _ => None,
        });
        let enough = if node.readers.is_empty() {
            None
        } else {
            limits.collect::<Option<Vec<u64>>>().and_then(|l| l.into_iter().max())
        };
        self.all.push(Segment { node: id, work, fingerprint, identity, enough });
        self.of_node[id] = Some(self.all.len() - 1);
        Ok(())
    }

    /// Whether a row-wise node's rows must be whole, or are worth keeping, before its readers start.
    fn is_kept(&self, id: NodeId) -> bool {
        let node = &self.graph.nodes[id];
        let set_reader = node.readers.iter().any(|r| self.graph.nodes[*r].is_set());
        match &node.work {
            // Parquet is read again more cheaply than it is copied, unless rows are fetched from it one by one; other sources must first part their good rows from the bad.
            Work::Source { discovery, .. } => {
                let fetched = || {
                    node.readers.iter().any(|r| matches!(self.graph.nodes[*r].work, Work::Shuffle(_)))
                        && !late_columns(&node.schema).is_empty()
                };
                set_reader && (matches!(discovery.reader, Reader::Rows(_)) || fetched())
            }
            Work::Sink(_) => false,
            _ => set_reader || node.readers.len() > 1 || node.checkpoint,
        }
    }

    /// The nearest kept ancestor (or source) of `id`, itself included, and the nodes between it and `id`.
    fn chain_to(&self, id: NodeId) -> (Base, Vec<NodeId>) {
        let mut chain = Vec::new();
        let mut at = id;
        loop {
            if let Some(segment) = self.of_node[at] {
                chain.reverse();
                return (Base::Segment(segment), chain);
            }
            if matches!(self.graph.nodes[at].work, Work::Source { .. }) {
                chain.reverse();
                return (Base::Source(at), chain);
            }
            chain.push(at);
            at = self.graph.nodes[at].inputs[0];
        }
    }

    fn identity(&self, id: NodeId, work: &SegmentWork) -> Result<Value, StageError> {
        let (bases, nodes): (Vec<Base>, Vec<NodeId>) = match work {
            SegmentWork::Rows { base, chain, sink } => (vec![*base], chain.iter().copied().chain(*sink).collect()),
            SegmentWork::Set { node, inputs } => (inputs.clone(), vec![*node]),
        };
        let bases: Vec<Value> = bases
            .iter()
            .map(|base| match base {
                Base::Segment(segment) => json!(self.all[*segment].fingerprint),
                Base::Source(source) => {
                    let node = &self.graph.nodes[*source];
                    json!({ "source": node.name, "kind": node.kind, "config": node.config, "columns": node.schema.to_string() })
                }
            })
            .collect();
        let mut runs_models = false;
        let mut stages = Vec::new();
        for node in nodes.iter().map(|n| &self.graph.nodes[*n]) {
            let mut stage = json!({ "name": node.name, "kind": node.kind, "config": node.config });
            if let Work::Stage(work) = &node.work {
                let models = work.models()?;
                runs_models |= !models.is_empty();
                stage["version"] = json!(work.version());
                stage["window"] = json!(work.window());
                stage["models"] = json!(models);
            }
            stages.push(stage);
        }
        let mut identity = json!({
            "engine": ENGINE_VERSION,
            "node": self.graph.nodes[id].name,
            "bases": bases,
            "stages": stages,
            "kernels": runs_models.then(kernel_class),
        });
        // The CPU's class stands there already, and data sets that it made stay up to date.
        if let Some(hardware) = self.graph.devices.hardware().filter(|_| runs_models) {
            identity["hardware"] = json!(hardware);
        }
        // Under a limit other operators do a query's work, and leave its rows in another order.
        if self.limited && matches!((work, &self.graph.nodes[id].work), (SegmentWork::Set { .. }, Work::Sql { .. })) {
            identity["limited"] = json!(true);
        }
        Ok(identity)
    }
}

/// What became different between two identities of segments that end in the same node, in words.
pub fn changes(before: &Value, now: &Value) -> Vec<String> {
    let mut told = Vec::new();
    if before["engine"] != now["engine"] {
        told.push("another version of Groundloom lays out its work otherwise".to_owned());
    }
    if before["kernels"] != now["kernels"] && before["kernels"].is_string() && now["kernels"].is_string() {
        told.push(format!("the models ran on {}, and this processor is {}", before["kernels"], now["kernels"]));
    }
    if before["hardware"] != now["hardware"] {
        let shown = |of: &Value| of.as_str().unwrap_or("the CPU").to_owned();
        let (before, now) = (shown(&before["hardware"]), shown(&now["hardware"]));
        told.push(format!("the models ran on {before}, and run on {now} now"));
    }
    if before["limited"] != now["limited"] {
        let (had, has) = if now["limited"] == true { ("no", "a") } else { ("a", "no") };
        told.push(format!("it was planned for {had} memory limit, and there is {has} --memory now"));
    }
    let list = |of: &Value, key: &str| of[key].as_array().cloned().unwrap_or_default();
    let (stages, old_stages) = (list(now, "stages"), list(before, "stages"));
    let named = |stages: &[Value], name: &Value| stages.iter().find(|s| s["name"] == *name).cloned();
    for stage in &stages {
        let name = stage["name"].as_str().unwrap_or_default();
        match named(&old_stages, &stage["name"]) {
            None => told.push(format!("`{name}` is new here")),
            Some(old) if old["kind"] != stage["kind"] => told.push(format!("`{name}` was of the type {}", old["kind"])),
            Some(old) => {
                told.extend(config_changes(name, &old["config"], &stage["config"]));
                if old["version"] != stage["version"] || old["window"] != stage["window"] {
                    told.push(format!("`{name}` works otherwise in this version of Groundloom"));
                }
                if old["models"] != stage["models"] {
                    told.push(format!("the weights of `{name}` are others"));
                }
            }
        }
    }
    for old in old_stages.iter().filter(|old| named(&stages, &old["name"]).is_none()) {
        told.push(format!("`{}` is gone", old["name"].as_str().unwrap_or_default()));
    }
    let order = |stages: &[Value]| stages.iter().map(|s| s["name"].clone()).collect::<Vec<_>>();
    if told.is_empty() && order(&stages) != order(&old_stages) {
        told.push("the stages stand in another order".to_owned());
    }
    let (bases, old_bases) = (list(now, "bases"), list(before, "bases"));
    for (i, base) in bases.iter().enumerate() {
        match (base.as_object(), old_bases.get(i)) {
            (Some(source), Some(old)) if old.is_object() => {
                let name = source["source"].as_str().unwrap_or_default();
                told.extend(config_changes(name, &old["config"], &base["config"]));
                if old["columns"] != base["columns"] {
                    told.push(format!("the source `{name}` has other columns"));
                }
            }
            (None, Some(old)) if old == base => {}
            _ => told.push("what it reads is made anew".to_owned()),
        }
    }
    if told.is_empty() {
        told.push("what it reads is made anew".to_owned());
    }
    told.dedup();
    told
}

/// `key` of `name` was this and is that.
fn config_changes(name: &str, before: &Value, now: &Value) -> Vec<String> {
    let (Some(old), Some(new)) = (before.as_object(), now.as_object()) else { return Vec::new() };
    let shown = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "not set".to_owned(),
        Some(value) => {
            let text = value.to_string();
            if text.chars().count() > 60 { format!("{}…", text.chars().take(60).collect::<String>()) } else { text }
        }
    };
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let differ = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
    differ.map(|key| format!("`{key}` of `{name}` was {}, is {}", shown(old.get(key)), shown(new.get(key)))).collect()
}

/// The vector extensions that decide the last bits of f32 sums on this machine: finer than the detector's own kernels need, as candle's matrix products sum in another order with AVX-512 than with AVX2.
pub fn kernel_class() -> String {
    #[cfg(target_arch = "x86_64")]
    let extension = if std::arch::is_x86_feature_detected!("avx512f") {
        "avx512"
    } else if std::arch::is_x86_feature_detected!("fma") {
        "avx2"
    } else {
        "sse2"
    };
    #[cfg(not(target_arch = "x86_64"))]
    let extension = "base";
    format!("{}-{extension}", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_by_their_names() {
        let segment =
            |stages: Value| json!({ "engine": 3, "node": "out", "bases": ["aa"], "stages": stages, "kernels": null });
        let stage = |name: &str, config: Value| json!({ "name": name, "kind": "filter", "config": config });
        let before = segment(json!([stage("long", json!({ "where": "n > 3" })), stage("gone", json!({}))]));
        let now =
            segment(json!([stage("long", json!({ "where": "n > 4", "reason": "short" })), stage("new", json!({}))]));
        assert_eq!(
            changes(&before, &now),
            [
                "`reason` of `long` was not set, is \"short\"",
                "`where` of `long` was \"n > 3\", is \"n > 4\"",
                "`new` is new here",
                "`gone` is gone",
            ]
        );
        let mut base = before.clone();
        base["bases"] = json!(["bb"]);
        assert_eq!(changes(&before, &base), ["what it reads is made anew"]);
        let mut other = before.clone();
        other["hardware"] = json!("cuda (NVIDIA H100)");
        assert_eq!(changes(&before, &other), ["the models ran on the CPU, and run on cuda (NVIDIA H100) now"]);
        assert_eq!(changes(&other, &before), ["the models ran on cuda (NVIDIA H100), and run on the CPU now"]);
        let mut limited = before.clone();
        limited["limited"] = json!(true);
        assert_eq!(changes(&before, &limited), ["it was planned for no memory limit, and there is a --memory now"]);
    }
}
