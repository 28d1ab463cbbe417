//! Sources on real folders: what is read, what goes to quarantine and what is an error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::HashSet, fs, io::Write, path::Path, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, StringArray},
    compute::concat_batches,
    datatypes::Int64Type,
    util::display::array_value_to_string,
};
use futures::TryStreamExt;
use groundloom_data::{MediaView, Place, RowId, file_hash};
use groundloom_formats::{
    BatchLimits, DiscoverOptions, Discovery, FormatError, Reader, Shard, Source, image_folder::ImageFolder,
    jsonl::JsonlSource, parquet_source::ParquetSource, shard_schema, source::source_types, store::Stores,
};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// A source of `config`, whose `path` is put before the folder.
fn source<T: DeserializeOwned>(folder: &Path, path: &str, mut config: Value) -> T {
    config["path"] = json!(folder.join(path).to_str().unwrap());
    serde_json::from_value(config).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn discover(source: &impl Source, options: DiscoverOptions) -> Result<Discovery, FormatError> {
    runtime().block_on(source.discover(&Stores::new(), &options))
}

fn discover_error(source: &impl Source) -> String {
    discover(source, DiscoverOptions::default()).unwrap_err().to_string()
}

fn read_shards(discovery: &Discovery, shards: &[Shard], columns: &[usize], limits: BatchLimits) -> RecordBatch {
    let Reader::Rows(reader) = &discovery.reader else { panic!("a reader of rows") };
    let schema = shard_schema(&discovery.schema, columns);
    let batches: Vec<RecordBatch> = runtime().block_on(async {
        let mut all = Vec::new();
        for shard in shards {
            let batches: Vec<RecordBatch> = reader.read(shard, columns, limits).try_collect().await.unwrap();
            assert!(batches.iter().all(|b| b.schema() == schema && b.num_rows() <= limits.rows && b.num_rows() > 0));
            all.extend(batches);
        }
        all
    });
    concat_batches(&schema, &batches).unwrap()
}

fn all_columns(discovery: &Discovery) -> Vec<usize> {
    (0..discovery.schema.fields().len()).collect()
}

/// Every row of a source.
fn read(source: &impl Source) -> RecordBatch {
    let discovery = discover(source, DiscoverOptions::default()).unwrap();
    read_shards(&discovery, &discovery.shards, &all_columns(&discovery), BatchLimits::default())
}

fn texts(batch: &RecordBatch, column: &str) -> Vec<String> {
    let column = batch.column_by_name(column).unwrap_or_else(|| panic!("{column} in {}", batch.schema()));
    (0..batch.num_rows())
        .map(|row| if column.is_null(row) { "null".to_owned() } else { array_value_to_string(column, row).unwrap() })
        .collect()
}

/// The quarantine code of each row, empty for a good one.
fn codes(batch: &RecordBatch) -> Vec<String> {
    errors(batch, "code")
}

fn messages(batch: &RecordBatch) -> Vec<String> {
    errors(batch, "message")
}

fn errors(batch: &RecordBatch, field: &str) -> Vec<String> {
    let errors = batch.column_by_name("_error").unwrap().as_struct();
    let texts = errors.column_by_name(field).unwrap().as_string::<i32>();
    (0..errors.len()).map(|row| if errors.is_null(row) { String::new() } else { texts.value(row).to_owned() }).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

#[test]
fn every_type_of_source_is_documented() {
    for source in source_types() {
        assert_eq!(source.component.faults(), Vec::<String>::new(), "{}", source.component.name);
    }
    let mut codes: Vec<&str> = groundloom_formats::quarantine_codes::ALL.iter().map(|(code, _)| *code).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), groundloom_formats::quarantine_codes::ALL.len());
}

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

mod image_folders {
    use super::*;

    #[test]
    fn with_metadata() {
        let metadata = "{\"file_name\": \"b/two.jpg\", \"caption\": \"two\\ttabs \\u0000 \\ud83d\\udc15\", \"n\": 2}\n\
            {\"file_name\": \"./one.PNG\", \"caption\": \"one\", \"n\": 1.5, \"tags\": [\"x\"]}\n\n\
            {\"file_name\": \"missing.jpg\", \"caption\": \"gone\"}\n\
            {\"file_name\": \"one.PNG\", \"caption\": \"again\"}\n\
            {\"caption\": \"nameless\"}\n\
            {\"file_name\": \"cut\n";
        let folder = folder(&[
            ("one.PNG", PNG),
            ("b/two.jpg", b"not a picture at all"),
            ("b/empty.webp", b""),
            (".hidden.jpg", PNG),
            (".cache/x.jpg", PNG),
            ("notes.txt", b"no picture"),
            ("captions.jsonl", metadata.as_bytes()),
        ]);
        let source: ImageFolder = source(folder.path(), "", json!({"metadata": "captions.jsonl"}));
        let batch = read(&source);
        let names: Vec<&str> =
            ["null", "null", "b/empty.webp", "b/two.jpg", "missing.jpg", "one.PNG", "one.PNG"].to_vec();
        assert_eq!(texts(&batch, "file_name"), names);
        let expected =
            ["malformed_json", "malformed_json", "missing_metadata", "", "missing_file", "", "duplicate_key"];
        assert_eq!(codes(&batch), expected, "{:?}", messages(&batch));
        assert_eq!(texts(&batch, "caption"), ["nameless", "null", "null", "two\ttabs \0 🐕", "gone", "one", "again"]);
        assert_eq!(texts(&batch, "n"), ["null", "null", "null", "2.0", "null", "1.5", "null"]);
        assert_eq!(texts(&batch, "tags")[5], "[x]");
        let media = MediaView::try_new(batch.column_by_name("image").unwrap()).unwrap();
        assert_eq!((media.bytes(5), media.path(5)), (Some(PNG), Some("one.PNG")));
        assert_eq!((media.bytes(2), media.bytes(4)), (Some(b"".as_slice()), None));
        let ids = texts(&batch, "row_id");
        assert_eq!(ids[3], RowId::in_file(file_hash("b/two.jpg"), Place::WholeFile).to_string());
        let at = metadata.find("{\"file_name\": \"missing").unwrap() as u64;
        assert_eq!(ids[4], RowId::in_file(file_hash("captions.jsonl"), Place::Offset(at)).to_string());
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
        assert!(messages(&batch)[4].contains("names `missing.jpg`, which the folder does not hold"));

        // A projection gives the same rows, and small batches too.
        let discovery = discover(&source, DiscoverOptions { shard_bytes: 1, shard_files: 1 }).unwrap();
        assert!(discovery.shards.len() > 1);
        let caption = discovery.schema.index_of("caption").unwrap();
        for limits in [BatchLimits::default(), BatchLimits { rows: 1, bytes: 1 }] {
            let few = read_shards(&discovery, &discovery.shards, &[caption, 1], limits);
            assert_eq!(texts(&few, "caption"), texts(&batch, "caption"));
            assert_eq!((texts(&few, "row_id"), codes(&few)), (ids.clone(), codes(&batch)));
            assert_eq!(read_shards(&discovery, &discovery.shards, &[], limits).num_rows(), 7);
        }
    }

    #[test]
    fn with_csv_metadata() {
        let metadata = "\u{feff}file_name,caption,n,ok\r\na.jpg,\"a dog, \"\"Rex\"\"\nin a field\",7,true\r\nb.jpg,,x7,\r\nc.jpg,short\r\nd.jpg,d,,false\r\n";
        let folder =
            folder(&[("a.jpg", PNG), ("b.jpg", PNG), ("c.jpg", PNG), ("d.jpg", PNG), ("m.csv", metadata.as_bytes())]);
        let batch = read(&source::<ImageFolder>(folder.path(), "", json!({"metadata": "m.csv"})));
        assert_eq!(codes(&batch), ["", "", "ragged_row", ""]);
        assert_eq!(texts(&batch, "caption"), ["a dog, \"Rex\"\nin a field", "", "null", "d"]);
        assert_eq!(texts(&batch, "n"), ["7", "x7", "null", ""]);
        assert_eq!(texts(&batch, "ok"), ["true", "null", "null", "false"]);
    }

    #[test]
    fn with_text_files() {
        let folder = folder(&[
            ("a.jpg", PNG),
            ("a.txt", "\u{feff}שלום 🐕\r\n\n".as_bytes()),
            ("b.jpg", PNG),
            ("c.jpg", PNG),
            ("c.txt", b"\xff\xfe"),
            ("d.jpg", PNG),
            ("d.txt", b""),
        ]);
        let batch = read(&source::<ImageFolder>(folder.path(), "", json!({})));
        assert_eq!(texts(&batch, "caption"), ["שלום 🐕", "null", "null", ""]);
        assert_eq!(codes(&batch), ["", "", "invalid_utf8", ""]);
        let alone = super::folder(&[("a.jpg", PNG), ("x/b.jpg", PNG)]);
        let batch = read(&source::<ImageFolder>(alone.path(), "", json!({"recursive": false})));
        assert_eq!(texts(&batch, "file_name"), ["a.jpg"]);
        assert!(batch.column_by_name("caption").is_none());
    }

    #[test]
    fn errors_before_any_work() {
        let folder = folder(&[
            ("a.jpg", PNG),
            ("conflict.jsonl", b"{\"file_name\":\"a.jpg\",\"n\":1}\n{\"file_name\":\"b.jpg\",\"n\":\"x\"}\n"),
            ("nameless.jsonl", b"{\"image\":\"a.jpg\"}\n"),
            ("taken.jsonl", b"{\"file_name\":\"a.jpg\",\"image\":1}\n"),
            ("headless.csv", b"name,caption\na.jpg,x\n"),
            ("empty/x.md", b""),
        ]);
        let with = |config| discover_error(&source::<ImageFolder>(folder.path(), "", config));
        for (config, message) in [
            (json!({"metadata": "nothing.jsonl"}), "there is no `nothing.jsonl` in"),
            (
                json!({"metadata": "conflict.jsonl"}),
                "the row at byte 28: `n` is a text here, but a whole number before",
            ),
            (json!({"metadata": "nameless.jsonl"}), "no row names a file: expected {\"file_name\""),
            (json!({"metadata": "taken.jsonl"}), "a column `image` that is there already"),
            (json!({"metadata": "headless.csv"}), "expected a column `file_name` in the header, found name, caption"),
        ] {
            let error = with(config);
            assert!(error.contains(message), "{error}");
        }
        let at = |path: &str| discover_error(&source::<ImageFolder>(folder.path(), path, json!({})));
        assert!(at("empty").contains("expected files that end in .jpg, .jpeg"));
        assert!(at("a.jpg").contains("expected a folder, found the file"));
        let missing = at("photos/2024");
        assert!(missing.contains("there is no `") && missing.contains("holds a.jpg, conflict.jsonl"), "{missing}");
    }

    #[test]
    #[cfg(unix)]
    fn what_may_not_be_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder(&[("a.jpg", PNG), ("b.jpg", PNG), ("shut/c.jpg", PNG)]);
        let set =
            |path: &str, mode| fs::set_permissions(folder.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        set("b.jpg", 0o000);
        if fs::read(folder.path().join("b.jpg")).is_ok() {
            // Root may read everything: there is nothing to test.
            return;
        }
        let open: ImageFolder = source(folder.path(), "", json!({"recursive": false}));
        assert_eq!(codes(&read(&open)), ["", "unreadable_file"]);
        set("shut", 0o000);
        let error = discover_error(&source::<ImageFolder>(folder.path(), "", json!({})));
        set("shut", 0o755);
        assert!(error.contains("permission denied"), "{error}");
    }

    #[test]
    #[cfg(unix)]
    fn a_link_to_nothing_is_a_row_in_quarantine() {
        let folder = folder(&[("a.jpg", PNG), ("c.jpg", PNG)]);
        std::os::unix::fs::symlink("gone/b.jpg", folder.path().join("b.jpg")).unwrap();
        std::os::unix::fs::symlink("a.jpg", folder.path().join("d.jpg")).unwrap();
        let open: ImageFolder = source(folder.path(), "", json!({}));
        let rows = read(&open);
        assert_eq!(codes(&rows), ["", "unreadable_file", "", ""]);
        assert!(format!("{rows:?}").contains("b.jpg: the link leads to `gone/b.jpg`, which is not there"), "{rows:?}");
    }

    #[test]
    fn a_picture_that_vanishes_ends_the_run() {
        let folder = folder(&[("a.jpg", PNG)]);
        let source: ImageFolder = source(folder.path(), "", json!({}));
        let discovery = discover(&source, DiscoverOptions::default()).unwrap();
        fs::remove_file(folder.path().join("a.jpg")).unwrap();
        let Reader::Rows(reader) = &discovery.reader else { panic!("a reader of rows") };
        let stream = reader.read(&discovery.shards[0], &[0], BatchLimits::default());
        let error = runtime().block_on(stream.try_collect::<Vec<_>>()).unwrap_err().to_string();
        assert!(error.contains("a.jpg: it does not exist"), "{error}");
    }
}

mod coco {
    use super::*;
    use groundloom_formats::coco::Coco;

    const CAPTIONS: &[u8] = br#"{"info": {"year": 2017}, "images": [
        {"id": 9, "file_name": "b.jpg", "width": 200, "height": 100}, {"id": 7, "file_name": "a.jpg", "width": 50, "height": 50},
        {"id": 8, "file_name": "gone.jpg", "width": 10, "height": 10}, {"id": 7, "file_name": "c.jpg"}, {"id": 5}, {"id": 6, "file_name": "lost.jpg"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "A cat."}, {"id": 2, "image_id": 9, "caption": "Two dogs."},
        {"id": 3, "image_id": 7, "caption": "An animal."}, {"id": 4, "image_id": 404, "caption": "Nothing."}]}"#;
    const INSTANCES: &[u8] = br#"{"annotations": [
        {"image_id": 9, "bbox": [50, 25.0, 100, 50], "category_id": 18, "iscrowd": 0, "segmentation": [[1, 2, 3]], "area": 5000},
        {"image_id": 9, "bbox": [0, 0, 200, 100], "category_id": 18, "iscrowd": 1, "segmentation": {"counts": [1], "size": [1, 1]}},
        {"image_id": 8, "bbox": [5, 5, 6, 2], "category_id": 1}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog", "supercategory": "animal"}],
        "images": [{"id": 9, "file_name": "b.jpg", "width": 200, "height": 100}, {"id": 8, "file_name": "gone.jpg", "width": 10, "height": 10}]}"#;

    fn coco(folder: &TempDir, more: Value) -> Coco {
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let mut config =
            json!({"annotations": [file("captions.json"), file("instances.json")], "images": file("photos")});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(config).unwrap()
    }

    fn files<'a>() -> Vec<(&'a str, &'a [u8])> {
        vec![
            ("captions.json", CAPTIONS),
            ("instances.json", INSTANCES),
            ("photos/a.jpg", PNG),
            ("photos/b.jpg", b"b"),
            ("photos/z.jpg", PNG),
        ]
    }

    #[test]
    fn captions_and_boxes_of_an_image_come_together() {
        let folder = folder(&files());
        let batch = read(&coco(&folder, json!({})));
        assert_eq!(texts(&batch, "id"), ["7", "9", "404", "5", "7", "8", "6"]);
        let codes = codes(&batch);
        assert_eq!(
            codes,
            ["", "", "missing_metadata", "missing_file", "duplicate_key", "type_mismatch", "missing_file"],
            "{:?}",
            messages(&batch)
        );
        assert_eq!(texts(&batch, "captions")[..2], ["[A cat., An animal.]", "[Two dogs.]"]);
        assert_eq!(texts(&batch, "width")[..2], ["50", "200"]);
        let boxes = &texts(&batch, "boxes")[..2];
        assert_eq!(boxes[0], "[]");
        assert_eq!(boxes[1], "[{chunk: , label: dog, score: 1.0, x1: 0.25, y1: 0.25, x2: 0.75, y2: 0.75}]");
        assert!(texts(&batch, "image")[1].contains("62") && texts(&batch, "image")[1].contains("b.jpg"));
        // The annotation of gone.jpg lies outside of it too, which is the first that is found.
        let id = RowId::in_file(file_hash("b.jpg"), Place::WholeFile);
        assert_eq!(texts(&batch, "row_id")[1], id.to_string());
        let ids: HashSet<String> = texts(&batch, "row_id").into_iter().collect();
        assert_eq!(ids.len(), batch.num_rows());
        let with_crowds = read(&coco(&folder, json!({"crowd": true})));
        assert_eq!(texts(&with_crowds, "boxes")[1].matches("dog").count(), 2);
    }

    #[test]
    fn without_pictures_and_in_any_shards() {
        let folder = folder(&files());
        let without: Coco = coco(&folder, json!({"images": null}));
        let batch = read(&without);
        assert!(batch.column_by_name("image").is_none());
        assert_eq!(codes(&batch).iter().filter(|c| c.is_empty()).count(), 3, "{:?}", messages(&batch));
        let whole = coco(&folder, json!({}));
        let many = discover(&whole, DiscoverOptions { shard_bytes: 1, shard_files: 1 }).unwrap();
        assert!(many.shards.len() > 1);
        let cut = read_shards(&many, &many.shards, &all_columns(&many), BatchLimits { rows: 1, bytes: 1 });
        assert_eq!(cut, read(&whole));
    }

    #[test]
    fn a_new_caption_changes_the_shard_of_its_image_only() {
        let folder = folder(&files());
        let versions = || -> Vec<String> {
            let found =
                discover(&coco(&folder, json!({})), DiscoverOptions { shard_bytes: 1, shard_files: 1 }).unwrap();
            found
                .shards
                .iter()
                .flat_map(|s| s.files.iter().map(|f| format!("{} {}", f.path, f.version)).collect::<Vec<_>>())
                .collect()
        };
        let before = versions();
        let text = String::from_utf8(CAPTIONS.to_vec()).unwrap().replace("Two dogs.", "Three dogs.");
        fs::write(folder.path().join("captions.json"), text).unwrap();
        let changed: Vec<(String, String)> = before.into_iter().zip(versions()).filter(|(a, b)| a != b).collect();
        assert_eq!(changed.len(), 1, "{changed:?}");
        assert!(changed[0].0.starts_with("b.jpg"));
    }

    #[test]
    fn what_is_no_annotation_file_is_told_with_its_place() {
        let at = |text: &str| {
            let mut files = files();
            files[0].1 = text.as_bytes();
            let folder = folder(&files);
            discover_error(&coco(&folder, json!({})))
        };
        let found = at("{\"images\": [{\"id\": 1,\n \"file_name\": 3}]}");
        assert!(
            found.contains("captions.json") && found.contains("line 2") && found.contains("expected a string"),
            "{found}"
        );
        assert!(at("[1, 2]").contains("a COCO file: an object"), "{}", at("[1, 2]"));
        assert!(at("{}").contains("found neither"), "{}", at("{}"));
        assert!(at("{\"images\": [").contains("EOF"), "{}", at("{\"images\": ["));
        let folder = folder(&files());
        let missing = discover_error(&coco(&folder, json!({"images": folder.path().join("nowhere")})));
        assert!(missing.contains("nowhere"), "{missing}");
    }
}

mod jsonl {
    use super::*;

    #[test]
    fn good_and_bad_lines() {
        let text = b"\xef\xbb\xbf{\"id\": 1, \"text\": \"one\"}\r\n\
            \n\
            {\"id\": 2, \"text\": \"two\", \"more\": {\"x\": []}}\n\
            {\"id\": \"three\"}\n\
            {\"id\": 4, \"text\": \"cut\n\
            [5]\n\
            {\"id\": 6, \"text\": \"\xff\"}\n\
            \0\0\0\0\n\
            {\"id\": 7, \"text\": \"nul \\u0000 tab \\t \\ud83d\\udc15\"}";
        let folder = folder(&[("a.jsonl", text)]);
        let columns = json!({"schema": {"id": "int", "text": "text"}});
        let batch = read(&source::<JsonlSource>(folder.path(), "a.jsonl", columns));
        let bad = ["type_mismatch", "malformed_json", "malformed_json", "invalid_utf8", "malformed_json"];
        assert_eq!(codes(&batch), ["", "", bad[0], bad[1], bad[2], bad[3], bad[4], ""], "{:?}", messages(&batch));
        assert_eq!(texts(&batch, "id"), ["1", "2", "null", "null", "null", "null", "null", "7"]);
        assert_eq!(texts(&batch, "text")[7], "nul \0 tab \t 🐕");
        let offset = text.windows(12).position(|w| w == b"{\"id\": \"thre").unwrap() as u64;
        let id = RowId::in_file(file_hash("a.jsonl"), Place::Offset(offset));
        assert_eq!(texts(&batch, "row_id")[2], id.to_string());
        let message = &messages(&batch)[2];
        assert!(
            message.contains(&format!("a.jsonl at byte {offset}")) && message.contains("\"id\\\": \\\"three"),
            "{message}"
        );
    }

    #[test]
    fn shards_do_not_change_the_rows() {
        let mut text = String::new();
        for i in 0..60 {
            text.push_str(&format!("{{\"id\":{i},\"text\":\"{}\"}}\n", "x".repeat(i)));
            if i % 20 == 7 {
                text.push_str("{\"id\": broken}\n");
            }
        }
        let folder = folder(&[
            ("big.jsonl", text.as_bytes()),
            ("small.jsonl", b"{\"id\":-1,\"text\":\"s\"}\n"),
            ("z.jsonl", b""),
        ]);
        let source: JsonlSource = source(folder.path(), "*.jsonl", json!({}));
        let whole = read(&source);
        assert_eq!(whole.num_rows(), 64);
        for shard_bytes in [1, 17, 100, 4096] {
            let discovery = discover(&source, DiscoverOptions { shard_bytes, shard_files: 10 }).unwrap();
            let cut = read_shards(&discovery, &discovery.shards, &[0, 1], BatchLimits { rows: 13, bytes: 300 });
            assert_eq!(cut, whole, "{shard_bytes}");
            let ids: std::collections::HashSet<&str> = discovery.shards.iter().map(|s| s.id.as_str()).collect();
            assert_eq!(ids.len(), discovery.shards.len());
        }
    }

    #[test]
    fn compressed_files_and_the_damaged_among_them() {
        let rows: String = (0..3000)
            .map(|i| {
                format!("{{\"id\":{i},\"noise\":\"{:x}\"}}\n", xxhash_rust::xxh3::xxh3_64(&[i as u8, (i >> 8) as u8]))
            })
            .collect();
        let gz = gzip(rows.as_bytes());
        let zst = zstd::encode_all(rows.as_bytes(), 1).unwrap();
        let cut = &gz[..gz.len() / 2];
        let mut flipped = gz.clone();
        let middle = flipped.len() / 2;
        flipped[middle..middle + 8].fill(0xa5);
        let folder =
            folder(&[("a.jsonl.gz", &gz), ("b.jsonl.zst", &zst), ("cut.jsonl.gz", cut), ("flip.jsonl.gz", &flipped)]);
        let read = |name| read(&source::<JsonlSource>(folder.path(), name, json!({})));
        let plain = super::folder(&[("a.jsonl", rows.as_bytes())]);
        let expected = super::read(&source::<JsonlSource>(plain.path(), "a.jsonl", json!({})));
        for name in ["a.jsonl.gz", "b.jsonl.zst"] {
            let batch = read(name);
            assert_eq!(batch.column(1), expected.column(1), "{name}");
            assert!(batch.column(3).null_count() == 3000);
        }
        let batch = read("cut.jsonl.gz");
        let good = batch.num_rows() - 1;
        assert!(good > 500, "{good}");
        assert_eq!(&batch.column(1).slice(0, good), &expected.column(1).slice(0, good));
        assert_eq!(codes(&batch).iter().filter(|c| !c.is_empty()).collect::<Vec<_>>(), ["damaged_file"]);
        assert!(messages(&batch)[good].contains("the compressed file ends early"), "{}", messages(&batch)[good]);
        let batch = read("flip.jsonl.gz");
        let first_bad = codes(&batch).iter().position(|c| !c.is_empty()).unwrap();
        assert!(first_bad > 100 && batch.num_rows() < 3001);
    }

    #[test]
    fn keys_and_projections() {
        let folder = folder(&[("a.jsonl", b"{\"meta\":{\"id\":7},\"t\":\"x\"}\n{\"meta\":null,\"t\":\"y\"}\n")]);
        let source: JsonlSource = source(folder.path(), "a.jsonl", json!({"key": "meta.id"}));
        let discovery = discover(&source, DiscoverOptions::default()).unwrap();
        let t = discovery.schema.index_of("t").unwrap();
        let batch = read_shards(&discovery, &discovery.shards, &[t], BatchLimits::default());
        let place = RowId::in_file(file_hash("a.jsonl"), Place::Offset(26));
        assert_eq!(texts(&batch, "row_id"), [RowId::from_key("7").to_string(), place.to_string()]);
        assert_eq!(batch.num_columns(), 3);
        let none = read_shards(&discovery, &discovery.shards, &[], BatchLimits::default());
        assert_eq!(texts(&none, "row_id"), texts(&batch, "row_id"));
    }

    #[test]
    fn errors_before_any_work() {
        let folder = folder(&[
            ("a.jsonl", b"{\"n\":1}\n"),
            ("b.jsonl", b"\n{\"n\":2}\n{\"n\":\"x\"}\n"),
            ("c.jsonl", b"nothing\n"),
        ]);
        let error = |path: &str, config| discover_error(&source::<JsonlSource>(folder.path(), path, config));
        for (path, config, message) in [
            ("*.jsonl", json!({}), "b.jsonl: line 3: `n` is a text here, but a whole number before; state the columns"),
            ("c.jsonl", json!({}), "expected lines of JSON objects with fields, found none"),
            ("a.jsonl", json!({"schema": {"n": "number"}}), "column `n`: expected text, int, float, bool"),
            ("a.jsonl", json!({"schema": {}}), "expected at least one column"),
            ("a.jsonl", json!({"key": "id"}), "there is no column `id`; there are n"),
            ("x*.jsonl", json!({}), "holds a.jsonl, b.jsonl, c.jsonl"),
            ("{a,z}.jsonl", json!({}), "z.jsonl`, which `"),
            ("sub/a.jsonl", json!({}), "there is no `"),
        ] {
            let error = error(path, config);
            assert!(error.contains(message), "{path}: {error}");
        }
    }

    #[test]
    fn long_lines_go_to_quarantine() {
        let long = format!("{{\"t\":\"{}\"}}\n{{\"t\":\"short\"}}\n", "x".repeat(5 << 20));
        let folder = folder(&[("a.jsonl", long.as_bytes())]);
        let batch = read(&source::<JsonlSource>(
            folder.path(),
            "a.jsonl",
            json!({"schema": {"t": "text"}, "max_line_bytes": 1 << 20}),
        ));
        assert_eq!(
            (codes(&batch), texts(&batch, "t")),
            (vec!["too_long".to_owned(), String::new()], vec!["null".to_owned(), "short".to_owned()])
        );
        // The columns are found in a first line that is longer than the sample, too.
        let batch = read(&source::<JsonlSource>(folder.path(), "a.jsonl", json!({})));
        assert_eq!(texts(&batch, "t")[0].len(), 5 << 20);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn damage_loses_no_good_row(damage in prop::collection::vec(any::<u8>(), 0..60), after in 0usize..30) {
            let good = |i: usize| format!("{{\"id\":{i}}}\n");
            let mut text: Vec<u8> = (0..after).flat_map(|i| good(i).into_bytes()).collect();
            text.extend(&damage);
            text.push(b'\n');
            text.extend((after..30).flat_map(|i| good(i).into_bytes()));
            let folder = folder(&[("a.jsonl", &text)]);
            let source: JsonlSource = source(folder.path(), "a.jsonl", json!({"schema": {"id": "int"}}));
            let discovery = discover(&source, DiscoverOptions { shard_bytes: 100, shard_files: 10 }).unwrap();
            let batch = read_shards(&discovery, &discovery.shards, &[0], BatchLimits::default());
            let ids: Vec<i64> = batch.column(1).as_primitive::<Int64Type>().iter().flatten().collect();
            prop_assert!((0..30).all(|i| ids.contains(&i)), "{:?}", ids);
            let lines = text.split(|b| *b == b'\n').filter(|l| !l.iter().all(u8::is_ascii_whitespace)).count();
            // A damaged beginning may be read as a byte order mark.
            prop_assert!(batch.num_rows() == lines || damage.starts_with(b"\xef\xbb\xbf"));
        }
    }
}

mod parquet_files {
    use super::*;
    use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

    fn file(columns: Vec<(&str, ArrayRef)>, group: usize) -> Vec<u8> {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    fn ints(count: i64) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(0..count))
    }

    #[test]
    fn shards_hold_whole_row_groups() {
        let (one, two) = (file(vec![("a", ints(1000))], 100), file(vec![("a", ints(5))], 100));
        let folder = folder(&[
            ("d/one.parquet", &one),
            ("d/two.parquet", &two),
            ("d/_old/x.parquet", b"junk"),
            ("d/README.md", b""),
        ]);
        let source: ParquetSource = source(folder.path(), "d", json!({}));
        let discovery = discover(&source, DiscoverOptions { shard_bytes: 1, shard_files: 1 }).unwrap();
        assert!(matches!(discovery.reader, Reader::Parquet));
        assert_eq!(discovery.shards.len(), 11);
        assert_eq!(discovery.shards.iter().map(|s| s.rows.unwrap()).sum::<u64>(), 1005);
        let ranges: Vec<_> = discovery.shards[..10].iter().map(|s| s.files.first().unwrap().range.unwrap()).collect();
        assert!(
            ranges.windows(2).all(|w| w[0].end == w[1].start)
                && ranges[9].end == one.len() as u64
                && ranges[0].start == 4
        );
        let whole = discover(&source, DiscoverOptions::default()).unwrap();
        assert_eq!(whole.shards.iter().map(|s| s.rows.unwrap()).collect::<Vec<_>>(), [1000, 5]);
        assert_eq!(
            (whole.shards[0].files.first().unwrap().path.as_str(), whole.schema.field(0).name().as_str()),
            ("one.parquet", "a")
        );
    }

    #[test]
    fn errors_before_any_work() {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![b"x".as_slice()]));
        let good = file(vec![("a", ints(1)), ("b", text.clone())], 10);
        let mut long = good.clone();
        let at = long.len() - 8;
        long[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut damaged = good.clone();
        let from = damaged.len() - 60;
        damaged[from..at].fill(0xff);
        let folder = folder(&[
            ("type/1.parquet", &good),
            ("type/2.parquet", &file(vec![("a", ints(1)), ("b", bytes)], 10)),
            ("less/1.parquet", &good),
            ("less/2.parquet", &file(vec![("a", ints(1))], 10)),
            ("more/1.parquet", &good),
            ("more/2.parquet", &file(vec![("a", ints(1)), ("b", text), ("c", ints(1))], 10)),
            ("cut/1.parquet", &good[..good.len() - 20]),
            ("text/1.parquet", b"{\"a\": 1} and some more text"),
            ("zero/1.parquet", b""),
            ("long/1.parquet", &long),
            ("damaged/1.parquet", &damaged),
        ]);
        for (path, message) in [
            ("type", "the column `b` has the type Binary, not Utf8, unlike in"),
            ("less", "2.parquet: the column `b` is missing, unlike in"),
            ("more", "there is a column `c`, unlike in"),
            ("cut", "does not end as one; is it cut off?"),
            ("text", "does not end as one"),
            ("zero", "it has only 0 bytes"),
            ("long", "is longer than the file"),
            ("damaged", "1.parquet: expected a Parquet file, but its"),
        ] {
            let error = discover_error(&source::<ParquetSource>(folder.path(), path, json!({})));
            assert!(error.contains(message), "{path}: {error}");
        }
        let error = discover_error(&source::<ParquetSource>(folder.path(), "less/1.parquet", json!({"key": "c"})));
        assert!(error.contains("there is no column `c`"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn damaged_footers_never_panic(at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut bytes = file(vec![("a", ints(300)), ("b", ints(300))], 100);
            for (index, value) in at {
                let i = index.index(bytes.len());
                bytes[i] = value;
            }
            let folder = folder(&[("a.parquet", &bytes)]);
            let source: ParquetSource = source(folder.path(), "a.parquet", json!({}));
            if let Ok(discovery) = discover(&source, DiscoverOptions { shard_bytes: 1, shard_files: 1 }) {
                for shard in &discovery.shards {
                    let range = shard.files.first().unwrap().range.unwrap();
                    prop_assert!(range.start < range.end && range.end <= bytes.len() as u64);
                }
            }
        }
    }
}
