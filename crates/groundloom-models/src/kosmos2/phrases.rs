//! What a text of Kosmos-2 says about places: phrases, and the boxes that its tags give them.
//!
//! Reference: transformers' `processing_kosmos2.py`, `clean_text_and_extract_entities_with_bboxes`.

use groundloom_data::{Box2d, CharSpan};

use crate::writers::GroundedPhrase;

/// Cells along a side of the grid in which places are told.
const SIDE: usize = 32;
const PHRASE: [&str; 2] = ["<phrase>", "</phrase>"];
const OBJECT: [&str; 2] = ["<object>", "</object>"];
const DELIMITER: &str = "</delimiter_of_multi_objects/>";
const PLACE: &str = "<patch_index_";

/// `text` without its tags and the spaces around it, and the phrases in it that have places. Boxes without a phrase become
/// one each, at the empty span where they stand. Two cells that are no box (the second above the first, or beyond the grid)
/// are left out, where the reference gives them.
pub(crate) fn grounded(text: &str) -> (String, Vec<GroundedPhrase>) {
    let plain = untagged(text);
    let leading = chars(&plain) - chars(plain.trim_start());
    let length = chars(plain.trim());
    let mut phrases = Vec::new();
    let mut place = 0;
    while let Some(next) = text[place..].find('<').map(|next| place + next) {
        let Some(tagged) = Tagged::read(text, next) else {
            place = next + 1;
            continue;
        };
        place = tagged.end;
        // Places in the text without tags, from its first character that is no space.
        let at = |byte: usize| chars(&untagged(&text[..byte])).saturating_sub(leading).min(length);
        let mut push = |phrase: String, start: usize, end: usize, boxes: Vec<Box2d>| {
            phrases.extend(CharSpan::new(start, end.max(start)).map(|span| GroundedPhrase { phrase, span, boxes }));
        };
        match tagged.phrase {
            Some([start, end]) => {
                let phrase = &text[start..end];
                let spaces = |trimmed: &str| phrase.len() - trimmed.len();
                let [start, end] = [start + spaces(phrase.trim_start()), end - spaces(phrase.trim_end())];
                push(phrase.trim().to_owned(), at(start), at(end), tagged.cells.iter().filter_map(corners).collect());
            }
            None => {
                for cells in &tagged.cells {
                    let phrase = format!("{PLACE}{}>{PLACE}{}>", cells[0], cells[1]);
                    push(phrase, at(next), at(next), corners(cells).into_iter().collect());
                }
            }
        }
    }
    (plain.trim().to_owned(), phrases)
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

/// `text` without what stands between `<` and the next `>` of its line.
fn untagged(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some(start) = rest.find('<') {
        plain.push_str(&rest[..start]);
        let tag = &rest[start..];
        match tag.find(['>', '\n']) {
            Some(end) if tag.as_bytes()[end] == b'>' => rest = &tag[end + 1..],
            _ => {
                plain.push('<');
                rest = &tag[1..];
            }
        }
    }
    plain + rest
}

/// A phrase and its places, in bytes of a text.
struct Tagged {
    phrase: Option<[usize; 2]>,
    /// First and last cell of each box.
    cells: Vec<[usize; 2]>,
    end: usize,
}

impl Tagged {
    /// What begins at `start`: `<phrase>…</phrase><object>…</object>` or `<object>…</object>`.
    fn read(text: &str, start: usize) -> Option<Self> {
        let mut reader = Reader { text, place: start };
        let phrase = match reader.take(PHRASE[0]) {
            None => None,
            Some(()) => {
                let from = reader.place;
                reader.place += text[from..].find('<').filter(|&length| length > 0)?;
                let to = reader.place;
                reader.take(PHRASE[1])?;
                Some([from, to])
            }
        };
        reader.take(OBJECT[0])?;
        let mut cells = vec![[reader.cell()?, reader.cell()?]];
        while reader.take(DELIMITER).is_some() {
            cells.push([reader.cell()?, reader.cell()?]);
        }
        reader.take(OBJECT[1])?;
        Some(Self { phrase, cells, end: reader.place })
    }
}

/// A place in a text.
struct Reader<'a> {
    text: &'a str,
    place: usize,
}

impl Reader<'_> {
    fn take(&mut self, what: &str) -> Option<()> {
        self.text[self.place..].starts_with(what).then(|| self.place += what.len())
    }

    /// `<patch_index_N>`.
    fn cell(&mut self) -> Option<usize> {
        self.take(PLACE)?;
        let rest = &self.text[self.place..];
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        // More digits than a cell can have would not fit a number either.
        let cell = rest[..digits].parse().ok()?;
        self.place += digits;
        self.take(">").map(|()| cell)
    }
}

/// The box from one cell to another: between their middles, or around both where they lie in one row or column.
fn corners([first, last]: &[usize; 2]) -> Option<Box2d> {
    let cell = 1.0 / SIDE as f64;
    let [left, top, right, bottom] =
        [first % SIDE, first / SIDE, last % SIDE, last / SIDE].map(|place| place as f64 * cell);
    let one_line = left == right || top == bottom;
    let [before, behind] = if one_line { [0.0, cell] } else { [cell / 2.0, cell / 2.0] };
    let [x1, y1, x2, y2] = [left + before, top + before, right + behind, bottom + behind].map(|x| x as f32);
    Box2d::new(x1, y1, x2, y2).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Phrase, span and corners, in sixty-fourths.
    type Row = (String, [usize; 2], Vec<[f32; 4]>);

    fn found(text: &str) -> (String, Vec<Row>) {
        let (plain, phrases) = grounded(text);
        let row = |found: GroundedPhrase| {
            let boxes = found.boxes.iter().map(|found| found.xyxy().map(|x| x * 64.0)).collect();
            (found.phrase, [found.span.start, found.span.end], boxes)
        };
        (plain, phrases.into_iter().map(row).collect())
    }

    #[test]
    fn phrases_have_spans_and_boxes() {
        // The example of the reference's own documentation.
        let text = "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> \
                    warming himself by<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>.";
        let (plain, phrases) = found(text);
        assert_eq!(plain, "An image of a snowman warming himself by a fire.");
        let expected = [
            ("a snowman".to_owned(), [12, 21], vec![[25.0, 3.0, 63.0, 53.0]]),
            ("a fire".to_owned(), [41, 47], vec![[11.0, 1.0, 31.0, 57.0]]),
        ];
        assert_eq!(phrases, expected);
    }

    #[test]
    fn boxes_may_be_many_or_stand_alone() {
        let text = "é<phrase>x y</phrase><object><patch_index_0000><patch_index_0000></delimiter_of_multi_objects/>\
                    <patch_index_0001><patch_index_0034></object> <object><patch_index_0002><patch_index_0002></object>";
        let (plain, phrases) = found(text);
        assert_eq!(plain, "éx y");
        assert_eq!(phrases[0], ("x y".to_owned(), [1, 4], vec![[0.0, 0.0, 2.0, 2.0], [3.0, 1.0, 5.0, 3.0]]));
        assert_eq!(phrases[1], ("<patch_index_2><patch_index_2>".to_owned(), [4, 4], vec![[4.0, 0.0, 6.0, 2.0]]));
    }

    #[test]
    fn what_is_no_phrase_is_none() {
        for text in [
            "",
            "<",
            "a < b",
            "<phrase></phrase><object><patch_index_0001><patch_index_0002></object>"[..17].to_owned().as_str(),
            "<phrase>a</phrase> <object></object>",
            "<object><patch_index_0001></object>",
            "<object><patch_index_99999999999999999999999><patch_index_0001></object>",
        ] {
            assert!(found(text).1.is_empty(), "{text}");
        }
        // From below to above is no box; the phrase stays.
        let upside_down = "<phrase>a</phrase><object><patch_index_0100><patch_index_0001></object>";
        assert_eq!(found(upside_down), ("a".to_owned(), vec![("a".to_owned(), [0, 1], Vec::new())]));
        assert_eq!(found("a < b\n> c").0, "a < b\n> c");
    }
}
