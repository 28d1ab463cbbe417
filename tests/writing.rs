//! `caption`, `match` and `perplexity` in pipelines, with small models of random weights: what they write is nonsense, but it is the same nonsense every time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use arrow::{
    array::{Array, AsArray},
    datatypes::{Float32Type, Float64Type},
};
use support::{Bench, root, texts};

fn pipeline(bench: &Bench, name: &str, seed: u32) {
    let models = root().join("crates/groundloom-models/tests/data/fixtures");
    bench.write(
        &format!("{name}.yaml"),
        format!(
            "sources: {{ photos: {{ type: image_folder, path: '{photos}', metadata: captions.jsonl }} }}
stages:
  written: {{ type: caption, image: image, model: '{models}/blip_caption', top_p: 0.9, max_new_tokens: 8, seed: {seed} }}
  judged: {{ type: match, image: image, text: caption, model: '{models}/blip_itm' }}
  scored: {{ type: perplexity, text: caption, model: '{models}/gpt2' }}
sinks: {{ out: {{ type: parquet, path: {name}, columns: [caption, synthetic_caption, match, perplexity] }} }}
",
            photos = root().join("examples/photos").display(),
            models = models.display(),
        ),
    );
}

#[test]
fn every_row_gets_a_caption_a_match_and_a_perplexity() {
    let bench = Bench::new();
    pipeline(&bench, "one", 0);
    bench.ok(&["run", "one.yaml", "--threads", "1"]);
    let rows = bench.rows("one/data");
    assert_eq!(rows.num_rows(), 18);
    let captions = texts(&rows, "synthetic_caption");
    assert!(captions.iter().all(|c| !c.trim().is_empty()), "{captions:?}");
    let matches = rows.column_by_name("match").unwrap().as_primitive::<Float32Type>();
    assert!(matches.null_count() == 0 && matches.values().iter().all(|m| (0.0..=1.0).contains(m)), "{matches:?}");
    let perplexities = rows.column_by_name("perplexity").unwrap().as_primitive::<Float64Type>();
    assert!(perplexities.values().iter().all(|p| *p > 1.0 && p.is_finite()), "{perplexities:?}");

    // Threads change nothing, another seed changes what is drawn and nothing else.
    pipeline(&bench, "one", 0);
    std::fs::rename(bench.path("one"), bench.path("kept")).unwrap();
    std::fs::remove_dir_all(bench.path(".one.groundloom")).unwrap();
    bench.ok(&["run", "one.yaml", "--threads", "4"]);
    assert!(bench.bytes("one") == bench.bytes("kept"), "threads changed a byte");
    pipeline(&bench, "two", 1);
    bench.ok(&["run", "two.yaml"]);
    let other = bench.rows("two/data");
    assert_ne!(texts(&other, "synthetic_caption"), captions);
    assert_eq!(other.column_by_name("match").unwrap(), rows.column_by_name("match").unwrap());
}

#[test]
fn a_model_that_cannot_is_named_before_any_work() {
    let bench = Bench::new();
    let models = root().join("crates/groundloom-models/tests/data/fixtures");
    for (stage, what) in [
        ("caption, image: image", "cannot caption images; expected BLIP for captions"),
        ("match, image: image, text: caption", "cannot match images and texts; expected BLIP for retrieval"),
        ("perplexity, text: caption", "cannot score texts; expected GPT-2 or OPT"),
        ("classify, image: image", "has no classes; expected a folder with a ViT"),
        ("ground, image: image, phrases: chunks", "is not supported; supported: grounding-dino"),
    ] {
        for (model, what) in [(models.join("t5").display().to_string(), what), ("nowhere".into(), "no model is called")]
        {
            bench.write(
                "p.yaml",
                format!(
                    "sources: {{ photos: {{ type: image_folder, path: '{}', metadata: captions.jsonl }} }}
stages:
  chunked: {{ type: noun_chunks, text: caption, output: chunks }}
  told: {{ type: {stage}, model: '{model}' }}
sinks: {{ out: {{ type: parquet, path: p }} }}
",
                    root().join("examples/photos").display()
                ),
            );
            let (checked, run) = (bench.run(&["check", "p.yaml"]), bench.run(&["run", "p.yaml"]));
            for said in [&checked, &run] {
                assert_eq!(said.code, Some(2), "{}", said.err);
                assert!(said.err.contains("p.yaml:4:") && said.err.contains("error[model]"), "{}", said.err);
                assert!(said.err.contains(what), "{what}: {}", said.err);
            }
        }
    }
    assert!(!bench.path("p").exists() && !bench.path(".p.groundloom").exists());
}
