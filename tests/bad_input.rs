//! Bad input gives a quarantined row or a clear error; never a panic, never an output that looks whole and is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{collections::BTreeMap, fs, io::Cursor};

use arrow::array::Array;
use image::{DynamicImage, ImageFormat};
use support::{Bench, integers, root, texts};

const FOLDER: &str = "
sources: { pairs: { type: image_folder, path: photos, metadata: captions.jsonl } }
stages:
  size: { type: image_info }
  chunks: { type: noun_chunks, text: caption }
sinks: { out: { type: parquet, path: out } }
";

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG whose header announces 50,000 × 50,000 pixels.
fn bomb() -> Vec<u8> {
    let mut png = encoded(&DynamicImage::new_rgb8(1, 1), ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 0, 0xC3, 0x50, 0, 0, 0xC3, 0x50]);
    let crc = png[12..29].iter().fold(0xFFFF_FFFFu32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
        }
        crc
    });
    png[29..33].copy_from_slice(&(!crc).to_be_bytes());
    png
}

#[test]
fn one_bad_row_costs_one_row() {
    let bench = Bench::new();
    let photo = fs::read(root().join("examples/photos/rocket.jpg")).unwrap();
    let grey16 = DynamicImage::ImageLuma16(image::ImageBuffer::from_pixel(8, 4, image::Luma([40_000])));
    let images: Vec<(&str, Vec<u8>)> = vec![
        ("good.jpg", photo.clone()),
        ("grey16.png", encoded(&grey16, ImageFormat::Png)),
        ("picture.gif", encoded(&DynamicImage::new_rgb8(5, 7), ImageFormat::Gif)),
        ("empty.jpg", Vec::new()),
        ("text.png", b"this is no picture".to_vec()),
        ("cut.jpg", photo[..photo.len() / 2].to_vec()),
        ("bomb.png", bomb()),
        ("unnamed.jpg", photo.clone()),
        ("rotated.jpg", fs::read(root().join("examples/photos/two_dogs.jpg")).unwrap()),
        ("no_caption.jpg", photo.clone()),
        ("empty_caption.jpg", photo.clone()),
        ("long.jpg", photo.clone()),
        ("odd.jpg", photo.clone()),
    ];
    for (name, bytes) in &images {
        bench.write(&format!("photos/{name}"), bytes);
    }
    let odd = "a שלום dog\twith 👩‍🚀 hats\nand a\u{0} cat";
    let captions = [
        ("good.jpg", Some("a rocket on a pad".to_owned())),
        ("grey16.png", Some("a grey square".into())),
        ("picture.gif", Some("a black square".into())),
        ("empty.jpg", Some("a picture".into())),
        ("text.png", Some("a picture".into())),
        ("cut.jpg", Some("a picture".into())),
        ("bomb.png", Some("a picture".into())),
        ("rotated.jpg", Some("two dogs".into())),
        ("no_caption.jpg", None),
        ("empty_caption.jpg", Some(String::new())),
        ("long.jpg", Some("a very long caption ".repeat(5_120))),
        ("odd.jpg", Some(odd.into())),
        ("good.jpg", Some("again".into())),
        ("nowhere.jpg", Some("a file that is not there".into())),
    ];
    let mut lines: Vec<String> =
        captions.iter().map(|(n, c)| serde_json::json!({ "file_name": n, "caption": c }).to_string()).collect();
    lines.push("{\"file_name\": ".into());
    bench.write("photos/captions.jsonl", lines.join("\n"));
    bench.write("p.yaml", FOLDER);
    let said = bench.ok(&["run", "p.yaml"]);
    let kept = bench.rows("out/data");
    let mut names = texts(&kept, "file_name");
    names.sort();
    assert_eq!(
        names,
        ["empty_caption.jpg", "good.jpg", "grey16.png", "odd.jpg", "picture.gif", "rotated.jpg"],
        "{}",
        said.err
    );
    let at = texts(&kept, "file_name").iter().position(|n| n == "odd.jpg").unwrap();
    // Spans count characters, whatever stands between them.
    let chunks = arrow::array::AsArray::as_list::<i32>(kept.column_by_name("chunks").unwrap()).value(at);
    let chunks = arrow::array::AsArray::as_struct(&chunks);
    let number = |c: &str, i: usize| {
        arrow::array::AsArray::as_primitive::<arrow::datatypes::Int32Type>(chunks.column_by_name(c).unwrap()).value(i)
            as usize
    };
    let characters: Vec<char> = odd.chars().collect();
    let spans = arrow::array::AsArray::as_string::<i32>(chunks.column_by_name("text").unwrap());
    assert!(chunks.len() > 0);
    for i in 0..chunks.len() {
        let span: String = characters[number("start", i)..number("end", i)].iter().collect();
        assert_eq!(span, spans.value(i));
    }
    let quarantined = bench.rows("out/_quarantine");
    let codes: BTreeMap<String, String> = texts(&quarantined, "file_name")
        .into_iter()
        .zip(texts(&quarantined, "code"))
        .filter(|(n, _)| n != "good.jpg" && n != "∅" && !n.is_empty())
        .collect();
    let expected: BTreeMap<String, String> = [
        ("bomb.png", "image_too_large"),
        ("cut.jpg", "undecodable_image"),
        ("empty.jpg", "undecodable_image"),
        ("long.jpg", "text_too_long"),
        ("no_caption.jpg", "missing_value"),
        ("nowhere.jpg", "missing_file"),
        ("text.png", "undecodable_image"),
        ("unnamed.jpg", "missing_metadata"),
    ]
    .iter()
    .map(|(n, c)| ((*n).to_owned(), (*c).to_owned()))
    .collect();
    assert_eq!(codes, expected);
    let all = texts(&quarantined, "code");
    assert!(all.contains(&"duplicate_key".to_owned()), "{all:?}");
    assert_eq!(kept.num_rows() + quarantined.num_rows(), 16, "every picture and every metadata row ends once: {all:?}");
    for message in texts(&quarantined, "message") {
        assert!(message.len() > 10, "{message}");
    }
}

#[test]
fn lines_that_are_no_rows_are_quarantined_with_their_place() {
    let bench = Bench::new();
    bench.write(
        "t.jsonl",
        b"{\"a\": 1, \"t\": \"x\"}\n{\"a\": \n\n{\"a\": \"many\"}\r\n\xff\xfe\n{\"a\": 5, \"t\": \"y\"}" as &[u8],
    );
    bench.write("p.yaml", "sources: { s: { type: jsonl, path: t.jsonl, schema: { a: int, t: text } } }\nsinks: { out: { type: jsonl, path: out } }\n");
    bench.ok(&["run", "p.yaml"]);
    let written: Vec<Vec<u8>> = bench.bytes("out/data").into_values().collect();
    assert_eq!(String::from_utf8(written.concat()).unwrap().lines().count(), 2);
    let bad = bench.rows("out/_quarantine");
    assert_eq!(bad.num_rows(), 3);
    assert!(
        texts(&bad, "message").iter().any(|m| m.contains("byte 19") || m.contains("t.jsonl")),
        "{:?}",
        texts(&bad, "message")
    );
}

#[test]
fn too_many_bad_rows_stop_the_run_with_code_3() {
    let bench = Bench::new();
    bench.write("t.jsonl", "{\"a\": 1}\n{\"a\": 2}\nno\nno\nno\n");
    bench.write("p.yaml", "settings: { max_bad: \"2\" }\nsources: { s: { type: jsonl, path: t.jsonl } }\nsinks: { out: { type: parquet, path: out } }\n");
    let said = bench.run(&["run", "p.yaml"]);
    assert_eq!(said.code, Some(3), "{}", said.err);
    assert!(said.err.contains("3 of the first 5 rows failed"), "{}", said.err);
    assert!(!bench.path("out").exists());
}

#[test]
fn a_folder_with_other_things_is_refused_untouched() {
    let bench = Bench::new();
    bench.write("t.jsonl", "{\"a\": 1}\n");
    bench.write("out/thesis.tex", "years of work");
    bench.write(
        "p.yaml",
        "sources: { s: { type: jsonl, path: t.jsonl } }\nsinks: { out: { type: parquet, path: out } }\n",
    );
    let said = bench.run(&["run", "p.yaml"]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("holds no Groundloom data set"), "{}", said.err);
    assert_eq!(bench.bytes("out").keys().collect::<Vec<_>>(), ["thesis.tex"]);
}

#[test]
fn an_output_that_cannot_be_written_is_said() {
    let bench = Bench::new();
    bench.write("t.jsonl", "{\"a\": 1}\n");
    bench.write("file", "");
    bench.write(
        "p.yaml",
        "sources: { s: { type: jsonl, path: t.jsonl } }\nsinks: { out: { type: parquet, path: file/out } }\n",
    );
    let said = bench.run(&["run", "p.yaml"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("file"), "{}", said.err);
}

#[test]
fn missing_input_is_said_at_its_place_in_the_file() {
    let bench = Bench::new();
    bench.write(
        "p.yaml",
        "sources: { s: { type: image_folder, path: nowhere } }\nsinks: { out: { type: parquet, path: out } }\n",
    );
    let said = bench.run(&["check", "p.yaml"]);
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("p.yaml:1:43") && said.err.contains("nowhere"), "{}", said.err);
}

#[test]
fn every_kind_of_picture_goes_through_a_pipeline() {
    let media = root().join("crates/groundloom-data/tests/media");
    let bench = Bench::new();
    // CMYK, YCCK, 1, 2, 8 and 16 bits, palettes, animations, EXIF orientations: each with a PNG of what Pillow shows.
    let mut sizes = BTreeMap::new();
    for path in fs::read_dir(&media).unwrap().map(|f| f.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let shown = media.join(format!("{name}.png"));
        if shown.exists() {
            bench.write(&format!("photos/{name}"), fs::read(&path).unwrap());
            sizes.insert(name, image::image_dimensions(shown).unwrap());
        }
    }
    assert!(sizes.len() > 30);
    bench.write(
        "p.yaml",
        "sources: { pictures: { type: image_folder, path: photos } }\nstages: { size: { type: image_info } }\n\
         sinks: { out: { type: parquet, path: out } }\n",
    );
    bench.ok(&["run", "p.yaml"]);
    let rows = bench.rows("out/data");
    let number = |column: &str| integers(&rows, column).into_iter().map(|n| n as u32).collect::<Vec<_>>();
    let found: BTreeMap<String, (u32, u32)> =
        texts(&rows, "file_name").into_iter().zip(number("width").into_iter().zip(number("height"))).collect();
    assert_eq!(found, sizes);
    assert!(!bench.path("out/_quarantine").exists());
}
