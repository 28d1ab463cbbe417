//! The operators of `dedup` and `shuffle`, and those that keep the order of rows in queries.
//!
//! Only keys are sorted, by DataFusion's sort, which spills within the memory limit; media bytes pass by in the order they stand in, or are fetched when their row's turn comes.
//! Each operator has one partition, and its rows are numbered as they come: the number is a row's place in the finished input, the same in every run.

use std::{fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, UInt64Array},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use datafusion::{
    common::{DataFusionError, Result, internal_err, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, LexOrdering, PhysicalExpr, PhysicalSortExpr, expressions::Column},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        sorts::sort::SortExec,
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{Stream, StreamExt, TryStreamExt};
use groundloom_data::columns::ROW_ID;

use super::{
    dedup,
    shuffle::{self, Late},
};
use crate::{
    counters::Counters,
    drops::{DUPLICATE_OF, DropLog, Told},
};

/// What a [`SetExec`] does: plain data.
#[derive(Debug, Clone)]
pub enum SetOp {
    /// Rows → key (128-bit hash of the columns `by`), place, row id; rows with a null among `by` are left out, as nothing can repeat them.
    Keys {
        /// Names of columns of the input.
        by: Vec<String>,
    },
    /// Sorted keys → place and the row id of the first of its key, for every row but the first.
    Repeats,
    /// Rows and the sorted places of repeats → the other rows.
    Dedup {
        /// The stage's name.
        name: Arc<str>,
    },
    /// Rows → a number drawn for the row id, place, then the row.
    Draw {
        /// Another seed draws other numbers.
        seed: u64,
    },
    /// Rows → the rows with their place behind them.
    Place,
    /// The rows of all inputs, which have the same columns, one input after the other: what `UNION ALL` means where order counts.
    Sequence,
    /// Sorted draws → the rows, with what was left behind fetched.
    Deal {
        /// The stage's name.
        name: Arc<str>,
        /// What is fetched late.
        late: Option<Late>,
        /// The columns of the rows.
        schema: SchemaRef,
    },
}

impl SetOp {
    fn schema(&self, input: &Schema) -> SchemaRef {
        match self {
            Self::Keys { .. } => keys_schema(),
            Self::Repeats => repeats_schema(),
            Self::Dedup { .. } | Self::Sequence => Arc::new(input.clone()),
            Self::Draw { .. } => {
                let mut fields = vec![number("draw"), number("place")];
                fields.extend(input.fields().iter().cloned());
                Arc::new(Schema::new(fields))
            }
            Self::Place => {
                Arc::new(Schema::new(input.fields().iter().cloned().chain([number(PLACE)]).collect::<Vec<_>>()))
            }
            Self::Deal { schema, .. } => Arc::clone(schema),
        }
    }
}

/// A column that no table has: its place decides, not its name.
const PLACE: &str = "_groundloom_place";

fn number(name: &str) -> FieldRef {
    Arc::new(Field::new(name, DataType::UInt64, false))
}

fn text(name: &str) -> FieldRef {
    Arc::new(Field::new(name, DataType::Utf8, false))
}

/// `key: fixed_size_binary(16)`, `place: uint64`, `row_id: utf8`.
pub(super) fn keys_schema() -> SchemaRef {
    let key = Arc::new(Field::new("key", DataType::FixedSizeBinary(16), false));
    Arc::new(Schema::new(vec![key, number("place"), text(ROW_ID)]))
}

/// `place: uint64`, `duplicate_of: utf8`.
pub(super) fn repeats_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![number("place"), text(DUPLICATE_OF)]))
}

/// An operator of a set stage; one partition.
#[derive(Debug)]
pub struct SetExec {
    op: SetOp,
    inputs: Vec<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
    counters: Option<Arc<Counters>>,
}

impl SetExec {
    /// Puts an operator on top of its inputs.
    pub fn new(op: SetOp, inputs: Vec<Arc<dyn ExecutionPlan>>) -> Self {
        let schema = inputs.first().map(|i| i.schema()).unwrap_or_else(|| Arc::new(Schema::empty()));
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(op.schema(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        let counters = match &op {
            SetOp::Dedup { name } => Some(Counters::with_reason(name, "dedup", "duplicate")),
            SetOp::Deal { name, .. } => Some(Counters::new(name, "shuffle")),
            _ => None,
        };
        Self { op, inputs, properties, counters: counters.map(Arc::new) }
    }

    /// What this very operator counted so far, where it is a stage of its own.
    pub fn counters(&self) -> Option<&Arc<Counters>> {
        self.counters.as_ref()
    }

    /// What it tells of the rows it drops.
    pub fn told(&self) -> Option<Told> {
        match &self.op {
            SetOp::Dedup { name } => {
                Some(Told { stage: Arc::clone(name), what: DUPLICATE_OF.into(), data_type: DataType::Utf8 })
            }
            _ => None,
        }
    }
}

impl DisplayAs for SetExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.op {
            SetOp::Keys { by } => write!(f, "SetExec: keys of {}", by.join(", ")),
            SetOp::Repeats => write!(f, "SetExec: repeats"),
            SetOp::Dedup { name } => write!(f, "SetExec: dedup {name}"),
            SetOp::Draw { seed } => write!(f, "SetExec: draw seed={seed}"),
            SetOp::Place => write!(f, "SetExec: place"),
            SetOp::Sequence => write!(f, "SetExec: sequence"),
            SetOp::Deal { name, late, .. } => {
                let late = late.as_ref().map(|l| l.columns.join(", ")).unwrap_or_default();
                write!(f, "SetExec: shuffle {name} late=[{late}]")
            }
        }
    }
}

impl ExecutionPlan for SetExec {
    fn name(&self) -> &str {
        "SetExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.inputs.iter().collect()
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true; self.inputs.len()]
    }
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false; self.inputs.len()]
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(self.op.clone(), children)))
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let log = context.session_config().get_extension::<DropLog>();
        let mut inputs = self.inputs.iter();
        let mut input = || match inputs.next() {
            Some(input) => input.execute(partition, Arc::clone(&context)),
            None => internal_err!("a set stage lacks an input"),
        };
        let schema = self.schema();
        match &self.op {
            SetOp::Keys { by } => stream(schema, dedup::keys(input()?, by)?),
            SetOp::Repeats => stream(schema, dedup::repeats(input()?)),
            SetOp::Dedup { name } => {
                stream(schema, dedup::without_repeats(input()?, input()?, Arc::clone(name), self.counters.clone(), log))
            }
            SetOp::Draw { seed } => stream(Arc::clone(&schema), shuffle::draw(input()?, schema, *seed)),
            SetOp::Place => stream(Arc::clone(&schema), placed(input()?, schema)),
            SetOp::Sequence => {
                // An input is started when the one before it has ended, so one sort at a time holds memory.
                let inputs = futures::stream::iter(self.inputs.clone());
                stream(schema, inputs.map(move |i| i.execute(partition, Arc::clone(&context))).try_flatten())
            }
            SetOp::Deal { late, .. } => {
                stream(Arc::clone(&schema), shuffle::deal(input()?, schema, late.clone(), self.counters.clone()))
            }
        }
    }
}

fn stream(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
) -> Result<SendableRecordBatchStream> {
    let batches = batches.try_filter(|batch| std::future::ready(batch.num_rows() > 0));
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
}

/// Rows with their number, as they come.
fn placed(rows: SendableRecordBatchStream, schema: SchemaRef) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let mut place = 0u64;
    rows.map(move |batch| {
        let batch = batch?;
        let places = UInt64Array::from_iter_values(place..place + batch.num_rows() as u64);
        place += batch.num_rows() as u64;
        let columns = batch.columns().iter().cloned().chain([Arc::new(places) as ArrayRef]).collect();
        Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
    })
}

/// A sort by the input's first `columns` columns, ascending; it spills.
fn sorted(input: Arc<dyn ExecutionPlan>, columns: usize) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = input.schema();
    let by = (0..columns).map(|i| {
        PhysicalSortExpr::new_default(Arc::new(Column::new(schema.field(i).name(), i)) as Arc<dyn PhysicalExpr>)
    });
    let order = LexOrdering::new(by).ok_or_else(|| DataFusionError::Internal("a sort by nothing".into()))?;
    Ok(Arc::new(SortExec::new(order, input)))
}

/// `dedup`: `rows` without those that repeat the columns `by` of an earlier one; `keys` are the same rows with at least these columns and the row id.
///
/// # Errors
/// None that a checked pipeline can meet.
pub fn dedup_plan(
    name: &Arc<str>,
    by: &[String],
    rows: Arc<dyn ExecutionPlan>,
    keys: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let keys: Arc<dyn ExecutionPlan> = Arc::new(SetExec::new(SetOp::Keys { by: by.to_vec() }, vec![keys]));
    let repeats: Arc<dyn ExecutionPlan> = Arc::new(SetExec::new(SetOp::Repeats, vec![sorted(keys, 2)?]));
    let repeats = sorted(repeats, 1)?;
    Ok(Arc::new(SetExec::new(SetOp::Dedup { name: Arc::clone(name) }, vec![rows, repeats])))
}

/// `shuffle`: rows of `schema` in an order drawn by `seed`; `rows` has the columns that travel through the sort, `late` fetches the others.
///
/// # Errors
/// None that a checked pipeline can meet.
pub fn shuffle_plan(
    name: &Arc<str>,
    seed: u64,
    rows: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    late: Option<Late>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let drawn: Arc<dyn ExecutionPlan> = Arc::new(SetExec::new(SetOp::Draw { seed }, vec![rows]));
    let deal = SetOp::Deal { name: Arc::clone(name), late, schema };
    Ok(Arc::new(SetExec::new(deal, vec![sorted(drawn, 2)?])))
}
