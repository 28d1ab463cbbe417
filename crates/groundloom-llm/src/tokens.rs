//! How many tokens a text is, by the model's own vocabulary where it is known.
//!
//! The vocabularies are OpenAI's `o200k_base` and `cl100k_base` (MIT licence), as published with tiktoken: byte strings with ranks, split by a
//! regular expression first and merged by lowest rank. Counts equal tiktoken's `encode_ordinary` (fixture `tests/data/token_counts.jsonl`).

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io::Read,
    sync::LazyLock,
};

use base64::Engine as _;
use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

/// A way to count tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokenizer {
    /// GPT-4o, GPT-4.1, GPT-5 and the o series.
    O200kBase,
    /// GPT-4, GPT-4 Turbo and GPT-3.5.
    Cl100kBase,
    /// Any other model: what is certain is that byte-level tokenizers never make more tokens than bytes.
    Bytes,
}

/// The tokenizer of an OpenAI model, by its name; [`Tokenizer::Bytes`] for names that are not OpenAI's.
pub fn tokenizer_of(model: &str) -> Tokenizer {
    // Fine-tuned models are named `ft:BASE:…`, and routers put an owner before the name.
    let name = model.strip_prefix("ft:").unwrap_or(model);
    let name = name.strip_prefix("openai/").unwrap_or(name);
    let starts = |prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p));
    if starts(&["gpt-4o", "chatgpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "o1", "o3", "o4", "gpt-oss"]) {
        Tokenizer::O200kBase
    } else if starts(&["gpt-4", "gpt-3.5", "gpt-35"]) {
        Tokenizer::Cl100kBase
    } else {
        Tokenizer::Bytes
    }
}

impl Tokenizer {
    /// The name that price tables use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::O200kBase => "o200k_base",
            Self::Cl100kBase => "cl100k_base",
            Self::Bytes => "bytes",
        }
    }

    /// The number of tokens of `text`, or the largest number it can be where the vocabulary is not known.
    ///
    /// Special tokens have no meaning in it: `<|endoftext|>` is counted as the text that it is.
    pub fn upper_bound(self, text: &str) -> u64 {
        match self.vocabulary() {
            Some(vocabulary) => vocabulary.count(text),
            None => text.len() as u64,
        }
    }

    /// The number of tokens of `text`, or a guess of it (four bytes a token) where the vocabulary is not known.
    pub fn estimate(self, text: &str) -> u64 {
        match self.vocabulary() {
            Some(vocabulary) => vocabulary.count(text),
            None => (text.len() as u64).div_ceil(4),
        }
    }

    fn vocabulary(self) -> Option<&'static Vocabulary> {
        static O200K: LazyLock<Option<Vocabulary>> =
            LazyLock::new(|| Vocabulary::read(include_bytes!("../data/o200k_base.tiktoken.gz"), &O200K_WORDS));
        static CL100K: LazyLock<Option<Vocabulary>> =
            LazyLock::new(|| Vocabulary::read(include_bytes!("../data/cl100k_base.tiktoken.gz"), &CL100K_WORDS));
        match self {
            Self::O200kBase => O200K.as_ref(),
            Self::Cl100kBase => CL100K.as_ref(),
            Self::Bytes => None,
        }
    }
}

const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

static O200K_WORDS: LazyLock<String> = LazyLock::new(|| {
    let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
    [
        format!(r"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{CONTRACTIONS}?"),
        format!(r"[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{CONTRACTIONS}?"),
        r"\p{N}{1,3}".to_owned(),
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*".to_owned(),
        r"\s*[\r\n]+".to_owned(),
        r"\s+(?!\S)".to_owned(),
        r"\s+".to_owned(),
    ]
    .join("|")
});

static CL100K_WORDS: LazyLock<String> = LazyLock::new(|| {
    [
        CONTRACTIONS,
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|")
});

#[derive(Debug)]
struct Vocabulary {
    ranks: HashMap<Box<[u8]>, u32>,
    words: Regex,
}

impl Vocabulary {
    /// `None` only when the embedded file is broken, which a test rules out.
    fn read(packed: &[u8], words: &str) -> Option<Self> {
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).ok()?;
        let mut ranks = HashMap::with_capacity(text.len() / 16);
        for line in text.lines() {
            let (token, rank) = line.split_once(' ')?;
            let token = base64::engine::general_purpose::STANDARD.decode(token).ok()?;
            ranks.insert(token.into_boxed_slice(), rank.parse().ok()?);
        }
        Some(Self { ranks, words: Regex::new(words).ok()? })
    }

    fn count(&self, text: &str) -> u64 {
        let (mut tokens, mut end) = (0, 0);
        for word in self.words.find_iter(text) {
            // The expression gives up on absurd input only; what it did not split is counted by its bytes.
            let Ok(word) = word else { break };
            tokens += self.merges(word.as_str().as_bytes());
            end = word.end();
        }
        tokens + (text.len() - end) as u64
    }

    /// Tokens of one word: neighbours are merged, the pair of the lowest rank first and the leftmost among equals.
    fn merges(&self, word: &[u8]) -> u64 {
        if word.len() < 2 || self.ranks.contains_key(word) {
            return u64::from(!word.is_empty());
        }
        // `next[i]`: where the part that starts at `i` ends; a part that was merged into the one before it starts nowhere (0 is nobody's end).
        let mut next: Vec<usize> = (1..=word.len()).collect();
        let mut previous: Vec<usize> = (0..word.len()).map(|i| i.wrapping_sub(1)).collect();
        let mut pairs = BinaryHeap::new();
        let rank = |from: usize, to: usize| self.ranks.get(&word[from..to]).copied();
        for i in 0..word.len() - 1 {
            if let Some(rank) = rank(i, i + 2) {
                pairs.push(Reverse((rank, i, i + 2)));
            }
        }
        let mut parts = word.len() as u64;
        while let Some(Reverse((_, from, to))) = pairs.pop() {
            // Stale when either side has been merged with something else meanwhile.
            let middle = next[from];
            if middle == 0 || middle >= word.len() || next[middle] != to {
                continue;
            }
            next[from] = to;
            next[middle] = 0;
            parts -= 1;
            if to < word.len() {
                previous[to] = from;
                if let Some(rank) = rank(from, next[to]) {
                    pairs.push(Reverse((rank, from, next[to])));
                }
            }
            let before = previous[from];
            if before < word.len()
                && let Some(rank) = rank(before, to)
            {
                pairs.push(Reverse((rank, before, to)));
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_counts() {
        // From OpenAI's own tokenizer.
        assert_eq!(Tokenizer::O200kBase.upper_bound("hello world"), 2);
        assert_eq!(Tokenizer::Cl100kBase.upper_bound("tiktoken is great!"), 6);
        assert_eq!(Tokenizer::O200kBase.upper_bound(""), 0);
        assert_eq!(Tokenizer::Bytes.upper_bound("né"), 3);
        assert_eq!(Tokenizer::Bytes.estimate("hello"), 2);
    }

    #[test]
    fn models_are_known_by_name() {
        for (model, tokenizer) in [
            ("gpt-4o-mini-2024-07-18", Tokenizer::O200kBase),
            ("gpt-4.1", Tokenizer::O200kBase),
            ("o3", Tokenizer::O200kBase),
            ("openai/gpt-5-nano", Tokenizer::O200kBase),
            ("ft:gpt-3.5-turbo:acme::id", Tokenizer::Cl100kBase),
            ("gpt-4-turbo", Tokenizer::Cl100kBase),
            ("meta-llama/Llama-3.1-8B-Instruct", Tokenizer::Bytes),
            ("", Tokenizer::Bytes),
        ] {
            assert_eq!(tokenizer_of(model), tokenizer, "{model}");
        }
    }

    #[test]
    fn a_word_of_many_letters_ends() {
        assert!(Tokenizer::O200kBase.upper_bound(&"a".repeat(100_000)) > 10_000);
        assert!(Tokenizer::O200kBase.upper_bound(&" ".repeat(100_000)) > 100);
    }
}
