//! Fan-out, SQL, samples and limits; and runs that are killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use support::{Bench, integers, texts};

/// `files` files of `rows` lines each.
fn input(bench: &Bench, files: usize, rows: usize) {
    for file in 0..files {
        let lines: Vec<String> = (0..rows)
            .map(|row| {
                let n = file * rows + row;
                format!(
                    "{{\"n\": {n}, \"city\": \"c{}\", \"caption\": \"a dog number {n} in a field of flowers\"}}",
                    n % 7
                )
            })
            .collect();
        bench.write(&format!("in/{file:03}.jsonl"), lines.join("\n") + "\n");
    }
}

const GRAPH: &str = "
settings: { shard_mib: 1 }
sources: { rows: { type: jsonl, path: 'in/*.jsonl' } }
stages:
  odd: { type: filter, where: 'n % 2 = 1', reason: even, checkpoint: true }
  shout: { type: sql, query: 'select n, city, upper(city) as CITY from odd where n > 10' }
  chunks: { type: noun_chunks, text: caption, input: odd }
  per_city: { type: sql, query: 'select city, count(*) as rows, sum(n) as total from odd group by city order by city' }
  joined: { type: sql, query: 'select odd.n, odd.city, per_city.rows as others from odd join per_city on odd.city = per_city.city where odd.n < 100' }
  some: { type: sample, fraction: 0.25, seed: 3, input: shout }
  first: { type: limit, rows: 5, input: chunks }
sinks:
  cities: { type: parquet, path: out/cities, input: per_city }
  joined_rows: { type: parquet, path: out/joined, input: joined }
  sampled: { type: parquet, path: out/sampled, input: some }
  head: { type: parquet, path: out/head, input: first }
";

#[test]
fn a_graph_with_branches_joins_and_samples_gives_the_right_rows() {
    let bench = Bench::new();
    input(&bench, 3, 200);
    bench.write("p.yaml", GRAPH);
    bench.ok(&["run", "p.yaml", "--threads", "2"]);
    let odd: Vec<i64> = (0..600).filter(|n| n % 2 == 1).collect();
    let cities = bench.rows("out/cities/data");
    assert_eq!(texts(&cities, "city"), (0..7).map(|c| format!("c{c}")).collect::<Vec<_>>());
    let expected: Vec<i64> = (0..7).map(|c| odd.iter().filter(|n| *n % 7 == c).sum()).collect();
    assert_eq!(integers(&cities, "total"), expected);
    let joined = bench.rows("out/joined/data");
    let mut n = integers(&joined, "n");
    n.sort_unstable();
    assert_eq!(n, odd.iter().copied().filter(|n| *n < 100).collect::<Vec<_>>());
    let sampled = bench.rows("out/sampled/data");
    let drawn = integers(&sampled, "n");
    assert!((40..110).contains(&drawn.len()), "{}", drawn.len());
    assert!(drawn.iter().all(|n| *n > 10 && n % 2 == 1));
    assert_eq!(texts(&sampled, "CITY")[0], texts(&sampled, "city")[0].to_uppercase());
    let head = bench.rows("out/head/data");
    assert_eq!(integers(&head, "n"), [1, 3, 5, 7, 9]);
    for rows in [&cities, &joined, &sampled, &head] {
        let mut ids = texts(rows, "row_id");
        let all = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), all, "row ids are unique");
        assert!(ids.iter().all(|id| id.len() == 32));
    }
}

#[test]
fn threads_and_repetition_change_no_byte() {
    let bytes: Vec<BTreeMap<String, Vec<u8>>> = ["1", "4"]
        .iter()
        .map(|threads| {
            let bench = Bench::new();
            input(&bench, 5, 3_000);
            bench.write("p.yaml", GRAPH);
            bench.ok(&["run", "p.yaml", "--threads", threads]);
            ["cities", "joined", "sampled", "head"]
                .iter()
                .flat_map(|o| {
                    bench.bytes(&format!("out/{o}/data")).into_iter().map(move |(n, b)| (format!("{o}/{n}"), b))
                })
                .collect()
        })
        .collect();
    assert_eq!(bytes[0].keys().collect::<Vec<_>>(), bytes[1].keys().collect::<Vec<_>>());
    for (name, content) in &bytes[0] {
        assert!(bytes[1][name] == *content, "{name} differs");
    }
}

#[test]
fn a_killed_run_goes_on_and_ends_with_the_same_bytes() {
    let undisturbed = Bench::new();
    input(&undisturbed, 24, 1_500);
    undisturbed.write("p.yaml", GRAPH);
    let started = Instant::now();
    undisturbed.ok(&["run", "p.yaml", "--threads", "2"]);
    let whole = started.elapsed();
    let data = |bench: &Bench| -> BTreeMap<String, Vec<u8>> {
        ["cities", "joined", "sampled", "head"]
            .iter()
            .flat_map(|o| bench.bytes(&format!("out/{o}/data")).into_iter().map(move |(n, b)| (format!("{o}/{n}"), b)))
            .collect()
    };
    let expected = data(&undisturbed);
    let bench = Bench::new();
    input(&bench, 24, 1_500);
    bench.write("p.yaml", GRAPH);
    for part in [10, 25, 40, 55, 70, 85] {
        let mut child =
            bench.command(&["run", "p.yaml", "--threads", "2"]).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(f64::from(part) / 100.0).max(Duration::from_millis(5)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    bench.ok(&["run", "p.yaml", "--threads", "2"]);
    assert!(data(&bench) == expected, "the output after six kills differs from an undisturbed run's");
    let left: Vec<String> = bench
        .bytes("out")
        .into_keys()
        .filter(|n| n.contains(".tmp") || n.contains("/next/") || n.contains("/spill/"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_new_file_costs_one_task_and_a_new_threshold_only_what_is_behind_it() {
    let bench = Bench::new();
    for name in ["a", "b", "c"] {
        bench.write(
            &format!("in/{name}.jsonl"),
            format!("{{\"n\": 1, \"t\": \"{}\"}}\n", "x".repeat(700_000)).repeat(2),
        );
    }
    let pipeline = |limit: u32| {
        format!(
            "settings: {{ shard_mib: 1 }}
sources: {{ rows: {{ type: jsonl, path: 'in/*.jsonl' }} }}
stages:
  long: {{ type: filter, where: 'length(t) > 3', checkpoint: true }}
  kept: {{ type: filter, where: 'n < {limit}' }}
sinks: {{ out: {{ type: parquet, path: out }} }}
"
        )
    };
    bench.write("p.yaml", pipeline(5));
    bench.ok(&["run", "p.yaml"]);
    let counts = |said: &support::Said| {
        let line = said.err.lines().find(|l| l.contains("\"finished\"")).unwrap().to_owned();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        (line["tasks_done"].as_u64().unwrap(), line["tasks_reused"].as_u64().unwrap())
    };
    let (_, all) = counts(&bench.ok(&["run", "p.yaml", "--log", "json"]));
    let planned = || bench.ok(&["plan", "p.yaml"]).out;
    assert!(!planned().contains("not reused"), "{}", planned());
    bench.write("p.yaml", pipeline(6));
    let reason = "not reused: `where` of `kept` was \"n < 5\", is \"n < 6\"";
    assert_eq!(planned().matches("not reused").count(), 1, "{}", planned());
    assert!(planned().contains(reason), "{}", planned());
    let (done, reused) = counts(&bench.ok(&["run", "p.yaml", "--log", "json"]));
    assert_eq!((done, reused), (all / 2, all / 2), "the checkpoint is reused");
    bench.write("in/d.jsonl", format!("{{\"n\": 2, \"t\": \"{}\"}}\n", "y".repeat(700_000)).repeat(2));
    let reason = "not reused: new or changed input, or not reached yet: from `d.jsonl`";
    assert!(planned().contains(reason), "{}", planned());
    let (done, reused) = counts(&bench.ok(&["run", "p.yaml", "--log", "json"]));
    assert_eq!((done, reused), (all / 3, all), "only the new file's tasks, in each segment");
    assert_eq!(bench.rows("out/data").num_rows(), 8);
}

#[test]
fn keep_rejected_writes_the_dropped_rows_beside_the_data() {
    let bench = Bench::new();
    input(&bench, 1, 10);
    bench.write("p.yaml", "sources: { s: { type: jsonl, path: 'in/*.jsonl' } }\nstages: { few: { type: filter, where: n < 3, reason: too_large, keep_rejected: true } }\nsinks: { out: { type: parquet, path: out } }\n");
    bench.ok(&["run", "p.yaml"]);
    assert_eq!(integers(&bench.rows("out/data"), "n"), [0, 1, 2]);
    let rejected = bench.rows("out/_rejected");
    assert_eq!(rejected.num_rows(), 7);
    assert!(texts(&rejected, "message").iter().all(|m| m == "too_large"));
    assert!(!bench.path("out/_quarantine").exists());
}

#[test]
fn an_input_that_would_change_the_columns_is_refused() {
    let bench = Bench::new();
    bench.write("in/a.jsonl", "{\"n\": 1, \"t\": \"one\"}\n");
    bench.write(
        "p.yaml",
        "sources: { rows: { type: jsonl, path: 'in/*.jsonl' } }\nsinks: { out: { type: parquet, path: out } }\n",
    );
    bench.ok(&["run", "p.yaml"]);
    let before = bench.bytes("out");
    bench.write("in/b.jsonl", "{\"n\": 2, \"t\": \"two\"}\n");
    bench.ok(&["run", "p.yaml"]);
    assert_eq!(bench.rows("out/data").num_rows(), 2, "rows of the same columns are welcome");
    assert!(bench.bytes("out") != before);
    let before = bench.bytes("out");
    bench.write("in/c.jsonl", "{\"n\": 2.5, \"t\": \"two and a half\"}\n");
    let said = bench.run(&["run", "p.yaml"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("the column `n` was int64") && said.err.contains("would be float64"), "{}", said.err);
    assert!(bench.bytes("out") == before, "the old data set stays");
    // Said in the file, it is a decision and no accident.
    bench.write(
        "p.yaml",
        "sources: { rows: { type: jsonl, path: 'in/*.jsonl' } }\nstages: { cast: { type: sql, query: 'select row_id, cast(n as double) as n, t from rows' } }\n\
         sinks: { out: { type: parquet, path: out } }\n",
    );
    bench.ok(&["run", "p.yaml"]);
    assert_eq!(bench.rows("out/data").num_rows(), 3);
}
