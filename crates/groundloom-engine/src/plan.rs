//! From nodes to DataFusion plans: one rule per kind of node, used for checking (over empty tables) and for work alike.

use std::{
    collections::{BTreeSet, HashSet},
    ops::ControlFlow,
    sync::Arc,
};

use arrow::datatypes::DataType;
use datafusion::{
    common::{
        Column, DataFusionError, ScalarValue, TableReference,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    datasource::empty::EmptyTable,
    execution::context::SessionContext,
    logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Volatility, lit},
    prelude::DataFrame,
    sql::parser::Statement,
};
use groundloom_data::columns::{ERROR, ROW_ID, error_type};

use crate::{
    nodes::{
        filter::{FilterNode, FilterSpec, NOT_SELECTED, QUERY},
        stage::{StageNode, StageSpec},
    },
    relation::{Filter, Sample},
    row_ids, session,
};

/// Why a node's config does not fit its input.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Code of the diagnostic.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The column that does not exist, for a suggestion.
    pub unknown_column: Option<String>,
}

impl Refusal {
    /// A refusal with this code.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), unknown_column: None }
    }

    /// The config names a column that the input does not have.
    pub fn unknown_column(name: &str) -> Self {
        Self {
            code: "unknown_column",
            message: format!("there is no column `{name}`"),
            unknown_column: Some(name.to_owned()),
        }
    }
}

impl From<DataFusionError> for Refusal {
    fn from(error: DataFusionError) -> Self {
        let root = error.find_root();
        if let DataFusionError::SchemaError(schema, _) = root
            && let datafusion::common::SchemaError::FieldNotFound { field, .. } = schema.as_ref()
        {
            return Self::unknown_column(field.name());
        }
        let message = match root {
            DataFusionError::Plan(message) | DataFusionError::Execution(message) => message.clone(),
            DataFusionError::SQL(parser, _) => parser.to_string().replace("sql parser error: ", ""),
            other => other.to_string(),
        };
        Self::new("sql", message)
    }
}

/// The expression that names a column of the plan, whatever its qualifier.
fn column_of(plan: &LogicalPlan, name: &str) -> Result<Expr, DataFusionError> {
    Ok(Expr::Column(Column::from(plan.schema().qualified_field_with_unqualified_name(name)?)))
}

/// Every column of the plan.
fn all_columns(plan: &LogicalPlan) -> Vec<Expr> {
    plan.schema().iter().map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name()))).collect()
}

fn has(plan: &LogicalPlan, name: &str) -> bool {
    plan.schema().fields().iter().any(|f| f.name() == name)
}

fn no_error() -> Result<Expr, DataFusionError> {
    Ok(lit(ScalarValue::try_from(&error_type())?).alias(ERROR))
}

/// The plan with an error column, added as null where there is none.
fn with_error(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    if has(&plan, ERROR) {
        return Ok(plan);
    }
    let mut columns = all_columns(&plan);
    columns.push(no_error()?);
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

/// `stage` on top of `input`.
///
/// # Errors
/// A plan error when the stage's columns do not fit.
pub fn stage(spec: StageSpec, input: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    Ok(StageNode::try_new(spec, input)?.into_plan())
}

/// A `filter` named `name` on top of `input`.
///
/// # Errors
/// The predicate does not parse, names unknown columns, is no boolean, or depends on the moment.
pub fn filter(
    context: &SessionContext,
    name: &str,
    filter: &Filter,
    input: LogicalPlan,
) -> Result<LogicalPlan, Refusal> {
    let predicate = predicate(context, &filter.predicate, &input)?;
    let spec = FilterSpec {
        name: name.into(),
        kind: "filter".into(),
        reason: filter.reason.as_deref().unwrap_or(name).into(),
        keep_rejected: filter.keep_rejected,
    };
    let input = if filter.keep_rejected { with_error(input)? } else { input };
    Ok(FilterNode::new(spec, predicate, input).into_plan())
}

/// The predicate as an expression over `input`.
///
/// # Errors
/// As [`filter`].
pub fn predicate(context: &SessionContext, text: &str, input: &LogicalPlan) -> Result<Expr, Refusal> {
    let expr = context.state().create_logical_expr(text, input.schema())?;
    if expr.column_refs().iter().any(|c| c.name == ERROR) {
        return Err(Refusal::new("unknown_column", format!("there is no column `{ERROR}`")));
    }
    refuse_unstable(std::slice::from_ref(&expr))?;
    let data_type = expr.get_type(input.schema())?;
    if data_type != DataType::Boolean {
        let found = groundloom_formats::card::type_name(&arrow::datatypes::Field::new("predicate", data_type, true));
        return Err(Refusal::new(
            "not_boolean",
            format!("expected a predicate that is true or false, found one of type {found}"),
        ));
    }
    Ok(expr)
}

/// A `sample` on top of `input`.
///
/// # Errors
/// A plan error when there is no row id.
pub fn sample(name: &str, sample: &Sample, input: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let spec =
        FilterSpec { name: name.into(), kind: "sample".into(), reason: "not_sampled".into(), keep_rejected: false };
    let predicate = row_ids::in_sample(column_of(&input, ROW_ID)?, sample.fraction, sample.seed);
    Ok(FilterNode::new(spec, predicate, input).into_plan())
}

/// The rows of `input` with these ids, failed ones too. They are not counted as dropped: the others are not this task's.
///
/// # Errors
/// A plan error when there is no row id.
pub fn only(ids: &Arc<HashSet<String>>, input: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let id = column_of(&input, ROW_ID)?;
    LogicalPlanBuilder::from(input).filter(row_ids::is_one_of(id, ids))?.build()
}

/// Runs DataFusion's own checks (type coercion, function signatures) over a plan.
///
/// # Errors
/// What they find.
pub fn analyse(context: &SessionContext, plan: &LogicalPlan) -> Result<(), Refusal> {
    context.state().optimize(plan)?;
    Ok(())
}

/// A planned query.
#[derive(Debug)]
pub struct Query {
    /// Its plan; `row_id` first and, where the input had it, the error last, when row-wise.
    pub plan: LogicalPlan,
    /// Whether rows pass through it one by one.
    pub row_wise: bool,
}

fn parse(context: &SessionContext, query: &str) -> Result<Statement, Refusal> {
    let statement = context.state().sql_to_statement(query, &datafusion::config::Dialect::Generic)?;
    match &statement {
        Statement::Statement(inner)
            if matches!(inner.as_ref(), datafusion::sql::sqlparser::ast::Statement::Query(_)) =>
        {
            Ok(statement)
        }
        _ => Err(Refusal::new("not_a_query", "expected a SELECT; a pipeline changes nothing outside its sinks")),
    }
}

/// The names of the tables that a query reads, each once.
///
/// # Errors
/// The query does not parse, is no SELECT, or names tables with a schema.
pub fn tables(context: &SessionContext, query: &str) -> Result<Vec<String>, Refusal> {
    let statement = parse(context, query)?;
    let mut names = BTreeSet::new();
    for reference in context.state().resolve_table_references(&statement)? {
        match reference {
            TableReference::Bare { table } => names.insert(table.to_string()),
            other => {
                return Err(Refusal::new(
                    "unknown_table",
                    format!("`{other}`: tables are nodes of the pipeline and have no schema"),
                ));
            }
        };
    }
    Ok(names.into_iter().collect())
}

/// The query of `stage` over `tables` (name and plan each).
///
/// A query over one table that has no aggregate, sort, window, limit, distinct, unnest or subquery is row-wise:
/// the row id and the error of every row are carried through it, and what it drops is told under the stage's name.
///
/// # Errors
/// The query does not fit the tables, or depends on the moment.
pub async fn sql(stage: &str, query: &str, tables: &[(Arc<str>, LogicalPlan)]) -> Result<Query, Refusal> {
    let runtime = Arc::new(datafusion::execution::runtime_env::RuntimeEnv::default());
    let outline = session::context(Arc::clone(&runtime), None, false);
    for (name, plan) in tables {
        let schema = Arc::new(crate::nodes::stage::visible_schema(plan.schema().as_arrow()));
        outline.register_table(name.as_ref(), Arc::new(EmptyTable::new(schema)))?;
    }
    let planned = outline.state().statement_to_plan(parse(&outline, query)?).await?;
    refuse_unstable_plan(&planned)?;
    unique_columns(&planned)?;
    analyse(&outline, &planned)?;
    if let [(name, real)] = tables
        && let Some(plan) = carry(&planned, stage, name, real)?
    {
        return Ok(Query { plan: ordered(plan)?, row_wise: true });
    }
    let context = session::context(runtime, None, false);
    for (name, plan) in tables {
        // A set stage reads finished inputs: whatever failed is in quarantine already.
        let columns = all_columns(plan).into_iter().filter(|e| !matches!(e, Expr::Column(c) if c.name == ERROR));
        let visible = LogicalPlanBuilder::from(plan.clone()).project(columns)?.build()?;
        context.register_table(name.as_ref(), DataFrame::new(context.state(), visible).into_view())?;
    }
    let plan = context.state().statement_to_plan(parse(&context, query)?).await?;
    Ok(Query { plan: unqualified(plan)?, row_wise: false })
}

/// The same query over the real table with row id and error carried along, or `None` where it needs more than one row at a time.
fn carry(
    plan: &LogicalPlan,
    stage: &str,
    table: &str,
    real: &LogicalPlan,
) -> Result<Option<LogicalPlan>, DataFusionError> {
    let has_subquery = |exprs: &[Expr]| {
        exprs.iter().any(|e| {
            e.exists(|e| {
                Ok(matches!(e, Expr::InSubquery(_) | Expr::Exists(_) | Expr::ScalarSubquery(_) | Expr::Unnest(_)))
            })
            .unwrap_or(true)
        })
    };
    Ok(match plan {
        LogicalPlan::TableScan(scan) if scan.table_name.table() == table => {
            Some(LogicalPlanBuilder::from(real.clone()).alias(table)?.build()?)
        }
        LogicalPlan::SubqueryAlias(alias) => match carry(&alias.input, stage, table, real)? {
            Some(input) => Some(LogicalPlanBuilder::from(input).alias(alias.alias.clone())?.build()?),
            None => None,
        },
        LogicalPlan::Filter(filter) if !has_subquery(std::slice::from_ref(&filter.predicate)) => {
            carry(&filter.input, stage, table, real)?.map(|input| {
                let inner = has_filter(&input, stage);
                let node = FilterNode::new(unselected(stage), filter.predicate.clone(), input);
                if inner { node.without_values() } else { node }.into_plan()
            })
        }
        LogicalPlan::Projection(projection) if !has_subquery(&projection.expr) => {
            match carry(&projection.input, stage, table, real)? {
                Some(input) => {
                    let mut exprs = projection.expr.clone();
                    for hidden in [ROW_ID, ERROR] {
                        if has(&input, hidden) && !projection.schema.fields().iter().any(|f| f.name() == hidden) {
                            exprs.push(column_of(&input, hidden)?);
                        }
                    }
                    Some(LogicalPlanBuilder::from(input).project(exprs)?.build()?)
                }
                None => None,
            }
        }
        _ => None,
    })
}

/// Row id first, the error last, no qualifiers.
pub fn ordered(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let rank = |name: &str| match name {
        ROW_ID => 0,
        ERROR => 2,
        _ => 1,
    };
    let mut columns: Vec<(String, Expr)> = plan
        .schema()
        .iter()
        .map(|(q, f)| (f.name().clone(), Expr::Column(Column::new(q.cloned(), f.name())).alias(f.name())))
        .collect();
    columns.sort_by_key(|(name, _)| rank(name));
    LogicalPlanBuilder::from(plan).project(columns.into_iter().map(|(_, e)| e))?.build()
}

fn unqualified(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let columns: Vec<Expr> =
        plan.schema().iter().map(|(q, f)| Expr::Column(Column::new(q.cloned(), f.name())).alias(f.name())).collect();
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

/// A table has each name once: `select a.id, b.id` does not say which one is meant later.
fn unique_columns(plan: &LogicalPlan) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for field in plan.schema().fields() {
        if !seen.insert(field.name().as_str()) {
            return Err(Refusal::new(
                "duplicate_column",
                format!("the query gives two columns named `{}`; rename one with AS", field.name()),
            ));
        }
        if field.name() == ERROR {
            return Err(Refusal::new(
                "reserved_column",
                format!("`{ERROR}` is a name that Groundloom keeps for itself"),
            ));
        }
        if field.name() == ROW_ID && !matches!(field.data_type(), DataType::Utf8 | DataType::Utf8View) {
            return Err(Refusal::new("reserved_column", "`row_id` must be the text id of a row".to_owned()));
        }
    }
    Ok(())
}

fn refuse_unstable_plan(plan: &LogicalPlan) -> Result<(), Refusal> {
    let mut refused = Ok(());
    plan.apply_with_subqueries(|node| {
        refused = refuse_unstable(&node.expressions());
        Ok(if refused.is_err() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    refused
}

/// Refuses functions that would give other bytes at another moment.
fn refuse_unstable(exprs: &[Expr]) -> Result<(), Refusal> {
    let found = exprs.iter().try_for_each(|expr| {
        let mut name = None;
        let _ = expr.apply(|e| {
            if let Expr::ScalarFunction(call) = e
                && call.func.signature().volatility != Volatility::Immutable
            {
                name = Some(call.func.name().to_owned());
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        });
        name.map_or(ControlFlow::Continue(()), ControlFlow::Break)
    });
    match found {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(name) => Err(Refusal::new(
            "unstable_function",
            format!(
                "`{name}()` gives another value at another moment, so the data set could not be made again; use `type: sample` for random draws"
            ),
        )),
    }
}

/// The first table that a query reads.
///
/// # Errors
/// As [`tables`].
pub fn first_table(context: &SessionContext, query: &str) -> Result<String, Refusal> {
    tables(context, query)?
        .into_iter()
        .next()
        .ok_or_else(|| Refusal::new("no_table", "the query reads no node of the pipeline"))
}

/// The plan of a row-wise query with a counter on top: what leaves it is what the query kept.
pub fn counted(stage: &str, plan: LogicalPlan) -> LogicalPlan {
    FilterNode::new(unselected(stage), lit(true), plan).into_plan()
}

/// Whether an inner query of the same stage has a condition already.
fn has_filter(plan: &LogicalPlan, stage: &str) -> bool {
    let is_own = |node: &LogicalPlan| match node {
        LogicalPlan::Extension(extension) => {
            extension.node.as_any().downcast_ref::<FilterNode>().is_some_and(|filter| filter.stage() == stage)
        }
        _ => false,
    };
    plan.exists(|node| Ok(is_own(node))).unwrap_or(false)
}

fn unselected(stage: &str) -> FilterSpec {
    FilterSpec { name: stage.into(), kind: QUERY.into(), reason: NOT_SELECTED.into(), keep_rejected: false }
}
