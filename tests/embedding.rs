//! Vectors by hand and in pipelines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use arrow::array::{Array, AsArray, FixedSizeListArray};
use arrow::datatypes::Float32Type;
use support::{Bench, root};

fn fixture(family: &str) -> String {
    root().join("crates/groundloom-models/tests/data/fixtures").join(family).display().to_string()
}

fn photo(name: &str) -> String {
    root().join("examples/photos").join(name).display().to_string()
}

#[test]
fn texts_and_pictures_become_json_lines() {
    let bench = Bench::new();
    let said = bench.ok(&["embed", "--text", "a dog", "--text", ""]);
    let lines: Vec<serde_json::Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["text"], &lines[0]["dims"]), (2, &"a dog".into(), &384.into()));
    assert_eq!(lines[0]["embedding"].as_array().unwrap().len(), 384);

    let clip = fixture("clip");
    let said = bench.run(&[
        "embed",
        "--model",
        &clip,
        "--text",
        "a cat",
        "--image",
        &photo("chelsea.png"),
        "missing.jpg",
        &photo("rocket.jpg"),
    ]);
    assert_eq!((said.code, said.out.lines().count()), (Some(1), 3), "{}", said.err);
    assert!(said.err.contains("missing.jpg") && said.err.contains("1 of 4 inputs"), "{}", said.err);

    let said = bench.run(&["embed", "--model", "no-such-model", "--text", "a"]);
    assert!(said.code == Some(2) && said.err.contains("all-minilm-l6-v2"), "{}", said.err);
    assert_eq!(bench.run(&["embed"]).code, Some(2));
}

#[test]
fn models_are_listed_and_verified() {
    let bench = Bench::new();
    let said = bench.ok(&["models", "list"]);
    assert!(said.out.contains("all-minilm-l6-v2") && said.out.contains("ssd-mobilenet-v2-oidv4"), "{}", said.out);
    let said = bench.ok(&["models", "verify", &fixture("bert")]);
    assert!(said.out.contains("ok   out.sentence_embedding"), "{}", said.out);

    for file in ["model.safetensors", "expected.safetensors", "expected.json"] {
        fs::create_dir_all(bench.path("odd")).unwrap();
        fs::copy(format!("{}/{file}", fixture("mpnet")), bench.path("odd").join(file)).unwrap();
    }
    let config = fs::read_to_string(format!("{}/config.json", fixture("mpnet"))).unwrap();
    bench.write("odd/config.json", config.replace("1e-12", "1e-3"));
    let said = bench.run(&["models", "verify", "odd"]);
    assert!(said.code == Some(1) && said.out.contains("FAIL out.hidden.3"), "{}\n{}", said.out, said.err);
    assert!(said.err.contains("differ from the reference"), "{}", said.err);
}

#[test]
fn a_pipeline_embeds_and_scores_pictures_with_their_captions() {
    let bench = Bench::new();
    let photos = root().join("examples/photos");
    let names = ["chelsea.png", "rocket.jpg", "two_dogs.jpg"];
    for name in names {
        bench.write(&format!("in/{name}"), fs::read(photos.join(name)).unwrap());
    }
    bench.write("in/cut.png", &fs::read(photos.join("chelsea.png")).unwrap()[..500]);
    let captions: String = names
        .iter()
        .chain(&["cut.png"])
        .map(|name| format!("{{\"file_name\": \"{name}\", \"caption\": \"a photo of {name}\"}}\n"))
        .collect();
    bench.write("in/captions.jsonl", captions);
    let pipeline = format!(
        "
sources: {{ pairs: {{ type: image_folder, path: in, metadata: captions.jsonl }} }}
stages:
  seen: {{ type: embed, column: image, model: '{clip}', output: image_vector }}
  said: {{ type: embed, column: caption }}
  scored: {{ type: similarity, left: image, right: caption, model: '{clip}', output: clip_score }}
sinks: {{ out: {{ type: parquet, path: out }} }}
",
        clip = fixture("clip")
    );
    bench.write("p.yaml", &pipeline);
    bench.ok(&["run", "p.yaml", "--threads", "1"]);
    let rows = bench.rows("out/data");
    assert_eq!(rows.num_rows(), 3);
    let vectors =
        |name: &str| -> FixedSizeListArray { rows.column_by_name(name).unwrap().as_fixed_size_list().clone() };
    assert_eq!([vectors("image_vector").value_length(), vectors("embedding").value_length()], [24, 384]);
    let scores = rows.column_by_name("clip_score").unwrap().as_primitive::<Float32Type>().clone();
    assert!(scores.null_count() == 0 && scores.values().iter().all(|score| score.abs() <= 1.0), "{scores:?}");

    bench.write("again.yaml", pipeline.replace("path: out", "path: again"));
    bench.ok(&["run", "again.yaml", "--threads", "3"]);
    assert_eq!(rows.columns(), bench.rows("again/data").columns(), "threads changed the vectors");

    bench.write("wrong.yaml", pipeline.replace("left: image", "left: imge"));
    let said = bench.run(&["check", "wrong.yaml"]);
    assert!(said.code == Some(2) && said.err.contains("there is no column `imge` here"), "{}", said.err);
}
