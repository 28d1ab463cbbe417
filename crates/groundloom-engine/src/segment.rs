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
const ENGINE_VERSION: u32 = 2;

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
    /// Cuts the graph.
    ///
    /// # Errors
    /// When a stage cannot say which model weights it uses.
    pub fn cut(graph: &Graph) -> Result<Self, StageError> {
        let mut cut = Cut { graph, all: Vec::new(), of_node: vec![None; graph.nodes.len()] };
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
        let fingerprint = self.fingerprint(id, &work)?;
        let limits = node.readers.iter().map(|r| match &self.graph.nodes[*r].work {
            Work::Limit(limit) => Some(limit.rows),
            _ => None,
        });
        let enough = if node.readers.is_empty() {
            None
        } else {
            limits.collect::<Option<Vec<u64>>>().and_then(|l| l.into_iter().max())
        };
        self.all.push(Segment { node: id, work, fingerprint, enough });
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

    fn fingerprint(&self, id: NodeId, work: &SegmentWork) -> Result<Fingerprint, StageError> {
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
        Ok(Fingerprint::of(&json!({
            "engine": ENGINE_VERSION,
            "node": self.graph.nodes[id].name,
            "bases": bases,
            "stages": stages,
            "kernels": runs_models.then(kernel_class),
        })))
    }
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
