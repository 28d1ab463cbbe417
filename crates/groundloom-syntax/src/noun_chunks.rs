//! Base noun phrases of English.

use std::ops::Range;

use crate::doc::Doc;

/// Relations of a noun that make it the head of a chunk.
pub(crate) const RELATIONS: [&str; 10] =
    ["oprd", "nsubj", "dobj", "nsubjpass", "pcomp", "pobj", "dative", "appos", "attr", "ROOT"];
/// Parts of speech that head a chunk.
pub(crate) const NOMINAL: [&str; 3] = ["NOUN", "PROPN", "PRON"];

/// A base noun phrase of a [`Doc`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NounChunk {
    /// First token.
    pub start_token: usize,
    /// One past the last token, which is the chunk's noun.
    pub end_token: usize,
    /// Character offset of the start, in Unicode scalar values.
    pub start_char: usize,
    /// Character offset of the end, exclusive.
    pub end_char: usize,
    /// Index of the token that the chunk hangs from (spaCy's `Span.root`).
    pub root: usize,
}

impl NounChunk {
    /// The chunk's tokens.
    pub fn tokens(&self) -> Range<usize> {
        self.start_token..self.end_token
    }

    /// The chunk's text.
    pub fn text<'d>(&self, doc: &'d Doc) -> &'d str {
        doc.span_text(self.tokens())
    }
}

/// The rule of `spacy/lang/en/syntax_iterators.py` 3.8.
pub(crate) fn find(doc: &Doc) -> Vec<NounChunk> {
    let (tokens, model) = (doc.data(), doc.model());
    let mut chunks = Vec::new();
    // One past the last chunk.
    let mut free = 0;
    for (i, token) in tokens.iter().enumerate() {
        if !token.pos.is_some_and(|pos| model.is_nominal(pos)) || (token.left_edge as usize) < free {
            continue;
        }
        let mut top = i;
        if token.dep == model.conj() {
            top = token.head as usize;
            while tokens[top].dep == model.conj() && (tokens[top].head as usize) < top {
                top = tokens[top].head as usize;
            }
        }
        if !model.is_chunk_relation(tokens[top].dep) {
            continue;
        }
        free = i + 1;
        let span = token.left_edge as usize..i + 1;
        if let (Some(chars), Some(root)) = (doc.char_span(span.clone()), doc.span_root(span.clone())) {
            chunks.push(NounChunk {
                start_token: span.start,
                end_token: span.end,
                start_char: chars.start,
                end_char: chars.end,
                root,
            });
        }
    }
    chunks
}
