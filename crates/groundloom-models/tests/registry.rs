//! Names of models: what loads, and what is refused in which words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{fs, path::Path};

use groundloom_models::{Classes, DEFAULT_DETECTOR, DEFAULT_SENTENCE_ENCODER, DetectOptions, embedded_names, resolve};
use image::RgbImage;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/ssd-mobilenet-v2-oidv4");

/// A copy of the embedded model's folder, changed by `change`.
fn folder(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "labels.txt", "model.safetensors", "vocabulary.tsv"] {
        fs::copy(Path::new(DATA).join(file), copy.path().join(file)).unwrap();
    }
    change(copy.path());
    copy
}

fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn the_embedded_model_says_who_it_is() {
    assert_eq!(embedded_names().collect::<Vec<_>>(), [DEFAULT_DETECTOR, DEFAULT_SENTENCE_ENCODER]);
    let model = resolve(DEFAULT_DETECTOR).unwrap();
    let info = model.info();
    assert_eq!(
        (info.name.as_str(), info.architecture, info.licence.as_str()),
        (DEFAULT_DETECTOR, "SsdMobileNetV2", "Apache-2.0")
    );
    // The hash that the conversion script recorded beside the weights.
    let readme = fs::read_to_string(Path::new(DATA).join("README.md")).unwrap();
    assert!(info.weights_sha256.len() == 64 && readme.contains(&info.weights_sha256), "{}", info.weights_sha256);
    let Classes::Fixed(labels) = &info.classes else { panic!("{:?}", info.classes) };
    assert_eq!((labels.len(), &*labels[8]), (24, "Cat"));
}

#[test]
fn a_folder_is_the_same_model() {
    let copy = folder(|path| fs::remove_file(path.join("vocabulary.tsv")).unwrap());
    let (embedded, on_disk) = (resolve(DEFAULT_DETECTOR).unwrap(), resolve(copy.path().to_str().unwrap()).unwrap());
    assert_eq!(embedded.info(), on_disk.info());
    let image = RgbImage::from_fn(320, 240, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    let options = DetectOptions { min_score: 0.01, nms_iou: 0.5 };
    let found = embedded.detect(&image, &options).unwrap();
    assert!(!found.is_empty());
    assert_eq!(found, on_disk.detect(&image, &options).unwrap());
    // Without a vocabulary of its own each label names itself, and nothing else does.
    assert_eq!(on_disk.vocabulary().unwrap().lookup("a cat", "cat"), Some("Cat"));
    assert_eq!(on_disk.vocabulary().unwrap().lookup("a kitten", "kitten"), None);
}

type Change = fn(&Path);

#[test]
fn what_is_wrong_is_named() {
    let cases: [(Change, &str); 11] = [
        (|f| fs::remove_file(f.join("config.json")).unwrap(), "cannot read "),
        (|f| fs::write(f.join("config.json"), "{").unwrap(), "config.json: found: EOF while parsing"),
        (
            |f| replace(&f.join("config.json"), "SsdMobileNetV2", "DetrForObjectDetection"),
            "architecture \"DetrForObjectDetection\" is not supported; supported: ",
        ),
        (|f| replace(&f.join("config.json"), "\"resample\"", "\"crop\": 1, \"resample\""), "unknown field `crop`"),
        (|f| replace(&f.join("config.json"), "bilinear", "bicubic"), "unknown variant `bicubic`, expected `bilinear`"),
        (
            |f| replace(&f.join("config.json"), "\"labels.txt\"", "\"../labels.txt\""),
            "expected `labels` to name a file of the folder",
        ),
        (|f| replace(&f.join("config.json"), "      32,", "      48,"), "found strides"),
        (|f| fs::write(f.join("labels.txt"), "???\nCat\n").unwrap(), "expected a class of the model"),
        (
            |f| {
                fs::remove_file(f.join("vocabulary.tsv")).unwrap();
                fs::write(f.join("labels.txt"), "???\nCat\n").unwrap()
            },
            "expected the tensor heads.0.classes.weight to have the shape [576, 6], found [576, 72]",
        ),
        (|f| fs::write(f.join("model.safetensors"), b"not tensors").unwrap(), "expected a safetensors file"),
        (
            |f| {
                let whole = fs::read(f.join("model.safetensors")).unwrap();
                fs::write(f.join("model.safetensors"), &whole[..whole.len() / 2]).unwrap()
            },
            "expected a safetensors file",
        ),
    ];
    for (change, message) in cases {
        let folder = folder(change);
        let error = resolve(folder.path().to_str().unwrap()).err().expect(message).to_string();
        assert!(error.contains(message), "{error}\nexpected: {message}");
    }
}

#[test]
fn names_that_stand_for_nothing() {
    let error = resolve("ssd").err().unwrap().to_string();
    assert!(error.contains("no model is called \"ssd\"") && error.contains(DEFAULT_DETECTOR), "{error}");
    let error = resolve("hf://nobody/has-this@main").err().unwrap().to_string();
    assert!(
        error.contains("`groundloom models pull hf://nobody/has-this@main`")
            && error.contains("give the folder's path"),
        "{error}"
    );
}
