//! What a run tells about itself: metrics while it works, a record when it ends, and what the record says of runs that were stopped or killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{Bench, root};

/// The example photographs, many times over, so that there is time to look.
fn input(bench: &Bench, copies: usize) {
    let examples = root().join("examples/photos");
    for copy in 0..copies {
        for name in ["chelsea.png", "rocket.jpg"] {
            if let Ok(bytes) = fs::read(examples.join(name)) {
                bench.write(&format!("photos/{copy:03}-{name}"), bytes);
                bench.write(&format!("photos/{copy:03}-{}.txt", name.split('.').next().unwrap()), "A cat and a dog.");
            }
        }
    }
    bench.write("photos/broken.jpg", b"none");
    bench.write("photos/broken.txt", "A dog.");
    bench.write(
        "p.yaml",
        "settings: { shard_mib: 1 }\nsources: { pairs: { type: image_folder, path: photos } }\n\
         stages:\n  chunks: { type: noun_chunks, text: caption }\n  grounded: { type: ground, image: image, phrases: chunks }\n\
         sinks: { out: { type: parquet, path: out } }\n",
    );
}

fn records(bench: &Bench) -> Vec<Value> {
    let mut names: Vec<_> =
        fs::read_dir(bench.path(".out.groundloom/runs")).unwrap().map(|f| f.unwrap().path()).collect();
    names.sort();
    names.iter().map(|p| serde_json::from_slice(&fs::read(p.join("run.json")).unwrap()).unwrap()).collect()
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn start(bench: &Bench, arguments: &[&str]) -> Child {
    bench.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn metrics_are_served_while_a_run_works_and_its_record_stays() {
    let bench = Bench::new();
    input(&bench, 30);
    let mut child = start(&bench, &["run", "p.yaml", "--metrics", "127.0.0.1:0", "--threads", "1"]);
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("metrics at http://").unwrap().strip_suffix("/metrics").unwrap().to_owned();
    let (mut last, mut refused) = (String::new(), String::new());
    while child.try_wait().unwrap().is_none() {
        if let Some(answer) = get(&address, "/metrics") {
            last = answer;
        }
        if refused.is_empty() {
            refused = get(&address, "/else").unwrap_or_default();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    assert!(last.starts_with("HTTP/1.1 200") && last.trim_end().ends_with("# EOF"), "{last}");
    for metric in
        ["groundloom_tasks ", "groundloom_rows_read_total ", "groundloom_stage_rows_total{stage=\"grounded\"} "]
    {
        assert!(last.lines().any(|l| l.starts_with(metric)), "{metric} is not in {last}");
    }
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
    assert!(rest.contains("Time of the stages") && rest.contains("grounded"), "{rest}");

    let [record] = records(&bench).try_into().unwrap();
    assert_eq!(record["outcome"], "finished");
    assert_eq!(record["threads"], 1);
    assert_eq!(record["sinks"][0]["target"], "out");
    assert_eq!(record["measured"]["quarantined"]["undecodable_image"], 1);
    assert_eq!(record["measured"]["rows_read"], record["sinks"][0]["funnel"][0]["rows_in"]);
    let manifest: Value =
        serde_json::from_slice(&fs::read(bench.path("out/_manifest/manifest.json")).unwrap()).unwrap();
    assert_eq!(record["sinks"][0]["fingerprint"], manifest["fingerprint"]);
    bench.ok(&["run", "p.yaml"]);
    assert_eq!(records(&bench).len(), 1, "a run with nothing to do leaves no record");
}

#[test]
fn stopped_and_killed_runs_are_told_apart() {
    let bench = Bench::new();
    input(&bench, 30);
    let wait_for_start = |bench: &Bench, count: usize| {
        let begun = Instant::now();
        let runs = bench.path(".out.groundloom/runs");
        while fs::read_dir(&runs).map_or(0, Iterator::count) < count && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(30));
    };
    let mut stopped = start(&bench, &["run", "p.yaml", "--threads", "1"]);
    wait_for_start(&bench, 1);
    Command::new("kill").args(["-TERM", &stopped.id().to_string()]).status().unwrap();
    let code = stopped.wait().unwrap().code();
    let mut said = String::new();
    stopped.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("run the same command to go on from here"), "{said}");
    assert_eq!(records(&bench)[0]["outcome"], "stopped");

    let mut killed = start(&bench, &["run", "p.yaml", "--threads", "1"]);
    wait_for_start(&bench, 2);
    killed.kill().unwrap();
    killed.wait().unwrap();
    bench.ok(&["run", "p.yaml"]);
    let outcomes: Vec<String> = records(&bench).iter().map(|r| r["outcome"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcomes, ["stopped", "killed", "finished"]);
}

#[test]
fn an_address_that_is_taken_is_an_error_of_the_arguments() {
    let bench = Bench::new();
    input(&bench, 1);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = bench.run(&["run", "p.yaml", "--metrics", &address]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains(&address), "{}", said.err);
}

#[test]
fn a_run_goes_on_when_nobody_reads_what_it_says() {
    let bench = Bench::new();
    input(&bench, 2);
    let mut child = start(&bench, &["run", "p.yaml"]);
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(bench.path("out/_manifest/manifest.json").exists());
}
