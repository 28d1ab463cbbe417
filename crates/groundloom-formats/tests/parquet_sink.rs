//! The Parquet sink: what is in the files, and that they depend on the rows alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod grit_rows;

use std::{fs::File, path::PathBuf};

use arrow::{array::AsArray, compute::concat_batches, record_batch::RecordBatch, util::display::array_value_to_string};
use grit_rows::{Pair, batch, pairs, sink, write_part};
use groundloom_formats::Sink;
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
    basic::{Compression, Encoding},
    file::metadata::ParquetMetaData,
};

fn read(path: &PathBuf) -> (RecordBatch, ParquetMetaData) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let metadata = builder.metadata().as_ref().clone();
    let schema = builder.schema().clone();
    let batches: Vec<RecordBatch> = builder.build().unwrap().map(Result::unwrap).collect();
    (concat_batches(&schema, &batches).unwrap(), metadata)
}

fn grit() -> std::sync::Arc<dyn Sink> {
    sink("{ type: parquet, form: grit, path: out/grit }")
}

#[test]
fn the_seeds_example_in_released_form() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.parquet");
    let rows = batch(&pairs(), 0);
    write_part(grit().as_ref(), &path, std::slice::from_ref(&rows));
    let (back, metadata) = read(&path);

    let shown = |name: &str, row: usize| array_value_to_string(back.column_by_name(name).unwrap(), row).unwrap();
    assert_eq!(
        shown("noun_chunks", 0),
        "[[0.0, 5.0, 0.25, 0.25, 0.75, 0.875, 0.75], [20.0, 27.0, 0.0, 0.625, 0.5, 1.0, 0.625], [9.0, 16.0, 0.0, 0.5, 1.0, 1.0, 0.5]]"
    );
    assert_eq!(shown("ref_exps", 0), "[[0.0, 27.0, 0.25, 0.25, 0.75, 0.875, 0.75]]");
    assert_eq!(shown("noun_chunks", 2), "[]");
    for name in rows.schema().fields().iter().map(|f| f.name()) {
        assert_eq!(back.column_by_name(name), rows.column_by_name(name), "{name} is carried unchanged");
    }

    let group = metadata.row_group(0);
    let column = |path: &str| group.columns().iter().find(|c| c.column_path().string() == path).unwrap();
    let id_encodings: Vec<Encoding> = column("row_id").encodings().collect();
    assert!(id_encodings.contains(&Encoding::DELTA_BYTE_ARRAY), "{id_encodings:?}");
    assert_eq!(column("row_id").dictionary_page_offset(), None);
    assert_eq!(column("image.bytes").compression(), Compression::UNCOMPRESSED);
    assert_eq!(column("image.bytes").dictionary_page_offset(), None);
    assert!(column("image.bytes").statistics().is_none());
    assert_eq!(column("caption").compression(), Compression::SNAPPY);
    let pairs = metadata.file_metadata().key_value_metadata().unwrap();
    let value = |key: &str| pairs.iter().find(|p| p.key == key).and_then(|p| p.value.clone());
    assert_eq!(value("groundloom").as_deref(), Some("a test"));
    let features: serde_json::Value = serde_json::from_str(&value("huggingface").unwrap()).unwrap();
    assert_eq!(features["info"]["features"]["image"], serde_json::json!({ "_type": "Image" }));
    let arrow_schema = parquet::arrow::parquet_to_arrow_schema(metadata.file_metadata().schema_descr(), None).unwrap();
    assert!(arrow_schema.metadata().is_empty(), "so that what follows is the embedded schema's");
    assert_eq!(back.schema().metadata()["huggingface"], value("huggingface").unwrap());
    assert!(metadata.file_metadata().created_by().unwrap().starts_with("groundloom version "));
}

/// 1,500 rows, the first 500 of 40 MB: enough for several pages and, in the first part, two row groups.
fn many_rows() -> RecordBatch {
    let pairs: Vec<Pair> = (0..1500)
        .map(|i| Pair {
            caption: Some(format!("caption {i} ").repeat(1 + i % 7)),
            image: Some(vec![(i % 251) as u8; if i < 500 && i % 5 == 0 { 400_000 } else { 100 }]),
            boxes: vec![],
            expressions: vec![],
        })
        .collect();
    batch(&pairs, 0)
}

#[test]
fn bytes_do_not_depend_on_batches() {
    let folder = tempfile::tempdir().unwrap();
    let rows = many_rows();
    let cuts: [&[usize]; 3] = [&[1500], &[1, 2, 497, 1000], &[256, 256, 988]];
    let files: Vec<Vec<u8>> = cuts
        .iter()
        .enumerate()
        .map(|(i, sizes)| {
            let path = folder.path().join(format!("{i}.parquet"));
            let mut start = 0;
            let batches: Vec<RecordBatch> = sizes
                .iter()
                .map(|size| {
                    start += size;
                    rows.slice(start - size, *size)
                })
                .collect();
            write_part(grit().as_ref(), &path, &batches);
            std::fs::read(path).unwrap()
        })
        .collect();
    assert!(files[0] == files[1] && files[0] == files[2]);
}

#[test]
fn joined_parts_hold_the_rows_in_order_and_share_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let rows = many_rows();
    let parts: Vec<PathBuf> = (0..3)
        .map(|i| {
            let path = folder.path().join(format!("part-{i}.parquet"));
            write_part(grit().as_ref(), &path, &[rows.slice(i * 500, 500)]);
            path
        })
        .collect();
    let joined = folder.path().join("joined.parquet");
    grit().join(&parts, &joined).unwrap();
    let (back, metadata) = read(&joined);
    assert_eq!(back.num_rows(), 1500);
    let ids = |rows: &RecordBatch| rows.column_by_name("row_id").unwrap().clone();
    assert_eq!(ids(&back).as_ref(), ids(&rows).as_ref());
    assert_eq!(back.column_by_name("image"), rows.column_by_name("image"));
    assert_eq!(metadata.num_row_groups(), 4, "two of the first part, one of each other");
    assert!(metadata.row_group(0).column(0).offset_index_offset().is_some(), "the page index is kept");
    let keys: Vec<&str> =
        metadata.file_metadata().key_value_metadata().unwrap().iter().map(|p| p.key.as_str()).collect();
    assert!(
        keys.contains(&"huggingface") && keys.contains(&"ARROW:schema") && keys.contains(&"groundloom"),
        "{keys:?}"
    );

    let again = folder.path().join("again.parquet");
    grit().join(&parts, &again).unwrap();
    assert!(std::fs::read(&joined).unwrap() == std::fs::read(again).unwrap());
}

#[test]
fn a_joined_scan_reads_statistics_and_single_rows() {
    let folder = tempfile::tempdir().unwrap();
    let rows = many_rows();
    let parts: Vec<PathBuf> = (0..2)
        .map(|i| {
            let path = folder.path().join(format!("part-{i}.parquet"));
            write_part(grit().as_ref(), &path, &[rows.slice(i * 750, 750)]);
            path
        })
        .collect();
    let joined = folder.path().join("joined.parquet");
    grit().join(&parts, &joined).unwrap();
    let expected: Vec<String> = [0, 300, 600, 900, 1200].iter().map(|i| format!("{:032x}", i * 7919)).collect();
    // A file without a chosen row is not opened: this one is not there.
    let missing = (folder.path().join("none.parquet"), 0);
    let whole = vec![(joined, 1500)];
    let in_parts = vec![(parts[0].clone(), 750), missing, (parts[1].clone(), 750)];
    for files in [whole, in_parts] {
        let picked = groundloom_formats::parquet_sink::sample(&files, 5).unwrap();
        let ids = picked.iter().flat_map(|b| {
            let ids = b.column_by_name("row_id").unwrap().as_string::<i32>();
            ids.iter().map(|s| s.unwrap().to_owned()).collect::<Vec<_>>()
        });
        assert_eq!(ids.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn what_cannot_be_joined_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.parquet");
    let other = folder.path().join("other.parquet");
    let damaged = folder.path().join("damaged.parquet");
    let rows = batch(&pairs(), 0);
    write_part(grit().as_ref(), &good, std::slice::from_ref(&rows));
    write_part(sink("{ type: parquet, path: out }").as_ref(), &other, &[rows]);
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    let out = folder.path().join("out.parquet");
    for (parts, message) in [
        (vec![good.clone(), other], "other.parquet: expected the columns of"),
        (vec![good, damaged], "damaged.parquet"),
        (vec![], "at least one part"),
    ] {
        let error = grit().join(&parts, &out).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn columns_are_picked_in_order_and_unknown_ones_named() {
    let rows = batch(&pairs(), 0);
    let picked = sink("{ type: parquet, form: grit, path: out, columns: [ref_exps, caption] }");
    let schema = picked.schema(&rows.schema()).unwrap();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["row_id", "ref_exps", "caption"]);
    let error =
        sink("{ type: parquet, path: out, columns: [captoin] }").schema(&rows.schema()).unwrap_err().to_string();
    assert!(error.contains("`captoin`") && error.contains("caption"), "{error}");
    let without = rows.project(&[0, 1, 2]).unwrap();
    let error = grit().schema(&without.schema()).unwrap_err().to_string();
    assert!(error.contains("`boxes`") && error.contains("`ground`"), "{error}");
}
