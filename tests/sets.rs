//! `dedup` and `shuffle`: against a plain model, within a memory limit, with pictures, on other threads, and killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use arrow::array::AsArray;
use support::{Bench, integers, texts};

/// Numbers that look random and are the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Rows over a few files: `n` counts them, `text` repeats, `group` is sometimes null.
fn input(bench: &Bench, seed: u64, files: usize, rows: usize, texts: u64) -> Vec<(i64, Option<i64>, String)> {
    let mut numbers = Numbers(seed);
    let mut all = Vec::new();
    for file in 0..files {
        let mut lines = String::new();
        for row in 0..rows {
            let n = (file * rows + row) as i64;
            let group = Some(numbers.below(4) as i64).filter(|g| *g != 3);
            let text = format!("caption {} with some length to it", numbers.below(texts));
            let shown = group.map_or_else(|| "null".to_owned(), |g| g.to_string());
            lines += &format!("{{\"n\": {n}, \"group\": {shown}, \"text\": \"{text}\"}}\n");
            all.push((n, group, text));
        }
        bench.write(&format!("in/{file:03}.jsonl"), lines);
    }
    all
}

const PIPELINE: &str = "
settings: { shard_mib: 1 }
sources: { rows: { type: jsonl, path: 'in/*.jsonl' } }
stages:
  unique: { type: dedup, by: [text, group] }
  mixed: { type: shuffle, seed: 11 }
sinks:
  unique_rows: { type: parquet, path: out/unique, input: unique }
  mixed_rows: { type: parquet, path: out/mixed, input: mixed }
";

fn data(bench: &Bench) -> BTreeMap<String, Vec<u8>> {
    ["unique", "mixed"]
        .iter()
        .flat_map(|o| bench.bytes(&format!("out/{o}")).into_iter().map(move |(n, b)| (format!("{o}/{n}"), b)))
        // The fingerprint holds the times of the input files, which each bench has its own of.
        .filter(|(name, _)| name.ends_with(".parquet"))
        .collect()
}

#[test]
fn the_first_of_equal_rows_stays_and_nulls_repeat_nothing() {
    for (seed, memory) in [(1, None), (2, Some("40MiB")), (3, None)] {
        let bench = Bench::new();
        let rows = input(&bench, seed, 4, 2_500, 450 * seed);
        bench.write("p.yaml", PIPELINE);
        let mut arguments = vec!["run", "p.yaml", "--threads", "3"];
        arguments.extend(memory.iter().flat_map(|m| ["--memory", m]));
        bench.ok(&arguments);
        let mut seen = HashMap::new();
        let mut expected = Vec::new();
        let mut repeats = 0;
        for (n, group, text) in &rows {
            match group {
                Some(group) if seen.contains_key(&(group, text)) => repeats += 1,
                Some(group) => {
                    seen.insert((group, text), n);
                    expected.push(*n);
                }
                None => expected.push(*n),
            }
        }
        assert!(repeats > 500, "{repeats}");
        let unique = bench.rows("out/unique/data");
        assert_eq!(integers(&unique, "n"), expected, "seed {seed}");
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(bench.path("out/unique/_manifest/manifest.json")).unwrap()).unwrap();
        let stage = manifest["funnel"].as_array().unwrap().iter().find(|s| s["stage"] == "unique").unwrap();
        assert_eq!(stage["reason"], "duplicate");
        assert_eq!(stage["rows_in"].as_u64().unwrap() - stage["rows_out"].as_u64().unwrap(), repeats);
        // Every dropped row names the one it repeats.
        let ids: HashMap<String, i64> = texts(&unique, "row_id").into_iter().zip(integers(&unique, "n")).collect();
        let dropped = bench.rows("out/unique/_manifest/dropped");
        assert_eq!(dropped.num_rows() as u64, repeats);
        for first in texts(&dropped, "unique.duplicate_of") {
            assert!(ids.contains_key(&first), "{first} is no row that stayed");
        }
        // The shuffled rows are the same rows in another order.
        let mixed = integers(&bench.rows("out/mixed/data"), "n");
        assert_ne!(mixed, expected);
        assert!(mixed.windows(2).filter(|w| w[0] < w[1]).count() * 10 < mixed.len() * 6, "not mixed");
        assert_eq!(mixed.into_iter().collect::<BTreeSet<_>>(), expected.into_iter().collect());
    }
}

#[test]
fn threads_memory_and_shards_change_no_order() {
    let run = |shard_mib: u32, arguments: &[&str]| {
        let bench = Bench::new();
        input(&bench, 5, 6, 2_000, 3_000);
        bench.write("p.yaml", PIPELINE.replace("shard_mib: 1", &format!("shard_mib: {shard_mib}")));
        bench.ok(&[&["run", "p.yaml"], arguments].concat());
        (bench.rows("out/unique/data"), bench.rows("out/mixed/data"), data(&bench))
    };
    let one = run(1, &["--threads", "1"]);
    let many = run(1, &["--threads", "4", "--memory", "40MiB"]);
    assert!(one.2 == many.2, "threads or a memory limit changed a byte");
    let coarse = run(64, &["--threads", "2"]);
    assert_eq!((one.0, one.1), (coarse.0, coarse.1), "the size of shards changed rows");
}

/// A PNG of one colour.
fn picture(red: u8, green: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let image = image::RgbImage::from_pixel(9, 7, image::Rgb([red, green, 40]));
    image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

#[test]
fn pictures_are_compared_by_their_bytes_and_stay_with_their_rows() {
    let bench = Bench::new();
    let mut expected = BTreeMap::new();
    for i in 0..120u32 {
        // Every fifth picture repeats another one under its own name.
        let of = if i % 5 == 4 { i - 2 } else { i };
        let bytes = picture((of % 250) as u8, (of / 250) as u8);
        bench.write(&format!("photos/{i:03}.png"), &bytes);
        if i % 5 != 4 {
            expected.insert(format!("{i:03}.png"), bytes);
        }
    }
    // The source twice: as files, and as Parquet, where media columns of a foreign file are fetched late.
    bench.write(
        "files.yaml",
        "sources: { photos: { type: image_folder, path: photos } }
stages:
  unique: { type: dedup, by: [image] }
  mixed: { type: shuffle, seed: 3 }
sinks: { out: { type: parquet, path: out/files } }
",
    );
    bench.write(
        "again.yaml",
        "sources: { photos: { type: parquet, path: 'out/files/data/*.parquet' } }
stages: { mixed: { type: shuffle, seed: 4 } }
sinks: { out: { type: parquet, path: out/again } }
",
    );
    bench.ok(&["run", "files.yaml"]);
    bench.ok(&["run", "again.yaml"]);
    let mut orders = Vec::new();
    for output in ["files", "again"] {
        let rows = bench.rows(&format!("out/{output}/data"));
        let images = rows.column_by_name("image").unwrap().as_struct();
        let bytes = images.column_by_name("bytes").unwrap();
        let bytes = arrow::compute::cast(bytes, &arrow::datatypes::DataType::Binary).unwrap();
        let paths = arrow::compute::cast(images.column_by_name("path").unwrap(), &arrow::datatypes::DataType::Utf8);
        let paths = paths.unwrap();
        let found: Vec<(String, Vec<u8>)> = (0..rows.num_rows())
            .map(|i| {
                let path = paths.as_string::<i32>().value(i).rsplit('/').next().unwrap().to_owned();
                (path, bytes.as_binary::<i32>().value(i).to_vec())
            })
            .collect();
        assert!(found.iter().cloned().collect::<BTreeMap<_, _>>() == expected, "{output}: a picture left its row");
        assert_eq!(found.len(), expected.len());
        orders.push(found.into_iter().map(|(path, _)| path).collect::<Vec<_>>());
    }
    assert_ne!(orders[0], expected.keys().cloned().collect::<Vec<_>>());
    assert_ne!(orders[0], orders[1], "another seed, another order");
}

#[test]
fn a_new_row_moves_no_other() {
    let order = |extra: bool| {
        let bench = Bench::new();
        input(&bench, 9, 3, 500, 100_000);
        if extra {
            bench.write("in/001a.jsonl", "{\"n\": -1, \"group\": 1, \"text\": \"new\"}\n");
        }
        bench.write("p.yaml", PIPELINE);
        bench.ok(&["run", "p.yaml"]);
        integers(&bench.rows("out/mixed/data"), "n")
    };
    let (before, after) = (order(false), order(true));
    assert_eq!(after.len(), before.len() + 1);
    assert_eq!(after.into_iter().filter(|n| *n >= 0).collect::<Vec<_>>(), before);
}

#[test]
fn killed_set_stages_end_with_the_same_bytes() {
    let undisturbed = Bench::new();
    input(&undisturbed, 7, 8, 3_000, 10_000);
    undisturbed.write("p.yaml", PIPELINE);
    let started = Instant::now();
    undisturbed.ok(&["run", "p.yaml", "--threads", "2"]);
    let whole = started.elapsed();
    let expected = data(&undisturbed);
    let bench = Bench::new();
    input(&bench, 7, 8, 3_000, 10_000);
    bench.write("p.yaml", PIPELINE);
    let mut numbers = Numbers(99);
    for _ in 0..8 {
        let mut child =
            bench.command(&["run", "p.yaml", "--threads", "2"]).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(numbers.below(1000) as f64 / 1000.0).max(Duration::from_millis(5)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    bench.ok(&["run", "p.yaml", "--threads", "2"]);
    assert!(data(&bench) == expected, "the output after eight kills differs from an undisturbed run's");
}

#[test]
fn what_does_not_fit_is_said_with_its_place() {
    let bench = Bench::new();
    input(&bench, 1, 1, 3, 10);
    for (stage, expected) in [
        ("{ type: dedup, by: [txt] }", "there is no column `txt`"),
        ("{ type: dedup, by: [] }", "by"),
        ("{ type: dedup, on: [text] }", "on"),
        ("{ type: shuffle, seed: -1 }", "seed"),
    ] {
        bench.write(
            "p.yaml",
            format!(
                "sources: {{ rows: {{ type: jsonl, path: 'in/*.jsonl' }} }}\nstages: {{ s: {stage} }}\nsinks: {{ out: {{ type: parquet, path: out }} }}\n"
            ),
        );
        let said = bench.run(&["check", "p.yaml"]);
        assert_eq!(said.code, Some(2), "{stage}: {}", said.err);
        assert!(said.err.contains(expected), "{stage}: {}", said.err);
    }
}
