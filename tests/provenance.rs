//! What became of a row: `why`, `diff`, `quarantine show`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Bench, Said, integers, texts};

/// Lines on standard output.
fn lines(said: &Said) -> Vec<Value> {
    said.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The only answer of `why`.
fn why(bench: &Bench, row: &str, target: &str) -> Value {
    let said = bench.ok(&["why", row, target]);
    let all = lines(&said);
    assert_eq!(all.len(), 1, "{row} in {target}: {}{}", said.out, said.err);
    all.into_iter().next().unwrap()
}

/// 3 files of 40 rows; lengths of `text` run from 0 to 39 in each, row 7 is no JSON, `n` counts all rows, row 20 of files 1 and 2 repeats that of file 0.
fn input(bench: &Bench) -> Vec<Vec<u64>> {
    let mut offsets = Vec::new();
    for file in 0..3 {
        let (mut content, mut starts) = (String::new(), Vec::new());
        for row in 0..40 {
            starts.push(content.len() as u64);
            let n = file * 40 + row;
            let name = if row == 20 { "same".to_owned() } else { format!("r{n}") };
            content += &match row {
                7 => "{oops\n".to_owned(),
                _ => format!("{{\"n\": {n}, \"name\": \"{name}\", \"text\": \"{}\"}}\n", "x".repeat(row)),
            };
        }
        bench.write(&format!("in/{file}.jsonl"), content);
        offsets.push(starts);
    }
    offsets
}

fn pipeline(least: u32, sink: &str) -> String {
    format!(
        "sources: {{ rows: {{ type: jsonl, path: 'in/*.jsonl' }} }}
stages:
  long: {{ type: filter, where: 'length(text) >= {least} and n <> 111', reason: too_short }}
  unique: {{ type: dedup, by: [name] }}
  some: {{ type: sample, fraction: 0.5, seed: 2 }}
sinks: {{ out: {{ type: {sink}, path: out/{sink}{least} }} }}
"
    )
}

#[test]
fn every_row_of_the_input_has_an_answer() {
    for sink in ["parquet", "jsonl"] {
        let bench = Bench::new();
        let offsets = input(&bench);
        bench.write("p.yaml", pipeline(10, sink));
        bench.ok(&["run", "p.yaml"]);
        let out = format!("out/{sink}10");
        let (mut kept, mut sampled_out) = (Vec::new(), 0);
        let mut first_of_repeats = String::new();
        for (file, starts) in offsets.iter().enumerate() {
            for (row, offset) in starts.iter().enumerate() {
                let n = file * 40 + row;
                // Every row of one form, some of the other: each question is a process.
                if sink == "jsonl" && n % 5 != 0 {
                    continue;
                }
                let name = format!("{file}.jsonl#{offset}");
                let answer = why(&bench, &name, "p.yaml");
                if row == 7 {
                    assert_eq!(answer["fate"], "quarantined", "{name}");
                    assert_eq!((&answer["stage"], &answer["code"]), (&"jsonl".into(), &"malformed_json".into()));
                    assert_eq!(why(&bench, &name, &out)["fate"], "quarantined", "the data set alone says so too");
                } else if row < 10 || n == 111 {
                    assert_eq!((&answer["fate"], &answer["reason"]), (&"dropped".into(), &"too_short".into()));
                    assert_eq!(answer["values"]["character_length(text)"], row, "{answer}");
                    assert_eq!(answer["values"]["n"], n, "{answer}");
                } else if row == 20 && file > 0 {
                    assert_eq!(answer["reason"], "duplicate", "{name}: {answer}");
                    assert_eq!(answer["values"]["duplicate_of"], first_of_repeats.as_str());
                } else if answer["fate"] == "kept" {
                    kept.push(n);
                } else {
                    assert_eq!(answer["reason"], "not_sampled", "{name}: {answer}");
                    assert!(answer["values"]["drawn"].as_f64().unwrap() >= 0.5);
                    sampled_out += 1;
                }
                if row == 20 && file == 0 {
                    let duplicate = why(&bench, &format!("1.jsonl#{}", offsets[1][20]), &out);
                    first_of_repeats = duplicate["values"]["duplicate_of"].as_str().unwrap().to_owned();
                    assert!(first_of_repeats.ends_with(&format!("{offset:016x}")), "{first_of_repeats}");
                }
            }
        }
        assert!(kept.len() > 5 && sampled_out > 5);
        if sink == "parquet" {
            assert_eq!(kept.len() + sampled_out, 3 * 30 - 1 - 2);
            let mut written: Vec<usize> =
                integers(&bench.rows(&format!("{out}/data")), "n").into_iter().map(|n| n as usize).collect();
            written.sort_unstable();
            assert_eq!(kept, written);
        }
        let unknown = bench.run(&["why", "no-such-row", &out]);
        assert_eq!((unknown.code, unknown.out.as_str()), (Some(1), ""));
        assert!(unknown.err.contains("nothing says what became of `no-such-row`"), "{}", unknown.err);
    }
}

#[test]
fn keys_and_skipped_row_groups_have_an_answer() {
    let bench = Bench::new();
    bench.write("in/a.jsonl", (0..30_000).map(|n| format!("{{\"n\": {n}}}\n")).collect::<String>());
    bench.write(
        "to.yaml",
        "sources: { rows: { type: jsonl, path: 'in/*.jsonl' } }\nsinks: { out: { type: parquet, path: flat } }\n",
    );
    bench.ok(&["run", "to.yaml"]);
    // The data set's own files as a source: `row_id` is taken over.
    let source = |key: &str, columns: &str| {
        format!(
            "sources: {{ rows: {{ type: parquet, path: 'plain/data/*.parquet'{key} }} }}
stages: {{ few: {{ type: filter, where: '{columns}' }} }}
sinks: {{ out: {{ type: parquet, path: out }} }}
"
        )
    };
    bench.write(
        "plain.yaml",
        "sources: { rows: { type: jsonl, path: 'in/*.jsonl', key: n } }\nstages: { few: { type: filter, where: 'n % 2 = 0' } }\nsinks: { out: { type: parquet, path: keyed } }\n",
    );
    bench.ok(&["run", "plain.yaml"]);
    assert_eq!(why(&bench, "28", "keyed")["fate"], "kept");
    let odd = why(&bench, "27", "keyed");
    assert_eq!(
        (&odd["fate"], &odd["values"]["n % 2"], &odd["values"]["n"]),
        (&"dropped".into(), &Value::Null, &27.into())
    );
    // Parquet without ids, where statistics let a filter skip everything unread.
    let rows = bench.rows("flat/data");
    let index = rows.schema().index_of("n").unwrap();
    std::fs::create_dir_all(bench.path("plain/data")).unwrap();
    let file = std::fs::File::create(bench.path("plain/data/x.parquet")).unwrap();
    let narrow = rows.project(&[index]).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, narrow.schema(), None).unwrap();
    writer.write(&narrow).unwrap();
    writer.close().unwrap();
    bench.write("q.yaml", source("", "n > 50000"));
    bench.ok(&["run", "q.yaml"]);
    let skipped = why(&bench, "x.parquet#17", "q.yaml");
    assert_eq!((&skipped["stage"], &skipped["reason"]), (&"few".into(), &"skipped_by_statistics".into()));
    bench.write("q.yaml", source("", "n > 29000"));
    bench.ok(&["run", "q.yaml"]);
    // The page of this row holds wanted ones too.
    assert_eq!(why(&bench, "x.parquet#28000", "q.yaml")["values"]["n"], 28_000);
    assert_eq!(why(&bench, "x.parquet#29999", "q.yaml")["fate"], "kept");
}

#[test]
fn what_is_told_of_a_row_never_fails_a_run() {
    let bench = Bench::new();
    bench.write("in/a.jsonl", "{\"n\": 1, \"t\": \"7\"}\n{\"n\": 0, \"t\": \"seven\"}\n{\"n\": 2, \"t\": \"x\"}\n");
    for (predicate, kept) in [
        // Simplified to less than it names; the column is written nowhere.
        ("n > 5 or 1 = 1", 3),
        ("n > 1 or n is not null or length(t) < 0", 3),
        // Values that cannot be computed, of rows for which the predicate need not compute them.
        ("n = 9 and cast(t as int) = 7", 0),
        ("n = 9 and to_timestamp(t, '%s') > to_timestamp(0)", 0),
        ("n in (1, 2) and t like 'x%' and not t = 'y'", 1),
        ("case when n > 0 then n else -n end > 1", 1),
        ("n + 1 > n and n - 1 > 5", 0),
    ] {
        bench.write(
            "p.yaml",
            format!(
                "sources: {{ rows: {{ type: jsonl, path: 'in/*.jsonl' }} }}
stages:
  few: {{ type: filter, where: \"{predicate}\" }}
  narrow: {{ type: sql, query: 'select t from few' }}
sinks: {{ out: {{ type: parquet, path: out }} }}
"
            ),
        );
        bench.ok(&["run", "p.yaml"]);
        assert_eq!(bench.rows("out/data").num_rows(), kept, "{predicate}");
        if kept < 3 {
            let why = bench.ok(&["why", "a.jsonl#19", "out"]);
            assert!(why.out.contains("\"stage\":\"few\""), "{predicate}: {}", why.out);
        }
    }
}

#[test]
fn a_row_of_an_unfinished_run_is_on_the_way_or_not_reached() {
    let bench = Bench::new();
    let big = |bad: bool| {
        let line = format!("{{\"t\": \"{}\"}}\n", "y".repeat(1000));
        if bad { "{no\n".repeat(1100) } else { line.repeat(1100) }
    };
    for (name, bad) in [("a", false), ("b", true), ("c", false)] {
        bench.write(&format!("in/{name}.jsonl"), big(bad));
    }
    bench.write(
        "p.yaml",
        "settings: { max_bad: '100', shard_mib: 1 }
sources: { rows: { type: jsonl, path: 'in/*.jsonl' } }
stages:
  all: { type: filter, where: 'length(t) > 0' }
  mixed: { type: shuffle }
sinks: { out: { type: parquet, path: out } }
",
    );
    assert_eq!(bench.run(&["run", "p.yaml", "--threads", "1"]).code, Some(3));
    let first = why(&bench, "a.jsonl#0", "p.yaml");
    assert_eq!((&first["fate"], &first["through"]), (&"on_the_way".into(), &"all".into()));
    assert_eq!(why(&bench, "b.jsonl#0", "p.yaml")["fate"], "quarantined");
    let last = why(&bench, "c.jsonl#0", "p.yaml");
    assert_eq!((&last["fate"], &last["file"]), (&"not_reached".into(), &"c.jsonl".into()));
}

#[test]
fn two_data_sets_are_compared_row_by_row() {
    let bench = Bench::new();
    input(&bench);
    for (name, least) in [("old.yaml", 10), ("new.yaml", 14)] {
        bench.write(name, pipeline(least, "parquet").replace("fraction: 0.5", "fraction: 1.0"));
        bench.ok(&["run", name]);
    }
    let said = bench.ok(&["diff", "out/parquet10", "out/parquet14"]);
    let found: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&found["gained"], &found["lost"], &found["changed"]), (&0.into(), &12.into(), &0.into()));
    assert_eq!(found["lost_to"]["long: too_short"], 12, "{found}");
    let back = bench.ok(&["diff", "out/parquet14", "out/parquet10", "--rows"]);
    let rows = lines(&back);
    assert_eq!(rows.len(), 12);
    assert!(rows.iter().all(|r| r["change"] == "gained" && r["stage"] == "long: too_short"));
    // A changed value, and a column that is new.
    bench.write(
        "new.yaml",
        "sources: { rows: { type: jsonl, path: 'in/*.jsonl' } }
stages:
  long: { type: filter, where: 'length(text) >= 10 and n <> 111' }
  other: { type: sql, query: \"select case when n % 10 = 1 then 'changed' else name end as name, n, text, 1 as more from long\" }
sinks: { out: { type: parquet, path: out/changed } }
",
    );
    bench.ok(&["run", "new.yaml"]);
    let found: Value = serde_json::from_str(&bench.ok(&["diff", "out/parquet10", "out/changed"]).out).unwrap();
    assert_eq!((&found["gained"], &found["lost"]), (&2.into(), &0.into()), "{found}");
    assert_eq!(found["gained_from"]["unique: duplicate"], 2);
    assert_eq!((&found["changed"], &found["changed_columns"]["name"]), (&8.into(), &8.into()), "{found}");
    assert_eq!(found["columns_gained"], serde_json::json!(["more"]));
    let none: Value = serde_json::from_str(&bench.ok(&["diff", "out/changed", "out/changed"]).out).unwrap();
    assert_eq!((&none["gained"], &none["lost"], &none["changed"]), (&0.into(), &0.into(), &0.into()));
    assert_eq!(bench.run(&["diff", "out/changed", "in"]).code, Some(1));
}

#[test]
fn failed_rows_are_shown_with_why() {
    let bench = Bench::new();
    input(&bench);
    bench.write("p.yaml", pipeline(10, "parquet"));
    bench.ok(&["run", "p.yaml"]);
    let said = bench.ok(&["quarantine", "show", "out/parquet10"]);
    let rows = lines(&said);
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|r| r["stage"] == "jsonl" && r["code"] == "malformed_json" && r["source"] == "rows"));
    assert!(said.err.contains("3  jsonl: malformed_json"), "{}", said.err);
    assert_eq!(lines(&bench.ok(&["quarantine", "show", "out/parquet10", "--limit", "1"])).len(), 1);
    assert_eq!(lines(&bench.ok(&["quarantine", "show", "out/parquet10", "--code", "other"])).len(), 0);
    let ids = texts(&bench.rows("out/parquet10/_quarantine"), "row_id");
    assert_eq!(rows.iter().map(|r| r["row_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>(), ids);
}

#[test]
fn rows_that_a_query_or_a_limit_leaves_out_are_told() {
    let bench = Bench::new();
    let rows: String = (0..60).map(|n| format!("{{\"k\": \"k{n}\", \"g\": {}, \"n\": {n}}}\n", n % 4)).collect();
    bench.write("rows.jsonl", rows);
    let pipeline = |last: &str| {
        format!(
            "sources: {{ rows: {{ type: jsonl, path: rows.jsonl, key: k }} }}
stages:
  some: {{ type: filter, where: 'n >= 20' }}
  last: {last}
sinks: {{ out: {{ type: parquet, path: out }} }}
"
        )
    };
    let fates = |last: &str| -> Vec<String> {
        bench.write("p.yaml", pipeline(last));
        bench.ok(&["run", "p.yaml"]);
        let fate = |n: u32| {
            let answer = why(&bench, &format!("k{n}"), "p.yaml");
            if answer["fate"] == "left_out" {
                assert_eq!((&answer["stage"], &answer["through"]), (&"last".into(), &"some".into()));
            }
            answer["fate"].as_str().unwrap().to_owned()
        };
        [5, 20, 29, 30, 59].into_iter().map(fate).collect()
    };
    let first = fates("{ type: limit, rows: 10 }");
    assert_eq!(first, ["dropped", "kept", "kept", "left_out", "left_out"]);
    let best = fates("{ type: sql, query: 'select * from some where n <> 29 order by n desc limit 31' }");
    assert_eq!(best, ["dropped", "left_out", "left_out", "kept", "kept"]);
    let groups = fates("{ type: sql, query: 'select g, max(n) as n from some group by g' }");
    assert_eq!(groups, ["dropped", "left_out", "left_out", "left_out", "left_out"]);
}

#[test]
fn conditions_of_a_query_that_looks_at_one_row_at_a_time_are_told_as_filters_are() {
    let bench = Bench::new();
    let rows: String =
        (0..60).map(|n| format!("{{\"k\": \"k{n}\", \"t\": \"{}\", \"n\": {n}}}\n", "x".repeat(n))).collect();
    bench.write("rows.jsonl", format!("{rows}no JSON\n"));
    let pipeline = |query: &str| {
        format!(
            "sources: {{ rows: {{ type: jsonl, path: rows.jsonl, key: k }} }}
stages:
  some: {{ type: filter, where: 'n >= 10' }}
  last: {{ type: sql, query: \"{query}\" }}
sinks: {{ out: {{ type: parquet, path: out }} }}
"
        )
    };
    let inner = "select k, n * 2 as twice, t from some as s where length(s.t) between 20 and 50 and s.n <> 33";
    bench.write("p.yaml", pipeline(&format!("select twice from ({inner}) as q where q.twice < 90")));
    bench.ok(&["run", "p.yaml"]);
    let told = |n: u32| why(&bench, &format!("k{n}"), "p.yaml");
    let by = |answer: &Value| (answer["stage"].clone(), answer["reason"].clone(), answer["values"].clone());
    assert_eq!(told(40)["fate"], "kept");
    assert_eq!(by(&told(5)), ("some".into(), "some".into(), json!({ "n": 5 })));
    let (stage, reason, values) = by(&told(15));
    assert_eq!((stage, reason), ("last".into(), "not_selected".into()));
    assert_eq!(values, json!({ "character_length(t)": 15, "n": 15 }));
    // The outer condition tells which row it was.
    assert_eq!(by(&told(47)), ("last".into(), "not_selected".into(), json!({})));
    let manifest: Value =
        serde_json::from_slice(&fs::read(bench.path("out/_manifest/manifest.json")).unwrap()).unwrap();
    let last = manifest["funnel"].as_array().unwrap().iter().find(|s| s["stage"] == "last").unwrap();
    // 20 to 44 without 33, and the line that is no JSON.
    assert_eq!((&last["rows_in"], &last["rows_out"]), (&json!(51), &json!(25)), "{last}");
    assert_eq!(manifest["rows"], 24);
    let said = bench.ok(&["why", "k15", "p.yaml"]);
    assert!(said.err.contains("was dropped by `last`: not_selected"), "{}", said.err);
}
