//! What asking language models will cost, from the first rows of the input.

use std::{collections::BTreeMap, fmt, path::Path};

use groundloom_engine::{
    EngineError,
    graph::{Node, Work},
    run::Plan,
};
use groundloom_llm::{BudgetState, Limits, Money, Request, Spent, Store};
use groundloom_stages::Generate;
use serde::Serialize;

/// Rows that an estimate looks at.
const ROWS: usize = 16;

/// The calls of one `generate` stage.
#[derive(Debug, Serialize)]
pub struct Calls {
    stage: String,
    model: String,
    /// `null` where the source does not know its rows.
    calls: Option<u64>,
    /// Whether `calls` is exact; otherwise filters may drop rows before.
    counted: bool,
    /// Of one call, on average; `null` where no row could be looked at.
    prompt_tokens: Option<u64>,
    /// Of one call, at most.
    max_output_tokens: u64,
    /// Of all calls, at most; `null` without a price or a number of calls.
    max_cost: Option<Money>,
    /// Rows that the averages come from.
    rows_seen: usize,
    /// Why no row could be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

/// A budget with limits, and the stages that spend it.
#[derive(Debug, Serialize)]
pub struct Budget {
    #[serde(flatten)]
    state: BudgetState,
    stages: Vec<String>,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let together = if self.stages.len() > 1 { " together" } else { "" };
        write!(f, "{}; for {}{together}", self.state, self.stages.join(", "))
    }
}

/// The budgets with limits of the plan's stages.
pub fn budgets(plan: &Plan) -> Vec<Budget> {
    let mut budgets: BTreeMap<(&str, String), Budget> = BTreeMap::new();
    for (node, generate) in generating(plan) {
        let limits = generate.limits().unwrap_or_default();
        let name = generate.budget_name();
        let entry = budgets.entry((&generate.store, name.clone())).or_insert_with(|| {
            // A store that is not there yet has paid for nothing.
            let spent = Store::open_read_only(Path::new(&generate.store))
                .map_or_else(|_| Spent::default(), |store| store.spent_under(&name));
            Budget { state: BudgetState { name, limits, spent }, stages: Vec::new() }
        });
        entry.state.limits = entry.state.limits.and(limits);
        entry.stages.push(node.name.to_string());
    }
    budgets.into_values().filter(|budget| budget.state.limits != Limits::default()).collect()
}

/// The stages that ask language models.
pub fn generating(plan: &Plan) -> impl Iterator<Item = (&Node, &Generate)> {
    plan.graph.nodes.iter().filter_map(|node| match &node.work {
        Work::Stage(stage) => stage.as_generate().map(|generate| (node, generate)),
        _ => None,
    })
}

/// The requests for the first rows of a stage, and how many rows its source has.
pub async fn first_requests(
    plan: &Plan,
    node: &Node,
    generate: &Generate,
    rows: usize,
) -> Result<(Vec<Result<Request, String>>, Option<u64>), EngineError> {
    let (rows, total) = plan.first_rows(&node.name, rows).await?;
    let stage = |e: String| EngineError::Unsupported(format!("stage `{}`: {e}", node.name));
    let maker = generate.request_maker().map_err(|e| stage(e.to_string()))?;
    Ok((maker.preview(&rows).map_err(|e| stage(e.to_string()))?, total))
}

/// What every `generate` stage of the plan is expected to ask.
pub async fn expected(plan: &Plan) -> Vec<Calls> {
    let mut all = Vec::new();
    for (node, generate) in generating(plan) {
        all.push(expected_of(plan, node, generate).await);
    }
    all
}

async fn expected_of(plan: &Plan, node: &Node, generate: &Generate) -> Calls {
    let mut calls = Calls {
        stage: node.name.to_string(),
        model: generate.model.clone(),
        calls: None,
        counted: false,
        prompt_tokens: None,
        max_output_tokens: generate.max_output_tokens,
        max_cost: None,
        rows_seen: 0,
        unknown: None,
    };
    let (requests, total) = match first_requests(plan, node, generate, ROWS).await {
        Ok(found) => found,
        Err(error) => {
            calls.unknown = Some(error.to_string());
            return calls;
        }
    };
    // The number itself where it is cheap to have, else the source's, which filters and samples may lower.
    let counted = plan.count_rows(&node.name).await.ok().flatten();
    let total = counted.or(total);
    calls.calls = total;
    calls.counted = counted.is_some();
    let estimates: Vec<_> = requests.iter().flatten().filter_map(|r| generate.estimate(r).ok()).collect();
    calls.rows_seen = estimates.len();
    let seen = estimates.len() as u64;
    if seen > 0 {
        calls.prompt_tokens = Some(estimates.iter().map(|e| e.prompt_tokens).sum::<u64>().div_ceil(seen));
        let cost = estimates.iter().map(|e| e.most_cost).try_fold(0_u128, |sum, c| Some(sum + u128::from(c?.0)));
        let of_all = total.zip(cost).map(|(n, cost)| u128::from(n) * cost / u128::from(seen));
        calls.max_cost = of_all.map(|cost| Money(u64::try_from(cost).unwrap_or(u64::MAX)));
    }
    calls
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): ", self.stage, self.model)?;
        if let Some(why) = &self.unknown {
            return write!(f, "not known before a run: {why}");
        }
        match self.calls {
            Some(n) if self.counted => write!(f, "{n} calls")?,
            Some(n) => write!(f, "at most {n} calls")?,
            None => write!(f, "one call a row, of a source that does not know its rows")?,
        }
        if let Some(tokens) = self.prompt_tokens {
            write!(f, ", about {tokens} input tokens each (the first {} rows)", self.rows_seen)?;
        }
        write!(f, ", at most {} output tokens each", self.max_output_tokens)?;
        match self.max_cost {
            Some(cost) => write!(f, ": at most {cost} together"),
            None => write!(f, "; no price known"),
        }
    }
}
