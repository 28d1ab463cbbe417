//! Exceptions: strings that are cut in a way of their own, some with a norm of their own.

use std::collections::HashMap;

use super::{FILE, TokenSpan};
use crate::error::{Result, bad_model, unsupported};
use crate::msgpack::Value;

/// spaCy's ids of the two attributes that an exception may state.
const ORTH: u64 = 65;
const NORM: u64 = 67;

/// Index of a norm among the exceptions' norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NormId(pub(crate) u16);

/// One token of an exception.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Length in bytes.
    pub(super) len: usize,
    pub(super) norm: Option<NormId>,
}

/// A node of the trie over token texts.
#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, usize>,
    terminal: bool,
}

#[derive(Debug)]
pub(super) struct SpecialCases {
    cases: HashMap<Box<str>, Vec<Part>>,
    norms: Vec<Box<str>>,
    longest_key: usize,
    /// Token sequences that exceptions fall into when they aren't met whole; root first.
    trie: Vec<Node>,
    /// Whether any sequence begins with this byte: rules most tokens out.
    first_bytes: [bool; 256],
}

impl Default for SpecialCases {
    fn default() -> Self {
        Self {
            cases: HashMap::new(),
            norms: Vec::new(),
            longest_key: 0,
            trie: vec![Node::default()],
            first_bytes: [false; 256],
        }
    }
}

impl SpecialCases {
    /// Reads `exceptions`: a map from the string to its tokens' attributes.
    pub(super) fn read(exceptions: &[(Value<'_>, Value<'_>)]) -> Result<Self> {
        let mut out = Self::default();
        let mut ids: HashMap<&str, NormId> = HashMap::new();
        for (key, parts) in exceptions {
            let bad = |what: &str| bad_model(FILE, format!("exception {key:?}: {what}"));
            let key = key.as_str().ok_or_else(|| bad("it is not a string"))?;
            let mut joined = String::new();
            let mut list = Vec::new();
            for part in parts.as_array().unwrap_or_default() {
                let (mut orth, mut norm) = (None, None);
                for (attr, value) in part.as_map().unwrap_or_default() {
                    match attr.as_u64() {
                        Some(ORTH) => orth = value.as_str(),
                        Some(NORM) => norm = value.as_str().filter(|n| !n.is_empty()),
                        _ => {
                            return Err(unsupported(
                                "exceptions that state ORTH and NORM only",
                                format!("attribute {attr:?} for {key:?}"),
                            ));
                        }
                    }
                }
                let orth = orth.filter(|o| !o.is_empty()).ok_or_else(|| bad("a token has no ORTH"))?;
                let norm = match norm {
                    None => None,
                    Some(norm) => Some(match ids.get(norm) {
                        Some(&id) => id,
                        None => {
                            let id = u16::try_from(out.norms.len()).map_err(|_| bad("too many norms"))?;
                            out.norms.push(norm.into());
                            ids.insert(norm, NormId(id));
                            NormId(id)
                        }
                    }),
                };
                joined.push_str(orth);
                list.push(Part { len: orth.len(), norm });
            }
            if joined != key {
                return Err(bad(&format!("its tokens join to {joined:?}")));
            }
            out.longest_key = out.longest_key.max(key.len());
            out.cases.insert(key.into(), list);
        }
        Ok(out)
    }

    /// Adds the sequences to look for among tokens.
    pub(super) fn with_sequences(mut self, sequences: &[Vec<String>]) -> Self {
        for sequence in sequences {
            let mut node = 0;
            for token in sequence {
                node = match self.trie[node].children.get(token.as_str()) {
                    Some(&child) => child,
                    None => {
                        let child = self.trie.len();
                        self.trie.push(Node::default());
                        self.trie[node].children.insert(token.as_str().into(), child);
                        child
                    }
                };
            }
            self.trie[node].terminal = true;
            if let Some(&b) = sequence.first().and_then(|t| t.as_bytes().first()) {
                self.first_bytes[usize::from(b)] = true;
            }
        }
        self
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.cases.keys().map(AsRef::as_ref)
    }

    pub(super) fn norm(&self, id: NormId) -> &str {
        self.norms.get(usize::from(id.0)).map_or("", AsRef::as_ref)
    }

    /// The tokens of an exception.
    pub(super) fn get(&self, text: &str) -> Option<&[Part]> {
        if text.is_empty() || text.len() > self.longest_key {
            return None;
        }
        self.cases.get(text).map(Vec::as_slice)
    }

    /// Finds exceptions that are spread over several tokens and cuts them their own way.
    pub(super) fn rejoin(&self, text: &str, tokens: &mut Vec<TokenSpan>) {
        let mut found = Vec::new();
        for i in 0..tokens.len() {
            let first = text.as_bytes()[tokens[i].start as usize];
            if !self.first_bytes[usize::from(first)] {
                continue;
            }
            let mut node = 0;
            for (j, token) in tokens.iter().enumerate().skip(i) {
                match self.trie[node].children.get(&text[token.start as usize..token.end as usize]) {
                    Some(&child) => node = child,
                    None => break,
                }
                if self.trie[node].terminal {
                    found.push((i, j + 1));
                }
            }
        }
        if found.is_empty() {
            return;
        }
        // Longest first, then leftmost; what overlaps an earlier one is dropped, but its
        // tokens count as taken all the same.
        found.sort_unstable_by_key(|&(start, end)| (std::cmp::Reverse(end - start), start));
        let mut taken = vec![false; tokens.len()];
        found.retain(|&(start, end)| {
            let free = !taken[start] && !taken[end - 1];
            taken[start..end].fill(true);
            free
        });
        found.sort_unstable();

        let mut out = Vec::with_capacity(tokens.len());
        let mut at = 0;
        for (start, end) in found {
            out.extend_from_slice(&tokens[at..start]);
            at = end;
            let (first, last) = (tokens[start], tokens[end - 1]);
            // Tokens with spaces between them (": )") are found too but are no exception.
            let Some(parts) = self.get(&text[first.start as usize..last.end as usize]) else {
                out.extend_from_slice(&tokens[start..end]);
                continue;
            };
            let mut from = first.start;
            for part in parts {
                let to = from + part.len as u32;
                out.push(TokenSpan { start: from, end: to, norm: part.norm, space_after: false });
                from = to;
            }
            if let Some(token) = out.last_mut() {
                token.space_after = last.space_after;
            }
        }
        out.extend_from_slice(&tokens[at..]);
        *tokens = out;
    }
}
