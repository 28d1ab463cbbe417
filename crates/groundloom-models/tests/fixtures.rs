//! Every family against its reference implementation, on the small fixtures in `tests/data/fixtures`; more folders,
//! made with other seeds, in the directories that `GROUNDLOOM_FIXTURES` lists, separated by colons.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use groundloom_models::{Outcome, verify};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/fixtures");

fn folders() -> Vec<PathBuf> {
    let more = std::env::var("GROUNDLOOM_FIXTURES").unwrap_or_default();
    let roots = std::iter::once(DATA).chain(more.split(':').filter(|root| !root.is_empty()));
    let mut folders: Vec<PathBuf> = roots
        .flat_map(|root| fs::read_dir(root).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("expected.safetensors").exists())
        .collect();
    folders.sort();
    folders
}

#[test]
fn every_output_is_the_references() {
    let mut failed = Vec::new();
    for folder in folders() {
        let (worst, problems) = check(&folder);
        println!("{}: {worst}", folder.display());
        failed.extend(problems.into_iter().map(|problem| format!("{}: {problem}", folder.display())));
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

fn check(folder: &Path) -> (String, Vec<String>) {
    let comparisons = match verify(folder) {
        Ok(comparisons) => comparisons,
        Err(error) => return (error.to_string(), vec![error.to_string()]),
    };
    assert!(comparisons.iter().filter(|c| matches!(c.outcome, Outcome::Compared { .. })).count() > 3);
    let problems = comparisons.iter().filter(|c| !c.passed()).map(|c| format!("{c:?}")).collect();
    let worst = comparisons.iter().filter_map(|c| match &c.outcome {
        Outcome::Compared { difference, tolerance, .. } => {
            Some((difference / tolerance.max(1e-9), &c.name, difference))
        }
        _ => None,
    });
    let worst = worst.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    (format!("{} outputs, nearest to its limit {} at {:e}", comparisons.len(), worst.1, worst.2), problems)
}
