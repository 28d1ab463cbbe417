//! The stages that are relational algebra: `filter`, `sample`, `limit`, `dedup`, `shuffle`, `sql`. DataFusion does their work.

use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps the rows for which an SQL predicate is true.
///
/// Rows for which it is false or unknown (NULL) are dropped and counted under `reason`.
/// The predicate may use every column of the stage's input and DataFusion's functions: `length(caption) between 5 and 300`,
/// `cardinality(boxes) > 0`, `width >= 200 and height >= 200`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// SQL predicate over the columns of the input.
    #[serde(rename = "where")]
    pub predicate: String,
    /// Why rows are dropped, in `snake_case`, for the funnel. Default: the stage's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Write the dropped rows to `_rejected/` beside the data instead of losing them.
    #[serde(default)]
    pub keep_rejected: bool,
}

impl Config for Filter {
    const NAME: &'static str = "filter";
    const SUMMARY: &'static str = "keeps the rows for which an SQL predicate is true";
    const EXAMPLE: &'static str =
        "kept: { type: filter, where: \"cardinality(expressions) > 0\", reason: no_grounded_expression }";
}

/// Keeps a random fraction of the rows.
///
/// The draw is a hash of the row id under the seed: it does not depend on order, shards or threads,
/// and a larger fraction under the same seed contains the smaller one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Share of the rows to keep, from 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub fraction: f64,
    /// Another seed draws other rows.
    #[serde(default)]
    pub seed: u64,
}

impl Config for Sample {
    const NAME: &'static str = "sample";
    const SUMMARY: &'static str = "keeps a random, reproducible fraction of the rows";
    const EXAMPLE: &'static str = "tenth: { type: sample, fraction: 0.1, seed: 7 }";
}

/// Keeps the first rows of the input, in its order.
///
/// A set stage: what feeds it is finished first, but only as many of its shards (in order) as hold enough rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Number of rows.
    pub rows: u64,
}

impl Config for Limit {
    const NAME: &'static str = "limit";
    const SUMMARY: &'static str = "keeps the first rows, in order";
    const EXAMPLE: &'static str = "first: { type: limit, rows: 1000 }";
}

/// Drops rows that repeat an earlier one, exactly.
///
/// Two rows are the same when all columns of `by` are equal; a picture or a sound counts by its encoded bytes, whatever its path. The first row (in the order of the input) stays;
/// the others are counted as `duplicate`, and `groundloom why` names the row that each repeats. A row with a null in `by` repeats nothing and stays.
/// Keys are compared by their 128-bit hashes (XXH3), in a sort that spills to disk within `--memory`; media bytes are not sorted.
/// A set stage: what feeds it is finished first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dedup {
    /// The columns that make a row what it is.
    #[schemars(length(min = 1))]
    pub by: Vec<String>,
}

impl Config for Dedup {
    const NAME: &'static str = "dedup";
    const SUMMARY: &'static str = "drops rows that repeat an earlier one, by columns or by the bytes of a medium";
    const EXAMPLE: &'static str = "unique: { type: dedup, by: [image] }";
}

/// Puts the rows in a random order, over the whole input.
///
/// The order follows a hash of each row's id under the seed: it does not depend on shards, threads or the order of the input, and rows that are added later take their places
/// among the others without moving them against each other. The sort spills to disk within `--memory`; media bytes stay where they are until their row's turn comes.
/// A set stage: what feeds it is finished first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shuffle {
    /// Another seed gives another order.
    #[serde(default)]
    pub seed: u64,
}

impl Config for Shuffle {
    const NAME: &'static str = "shuffle";
    const SUMMARY: &'static str = "puts the rows in a random, reproducible order";
    const EXAMPLE: &'static str = "mixed: { type: shuffle, seed: 7 }";
}

/// An SQL query over any nodes of the pipeline, by name.
///
/// With one table and no aggregate, sort, window, limit or subquery the query works row by row: rows keep their ids, failed rows pass through.
/// Anything else (join, union, aggregate, ORDER BY, LIMIT) is a set stage: it sees only the good rows of finished inputs, runs once over all of them,
/// and gives its rows new ids, made from their content, unless it selects a `row_id`.
/// Functions whose value depends on the moment (`random()`, `now()`) are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sql {
    /// A SELECT. Tables are sources and stages; column names are case-sensitive.
    pub query: String,
}

impl Config for Sql {
    const NAME: &'static str = "sql";
    const SUMMARY: &'static str = "an SQL query over any nodes of the pipeline";
    const EXAMPLE: &'static str =
        "per_caption: { type: sql, query: \"select caption, count(*) as images from pairs group by caption\" }";
}
