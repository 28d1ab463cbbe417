//! The first rows that reach a node, without running the pipeline: for previews and estimates.

use std::{num::NonZeroUsize, sync::Arc};

use arrow::{compute::concat_batches, record_batch::RecordBatch};
use datafusion::common::DataFusionError;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Base, Plan, RunOptions, Runner, Work};
use crate::{error::EngineError, graph::NodeId, nodes::stage::visible_schema};

/// Input that is read only to count its rows.
const COUNTED_BYTES: u64 = 1 << 30;

impl Plan {
    /// Up to `rows` of the good rows that arrive at the node `name`, in order, and how many rows its source says it has.
    ///
    /// The stages above it work on these rows; nothing is kept.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] when a set stage (join, aggregate, `limit`) lies in between, whose rows exist only after a run; and whatever the stages fail with.
    pub async fn first_rows(&self, name: &str, rows: usize) -> Result<(RecordBatch, Option<u64>), EngineError> {
        let nodes = &self.graph.nodes;
        let node = nodes.iter().position(|n| n.name.as_ref() == name).ok_or_else(|| {
            EngineError::Unsupported(format!("there is no node `{name}`; look at `groundloom plan` for their names"))
        })?;
        let (source, chain) = self.chain_to(node)?;
        let Work::Source { discovery, .. } = &nodes[source].work else {
            return Err(EngineError::Internal("a chain without source".into()));
        };
        let total = discovery.shards.iter().map(|s| s.rows).sum::<Option<u64>>();
        let (mut found, mut have): (Vec<RecordBatch>, usize) = (Vec::new(), 0);
        if rows > 0 {
            self.each_batch(source, &chain, &mut |batch| {
                let batch = batch.slice(0, batch.num_rows().min(rows - have));
                have += batch.num_rows();
                found.push(batch);
                have < rows
            })
            .await?;
        }
        let schema = match found.first() {
            Some(batch) => batch.schema(),
            None => Arc::clone(&nodes[nodes[node].inputs[0]].schema),
        };
        Ok((concat_batches(&schema, &found).map_err(DataFusionError::from)?, total))
    }

    /// How many rows arrive at the node `name`, counted where that is cheap: at most a gibibyte of input, and no stages but filters, samples and row-wise SQL in between.
    ///
    /// # Errors
    /// As [`Plan::first_rows`].
    pub async fn count_rows(&self, name: &str) -> Result<Option<u64>, EngineError> {
        let nodes = &self.graph.nodes;
        let Some(node) = nodes.iter().position(|n| n.name.as_ref() == name) else { return Ok(None) };
        let (source, chain) = self.chain_to(node)?;
        let Work::Source { discovery, .. } = &nodes[source].work else { return Ok(None) };
        let bytes: u64 = discovery.shards.iter().map(|s| s.bytes).sum();
        if bytes > COUNTED_BYTES || chain.iter().any(|n| matches!(nodes[*n].work, Work::Stage(_))) {
            return Ok(None);
        }
        let mut total = 0;
        self.each_batch(source, &chain, &mut |batch| {
            total += batch.num_rows() as u64;
            true
        })
        .await?;
        Ok(Some(total))
    }

    /// Shows the good rows behind a chain to `see`, batch by batch, until it has seen enough.
    async fn each_batch(
        &self,
        source: NodeId,
        chain: &[NodeId],
        see: &mut (dyn FnMut(RecordBatch) -> bool + Send),
    ) -> Result<(), EngineError> {
        let Work::Source { discovery, .. } = &self.graph.nodes[source].work else {
            return Err(EngineError::Internal("a chain without source".into()));
        };
        let folder = tempfile::tempdir().map_err(|e| EngineError::io(std::env::temp_dir(), e))?;
        let options = RunOptions {
            threads: NonZeroUsize::MIN,
            memory_bytes: None,
            stop: CancellationToken::new(),
            telemetry: Arc::default(),
            clients: Arc::default(),
        };
        let runner = Runner::new(self, &options, Arc::new(|_| {}), folder.path().to_owned())?;
        for shard in discovery.shards.iter() {
            let plan = runner.rows_plan(Base::Source(source), chain, vec![shard.clone()], None).await?;
            let physical = runner.context.state().create_physical_plan(&plan).await?;
            let mut stream = physical.execute(0, runner.context.task_ctx())?;
            while let Some(batch) = stream.next().await.transpose()? {
                if !see(good_rows(&batch)?) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The source above a node, and the row-wise nodes between the two.
    fn chain_to(&self, node: NodeId) -> Result<(NodeId, Vec<NodeId>), EngineError> {
        let nodes = &self.graph.nodes;
        let (mut at, mut chain) = (node, Vec::new());
        loop {
            let Some(input) = nodes[at].inputs.first().copied() else {
                return Err(EngineError::Unsupported(format!("`{}` is a source", nodes[at].name)));
            };
            match &nodes[input].work {
                Work::Source { .. } => {
                    chain.reverse();
                    return Ok((input, chain));
                }
                Work::Stage(_) | Work::Filter(_) | Work::Sample(_) | Work::Sql { row_wise: true, .. } => {
                    chain.push(input)
                }
                _ => {
                    return Err(EngineError::Unsupported(format!(
                        "`{}` works on all rows at once, so that the rows behind it exist only after a run",
                        nodes[input].name
                    )));
                }
            }
            at = input;
        }
    }
}

/// The rows of a batch without an error, and without the error column.
fn good_rows(batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
    let visible = visible_schema(&batch.schema());
    let good = match batch.column_by_name(groundloom_data::columns::ERROR) {
        Some(errors) => {
            let good =
                arrow::compute::is_null(errors).and_then(|mask| arrow::compute::filter_record_batch(batch, &mask));
            good.map_err(DataFusionError::from)?
        }
        None => batch.clone(),
    };
    let places: Vec<usize> = visible.fields().iter().filter_map(|f| good.schema().index_of(f.name()).ok()).collect();
    Ok(good.project(&places).map_err(DataFusionError::from)?)
}
