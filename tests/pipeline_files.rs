//! A wrong pipeline file fails before any work starts, with all its mistakes and their places.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::{Bench, root};

#[test]
fn all_mistakes_come_at_once() {
    let bench = Bench::new();
    bench.write("t.jsonl", "{\"caption\": \"a dog\"}\n");
    bench.write(
        "p.yaml",
        "params: { score: 0.5 }
sources:
  pairs: { type: jsonl, path: t.jsonl, colour: red }
stages:
  chunks: { type: noun_chunk, text: caption }
  boxes:  { type: filter_boxes, min_score: high, input: nowhere }
sinks:
  out: { type: parquet }
",
    );
    let said = bench.run(&["run", "p.yaml"]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    for expected in
        ["p.yaml:3:", "colour", "p.yaml:5:", "did you mean `noun_chunks`?", "p.yaml:6:", "nowhere", "p.yaml:8:", "path"]
    {
        assert!(said.err.contains(expected), "no {expected:?} in\n{}", said.err);
    }
    assert!(!bench.path("out").exists() && !bench.path(".out.groundloom").exists());
}

#[test]
fn columns_and_types_are_checked_before_work() {
    let bench = Bench::new();
    bench.write("t.jsonl", "{\"caption\": \"a dog\", \"width\": 3}\n");
    let wrong = [
        ("kept: { type: filter, where: \"widht > 3\" }", "did you mean `width`?"),
        ("kept: { type: filter, where: \"width\" }", "true or false"),
        ("kept: { type: filter, where: \"width >\" }", "p.yaml:3:"),
        ("kept: { type: filter, where: \"random() > 0.5\" }", "another value at another moment"),
        ("chunks: { type: noun_chunks, text: captoin }", "captoin"),
        ("chunks: { type: noun_chunks, text: width }", "width"),
        ("q: { type: sql, query: \"select nothing from pairs\" }", "nothing"),
        ("q: { type: sql, query: \"select * from paris\" }", "did you mean `pairs`?"),
        ("q: { type: sql, query: \"drop table pairs\" }", "SELECT"),
        (
            "q: { type: sql, query: \"select a.width, b.width from pairs a join pairs b on a.width = b.width\" }",
            "two columns named `width`",
        ),
        ("boxes: { type: expand_expressions, text: caption }", "chunks"),
    ];
    for (stage, expected) in wrong {
        bench.write("p.yaml", format!("sources: {{ pairs: {{ type: jsonl, path: t.jsonl }} }}\nstages:\n  {stage}\nsinks: {{ out: {{ type: parquet, path: out }} }}\n"));
        let said = bench.run(&["check", "p.yaml"]);
        assert_eq!(said.code, Some(2), "{stage}\n{}", said.err);
        assert!(said.err.contains("p.yaml:3:"), "{stage}: no place in\n{}", said.err);
        assert!(said.err.contains(expected), "{stage}: no {expected:?} in\n{}", said.err);
    }
}

#[test]
fn the_schemas_of_the_recipes_rows_are_current() {
    let mut recipes = 0;
    for file in std::fs::read_dir(root().join("pipelines")).unwrap().map(|f| f.unwrap().path()) {
        if file.extension().is_some_and(|e| e == "yaml") {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_groundloom"))
                .current_dir(root())
                .args(["schema", &format!("pipelines/{name}.yaml")])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let published = std::fs::read(root().join(format!("schemas/rows/{name}.json"))).unwrap_or_default();
            assert!(
                output.stdout == published,
                "write it again: groundloom schema pipelines/{name}.yaml > schemas/rows/{name}.json"
            );
            recipes += 1;
        }
    }
    assert!(recipes >= 2);
}

#[test]
fn the_published_schema_is_current() {
    let bench = Bench::new();
    let now = bench.ok(&["schema"]).out;
    let published = std::fs::read_to_string(root().join("schemas/pipeline.schema.json")).unwrap_or_default();
    assert!(now == published, "write it again: groundloom schema > schemas/pipeline.schema.json");
}

#[test]
fn every_type_has_a_page() {
    let bench = Bench::new();
    let listed = bench.ok(&["stages"]).out;
    let names: Vec<&str> =
        listed.lines().filter(|l| l.starts_with("  ")).filter_map(|l| l.split_whitespace().next()).collect();
    assert!(names.len() >= 16, "{names:?}");
    for name in names {
        let page = bench.ok(&["stages", name]).out;
        assert!(page.contains(name) && page.lines().count() > 5, "{page}");
    }
    let unknown = bench.run(&["stages", "noun_chunk"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.err.contains("did you mean `noun_chunks`?"), "{}", unknown.err);
}

#[test]
fn the_ready_pipelines_are_right() {
    let bench = Bench::new();
    for file in std::fs::read_dir(root().join("pipelines")).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_some_and(|e| e == "yaml") {
            let mut command = bench.command(&["check", file.to_str().unwrap()]);
            let said = command.current_dir(root()).output().unwrap();
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        }
    }
}

/// Of a program that was built without GPUs: what is asked for stands at its place, with what to build.
#[cfg(not(any(feature = "cuda", feature = "metal")))]
#[test]
fn devices_that_are_not_there_are_refused_before_work() {
    let bench = Bench::new();
    bench.write("t.jsonl", "{\"caption\": \"a dog\"}\n");
    let check = |devices: &str| {
        let file = "sources: { pairs: { type: jsonl, path: t.jsonl } }
stages:
  chunks: { type: noun_chunks, text: caption }
sinks: { out: { type: parquet, path: out } }
settings:
  devices: ";
        bench.write("p.yaml", format!("{file}{devices}\n"));
        bench.run(&["run", "p.yaml"])
    };
    let cases: [(&str, &[&str]); 6] = [
        ("[cuda:0, cuda:1]", &["p.yaml:6:13", "cuda:0 cannot be used", "--features cuda", "there: cpu"]),
        ("[cpu, metal]", &["p.yaml:6:18", "metal:0 cannot be used", "--features metal"]),
        ("[gpu]", &["p.yaml:6:13", "expected cpu, cuda, cuda:NUMBER, metal, metal:NUMBER or auto, found \"gpu\""]),
        ("[cpu, cpu]", &["p.yaml:6:12", "found cpu twice"]),
        ("cuda:0", &["p.yaml:6:12", "devices"]),
        ("[cuda:0, 7]", &["p.yaml:6:", "devices[1]"]),
    ];
    for (devices, expected) in cases {
        let said = check(devices);
        assert_eq!(said.code, Some(2), "{devices}\n{}", said.err);
        for expected in expected {
            assert!(said.err.contains(expected), "{devices}: no {expected:?} in\n{}", said.err);
        }
        assert!(!bench.path("out").exists() && !bench.path(".out.groundloom").exists());
    }
    // The first that is there is the CPU: under its own name no work is done again.
    for (devices, expected) in [("[auto]", "1 kept"), ("[cpu]", "1 task reused"), ("[cpu]", "up to date")] {
        let said = check(devices);
        assert_eq!(said.code, Some(0), "{}", said.err);
        let words = said.err.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(expected), "{devices}: no {expected:?} in\n{}", said.err);
    }
    for arguments in [
        &["embed", "--text", "a dog", "--device", "cuda"][..],
        &["detect", "a.png", "--device", "metal"],
        &["models", "verify", ".", "--device", "cuda:3"],
        &["index", "query", ".", "--text", "a dog", "--device", "gpu"],
    ] {
        let said = bench.run(arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}\n{}", said.err);
        assert!(said.err.contains("--device") && !said.err.contains("panicked"), "{arguments:?}\n{}", said.err);
    }
}
