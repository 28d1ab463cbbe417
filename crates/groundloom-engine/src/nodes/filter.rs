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
    array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array},
    compute::{filter, filter_record_batch, is_not_null, kernels::boolean::or_kleene, not},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    common::{
        DFSchemaRef, DataFusionError, Result,
        cast::{as_boolean_array, as_int64_array, as_uint64_array},
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{
        ColumnarValue, Expr, ExprSchemable, Extension, LogicalPlan, UserDefinedLogicalNodeCore,
        expr_rewriter::unnormalize_col,
    },
    physical_expr::{
        PhysicalExpr,
        expressions::Column,
        utils::{collect_columns, reassign_expr_columns},
    },
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;
use groundloom_data::{
    columns::{ERROR, ROW_ID},
    row_id::RowId,
};
use groundloom_stages::stage::RowFailure;

use super::{
    needed_below,
    scan::{FILE_COLUMN, ROW_COLUMN},
};
use crate::{
    counters::Counters,
    drops::{DropLog, Told, told_type},
};

/// The code that marks a dropped row which `keep_rejected` carries to the sink.
pub const REJECTED: &str = "rejected";

/// The `type:` whose drops are told of with the values that decided.
const FILTER: &str = "filter";
/// The `type:` of queries; the conditions of row-wise ones are told of as those of filters are.
pub const QUERY: &str = "sql";

/// Why a row-wise query drops a row.
pub const NOT_SELECTED: &str = "not_selected";

/// Whether the ids of the rows that such a filter drops are written down. A sample's draw can be made again from the id alone.
fn is_told(kind: &str) -> bool {
    kind == FILTER || kind == QUERY
}

/// What a plan stores of a filter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilterSpec {
    /// The name the pipeline file gives it.
    pub name: Arc<str>,
    /// Its `type:` (`filter`, `sample`, `sql`).
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
    /// What it tells of the rows it drops: name and expression.
    told: Vec<(Arc<str>, Expr)>,
    input: LogicalPlan,
}

/// A filter tells at most so many values of a row.
const MOST_TOLD: usize = 4;

/// The scalars that a predicate compares: of `length(caption) between 5 and 300 and ok` these are `length(caption)` and `ok`.
fn operands(predicate: &Expr, all: &mut Vec<Expr>) {
    match predicate {
        Expr::BinaryExpr(binary) => {
            operands(&binary.left, all);
            operands(&binary.right, all);
        }
        Expr::Not(inner)
        | Expr::IsNull(inner)
        | Expr::IsNotNull(inner)
        | Expr::IsTrue(inner)
        | Expr::IsFalse(inner)
        | Expr::IsUnknown(inner)
        | Expr::IsNotTrue(inner)
        | Expr::IsNotFalse(inner)
        | Expr::IsNotUnknown(inner)
        | Expr::Negative(inner) => operands(inner, all),
        Expr::Alias(alias) => operands(&alias.expr, all),
        Expr::Cast(cast) => operands(&cast.expr, all),
        Expr::Between(between) => {
            for side in [&between.expr, &between.low, &between.high] {
                operands(side, all);
            }
        }
        Expr::InList(list) => operands(&list.expr, all),
        Expr::Like(like) | Expr::SimilarTo(like) => operands(&like.expr, all),
        // A function that answers yes or no tells little; what it looked at tells more.
        other => {
            if !other.column_refs().is_empty() && !all.contains(other) {
                all.push(other.clone());
            }
        }
    }
}

impl FilterNode {
    /// Puts a filter on top of `input`; with [`FilterSpec::keep_rejected`] the input must have the error column.
    pub fn new(spec: FilterSpec, predicate: Expr, input: LogicalPlan) -> Self {
        let mut told = Vec::new();
        // Rejected rows are kept whole.
        if is_told(&spec.kind) && !spec.keep_rejected {
            operands(&predicate, &mut told);
        }
        let schema = input.schema();
        let scalar = |e: &Expr| e.get_type(schema).is_ok_and(|t| told_type(&t).is_some());
        let mut named: Vec<(Arc<str>, Expr)> = Vec::new();
        for expr in told.into_iter().filter(scalar) {
            let name = unnormalize_col(expr.clone()).human_display().to_string();
            if named.len() < MOST_TOLD && !named.iter().any(|(taken, _)| **taken == *name) {
                named.push((name.into(), expr));
            }
        }
        let told = named;
        Self { spec, predicate, told, input }
    }

    /// The same, but of the rows that it drops only the ids are told: the values of a stage stand in the order of one filter.
    #[must_use]
    pub fn without_values(mut self) -> Self {
        self.told.clear();
        self
    }

    /// The name of its stage.
    pub fn stage(&self) -> &str {
        &self.spec.name
    }

    /// As a logical plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    pub(crate) fn predicate(&self) -> &Expr {
        &self.predicate
    }

    pub(crate) fn told(&self) -> &[(Arc<str>, Expr)] {
        &self.told
    }
}

impl PartialEq for FilterNode {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec
            && self.predicate == other.predicate
            && self.told == other.told
            && self.input == other.input
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
        std::iter::once(&self.predicate).chain(self.told.iter().map(|(_, e)| e)).cloned().collect()
    }
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.input.schema().fields().iter().map(|f| f.name().clone()).collect()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "NamedFilter: {} ({})", self.spec.name, self.predicate)
    }
    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let Some(input) = inputs.pop().filter(|_| exprs.len() == self.told.len() + 1) else {
            return datafusion::common::plan_err!("a filter needs a predicate, what it tells, and one input");
        };
        let told = self.told.iter().map(|(name, _)| Arc::clone(name)).zip(exprs.split_off(1)).collect();
        Ok(Self { spec: self.spec.clone(), predicate: exprs.remove(0), told, input })
    }
    fn necessary_children_exprs(&self, wanted: &[usize]) -> Option<Vec<Vec<usize>>> {
        let schema = self.input.schema();
        // The predicate may have been simplified to less than what is told.
        let exprs = std::iter::once(&self.predicate).chain(self.told.iter().map(|(_, e)| e));
        let own = exprs.flat_map(Expr::column_refs).filter_map(|c| schema.maybe_index_of_column(c));
        let named = |name: &str| schema.fields().iter().position(|f| f.name() == name);
        // Its id, or what it is made from, is told of every dropped row.
        let hidden = [ERROR, ROW_ID, FILE_COLUMN, ROW_COLUMN].into_iter().filter_map(named);
        Some(vec![needed_below(wanted, schema.fields().len(), own.chain(hidden))])
    }
}

/// The operator of [`FilterNode`].
#[derive(Debug)]
pub struct FilterExec {
    spec: FilterSpec,
    predicate: Arc<dyn PhysicalExpr>,
    told: Arc<[(Told, Arc<dyn PhysicalExpr>)]>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    counters: Arc<Counters>,
}

impl FilterExec {
    pub(crate) fn try_new(
        node: &FilterNode,
        predicate: Arc<dyn PhysicalExpr>,
        told: Vec<Arc<dyn PhysicalExpr>>,
        input: Arc<dyn ExecutionPlan>,
    ) -> Result<Self> {
        let schema = input.schema();
        let mut all = Vec::with_capacity(told.len());
        for ((what, _), expr) in node.told.iter().zip(told) {
            if let Some(data_type) = told_type(&expr.data_type(&schema)?) {
                all.push((Told { stage: Arc::clone(&node.spec.name), what: Arc::clone(what), data_type }, expr));
            }
        }
        Ok(Self::with_input(node.spec.clone(), predicate, all.into(), input))
    }

    fn with_input(
        spec: FilterSpec,
        predicate: Arc<dyn PhysicalExpr>,
        told: Arc<[(Told, Arc<dyn PhysicalExpr>)]>,
        input: Arc<dyn ExecutionPlan>,
    ) -> Self {
        let properties = Arc::new(PlanProperties::new(
            input.equivalence_properties().clone(),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            input.boundedness(),
        ));
        let counters = Arc::new(Counters::with_reason(&spec.name, &spec.kind, &spec.reason));
        Self { spec, predicate, told, input, properties, counters }
    }

    /// What it tells of the rows it drops.
    pub fn told(&self) -> impl Iterator<Item = Told> + '_ {
        self.told.iter().map(|(told, _)| told.clone())
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
        let (predicate, told) = (Arc::clone(&self.predicate), Arc::clone(&self.told));
        Ok(Arc::new(Self::with_input(self.spec.clone(), predicate, told, input)))
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let log = context.session_config().get_extension::<DropLog>().filter(|_| is_told(&self.spec.kind));
        let input = self.input.execute(partition, context)?;
        let dropped = log.map(|log| Dropped::new(log, &self.spec, &self.told, &input.schema())).transpose()?;
        let computed = Computed::new(&self.predicate, &self.told, &input.schema())?;
        let (spec, predicate, counters) = (self.spec.clone(), Arc::clone(&self.predicate), Arc::clone(&self.counters));
        let stream = input.filter_map(move |batch| {
            let kept = batch.and_then(|b| keep(&spec, &predicate, computed.as_ref(), &counters, dropped.as_ref(), b));
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
    computed: Option<&Computed>,
    counters: &Counters,
    dropped: Option<&Dropped>,
    batch: RecordBatch,
) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    // What fails on rows that the rest of the predicate shields is computed as the predicate orders it.
    let values = computed.and_then(|c| c.values(&batch).ok());
    let answer = match (computed, &values) {
        (Some(computed), Some(values)) => computed.answer(&batch, values),
        _ => predicate.evaluate(&batch),
    };
    let answer = answer
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
        if let Some(dropped) = dropped {
            dropped.tell(&batch, values.as_deref(), &not(&mask)?)?;
        }
        return Ok(filter_record_batch(&batch, &mask)?);
    }
    mark(spec, &batch, &not(&mask)?)
}

/// A predicate over values that are computed before it: those that are told of dropped rows. `length(caption) between 12 and 40` by itself asks for the length twice, and telling it a
/// third time.
struct Computed {
    values: Vec<Arc<dyn PhysicalExpr>>,
    /// The input with the values behind it.
    schema: SchemaRef,
    predicate: Arc<dyn PhysicalExpr>,
}

impl Computed {
    /// `None` where nothing but columns is told.
    fn new(
        predicate: &Arc<dyn PhysicalExpr>,
        told: &[(Told, Arc<dyn PhysicalExpr>)],
        input: &Schema,
    ) -> Result<Option<Self>> {
        if told.iter().all(|(_, expr)| expr.is::<Column>()) {
            return Ok(None);
        }
        let mut fields = input.fields().to_vec();
        for (what, expr) in told {
            fields.push(Arc::new(Field::new(what.what.as_ref(), expr.data_type(input)?, true)));
        }
        let first = input.fields().len();
        let place = |expr: Arc<dyn PhysicalExpr>| {
            Ok(match told.iter().position(|(_, told)| told.as_ref() == expr.as_ref()) {
                Some(i) => {
                    let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(fields[first + i].name(), first + i));
                    Transformed::new(column, true, TreeNodeRecursion::Jump)
                }
                None => Transformed::no(expr),
            })
        };
        let predicate = Arc::clone(predicate).transform_down(place)?.data;
        let values = told.iter().map(|(_, expr)| Arc::clone(expr)).collect();
        Ok(Some(Self { values, schema: Arc::new(Schema::new(fields)), predicate }))
    }

    fn values(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.values.iter().map(|e| e.evaluate(batch).and_then(|v| v.into_array(batch.num_rows()))).collect()
    }

    fn answer(&self, batch: &RecordBatch, values: &[ArrayRef]) -> Result<ColumnarValue> {
        let columns = batch.columns().iter().chain(values).cloned().collect();
        self.predicate.evaluate(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

/// How a value that is told is made.
struct Value {
    data_type: DataType,
    /// From the whole input.
    of_all: Arc<dyn PhysicalExpr>,
    /// From [`Dropped::columns`] alone.
    of_refused: Arc<dyn PhysicalExpr>,
}

/// Tells the rows that a filter drops.
struct Dropped {
    log: Arc<DropLog>,
    stage: Arc<str>,
    reason: Arc<str>,
    /// The columns that say which row it is.
    identity: Vec<usize>,
    /// The columns that values are made from: pictures beside them are not copied.
    columns: Vec<usize>,
    told: Vec<Value>,
}

impl Dropped {
    fn new(
        log: Arc<DropLog>,
        spec: &FilterSpec,
        told: &[(Told, Arc<dyn PhysicalExpr>)],
        input: &Schema,
    ) -> Result<Self> {
        let named = |i: &usize| [ROW_ID, FILE_COLUMN, ROW_COLUMN].contains(&input.field(*i).name().as_str());
        let identity = (0..input.fields().len()).filter(named).collect();
        let mut columns: Vec<usize> = told.iter().flat_map(|(_, e)| collect_columns(e)).map(|c| c.index()).collect();
        columns.sort_unstable();
        columns.dedup();
        let narrow = input.project(&columns)?;
        let value = |(what, e): &(Told, Arc<dyn PhysicalExpr>)| {
            let of_refused = reassign_expr_columns(Arc::clone(e), &narrow)?;
            Ok(Value { data_type: what.data_type.clone(), of_all: Arc::clone(e), of_refused })
        };
        let told = told.iter().map(value).collect::<Result<Vec<_>>>()?;
        Ok(Self { log, stage: Arc::clone(&spec.name), reason: Arc::clone(&spec.reason), identity, columns, told })
    }

    /// `computed` = the values that are told, of all rows, where they are known.
    fn tell(&self, batch: &RecordBatch, computed: Option<&[ArrayRef]>, dropped: &BooleanArray) -> Result<()> {
        let rows = filter_record_batch(&batch.project(&self.identity)?, dropped)?;
        let ids: ArrayRef = match (rows.column_by_name(ROW_ID), rows.column_by_name(FILE_COLUMN)) {
            (Some(ids), _) => Arc::clone(ids),
            (None, Some(files)) => {
                let places = rows
                    .column_by_name(ROW_COLUMN)
                    .ok_or_else(|| DataFusionError::Internal("rows without place".into()))?;
                let (files, places) = (as_uint64_array(files)?, as_int64_array(places)?);
                Arc::new(RowId::column_of_rows(files.values(), places.values()))
            }
            // A row without identity cannot be asked for.
            (None, None) => return Ok(()),
        };
        let mut refused: Option<RecordBatch> = None;
        let mut values = Vec::with_capacity(self.told.len());
        for (i, Value { data_type, of_all, of_refused }) in self.told.iter().enumerate() {
            if let Some(value) = computed.and_then(|all| all.get(i)) {
                values.push(filter(value, dropped)?);
                continue;
            }
            // Numbers are copied more cheaply than the texts they were made from, so values are made of all rows and then picked.
            let of_all = of_all.evaluate(batch).and_then(|v| v.into_array(batch.num_rows()));
            if let Ok(value) = of_all {
                values.push(filter(&value, dropped)?);
                continue;
            }
            if refused.is_none() {
                refused = Some(filter_record_batch(&batch.project(&self.columns)?, dropped)?);
            }
            let Some(rows) = &refused else { continue };
            // What the rest of the predicate shielded may fail on the rows that it refused, too: then there is no value to tell.
            let value = of_refused.evaluate(rows).and_then(|v| v.into_array(rows.num_rows()));
            values.push(value.unwrap_or_else(|_| new_null_array(data_type, rows.num_rows())));
        }
        self.log.tell(&self.stage, &self.reason, &ids, &values)
    }
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
