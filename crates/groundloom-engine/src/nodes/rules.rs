//! What Groundloom adds to DataFusion's physical optimizer: plans keep one partition and one order of rows and, under a memory limit, use only operators that spill.
//!
//! Without a limit joins and groups are hashed. Under one they are merged from sorted rows: a hash join's build side does not spill, and a hash aggregate that spills gives
//! its groups (and adds its floats) in an order that depends on when it ran out of memory. Sorts then compare the rows' places last, so that no tie is broken by the moment of a spill.

use std::sync::Arc;

use arrow::{
    compute::SortOptions,
    row::{RowConverter, SortField},
};
use datafusion::{
    common::{
        Result,
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    physical_expr::{LexOrdering, PhysicalSortExpr, expressions::Column},
    physical_optimizer::{PhysicalOptimizerRule, optimizer::PhysicalOptimizer},
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        aggregates::AggregateExec,
        execution_plan::replace_children_if_necessary,
        joins::{HashJoinExec, SortMergeJoinExec},
        projection::ProjectionExec,
        sorts::sort::SortExec,
        union::UnionExec,
    },
};

use super::set::{SetExec, SetOp};

type Plan = Arc<dyn ExecutionPlan>;

/// DataFusion's rules with ours among them; `limited` = under a memory limit.
pub fn rules(limited: bool) -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    // Before anything asks for distribution or order.
    before(&mut rules, "join_selection", Rule::Sequences);
    if limited {
        before(&mut rules, "join_selection", Rule::MergeJoins);
        // Partial and final aggregates have become one by then.
        before(&mut rules, "ProjectionPushdown", Rule::SortedGroups);
        before(&mut rules, "EnsureCooperative", Rule::StableSorts);
    }
    rules
}

fn before(rules: &mut Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>, name: &str, rule: Rule) {
    let place = rules.iter().position(|r| r.name() == name).unwrap_or(0);
    rules.insert(place, Arc::new(rule));
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// `UNION ALL` as one partition, one input after the other.
    Sequences,
    /// Hash joins become merge joins.
    MergeJoins,
    /// Groups are formed from sorted rows.
    SortedGroups,
    /// Sorts break ties by the place of a row in their input.
    StableSorts,
}

impl PhysicalOptimizerRule for Rule {
    fn optimize(&self, plan: Plan, _: &ConfigOptions) -> Result<Plan> {
        let change = match self {
            Self::Sequences => sequence,
            Self::MergeJoins => merge_join,
            Self::SortedGroups => sorted_groups,
            Self::StableSorts => stable_sort,
        };
        plan.transform_up(change).data()
    }

    fn name(&self) -> &str {
        match self {
            Self::Sequences => "groundloom_sequences",
            Self::MergeJoins => "groundloom_merge_joins",
            Self::SortedGroups => "groundloom_sorted_groups",
            Self::StableSorts => "groundloom_stable_sorts",
        }
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn sequence(plan: Plan) -> Result<Transformed<Plan>> {
    match plan.downcast_ref::<UnionExec>() {
        Some(union) => Ok(Transformed::yes(Arc::new(SetExec::new(SetOp::Sequence, union.inputs().clone())))),
        None => Ok(Transformed::no(plan)),
    }
}

fn is_sortable<'a>(
    mut keys: impl Iterator<Item = &'a Arc<dyn datafusion::physical_expr::PhysicalExpr>>,
    input: &Plan,
) -> Result<bool> {
    let schema = input.schema();
    keys.try_fold(true, |sortable, key| {
        Ok(sortable && RowConverter::supports_fields(&[SortField::new(key.data_type(&schema)?)]))
    })
}

fn merge_join(plan: Plan) -> Result<Transformed<Plan>> {
    let Some(join) = plan.downcast_ref::<HashJoinExec>() else { return Ok(Transformed::no(plan)) };
    // A merge join does not know the null-aware anti join of NOT IN.
    let fits =
        !join.null_aware && join.projection.is_none() && is_sortable(join.on.iter().map(|(l, _)| l), &join.left)?;
    if !fits {
        return Ok(Transformed::no(plan));
    }
    let merged = SortMergeJoinExec::try_new(
        Arc::clone(&join.left),
        Arc::clone(&join.right),
        join.on.clone(),
        join.filter.clone(),
        join.join_type,
        vec![SortOptions::default(); join.on.len()],
        join.null_equality,
    )?;
    Ok(Transformed::yes(Arc::new(merged)))
}

fn sorted_groups(plan: Plan) -> Result<Transformed<Plan>> {
    let Some(groups) = plan.downcast_ref::<AggregateExec>() else { return Ok(Transformed::no(plan)) };
    let (by, input) = (groups.group_expr(), groups.input());
    let keys: Vec<_> = by.expr().iter().map(|(key, _)| Arc::clone(key)).collect();
    // The sets of CUBE and ROLLUP have no one order.
    if keys.is_empty() || !by.is_single() || !is_sortable(keys.iter(), input)? {
        return Ok(Transformed::no(plan));
    }
    let Some(order) = LexOrdering::new(keys.into_iter().map(PhysicalSortExpr::new_default)) else {
        return Ok(Transformed::no(plan));
    };
    if input.equivalence_properties().ordering_satisfy(order.clone())? {
        return Ok(Transformed::no(plan));
    }
    let sorted = Arc::new(SortExec::new(order, Arc::clone(input)));
    Ok(Transformed::yes(replace_children_if_necessary(plan, vec![sorted])?))
}

fn stable_sort(plan: Plan) -> Result<Transformed<Plan>> {
    let Some(sort) = plan.downcast_ref::<SortExec>() else { return Ok(Transformed::no(plan)) };
    let columns = sort.input().schema().fields().len();
    let placed: Plan = Arc::new(SetExec::new(SetOp::Place, vec![Arc::clone(sort.input())]));
    let schema = placed.schema();
    let column =
        |i: usize| Arc::new(Column::new(schema.field(i).name(), i)) as Arc<dyn datafusion::physical_expr::PhysicalExpr>;
    let by = sort.expr().iter().cloned().chain([PhysicalSortExpr::new_default(column(columns))]);
    let Some(order) = LexOrdering::new(by) else { return Ok(Transformed::no(plan)) };
    let sorted = Arc::new(SortExec::new(order, placed).with_fetch(sort.fetch()));
    let kept = (0..columns).map(|i| (column(i), schema.field(i).name().clone()));
    Ok(Transformed::yes(Arc::new(ProjectionExec::try_new(kept.collect::<Vec<_>>(), sorted)?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The names are DataFusion's: if one changed, a rule of ours would run too early without a word.
    #[test]
    fn the_rules_stand_where_they_belong() {
        let rules = rules(true);
        let place = |name: &str| rules.iter().position(|r| r.name() == name).unwrap();
        assert_eq!(place("groundloom_sequences") + 2, place("join_selection"));
        assert_eq!(place("groundloom_merge_joins") + 1, place("join_selection"));
        assert!(place("groundloom_sorted_groups") > place("CombinePartialFinalAggregate"));
        assert!(place("groundloom_sorted_groups") > place("EnsureRequirements"));
        assert!(place("groundloom_stable_sorts") > place("PushdownSort"));
        assert!(place("groundloom_stable_sorts") < place("SanityCheckPlan"));
        assert_eq!(super::rules(false).len() + 3, rules.len());
    }
}
