//! ImageBind: what each modality's vectors depend on, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{fs, path::Path};

use groundloom_models::{Modality, ModelError, Plane, SAMPLE_RATE, describe_embedder, resolve_embedder};
use image::{Luma, RgbImage};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/fixtures");

fn photo(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]))
}

fn plane(width: u32, height: u32) -> Plane {
    Plane::from_fn(width, height, |x, y| Luma([(x * 7 + y * 5) as f32 % 1.0 + (x % 9) as f32 / 10.0]))
}

fn tone(samples: usize) -> Vec<f32> {
    (0..samples).map(|i| (i as f32 * 0.11).sin() * (i as f32 * 0.0007).cos() * 0.5).collect()
}

/// All answers together are those of each input alone, and of length 1.
fn each_alone<T: Copy>(inputs: &[T], embed: impl Fn(&[T]) -> Vec<Result<Vec<f32>, ModelError>>) -> Vec<Vec<f32>> {
    let together: Vec<Vec<f32>> = embed(inputs).into_iter().map(Result::unwrap).collect();
    for (input, vector) in inputs.iter().zip(&together) {
        assert_eq!(embed(&[*input]).remove(0).unwrap(), *vector);
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5 && vector.len() == 16);
    }
    assert!(together.windows(2).all(|pair| pair[0] != pair[1]));
    together
}

#[test]
fn a_vector_depends_on_its_input_alone() {
    let model = resolve_embedder(&format!("{FIXTURES}/imagebind")).unwrap();
    let long = "two dogs ".repeat(100);
    each_alone(&["", "a cat", long.as_str()], |texts| model.embed_texts(texts));
    let (small, wide, high) = (photo(1, 1), photo(90, 41), photo(20, 60));
    let images = each_alone(&[&small, &wide, &high], |images| model.embed_images(images));
    // Less than a clip, a clip, and more than three.
    let (short, clip, many) = (tone(400), tone(32_000), tone(100_000));
    let sounds = each_alone(&[short.as_slice(), &clip, &many], |sounds| model.embed_audio(sounds));
    assert_ne!(sounds[0], images[0]);
    let (still, film) = ([wide.clone(), wide.clone()], [wide.clone(), small.clone(), high.clone(), high]);
    each_alone(&[still.as_slice(), &film], |films| model.embed_videos(films));
    let (square, tall) = (plane(30, 30), plane(12, 40));
    let depth = each_alone(&[&square, &tall], |maps| model.embed_depth(maps));
    let thermal = each_alone(&[&square, &tall], |images| model.embed_thermal(images));
    assert_ne!(depth, thermal);
    let recording = |phase: f32| -> Vec<[f32; 6]> {
        (0..2000).map(|i| [0.0, 1.0, 2.0, 3.0, 4.0, 5.0].map(|j| (i as f32 * 0.01 * (j + phase)).sin())).collect()
    };
    let (slow, fast) = (recording(0.5), recording(3.5));
    each_alone(&[slow.as_slice(), &fast], |recordings| model.embed_motion(recordings));
}

#[test]
fn an_input_fails_by_itself() {
    let model = resolve_embedder(&format!("{FIXTURES}/imagebind")).unwrap();
    let (good, mut bad) = (tone(500), tone(500));
    bad[7] = f32::NAN;
    let answers = model.embed_audio(&[&good, &good[..399], &bad]);
    assert!(answers[0].is_ok());
    assert_eq!(answers[1], Err(ModelError::ShortWaveform { samples: 399, least: 400 }));
    assert!(matches!(answers[2], Err(ModelError::BadSample { place: 7, .. })));
    let (frame, none) = (photo(30, 30), RgbImage::new(0, 3));
    let (half_empty, whole) = ([frame.clone(), none], [frame.clone(), frame]);
    let films = model.embed_videos(&[&[], &whole[..1], &half_empty, &whole]);
    assert!(matches!(films[0], Err(ModelError::WrongCount { found: 0, .. })));
    let message = films[1].as_ref().unwrap_err().to_string();
    assert_eq!(message, "expected frames in twos: the first and the last of each two seconds, found 1");
    assert!(matches!(films[2], Err(ModelError::EmptyImage { .. })) && films[3].is_ok());
    let planes = [Plane::new(4, 0), plane(1, 1_000_000), Plane::from_pixel(3, 3, Luma([f32::INFINITY]))];
    for answers in [model.embed_depth(&planes.each_ref()), model.embed_thermal(&planes.each_ref())] {
        assert!(matches!(answers[0], Err(ModelError::EmptyImage { .. })));
        assert!(matches!(answers[1], Err(ModelError::ImageTooLong { .. })));
        assert!(matches!(answers[2], Err(ModelError::BadSample { .. })));
    }
    assert!(matches!(model.embed_motion(&[&[[0.0; 6]; 3]])[0], Err(ModelError::WrongCount { found: 3, .. })));
}

#[test]
fn a_model_says_what_it_takes_and_refuses_the_rest() {
    use Modality::{Audio, Depth, Image, Motion, Text, Thermal, Video};
    let info = describe_embedder(&format!("{FIXTURES}/imagebind")).unwrap();
    assert_eq!(info.modalities().collect::<Vec<_>>(), [Text, Image, Audio, Video, Depth, Thermal, Motion]);
    assert_eq!((info.dims, info.normalised, info.sample_rate), (16, true, Some(SAMPLE_RATE)));
    let clip = resolve_embedder(&format!("{FIXTURES}/clip")).unwrap();
    assert_eq!(clip.info().modalities().collect::<Vec<_>>(), [Text, Image]);
    let refusals = [
        (Audio, clip.embed_audio(&[&[0.0]])),
        (Video, clip.embed_videos(&[&[]])),
        (Depth, clip.embed_depth(&[&Plane::new(1, 1)])),
        (Thermal, clip.embed_thermal(&[&Plane::new(1, 1)])),
        (Motion, clip.embed_motion(&[&[]])),
    ];
    for (modality, answers) in refusals {
        let what = modality.plural();
        assert_eq!(answers, [Err(ModelError::NoModality { model: clip.info().name.clone(), what })]);
    }
}

#[test]
fn options_that_would_change_the_answer_are_refused_by_name() {
    for (from, to, message) in [
        ("\"out_embed_dim\": 16", "\"out_embed_dim\": 16, \"audio_stride\": 8", "audio_stride is supported as 10 only"),
        ("\"out_embed_dim\": 16", "\"out_embed_dim\": 16, \"rope\": true", "the option rope is not supported"),
        ("\"out_embed_dim\": 16", "\"out_embed_dim\": 20", "to have the shape [20, 12], found [16, 12]"),
        ("\"depth_num_heads\": 2", "\"depth_num_heads\": 5", "expected a width that the heads divide"),
        ("\"imu_num_blocks\": 1", "\"imu_num_blocks\": 2", "modality_trunks.imu.blocks.1.attn.in_proj_weight"),
        ("\"text_embed_dim\": 12", "\"text_embed_dim\": 0", "text_embed_dim to be a whole number of at least 1"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for file in fs::read_dir(Path::new(FIXTURES).join("imagebind")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
        assert!(config.contains(from), "{config}");
        fs::write(folder.path().join("config.json"), config.replacen(from, to, 1)).unwrap();
        let error = resolve_embedder(folder.path().to_str().unwrap()).err().expect(message).to_string();
        assert!(error.contains(message), "expected {message:?} in {error:?}");
    }
}
