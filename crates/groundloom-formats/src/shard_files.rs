//! The files of a shard, packed: a source may hold a hundred million of them, all known before the first task starts.

use std::{fmt, ops::Range, sync::Arc};

use crate::source::ShardFile;

/// The files of a shard in reading order. Cheap to clone; a file takes its texts and about twenty bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct ShardFiles(Arc<Packed>);

#[derive(PartialEq, Eq)]
struct Packed {
    /// Of each file what its location ends in, and its version; a path that its location ends in is not held twice.
    texts: Box<str>,
    /// What every location begins with.
    root: Box<str>,
    files: Box<[File]>,
    /// Ranges and paths of their own, by the number of the file: few files have them.
    ranges: Box<[(u32, Range<u64>)]>,
    metadata: Box<[(u32, Range<u64>)]>,
    paths: Box<[(u32, Box<str>)]>,
}

/// Places in [`Packed::texts`], where the file before this one ends and this one's texts begin.
#[derive(Clone, Copy, PartialEq, Eq)]
struct File {
    location_end: u32,
    version_end: u32,
    /// Length of the path in bytes, all of it at the end of the location.
    path: u32,
    /// In halves, so that no byte is lost to alignment.
    size: [u32; 2],
}

impl FromIterator<ShardFile> for ShardFiles {
    fn from_iter<I: IntoIterator<Item = ShardFile>>(files: I) -> Self {
        let files: Vec<ShardFile> = files.into_iter().collect();
        Self::from(files.as_slice())
    }
}

impl From<&[ShardFile]> for ShardFiles {
    fn from(files: &[ShardFile]) -> Self {
        let root = files.iter().map(|f| f.location.as_str()).reduce(common_start).unwrap_or_default();
        let (mut texts, mut packed) = (String::new(), Vec::with_capacity(files.len()));
        let (mut ranges, mut metadata, mut paths) = (Vec::new(), Vec::new(), Vec::new());
        for (number, file) in (0..).zip(files) {
            texts.push_str(&file.location[root.len()..]);
            let location_end = place(&texts);
            texts.push_str(&file.version);
            let is_end = file.location.ends_with(&file.path);
            if !is_end {
                paths.push((number, file.path.clone().into_boxed_str()));
            }
            ranges.extend(file.range.clone().map(|range| (number, range)));
            metadata.extend(file.metadata.clone().map(|range| (number, range)));
            let path = if is_end { file.path.len() as u32 } else { 0 };
            let size = [file.size as u32, (file.size >> 32) as u32];
            packed.push(File { location_end, version_end: place(&texts), path, size });
        }
        Self(Arc::new(Packed {
            texts: texts.into(),
            root: root.into(),
            files: packed.into(),
            ranges: ranges.into(),
            metadata: metadata.into(),
            paths: paths.into(),
        }))
    }
}

/// A place in the texts of one shard, which are far below 4 GiB: a shard has thousands of files, and a path at most a few kilobytes.
fn place(texts: &str) -> u32 {
    u32::try_from(texts.len()).unwrap_or(u32::MAX)
}

fn common_start<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map(|((at, _), _)| at);
    &a[..same.unwrap_or_else(|| a.len().min(b.len()))]
}

impl ShardFiles {
    /// How many files.
    pub fn len(&self) -> usize {
        self.0.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.files.is_empty()
    }

    /// The first file.
    pub fn first(&self) -> Option<ShardFile> {
        self.get(0)
    }

    /// The file of this number, counted from 0.
    pub fn get(&self, number: usize) -> Option<ShardFile> {
        let packed = &*self.0;
        let file = packed.files.get(number)?;
        let start = number.checked_sub(1).map_or(0, |before| packed.files[before].version_end as usize);
        let (location_end, version_end) = (file.location_end as usize, file.version_end as usize);
        let location = format!("{}{}", packed.root, &packed.texts[start..location_end]);
        let path = match own(&packed.paths, number) {
            Some(path) => path.to_string(),
            None => location[location.len() - file.path as usize..].to_owned(),
        };
        Some(ShardFile {
            location,
            path,
            size: u64::from(file.size[0]) | (u64::from(file.size[1]) << 32),
            range: own(&packed.ranges, number).cloned(),
            version: packed.texts[location_end..version_end].to_owned(),
            metadata: own(&packed.metadata, number).cloned(),
        })
    }

    /// The files in order.
    pub fn iter(&self) -> impl Iterator<Item = ShardFile> + '_ {
        (0..self.len()).filter_map(|number| self.get(number))
    }
}

fn own<T>(of: &[(u32, T)], number: usize) -> Option<&T> {
    of.binary_search_by_key(&number, |(n, _)| *n as usize).ok().map(|at| &of[at].1)
}

impl fmt::Debug for ShardFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn file() -> impl Strategy<Value = ShardFile> {
        let range = || prop::option::of((any::<u64>(), any::<u64>()).prop_map(|(a, b)| a..b));
        ("[a-cé/]{0,6}", "[a-bé]{0,5}", any::<bool>(), any::<u64>(), range(), ".{0,4}", range()).prop_map(
            |(start, path, apart, size, range, version, metadata)| ShardFile {
                location: if apart { format!("/{start}") } else { format!("/{start}{path}") },
                path,
                size,
                range,
                version,
                metadata,
            },
        )
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(files in prop::collection::vec(file(), 0..20)) {
            let packed = ShardFiles::from(files.as_slice());
            prop_assert_eq!(packed.len(), files.len());
            prop_assert_eq!(packed.first(), files.first().cloned());
            prop_assert_eq!(packed.get(files.len()), None);
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), files);
        }
    }
}
