//! `quarantine retry`: rows that failed are mended, tried again alone, and land in the data set.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use support::{Bench, Said, integers, texts};

fn picture(seed: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let image = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * seed) as u8, y as u8, seed as u8]));
    image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

const PIPELINE: &str = "
settings: { shard_mib: 1 }
sources: { photos: { type: image_folder, path: photos } }
stages:
  sizes: { type: image_info, check: pixels, checkpoint: true }
  wide: { type: filter, where: 'width > 10', reason: too_narrow }
  hashed: { type: sql, query: 'select image, width, height, content_hash, decodable, file_bytes from wide' }
  widths: { type: sql, query: 'select width, count(*) as n from hashed group by width order by width' }
sinks:
  out: { type: parquet, path: out/rows, input: hashed }
  counts: { type: jsonl, path: out/counts, input: widths }
";

/// 60 pictures, four of them broken.
const BROKEN: [u32; 4] = [3, 17, 18, 59];

fn input(bench: &Bench, broken: &[u32]) {
    for i in 0..60 {
        let bytes = if broken.contains(&i) { b"no picture".to_vec() } else { picture(i + 1) };
        bench.write(&format!("photos/{i:02}.png"), bytes);
    }
    bench.write("p.yaml", PIPELINE);
}

fn finished(said: &Said) -> Value {
    let line = said.err.lines().find(|l| l.contains("\"finished\"")).unwrap_or_else(|| panic!("{}", said.err));
    serde_json::from_str(line).unwrap()
}

/// Every row's columns as text, by row id.
fn rows(bench: &Bench) -> BTreeMap<String, String> {
    let rows = bench.rows("out/rows/data");
    let columns: Vec<Vec<String>> =
        ["width", "height", "content_hash", "decodable", "file_bytes"].map(|c| texts(&rows, c)).into();
    texts(&rows, "row_id")
        .into_iter()
        .enumerate()
        .map(|(i, id)| (id, columns.iter().map(|c| c[i].as_str()).collect::<Vec<_>>().join(" ")))
        .collect()
}

fn manifest(bench: &Bench) -> Value {
    serde_json::from_slice(&std::fs::read(bench.path("out/rows/_manifest/manifest.json")).unwrap()).unwrap()
}

#[test]
fn mended_files_are_tried_alone_and_end_as_in_an_undisturbed_run() {
    let undisturbed = Bench::new();
    input(&undisturbed, &[]);
    undisturbed.ok(&["run", "p.yaml"]);
    let expected = rows(&undisturbed);
    assert_eq!(expected.len(), 60);

    let bench = Bench::new();
    input(&bench, &BROKEN);
    bench.ok(&["run", "p.yaml"]);
    assert_eq!(rows(&bench).len(), 56);
    assert_eq!(bench.rows("out/rows/_quarantine").num_rows(), 4);
    // Two are mended, one is replaced by something that is as broken, one stays.
    for i in [3, 59] {
        bench.write(&format!("photos/{i:02}.png"), picture(i + 1));
    }
    bench.write("photos/17.png", b"still no picture");
    let retried = bench.ok(&["quarantine", "retry", "p.yaml", "--log", "json"]);
    assert_eq!(finished(&retried)["rows_read"], 4, "only the failed rows are read: {}", retried.err);
    assert_eq!(rows(&bench).len(), 58);
    let now = manifest(&bench);
    assert_eq!(now["quarantined"]["undecodable_image"], 2, "{now}");
    let first = &now["funnel"][0];
    assert_eq!((&first["rows_in"], &first["rows_out"]), (&60.into(), &60.into()), "rows are counted once: {now}");
    assert_eq!(bench.rows("out/rows/_quarantine").num_rows(), 2);
    // A plain run has nothing to do and keeps what was won.
    let again = bench.ok(&["run", "p.yaml", "--log", "json"]);
    assert_eq!(finished(&again)["tasks_done"], 0, "{}", again.err);
    assert_eq!(rows(&bench).len(), 58);
    // The other two: the listing is a new one, so all that failed in the task that stands is tried again, and nothing else.
    for i in [17, 18] {
        bench.write(&format!("photos/{i:02}.png"), picture(i + 1));
    }
    let said = bench.ok(&["quarantine", "retry", "p.yaml"]);
    assert!(said.err.contains("trying 4 failed rows again"), "{}", said.err);
    assert_eq!(rows(&bench), expected);
    assert!(!bench.path("out/rows/_quarantine").exists());
    let now = manifest(&bench);
    assert_eq!((&now["rows"], &now["quarantined"]), (&60.into(), &serde_json::json!({})), "{now}");
    let counts = |b: &Bench| {
        let all = b.bytes("out/counts");
        all.into_iter().filter(|(n, _)| n.ends_with(".jsonl")).map(|(_, b)| b).collect::<Vec<_>>()
    };
    assert_eq!(counts(&bench), counts(&undisturbed), "the set stage saw the mended rows");
    let nothing = bench.ok(&["quarantine", "retry", "p.yaml"]);
    assert!(nothing.err.contains("no finished task has failed rows"), "{}", nothing.err);
    // `why` and a good row's change are as usual.
    let why: Value = serde_json::from_str(bench.ok(&["why", "17.png", "p.yaml"]).out.trim()).unwrap();
    assert_eq!(why["fate"], "kept");
    bench.write("photos/20.png", picture(200));
    let changed = bench.ok(&["run", "p.yaml", "--log", "json"]);
    assert!(finished(&changed)["rows_read"].as_u64().unwrap() >= 1);
    assert_eq!(rows(&bench).len(), 60);
    let hash = |r: &BTreeMap<String, String>| r.values().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(hash(&rows(&bench)).difference(&hash(&expected)).count(), 1);
}

#[test]
fn rows_whose_cause_is_outside_the_input_are_tried_again_too() {
    let bench = Bench::new();
    for file in 0..3 {
        let lines: String = (0..50)
            .map(|row| if row % 10 == 3 { "{oops\n".to_owned() } else { format!("{{\"n\": {}}}\n", file * 50 + row) })
            .collect();
        bench.write(&format!("in/{file}.jsonl"), lines);
    }
    bench.write(
        "p.yaml",
        "sources: { rows: { type: jsonl, path: 'in/*.jsonl' } }
stages: { even: { type: filter, where: 'n % 2 = 0' } }
sinks: { out: { type: parquet, path: out } }
",
    );
    bench.ok(&["run", "p.yaml"]);
    let before = bench.rows("out/data");
    // Nothing was mended: the rows fail again, and everything is as it was.
    let said = bench.ok(&["quarantine", "retry", "p.yaml", "--log", "json"]);
    assert!(said.err.contains("trying 15 failed rows again"), "{}", said.err);
    assert_eq!(finished(&said)["rows_read"], 15);
    assert_eq!(bench.rows("out/data"), before);
    assert_eq!(bench.rows("out/_quarantine").num_rows(), 15);
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(bench.path("out/_manifest/manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["quarantined"]["malformed_json"], 15, "{manifest}");
    assert_eq!(manifest["funnel"][0]["rows_in"], 150);
    // A line that is mended in place changes its file, which is done again in whole by any run, a retry too.
    let text = std::fs::read_to_string(bench.path("in/1.jsonl")).unwrap().replacen("{oops", "{\"n\": 998}", 1);
    bench.write("in/1.jsonl", text);
    bench.ok(&["quarantine", "retry", "p.yaml"]);
    let n = integers(&bench.rows("out/data"), "n");
    assert!(n.contains(&998) && n.len() == before.num_rows() + 1, "{n:?}");
    assert_eq!(bench.rows("out/_quarantine").num_rows(), 14);
}

#[test]
fn a_killed_retry_goes_on() {
    let undisturbed = Bench::new();
    input(&undisturbed, &[]);
    undisturbed.ok(&["run", "p.yaml"]);
    let bench = Bench::new();
    input(&bench, &BROKEN);
    bench.ok(&["run", "p.yaml"]);
    let before = rows(&bench);
    for i in BROKEN {
        bench.write(&format!("photos/{i:02}.png"), picture(i + 1));
    }
    let mut wait = 7u64;
    for _ in 0..8 {
        let mut child = bench
            .command(&["quarantine", "retry", "p.yaml"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait = (wait * 31 + 11) % 170;
        std::thread::sleep(Duration::from_millis(wait + 3));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = rows(&bench);
        assert!(now == before || now.len() == 60, "the old generation or the new one, whole");
    }
    bench.ok(&["quarantine", "retry", "p.yaml"]);
    assert_eq!(rows(&bench), rows(&undisturbed));
    bench.ok(&["run", "p.yaml"]);
    assert_eq!(rows(&bench), rows(&undisturbed));
}
