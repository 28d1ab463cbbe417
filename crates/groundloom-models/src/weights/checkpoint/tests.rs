#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// What torch has saved, of the fixture of FROMAGe.
const SAVED: &[u8] = include_bytes!("../../../tests/data/fixtures/fromage/pretrained_ckpt.pth.tar");

/// A zip of these members, `method` being how they say they are compressed.
fn zip(members: &[(&str, &[u8])], method: u8) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let sizes = [(bytes.len() as u32).to_le_bytes(); 2].concat();
        let names = [(name.len() as u16).to_le_bytes(), 0_u16.to_le_bytes()].concat();
        let head = [&[20, 0, 0, 0, method, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &sizes, &names].concat();
        let at = (file.len() as u32).to_le_bytes();
        directory.extend([b"PK\x01\x02\x14\x00", &head[..], &[0; 10], &at, name.as_bytes()].concat());
        file.extend([b"PK\x03\x04", &head[..], name.as_bytes(), bytes].concat());
    }
    let count = (members.len() as u16).to_le_bytes();
    let (bytes, at) = ((directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes());
    let end = [b"PK\x05\x06\0\0\0\0", &count[..], &count, &bytes, &at, &[0, 0]].concat();
    [file, directory, end].concat()
}

/// A pickle of `{"state_dict": {"a": VALUE}}`.
fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}", &text("state_dict")[..], b"}", &text("a"), value, b"ss."].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// The instructions that make a tensor of `data/0`, each part being a pickled value.
fn tensor(storage: &str, offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let class = format!("ctorch\n{storage}\n");
    let id = [b"(", &text("storage")[..], class.as_bytes(), &text("0"), &text("cpu"), b"K\x06tQ"].concat();
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", &id[..], offset, shape, strides, b"\x89ccollections\nOrderedDict\n)RtR"]
        .concat()
}

/// The tensor `a` that `value` makes of the bytes 0 to 23, and its bytes.
fn read(value: &[u8]) -> Result<(TensorInfo, Vec<u8>), String> {
    let bytes: Vec<u8> = (0..24).collect();
    let file = zip(&[("x/data.pkl", &pickle(value)), ("x/data/0", &bytes)], 0);
    let info = tensors(&file, "state_dict")?.remove("a").unwrap();
    let (start, end) = info.data_offsets;
    Ok((info, file[start..end].to_vec()))
}

#[test]
fn what_torch_saved_has_its_tensors_where_they_lie() {
    let found = tensors(SAVED, "state_dict").unwrap();
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 8, "{names:?}");
    let scale = &found["model.logit_scale"];
    assert!(scale.shape.is_empty() && scale.dtype == Dtype::F32);
    let bytes = &SAVED[scale.data_offsets.0..scale.data_offsets.1];
    assert_eq!(f32::from_le_bytes(bytes.try_into().unwrap()), (1.0_f64 / 0.07).ln() as f32);
    assert_eq!(found["model.visual_fc.weight"].shape, [8, 24]);
}

#[test]
fn parts_of_storages_and_parameters_are_tensors() {
    let part = tensor("FloatStorage", b"K\x02", b"K\x02K\x02\x86", b"K\x02K\x01\x86");
    let (info, bytes) = read(&part).unwrap();
    assert_eq!((info.dtype, info.shape, bytes), (Dtype::F32, vec![2, 2], (8..24).collect()));
    let (info, bytes) = read(&tensor("BFloat16Storage", b"K\x00", b"K\x0C\x85", b"K\x01\x85")).unwrap();
    assert_eq!((info.dtype, info.shape, bytes), (Dtype::BF16, vec![12], (0..24).collect()));
    let parameter = [b"ctorch._utils\n_rebuild_parameter\n(", &part[..], b"\x88N", b"tR"].concat();
    assert_eq!(read(&parameter).unwrap().0.shape, [2, 2]);
    // An axis of one value has no step, and torch gives it any.
    assert!(read(&tensor("FloatStorage", b"K\x00", b"K\x01K\x06\x86", b"K\x01K\x01\x86")).is_ok());
}

#[test]
fn anything_but_tensors_is_refused_by_name() {
    let square = b"K\x02K\x02\x86";
    let rows = b"K\x02K\x01\x86";
    let cases: [(Vec<u8>, &str); 12] = [
        (b"K\x07".to_vec(), "a: expected a tensor, found Int(7)"),
        (
            b"cos\nsystem\n(".iter().copied().chain(text("ls")).chain(*b"tR").collect(),
            "expected a tensor, found Class { mod",
        ),
        (tensor("ShortStorage", b"K\x00", square, rows), "found a ShortStorage"),
        (tensor("FloatStorage", b"K\x03", square, rows), "expected the values of [2, 2], found 24 bytes"),
        (tensor("FloatStorage", b"J\xff\xff\xff\xff", square, rows), "expected the values of [2, 2], found 24 bytes"),
        (tensor("FloatStorage", b"K\x00", square, b"K\x01K\x02\x86"), "save it contiguous()"),
        (tensor("FloatStorage", b"K\x00", b"N", rows), "expected sides of a tensor, found None"),
        (
            tensor("FloatStorage", b"K\x00", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"J\xff\xff\xff\x7fK\x01\x86"),
            "expected the",
        ),
        (b"\x8a\x09\x01\x01\x01\x01\x01\x01\x01\x01\x01".to_vec(), "at most eight bytes"),
        (b"\x93".to_vec(), "unknown op-code 147"),
        ([b"N".to_vec(), b"\x85".repeat(1000)].concat(), "far deeper values"),
        // Each copy holds the one before twice.
        (
            [b"Nq\x00".to_vec(), b"h\x00h\x00\x86q\x00".repeat(20), b"(h\x00h\x00h\x00h\x00h\x00h\x00t".to_vec()]
                .concat(),
            "far larger values",
        ),
    ];
    for (value, message) in cases {
        let error = read(&value).unwrap_err();
        assert!(error.contains(message), "expected {message:?} in {error:?}");
    }
}

#[test]
fn anything_but_a_zip_of_torch_is_refused() {
    let whole = pickle(&tensor("FloatStorage", b"K\x00", b"K\x06\x85", b"K\x01\x85"));
    let file = |name: &str, bytes: &[u8], method: u8| zip(&[(name, bytes), ("x/data/0", &[0; 24])], method);
    let big = zip(&[("x/data.pkl", &whole), ("x/data/0", &[0; 24]), ("x/byteorder", b"big")], 0);
    let empty = b"\x80\x02}.".to_vec();
    let cases: [(Vec<u8>, &str); 8] = [
        (whole.clone(), "expected a zip as torch.save has written since version 1.6"),
        (Vec::new(), "expected a zip"),
        (file("x/other.pkl", &whole, 0), "without data.pkl"),
        (file("x/data.pkl", &whole, 8), "found it compressed"),
        (zip(&[("x/data.pkl", &whole)], 0), "a: expected a member data/0 in the zip, found none"),
        (big, "expected values of little endian, found \"big\""),
        (file("x/data.pkl", &empty, 0), "under \"state_dict\", found none"),
        (file("x/data.pkl", b"\x80\x02N.", 0), "expected a dictionary with \"state_dict\""),
    ];
    for (file, message) in cases {
        let error = tensors(&file, "state_dict").unwrap_err();
        assert!(error.contains(message), "expected {message:?} in {error:?}");
    }
    for end in 0..SAVED.len() {
        assert!(tensors(&SAVED[..end], "state_dict").is_err());
    }
}

proptest! {
    #[test]
    fn damage_is_an_error_or_changes_values_alone(at in 0..SAVED.len(), byte: u8, other in 0..SAVED.len()) {
        let mut file = SAVED.to_vec();
        file[at] = byte;
        file[other] ^= byte;
        if let Ok(found) = tensors(&file, "state_dict") {
            for info in found.values() {
                prop_assert!(info.data_offsets.0 <= info.data_offsets.1 && info.data_offsets.1 <= file.len());
            }
        }
    }
}
