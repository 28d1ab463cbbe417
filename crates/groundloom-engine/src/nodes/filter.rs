//! A filter that knows its name: rows it drops are counted under its reason.
//!
//! DataFusion's own filters merge with their neighbours and move below other nodes, after which nobody can say which one dropped a row.

use std::{
    cmp::Ordering,
    collections::HashSet,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch},
    compute::{filter_record_batch, is_not_null, kernels::boolean::or_kleene, not},
};
use datafusion::{
    common::{DFSchemaRef, DataFusionError, Result, cast::as_boolean_array, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore},
    physical_expr::PhysicalExpr,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;
use groundloom_data::columns::ERROR;
use groundloom_stages::stage::RowFailure;

use super::needed_below;
use crate::counters::Counters;

/// The code that marks a dropped row which `keep_rejected` carries to the sink.
pub const REJECTED: &str = "rejected";

/// What a plan stores of a filter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilterSpec {
    /// The name the pipeline file gives it.
    pub name: Arc<str>,
    /// Its `type:` (`filter`, `sample`).
    pub kind: Arc<str>,
    /// Why rows are dropped, in `snake_case`.
    pub reason: Arc<str>,
    /// Whether dropped rows travel on (marked in the error column) to be written beside the data.
    pub keep_rejected: bool,
}

/// Keeps the rows for which the predicate is true, and rows that failed earlier.
#[derive(Debug, Clone)]
pub struct FilterNode {
    spec: FilterSpec,
    predicate: Expr,
    input: LogicalPlan,
}

impl FilterNode {
    /// Puts a filter on top of `input`; with [`FilterSpec::keep_rejected`] the input must have the error column.
    pub fn new(spec: FilterSpec, predicate: Expr, input: LogicalPlan) -> Self {
        Self { spec, predicate, input }
    }

    /// As a logical plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    pub(crate) fn predicate(&self) -> &Expr {
        &self.predicate
    }
}

impl PartialEq for FilterNode {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec && self.predicate == other.predicate && self.input == other.input
    }
}
impl Eq for FilterNode {}
impl Hash for FilterNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.spec.hash(state);
        self.predicate.hash(state);
        self.input.hash(state);
    }
}
impl PartialOrd for FilterNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.spec.partial_cmp(&other.spec)
    }
}

impl UserDefinedLogicalNodeCore for FilterNode {
    fn name(&self) -> &str {
        "NamedFilter"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }
    fn expressions(&self) -> Vec<Expr> {
        vec![self.predicate.clone()]
    }
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.input.schema().fields().iter().map(|f| f.name().clone()).collect()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "NamedFilter: {} ({})", self.spec.name, self.predicate)
    }
    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match (exprs.pop(), inputs.pop()) {
            (Some(predicate), Some(input)) => Ok(Self::new(self.spec.clone(), predicate, input)),
            _ => datafusion::common::plan_err!("a filter needs a predicate and one input"),
        }
    }
    fn necessary_children_exprs(&self, wanted: &[usize]) -> Option<Vec<Vec<usize>>> {
        let schema = self.input.schema();
        let own = self.predicate.column_refs().into_iter().filter_map(|c| schema.maybe_index_of_column(c));
        let error = schema.fields().iter().position(|f| f.name() == ERROR);
        Some(vec![needed_below(wanted, schema.fields().len(), own.chain(error))])
    }
}

/// The operator of [`FilterNode`].
#[derive(Debug)]
pub struct FilterExec {
    spec: FilterSpec,
    predicate: Arc<dyn PhysicalExpr>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    counters: Arc<Counters>,
}

impl FilterExec {
    pub(crate) fn try_new(
        node: &FilterNode,
        predicate: Arc<dyn PhysicalExpr>,
        input: Arc<dyn ExecutionPlan>,
    ) -> Result<Self> {
        Ok(Self::with_input(node.spec.clone(), predicate, input))
    }

    fn with_input(spec: FilterSpec, predicate: Arc<dyn PhysicalExpr>, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = Arc::new(PlanProperties::new(
            input.equivalence_properties().clone(),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            input.boundedness(),
        ));
        let counters = Arc::new(Counters::with_reason(&spec.name, &spec.kind, &spec.reason));
        Self { spec, predicate, input, properties, counters }
    }

    /// What this very operator counted so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The physical predicate, for pruning a Parquet scan below by its statistics.
    pub fn predicate(&self) -> &Arc<dyn PhysicalExpr> {
        &self.predicate
    }

    /// Whether rows that the predicate refuses leave the stream here.
    pub fn drops(&self) -> bool {
        !self.spec.keep_rejected
    }
}

impl DisplayAs for FilterExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "FilterExec: {} ({})", self.spec.name, self.predicate)
    }
}

impl ExecutionPlan for FilterExec {
    fn name(&self) -> &str {
        "NamedFilterExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }
    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        f(&self.predicate)
    }
    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(input) = children.pop() else { return datafusion::common::plan_err!("a filter needs one input") };
        Ok(Arc::new(Self::with_input(self.spec.clone(), Arc::clone(&self.predicate), input)))
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let (spec, predicate, counters) = (self.spec.clone(), Arc::clone(&self.predicate), Arc::clone(&self.counters));
        let stream = input.filter_map(move |batch| {
            let kept = batch.and_then(|b| keep(&spec, &predicate, &counters, b));
            // Empty batches say nothing to the readers behind.
            std::future::ready(match kept {
                Ok(batch) if batch.num_rows() == 0 => None,
                other => Some(other),
            })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream)))
    }
}

fn keep(
    spec: &FilterSpec,
    predicate: &Arc<dyn PhysicalExpr>,
    counters: &Counters,
    batch: RecordBatch,
) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let answer = predicate
        .evaluate(&batch)
        .and_then(|v| v.into_array(rows))
        .map_err(|e| DataFusionError::Execution(format!("stage `{}`: {e}", spec.name)))?;
    let answer: &BooleanArray = as_boolean_array(&answer)?;
    // SQL's third answer, unknown, drops a row too.
    let mut mask =
        if answer.null_count() == 0 { answer.clone() } else { arrow::compute::prep_null_mask_filter(answer) };
    let errors = batch.column_by_name(ERROR);
    if let Some(errors) = errors.filter(|e| e.null_count() < rows) {
        mask = or_kleene(&mask, &is_not_null(errors)?)?;
    }
    let passed = mask.true_count();
    counters.add_rows(rows as u64, passed as u64);
    if passed == rows {
        return Ok(batch);
    }
    if !spec.keep_rejected {
        return Ok(filter_record_batch(&batch, &mask)?);
    }
    mark(spec, &batch, &not(&mask)?)
}

/// Marks the refused rows in the error column instead of dropping them.
fn mark(spec: &FilterSpec, batch: &RecordBatch, refused: &BooleanArray) -> Result<RecordBatch> {
    let index = batch.schema().index_of(ERROR)?;
    let failures: Vec<RowFailure> = (0..batch.num_rows())
        .filter(|row| refused.value(*row))
        .map(|row| RowFailure { row, code: REJECTED, message: spec.reason.to_string() })
        .collect();
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    columns[index] =
        super::stage::with_failures(Some(Arc::clone(&columns[index])), &spec.name, &failures, None, batch.num_rows());
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}
