//! Cutting inputs into shards such that a new, changed or missing file changes few of them.

use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::{
    source::{DiscoverOptions, Shard, ShardFile},
    store::Entry,
};

/// A shard of these files (or parts of files); its id is a hash of their paths and ranges.
pub(crate) fn shard(files: Vec<ShardFile>, rows: Option<u64>) -> Shard {
    let mut hash = Xxh3::new();
    for file in &files {
        hash.update(file.path.as_bytes());
        for range in [&file.range, &file.metadata] {
            let (start, end) = range.as_ref().map_or((u64::MAX, u64::MAX), |r| (r.start, r.end));
            hash.update(&[0]);
            hash.update(&start.to_le_bytes());
            hash.update(&end.to_le_bytes());
        }
    }
    let bytes = files.iter().map(|f| f.range.as_ref().map_or(f.size, |r| r.end - r.start)).sum();
    Shard { id: format!("{:016x}", hash.digest()), files: files.as_slice().into(), rows, bytes }
}

/// A whole file.
pub(crate) fn whole_file(entry: Entry) -> ShardFile {
    ShardFile {
        path: entry.path().to_owned(),
        version: entry.version.to_string(),
        size: entry.size,
        location: entry.location.into(),
        range: None,
        metadata: None,
    }
}

/// Runs of whole files, in order.
///
/// A run ends behind a file whose own path and size say so (a content-defined cut: a hash of the path falls below the
/// file's share of a shard), so a file that comes or goes moves no cut but its own. Runs of less than a quarter of a
/// shard are not closed, and at four shards a run is closed in any case.
pub(crate) fn runs_of_files(files: impl IntoIterator<Item = ShardFile>, options: &DiscoverOptions) -> Vec<Shard> {
    let (most_bytes, most_files) = (options.shard_bytes.max(1) as f64, options.shard_files.max(1) as f64);
    let mut shards = Vec::new();
    let (mut run, mut filled) = (Vec::new(), 0.0);
    for file in files {
        let share = (file.size as f64 / most_bytes).max(1.0 / most_files);
        let draw = xxh3_64(file.path.as_bytes()) as f64 / u64::MAX as f64;
        run.push(file);
        filled += share;
        // The quarter that is skipped is made up for by the rest.
        if (filled >= 0.25 && draw < share / 0.75) || filled >= 4.0 {
            shards.push(shard(std::mem::take(&mut run), None));
            filled = 0.0;
        }
    }
    if !run.is_empty() {
        shards.push(shard(run, None));
    }
    shards
}

/// Byte ranges of a file at multiples of `shard_bytes`, the last one up to its end. Cuts fall anywhere: a row belongs to
/// the range that its first byte is in.
pub(crate) fn ranges(size: u64, shard_bytes: u64) -> Vec<Range<u64>> {
    let step = shard_bytes.max(1);
    let count = size.div_ceil(step).max(1);
    (0..count).map(|i| i * step..((i + 1) * step).min(size)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn file(path: &str, size: u64) -> ShardFile {
        ShardFile {
            location: format!("/d/{path}"),
            path: path.to_owned(),
            size,
            range: None,
            version: String::new(),
            metadata: None,
        }
    }

    fn ids(shards: &[Shard]) -> HashSet<&str> {
        shards.iter().map(|s| s.id.as_str()).collect()
    }

    #[test]
    fn runs_have_about_the_size_that_is_asked_for() {
        let options = DiscoverOptions { shard_bytes: 1 << 20, shard_files: 1000 };
        let files: Vec<ShardFile> = (0..40_000).map(|i| file(&format!("{i:06}.jpg"), 10_000)).collect();
        let shards = runs_of_files(files, &options);
        let mean = shards.iter().map(|s| s.bytes).sum::<u64>() / shards.len() as u64;
        assert!((700_000..1_400_000).contains(&mean), "{mean}");
        assert!(shards.iter().all(|s| s.bytes <= (4 << 20) + 10_000));
        let small: Vec<ShardFile> = (0..40_000).map(|i| file(&format!("{i:06}.txt"), 10)).collect();
        let shards = runs_of_files(small, &options);
        assert!((25..80).contains(&shards.len()), "{}", shards.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_new_file_changes_few_shards(
            sizes in prop::collection::vec(1u64..300_000, 500..1500), new in 0usize..500, size in 1u64..300_000
        ) {
            let options = DiscoverOptions { shard_bytes: 1 << 20, shard_files: 100 };
            let named = |(i, size): (usize, &u64)| file(&format!("{i:06}.jpg"), *size);
            let mut files: Vec<ShardFile> = sizes.iter().enumerate().map(named).collect();
            let before = runs_of_files(files.clone(), &options);
            prop_assert_eq!(before.iter().map(|s| s.files.len()).sum::<usize>(), files.len());
            prop_assert_eq!(ids(&before).len(), before.len());
            files.insert(new, file(&format!("{new:06}-new.jpg"), size));
            let after = runs_of_files(files, &options);
            let changed = after.iter().filter(|s| !ids(&before).contains(s.id.as_str())).count();
            prop_assert!(changed <= 12, "{} of {} shards changed", changed, after.len());
        }

        #[test]
        fn ranges_cover_a_file_once(size in 0u64..10_000, step in 1u64..3000) {
            let ranges = ranges(size, step);
            prop_assert_eq!(ranges[0].start, 0);
            prop_assert_eq!(ranges.last().unwrap().end, size);
            prop_assert!(ranges.windows(2).all(|w| w[0].end == w[1].start && w[0].end - w[0].start == step));
        }
    }
}
