//! A real pipeline — fan-out, a model, a set stage — that is killed, torn, told to stop, run twice at once and left without room; then run again.
//!
//! `GROUNDLOOM_KILLS=1000 cargo test -p groundloom --test faults -- --nocapture` is the long form; `GROUNDLOOM_SEED` draws other moments.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use support::{Bench, root};

const PIPELINE: &str = r#"
name: faults
params: { min_score: 0.45 }
settings: { shard_mib: 1 }
sources:
  pairs: { type: image_folder, path: photos, metadata: captions.jsonl }
stages:
  chunks:    { type: noun_chunks, text: caption }
  grounded:  { type: ground, image: image, phrases: chunks }
  confident: { type: filter_boxes, min_score: "${min_score}" }
  kept:      { type: filter, where: "cardinality(boxes) > 0", reason: no_box }
  counted:   { type: sql, query: "select caption, count(*) as n, sum(cardinality(boxes)) as boxes from kept group by caption order by n desc, caption" }
sinks:
  good:   { type: parquet, input: kept, path: out/pairs, file_bytes: 3000000 }
  counts: { type: jsonl, input: counted, path: out/counts }
"#;

/// The folders that make up the output.
const TARGETS: [&str; 2] = ["out/pairs", "out/counts"];

type Files = BTreeMap<String, Vec<u8>>;

/// The example photographs, and two files that are none: four tasks of a mebibyte.
fn input(bench: &Bench) {
    let examples = root().join("examples/photos");
    let mut lines = fs::read_to_string(examples.join("captions.jsonl")).unwrap();
    for line in lines.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = row["file_name"].as_str().unwrap();
        bench.write(&format!("photos/{name}"), fs::read(examples.join(name)).unwrap());
    }
    for name in ["broken.jpg", "p-broken.png"] {
        bench.write(&format!("photos/{name}"), b"no picture at all");
        lines.push_str(&format!("{{\"file_name\":\"{name}\",\"caption\":\"A dog.\"}}\n"));
    }
    bench.write("photos/captions.jsonl", lines);
    bench.write("p.yaml", PIPELINE);
}

fn outputs(bench: &Bench) -> Files {
    TARGETS
        .iter()
        .filter(|t| bench.path(t).exists())
        .flat_map(|t| bench.bytes(t).into_iter().map(move |(n, b)| (format!("{t}/{n}"), b)))
        .collect()
}

/// What a target holds must be all of the old generation or all of the new one.
fn is_whole(found: &Files, target: &str, generations: &[&Files]) -> bool {
    let of = |files: &Files| -> Files {
        files.iter().filter(|(n, _)| n.starts_with(target)).map(|(n, b)| (n.clone(), b.clone())).collect()
    };
    let found = of(found);
    generations.iter().any(|g| of(g) == found)
}

fn start(bench: &Bench, arguments: &[&str]) -> Child {
    let mut command = bench.command(&["run", "p.yaml", "--threads", "2"]);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().unwrap())
}

/// The newest file of the ledgers loses its second half, as after a power cut on a careless disk.
fn tear_newest(bench: &Bench) -> bool {
    fn files(folder: &Path, all: &mut Vec<PathBuf>) {
        for item in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
            if item.path().is_dir() { files(&item.path(), all) } else { all.push(item.path()) }
        }
    }
    let mut all = Vec::new();
    for target in TARGETS {
        let name = target.rsplit('/').next().unwrap();
        files(&bench.path(&format!("out/.{name}.groundloom/segments")), &mut all);
    }
    // A part that is linked into a published data set shares its bytes: tearing it would be another fault.
    all.retain(|p| std::os::unix::fs::MetadataExt::nlink(&fs::metadata(p).unwrap()) == 1);
    let newest = all.iter().max_by_key(|p| fs::metadata(p).unwrap().modified().unwrap());
    let Some(newest) = newest else { return false };
    let file = fs::File::options().write(true).open(newest).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    true
}

fn leftovers(bench: &Bench) -> Vec<String> {
    let odd = |n: &String| [".tmp", "/next/", "/joined/", "/spill/", "/old/"].iter().any(|part| n.contains(part));
    bench.bytes("out").into_keys().filter(odd).collect()
}

#[test]
fn killed_at_any_moment_the_output_is_that_of_an_undisturbed_run() {
    let (wanted, seed) = (setting("GROUNDLOOM_KILLS", 16), setting("GROUNDLOOM_SEED", 7));
    let mut draw = numbers(seed);
    let old_run = ["--set", "min_score=0.6"];

    // Two generations, undisturbed. The manifests hold the versions of the input files, so all runs read the same ones.
    let bench = Bench::new();
    input(&bench);
    bench.ok(&["run", "p.yaml", "--threads", "2", "--set", "min_score=0.6"]);
    let old = outputs(&bench);
    let started = Instant::now();
    fs::remove_dir_all(bench.path("out")).unwrap();
    bench.ok(&["run", "p.yaml", "--threads", "2"]);
    let whole = started.elapsed();
    let new = outputs(&bench);
    assert!(old != new && new.len() > 6);

    let (mut kills, mut terminated, mut torn, mut equal, mut rounds, mut said) = (0, 0, 0, 0, 0, 0);
    while kills < wanted {
        rounds += 1;
        let _ = fs::remove_dir_all(bench.path("out"));
        let upgrade = draw(2) == 0;
        if upgrade {
            assert!(start(&bench, &old_run).wait().unwrap().success());
        }
        for _ in 0..=draw(4) {
            let mut child = start(&bench, &[]);
            std::thread::sleep(whole.mul_f64(draw(1000) as f64 / 900.0));
            if draw(4) == 0 {
                Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
                terminated += 1;
            } else {
                child.kill().unwrap();
            }
            kills += u64::from(!child.wait().unwrap().success());
            let found = outputs(&bench);
            let nothing = Files::new();
            for target in TARGETS {
                let before = if upgrade { &old } else { &nothing };
                assert!(
                    is_whole(&found, target, &[before, &new]),
                    "seed {seed}, round {rounds}: {target} is a mixture"
                );
            }
            if draw(3) == 0 {
                torn += u64::from(tear_newest(&bench));
            }
        }
        let last = start(&bench, &[]).wait().unwrap();
        assert!(last.success(), "seed {seed}, round {rounds}: the run after the kills failed");
        let found = outputs(&bench);
        let differing: Vec<&String> = new.keys().filter(|n| found.get(*n) != new.get(*n)).collect();
        assert!(found == new, "seed {seed}, round {rounds}: differs in {differing:?}");
        assert!(leftovers(&bench).is_empty(), "{:?}", leftovers(&bench));
        equal += 1;
        if kills / 50 > said {
            said = kills / 50;
            println!("{kills} kills in {rounds} rounds so far, all outputs equal");
        }
    }
    println!(
        "{kills} kills ({terminated} by SIGTERM) and {torn} torn files in {rounds} rounds: {equal} outputs equal, {} not",
        rounds - equal
    );
}

#[test]
fn what_a_run_killed_behind_its_publication_left_is_gone_after_the_next() {
    let bench = Bench::new();
    input(&bench);
    bench.ok(&["run", "p.yaml"]);
    let (expected, work) = (outputs(&bench), bench.path("out/.pairs.groundloom"));
    let first = |folder: &str| fs::read_dir(work.join(folder)).unwrap().next().unwrap().unwrap().path();
    let (run, segment) = (first("runs"), first("segments"));
    let record = fs::read_to_string(run.join("run.json")).unwrap();
    // As the kill leaves it: the record says that the run works, and what was being written has its temporary name.
    fs::write(run.join("run.json"), record.replace("\"finished\"", "\"running\"")).unwrap();
    let unborn = work.join("runs/20200101T000000.000Z-1");
    fs::create_dir(&unborn).unwrap();
    // The second sink's old generation, behind the exchange.
    let replaced = bench.path("out/.counts.groundloom/next");
    fs::create_dir(&replaced).unwrap();
    for left in [
        replaced.join("README.md"),
        run.join("run.json.tmp"),
        unborn.join("run.json.tmp"),
        segment.join("segment.1.tmp"),
        segment.join("entries/0.1.tmp"),
        segment.join("parts/0.1-0.data.parquet"),
    ] {
        fs::write(left, "half of it").unwrap();
    }
    bench.ok(&["run", "p.yaml"]);
    assert!(outputs(&bench) == expected);
    assert!(leftovers(&bench).is_empty(), "{:?}", leftovers(&bench));
    assert!(!unborn.exists() && !segment.join("parts/0.1-0.data.parquet").exists());
    let said = bench.ok(&["run", "p.yaml"]);
    assert!(said.err.contains("up to date"), "{}", said.err);
}

#[test]
fn of_two_runs_at_once_one_is_refused() {
    let bench = Bench::new();
    input(&bench);
    let first = bench.command(&["run", "p.yaml"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let lock = bench.path("out/.pairs.groundloom/lock");
    let begun = Instant::now();
    while !fs::read_to_string(&lock).is_ok_and(|t| t.ends_with('\n')) && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let refused = bench.run(&["run", "p.yaml"]);
    let first = first.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(0), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("another run (process"), "{}", refused.err);
}

#[test]
fn without_room_the_run_fails_by_name_and_goes_on_later() {
    let bench = Bench::new();
    input(&bench);
    bench.ok(&["run", "p.yaml"]);
    let expected = outputs(&bench);
    fs::remove_dir_all(bench.path("out")).unwrap();
    let binary = env!("CARGO_BIN_EXE_groundloom");
    // Files may not grow beyond 100 blocks: every larger write fails, as on a full disk.
    let script = format!("trap '' XFSZ; ulimit -f 100; exec {binary} run p.yaml");
    let output = Command::new("sh").args(["-c", &script]).current_dir(bench.path(".")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: ") && said.contains("out/.pairs.groundloom"), "the file is named: {said}");
    assert!(!bench.path("out/pairs").exists() && !bench.path("out/counts").exists(), "nothing looks whole");
    bench.ok(&["run", "p.yaml"]);
    assert!(outputs(&bench) == expected);
    assert!(leftovers(&bench).is_empty(), "{:?}", leftovers(&bench));
}

#[test]
#[cfg(target_os = "linux")]
fn on_a_full_disk_finished_work_is_kept() {
    let bench = Bench::new();
    input(&bench);
    bench.ok(&["run", "p.yaml"]);
    let expected = outputs(&bench);
    fs::remove_dir_all(bench.path("out")).unwrap();
    let out = bench.path("out");
    fs::create_dir(&out).unwrap();
    let mount = |options: &str| {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&out).output();
        mounted.is_ok_and(|o| o.status.success())
    };
    if !mount("size=3m") {
        eprintln!("no right to mount a small disk here: this part is left out");
        return;
    }
    let full = bench.run(&["run", "p.yaml"]);
    let grown = mount("remount,size=200m");
    let again = bench.run(&["run", "p.yaml"]);
    let found = outputs(&bench);
    let unmounted = Command::new("umount").arg(&out).status().unwrap();
    assert!(grown && unmounted.success());
    assert_eq!(full.code, Some(1), "{}", full.err);
    assert!(full.err.contains("free some room"), "{}", full.err);
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert!(again.err.contains("reused from an earlier run"), "{}", again.err);
    assert!(found == expected);
}

#[test]
fn files_that_are_joined_while_tasks_run_are_those_of_a_run_that_joins_them_at_its_end() {
    let bench = Bench::new();
    let mut draw = numbers(5);
    let mut text = || format!("{:016x}{:016x}", draw(u64::MAX >> 12), draw(u64::MAX >> 12));
    let rows = (0..160_000).map(|n| format!("{{\"n\":{n},\"t\":\"{}\"}}\n", text()));
    bench.write("rows.jsonl", rows.collect::<String>());
    bench.write(
        "p.yaml",
        "settings: { shard_mib: 1 }
sources: { rows: { type: jsonl, path: rows.jsonl } }
stages: { some: { type: filter, where: 'n % 3 > 0' } }
sinks:
  table: { type: parquet, path: out/pairs, file_bytes: 3000000 }
  lines: { type: jsonl, path: out/counts, file_bytes: 6000000 }
",
    );
    bench.ok(&["run", "p.yaml", "--threads", "2"]);
    let ahead = outputs(&bench);
    for target in TARGETS {
        let files = ahead.keys().filter(|n| n.starts_with(&format!("{target}/data/"))).count();
        assert!((3..8).contains(&files), "of eight parts {target} has {files} files");
        fs::remove_dir_all(bench.path(target)).unwrap();
    }
    // Every task is done already.
    bench.ok(&["run", "p.yaml"]);
    assert!(outputs(&bench) == ahead, "other bytes");
    assert_eq!(leftovers(&bench), [""; 0]);
}
