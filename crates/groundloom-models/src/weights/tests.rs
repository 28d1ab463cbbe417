#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, fs, path::Path};

use super::*;

fn save(path: &Path, tensors: &[(&str, Tensor)]) {
    let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn floats(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn folder(fill: impl FnOnce(&Path)) -> (tempfile::TempDir, ModelFolder) {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let folder = ModelFolder::OnDisk(dir.path().to_owned());
    (dir, folder)
}

#[test]
fn tensors_come_out_as_floats_whatever_they_are_stored_as() {
    let (_dir, folder) = folder(|dir| {
        let x = floats(&[1.0, -2.5, 0.5, 4.0]).reshape((2, 2)).unwrap();
        save(
            &dir.join(SINGLE),
            &[
                ("a.f32", x.clone()),
                ("a.f16", x.to_dtype(DType::F16).unwrap()),
                ("a.bf16", x.to_dtype(DType::BF16).unwrap()),
                ("a.f64", x.to_dtype(DType::F64).unwrap()),
                ("b.position_ids", Tensor::new(&[0_i64, 1], &Device::Cpu).unwrap()),
                ("b.spare", floats(&[f32::NAN])),
            ],
        );
    });
    let weights = Weights::open(&folder).unwrap();
    assert_eq!(weights.sha256().len(), 64);
    let place = weights.at("a");
    for name in ["f32", "f16", "bf16", "f64"] {
        assert_eq!(place.values(name, &[2, 2]).unwrap(), [1.0, -2.5, 0.5, 4.0]);
    }
    let message = |e: ModelError| e.to_string();
    let error = message(place.tensor("f32", &[4]).unwrap_err());
    assert!(error.contains("expected the tensor a.f32 to have the shape [4], found [2, 2]"), "{error}");
    let error = message(place.tensor("g", &[4]).unwrap_err());
    assert!(error.contains("expected a tensor a.g of shape [4], found none of that name"), "{error}");
    let error = message(weights.finish(&[]).unwrap_err());
    assert!(error.contains("found also b.spare"), "{error}");
    weights.finish(&["b."]).unwrap();
    let error = message(weights.values("b.spare", &[1]).unwrap_err());
    assert!(error.contains("expected finite values in the tensor b.spare"), "{error}");
    assert!(weights.at_first(&["model.a", "a"]).has("f32") && !weights.at("c").has("f32"));
    assert!(weights.at_first(&["c", ""]).at("a").has("f32"));
}

#[test]
fn shards_are_one_model_and_a_missing_one_is_named() {
    let index = r#"{"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    let (dir, folder) = folder(|dir| {
        save(&dir.join("m-1.safetensors"), &[("a", floats(&[1.0]))]);
        save(&dir.join("m-2.safetensors"), &[("b", floats(&[2.0]))]);
        fs::write(dir.join(INDEX), index).unwrap();
    });
    let weights = Weights::open(&folder).unwrap();
    assert_eq!([weights.values("a", &[1]).unwrap(), weights.values("b", &[1]).unwrap()], [[1.0], [2.0]]);
    weights.finish(&[]).unwrap();
    fs::remove_file(dir.path().join("m-2.safetensors")).unwrap();
    let error = Weights::open(&folder).err().unwrap().to_string();
    assert!(error.contains("m-2.safetensors"), "{error}");
    fs::write(dir.path().join(INDEX), index.replace("m-2", "../m-2")).unwrap();
    let error = Weights::open(&folder).err().unwrap().to_string();
    assert!(error.contains("expected `weight_map` to name files of the folder"), "{error}");
}

#[test]
fn bytes_times_their_block_scale() {
    let header = |scales: &str| {
        format!(
            r#"{{"w":{{"dtype":"I8","shape":[2,4],"data_offsets":[0,8]}},"w.scales":{{"dtype":"F32","shape":{scales},"data_offsets":[8,24]}}}}"#
        )
    };
    let file = |header: &str| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend([1, 2, 3, 4, 0xff, 0x80, 0x7f, 0].map(|byte: u8| byte));
        file.extend([0.5_f32, 2.0, 1.0, -1.0].iter().flat_map(|scale| scale.to_le_bytes()));
        file
    };
    let weights = Weights::read("m", file(&header("[2,2]")).into()).unwrap();
    assert_eq!(weights.values("w", &[2, 4]).unwrap(), [0.5, 1.0, 6.0, 8.0, -1.0, -128.0, -127.0, 0.0]);
    weights.finish(&[]).unwrap();
}

#[test]
fn damaged_files_are_refused() {
    let (dir, folder) = folder(|dir| save(&dir.join(SINGLE), &[("a", floats(&[1.0, 2.0]))]));
    let path = dir.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(matches!(Weights::open(&folder), Err(ModelError::BadWeights { .. } | ModelError::Unreadable { .. })));
    }
}
