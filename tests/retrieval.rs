//! Photographs and captions in, an index out, and questions to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::Value;
use support::{Bench, Said, root};

fn run(bench: &Bench, threads: &str, output: &str) -> Said {
    let pipeline = root().join("pipelines/retrieval.yaml");
    let input = format!("input={}", root().join("examples/photos").display());
    let output = format!("output={output}");
    let pipeline = pipeline.to_str().unwrap();
    bench.ok(&["run", pipeline, "--set", &input, "--set", &output, "--threads", threads])
}

fn lines(said: &Said) -> Vec<Value> {
    said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(said: &Said) -> Vec<String> {
    lines(said).iter().map(|row| row["file_name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn photographs_are_found_by_text_and_by_image() {
    let bench = Bench::new();
    run(&bench, "2", "out/index");
    let photo = |name: &str| root().join("examples/photos").join(name).display().to_string();

    let cat = names(&bench.ok(&[
        "index",
        "query",
        "out/index",
        "--text",
        "a cat lying down",
        "-k",
        "5",
        "--where",
        "width > 300",
    ]));
    assert_eq!((cat.len(), cat[0].as_str()), (5, "chelsea.png"));
    let same = bench.ok(&["index", "query", "out/index", "--image", &photo("rocket.jpg"), "-k", "1"]);
    assert_eq!(names(&same), ["rocket.jpg"]);
    let score = lines(&same)[0]["score"].as_f64().unwrap();
    assert!(score > 0.999, "the same photograph: {score}");
    let wide = bench.ok(&["index", "query", "out/index", "--text", "flowers", "-k", "100", "--where", "width > 1000"]);
    assert!(lines(&wide).iter().all(|row| row["width"].as_i64().unwrap() > 1000) && !lines(&wide).is_empty());
    let counted = bench.ok(&["index", "query", "out/index", "--text", "flowers", "-k", "100"]);
    assert_eq!(lines(&counted).len(), 18, "every row is there");

    for (arguments, words) in [
        (vec!["--text", "a", "--where", "widht > 3"], "Did you mean 'width'"),
        (vec!["--text", "a", "--column", "image_embedding"], "does not take texts"),
        (vec!["--vector", "[1, 2]", "--column", "image_embedding"], "1280 dimensions, found 2"),
        (vec!["--row", "nobody", "--column", "image_embedding"], "no row \"nobody\""),
        (vec!["--text", "a", "-k", "0"], "k from 1 to 10000"),
    ] {
        let said = bench.run(&[vec!["index", "query", "out/index"], arguments].concat());
        assert!(said.code == Some(2) && said.err.contains(words), "{:?} {}", said.code, said.err);
    }

    let rows =
        bench.ok(&["index", "query", "out/index", "--text", "a rocket", "-k", "2", "--columns", "row_id,file_name"]);
    let key = lines(&rows)[0]["row_id"].as_str().unwrap().to_owned();
    assert_eq!(lines(&bench.ok(&["index", "delete", "out/index", &key]))[0]["deleted"], 1);
    let left = names(&bench.ok(&["index", "query", "out/index", "--text", "a rocket", "-k", "100"]));
    assert!(left.len() == 17 && !left.contains(&"rocket.jpg".to_owned()), "{left:?}");
    bench.ok(&["index", "compact", "out/index"]);
    let stats = &lines(&bench.ok(&["index", "stats", "out/index", "--verify"]))[0];
    assert_eq!(
        (stats["rows"].as_i64(), stats["deleted"].as_i64(), stats["segments"].as_i64()),
        (Some(17), Some(0), Some(1))
    );

    // The pipeline's own result again: what was deleted by hand is back, and the bytes do not depend on threads.
    run(&bench, "1", "out/one");
    run(&bench, "2", "out/two");
    for item in fs::read_dir(bench.path("out/one")).unwrap() {
        let name = item.unwrap().file_name().into_string().unwrap();
        let here = bench.path(&format!("out/one/{name}"));
        let ours = name == "index.json" || name.ends_with(".parquet") || name.ends_with(".glv");
        if ours {
            assert!(
                fs::read(&here).unwrap() == fs::read(bench.path(&format!("out/two/{name}"))).unwrap(),
                "{name} differs"
            );
        }
    }
}

#[test]
fn an_index_is_built_over_rows_that_have_no_vectors_yet() {
    let bench = Bench::new();
    let pipeline = "name: photos\nsources:\n  pairs: { type: image_folder, path: photos, metadata: captions.jsonl }\nsinks:\n  rows: { type: parquet, path: out/rows }\n";
    bench.write("photos.yaml", pipeline);
    for name in ["chelsea.png", "coffee.png"] {
        bench.write(&format!("photos/{name}"), fs::read(root().join("examples/photos").join(name)).unwrap());
    }
    bench.write("photos/captions.jsonl", "{\"file_name\": \"chelsea.png\", \"caption\": \"a cat\"}\n{\"file_name\": \"coffee.png\", \"caption\": \"a cup of coffee\"}\n");
    bench.ok(&["run", "photos.yaml"]);
    bench.ok(&["index", "build", "out/rows", "-o", "out/index", "--embed", "caption=all-minilm-l6-v2"]);
    let found = bench.ok(&["index", "query", "out/index", "--text", "something to drink", "-k", "1"]);
    assert_eq!(names(&found), ["coffee.png"]);
    let groups = bench.ok(&["index", "dedup", "out/index", "--score", "0.99"]);
    assert_eq!(lines(&groups).len(), 0, "{}", groups.out);
    let refused = bench.run(&["index", "build", "out/rows", "-o", "out/other"]);
    assert!(refused.code == Some(2) && refused.err.contains("--embed COLUMN=MODEL"), "{}", refused.err);
    let refused = bench.run(&["index", "query", "out/rows", "--text", "a"]);
    assert!(refused.code == Some(2) && refused.err.contains("holds no index"), "{}", refused.err);
}

#[test]
fn vectors_go_to_other_tools_and_come_back() {
    let bench = Bench::new();
    run(&bench, "2", "out/index");
    let found = |index: &str, more: &[&str]| {
        let row = ["index", "query", index, "--row", "0664407756dfd7cd0000000000000000", "-k", "5"];
        let said = bench.ok(&[&row[..], more].concat());
        lines(&said).iter().map(|row| row["row_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let expected = found("out/index", &["--column", "caption_embedding"]);
    assert_eq!(expected.len(), 5);
    for (form, file) in [("npy", "img_emb/img_emb_0.npy"), ("faiss", "img_emb.index")] {
        let export = ["index", "export", "out/index", "--as", form, "--column", "caption_embedding", "-o", form];
        bench.ok(&export);
        let (file, rows) = (format!("{form}/{file}"), format!("{form}/metadata/metadata_0.parquet"));
        let imported = format!("imported/{form}");
        bench.ok(&["index", "import", &file, "--rows", &rows, "-o", &imported, "--builder", "hnsw_rs"]);
        assert_eq!(found(&imported, &[]), expected, "{form}");
    }
    let export = ["index", "export", "out/index", "--as", "fromage", "--paths", "file_name"];
    bench.ok(&[&export[..], &["--column", "caption_embedding", "-o", "fromage"]].concat());
    bench.ok(&["index", "import", "fromage/cc3m_embeddings.pkl", "-o", "imported/fromage"]);
    let stats = lines(&bench.ok(&["index", "stats", "imported/fromage"]));
    assert_eq!((&stats[0]["rows"], &stats[0]["columns"][0]["dims"]), (&18.into(), &384.into()));
    let refused = bench.run(&["index", "import", "npy/metadata/metadata_0.parquet", "-o", "other"]);
    assert!(refused.code != Some(0) && refused.err.contains(".npy, .fvecs, .index"), "{}", refused.err);
}
