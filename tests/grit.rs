//! The main job: photographs and captions in, grounded pairs out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use arrow::array::{Array, AsArray};
use support::{Bench, root, texts};

fn grit(bench: &Bench, threads: &str, output: &str) -> support::Said {
    let pipeline = root().join("pipelines/grit.yaml");
    let input = format!("input={}", root().join("examples/photos").display());
    bench.ok(&[
        "run",
        pipeline.to_str().unwrap(),
        "--set",
        &input,
        "--set",
        &format!("output={output}"),
        "--threads",
        threads,
    ])
}

#[test]
fn the_example_photographs_give_grounded_pairs() {
    let bench = Bench::new();
    let said = grit(&bench, "2", "out");
    for expected in ["18  rows in", "8  kept", "10  dropped: no_grounded_expression", "0  quarantined", "report.html"] {
        assert!(said.err.contains(expected), "no {expected:?} in\n{}", said.err);
    }
    let rows = bench.rows("out/data");
    let names = texts(&rows, "file_name");
    for found in ["astronaut.png", "chelsea.png", "coffee.png", "two_dogs.jpg", "wine_table.jpg"] {
        assert!(names.iter().any(|n| n == found), "{found} is not among {names:?}");
    }
    for empty in ["rocket.jpg", "mountains.jpg", "dandelions.jpg", "pagoda.jpg"] {
        assert!(!names.iter().any(|n| n == empty), "{empty} has nothing to detect");
    }
    // The released form: [start, end, x1, y1, x2, y2, score], spans inside the caption, boxes inside the picture, best score first.
    let captions = texts(&rows, "caption");
    for column in ["noun_chunks", "ref_exps"] {
        let lists = rows.column_by_name(column).unwrap().as_list::<i32>();
        for (row, caption) in captions.iter().enumerate() {
            let entries = lists.value(row);
            let entries = entries.as_list::<i32>();
            let mut last = f64::INFINITY;
            assert!(!entries.is_empty());
            for i in 0..entries.len() {
                let entry = entries.value(i);
                let e = entry.as_primitive::<arrow::datatypes::Float64Type>().values().to_vec();
                assert_eq!(e.len(), 7);
                assert!(0.0 <= e[0] && e[0] < e[1] && e[1] <= caption.chars().count() as f64, "{e:?} in {caption}");
                assert!(
                    0.0 <= e[2] && e[2] < e[4] && e[4] <= 1.0 && 0.0 <= e[3] && e[3] < e[5] && e[5] <= 1.0,
                    "{e:?}"
                );
                assert!((0.45..=last).contains(&e[6]), "{e:?}");
                last = e[6];
            }
        }
    }
    let card = std::fs::read_to_string(bench.path("out/README.md")).unwrap();
    for words in ["en_core_web_trf", "GLIP", "0.65", "0.45", "no_grounded_expression"] {
        assert!(card.contains(words), "the card does not say {words}");
    }
    let report = std::fs::read_to_string(bench.path("out/report.html")).unwrap();
    assert!(report.contains("data:image/jpeg;base64,") && !report.contains("http-equiv=\"refresh\""));
}

#[test]
fn a_second_run_does_nothing_and_threads_change_no_byte() {
    let bench = Bench::new();
    grit(&bench, "1", "out");
    let first = bench.bytes("out");
    let again = grit(&bench, "3", "out");
    assert!(again.err.contains("up to date") && again.err.contains("nothing to do"), "{}", again.err);
    assert_eq!(bench.bytes("out"), first);
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    std::fs::remove_dir_all(bench.path(".out.groundloom")).unwrap();
    grit(&bench, "3", "out");
    let second = bench.bytes("out");
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    for (name, bytes) in &first {
        assert!(second[name] == *bytes, "{name} differs between 1 and 3 threads");
    }
}

#[test]
fn the_seed_s_example_keeps_the_whole_expression() {
    let bench = Bench::new();
    let pipeline = root().join("pipelines/grit-boxes.yaml");
    let input = format!("input={}", root().join("examples/boxes/pairs.jsonl").display());
    bench.ok(&["run", pipeline.to_str().unwrap(), "--set", &input, "--set", "output=out"]);
    let rows = bench.rows("out/data");
    let at = texts(&rows, "caption").iter().position(|c| c == "a dog in a field of flowers").unwrap();
    let of = |column: &str| -> Vec<String> {
        let list = rows.column_by_name(column).unwrap().as_list::<i32>().value(at);
        let text = list.as_struct().column_by_name("text").unwrap().as_string::<i32>().clone();
        text.iter().map(|t| t.unwrap().to_owned()).collect()
    };
    assert_eq!(of("chunks"), ["a dog", "a field", "flowers"]);
    assert_eq!(of("expressions"), ["a dog in a field of flowers"]);
}

#[test]
fn detections_are_json_lines() {
    let bench = Bench::new();
    let cat = root().join("examples/photos/chelsea.png");
    let said = bench.ok(&["detect", "--phrases", "a tabby cat . a dog .", cat.to_str().unwrap()]);
    let line: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((line["width"].as_u64(), line["height"].as_u64()), (Some(451), Some(300)));
    let found = line["detections"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{line}");
    assert_eq!(found[0]["label"], "a tabby cat");
    let score = found[0]["score"].as_f64().unwrap();
    assert!((score - 0.8472).abs() < 0.02, "LiteRT's score is 0.8472, ours {score}");
    let bad = bench.run(&["detect", "--model", "no-such-model", cat.to_str().unwrap()]);
    assert_eq!(bad.code, Some(2));
}

#[test]
fn parses_are_json_lines() {
    let bench = Bench::new();
    let file = bench.write("texts.jsonl", "{\"c\": \"A dog in a field of flowers.\"}\n");
    let said = bench.ok(&["parse", "--jsonl", "c", "--chunks", file.to_str().unwrap()]);
    let line: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let chunks: Vec<&str> =
        line["noun_chunks"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(chunks, ["A dog", "a field", "flowers"]);
}
