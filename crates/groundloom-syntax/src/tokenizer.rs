//! spaCy's tokenizer: white space, affixes, exceptions.
//!
//! Follows `spacy/tokenizer.pyx` 3.8. Three passes: the text is cut where white space
//! begins and ends; each piece loses prefixes and suffixes until an exception, a URL or
//! nothing is left, and what remains is cut at infixes; last, exceptions that those cuts
//! pulled apart ("C++", ":-)") are found among the tokens and put together again.
//! Offsets here are bytes; [`crate::Doc`] counts characters.

mod charset;
mod patterns;
mod special_cases;
mod url;

use std::collections::HashMap;

use crate::error::{Result, bad_model, unsupported};
use crate::msgpack::{self, Value};
use crate::unicode;
use patterns::{Infixes, Prefixes, Suffixes};
use special_cases::SpecialCases;
use url::UrlPattern;

pub(crate) use patterns::WholeMatch;
pub(crate) use special_cases::NormId;

/// The tokenizer file's name in messages.
const FILE: &str = "tokenizer";
/// Pieces that one cache remembers before it starts anew.
const CACHE_SPANS: usize = 1 << 15;
/// Longer spans are seldom seen twice.
const CACHE_SPAN_BYTES: usize = 64;

/// A token as a byte range of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenSpan {
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// The norm that an exception gives the token.
    pub(crate) norm: Option<NormId>,
    /// Whether one U+0020 follows, which then belongs to no token.
    pub(crate) space_after: bool,
}

/// A part of a span between white space: where it ends, relative to the span's start.
#[derive(Debug, Clone, Copy)]
struct Cut {
    end: u32,
    norm: Option<NormId>,
}

/// Remembers how spans were cut. Owned by one worker; bounded.
#[derive(Debug, Default)]
pub(crate) struct SpanCache {
    spans: HashMap<Box<str>, (u32, u32)>,
    cuts: Vec<Cut>,
}

#[derive(Debug)]
pub(crate) struct Tokenizer {
    prefixes: Prefixes,
    suffixes: Suffixes,
    infixes: Infixes,
    url: UrlPattern,
    special_cases: SpecialCases,
}

impl Tokenizer {
    /// Reads spaCy's `tokenizer` file.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let file = msgpack::read(bytes, FILE)?;
        let pattern = |key: &str| {
            file.get(key)
                .and_then(Value::as_str)
                .ok_or_else(|| bad_model(FILE, format!("there is no pattern under `{key}`")))
        };
        if !matches!(file.get("token_match"), None | Some(Value::Nil)) {
            return Err(unsupported("no `token_match` in the tokenizer", "one"));
        }
        if file.get("faster_heuristics").and_then(Value::as_bool) == Some(false) {
            return Err(unsupported("`faster_heuristics` in the tokenizer", "it is off"));
        }
        let mut tokenizer = Self {
            prefixes: Prefixes::compile(pattern("prefix_search")?)?,
            suffixes: Suffixes::compile(pattern("suffix_search")?)?,
            infixes: Infixes::compile(pattern("infix_finditer")?)?,
            url: UrlPattern::compile(pattern("url_match")?)?,
            special_cases: SpecialCases::default(),
        };
        let exceptions = file
            .get("exceptions")
            .and_then(Value::as_map)
            .ok_or_else(|| bad_model(FILE, "there is no map under `exceptions`"))?;
        let cases = SpecialCases::read(exceptions)?;
        // An exception that contains nothing to cut at is met whole or not at all.
        let mut sequences: Vec<Vec<String>> = Vec::new();
        for key in cases.keys() {
            let apart = key.contains(' ')
                || tokenizer.prefixes.match_len(key) > 0
                || tokenizer.suffixes.match_len(key) > 0
                || tokenizer.infixes.find(key, 0).is_some();
            if apart {
                sequences.push(tokenizer.tokens_without_exceptions(key));
            }
        }
        tokenizer.special_cases = cases.with_sequences(&sequences);
        Ok(tokenizer)
    }

    /// The string that a norm id stands for.
    pub(crate) fn norm(&self, id: NormId) -> &str {
        self.special_cases.norm(id)
    }

    /// Tokenizes `text` into `tokens`, which is cleared first.
    pub(crate) fn tokenize(&self, text: &str, cache: &mut SpanCache, tokens: &mut Vec<TokenSpan>) {
        tokens.clear();
        self.split_on_space(text, tokens, |span, cuts| {
            if let Some(&(from, to)) = cache.spans.get(span) {
                cuts.extend_from_slice(&cache.cuts[from as usize..to as usize]);
                return;
            }
            self.cut_with_exceptions(span, cuts);
            if span.len() <= CACHE_SPAN_BYTES {
                if cache.spans.len() >= CACHE_SPANS {
                    cache.spans.clear();
                    cache.cuts.clear();
                }
                let from = cache.cuts.len() as u32;
                cache.cuts.extend_from_slice(cuts);
                cache.spans.insert(span.into(), (from, cache.cuts.len() as u32));
            }
        });
        self.special_cases.rejoin(text, tokens);
    }

    fn tokens_without_exceptions(&self, text: &str) -> Vec<String> {
        let mut tokens = Vec::new();
        self.split_on_space(text, &mut tokens, |span, cuts| self.cut_affixes(span, false, cuts));
        tokens.iter().map(|t| text[t.start as usize..t.end as usize].to_owned()).collect()
    }

    /// Cuts `text` where white space begins and ends and has `cut` cut the pieces.
    ///
    /// A single U+0020 that ends a piece is the `space_after` of the token before it;
    /// the rest of a white space run is one token.
    fn split_on_space(&self, text: &str, tokens: &mut Vec<TokenSpan>, mut cut: impl FnMut(&str, &mut Vec<Cut>)) {
        let Some(first) = text.chars().next() else { return };
        let mut in_space = unicode::is_space(first);
        let mut start = 0;
        let mut cuts = Vec::new();
        let mut emit = |from: usize, to: usize, tokens: &mut Vec<TokenSpan>| {
            cuts.clear();
            cut(&text[from..to], &mut cuts);
            let mut at = from as u32;
            for c in &cuts {
                let end = from as u32 + c.end;
                tokens.push(TokenSpan { start: at, end, norm: c.norm, space_after: false });
                at = end;
            }
        };
        for (i, c) in text.char_indices() {
            if unicode::is_space(c) == in_space {
                continue;
            }
            if start < i {
                emit(start, i, tokens);
            }
            start = i;
            if c == ' ' {
                if let Some(last) = tokens.last_mut() {
                    last.space_after = true;
                }
                start = i + 1;
            }
            in_space = !in_space;
        }
        if start < text.len() {
            emit(start, text.len(), tokens);
        }
    }

    fn cut_with_exceptions(&self, span: &str, cuts: &mut Vec<Cut>) {
        if !self.cut_special(span, 0, cuts) {
            self.cut_affixes(span, true, cuts);
        }
    }

    /// Cuts an exception into its tokens; false if `piece` isn't one.
    fn cut_special(&self, piece: &str, offset: usize, cuts: &mut Vec<Cut>) -> bool {
        let Some(parts) = self.special_cases.get(piece) else { return false };
        let mut end = offset;
        for part in parts {
            end += part.len;
            cuts.push(Cut { end: end as u32, norm: part.norm });
        }
        true
    }

    /// Strips prefixes and suffixes from both ends, then handles what is left.
    fn cut_affixes(&self, span: &str, exceptions: bool, cuts: &mut Vec<Cut>) {
        let special = |s: &str| exceptions && self.special_cases.get(s).is_some();
        let (mut from, mut to) = (0, span.len());
        // Ends of the suffixes, outermost first.
        let mut suffix_ends = Vec::new();
        let mut last_len = 0;
        while from < to && to - from != last_len {
            let s = &span[from..to];
            if special(s) {
                break;
            }
            last_len = s.len();
            let prefix = self.prefixes.match_len(s);
            if prefix > 0 && special(&s[prefix..]) {
                from += prefix;
                cuts.push(Cut { end: from as u32, norm: None });
                break;
            }
            // The suffix patterns don't see the prefix, not even to look behind.
            let suffix = self.suffixes.match_len(&s[prefix..]);
            if suffix > 0 && special(&s[..s.len() - suffix]) {
                suffix_ends.push(to);
                to -= suffix;
                break;
            }
            if prefix > 0 {
                from += prefix;
                cuts.push(Cut { end: from as u32, norm: None });
            }
            if suffix > 0 {
                suffix_ends.push(to);
                to -= suffix;
            }
        }
        if from < to {
            let s = &span[from..to];
            if exceptions && self.cut_special(s, from, cuts) {
            } else if self.url.is_match(s) {
                cuts.push(Cut { end: to as u32, norm: None });
            } else {
                self.cut_infixes(s, from, cuts);
            }
        }
        for &end in suffix_ends.iter().rev() {
            cuts.push(Cut { end: end as u32, norm: None });
        }
    }

    fn cut_infixes(&self, s: &str, offset: usize, cuts: &mut Vec<Cut>) {
        let mut push = |end: usize| cuts.push(Cut { end: (offset + end) as u32, norm: None });
        let (mut emitted, mut at) = (0, 0);
        while let Some((start, end)) = self.infixes.find(s, at) {
            at = end;
            // An infix at the very beginning is part of the token that it begins.
            if start == 0 {
                continue;
            }
            if start > emitted {
                push(start);
            }
            push(end);
            emitted = end;
        }
        if emitted < s.len() {
            push(s.len());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// The model's own patterns in a general engine, the oracle for what is written by hand.
    struct Engine {
        prefix: fancy_regex::Regex,
        suffix: fancy_regex::Regex,
        infix: fancy_regex::Regex,
        url: fancy_regex::Regex,
    }

    fn model() -> (Tokenizer, Engine) {
        let files = crate::model::ModelFiles::embedded().unwrap();
        let value = msgpack::read(&files.tokenizer, FILE).unwrap();
        // Python's `\w` has no combining marks and no punctuation but the underscore.
        let regex = |key: &str| {
            let pattern = value.get(key).and_then(Value::as_str).unwrap();
            let pattern = pattern.trim_start_matches("(?u)").replace(r"[\w\+\-\.]", r"[\p{L}\p{N}_+\-.]");
            fancy_regex::Regex::new(&pattern).unwrap()
        };
        let engine = Engine {
            prefix: regex("prefix_search"),
            suffix: regex("suffix_search"),
            infix: regex("infix_finditer"),
            url: regex("url_match"),
        };
        (Tokenizer::read(&files.tokenizer).unwrap(), engine)
    }

    fn assert_agrees(tokenizer: &Tokenizer, engine: &Engine, span: &str) {
        let len = |regex: &fancy_regex::Regex| regex.find(span).unwrap().map_or(0, |m| m.end() - m.start());
        assert_eq!(tokenizer.prefixes.match_len(span), len(&engine.prefix), "prefix of {span:?}");
        assert_eq!(tokenizer.suffixes.match_len(span), len(&engine.suffix), "suffix of {span:?}");
        assert_eq!(tokenizer.url.is_match(span), engine.url.is_match(span).unwrap(), "URL {span:?}");
        let expected: Vec<_> = engine.infix.find_iter(span).map(|m| m.unwrap()).map(|m| (m.start(), m.end())).collect();
        let mut found = Vec::new();
        while let Some(at) = tokenizer.infixes.find(span, found.last().map_or(0, |&(_, end)| end)) {
            found.push(at);
        }
        assert_eq!(found, expected, "infixes of {span:?}");
    }

    #[test]
    fn patterns_agree_with_a_general_engine() {
        let (tokenizer, engine) = model();
        let pieces = prop_oneof![
            3 => "[a-zA-Z]{1,5}".boxed(),
            2 => "[0-9]{1,3}".boxed(),
            3 => "[!-/:-@\\[-`{-~]".boxed(),
            1 => proptest::sample::select(vec![
                "...", "…", "US$", "km²", "°C.", "'s", "’s", "--", "———", "://", "www.", ".com", ".co.uk", "me@", "10.0.0.1",
                "172.16.", "223.", "é", "É", "中", "ю.Ю", "👍", "\u{fe0f}", "\u{301}", "тб", "كم", "№", "٣", "²", "«", "”",
            ]).prop_map(str::to_owned).boxed(),
            1 => any::<char>().prop_filter("no space", |&c| !unicode::is_space(c)).prop_map(String::from).boxed(),
        ];
        let spans = proptest::collection::vec(pieces, 1..7).prop_map(|pieces| pieces.concat());
        let config = ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(span in spans)| {
            assert_agrees(&tokenizer, &engine, &span);
        });
        // The word characters of the engine are those of a newer Unicode version.
        for span in [
            "http://1.2.3.4:80/x?y",
            "a.b.c.de",
            "10.1.2.3",
            "1.2.3.٣",
            "12.٣.4.5",
            "x_y.co",
            "a--b",
            "Mr.X",
            "5km.",
            "é.É",
        ] {
            assert_agrees(&tokenizer, &engine, span);
        }
    }
}
