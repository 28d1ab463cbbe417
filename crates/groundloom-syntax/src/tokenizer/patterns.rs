//! The regular expressions of a tokenizer file, as flat lists of alternatives.
//!
//! spaCy builds its affix patterns by joining many small ones with `|`. Each is a short
//! run of character sets, anchored at one end, with at most a look at the neighbours. So
//! a pattern is expanded here into alternatives of that form, found by their first or
//! last character, instead of being given to a general engine: one that knows
//! lookbehind spends microseconds where this spends nanoseconds. A pattern that isn't of
//! this form is refused when the model is loaded.

use std::sync::Arc;

use super::charset::CharSet;
use crate::error::{Result, SyntaxError, unsupported};

/// A character set repeated between `min` and `max` times.
#[derive(Debug, Clone)]
struct Atom {
    set: Arc<CharSet>,
    min: usize,
    max: usize,
}

/// One alternative: `^? (?<=behind)? atoms (?=ahead)? $?`.
#[derive(Debug, Clone, Default)]
struct Alternative {
    start: bool,
    behind: Vec<Arc<CharSet>>,
    atoms: Vec<Atom>,
    ahead: Option<(Arc<CharSet>, bool)>,
    end: bool,
}

impl Alternative {
    /// The end of the preferred match that starts at byte `at`.
    fn match_at(&self, text: &str, at: usize) -> Option<usize> {
        if self.start && at != 0 {
            return None;
        }
        self.looks_behind(text, at).then(|| self.forward(text, at, &self.atoms)).flatten()
    }

    fn looks_behind(&self, text: &str, at: usize) -> bool {
        let mut before = text[..at].chars().rev();
        self.behind.iter().rev().all(|set| before.next().is_some_and(|c| set.contains(c)))
    }

    /// Greedy, giving back what later atoms need, as `re` does.
    fn forward(&self, text: &str, at: usize, atoms: &[Atom]) -> Option<usize> {
        let Some((atom, rest)) = atoms.split_first() else {
            let next = text[at..].chars().next();
            let ahead = match &self.ahead {
                Some((set, wanted)) => next.is_some_and(|c| set.contains(c)) == *wanted,
                None => true,
            };
            return (ahead && !(self.end && next.is_some())).then_some(at);
        };
        let mut end = at;
        let mut count = 0;
        for c in text[at..].chars().take(atom.max) {
            if !atom.set.contains(c) {
                break;
            }
            end += c.len_utf8();
            count += 1;
        }
        while count >= atom.min {
            if let Some(found) = self.forward(text, end, rest) {
                return Some(found);
            }
            if count == 0 {
                break;
            }
            end -= text[at..end].chars().next_back().map_or(0, char::len_utf8);
            count -= 1;
        }
        None
    }

    /// The leftmost start of a match that ends at byte `end`.
    fn backward(&self, text: &str, end: usize, atoms: &[Atom]) -> Option<usize> {
        let Some((atom, rest)) = atoms.split_last() else {
            return self.looks_behind(text, end).then_some(end);
        };
        let mut start = end;
        let mut count = 0;
        for c in text[..end].chars().rev().take(atom.max) {
            if !atom.set.contains(c) {
                break;
            }
            start -= c.len_utf8();
            count += 1;
        }
        while count >= atom.min {
            if let Some(found) = self.backward(text, start, rest) {
                return Some(found);
            }
            if count == 0 {
                break;
            }
            start += text[start..end].chars().next().map_or(0, char::len_utf8);
            count -= 1;
        }
        None
    }
}

/// Alternatives in order, indexed by the character that each must contain at its edge.
#[derive(Debug, Default)]
struct Indexed {
    alternatives: Vec<Alternative>,
    ascii: Vec<Vec<u16>>,
    beyond: Vec<u16>,
}

impl Indexed {
    fn new(alternatives: Vec<Alternative>, what: &str, edge: impl Fn(&[Atom]) -> Option<&Atom>) -> Result<Self> {
        let mut ascii = vec![Vec::new(); 128];
        let mut beyond = Vec::new();
        for (i, alternative) in alternatives.iter().enumerate() {
            let i = u16::try_from(i).map_err(|_| refused(what, "more than 65535 alternatives"))?;
            let Some(atom) = edge(&alternative.atoms).filter(|a| a.min > 0) else {
                return Err(refused(what, "an alternative that can match nothing"));
            };
            for (c, list) in (0..128u8).zip(&mut ascii) {
                if atom.set.contains(char::from(c)) {
                    list.push(i);
                }
            }
            if atom.set.reaches_beyond_ascii() {
                beyond.push(i);
            }
        }
        Ok(Self { alternatives, ascii, beyond })
    }

    fn candidates(&self, c: char) -> impl Iterator<Item = &Alternative> {
        let list = if c.is_ascii() { &self.ascii[c as usize] } else { &self.beyond };
        list.iter().map(|&i| &self.alternatives[usize::from(i)])
    }
}

/// What a token may begin with; the first alternative that matches decides.
#[derive(Debug)]
pub(super) struct Prefixes(Indexed);

impl Prefixes {
    pub(super) fn compile(pattern: &str) -> Result<Self> {
        let what = "prefix_search";
        let alternatives = parse(pattern, what)?;
        if alternatives.iter().any(|a| !a.start || !a.behind.is_empty()) {
            return Err(refused(what, "an alternative that does not begin with `^`"));
        }
        Indexed::new(alternatives, what, <[Atom]>::first).map(Self)
    }

    /// Length in bytes of the prefix of `text`, 0 if it has none.
    pub(super) fn match_len(&self, text: &str) -> usize {
        let Some(c) = text.chars().next() else { return 0 };
        self.0.candidates(c).find_map(|a| a.match_at(text, 0)).unwrap_or(0)
    }
}

/// What a token may end with; the longest match decides, since a search goes left to right.
#[derive(Debug)]
pub(super) struct Suffixes(Indexed);

impl Suffixes {
    pub(super) fn compile(pattern: &str) -> Result<Self> {
        let what = "suffix_search";
        let alternatives = parse(pattern, what)?;
        for a in &alternatives {
            if !a.end || a.start || a.ahead.is_some() {
                return Err(refused(what, "an alternative that does not end with `$`"));
            }
            if a.atoms.iter().filter(|a| a.min != a.max).count() > 1 {
                return Err(refused(what, "an alternative with two repetitions"));
            }
        }
        Indexed::new(alternatives, what, <[Atom]>::last).map(Self)
    }

    /// Length in bytes of the suffix of `text`, 0 if it has none.
    pub(super) fn match_len(&self, text: &str) -> usize {
        let Some(c) = text.chars().next_back() else { return 0 };
        let start = self.0.candidates(c).filter_map(|a| a.backward(text, text.len(), &a.atoms)).min();
        start.map_or(0, |start| text.len() - start)
    }
}

/// Where a token is cut inside.
#[derive(Debug)]
pub(super) struct Infixes(Indexed);

impl Infixes {
    pub(super) fn compile(pattern: &str) -> Result<Self> {
        let what = "infix_finditer";
        Indexed::new(parse(pattern, what)?, what, <[Atom]>::first).map(Self)
    }

    /// The first match at or after byte `from`, as a byte range.
    pub(super) fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        text[from..].char_indices().find_map(|(i, c)| {
            let at = from + i;
            self.0.candidates(c).find_map(|a| a.match_at(text, at)).map(|end| (at, end))
        })
    }
}

/// A pattern `^…$` that must match a whole string, as token rules use.
#[derive(Debug)]
pub(crate) struct WholeMatch(Vec<Alternative>);

impl WholeMatch {
    pub(crate) fn compile(pattern: &str) -> Result<Self> {
        let what = "REGEX in attribute_ruler";
        let alternatives = parse(pattern, what)?;
        if alternatives.iter().any(|a| !a.start || !a.end) {
            return Err(refused(what, "a pattern that is not of the form `^…$`"));
        }
        Ok(Self(alternatives))
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.0.iter().any(|a| a.match_at(text, 0).is_some())
    }
}

/// Parses the inside of a bracket expression, without the brackets.
pub(super) fn parse_class(body: &str, what: &str) -> Result<CharSet> {
    let mut parser = Parser { rest: body, what };
    let negated = parser.eat("^");
    let mut ranges = Vec::new();
    while !parser.rest.is_empty() {
        let first = parser.class_member()?;
        let is_range = parser.rest.starts_with('-') && parser.rest.len() > 1;
        let last = if is_range {
            parser.eat("-");
            parser.class_member()?
        } else {
            first
        };
        if first > last {
            return Err(parser.refused("a range whose end comes before its start"));
        }
        ranges.push((first, last));
    }
    Ok(CharSet::from_ranges(ranges, negated))
}

fn parse(pattern: &str, what: &str) -> Result<Vec<Alternative>> {
    let mut parser = Parser { rest: pattern, what };
    parser.eat("(?u)");
    let alternatives = parser.alternation()?;
    if !parser.rest.is_empty() {
        return Err(parser.refused("an unpaired `)`"));
    }
    alternatives.into_iter().map(|items| assemble(items, what)).collect()
}

fn assemble(items: Vec<Item>, what: &str) -> Result<Alternative> {
    let mut out = Alternative::default();
    for item in items {
        let body_done = out.ahead.is_some() || out.end;
        match item {
            Item::Start if out.behind.is_empty() && out.atoms.is_empty() && !body_done => out.start = true,
            Item::Behind(sets) if out.behind.is_empty() && out.atoms.is_empty() && !body_done => {
                out.behind = sets;
            }
            Item::Atom(atom) if !body_done => out.atoms.push(atom),
            Item::Ahead(set, wanted) if !body_done => out.ahead = Some((set, wanted)),
            Item::End if !out.end => out.end = true,
            _ => return Err(refused(what, "anchors or lookarounds inside an alternative")),
        }
    }
    Ok(out)
}

fn refused(what: &str, found: &str) -> SyntaxError {
    unsupported(format!("affix patterns of English's form in `{what}`"), found.to_owned())
}

#[derive(Debug, Clone)]
enum Item {
    Start,
    End,
    Behind(Vec<Arc<CharSet>>),
    Ahead(Arc<CharSet>, bool),
    Atom(Atom),
}

struct Parser<'p> {
    rest: &'p str,
    what: &'p str,
}

impl Parser<'_> {
    fn refused(&self, found: &str) -> SyntaxError {
        let near: String = self.rest.chars().take(20).collect();
        refused(self.what, &format!("{found} before `{near}`"))
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn next(&mut self) -> Result<char> {
        let c = self.rest.chars().next().ok_or_else(|| self.refused("the end of the pattern"))?;
        self.rest = &self.rest[c.len_utf8()..];
        Ok(c)
    }

    /// Alternatives up to an unpaired `)` or the end; groups are multiplied out.
    fn alternation(&mut self) -> Result<Vec<Vec<Item>>> {
        let mut done = Vec::new();
        let mut current: Vec<Vec<Item>> = vec![Vec::new()];
        while !self.rest.is_empty() && !self.rest.starts_with(')') {
            if self.eat("|") {
                done.append(&mut current);
                current.push(Vec::new());
            } else if self.eat("(?:") {
                let inner = self.alternation()?;
                self.close_group()?;
                let mut product = Vec::with_capacity(current.len() * inner.len());
                for left in &current {
                    for right in &inner {
                        product.push(left.iter().chain(right).cloned().collect());
                    }
                }
                current = product;
            } else {
                let item = self.item()?;
                current.iter_mut().for_each(|items| items.push(item.clone()));
            }
        }
        done.append(&mut current);
        Ok(done)
    }

    fn close_group(&mut self) -> Result<()> {
        if !self.eat(")") {
            return Err(self.refused("a group without its `)`"));
        }
        if self.rest.starts_with(['+', '*', '?', '{']) {
            return Err(self.refused("a repeated group"));
        }
        Ok(())
    }

    fn item(&mut self) -> Result<Item> {
        if self.eat("^") {
            return Ok(Item::Start);
        }
        if self.eat("$") {
            return Ok(Item::End);
        }
        if self.eat("(?<=") {
            let mut sets = Vec::new();
            while !self.rest.starts_with(')') {
                sets.push(self.set()?);
            }
            self.close_group()?;
            return Ok(Item::Behind(sets));
        }
        for (open, wanted) in [("(?=", true), ("(?!", false)] {
            if self.eat(open) {
                let set = self.set()?;
                self.close_group()?;
                return Ok(Item::Ahead(set, wanted));
            }
        }
        let set = self.set()?;
        let (min, max) = match self.rest.chars().next() {
            Some('+') => (1, usize::MAX),
            Some('*') => (0, usize::MAX),
            Some('?') => (0, 1),
            Some('{') => return Err(self.refused("a counted repetition")),
            _ => return Ok(Item::Atom(Atom { set, min: 1, max: 1 })),
        };
        self.next()?;
        if self.rest.starts_with(['?', '+']) {
            return Err(self.refused("a lazy or possessive repetition"));
        }
        Ok(Item::Atom(Atom { set, min, max }))
    }

    /// A literal character, an escaped one or a bracket expression.
    fn set(&mut self) -> Result<Arc<CharSet>> {
        if self.eat("[") {
            let mut escaped = false;
            let end = self.rest.char_indices().find_map(|(i, c)| {
                let ends = c == ']' && !escaped && i > 0;
                escaped = c == '\\' && !escaped;
                ends.then_some(i)
            });
            let Some(end) = end else { return Err(self.refused("a `[` without its `]`")) };
            let (body, rest) = self.rest.split_at(end);
            self.rest = &rest[1..];
            return parse_class(body, self.what).map(Arc::new);
        }
        match self.next()? {
            '\\' => {
                let c = self.escaped()?;
                char::from_u32(c).map(|c| Arc::new(CharSet::single(c))).ok_or_else(|| self.refused("a surrogate"))
            }
            c @ ('.' | '(' | ')' | '*' | '+' | '?' | '{') => Err(self.refused(&format!("an unescaped `{c}`"))),
            c => Ok(Arc::new(CharSet::single(c))),
        }
    }

    /// A code point inside brackets; a range may end among the surrogates.
    fn class_member(&mut self) -> Result<u32> {
        match self.next()? {
            '\\' => self.escaped(),
            c => Ok(c as u32),
        }
    }

    fn escaped(&mut self) -> Result<u32> {
        let c = self.next()?;
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            c if c.is_ascii_alphanumeric() => {
                return Err(self.refused(&format!("the escape `\\{c}`")));
            }
            c => return Ok(c as u32),
        };
        let value = self
            .rest
            .get(..digits)
            .and_then(|hex| u32::from_str_radix(hex, 16).ok())
            .filter(|&value| value <= 0x10_ffff)
            .ok_or_else(|| self.refused(&format!("`\\{c}` without {digits} hexadecimal digits")))?;
        self.rest = &self.rest[digits..];
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn first_prefix_and_longest_suffix_win() {
        let prefixes = Prefixes::compile(r"^…|^……|^\.\.+|^US\$|^\+(?![0-9])").unwrap();
        for (text, len) in [("……", 3), ("...a", 3), (".a", 0), ("US$5", 3), ("+5", 0), ("+a", 1), ("+", 1), ("", 0)]
        {
            assert_eq!(prefixes.match_len(text), len, "{text}");
        }
        let suffixes = Suffixes::compile(r"…$|……$|\.\.+$|(?<=[0-9])(?:km|km²|m)$|(?<=[A-Z][A-Z])\.$").unwrap();
        for (text, len) in
            [("a……", 6), ("a....", 4), ("a.", 0), ("5km²", 4), ("5km", 2), ("km", 0), ("AB.", 1), ("aB.", 0)]
        {
            assert_eq!(suffixes.match_len(text), len, "{text}");
        }
    }

    #[test]
    fn infix_alternatives_are_tried_in_order() {
        let infixes = Infixes::compile(r"(?<=[a-z])(?:-|--)(?=[a-z])|…").unwrap();
        for (text, found) in
            [("a--b", Some((1, 3))), ("a-b", Some((1, 2))), ("a---b", None), ("-b", None), ("é…", Some((2, 5)))]
        {
            assert_eq!(infixes.find(text, 0), found, "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        for pattern in ["a|^b", r"^\d", "^(?:a)+", "^a{2}", "^[a", "^(a)", "^a*", "^.x"] {
            let error = Prefixes::compile(pattern).unwrap_err().to_string();
            assert!(error.contains("prefix_search"), "{error}");
        }
        assert!(Suffixes::compile("a+b+$").is_err());
    }
}
