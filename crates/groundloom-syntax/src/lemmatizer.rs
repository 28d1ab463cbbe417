//! Lemmas by suffix rules, an index of known words and exceptions.
//!
//! `spacy/pipeline/lemmatizer.py` (mode `rule`) and `spacy/lang/en/lemmatizer.py` 3.8; the
//! tables come from the model and go back to WordNet.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::error::{Result, bad_model};
use crate::msgpack::{self, Value};
use crate::strings;
use crate::unicode;

/// Parts of speech that have tables.
const TABLE_POS: [&str; 5] = ["adj", "adv", "noun", "punct", "verb"];

/// A sorted list of words, looked up without being copied.
#[derive(Debug, Default)]
pub(crate) struct WordList {
    /// Words in byte order, parted by newlines.
    lines: Cow<'static, [u8]>,
    /// Where each word begins.
    starts: Vec<u32>,
}

impl WordList {
    /// Takes newline-separated words, which must be sorted by bytes.
    pub(crate) fn from_lines(name: &str, lines: Cow<'static, [u8]>) -> Result<Self> {
        if u32::try_from(lines.len()).is_err() {
            return Err(bad_model(name, "the word list is larger than 4 GiB"));
        }
        let mut starts = Vec::new();
        let mut at = 0;
        let mut last: &[u8] = b"";
        for word in lines.split(|&b| b == b'\n') {
            if word < last {
                return Err(bad_model(name, "the words are not sorted"));
            }
            last = word;
            starts.push(at as u32);
            at += word.len() + 1;
        }
        Ok(Self { lines, starts })
    }

    fn contains(&self, word: &str) -> bool {
        let nth = |i: usize| {
            let start = self.starts[i] as usize;
            let end = self.starts.get(i + 1).map_or(self.lines.len(), |&next| next as usize - 1);
            &self.lines[start..end]
        };
        let (mut low, mut high) = (0, self.starts.len());
        while low < high {
            let middle = low.midpoint(high);
            match nth(middle).cmp(word.as_bytes()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return true,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        false
    }
}

/// The tables of one part of speech.
#[derive(Debug, Default)]
struct PosTables {
    /// (ending, replacement), tried in order.
    rules: Vec<(Box<str>, Box<str>)>,
    exceptions: HashMap<Box<str>, Vec<Box<str>>>,
    index: WordList,
}

/// The lemmatizer's tables by lower-cased part of speech.
#[derive(Debug, Default)]
pub(crate) struct LemmaTables(HashMap<String, PosTables>);

impl LemmaTables {
    /// Reads rules and exceptions keyed by the part of speech's name.
    pub(crate) fn read(rules: &[u8], exceptions: &[u8], indexes: HashMap<String, WordList>) -> Result<Self> {
        let rules = msgpack::read(rules, "lemma_rules")?;
        let exceptions = msgpack::read(exceptions, "lemma_exc")?;
        Self::from_values(&rules, &exceptions, indexes)
    }

    /// The part of speech that a table key stands for: its name, or spaCy's id of it.
    pub(crate) fn pos_of_key(key: &Value<'_>) -> Option<&'static str> {
        let named = |name: &&&str| match key {
            Value::Str(s) => *s == **name,
            // "punct" is one of the reserved names and has its small id.
            _ => {
                key.as_u64().is_some_and(|id| id == strings::hash(name.as_bytes()) || (id == 445 && **name == "punct"))
            }
        };
        TABLE_POS.iter().find(named).copied()
    }

    /// As [`Self::read`], from decoded values.
    pub(crate) fn from_values(
        rules: &Value<'_>,
        exceptions: &Value<'_>,
        indexes: HashMap<String, WordList>,
    ) -> Result<Self> {
        let mut tables: HashMap<String, PosTables> = HashMap::new();
        for (pos, index) in indexes {
            tables.entry(pos).or_default().index = index;
        }
        for (key, list) in rules.as_map().unwrap_or_default() {
            let Some(pos) = Self::pos_of_key(key) else { continue };
            let bad = || bad_model("lemma_rules", "a rule is not a pair of strings");
            for rule in list.as_array().unwrap_or_default() {
                let Some([old, new]) = rule.as_array() else { return Err(bad()) };
                let pair = old.as_str().zip(new.as_str()).ok_or_else(bad)?;
                tables.entry(pos.to_owned()).or_default().rules.push((pair.0.into(), pair.1.into()));
            }
        }
        for (key, map) in exceptions.as_map().unwrap_or_default() {
            let Some(pos) = Self::pos_of_key(key) else { continue };
            let out = &mut tables.entry(pos.to_owned()).or_default().exceptions;
            for (form, lemmas) in map.as_map().unwrap_or_default() {
                let lemmas = lemmas.as_array().unwrap_or_default();
                let lemmas = lemmas.iter().filter_map(Value::as_str).map(Into::into).collect();
                if let Some(form) = form.as_str() {
                    out.insert(form.into(), lemmas);
                }
            }
        }
        Ok(Self(tables))
    }

    /// The lemma of a word with a part of speech (`NOUN`) and features (`Number=Plur|…`).
    pub(crate) fn lemma<'t>(&self, text: &'t str, pos: &str, morph: &str) -> Cow<'t, str> {
        let pos = pos.to_ascii_lowercase();
        if matches!(pos.as_str(), "" | "eol" | "space") || is_base_form(&pos, morph) {
            return Cow::Owned(unicode::lower(text));
        }
        let Some(tables) = self.0.get(&pos) else {
            return if pos == "propn" { Cow::Borrowed(text) } else { Cow::Owned(unicode::lower(text)) };
        };
        let lower = unicode::lower(text);
        // Forms that are words, in the order of preference; forms that may be words.
        let mut forms: Vec<String> = Vec::new();
        let mut unknown: Option<String> = None;
        for (old, new) in &tables.rules {
            let Some(stem) = lower.strip_suffix(&**old) else { continue };
            let form = [stem, new].concat();
            if form.is_empty() {
                continue;
            }
            let known = tables.index.contains(&form);
            if known {
                forms.insert(0, form);
            } else if !form.chars().all(unicode::is_alpha) {
                forms.push(form);
            } else if unknown.is_none() {
                unknown = Some(form);
            }
        }
        for form in tables.exceptions.get(lower.as_str()).into_iter().flatten() {
            if !forms.iter().any(|f| **f == **form) {
                forms.insert(0, form.to_string());
            }
        }
        match forms.into_iter().next().or(unknown) {
            Some(form) => Cow::Owned(form),
            None => Cow::Borrowed(text),
        }
    }
}

/// Whether the features say that the word is not inflected.
fn is_base_form(pos: &str, morph: &str) -> bool {
    let has = |feature: &str| morph.split('|').any(|f| f == feature);
    let numbered = morph.split('|').any(|f| f.starts_with("Number="));
    pos == "noun" && has("Number=Sing")
        || pos == "verb" && has("VerbForm=Fin") && has("Tense=Pres") && !numbered
        || has("VerbForm=Inf")
        || has("VerbForm=None")
        || has("Degree=Pos")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn word_list_finds_members_only() {
        let list = WordList::from_lines("t", Cow::Borrowed(b"a\nab\nb\nzebra")).unwrap();
        for word in ["a", "ab", "b", "zebra"] {
            assert!(list.contains(word), "{word}");
        }
        for word in ["", "aa", "c", "zebras", "Z"] {
            assert!(!list.contains(word), "{word}");
        }
        assert!(WordList::from_lines("t", Cow::Borrowed(b"b\na")).is_err());
    }
}
