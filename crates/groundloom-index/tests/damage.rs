//! Files that are not what they should be, and processes that die.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod vectors;

use std::{
    collections::HashSet,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use groundloom_index::{ColumnSettings, Index, IndexError, Metric, Search, Writer};
use vectors::{clustered, column, key, rows};

const DIMS: usize = 16;

fn settings() -> ColumnSettings {
    ColumnSettings { graph_from: 100, ..ColumnSettings::default() }
}

fn build(folder: &Path, count: usize) -> Writer {
    let mut writer = Writer::create(folder, "row_id", vec![column(DIMS, Metric::Cosine, settings())]).unwrap();
    writer.add([Ok(rows(0, &clustered(count, DIMS, 20, 0.5, 1), DIMS))]).unwrap();
    writer
}

#[test]
fn every_flipped_byte_is_found_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = build(folder.path(), 300);
    writer.delete(&HashSet::from([key(3)])).unwrap();
    Index::open(folder.path()).unwrap().verify().unwrap();
    let query = vec![0.5; DIMS];
    for item in std::fs::read_dir(folder.path()).unwrap() {
        let path = item.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".lock") {
            continue;
        }
        let whole = std::fs::read(&path).unwrap();
        let step = (whole.len() / 40).max(1);
        for at in (0..whole.len()).step_by(step) {
            let mut bad = whole.clone();
            bad[at] ^= 0x55;
            std::fs::write(&path, &bad).unwrap();
            let outcome = Index::open(folder.path()).and_then(|index| {
                // Whatever the bytes are, a search neither panics nor leaves the rows.
                let search = Search { column: 0, k: 5, ef: Some(20), exact: false, filter: None };
                let found = index.search(&query, &search)?;
                assert!(found.hits.iter().all(|h| h.position.segment == 0));
                index.verify()
            });
            match outcome {
                Err(error) => assert!(error.to_string().contains(&name), "{name} at {at}: {error}"),
                // Padding between sections carries nothing.
                Ok(()) => assert!(name.ends_with(".glv") && whole[at] == 0, "{name} at {at}: not noticed"),
            }
        }
        for len in [0, 1, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            let error = Index::open(folder.path()).unwrap_err();
            assert!(error.to_string().contains(&name), "{name} cut to {len}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error = Index::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&name), "{name} missing: {error}");
        std::fs::write(&path, &whole).unwrap();
    }
    Index::open(folder.path()).unwrap().verify().unwrap();
}

#[test]
fn files_of_another_index_are_refused() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build(a.path(), 300);
    build(b.path(), 301);
    let name = "vectors-000000-0.glv";
    std::fs::copy(b.path().join(name), a.path().join(name)).unwrap();
    assert!(matches!(Index::open(a.path()), Err(IndexError::Damaged { path, .. }) if path.ends_with(name)));
}

#[test]
fn other_folders_and_second_writers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.tex"), "").unwrap();
    let spec = || vec![column(DIMS, Metric::Cosine, settings())];
    assert!(matches!(Writer::create(folder.path(), "row_id", spec()), Err(IndexError::ForeignFolder { .. })));
    let folder = tempfile::tempdir().unwrap();
    let writer = build(folder.path(), 10);
    match Writer::open(folder.path()) {
        Err(IndexError::Locked { process, .. }) => assert_eq!(process, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
    drop(writer);
    Writer::open(folder.path()).unwrap();
}

#[test]
fn indices_of_other_models_do_not_merge() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = build(a.path(), 10);
    let mut spec = column(DIMS, Metric::Cosine, settings());
    spec.model = Some(groundloom_index::ModelIdentity { name: "clip".into(), weights: "00".into() });
    let mut other = Writer::create(b.path(), "row_id", vec![spec]).unwrap();
    other.add([Ok(rows(0, &clustered(10, DIMS, 2, 0.5, 1), DIMS))]).unwrap();
    let error = writer.merge(&Index::open(b.path()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("the model of \"embedding\" differs: expected unknown, found clip 00"), "{error}");
}

/// The process that the next test kills: adds 400 rows at a time, for ever.
#[test]
#[ignore = "run by the test below"]
fn adds_until_it_is_killed() {
    let Ok(folder) = std::env::var("INDEX_FOLDER") else { return };
    let mut writer = Writer::open(Path::new(&folder)).unwrap();
    for round in 1.. {
        let added = clustered(400, DIMS, 20, 0.5, round);
        writer.add([Ok(rows(400 * round as usize, &added, DIMS))]).unwrap();
        writer.delete(&(0..100).map(|i| key(400 * round as usize + i)).collect()).unwrap();
        if round % 3 == 0 {
            writer.compact().unwrap();
        }
    }
}

#[test]
fn a_killed_writer_leaves_a_whole_index() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), 400);
    let mut last = 0;
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "adds_until_it_is_killed", "--ignored"])
            .env("INDEX_FOLDER", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Half of the children are killed whatever they did so far, the others some time after their first change.
        let changed = || Index::open(folder.path()).is_ok_and(|index| index.manifest().generation > last);
        while round % 2 == 1 && !changed() {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(40 + 37 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let index = Index::open(folder.path()).unwrap();
        index.verify().unwrap();
        // Between an add and the delete after it there are 400 rows more, afterwards 300.
        assert!([0, 100].contains(&((index.rows() - 400) % 300)), "{} rows", index.rows());
        assert!(index.manifest().generation >= last);
        let query = vec![1.0; DIMS];
        let search = Search { column: 0, k: 50, ef: None, exact: false, filter: None };
        assert_eq!(index.search(&query, &search).unwrap().hits.len(), 50);
        // Start again from what there is: the rows of the next child replace those of the last.
        drop(index);
        let mut writer = Writer::open(folder.path()).unwrap();
        let keys = (400..100_000).map(key).collect();
        writer.delete(&keys).unwrap();
        let names = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, writer.manifest().files().count() + 2, "files of dead processes are gone");
        last = writer.manifest().generation;
    }
}

/// The process that the next test kills: builds an index in a new folder.
#[test]
#[ignore = "run by the test below"]
fn builds_once() {
    let Ok(folder) = std::env::var("INDEX_FOLDER") else { return };
    build(Path::new(&folder), 3000);
}

#[test]
fn a_killed_build_leaves_no_index_or_a_whole_one() {
    let (mut whole, mut none) = (0, 0);
    for round in 0..10_u64 {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "builds_once", "--ignored"])
            .env("INDEX_FOLDER", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From the first moments on; the last one may finish.
        if round < 9 {
            std::thread::sleep(Duration::from_millis(15 * round * round));
            let _ = child.kill();
        }
        child.wait().unwrap();
        match Index::open(folder.path()) {
            Ok(index) => {
                index.verify().unwrap();
                assert_eq!(index.rows(), 3000);
                whole += 1;
            }
            Err(IndexError::NoIndex { .. }) => none += 1,
            Err(other) => panic!("{other}"),
        }
        // What the dead process left is no hindrance.
        build(folder.path(), 30);
        let index = Index::open(folder.path()).unwrap();
        assert_eq!(index.rows(), 30);
        let names = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, index.manifest().files().count() + 2, "its files are gone");
    }
    assert!(whole > 0 && none > 0, "{whole} whole, {none} without an index");
}
