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
    // Without a model texts mean nothing to the vectors; with it they are embedded as the captions were.
    let cat = ["index", "query", "imported/npy", "--text", "a cat lying down", "-k", "1"];
    let refused = bench.run(&cat);
    assert!(refused.code == Some(2) && refused.err.contains("does not know which model"), "{}", refused.err);
    let vectors = ["index", "import", "npy/img_emb/img_emb_0.npy", "--rows", "npy/metadata/metadata_0.parquet"];
    bench.ok(&[&vectors[..], &["-o", "imported/npy", "--model", "all-minilm-l6-v2"]].concat());
    assert_eq!(names(&bench.ok(&cat)), ["chelsea.png"]);
    let column = |folder: &str| {
        let manifest: Value = serde_json::from_slice(&fs::read(bench.path(folder)).unwrap()).unwrap();
        let columns = manifest["columns"].as_array().unwrap().clone();
        columns.into_iter().find(|c| c["model"]["name"] == "all-minilm-l6-v2").unwrap()["model"].clone()
    };
    assert_eq!(column("imported/npy/index.json"), column("out/index/index.json"), "name and hash of the weights");
    assert_eq!(column("out/index/index.json")["weights"].as_str().unwrap().len(), 64);
    for (model, code, words) in [
        ("ssd-mobilenet-v2-oidv4", 2, "ssd-mobilenet-v2-oidv4 makes vectors of 1280 dimensions, the column has 384"),
        ("models/absent", 0, "the index keeps the name, without a hash of weights"),
    ] {
        let said = bench.run(&[&vectors[..], &["-o", "imported/other", "--model", model]].concat());
        assert!(said.code == Some(code) && said.err.contains(words), "{:?} {}", said.code, said.err);
    }
    let refused = bench.run(&["index", "import", "npy/metadata/metadata_0.parquet", "-o", "other"]);
    assert!(refused.code != Some(0) && refused.err.contains(".npy, .fvecs, .index"), "{}", refused.err);
}

/// The tensors of a safetensors file that the reference wrote, by name: their values, as numbers.
fn expected(path: &std::path::Path, name: &str) -> Vec<f64> {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, values) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let tensor = &serde_json::from_slice::<Value>(header).unwrap()[name];
    let at = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize;
    let values = &values[at(0)..at(1)];
    match tensor["dtype"].as_str().unwrap() {
        "F32" => values.chunks_exact(4).map(|v| f64::from(f32::from_le_bytes(v.try_into().unwrap()))).collect(),
        "U8" => values.iter().map(|v| f64::from(*v)).collect(),
        other => panic!("{other}"),
    }
}

/// A picture of 24 bits a pixel, uncompressed: rows from below, blue first, each padded to four bytes.
fn bmp(pixels: &[f64], width: usize) -> Vec<u8> {
    let height = pixels.len() / (3 * width);
    let padded = (3 * width).next_multiple_of(4);
    let mut file = b"BM".to_vec();
    for number in [54 + padded * height, 0, 54, 40, width, height, 1 | 24 << 16, 0, padded * height, 2835, 2835, 0, 0] {
        file.extend(u32::try_from(number).unwrap().to_le_bytes());
    }
    for row in pixels.chunks_exact(3 * width).rev() {
        file.extend(row.as_chunks::<3>().0.iter().flat_map(|p| [p[2] as u8, p[1] as u8, p[0] as u8]));
        file.resize(file.len() + padded - 3 * width, 0);
    }
    file
}

#[test]
fn a_fromage_finds_pictures_by_text_as_the_reference_does() {
    let bench = Bench::new();
    let fixture = root().join("crates/groundloom-models/tests/data/fixtures/fromage");
    let reference = |name: &str| expected(&fixture.join("expected.safetensors"), name);
    bench.write("pictures/a.bmp", bmp(&reference("in.image_a"), 19));
    bench.write("pictures/b.bmp", bmp(&reference("in.image_b"), 20));
    let captions = ["a photo of a cat", "two dogs sleeping on a pink couch", "état"];
    let table = format!("caption\timage\n{}\ta.bmp\n{}\tb.bmp\n{}\tgone.bmp\n", captions[0], captions[1], captions[2]);
    bench.write("pairs.tsv", table);
    let model = fixture.to_str().unwrap();
    let pipeline = root().join("pipelines/fromage.yaml");
    let sets = ["table=pairs.tsv", "images=pictures", "output=out/fromage"].map(str::to_owned);
    let models = ["image_model", "text_model"].map(|name| format!("{name}={model}"));
    let arguments: Vec<&str> = sets.iter().chain(&models).flat_map(|set| ["--set", set]).collect();
    bench.ok(&[&["run", pipeline.to_str().unwrap()], &arguments[..]].concat());

    // FROMAGe ranks pictures by the product of the unit vectors of text and picture.
    let (texts, pictures) = (reference("out.text_embeds"), reference("out.image_embeds"));
    let (texts, pictures) = (texts.as_chunks::<8>().0, pictures.as_chunks::<8>().0);
    let product = |a: &[f64; 8], b: &[f64; 8]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let ask = |index: &str, column: &str, file: &str, question: &[&str]| -> Vec<(String, f64)> {
        let said = bench.ok(&[&["index", "query", index, "--column", column], question].concat());
        lines(&said).iter().map(|r| (r[file].as_str().unwrap().to_owned(), r["score"].as_f64().unwrap())).collect()
    };
    let mut by_text = Vec::new();
    for (caption, text) in captions.iter().zip([0, 1, 3]) {
        let found = ask("out/fromage", "image_embedding", "file_name", &["--text", caption]);
        let mut ranked: Vec<(&str, f64)> =
            ["a.bmp", "b.bmp"].into_iter().zip(pictures).map(|(name, p)| (name, product(&texts[text], p))).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        assert_eq!(found.len(), 2, "the pair whose picture is gone is not there: {found:?}");
        for ((name, score), (expected, product)) in found.iter().zip(&ranked) {
            assert!(name == expected && (score - product).abs() < 1e-4, "{caption}: {found:?}, expected {ranked:?}");
        }
        by_text.push(found);
    }
    let own = ask("out/fromage", "caption_embedding", "file_name", &["--text", captions[1]]);
    assert!(own[0].0 == "b.bmp" && (own[0].1 - 1.0).abs() < 1e-5, "{own:?}");

    // The same vectors by way of FROMAGe's own file, which names no model.
    let export = ["index", "export", "out/fromage", "--as", "fromage", "--column", "image_embedding"];
    bench.ok(&[&export[..], &["--paths", "file_name", "-o", "export"]].concat());
    bench.ok(&["index", "import", "export/cc3m_embeddings.pkl", "-o", "imported", "--model", model]);
    for (caption, expected) in captions.iter().zip(&by_text) {
        let found = ask("imported", "embedding", "path", &["--text", caption]);
        assert!(
            found.iter().zip(expected).all(|(f, e)| f.0 == e.0 && (f.1 - e.1).abs() < 1e-5),
            "{found:?} {expected:?}"
        );
    }
    let seen = ask("imported", "embedding", "path", &["--image", bench.path("pictures/b.bmp").to_str().unwrap()]);
    assert!(seen[0].0 == "b.bmp" && (seen[0].1 - 1.0).abs() < 1e-5, "{seen:?}");
}
