//! JSON Lines, WebDataset and the GrIT TSV: files, joins and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod grit_rows;

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use grit_rows::{batch, pairs, picture, sink, write_part};
use groundloom_formats::Sink;

/// Writes each row as a part of its own and joins them; the joined file's bytes.
fn joined(sink: &dyn Sink, folder: &Path) -> Vec<u8> {
    let rows = batch(&pairs(), 0);
    let parts: Vec<PathBuf> = (0..rows.num_rows())
        .map(|i| {
            let path = folder.join(format!("part-{i}"));
            write_part(sink, &path, &[rows.slice(i, 1)]);
            path
        })
        .collect();
    let output = folder.join(format!("joined.{}", sink.extension()));
    sink.join(&parts, &output).unwrap();
    fs::read(output).unwrap()
}

fn whole(sink: &dyn Sink, folder: &Path) -> Vec<u8> {
    let path = folder.join("whole");
    write_part(sink, &path, &[batch(&pairs(), 0)]);
    fs::read(path).unwrap()
}

#[test]
fn joined_uncompressed_files_are_what_one_writer_writes() {
    for yaml in [
        "{ type: jsonl, path: out, media: base64 }",
        "{ type: webdataset, path: out, form: grit }",
        "{ type: grit_tsv, path: out }",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink(yaml);
        assert!(joined(sink.as_ref(), folder.path()) == whole(sink.as_ref(), folder.path()), "{yaml}");
    }
}

#[test]
fn joined_compressed_lines_read_as_one_stream() {
    let folder = tempfile::tempdir().unwrap();
    let plain = whole(sink("{ type: jsonl, path: out, media: drop }").as_ref(), folder.path());
    let gzip = joined(sink("{ type: jsonl, path: out, media: drop, compression: gzip }").as_ref(), folder.path());
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(gzip.as_slice()).read_to_end(&mut text).unwrap();
    assert!(text == plain);
    let zstd = joined(sink("{ type: jsonl, path: out, media: drop, compression: zstd }").as_ref(), folder.path());
    assert!(zstd::decode_all(zstd.as_slice()).unwrap() == plain);
}

#[test]
fn lines_hold_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        String::from_utf8(whole(sink("{ type: jsonl, path: out, form: grit, media: drop }").as_ref(), folder.path()))
            .unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0]["ref_exps"], serde_json::json!([[0.0, 27.0, 0.25, 0.25, 0.75, 0.875, 0.75]]));
    assert_eq!(rows[0]["image"], serde_json::json!({ "path": "photos/0.png" }));
    assert_eq!(rows[3]["caption"].as_str(), pairs()[3].caption.as_deref());
    assert_eq!(rows[0].as_object().unwrap().keys().next().map(String::as_str), Some("row_id"));
}

#[test]
fn bytes_need_a_decision_in_json() {
    let error = sink("{ type: jsonl, path: out }").schema(&batch(&pairs(), 0).schema()).unwrap_err().to_string();
    assert!(error.contains("`image`") && error.contains("media: base64") && error.contains("media: drop"), "{error}");
    sink("{ type: jsonl, path: out, columns: [caption] }").schema(&batch(&pairs(), 0).schema()).unwrap();
}

/// Name and content of every member.
fn members(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (mut at, mut members) = (0, Vec::new());
    while tar[at] != 0 {
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8(tar[at..][range].split(|b| *b == 0).next().unwrap().to_vec()).unwrap()
        };
        let size = usize::from_str_radix(&text(124..136), 8).unwrap();
        members.push((text(0..100), tar[at + 512..at + 512 + size].to_vec()));
        at += 512 + size.next_multiple_of(512);
    }
    assert_eq!(tar.len(), at + 1024, "two empty blocks end it");
    members
}

#[test]
fn a_row_is_its_members() {
    let folder = tempfile::tempdir().unwrap();
    let members = members(&whole(sink("{ type: webdataset, path: out, form: grit }").as_ref(), folder.path()));
    let names: Vec<&str> = members.iter().take(3).map(|(name, _)| name.as_str()).collect();
    let key = "0".repeat(32);
    assert_eq!(names, [format!("{key}.png"), format!("{key}.txt"), format!("{key}.json")]);
    assert_eq!(members[0].1, picture(12, 8, 27));
    assert_eq!(members[1].1, b"a dog in a field of flowers");
    let json: serde_json::Value = serde_json::from_slice(&members[2].1).unwrap();
    assert_eq!(json["image_path"], "photos/0.png");
    assert_eq!(json["noun_chunks"].as_array().unwrap().len(), 3);
    assert!(json.get("caption").is_none() && json.get("image").is_none(), "{json}");
}

#[test]
fn keys_cannot_leave_the_folder_or_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = pairs();
    rows.truncate(2);
    rows[0].caption = Some("../../etc/passwd".into());
    rows[0].boxes.clear();
    rows[0].expressions.clear();
    let by_caption = sink("{ type: webdataset, path: out, key: caption }");
    let path = folder.path().join("a.tar");
    write_part(by_caption.as_ref(), &path, &[batch(&rows, 0)]);
    assert_eq!(members(&fs::read(&path).unwrap())[0].0, "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd.png");

    let twice = batch(&rows, 0);
    let one = twice.slice(0, 1);
    let mut writer = by_caption.writer(twice.schema(), fs::File::create(&path).unwrap(), &[]).unwrap();
    writer.write(&one).unwrap();
    let error = writer.write(&one).unwrap_err().to_string();
    assert!(error.contains("row 000") && error.contains("\"../../etc/passwd\" twice in a row"), "{error}");

    let parts: Vec<PathBuf> = ["b.tar", "c.tar"].iter().map(|name| folder.path().join(name)).collect();
    parts.iter().for_each(|part| write_part(by_caption.as_ref(), part, std::slice::from_ref(&one)));
    let error = by_caption.join(&parts, &path).unwrap_err().to_string();
    assert!(error.contains("c.tar") && error.contains("end of the part before"), "{error}");
}

#[test]
fn a_damaged_tar_is_not_joined() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink("{ type: webdataset, path: out }");
    let part = folder.path().join("part.tar");
    write_part(sink.as_ref(), &part, &[batch(&pairs(), 0)]);
    let bytes = fs::read(&part).unwrap();
    fs::write(&part, &bytes[..bytes.len() - 1024]).unwrap();
    let error = sink.join(std::slice::from_ref(&part), &folder.path().join("out.tar")).unwrap_err().to_string();
    assert!(error.contains("part.tar") && error.contains("ends without its end blocks at byte"), "{error}");
}

#[test]
fn the_tsv_keeps_spans_right() {
    let folder = tempfile::tempdir().unwrap();
    let text = String::from_utf8(whole(sink("{ type: grit_tsv, path: out }").as_ref(), folder.path())).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().all(|columns| columns.len() == 6));
    let odd = &lines[3];
    assert_eq!(odd[1], pairs()[3].caption.as_deref().unwrap().replace(['\n', '\t'], " "));
    let dog = odd[1].chars().position(|c| c == '🐕').unwrap();
    assert!(odd[5].starts_with(&format!("{{'phrase': [[{dog}, {}, 0.0, 0.0, 1.0, 1.0, 0.5]]", dog + 1)), "{}", odd[5]);
    assert_eq!(odd[3..5], ["12", "8"]);
}

#[test]
fn the_tsv_names_the_row_that_has_no_place_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let tsv = sink("{ type: grit_tsv, path: out }");
    let write = |change: &dyn Fn(&mut grit_rows::Pair)| {
        let mut rows = pairs();
        change(&mut rows[2]);
        let rows = batch(&rows, 0);
        let mut writer = tsv.writer(rows.schema(), fs::File::create(folder.path().join("a")).unwrap(), &[]).unwrap();
        writer.write(&rows).unwrap_err().to_string()
    };
    let row = format!("row {:032x}: ", 2 * 7919);
    let error = write(&|pair| pair.image = None);
    assert!(error.starts_with(&row) && error.contains("`image`"), "{error}");
    let error = write(&|pair| pair.image = Some(b"nothing".to_vec()));
    assert!(error.starts_with(&row) && error.contains("expected a JPEG"), "{error}");
    let error = write(&|pair| pair.caption = None);
    assert!(error.starts_with(&row) && error.contains("`caption`"), "{error}");
}

#[test]
fn every_sink_documents_itself() {
    for sink in groundloom_formats::sink::sink_types() {
        assert_eq!(sink.component.faults(), Vec::<String>::new(), "{}", sink.component.name);
    }
}
