//! Hand-written rules that map tags to parts of speech and mend some annotations.
//!
//! `spacy/pipeline/attributeruler.py` 3.8: all rules are matched against the document as
//! the tagger and the parser left it, then applied in their order, so that the last rule
//! that names an attribute decides it. Here each rule is filed under the words or the tags
//! that it needs, and a token meets only the few that can match.

use std::collections::HashMap;

use crate::error::{Result, bad_model, unsupported};
use crate::msgpack::{self, Value};
use crate::parser::{DepId, Labels};
use crate::tokenizer::WholeMatch;
use crate::unicode;

const FILE: &str = "attribute_ruler/patterns";
/// Bits of a label set; more labels than this are refused.
const MAX_LABELS: usize = 128;

/// What the rules can ask about a word's lower-cased form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct WordClass {
    /// 1 + index among the words that rules name, 0 for other words.
    word: u16,
    /// One bit per regular expression of the rules.
    regexes: u8,
}

/// A token as the rules see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RuledToken {
    pub(crate) tag: u8,
    pub(crate) dep: DepId,
    pub(crate) word: WordClass,
    pub(crate) is_space: bool,
}

/// Index among the strings of a [`Labels`]-like list of the ruler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RuleValue(pub(crate) u16);

/// What the rules decided for a token; None leaves what was there.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ruling {
    pub(crate) tag: Option<u8>,
    pub(crate) pos: Option<RuleValue>,
    pub(crate) dep: Option<DepId>,
    pub(crate) lemma: Option<RuleValue>,
    pub(crate) morph: Option<RuleValue>,
}

#[derive(Debug)]
enum WordTest {
    Any,
    /// Sorted ids of [`WordClass::word`].
    OneOf(Vec<u16>),
    Regex(u8),
}

/// Conditions on one token, all of which must hold.
#[derive(Debug)]
struct TokenTest {
    tags: u128,
    deps: u128,
    word: WordTest,
    is_space: Option<bool>,
}

impl TokenTest {
    fn matches(&self, token: &RuledToken) -> bool {
        let word = match &self.word {
            WordTest::Any => true,
            WordTest::OneOf(words) => words.binary_search(&token.word.word).is_ok(),
            WordTest::Regex(bit) => token.word.regexes & bit != 0,
        };
        word && self.tags >> token.tag & 1 == 1
            && self.deps >> token.dep.0 & 1 == 1
            && self.is_space.is_none_or(|s| s == token.is_space)
    }
}

/// One pattern of one rule.
#[derive(Debug)]
struct Rule {
    /// Place in the order of application, beginning with 1.
    order: u16,
    tests: Vec<TokenTest>,
    /// Which of the pattern's tokens is changed.
    target: usize,
    ruling: Ruling,
}

#[derive(Debug)]
pub(crate) struct AttributeRuler {
    rules: Vec<Rule>,
    /// Rules whose first token needs one of some words, by word id.
    by_word: Vec<Vec<u16>>,
    /// Rules whose first token needs a regular expression to match.
    by_regex: Vec<u16>,
    /// The other rules, by the first token's tag.
    by_tag: Vec<Vec<u16>>,
    words: HashMap<Box<str>, u16>,
    regexes: Vec<WholeMatch>,
    /// Strings of POS, LEMMA and MORPH values.
    values: Vec<Box<str>>,
}

/// The rules' attributes while they are read.
struct Reader<'r> {
    tags: &'r [String],
    labels: &'r mut Labels,
    words: HashMap<Box<str>, u16>,
    regexes: Vec<WholeMatch>,
    values: Vec<Box<str>>,
}

impl AttributeRuler {
    /// Reads the rules; labels that they set are added to `labels`.
    pub(crate) fn read(bytes: &[u8], tags: &[String], labels: &mut Labels) -> Result<Self> {
        let file = msgpack::read(bytes, FILE)?;
        let list = file.as_array().ok_or_else(|| bad_model(FILE, "it is not a list of rules"))?;
        let (words, values) = (HashMap::new(), Vec::new());
        let mut reader = Reader { tags, labels, words, regexes: Vec::new(), values };
        // Labels first: a test that excludes labels must know them all.
        let attrs = list
            .iter()
            .map(|rule| reader.attributes(rule.get("attrs").and_then(Value::as_map).unwrap_or_default()))
            .collect::<Result<Vec<_>>>()?;
        if reader.labels.len() > MAX_LABELS || tags.len() > MAX_LABELS {
            let found = format!("{} and {}", reader.labels.len(), tags.len());
            return Err(unsupported(format!("at most {MAX_LABELS} labels and tags"), found));
        }
        let mut rules = Vec::new();
        for (i, (rule, ruling)) in list.iter().zip(attrs).enumerate() {
            let order = u16::try_from(i + 1).map_err(|_| bad_model(FILE, "there are too many rules"))?;
            let index = rule.get("index").and_then(Value::as_i64).unwrap_or(0);
            for pattern in rule.get("patterns").and_then(Value::as_array).unwrap_or_default() {
                let tests = pattern
                    .as_array()
                    .unwrap_or_default()
                    .iter()
                    .map(|spec| reader.token_test(spec.as_map().unwrap_or_default()))
                    .collect::<Result<Vec<_>>>()?;
                let target = if index < 0 { index + tests.len() as i64 } else { index };
                let target = usize::try_from(target)
                    .ok()
                    .filter(|&t| t < tests.len())
                    .ok_or_else(|| bad_model(FILE, format!("rule {i} changes token {index} of {}", tests.len())))?;
                rules.push(Rule { order, tests, target, ruling });
            }
        }
        let mut ruler = Self {
            by_word: vec![Vec::new(); reader.words.len() + 1],
            by_regex: Vec::new(),
            by_tag: vec![Vec::new(); tags.len()],
            words: reader.words,
            regexes: reader.regexes,
            values: reader.values,
            rules: Vec::new(),
        };
        for (id, rule) in rules.iter().enumerate() {
            let (id, first) = (id as u16, &rule.tests[0]);
            match &first.word {
                WordTest::OneOf(words) => {
                    words.iter().for_each(|&w| ruler.by_word[usize::from(w)].push(id));
                }
                WordTest::Regex(_) => ruler.by_regex.push(id),
                WordTest::Any => {
                    let lists = ruler.by_tag.iter_mut().enumerate();
                    lists.filter(|(tag, _)| first.tags >> tag & 1 == 1).for_each(|(_, l)| l.push(id));
                }
            }
        }
        ruler.rules = rules;
        Ok(ruler)
    }

    /// The string of a POS, LEMMA or MORPH value.
    pub(crate) fn value(&self, value: RuleValue) -> &str {
        self.values.get(usize::from(value.0)).map_or("", AsRef::as_ref)
    }

    /// The strings of all values, in id order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(AsRef::as_ref)
    }

    /// Classifies a word, once per word.
    pub(crate) fn classify(&self, text: &str) -> WordClass {
        let lower = unicode::lower(text);
        let mut regexes = 0;
        for (i, regex) in self.regexes.iter().enumerate() {
            regexes |= u8::from(regex.is_match(&lower)) << i;
        }
        WordClass { word: self.words.get(lower.as_str()).copied().unwrap_or(0), regexes }
    }

    /// Applies all rules: one ruling per token.
    pub(crate) fn apply(&self, tokens: &[RuledToken], rulings: &mut Vec<Ruling>) {
        // The order of the rule that decided each attribute so far.
        let mut decided: Vec<[u16; 5]> = vec![[0; 5]; tokens.len()];
        rulings.clear();
        rulings.resize(tokens.len(), Ruling::default());
        for (i, token) in tokens.iter().enumerate() {
            let mut meet = |id: &u16| {
                let rule = &self.rules[usize::from(*id)];
                let Some(span) = tokens.get(i..i + rule.tests.len()) else { return };
                if !rule.tests.iter().zip(span).all(|(test, token)| test.matches(token)) {
                    return;
                }
                let at = i + rule.target;
                let (out, last, new) = (&mut rulings[at], &mut decided[at], &rule.ruling);
                let order = rule.order;
                take(&mut out.tag, new.tag, &mut last[0], order);
                take(&mut out.pos, new.pos, &mut last[1], order);
                take(&mut out.dep, new.dep, &mut last[2], order);
                take(&mut out.lemma, new.lemma, &mut last[3], order);
                take(&mut out.morph, new.morph, &mut last[4], order);
            };
            self.by_tag[usize::from(token.tag)].iter().for_each(&mut meet);
            if token.word.word != 0 {
                self.by_word[usize::from(token.word.word)].iter().for_each(&mut meet);
            }
            if token.word.regexes != 0 {
                self.by_regex.iter().for_each(&mut meet);
            }
        }
    }
}

/// Keeps the value of the later rule.
fn take<T: Copy>(kept: &mut Option<T>, new: Option<T>, last: &mut u16, order: u16) {
    if new.is_some() && order >= *last {
        *kept = new;
        *last = order;
    }
}

impl Reader<'_> {
    fn attributes(&mut self, attrs: &[(Value<'_>, Value<'_>)]) -> Result<Ruling> {
        let mut ruling = Ruling::default();
        for (key, value) in attrs {
            let text = value.as_str().ok_or_else(|| bad_model(FILE, format!("{value:?} is no string")))?;
            match key.as_str() {
                Some("TAG") => ruling.tag = Some(self.tag(text)?),
                Some("POS") => ruling.pos = Some(self.value(text)),
                Some("DEP") => ruling.dep = Some(self.labels.intern(text)),
                Some("LEMMA") => ruling.lemma = Some(self.value(text)),
                Some("MORPH") => ruling.morph = Some(self.value(if text == "_" { "" } else { text })),
                _ => return Err(unsupported("rules that set TAG, POS, DEP, LEMMA, MORPH", format!("{key:?}"))),
            }
        }
        Ok(ruling)
    }

    fn tag(&self, name: &str) -> Result<u8> {
        let at = self.tags.iter().position(|t| t == name);
        at.and_then(|i| u8::try_from(i).ok())
            .ok_or_else(|| unsupported("rules that set tags of the tagger", format!("`{name}`")))
    }

    fn value(&mut self, text: &str) -> RuleValue {
        let at = self.values.iter().position(|v| &**v == text).unwrap_or_else(|| {
            self.values.push(text.into());
            self.values.len() - 1
        });
        RuleValue(at as u16)
    }

    fn token_test(&mut self, spec: &[(Value<'_>, Value<'_>)]) -> Result<TokenTest> {
        let mut test = TokenTest { tags: u128::MAX, deps: u128::MAX, word: WordTest::Any, is_space: None };
        for (key, value) in spec {
            match key.as_str() {
                Some("TAG") => test.tags = set(value, |name| self.tags.iter().position(|t| t == name))?,
                Some("DEP") => {
                    test.deps = set(value, |name| self.labels.get(name).map(|id| usize::from(id.0)))?;
                }
                Some("LOWER") => test.word = self.word_test(value)?,
                Some("IS_SPACE") => test.is_space = value.as_bool(),
                _ => return Err(unsupported("rules on TAG, LOWER, DEP, IS_SPACE", format!("{key:?}"))),
            }
        }
        Ok(test)
    }

    fn word_test(&mut self, value: &Value<'_>) -> Result<WordTest> {
        let words: Vec<&str> = match value {
            Value::Str(word) => vec![word],
            _ => match value.as_map() {
                Some([(op, arg)]) if op.as_str() == Some("IN") => {
                    arg.as_array().unwrap_or_default().iter().filter_map(Value::as_str).collect()
                }
                Some([(op, Value::Str(pattern))]) if op.as_str() == Some("REGEX") => {
                    let bit = 1u8.checked_shl(self.regexes.len() as u32);
                    let bit = bit.ok_or_else(|| unsupported("at most 8 REGEX rules", "more"))?;
                    self.regexes.push(WholeMatch::compile(pattern)?);
                    return Ok(WordTest::Regex(bit));
                }
                _ => return Err(unsupported("LOWER rules by word, IN or REGEX", format!("{value:?}"))),
            },
        };
        let mut ids = Vec::with_capacity(words.len());
        for word in words {
            let next = self.words.len() as u16 + 1;
            ids.push(*self.words.entry(word.into()).or_insert(next));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(WordTest::OneOf(ids))
    }
}

/// A set of labels: one name, IN or NOT_IN. Names that no token can have drop out.
fn set(value: &Value<'_>, index: impl Fn(&str) -> Option<usize>) -> Result<u128> {
    let bits = |names: &[Value<'_>]| {
        let known = names.iter().filter_map(Value::as_str).filter_map(&index);
        known.fold(0u128, |acc, i| acc | 1 << i)
    };
    match value {
        Value::Str(name) => Ok(index(name).map_or(0, |i| 1 << i)),
        _ => match value.as_map() {
            Some([(op, Value::Array(names))]) if op.as_str() == Some("IN") => Ok(bits(names)),
            Some([(op, Value::Array(names))]) if op.as_str() == Some("NOT_IN") => Ok(!bits(names)),
            _ => Err(unsupported("rules by name, IN or NOT_IN", format!("{value:?}"))),
        },
    }
}
