//! A row-wise stage as a DataFusion operator.

use std::{
    cmp::Ordering,
    collections::HashSet,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, StringBuilder, StructArray, UInt64Array, new_null_array},
    buffer::NullBuffer,
    compute::{filter_record_batch, take},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use datafusion::{
    common::{DFSchema, DFSchemaRef, DataFusionError, Result, runtime::SpawnedTask, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use groundloom_data::columns::{ERROR, column, error_type};
use groundloom_llm::Clients;
use groundloom_models::ModelPool;
use groundloom_stages::stage::{Outcome, RowFailure, RowWise, Stage};

use crate::{
    counters::Counters,
    telemetry::{StageMeter, Telemetry},
};

/// What the operators need besides data, handed to plans through `SessionConfig::with_extension`.
pub struct Resources {
    /// The models of this process.
    pub models: Arc<ModelPool>,
    /// The clients of language model servers of this process.
    pub clients: Arc<Clients>,
    /// Windows of one stage that may be in work at the same time, per task.
    pub windows_in_flight: usize,
    /// Where stages say how fast they are.
    pub telemetry: Arc<Telemetry>,
}

/// What a plan stores of a stage: plain data.
#[derive(Debug, Clone)]
pub struct StageSpec {
    /// The name the pipeline file gives it.
    pub name: Arc<str>,
    /// Its `type:`.
    pub kind: Arc<str>,
    /// Its canonical config: identity of the node, and what another process rebuilds it from.
    pub config: Arc<str>,
    /// The decoded config.
    pub stage: Arc<dyn Stage>,
}

/// Appends a stage's columns (replacing those of the same name) and its errors to every row.
#[derive(Debug, Clone)]
pub struct StageNode {
    spec: StageSpec,
    input: LogicalPlan,
    schema: DFSchemaRef,
    outputs: Vec<FieldRef>,
}

impl StageNode {
    /// Puts `spec` on top of `input`, which must not be null in its schema rule.
    ///
    /// # Errors
    /// A plan error when the stage's columns do not fit the input.
    pub fn try_new(spec: StageSpec, input: LogicalPlan) -> Result<Self> {
        let visible = visible_schema(input.schema().as_arrow());
        let outputs =
            spec.stage.outputs(&visible).map_err(|e| DataFusionError::Plan(format!("stage {}: {e}", spec.name)))?;
        let arrow = output_schema(input.schema().as_arrow(), &outputs);
        let mut fields = Vec::with_capacity(arrow.fields().len());
        for (i, field) in arrow.fields().iter().enumerate() {
            let qualifier =
                if i < input.schema().fields().len() { input.schema().qualified_field(i).0.cloned() } else { None };
            fields.push((qualifier, Arc::clone(field)));
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?);
        Ok(Self { spec, input, schema, outputs })
    }

    /// As a logical plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }
}

/// The columns that stages see: all but the error.
pub fn visible_schema(schema: &Schema) -> Schema {
    Schema::new_with_metadata(
        schema.fields().iter().filter(|f| f.name() != ERROR).cloned().collect::<Vec<_>>(),
        schema.metadata().clone(),
    )
}

/// The columns after a stage: the input's in their order (replaced ones in place), new ones behind them, the error where it was or last.
pub fn output_schema(input: &Schema, outputs: &[FieldRef]) -> Schema {
    let mut fields: Vec<FieldRef> = input.fields().iter().cloned().collect();
    for field in outputs {
        match fields.iter().position(|f| f.name() == field.name()) {
            Some(i) => fields[i] = Arc::clone(field),
            None => fields.push(Arc::clone(field)),
        }
    }
    if !fields.iter().any(|f| f.name() == ERROR) {
        fields.push(column(ERROR, error_type()));
    }
    Schema::new_with_metadata(fields, input.metadata().clone())
}

impl PartialEq for StageNode {
    fn eq(&self, other: &Self) -> bool {
        self.spec.name == other.spec.name && self.spec.config == other.spec.config && self.input == other.input
    }
}
impl Eq for StageNode {}
impl Hash for StageNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.spec.name.hash(state);
        self.spec.config.hash(state);
        self.input.hash(state);
    }
}
impl PartialOrd for StageNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (&self.spec.name, &self.spec.config).partial_cmp(&(&other.spec.name, &other.spec.config))
    }
}

impl UserDefinedLogicalNodeCore for StageNode {
    fn name(&self) -> &str {
        "Stage"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }
    // Filters stay where the file puts them, so that the funnel can say which one dropped a row.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.schema.fields().iter().map(|f| f.name().clone()).collect()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Stage: {} ({})", self.spec.name, self.spec.kind)
    }
    fn with_exprs_and_inputs(&self, _exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let Some(input) = inputs.pop() else { return datafusion::common::plan_err!("a stage needs one input") };
        Self::try_new(self.spec.clone(), input)
    }
}

/// The operator of [`StageNode`].
#[derive(Debug)]
pub struct StageExec {
    spec: StageSpec,
    outputs: Vec<FieldRef>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    counters: Arc<Counters>,
}

impl StageExec {
    pub(crate) fn try_new(node: &StageNode, input: Arc<dyn ExecutionPlan>) -> Result<Self> {
        Self::with_input(node.spec.clone(), node.outputs.clone(), input)
    }

    fn with_input(spec: StageSpec, outputs: Vec<FieldRef>, input: Arc<dyn ExecutionPlan>) -> Result<Self> {
        let schema = Arc::new(output_schema(&input.schema(), &outputs));
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            input.boundedness(),
        ));
        let counters = Arc::new(Counters::new(&spec.name, &spec.kind));
        Ok(Self { spec, outputs, input, properties, counters })
    }

    /// What this very operator counted so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

impl DisplayAs for StageExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StageExec: {} ({})", self.spec.name, self.spec.kind)
    }
}

impl ExecutionPlan for StageExec {
    fn name(&self) -> &str {
        "StageExec"
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
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(input) = children.pop() else { return datafusion::common::plan_err!("a stage needs one input") };
        Ok(Arc::new(Self::with_input(self.spec.clone(), self.outputs.clone(), input)?))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let resources = context
            .session_config()
            .get_extension::<Resources>()
            .ok_or_else(|| DataFusionError::Internal("no Resources in the session".into()))?;
        let visible: SchemaRef = Arc::new(visible_schema(&self.input.schema()));
        let work = self
            .spec
            .stage
            .open_with(Arc::clone(&visible), &resources.models, &resources.clients)
            .map_err(|e| DataFusionError::Execution(format!("stage `{}`: {e}", self.spec.name)))?;
        let window = self.spec.stage.window().max(1);
        let shared = Arc::new(Window {
            name: Arc::clone(&self.spec.name),
            work,
            visible,
            outputs: self.outputs.clone(),
            schema: self.schema(),
            counters: Arc::clone(&self.counters),
            meter: resources.telemetry.stage(&self.spec.name),
        });
        let slices = self.input.execute(partition, context)?.map_ok(move |batch| {
            let rows = batch.num_rows();
            futures::stream::iter(
                (0..rows.div_ceil(window))
                    .map(move |i| Ok::<_, DataFusionError>(batch.slice(i * window, window.min(rows - i * window)))),
            )
        });
        let stream = slices
            .try_flatten()
            .map(move |batch| -> BoxFuture<'static, Result<RecordBatch>> {
                let shared = Arc::clone(&shared);
                match batch {
                    Err(e) => Box::pin(async move { Err(e) }),
                    // A call must make progress although nobody polls it: a bare future that waits in a bounded queue
                    // shared by tasks can be given its place and keep it for ever.
                    Ok(batch) => {
                        let task = SpawnedTask::spawn(async move { shared.run(batch).await });
                        Box::pin(async move {
                            task.join_unwind().await.map_err(|e| DataFusionError::External(Box::new(e)))?
                        })
                    }
                }
            })
            .buffered(resources.windows_in_flight.max(1));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream)))
    }
}

/// All that a window of rows needs.
#[derive(Debug)]
struct Window {
    name: Arc<str>,
    work: Arc<dyn RowWise>,
    visible: SchemaRef,
    outputs: Vec<FieldRef>,
    schema: SchemaRef,
    counters: Arc<Counters>,
    meter: Arc<StageMeter>,
}

impl Window {
    async fn run(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let measured = self.meter.window(rows as u64);
        let errors = batch.column_by_name(ERROR).cloned();
        let good = errors.as_ref().filter(|e| e.null_count() < rows).map(|e| arrow::compute::is_null(e)).transpose()?;
        let visible: Vec<ArrayRef> = batch
            .schema()
            .fields()
            .iter()
            .zip(batch.columns())
            .filter(|(f, _)| f.name() != ERROR)
            .map(|(_, c)| Arc::clone(c))
            .collect();
        let visible = RecordBatch::try_new(Arc::clone(&self.visible), visible)?;
        let (shown, places) = match &good {
            None => (visible, None),
            Some(mask) => {
                let places: Vec<usize> = (0..rows).filter(|i| mask.value(*i)).collect();
                (filter_record_batch(&visible, mask)?, Some(places))
            }
        };
        let outcome = if shown.num_rows() == 0 {
            Outcome {
                columns: self.outputs.iter().map(|f| new_null_array(f.data_type(), 0)).collect(),
                ..Outcome::default()
            }
        } else {
            self.work
                .run(&shown)
                .await
                .map_err(|e| DataFusionError::Execution(format!("stage `{}`: {e}", self.name)))?
        };
        measured.done();
        self.check(&outcome, shown.num_rows())?;
        self.counters.add(rows as u64, rows as u64, &outcome);
        let columns = match &places {
            None => outcome.columns,
            Some(places) => scatter(&outcome.columns, places, rows)?,
        };
        let errors = with_failures(errors, &self.name, &outcome.failures, places.as_deref(), rows);
        let mut out: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for field in self.schema.fields() {
            out.push(if field.name() == ERROR {
                Arc::clone(&errors)
            } else if let Some(i) = self.outputs.iter().position(|f| f.name() == field.name()) {
                Arc::clone(&columns[i])
            } else {
                batch.column_by_name(field.name()).cloned().ok_or_else(|| {
                    DataFusionError::Internal(format!("stage `{}`: column `{}` is gone", self.name, field.name()))
                })?
            });
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), out)?)
    }

    /// A stage that breaks its own contract must not reach the data.
    fn check(&self, outcome: &Outcome, rows: usize) -> Result<()> {
        let fits = outcome.columns.len() == self.outputs.len()
            && outcome
                .columns
                .iter()
                .zip(&self.outputs)
                .all(|(c, f)| c.len() == rows && c.data_type() == f.data_type());
        if !fits || outcome.failures.iter().any(|f| f.row >= rows) {
            return Err(DataFusionError::Internal(format!(
                "stage `{}` returned columns that differ from what it announced",
                self.name
            )));
        }
        Ok(())
    }
}

/// Spreads columns of the good rows over all rows, nulls elsewhere.
fn scatter(columns: &[ArrayRef], places: &[usize], rows: usize) -> Result<Vec<ArrayRef>> {
    let mut index: Vec<Option<u64>> = vec![None; rows];
    for (from, to) in places.iter().enumerate() {
        index[*to] = Some(from as u64);
    }
    let index = UInt64Array::from(index);
    columns.iter().map(|c| Ok(take(c, &index, None)?)).collect()
}

/// The error column after a stage: older errors stay, new failures are added at their rows.
pub(super) fn with_failures(
    errors: Option<ArrayRef>,
    stage: &str,
    failures: &[RowFailure],
    places: Option<&[usize]>,
    rows: usize,
) -> ArrayRef {
    if failures.is_empty() {
        return errors.unwrap_or_else(|| new_null_array(&error_type(), rows));
    }
    let mut new: Vec<Option<&RowFailure>> = vec![None; rows];
    for failure in failures {
        let row = places.map_or(failure.row, |p| p[failure.row]);
        // The first failure of a row is the one that is told.
        new[row].get_or_insert(failure);
    }
    let old = errors.as_ref().and_then(|e| e.as_any().downcast_ref::<StructArray>());
    let old_text = |field: usize, row: usize| -> Option<&str> {
        let old = old.filter(|o| o.is_valid(row))?;
        Some(old.column(field).as_any().downcast_ref::<arrow::array::StringArray>()?.value(row))
    };
    let mut texts = [StringBuilder::new(), StringBuilder::new(), StringBuilder::new()];
    let mut valid = Vec::with_capacity(rows);
    for (row, failure) in new.iter().enumerate() {
        let told = match failure {
            Some(f) => Some([stage, f.code, f.message.as_str()]),
            None => match (old_text(0, row), old_text(1, row), old_text(2, row)) {
                (Some(a), Some(b), Some(c)) => Some([a, b, c]),
                _ => None,
            },
        };
        valid.push(told.is_some());
        for (text, builder) in told.unwrap_or([""; 3]).iter().zip(&mut texts) {
            builder.append_value(text);
        }
    }
    let columns: Vec<ArrayRef> = texts.iter_mut().map(|b| Arc::new(b.finish()) as ArrayRef).collect();
    let DataType::Struct(fields) = error_type() else { return new_null_array(&error_type(), rows) };
    Arc::new(StructArray::new(fields, columns, Some(NullBuffer::from(valid))))
}

/// A field of the error column's type, as the engine appends it.
pub fn error_field() -> Field {
    Field::new(ERROR, error_type(), true)
}
