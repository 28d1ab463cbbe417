//! The data-set card and the report as a reader gets them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod grit_rows;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, StringArray},
    record_batch::RecordBatch,
};
use grit_rows::{Pair, batch, pairs, sink};
use groundloom_data::funnel::StageCounts;
use groundloom_formats::{
    card::{self, CardFacts},
    report::{self, ReportFacts},
};
use proptest::prelude::*;

fn stage(stage: &str, kind: &str, rows: (u64, u64), failed: &[(&str, u64)], counts: &[(&str, u64)]) -> StageCounts {
    let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    StageCounts {
        stage: stage.into(),
        kind: kind.into(),
        rows_in: rows.0,
        rows_out: rows.1,
        failed: map(failed),
        reason: if rows.0 > rows.1 { "no_grounded_expression".into() } else { String::new() },
        counts: map(counts),
    }
}

fn funnel() -> Vec<StageCounts> {
    vec![
        stage("chunks", "noun_chunks", (12_000, 12_000), &[("missing_value", 2)], &[("chunks", 30_500)]),
        stage(
            "grounded",
            "ground",
            (12_000, 12_000),
            &[("undecodable_image", 11), ("image_too_large", 1)],
            &[("boxes", 9_800)],
        ),
        stage("kept", "filter", (12_000, 7_214), &[], &[]),
    ]
}

fn card_facts() -> CardFacts {
    CardFacts {
        name: "grit".into(),
        description: "Photographs and captions turned into grounded pairs.".into(),
        license: Some("cc-by-4.0".into()),
        schema: sink("{ type: parquet, form: grit, path: out }").schema(&batch(&pairs(), 0).schema()).unwrap(),
        rows: 7_200,
        files: vec!["data/train-00000-of-00002.parquet".into(), "data/train-00001-of-00002.parquet".into()],
        funnel: funnel(),
        sources: vec!["pairs: image_folder at examples/photos".into()],
        quarantined: 14,
        notes: vec![
            "GrIT's authors kept boxes of GLIP above 0.65; this run kept those of the small detector above 0.45."
                .into(),
        ],
        models: vec!["en_core_web_sm-3.8.0@2c8a6fe0".into()],
        pipeline: "name: grit\nsources:\n  pairs: { type: image_folder, path: examples/photos }\n".into(),
        fingerprint: "5f0c1e9a7b3d2c41".into(),
        version: "0.1.0".into(),
    }
}

#[test]
fn the_card_of_a_grit_run() {
    insta::assert_snapshot!(card::render(&card_facts()));
}

#[test]
fn the_card_shows_markup_instead_of_obeying_it() {
    let facts = CardFacts {
        name: "a: \"b\"\n# c".into(),
        license: None,
        sources: vec!["<script>alert(1)</script> | x".into()],
        pipeline: "a: |\n  ```\n  <b>\n  ```\n".into(),
        files: vec!["data/train-00000-of-00001.jsonl.gz".into()],
        ..card_facts()
    };
    let text = card::render(&facts);
    assert!(text.contains("pretty_name: \"a: \\\"b\\\"\\n# c\"\n"), "{text}");
    assert!(text.contains("- &lt;script>alert(1)&lt;/script> \\| x\n"), "{text}");
    assert!(text.contains("\n````yaml\na: |\n  ```\n"), "the fence is longer than any in the file: {text}");
    assert!(text.contains("    path: data/train-*.jsonl.gz\n"), "{text}");
    assert!(!text.contains("dataset_info"), "JSON has other types than the schema: {text}");
}

fn report_facts() -> ReportFacts {
    ReportFacts {
        title: "grit".into(),
        rows: 7_200,
        funnel: funnel(),
        sources: vec!["pairs: image_folder at examples/photos".into()],
        quarantined: [("missing_value".to_owned(), 2), ("undecodable_image".into(), 11), ("image_too_large".into(), 1)]
            .into(),
        version: "0.1.0".into(),
        fingerprint: "5f0c1e9a7b3d2c41".into(),
        ..ReportFacts::default()
    }
}

/// The part of the page from `<h2>title` to the next section, one element a line, pictures left out.
fn section(page: &str, title: &str) -> String {
    let start = page.find(&format!("<h2>{title}")).unwrap();
    let text = &page[start..start + page[start..].find("</section>").unwrap()];
    let mut shown = String::new();
    for (i, piece) in text.split("data:image/jpeg;base64,").enumerate() {
        shown.push_str(if i == 0 { piece } else { &piece[piece.find('"').unwrap()..] });
    }
    for element in [
        "<li",
        "<div",
        "<ul",
        "<ol",
        "<tr",
        "<p",
        "<article",
        "<svg",
        "<rect",
        "<span class=\"tag",
        "<bdi class",
        "<footer",
    ] {
        shown = shown.replace(element, &format!("\n{element}"));
    }
    shown
}

#[test]
fn the_funnel_as_html() {
    let page = report::render(&report_facts(), &[]).unwrap();
    insta::assert_snapshot!(section(&page, "What became of the rows"));
    insta::assert_snapshot!(section(&page, "Why rows were lost"));
    assert!(page.contains("The data set has no rows."));
}

#[test]
fn the_gallery_as_html() {
    let page = report::render(&report_facts(), &[batch(&pairs(), 0)]).unwrap();
    insta::assert_snapshot!(section(&page, "Rows"));
}

#[test]
fn the_same_rows_give_the_same_page_however_they_are_cut() {
    let rows = batch(&pairs(), 0);
    let whole = report::render(&report_facts(), std::slice::from_ref(&rows)).unwrap();
    let cut = report::render(&report_facts(), &[rows.slice(0, 1), rows.slice(1, 3)]).unwrap();
    assert!(whole == cut);
}

/// No request leaves the page and nothing in it runs.
#[test]
fn the_page_stands_alone() {
    let mut hostile = pairs();
    hostile[0].caption = Some("<img src=http://x/y onerror=alert(1)>a dog in a field of flowers".into());
    let page = report::render(&report_facts(), &[batch(&hostile, 0)]).unwrap();
    assert!(page.contains("default-src 'none'; img-src data:; style-src 'unsafe-inline'"));
    for forbidden in ["<script", "<link", "<iframe", "src=\"http", "href=", "url(", "@import", "<img src=http"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn a_data_set_of_text_alone_has_a_report() {
    let text: ArrayRef = Arc::new(StringArray::from(vec![Some("first\ttext"), None]));
    let rows = RecordBatch::try_from_iter([("text", text)]).unwrap();
    let page = report::render(&ReportFacts { rows: 2, ..ReportFacts::default() }, &[rows]).unwrap();
    assert!(page.contains("first\ttext") && page.contains("no caption") && !page.contains("class=\"shot\""));
}

#[test]
fn a_damaged_or_missing_picture_is_said_on_its_card() {
    let mut rows = pairs();
    rows.truncate(2);
    rows[0].image = Some(b"no picture".to_vec());
    rows[1].image = None;
    let page = report::render(&report_facts(), &[batch(&rows, 0)]).unwrap();
    assert!(page.contains("expected a JPEG, PNG"), "{}", section(&page, "Rows"));
    assert!(page.contains("the row has no image"));
}

#[test]
fn the_released_columns_alone_are_enough() {
    let rows = batch(&pairs(), 0);
    let sink = sink("{ type: parquet, form: grit, path: out, columns: [image, caption, ref_exps] }");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let count = rows.num_rows() as u64;
    grit_rows::write_part(sink.as_ref(), &path, &[rows]);
    let samples = groundloom_formats::parquet_sink::sample(&[(path, count)], 48).unwrap();
    let page = report::render(&report_facts(), &samples).unwrap();
    assert!(page.contains("a dog in a field of flowers</bdi> <small>0.75</small>"), "{}", section(&page, "Rows"));
}

#[test]
fn an_endless_caption_does_not_make_an_endless_page() {
    let mut rows = pairs();
    rows.truncate(1);
    rows[0].caption = Some(format!("a dog in a field of flowers {}", "and on ".repeat(100_000)));
    let page = report::render(&report_facts(), &[batch(&rows, 0)]).unwrap();
    assert!(page.len() < 60_000, "{}", page.len());
    assert!(page.contains("a dog in a field of flowers</bdi> and on") && page.contains(" and on and…"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_caption_breaks_the_page(caption in prop_oneof![any::<String>(), "[<>&\"'{} a-z/=]{0,40}"]) {
        let row = |caption: String| batch(&[Pair { caption: Some(caption), image: None, boxes: vec![], expressions: vec![] }], 0);
        let count = |page: &str, what: &str| page.matches(what).count();
        let page = report::render(&report_facts(), &[row(caption)]).unwrap();
        let plain = report::render(&report_facts(), &[row("plain".into())]).unwrap();
        for mark in ["<", ">"] {
            prop_assert_eq!(count(&page, mark), count(&plain, mark));
        }
    }
}
