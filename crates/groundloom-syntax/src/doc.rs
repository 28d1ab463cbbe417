//! A parsed text.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::attribute_ruler::RuleValue;
use crate::lexeme;
use crate::noun_chunks::{self, NounChunk};
use crate::parser::DepId;
use crate::pipeline::{Margins, Model};
use crate::tokenizer::NormId;

/// What is kept of a token: ids and positions, 40 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenData {
    /// Byte range in the text.
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// Character offset of the start.
    pub(crate) idx: u32,
    pub(crate) head: u32,
    pub(crate) left_edge: u32,
    pub(crate) right_edge: u32,
    pub(crate) norm: Option<NormId>,
    pub(crate) pos: Option<RuleValue>,
    pub(crate) lemma: Option<RuleValue>,
    pub(crate) morph: Option<RuleValue>,
    pub(crate) dep: DepId,
    pub(crate) tag: u8,
    pub(crate) space_after: bool,
    pub(crate) sentence_start: bool,
}

/// A text with its tokens, tags, dependency tree and noun chunks.
///
/// Immutable. Token indices count from 0; character offsets are Unicode scalar values, as
/// Python counts them, end exclusive. The model's label strings are shared, not copied.
#[derive(Clone)]
pub struct Doc {
    text: Box<str>,
    tokens: Box<[TokenData]>,
    margins: Margins,
    model: Arc<Model>,
}

impl fmt::Debug for Doc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doc").field("text", &self.text).field("tokens", &self.tokens.len()).finish()
    }
}

impl Doc {
    pub(crate) fn new(text: &str, tokens: Vec<TokenData>, margins: Margins, model: Arc<Model>) -> Self {
        Self { text: text.into(), tokens: tokens.into(), margins, model }
    }

    pub(crate) fn data(&self) -> &[TokenData] {
        &self.tokens
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// The text that was parsed, unchanged.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How close the closest decisions were.
    pub fn margins(&self) -> Margins {
        self.margins
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token: the text was empty.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The token at an index, None beyond the end.
    pub fn token(&self, i: usize) -> Option<Token<'_>> {
        self.tokens.get(i).map(|data| Token { doc: self, data, i })
    }

    /// The tokens in order.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = Token<'_>> + DoubleEndedIterator {
        self.tokens.iter().enumerate().map(|(i, data)| Token { doc: self, data, i })
    }

    /// Base noun phrases, left to right, without overlaps (spaCy's `Doc.noun_chunks`).
    ///
    /// `spacy/lang/en/syntax_iterators.py` 3.8: a noun, proper noun or pronoun with a
    /// nominal relation to its head, or coordinated with one, and all that its subtree has
    /// to its left. What follows the noun is not part of its chunk.
    pub fn noun_chunks(&self) -> Vec<NounChunk> {
        noun_chunks::find(self)
    }

    /// The sentences as token ranges.
    pub fn sentences(&self) -> Vec<Range<usize>> {
        let mut starts: Vec<usize> = (0..self.len()).filter(|&i| i == 0 || self.tokens[i].sentence_start).collect();
        starts.push(self.len());
        starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    /// The text from the first to the last token of a range, without the space after it;
    /// empty for a range that is empty or out of bounds.
    pub fn span_text(&self, tokens: Range<usize>) -> &str {
        match self.tokens.get(tokens) {
            Some([first, .., last]) => &self.text[first.start as usize..last.end as usize],
            Some([only]) => &self.text[only.start as usize..only.end as usize],
            _ => "",
        }
    }

    /// Character offsets of a token range; None if it is empty or out of bounds.
    pub fn char_span(&self, tokens: Range<usize>) -> Option<Range<usize>> {
        let (first, last) = (self.token(tokens.start)?, self.token(tokens.end.checked_sub(1)?)?);
        (tokens.start < tokens.end).then(|| first.idx()..last.end_idx())
    }

    /// The token range between the outermost tokens of a subtree, which is what the chunk
    /// expansion of Kosmos-2 takes (`root.left_edge` to `root.right_edge`); empty beyond
    /// the last token.
    pub fn subtree_span(&self, i: usize) -> Range<usize> {
        self.tokens.get(i).map_or(0..0, |t| t.left_edge as usize..t.right_edge as usize + 1)
    }

    /// The tokens that have `i` as their head, in order.
    pub fn children(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        let span = self.subtree_span(i);
        span.filter(move |&c| c != i && self.tokens[c].head as usize == i)
    }

    /// The tokens coordinated with `i`, without `i` itself (spaCy's `Token.conjuncts`).
    pub fn conjuncts(&self, i: usize) -> Vec<usize> {
        let conj = self.model.conj();
        let mut start = i;
        while let Some(token) = self.tokens.get(start) {
            if token.head as usize == start || token.dep != conj {
                break;
            }
            start = token.head as usize;
        }
        let mut found = vec![start];
        let mut at = 0;
        while let Some(&word) = found.get(at) {
            found.extend(self.children(word).filter(|&c| c > word && self.tokens[c].dep == conj));
            at += 1;
        }
        found.retain(|&w| w != i && w < self.len());
        found
    }

    /// Whether a token is coordinated with another one. Such a chunk is not expanded in
    /// the recipe of Kosmos-2.
    pub fn has_conjunct(&self, i: usize) -> bool {
        let conj = self.model.conj();
        self.tokens.get(i).is_some_and(|token| {
            token.dep == conj && token.head as usize != i
                || self.children(i).any(|c| c > i && self.tokens[c].dep == conj)
        })
    }

    /// The token of a range that is closest to the root of its sentence, the first of
    /// equals (spaCy's `Span.root`); None if the range is empty or out of bounds.
    pub fn span_root(&self, tokens: Range<usize>) -> Option<usize> {
        let span = self.tokens.get(tokens.clone())?;
        let heads = || tokens.clone().zip(span.iter().map(|t| t.head as usize));
        if let Some((i, _)) = heads().find(|&(i, head)| i == head) {
            return Some(i);
        }
        let outside = heads().filter(|(_, head)| !tokens.contains(head)).map(|(i, _)| i);
        outside.min_by_key(|&i| self.depth(i)).or_else(|| (!span.is_empty()).then_some(tokens.start))
    }

    /// Steps from a token to the root of its sentence.
    fn depth(&self, i: usize) -> usize {
        let (mut at, mut steps) = (i, 0);
        while self.tokens[at].head as usize != at && steps < self.len() {
            at = self.tokens[at].head as usize;
            steps += 1;
        }
        steps
    }
}

/// A token of a [`Doc`].
#[derive(Clone, Copy)]
pub struct Token<'d> {
    doc: &'d Doc,
    data: &'d TokenData,
    i: usize,
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}/{}→{}", self.text(), self.tag(), self.dep(), self.head())
    }
}

impl<'d> Token<'d> {
    /// Index in the document.
    pub fn i(&self) -> usize {
        self.i
    }

    /// The token's text, without the space after it.
    pub fn text(&self) -> &'d str {
        &self.doc.text[self.data.start as usize..self.data.end as usize]
    }

    /// Character offset of the token's start.
    pub fn idx(&self) -> usize {
        self.data.idx as usize
    }

    /// Character offset of the token's end.
    pub fn end_idx(&self) -> usize {
        // The next token's start is known; only the last token has to be counted.
        match self.doc.tokens.get(self.i + 1) {
            Some(next) => next.idx as usize - usize::from(self.data.space_after),
            None => self.idx() + self.text().chars().count(),
        }
    }

    /// Byte range in the text.
    pub fn byte_range(&self) -> Range<usize> {
        self.data.start as usize..self.data.end as usize
    }

    /// Whether one U+0020 follows, which belongs to no token.
    pub fn space_after(&self) -> bool {
        self.data.space_after
    }

    /// The fine-grained tag (Penn Treebank with OntoNotes' additions): `NN`.
    pub fn tag(&self) -> &'d str {
        self.doc.model.tag(self.data.tag)
    }

    /// The universal part of speech: `NOUN`.
    pub fn pos(&self) -> &'d str {
        self.data.pos.map_or("", |pos| self.doc.model.rule_value(pos))
    }

    /// Morphological features in the order of Universal Dependencies: `Number=Sing`.
    pub fn morph(&self) -> &'d str {
        self.data.morph.map_or("", |morph| self.doc.model.rule_value(morph))
    }

    /// The relation to the head (ClearNLP labels): `nsubj`; `ROOT` for a root.
    pub fn dep(&self) -> &'d str {
        self.doc.model.dep(self.data.dep)
    }

    /// Index of the head; the token's own index for a root.
    pub fn head(&self) -> usize {
        self.data.head as usize
    }

    /// Index of the first token of the subtree.
    pub fn left_edge(&self) -> usize {
        self.data.left_edge as usize
    }

    /// Index of the last token of the subtree.
    pub fn right_edge(&self) -> usize {
        self.data.right_edge as usize
    }

    /// Whether a sentence begins here.
    pub fn is_sentence_start(&self) -> bool {
        self.data.sentence_start
    }

    /// The normalised form, lower-cased and with variants folded ("n't" → "not").
    pub fn norm(&self) -> Cow<'d, str> {
        self.doc.model.norm(self.text(), self.data.norm)
    }

    /// The shape: `Xxxxx` for "Brown".
    pub fn shape(&self) -> String {
        lexeme::shape(self.text())
    }

    /// The lemma, as spaCy gives it with the model's rule lemmatizer: "dogs" → "dog".
    pub fn lemma(&self) -> Cow<'d, str> {
        match self.data.lemma {
            Some(lemma) => Cow::Borrowed(self.doc.model.rule_value(lemma)),
            None => self.doc.model.lemma(self.text(), self.pos(), self.morph()),
        }
    }
}
