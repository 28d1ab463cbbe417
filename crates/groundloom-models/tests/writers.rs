//! Models that write and judge texts: what an answer depends on, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use groundloom_models::{
    CaptionOptions, EarlyStopping, ModelError, Sampling, Writing, describe_model, resolve_captioner, resolve_generator,
    resolve_grounded_captioner, resolve_matcher, resolve_scorer,
};
use image::RgbImage;

fn fixture(family: &str) -> String {
    format!("{}/tests/data/fixtures/{family}", env!("CARGO_MANIFEST_DIR"))
}

fn photo(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]))
}

fn drawn(max_new_tokens: usize) -> Writing {
    Writing {
        max_new_tokens,
        min_new_tokens: 3,
        repetition_penalty: Some(1.1),
        sampling: Sampling::TopP { p: 0.9, temperature: 1.0 },
        ..Writing::default()
    }
}

fn searched(max_new_tokens: usize) -> Writing {
    Writing { max_new_tokens, beams: Some(3), length_penalty: Some(0.5), ..Writing::default() }
}

#[test]
fn captions_depend_on_the_image_and_its_seed_alone() {
    let images = [photo(40, 30), photo(1, 1), photo(64, 9), RgbImage::new(0, 3)];
    for family in ["blip_caption", "blip2", "blip2_t5", "llava", "coca", "kosmos2"] {
        let captioner = resolve_captioner(&fixture(family)).unwrap();
        assert_eq!(captioner.info(), &describe_model(&fixture(family)).unwrap());
        for writing in [Writing { max_new_tokens: 6, ..Writing::default() }, drawn(6), searched(6)] {
            for prompt in ["", "a picture of"] {
                let options = CaptionOptions { prompt: prompt.to_owned(), writing: writing.clone() };
                let seeded: Vec<(&RgbImage, u64)> = images.iter().zip(5..).collect();
                let together = captioner.caption(&seeded, &options);
                for (one, caption) in seeded.iter().zip(&together) {
                    assert_eq!(&captioner.caption(&[*one], &options)[0], caption);
                }
                for caption in &together[..3] {
                    let caption = caption.as_ref().unwrap();
                    assert!((1..=6).contains(&caption.tokens) && caption.log_probability < 0.0, "{caption:?}");
                    assert!(!caption.text.contains("a picture of"), "{caption:?}");
                }
                assert!(matches!(together[3], Err(ModelError::EmptyImage { .. })));
                let again: Vec<(&RgbImage, u64)> = (0..12).map(|seed| (&images[0], seed)).collect();
                let again = captioner.caption(&again, &options);
                let differ = again.iter().any(|caption| caption != &again[0]);
                assert_eq!(differ, writing.sampling != Sampling::Greedy, "{again:?}");
            }
        }
        let long = CaptionOptions { prompt: "a ".repeat(500), ..CaptionOptions::default() };
        let cut = captioner.caption(&[(&images[0], 0)], &long).remove(0);
        // T5's positions are distances: it takes a text of any length.
        assert_eq!(matches!(cut, Err(ModelError::NoRoom { .. })), family != "blip2_t5", "{cut:?}");
        let wrong = Writing { sampling: Sampling::TopP { p: 0.0, temperature: 1.0 }, ..Writing::default() };
        let wrong = captioner.caption(&[(&images[0], 0)], &CaptionOptions { writing: wrong, ..long });
        assert!(wrong[0].is_err());
    }
}

#[test]
fn llava_takes_one_image_wherever_the_prompt_has_it() {
    let captioner = resolve_captioner(&fixture("llava")).unwrap();
    let image = photo(40, 30);
    let ask = |prompt: &str| {
        let writing = Writing { max_new_tokens: 5, ..Writing::default() };
        captioner.caption(&[(&image, 0)], &CaptionOptions { prompt: prompt.to_owned(), writing }).remove(0)
    };
    let asked = ask("what is in the image?").unwrap();
    assert_eq!(ask("USER: <image>\nwhat is in the image? ASSISTANT:").unwrap(), asked);
    assert_ne!(ask("what is in the image? <image>").unwrap().log_probability, asked.log_probability);
    assert_ne!(ask("").unwrap().log_probability, asked.log_probability);
    let error = ask("<image> and <image>").unwrap_err().to_string();
    assert!(error.contains("expected one <image> in the prompt, found 2"), "{error}");
}

#[test]
fn matches_are_probabilities_of_each_pair_alone() {
    let matcher = resolve_matcher(&fixture("blip_itm")).unwrap();
    let images = [photo(40, 30), photo(9, 70), RgbImage::new(3, 0)];
    let long = "dogs on a couch ".repeat(60);
    let pairs = [
        (&images[0], "a cat"),
        (&images[1], "a cat"),
        (&images[0], "two dogs sleeping on a pink couch"),
        (&images[2], "a cat"),
        (&images[0], ""),
        (&images[0], &*long),
    ];
    for answers in [matcher.matches(&pairs), matcher.cosines(&pairs)] {
        for (i, answer) in answers.iter().enumerate() {
            match i {
                3 => assert!(matches!(answer, Err(ModelError::EmptyImage { .. }))),
                _ => assert!((-1.0..=1.0).contains(answer.as_ref().unwrap()), "{answer:?}"),
            }
        }
        assert!(answers[0] != answers[1] && answers[0] != answers[2]);
    }
    let matches = matcher.matches(&pairs);
    for (pair, answer) in pairs.iter().zip(&matches) {
        assert_eq!(&matcher.matches(&[*pair])[0], answer);
        assert!(answer.as_ref().map_or(true, |p| (0.0..=1.0).contains(p)));
    }
}

#[test]
fn a_texts_probability_is_the_product_of_its_tokens() {
    for family in ["gpt2", "opt", "opt_350m_layout"] {
        let scorer = resolve_scorer(&fixture(family)).unwrap();
        let texts = ["a man riding a brown horse", "a man riding", "", "état — 日本語"];
        let scores = scorer.score(&texts);
        let [whole, part] = [0, 1].map(|i| *scores[i].as_ref().unwrap());
        assert!(whole.tokens > part.tokens && whole.log_probability < part.log_probability, "{whole:?} {part:?}");
        let expected = (-whole.log_probability / whole.tokens as f64).exp();
        assert!((whole.perplexity - expected).abs() < 1e-9 * expected);
        assert_eq!(scores[2], Err(ModelError::EmptyText));
        // A greedy continuation is scored as it was written.
        let generator = resolve_generator(&fixture(family)).unwrap();
        let writing = Writing { max_new_tokens: 1, ..Writing::default() };
        let next = generator.generate(&[("a man riding", 0)], &writing).remove(0).unwrap();
        assert!(next.tokens == 1 && next.log_probability < 0.0);
        // As many tokens as the model takes are judged.
        let long = scorer.score(&[&"a man riding a brown horse ".repeat(50)]).remove(0).unwrap();
        assert_eq!(long.tokens, 48);
        assert_eq!(scorer.score(&texts), scores);
    }
}

#[test]
fn t5_answers_each_text_alone() {
    for family in ["t5", "t5_gated"] {
        let generator = resolve_generator(&fixture(family)).unwrap();
        let texts = [("translate english to german: two cats", 1), ("a photo of a dog", 2), ("", 3)];
        for writing in [Writing { max_new_tokens: 8, ..Writing::default() }, drawn(8), searched(8)] {
            let together = generator.generate(&texts, &writing);
            for (text, answer) in texts.iter().zip(&together) {
                assert!(answer.as_ref().unwrap().tokens <= 8);
                assert_eq!(&generator.generate(&[*text], &writing)[0], answer);
            }
        }
    }
}

/// A copy of a fixture with a `generation_config.json`.
fn generating(family: &str, options: &str) -> tempfile::TempDir {
    let copy = changed(family, "config.json", "{", "{");
    std::fs::write(copy.path().join("generation_config.json"), options).unwrap();
    copy
}

#[test]
fn what_is_left_open_is_as_the_folder_says() {
    let options = r#"{"num_beams": 4, "length_penalty": -0.5, "early_stopping": true, "no_repeat_ngram_size": 1,
        "repetition_penalty": 1.2, "do_sample": false}"#;
    let open = Writing { max_new_tokens: 8, ..Writing::default() };
    let stated = Writing {
        beams: Some(4),
        length_penalty: Some(-0.5),
        early_stopping: Some(EarlyStopping::True),
        no_repeat_ngram_size: Some(1),
        repetition_penalty: Some(1.2),
        ..open.clone()
    };
    let plain =
        Writing { beams: Some(1), no_repeat_ngram_size: Some(0), repetition_penalty: Some(1.0), ..open.clone() };
    let image = photo(40, 30);
    for family in ["blip_caption", "blip2", "blip2_t5", "llava", "kosmos2", "gpt2", "opt", "t5"] {
        let folder = generating(family, options);
        let folder = folder.path().to_str().unwrap();
        let run = |name: &str, writing: &Writing| match resolve_generator(name) {
            Ok(generator) => generator.generate(&[("a photo of two dogs", 0)], writing).remove(0).unwrap(),
            Err(_) => {
                let options = CaptionOptions { writing: writing.clone(), ..CaptionOptions::default() };
                resolve_captioner(name).unwrap().caption(&[(&image, 0)], &options).remove(0).unwrap()
            }
        };
        let own = fixture(family);
        assert_eq!(run(folder, &open), run(&own, &stated), "{family}");
        assert_eq!(run(folder, &plain), run(&own, &open), "{family}");
        assert_ne!(run(folder, &open), run(folder, &plain), "{family}");
        // Draws take no beams from the folder.
        let drawn = Writing { no_repeat_ngram_size: Some(0), ..drawn(8) };
        assert_eq!(run(folder, &drawn), run(&own, &drawn), "{family}");
        assert!(describe_model(folder).unwrap().generation_sha256 != describe_model(&own).unwrap().generation_sha256);
    }
    let folder = generating("gpt2", r#"{"num_beams": 4, "num_beam_groups": 2}"#);
    let error = resolve_generator(folder.path().to_str().unwrap()).err().unwrap().to_string();
    assert!(error.contains("generation_config.json: expected num_beam_groups to be 1, found 2"), "{error}");
}

#[test]
fn a_model_that_cannot_do_it_says_what_can() {
    let cases = [
        (resolve_captioner(&fixture("blip_itm")).err(), "(blip) cannot caption images; expected BLIP for captions"),
        (resolve_matcher(&fixture("blip_caption")).err(), "(blip) cannot match images and texts; expected BLIP for"),
        (resolve_scorer(&fixture("t5")).err(), "(t5) cannot score texts; expected GPT-2 or OPT"),
        (resolve_generator(&fixture("clip")).err(), "(clip) cannot write texts; expected T5, GPT-2 or OPT"),
    ];
    for (error, message) in cases {
        let error = error.unwrap().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn grounded_captions_say_where_their_phrases_are() {
    let captioner = resolve_grounded_captioner(&fixture("kosmos2")).unwrap();
    let place = "<object><patch_index_0003><patch_index_0009></object>";
    let options = CaptionOptions {
        prompt: format!("<phrase> a cat</phrase>{place} and"),
        writing: Writing { max_new_tokens: 6, ..Writing::default() },
    };
    let (first, second) = (photo(40, 30), photo(64, 9));
    let seeded = [(&first, 1), (&second, 2)];
    let found = captioner.ground(&seeded, &options);
    for (one, found) in seeded.iter().zip(&found) {
        assert_eq!(&captioner.ground(&[*one], &options)[0], found);
        let found = found.as_ref().unwrap();
        assert!(found.caption.text.starts_with("a cat and"), "{found:?}");
        assert!(!found.caption.text.contains('<'), "{found:?}");
        let phrase = &found.phrases[0];
        assert_eq!((phrase.phrase.as_str(), phrase.span.start, phrase.span.end), ("a cat", 0, 5));
        // The cells 3 and 9 of a line of 32.
        assert_eq!(phrase.boxes[0].xyxy(), [3.0, 0.0, 10.0, 1.0].map(|x| x / 32.0));
        // What is written by itself has the same tokens' words, without the prompt's.
        let prompt = format!("<grounding>{}", options.prompt);
        let alone = captioner.caption(&[*one], &CaptionOptions { prompt, ..options.clone() }).remove(0).unwrap();
        assert_eq!((alone.tokens, alone.log_probability), (found.caption.tokens, found.caption.log_probability));
        assert!(found.caption.text.ends_with(&alone.text) && !alone.text.contains("cat and"), "{alone:?}");
    }
    let other = resolve_grounded_captioner(&fixture("blip2")).err().unwrap();
    assert!(matches!(other, ModelError::Unable { .. }), "{other}");
}

/// A copy of a fixture with `from` changed `to` in one of its files, wherever it stands.
fn changed(family: &str, file: &str, from: &str, to: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(family)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} of {family} has no {from}");
    std::fs::write(path, text.replace(from, to)).unwrap();
    copy
}

#[test]
fn options_that_would_change_a_caption_are_refused_by_name() {
    let layers = "\"layers\": 2";
    for (family, from, to, message) in [
        ("kosmos2", layers, "\"layers\": 1", "found also text_model.model.layers.1."),
        ("kosmos2", layers, "\"layers\": 2, \"xpos\": true", "the option text_config.xpos is not supported"),
        ("kosmos2", "\"scale_embedding\": true", "\"scale_embedding\": 3", "text_config.scale_embedding to be true or"),
        ("kosmos2", "\"add_cross_attention\": false", "\"add_cross_attention\": true", "is supported as false only"),
        ("kosmos2", "\"latent_query_num\": 4", "\"latent_query_num\": 5", "to have the shape [5, 32], found [4, 32]"),
        (
            "kosmos2",
            "\"embed_dim\": 32",
            "\"embed_dim\": 3",
            "text_config.embed_dim to be an even number of at least 4",
        ),
        ("blip2_t5", "\"model_type\": \"t5\"", "\"model_type\": \"mt5\"", "text_config.model_type to be opt or t5"),
        ("blip2_t5", "language_model\": false", "language_model\": true", "is supported as false only, found true"),
        ("blip2_t5", "\"gated-gelu\"", "\"gated-tanh\"", "text_config.feed_forward_proj to be relu, gated-gelu or"),
        (
            "blip2_t5",
            "\"num_decoder_layers\": 2",
            "\"num_decoder_layers\": 1",
            "found also language_model.decoder.block",
        ),
    ] {
        let folder = changed(family, "config.json", from, to);
        let error = resolve_captioner(folder.path().to_str().unwrap()).err().expect(message).to_string();
        assert!(error.contains(message), "expected {message:?} in {error:?}");
    }
    let folder = changed("kosmos2", "tokenizer.json", "<image>", "<picture>");
    let captioner = resolve_captioner(folder.path().to_str().unwrap()).unwrap();
    let error = captioner.caption(&[(&photo(9, 9), 0)], &CaptionOptions::default()).remove(0).unwrap_err().to_string();
    assert!(error.contains("expected a tokenizer with the tokens <image> and </image>"), "{error}");
}
