//! Decoding and resizing, in images a second on one thread. `scripts/pillow_speed.py` does the same work with Pillow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::PathBuf};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use groundloom_data::{
    Filter,
    media::{DecodeLimits, decode_rgb, probe},
    resize,
};

/// The example photographs, or those of `GROUNDLOOM_PHOTOS`.
fn photos() -> Vec<Vec<u8>> {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/photos");
    let folder = std::env::var_os("GROUNDLOOM_PHOTOS").map_or(examples, PathBuf::from);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.retain(|f| f.extension().is_some_and(|e| e == "jpg"));
    assert!(!files.is_empty(), "no .jpg in {}", folder.display());
    files.iter().map(|f| fs::read(f).unwrap()).collect()
}

fn pictures(criterion: &mut Criterion) {
    let photos = photos();
    let limits = DecodeLimits::default();
    let mut group = criterion.benchmark_group("pictures");
    group.throughput(Throughput::Elements(photos.len() as u64));
    group.bench_function("probe", |b| b.iter(|| photos.iter().map(|p| probe(p).unwrap().width).sum::<u32>()));
    group.bench_function("decode", |b| {
        b.iter(|| photos.iter().map(|p| decode_rgb(p, &limits).unwrap().width()).sum::<u32>())
    });
    let decoded: Vec<_> = photos.iter().map(|p| decode_rgb(p, &limits).unwrap()).collect();
    for (name, filter) in [("bilinear", Filter::Bilinear), ("bicubic", Filter::Bicubic), ("lanczos", Filter::Lanczos)] {
        group.bench_function(format!("resize to 300x300, {name}"), |b| {
            b.iter_batched(
                || (),
                |()| decoded.iter().map(|i| resize(i, 300, 300, filter).width()).sum::<u32>(),
                BatchSize::SmallInput,
            );
        });
    }
    group.bench_function("decode and resize to 300x300, bilinear", |b| {
        b.iter(|| {
            photos
                .iter()
                .map(|p| resize(&decode_rgb(p, &limits).unwrap(), 300, 300, Filter::Bilinear).width())
                .sum::<u32>()
        });
    });
    group.finish();
}

criterion_group!(benches, pictures);
criterion_main!(benches);
