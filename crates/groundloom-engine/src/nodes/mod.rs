//! The operators that Groundloom adds to DataFusion: row-wise stages, filters that count, set stages that sort keys only, and scans of shards.
//!
//! Every node is plain data; what is alive (models, readers, counters) is reached when a task executes the plan.

pub mod dedup;
pub mod filter;
pub mod rules;
pub mod scan;
pub mod set;
pub mod shuffle;
pub mod stage;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::Result,
    execution::context::QueryPlanner,
    logical_expr::{LogicalPlan, UserDefinedLogicalNode, physical_planning_context::PhysicalPlanningContext},
    physical_plan::ExecutionPlan,
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};

/// Plans DataFusion's own nodes and ours.
#[derive(Debug)]
pub struct EngineQueryPlanner;

#[async_trait]
impl QueryPlanner for EngineQueryPlanner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(NodePlanner)])
            .create_physical_plan(plan, session)
            .await
    }
}

#[derive(Debug)]
struct NodePlanner;

#[async_trait]
impl ExtensionPlanner for NodePlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let Some(node) = node.as_any().downcast_ref::<stage::StageNode>() {
            return Ok(Some(Arc::new(stage::StageExec::try_new(node, Arc::clone(&physical_inputs[0]))?)));
        }
        if let Some(node) = node.as_any().downcast_ref::<filter::FilterNode>() {
            let predicate =
                planner.create_physical_expr(node.predicate(), logical_inputs[0].schema(), session, context)?;
            let told = node
                .told()
                .iter()
                .map(|(_, e)| planner.create_physical_expr(e, logical_inputs[0].schema(), session, context))
                .collect::<Result<Vec<_>>>()?;
            let input = Arc::clone(&physical_inputs[0]);
            return Ok(Some(Arc::new(filter::FilterExec::try_new(node, predicate, told, input)?)));
        }
        Ok(None)
    }
}

/// The column indices of `input` that a node needs below it: those its readers want and those it works on itself.
///
/// `wanted` are output indices; the first `inputs` outputs are the input's columns in order.
fn needed_below(wanted: &[usize], inputs: usize, own: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut needed: Vec<usize> = wanted.iter().copied().filter(|i| *i < inputs).chain(own).collect();
    needed.sort_unstable();
    needed.dedup();
    needed
}
