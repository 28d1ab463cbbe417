//! DataFusion sessions set up for reproducible work.

use std::sync::Arc;

use datafusion::{
    common::Result,
    execution::{
        SessionStateBuilder,
        context::SessionContext,
        memory_pool::FairSpillPool,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    physical_plan::{ExecutionPlan, sorts::sort::SortExec},
    prelude::SessionConfig,
};

use crate::nodes::{EngineQueryPlanner, rules, stage::Resources};

/// Rows in a batch of DataFusion's own operators; part of what decides windows of rows, so it never changes with the machine.
pub const BATCH_ROWS: usize = 8192;

/// What the program takes when it sorts nothing: itself, its threads, batches on their way.
const OWN_BYTES: usize = 64 << 20;

/// A pool below this merges too few runs at a time to be of use.
const LEAST_POOL: usize = 48 << 20;

/// The pool with which the whole process stays near a limit: operators take up to 1.9 times what they tell the pool of (batches in the making, rows in two forms
/// while they are merged; measured by `benches/measure.py memory_limit`). A limit below about 150 MiB can't be kept.
fn pool_bytes(limit: usize) -> usize {
    (limit.saturating_sub(OWN_BYTES) / 100 * 58).max(LEAST_POOL.min(limit))
}

/// Memory and disk that set stages share; `memory_bytes` = what the process should stay near.
///
/// # Errors
/// When the spill folder cannot be made.
pub fn runtime(memory_bytes: Option<usize>, spill: &std::path::Path) -> Result<Arc<RuntimeEnv>> {
    let mut builder = RuntimeEnvBuilder::new().with_temp_file_path(spill);
    if let Some(bytes) = memory_bytes {
        builder = builder.with_memory_pool(Arc::new(FairSpillPool::new(pool_bytes(bytes))));
    }
    builder.build_arc()
}

/// Under a memory limit sorts must give up rows while there is still room to merge them: where the keys are most of the row, merging takes as much again. All sorts of `plan` may
/// be under way at once.
pub fn leave_room_to_merge(config: &mut SessionConfig, plan: &Arc<dyn ExecutionPlan>, memory_bytes: usize) {
    fn sorts(plan: &Arc<dyn ExecutionPlan>) -> usize {
        usize::from(plan.is::<SortExec>()) + plan.children().into_iter().map(sorts).sum::<usize>()
    }
    config.options_mut().execution.sort_spill_reservation_bytes =
        pool_bytes(memory_bytes) / 100 * 45 / sorts(plan).max(1);
}

/// A session in which one partition of a plan is exactly one shard: nothing is repartitioned, stolen or reordered; `limited` = set stages work under a memory limit.
pub fn context(runtime: Arc<RuntimeEnv>, resources: Option<Arc<Resources>>, limited: bool) -> SessionContext {
    let mut config = SessionConfig::new()
        .with_batch_size(BATCH_ROWS)
        // One partition also where DataFusion would use more: only then do sums, groups and joins come out in one order.
        .with_target_partitions(1)
        .with_round_robin_repartition(false)
        .with_repartition_file_scans(false)
        .set_bool("datafusion.execution.enable_file_stream_work_stealing", false)
        .set_bool("datafusion.sql_parser.enable_ident_normalization", false);
    if let Some(resources) = resources {
        config = config.with_extension(resources);
    }
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .with_physical_optimizer_rules(rules::rules(limited))
        .with_query_planner(Arc::new(EngineQueryPlanner))
        .build();
    SessionContext::new_with_state(state)
}
