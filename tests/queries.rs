//! `sql` stages that need all rows: unions, joins, groups and sorts, with and without a memory limit, against a plain model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, HashMap};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::Float64Type,
};
use support::{Bench, integers, texts};

/// Two files of rows: `n` counts them, `k` repeats, `t` is a text that makes a row some hundred bytes long.
fn input(bench: &Bench, rows: i64) -> Vec<(i64, i64, String)> {
    let row = |n: i64| {
        let k = n * 7_919 % 997;
        (n, k, format!("row {n} {}", "with some text behind it ".repeat(1 + (n % 7) as usize)))
    };
    let all: Vec<_> = (0..rows).map(row).collect();
    for (file, part) in all.chunks(rows as usize / 2 + 1).enumerate() {
        let line = |(n, k, t): &(i64, i64, String)| format!("{{\"n\": {n}, \"k\": {k}, \"t\": \"{t}\"}}\n");
        bench.write(&format!("in/{file}.jsonl"), part.iter().map(line).collect::<String>());
    }
    let names: String = (0..997).step_by(2).map(|k| format!("{{\"k\": {k}, \"name\": \"key {k}\"}}\n")).collect();
    bench.write("names.jsonl", names);
    all
}

/// The rows that a query leaves over `rows` and `names`.
fn query(bench: &Bench, query: &str, arguments: &[&str]) -> RecordBatch {
    bench.write(
        "p.yaml",
        format!(
            "sources:\n  rows: {{ type: jsonl, path: 'in/*.jsonl' }}\n  names: {{ type: jsonl, path: names.jsonl }}\n\
             stages: {{ made: {{ type: sql, query: \"{query}\" }} }}\nsinks: {{ out: {{ type: parquet, input: made, path: out }} }}\n"
        ),
    );
    bench.ok(&[&["run", "p.yaml"], arguments].concat());
    bench.rows("out/data")
}

/// So little that a sort of the 60,000 rows (about 8 MB) has to spill.
const LIMITS: [&[&str]; 3] = [&[], &["--memory", "24MiB"], &["--memory", "1GiB", "--threads", "1"]];

#[test]
fn a_union_has_its_rows_in_the_order_of_its_inputs() {
    let bench = Bench::new();
    let rows = input(&bench, 2_000);
    let mut expected: Vec<i64> = rows.iter().filter(|r| r.1 < 100).map(|r| r.0).collect();
    expected.extend(rows.iter().filter(|r| r.1 >= 900).map(|r| r.0));
    for limit in LIMITS {
        let found =
            query(&bench, "select n, t from rows where k < 100 union all select n, t from rows where k >= 900", limit);
        assert_eq!(integers(&found, "n"), expected, "{limit:?}");
        let grouped = query(
            &bench,
            "select k, count(*) as c from (select k from rows union all select k from names) group by k order by k",
            limit,
        );
        let both = (0..997_i64).map(|k| rows.iter().filter(|r| r.1 == k).count() as i64 + (k + 1) % 2);
        assert_eq!(integers(&grouped, "c"), both.collect::<Vec<_>>(), "{limit:?}");
    }
}

#[test]
fn joins_of_every_kind_spill_and_lose_nothing() {
    let bench = Bench::new();
    let rows = input(&bench, 60_000);
    let named = |k: i64| k % 2 == 0;
    let inner: Vec<i64> = rows.iter().filter(|r| named(r.1)).map(|r| r.0).collect();
    let others: Vec<i64> = rows.iter().filter(|r| !named(r.1)).map(|r| r.0).collect();
    let sorted = |batch: &RecordBatch| {
        let mut all = integers(batch, "n");
        all.sort_unstable();
        all
    };
    for limit in LIMITS {
        let found = query(&bench, "select r.n, r.t, m.name from rows r join names m on r.k = m.k", limit);
        assert_eq!(sorted(&found), inner, "{limit:?}");
        let keys: HashMap<i64, i64> = rows.iter().map(|r| (r.0, r.1)).collect();
        for (n, name) in integers(&found, "n").into_iter().zip(texts(&found, "name")) {
            assert_eq!(name, format!("key {}", keys[&n]));
        }
        let left = query(&bench, "select r.n, m.name from rows r left join names m on r.k = m.k and m.k > 100", limit);
        assert_eq!(sorted(&left), (0..60_000).collect::<Vec<_>>(), "{limit:?}");
        let without = left.column_by_name("name").unwrap().null_count();
        assert_eq!(without, rows.iter().filter(|r| !named(r.1) || r.1 <= 100).count(), "{limit:?}");
        for anti in ["not exists (select 1 from names m where m.k = r.k)", "r.k not in (select k from names)"] {
            let found = query(&bench, &format!("select r.n from rows r where {anti}"), limit);
            assert_eq!(sorted(&found), others, "{anti} {limit:?}");
        }
        let twice = query(&bench, "select a.n, b.n as m from rows a join rows b on a.t = b.t", limit);
        assert_eq!((sorted(&twice), integers(&twice, "n")), (integers_of(&rows), integers(&twice, "m")), "{limit:?}");
    }
}

fn integers_of(rows: &[(i64, i64, String)]) -> Vec<i64> {
    rows.iter().map(|r| r.0).collect()
}

#[test]
fn groups_and_sorts_come_out_the_same_under_every_limit() {
    let bench = Bench::new();
    let rows = input(&bench, 60_000);
    let mut sums: BTreeMap<i64, (i64, f64)> = BTreeMap::new();
    for (n, k, _) in &rows {
        let sum = sums.entry(*k).or_default();
        *sum = (sum.0 + 1, sum.1 + *n as f64 / 7.0);
    }
    let mut ties: Vec<(i64, i64)> = rows.iter().map(|r| (r.1 % 10, r.0)).collect();
    ties.sort();
    for limit in LIMITS {
        let found = query(
            &bench,
            "select k, count(*) as c, sum(n / 7.0) as s, max(t) as t from rows group by k order by k",
            limit,
        );
        let expected: Vec<(i64, i64)> = sums.iter().map(|(k, s)| (*k, s.0)).collect();
        assert_eq!(integers(&found, "k").into_iter().zip(integers(&found, "c")).collect::<Vec<_>>(), expected);
        let found_sums = found.column_by_name("s").unwrap().as_primitive::<Float64Type>();
        for (found, expected) in found_sums.values().iter().zip(sums.values()) {
            assert!((found - expected.1).abs() < 1e-6 * expected.1, "{found} {expected:?}");
        }
        // Rows that the order does not tell apart stay in the order they came in.
        let found = query(&bench, "select n, t, k % 10 as d from rows order by d", limit);
        let found: Vec<_> = integers(&found, "d").into_iter().zip(integers(&found, "n")).collect();
        if limit.is_empty() {
            assert!(found.windows(2).all(|w| w[0].0 <= w[1].0));
        } else {
            assert_eq!(found, ties, "{limit:?}");
        }
    }
}

#[test]
fn the_limit_itself_changes_no_byte() {
    let run = |limit: &str| {
        let bench = Bench::new();
        input(&bench, 60_000);
        let made = "select k, sum(n / 7.0) as s, max(t) as t from rows group by k";
        let joined = "select a.n, a.t, m.s from rows a join made m on a.k = m.k";
        bench.write(
            "p.yaml",
            format!(
                "sources: {{ rows: {{ type: jsonl, path: 'in/*.jsonl' }} }}\n\
                 stages:\n  made: {{ type: sql, query: \"{made}\" }}\n  joined: {{ type: sql, query: \"{joined}\" }}\n\
                 sinks: {{ out: {{ type: parquet, input: joined, path: out }} }}\n"
            ),
        );
        bench.ok(&["run", "p.yaml", "--memory", limit]);
        bench.bytes("out").into_iter().filter(|(name, _)| name.ends_with(".parquet")).collect::<Vec<_>>()
    };
    let small = run("24MiB");
    assert!(!small.is_empty());
    assert!(small == run("2GiB"), "the moment of a spill changed a byte");
}
