//! A parse as one JSON value: what the `parse` command prints, and what `scripts/compare_with_spacy.py` compares with spaCy's own.

use serde_json::{Value, json};

use crate::Doc;

impl Doc {
    /// Text, tokens, noun chunks and sentences, under spaCy's names. Offsets are characters, ends exclusive; `head`, `left_edge` and `right_edge` are token numbers.
    pub fn record(&self) -> Value {
        let tokens: Vec<Value> = self
            .tokens()
            .map(|t| {
                json!({
                    "i": t.i(), "text": t.text(), "idx": t.idx(),
                    "ws": if t.space_after() { " " } else { "" },
                    "norm": t.norm(), "shape": t.shape(), "lemma": t.lemma(),
                    "tag": t.tag(), "pos": t.pos(), "morph": t.morph(), "dep": t.dep(), "head": t.head(),
                    "sent_start": if t.is_sentence_start() { 1 } else { -1 },
                    "left_edge": t.left_edge(), "right_edge": t.right_edge(),
                })
            })
            .collect();
        let sentences: Vec<[usize; 2]> = self.sentences().iter().map(|s| [s.start, s.end]).collect();
        json!({ "text": self.text(), "tokens": tokens, "noun_chunks": self.chunk_values(), "sents": sentences })
    }

    /// Text and noun chunks only.
    pub fn chunk_record(&self) -> Value {
        json!({ "text": self.text(), "noun_chunks": self.chunk_values() })
    }

    fn chunk_values(&self) -> Vec<Value> {
        self.noun_chunks()
            .iter()
            .map(|c| {
                json!({
                    "start": c.start_token, "end": c.end_token, "start_char": c.start_char,
                    "end_char": c.end_char, "text": c.text(self), "root": c.root,
                })
            })
            .collect()
    }
}
