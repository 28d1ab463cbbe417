//! Spans of text in characters, as Python counts them, and the way to bytes and back.

/// A span of characters (Unicode scalar values, not bytes and not UTF-16 units), `end` exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CharSpan {
    /// First character.
    pub start: usize,
    /// One past the last character; at least `start`.
    pub end: usize,
}

impl CharSpan {
    /// A span; `None` if `end` lies before `start`.
    pub fn new(start: usize, end: usize) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// Number of characters.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether it holds no character.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether `other` lies inside this span, ends included (a span contains itself).
    pub fn contains(&self, other: &CharSpan) -> bool {
        self.start <= other.start && self.end >= other.end
    }

    /// Whether the two share a character.
    pub fn overlaps(&self, other: &CharSpan) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }
}

/// Characters between two remembered byte offsets: a look-up walks over at most this many.
const STRIDE: usize = 64;

/// Maps character offsets of a text to byte offsets and back. Free for ASCII; else one pass to build, and a short walk per look-up.
#[derive(Debug, Clone)]
pub struct CharIndex<'a> {
    text: &'a str,
    chars: usize,
    /// Byte offset of every `STRIDE`-th character; empty for ASCII, where characters are bytes.
    marks: Vec<usize>,
}

impl<'a> CharIndex<'a> {
    /// Indexes `text`.
    pub fn new(text: &'a str) -> Self {
        if text.is_ascii() {
            return Self { text, chars: text.len(), marks: Vec::new() };
        }
        let (mut marks, mut chars) = (Vec::with_capacity(text.len() / STRIDE + 1), 0);
        for (byte, _) in text.char_indices() {
            if chars % STRIDE == 0 {
                marks.push(byte);
            }
            chars += 1;
        }
        Self { text, chars, marks }
    }

    /// The text.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Number of characters.
    pub fn len(&self) -> usize {
        self.chars
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.chars == 0
    }

    /// Byte offset of the character `char`; the length in bytes for `char == self.len()`; `None` beyond.
    pub fn byte_of(&self, char: usize) -> Option<usize> {
        if char >= self.chars {
            return (char == self.chars).then_some(self.text.len());
        }
        if self.marks.is_empty() {
            return Some(char);
        }
        let mark = *self.marks.get(char / STRIDE)?;
        let (byte, _) = self.text[mark..].char_indices().nth(char % STRIDE)?;
        Some(mark + byte)
    }

    /// The character that begins at byte `byte`; the number of characters for `byte` = the length in bytes; `None` inside a character or beyond.
    pub fn char_of(&self, byte: usize) -> Option<usize> {
        if !self.text.is_char_boundary(byte) {
            return None;
        }
        if self.marks.is_empty() {
            return Some(byte);
        }
        let mark = self.marks.partition_point(|&m| m <= byte).checked_sub(1)?;
        let start = *self.marks.get(mark)?;
        Some(mark * STRIDE + self.text[start..byte].chars().count())
    }

    /// The text of a span; `None` if it reaches beyond the text or is reversed.
    pub fn slice(&self, span: CharSpan) -> Option<&'a str> {
        let start = self.byte_of(span.start)?;
        let end = self.byte_of(span.end)?;
        self.text.get(start..end)
    }

    /// The character span of the bytes `start..end`; `None` if an end is inside a character, beyond the text, or before the start.
    pub fn span(&self, start: usize, end: usize) -> Option<CharSpan> {
        CharSpan::new(self.char_of(start)?, self.char_of(end)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_of_texts_in_many_scripts() {
        let cases = [
            ("a dog", 2, 5, "dog"),
            ("", 0, 0, ""),
            ("ein Mädchen läuft", 4, 11, "Mädchen"),
            ("שלום עולם", 5, 9, "עולם"),
            ("🐕🐕 two dogs", 1, 6, "🐕 two"),
            ("tab\tnul\0newline\n", 4, 8, "nul\0"),
            ("e\u{301}a", 0, 2, "e\u{301}"),
        ];
        for (text, start, end, expected) in cases {
            let index = CharIndex::new(text);
            assert_eq!(index.slice(CharSpan { start, end }), Some(expected), "{text}");
            assert_eq!(index.byte_of(index.len() + 1), None);
            assert_eq!(index.char_of(text.len() + 1), None);
        }
        assert_eq!(CharIndex::new("é").char_of(1), None, "inside a character");
        assert_eq!(CharIndex::new("abc").slice(CharSpan { start: 2, end: 1 }), None);
    }

    #[test]
    fn containment() {
        let span = |start, end| CharSpan { start, end };
        assert!(
            span(0, 5).contains(&span(0, 5)) && span(0, 5).contains(&span(2, 5)) && !span(0, 5).contains(&span(2, 6))
        );
        assert!(span(0, 5).overlaps(&span(4, 9)) && !span(0, 5).overlaps(&span(5, 9)));
        assert_eq!(CharSpan::new(3, 2), None);
    }

    proptest! {
        #[test]
        fn every_character_is_found_from_both_sides(text in "(?s)[a-z]{0,70}.{0,200}") {
            let index = CharIndex::new(&text);
            prop_assert_eq!(index.len(), text.chars().count());
            for (char, (byte, _)) in text.char_indices().enumerate() {
                prop_assert_eq!(index.byte_of(char), Some(byte));
                prop_assert_eq!(index.char_of(byte), Some(char));
            }
            prop_assert_eq!(index.byte_of(index.len()), Some(text.len()));
            prop_assert_eq!(index.char_of(text.len()), Some(index.len()));
            for byte in 0..=text.len() {
                prop_assert_eq!(index.char_of(byte).is_some(), text.is_char_boundary(byte));
            }
        }
    }
}
