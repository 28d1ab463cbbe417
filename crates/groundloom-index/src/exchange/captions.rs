//! Tables of captions and pictures as CC3M's: a line a pair, the caption, a tab, the picture's path.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use crate::IndexError;

/// A caption and its picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captioned {
    /// Line of the table, from 1.
    pub line: usize,
    /// The caption as it stands there.
    pub caption: String,
    /// The picture as it stands there: relative to the table's root.
    pub image: String,
    /// Where the picture lies.
    pub file: PathBuf,
}

/// A pair whose picture is not to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Line of the table, from 1.
    pub line: usize,
    /// The picture as it stands there.
    pub image: String,
    /// Why it is missing.
    pub problem: &'static str,
}

/// A table of captions, with what is missing named and not replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captions {
    /// The pairs whose pictures are there, in order.
    pub found: Vec<Captioned>,
    /// The others, in order.
    pub missing: Vec<Missing>,
}

/// Reads a table of captions; pictures lie below `root`. A first line `caption`, tab, `image` (FROMAGe's form of CC3M) is
/// its header; CC3M's own has none.
///
/// # Errors
/// [`IndexError::Damaged`] for a line that is no pair, or text that is not UTF-8.
pub fn read_captions(path: &Path, root: &Path) -> Result<Captions, IndexError> {
    let bytes = fs::read(path).map_err(|e| IndexError::io(path, e))?;
    let text = str::from_utf8(&bytes)
        .map_err(|e| IndexError::damaged(path, format!("expected UTF-8, found other bytes at {}", e.valid_up_to())))?;
    let mut captions = Captions::default();
    for (i, text) in text.lines().enumerate() {
        let line = i + 1;
        if text.is_empty() || (line == 1 && text == "caption\timage") {
            continue;
        }
        let pair = text.split_once('\t').filter(|(_, image)| !image.is_empty() && !image.contains('\t'));
        let Some((caption, image)) = pair else {
            return Err(IndexError::damaged(path, format!("line {line}: expected a caption, a tab and a picture")));
        };
        match problem(root, image) {
            None => captions.found.push(Captioned {
                line,
                caption: caption.to_owned(),
                image: image.to_owned(),
                file: root.join(image),
            }),
            Some(problem) => captions.missing.push(Missing { line, image: image.to_owned(), problem }),
        }
    }
    Ok(captions)
}

/// Why a picture cannot be read from `root`; `None` when it can.
fn problem(root: &Path, image: &str) -> Option<&'static str> {
    if image.contains("://") {
        return Some("an address, not a file: download the pictures first");
    }
    if !Path::new(image).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Some("not below the root");
    }
    match fs::metadata(root.join(image)) {
        Ok(file) if file.is_file() && file.len() > 0 => None,
        Ok(file) if file.is_file() => Some("an empty file"),
        Ok(_) => Some("not a file"),
        Err(_) => Some("no such file"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn missing_pictures_are_listed_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("a.jpg"), b"picture").unwrap();
        fs::write(root.join("empty.jpg"), b"").unwrap();
        let table = root.join("cc3m.tsv");
        let read = |text: &[u8]| {
            fs::write(&table, text).unwrap();
            read_captions(&table, root)
        };
        let all = "caption\timage\na kite\ta.jpg\ngone\tb.jpg\n\nnothing\tempty.jpg\nup\t../a.jpg\nfar\thttp://x/a.jpg\nroot\t.\n";
        let captions = read(all.as_bytes()).unwrap();
        let kite = Captioned { line: 2, caption: "a kite".into(), image: "a.jpg".into(), file: root.join("a.jpg") };
        assert_eq!(captions.found, [kite]);
        let missing: Vec<(usize, &str)> = captions.missing.iter().map(|m| (m.line, m.problem)).collect();
        assert_eq!(
            missing,
            [
                (3, "no such file"),
                (5, "an empty file"),
                (6, "not below the root"),
                (7, "an address, not a file: download the pictures first"),
                (8, "not a file"),
            ]
        );
        // CC3M's own form begins with the first pair.
        assert_eq!(read(b"a kite\ta.jpg\n").unwrap().found.len(), 1);
        for (bad, words) in [(&b"a kite\n"[..], "line 1"), (b"a\tb\tc\n", "line 1"), (b"\xFF\t", "UTF-8")] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
