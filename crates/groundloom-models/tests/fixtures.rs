//! Every family against its reference implementation, on the small fixtures in `tests/data/fixtures`; more folders,
//! made with other seeds, in the directories that `GROUNDLOOM_FIXTURES` lists, separated by colons.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use groundloom_models::{Device, Embedder, ModelError, Outcome, describe_embedder, plainly, resolve_embedder, verify};
use image::RgbImage;

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
    compare_all(check);
}

/// The layers of accelerators are candle's operations; on the CPU they must give what the reference gives too.
#[test]
fn every_output_of_plain_layers_is_the_references() {
    compare_all(|folder| plainly(|| check(folder)));
}

fn compare_all(check: impl Fn(&Path) -> (String, Vec<String>)) {
    let mut failed = Vec::new();
    for folder in folders() {
        let (worst, problems) = check(&folder);
        println!("{}: {worst}", folder.display());
        failed.extend(problems.into_iter().map(|problem| format!("{}: {problem}", folder.display())));
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

fn check(folder: &Path) -> (String, Vec<String>) {
    let comparisons = match verify(folder, Device::Cpu) {
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

fn model(family: &str) -> std::sync::Arc<dyn Embedder> {
    resolve_embedder(&format!("{DATA}/{family}")).unwrap()
}

fn photo(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]))
}

#[test]
fn odd_inputs_have_vectors_that_depend_on_nothing_else() {
    let long = "a photo of two dogs ".repeat(200);
    let texts = ["", " ", "a", "a photo of a cat", "état — 日本語 🐶", "\u{0}\u{feff}", &long, &"x".repeat(5000)];
    let images = [photo(1, 1), photo(1, 300), photo(640, 2), photo(32, 32), photo(53, 41), photo(200, 333)];
    for family in ["clip", "siglip", "coca", "fromage", "clap", "bert"] {
        let model = model(family);
        let info = model.info();
        let together = model.embed_texts(&texts);
        for (text, vector) in texts.iter().zip(&together) {
            let vector = vector.as_ref().unwrap();
            assert_eq!(vector.len(), info.dims);
            assert!(vector.iter().all(|x| x.is_finite()), "{family} {text:.20}");
            assert_eq!(model.embed_texts(&[text])[0].as_ref().unwrap(), vector, "{family} {text:.20}");
            if info.normalised {
                assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
        let views: Vec<&RgbImage> = images.iter().chain(std::iter::repeat_n(&images[4], 40)).collect();
        let together = model.embed_images(&views);
        if !info.images {
            assert_eq!(together[0], Err(ModelError::NoModality { model: info.name.clone(), what: "images" }));
            continue;
        }
        for (image, vector) in views.iter().zip(&together) {
            assert!(vector.as_ref().unwrap().iter().all(|x| x.is_finite()));
            assert_eq!(model.embed_images(&[image])[0], *vector, "{family} {:?}", image.dimensions());
        }
        let with_a_bad_one = model.embed_images(&[&images[3], &RgbImage::new(0, 4), &images[4]]);
        assert!(matches!(with_a_bad_one[1], Err(ModelError::EmptyImage { .. })));
        assert_eq!([&with_a_bad_one[0], &with_a_bad_one[2]], [&together[3], &together[4]]);
        // A sliver would become a canvas of gigabytes where the shorter side decides.
        if family == "clip" {
            assert!(matches!(model.embed_images(&[&photo(1, 3_000_000)])[0], Err(ModelError::ImageTooLong { .. })));
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let models = ["clip", "fromage"].map(model);
    let (images, texts) = ([photo(53, 41), photo(64, 32)], ["a cat", "two dogs sleeping on a couch"]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let images: Vec<&RgbImage> = images.iter().collect();
        pool.install(|| models.each_ref().map(|model| (model.embed_images(&images), model.embed_texts(&texts))))
    };
    let alone = run(1);
    assert_eq!(alone, run(2));
    assert_eq!(alone, run(5));
}

#[test]
fn what_a_folder_says_is_known_without_loading_it() {
    for (family, dims, normalised, texts, images) in [
        ("clip", 24, true, true, true),
        ("siglip", 48, true, true, true),
        ("coca", 16, true, true, true),
        ("fromage", 8, true, true, true),
        ("clap", 12, true, true, false),
        ("bert", 32, true, true, false),
    ] {
        let info = describe_embedder(&format!("{DATA}/{family}")).unwrap();
        assert_eq!((info.dims, info.normalised, info.texts, info.images), (dims, normalised, texts, images));
        assert_eq!(&info, model(family).info());
    }
}

/// A copy of a fixture, changed.
fn changed(family: &str, file: &str, change: impl FnOnce(String) -> String) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fn copy_all(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_dir() {
                fs::create_dir(to.join(entry.file_name())).unwrap();
                copy_all(&entry.path(), &to.join(entry.file_name()));
            } else {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
    copy_all(&Path::new(DATA).join(family), copy.path());
    let path = copy.path().join(file);
    fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
    copy
}

/// A change of FROMAGe's options, and what is said of it.
fn fromage<'a>(from: &'a str, to: &'a str, message: &'a str) -> (&'a str, &'a str, &'a str, &'a str, &'a str) {
    ("fromage", "model_args.json", from, to, message)
}

/// A change of CoCa's options, and what is said of it.
fn coca<'a>(from: &'a str, to: &'a str, message: &'a str) -> (&'a str, &'a str, &'a str, &'a str, &'a str) {
    ("coca", "open_clip_config.json", from, to, message)
}

#[test]
fn options_that_would_change_the_answer_are_refused_by_name() {
    let cases = [
        (
            "clip",
            "config.json",
            "\"patch_size\": 8",
            "\"patch_size\": 8, \"use_rope\": true",
            "vision_config.use_rope is not supported",
        ),
        ("clip", "config.json", "\"quick_gelu\"", "\"swiglu\"", "hidden_act to be one of gelu"),
        (
            "clip",
            "config.json",
            "\"num_channels\": 3",
            "\"num_channels\": 4",
            "num_channels is supported as 3 only, found 4",
        ),
        (
            "clip",
            "config.json",
            "\"image_size\": 32",
            "\"image_size\": 64",
            "to have the shape [65, 48], found [17, 48]",
        ),
        (
            "clip",
            "preprocessor_config.json",
            "\"resample\": 3",
            "\"resample\": 0",
            "resample to be 1 (Lanczos), 2 (bilinear), 3 (bicubic) or 4 (box), found 0",
        ),
        (
            "clip",
            "preprocessor_config.json",
            "\"do_resize\": true",
            "\"do_resize\": true, \"do_thumbnail\": true",
            "do_thumbnail is not supported",
        ),
        (
            "clip",
            "preprocessor_config.json",
            "\"height\": 32",
            "\"height\": 33",
            "expected images of 32×32 pixels as config.json says, found 32×33",
        ),
        (
            "clip",
            "config.json",
            "\"model_type\": \"clip\"",
            "\"model_type\": \"altclip\"",
            "architecture \"altclip\" is not supported; supported: clip, siglip",
        ),
        (
            "bert",
            "config.json",
            "\"is_decoder\": false",
            "\"is_decoder\": true",
            "is_decoder is supported as false only",
        ),
        (
            "bert",
            "config.json",
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 5",
            "expected a width that the heads divide",
        ),
        (
            "bert",
            "config.json",
            "\"num_hidden_layers\": 3",
            "\"num_hidden_layers\": 2",
            "found also encoder.layer.2.attention",
        ),
        ("bert", "modules.json", "models.Normalize", "models.Dense", "found \"sentence_transformers.models.Dense\""),
        (
            "bert",
            "1_Pooling/config.json",
            "\"pooling_mode_cls_token\": false",
            "\"pooling_mode_cls_token\": true",
            "one of mean, cls and max, found 2 of them",
        ),
        (
            "bert",
            "1_Pooling/config.json",
            "sqrt_len_tokens\": false",
            "sqrt_len_tokens\": true",
            "pooling_mode_mean_sqrt_len_tokens is supported as false only",
        ),
        (
            "siglip",
            "config.json",
            "\"vision_use_head\": true",
            "\"vision_use_head\": false",
            "vision_use_head is supported as true only",
        ),
        (
            "siglip",
            "tokenizer_config.json",
            "\"model_max_length\": 16",
            "\"model_max_length\": 1",
            "expected a longest input of more than the 1 special tokens",
        ),
        coca("\"embed_cls\": true", "\"embed_cls\": false", "model_cfg.text_cfg.embed_cls to be true"),
        coca("\"attentional_pool\": true", "\"attentional_pool\": \"cascade\"", "attentional_pool to be true or false"),
        coca(
            "\"head_width\": 12",
            "\"head_width\": 12, \"ls_init_value\": 1e-5",
            "model_cfg.vision_cfg.ls_init_value is not supported",
        ),
        coca("\"head_width\": 12", "\"head_width\": 25", "head_width to be at most the width 24, found 25"),
        coca("\"attn_pooler_heads\": 4", "\"attn_pooler_heads\": 3", "an embed_dim that attn_pooler_heads divides"),
        coca(
            "\"embed_dim\": 16",
            "\"embed_dim\": 20",
            "text.text_projection to have the shape [16, 20], found [16, 16]",
        ),
        coca("\"mean\": [", "\"resize_mode\": \"longest\", \"mean\": [", "resize_mode to be shortest or squash"),
        coca("\"multimodal_cfg\"", "\"other_cfg\"", "open_clip_config.json without multimodal_cfg"),
        coca("\"layers\": 2", "\"layers\": 1", "found also visual.transformer.resblocks.1."),
        fromage(
            "\"shared_emb_dim\": 8",
            "\"shared_emb_dim\": null",
            "shared_emb_dim to be a whole number of at least 1",
        ),
        fromage("\"shared_emb_dim\": 8", "\"shared_emb_dim\": 9", "to have the shape [9, 24], found [8, 24]"),
        fromage("\"freeze_lm\": true", "\"freeze_lm\": false", "freeze_lm is supported as true only"),
        fromage("-1", "-4", "text_emb_layers to be a list of layers, 0 to 2 or -1 for the last, found [-4]"),
        fromage("-1", "-1, 0", "expected a tensor model.text_hidden_fcs.1.0.weight"),
        fromage("\"retrieval_token_idx\": 291", "\"retrieval_token_idx\": 5", "expected [RET] or nothing at 5"),
        fromage("layernorm\": false", "layernorm\": true", "use_text_embed_layernorm is supported as false only"),
        fromage(
            "\"n_visual_tokens\"",
            "\"ret_layers\": 2, \"n_visual_tokens\"",
            "the option ret_layers is not supported",
        ),
        ("fromage", "opt/config.json", "\"opt\"", "\"gpt2\"", "expected model_type to be opt, found gpt2"),
        (
            "fromage",
            "visual/config.json",
            "\"clip_vision_model\"",
            "\"vit\"",
            "to be clip or clip_vision_model, found vit",
        ),
    ];
    for (family, file, from, to, message) in cases {
        let folder = changed(family, file, |text| {
            assert!(text.contains(from), "{file} of {family} has no {from}");
            text.replacen(from, to, 1)
        });
        let error = resolve_embedder(folder.path().to_str().unwrap()).err().expect(message).to_string();
        assert!(error.contains(message), "expected {message:?} in {error:?}");
    }
}

#[test]
fn a_fromage_reads_a_text_as_its_reference_does_and_names_the_models_that_it_lacks() {
    let model = model("fromage");
    let texts = ["a cat", "a cat[RET]", "a cat \t[RET]", "a cat\u{1f} ", "a [RET] cat", "A cat"];
    let vectors: Vec<Vec<f32>> = model.embed_texts(&texts).into_iter().map(Result::unwrap).collect();
    assert!(vectors[1..4].iter().all(|vector| *vector == vectors[0]));
    assert!(vectors[4..].iter().all(|vector| *vector != vectors[0]));
    // Beyond the longest text nothing is read.
    let [long, longer] = [200, 300].map(|count| "a cat ".repeat(count));
    assert_eq!(model.embed_texts(&[&long])[0], model.embed_texts(&[&longer])[0]);

    let folder = changed("fromage", "model_args.json", |text| text.replace("facebook/opt-6.7b", "no/such-opt"));
    fs::rename(folder.path().join("opt"), folder.path().join("other")).unwrap();
    let error = describe_embedder(folder.path().to_str().unwrap()).unwrap_err().to_string();
    for part in ["model_args.json: expected opt_version to be", "in a folder `opt`", "models pull hf://no/such-opt"] {
        assert!(error.contains(part), "expected {part:?} in {error}");
    }
}

#[test]
fn a_difference_is_found_and_placed() {
    let folder = changed("bert", "config.json", |text| text.replace("1e-12", "1e-5"));
    let comparisons = verify(folder.path(), Device::Cpu).unwrap();
    let failed: Vec<&str> = comparisons.iter().filter(|c| !c.passed()).map(|c| c.name.as_str()).collect();
    assert!(failed.contains(&"out.hidden.3"), "{failed:?}");
    let hidden = comparisons.iter().find(|c| c.name == "out.hidden.3").unwrap();
    let Outcome::Compared { difference, place, tolerance } = &hidden.outcome else { panic!("{hidden:?}") };
    assert!(*difference > *tolerance && *difference < 0.1 && place.len() == 3, "{hidden:?}");
}
