//! Words and their times, from tokens and theirs.
//!
//! Reference: transformers' `tokenization_whisper.py` (`_decode_asr`, `_combine_tokens_into_words`), which splits as
//! openai-whisper's `tokenizer.py` and merges as its `timing.py`.

use crate::{ModelError, speech::Segment};

/// Languages without spaces between words.
const UNSPACED: &[&str] = &["zh", "ja", "th", "lo", "my", "yue"];
/// What goes to the word behind it.
const BEFORE: &str = "\"'“¡¿([{-";
/// What goes to the word before it.
const BEHIND: &str = "\"'.。,，!！?？:：”)]}、";
/// What is a word of its own before any merging.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
/// Stands for bytes that are no text yet.
const INCOMPLETE: char = '\u{fffd}';
/// Timestamps of a window of the released models, by which the reference tells windows apart.
const STEPS_OF_WINDOW: u32 = 1500;

/// A token, and when it ends, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timed {
    pub(crate) id: u32,
    pub(crate) end: f64,
}

/// What words are made with.
pub(crate) struct Splitter<'a> {
    /// The text of tokens.
    pub(crate) decode: &'a dyn Fn(&[u32]) -> Result<String, ModelError>,
    /// Whether a token that is no timestamp is no part of a text.
    pub(crate) special: &'a dyn Fn(u32) -> bool,
    /// The first token that is a timestamp.
    pub(crate) first_time: u32,
    /// The language, as Whisper names it.
    pub(crate) language: Option<&'a str>,
}

/// A word: its text, and the places of its tokens.
type Word = (String, Vec<usize>);

impl Splitter<'_> {
    /// The words of `tokens`, of several windows one behind the other; none crosses a timestamp that ends a stretch.
    ///
    /// # Errors
    /// Those of `decode`.
    pub(crate) fn words(&self, tokens: &[Timed]) -> Result<Vec<Segment>, ModelError> {
        let is_time = |i: usize| tokens[i].id >= self.first_time;
        let mut words = Vec::new();
        let mut stretch = Vec::new();
        let mut begun = None;
        // Steps of the timestamps seen last and before that, and of the windows before.
        let (mut latest, mut earlier, mut before) = (0, 0, 0);
        for (i, token) in tokens.iter().enumerate() {
            if !is_time(i) {
                if !(self.special)(token.id) {
                    stretch.push(i);
                }
                continue;
            }
            let steps = token.id - self.first_time;
            if steps < latest {
                // The next window has begun.
                if i >= 2 && !(is_time(i - 1) && is_time(i - 2)) {
                    before += STEPS_OF_WINDOW;
                } else {
                    latest = earlier;
                    before += earlier;
                }
            }
            (earlier, latest) = (latest, steps);
            let time = steps + before;
            match begun {
                None => begun = Some(time),
                // An end that is no later than its beginning begins a stretch.
                Some(other) if other == time => {}
                Some(_) => {
                    words.extend(self.split(tokens, &std::mem::take(&mut stretch))?);
                    begun = None;
                }
            }
        }
        words.extend(self.split(tokens, &stretch)?);
        Ok(words)
    }

    /// The words of the tokens at `places`.
    fn split(&self, tokens: &[Timed], places: &[usize]) -> Result<Vec<Segment>, ModelError> {
        let ids: Vec<u32> = places.iter().map(|&place| tokens[place].id).collect();
        let pieces = self.pieces(&ids)?;
        let spaced = self.language.is_none_or(|language| !UNSPACED.contains(&language));
        let words = merged(if spaced { at_spaces(pieces) } else { pieces });
        let rounded = |seconds: f64| (seconds * 100.0).round() / 100.0;
        let timed = |(text, of): Word| {
            let place = |i: Option<&usize>| i.and_then(|&i| places.get(i)).copied();
            let start =
                place(of.first()).and_then(|place| place.checked_sub(1)).map_or(0.0, |before| tokens[before].end);
            let end = place(of.last()).map_or(start, |place| tokens[place].end);
            Segment { start: rounded(start), end: rounded(end), text }
        };
        Ok(words.into_iter().map(timed).collect())
    }

    /// The shortest runs of tokens that are texts by themselves.
    fn pieces(&self, ids: &[u32]) -> Result<Vec<Word>, ModelError> {
        let whole: Vec<char> = (self.decode)(ids)?.chars().collect();
        let mut pieces = Vec::new();
        let (mut from, mut chars) = (0, 0);
        for end in 1..=ids.len() {
            let text = (self.decode)(&ids[from..end])?;
            // Where the whole text has no text either, more tokens will not help.
            let incomplete = text.chars().position(|c| c == INCOMPLETE);
            let complete = incomplete.is_none_or(|at| whole.get(chars + at).is_none_or(|c| *c == INCOMPLETE));
            if complete {
                chars += text.chars().count();
                pieces.push((text, (from..end).collect()));
                from = end;
            }
        }
        Ok(pieces)
    }
}

/// Joins pieces that do not begin with a space, but for punctuation, to those before them.
fn at_spaces(pieces: Vec<Word>) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    for (text, places) in pieces {
        let begins = text.starts_with(' ') || PUNCTUATION.contains(text.trim());
        match words.last_mut().filter(|_| !begins) {
            Some((word, of)) => {
                word.push_str(&text);
                of.extend(places);
            }
            None => words.push((text, places)),
        }
    }
    words
}

/// Gives punctuation to the words that it belongs to.
fn merged(mut words: Vec<Word>) -> Vec<Word> {
    let mut behind = words.len().saturating_sub(1);
    for i in (0..behind).rev() {
        if words[i].0.starts_with(' ') && BEFORE.contains(words[i].0.trim()) {
            let (mut text, mut places) = std::mem::take(&mut words[i]);
            text.push_str(&words[behind].0);
            places.append(&mut words[behind].1);
            words[behind] = (text, places);
        } else {
            behind = i;
        }
    }
    let mut before = 0;
    for i in 1..words.len() {
        if !words[before].0.ends_with(' ') && BEHIND.contains(&*words[i].0) {
            let (text, places) = std::mem::take(&mut words[i]);
            words[before].0.push_str(&text);
            words[before].1.extend(places);
        } else {
            before = i;
        }
    }
    words.retain(|(text, _)| !text.is_empty());
    words
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Tokens are pieces of these; from 100 on they are timestamps.
    const PIECES: &[&str] = &[" he", "llo", ",", " \"", "you", "\"", " two", "-", "three", ".", "今", "日", "。", " "];

    /// The words of `ids`, the token `i` ending at `i + 1` tenths of a second.
    fn words(ids: &[u32], language: Option<&str>) -> Vec<(String, f64, f64)> {
        let decode = |ids: &[u32]| Ok(ids.iter().map(|&id| PIECES[id as usize]).collect());
        let special = |id: u32| id == 99;
        let splitter = Splitter { decode: &decode, special: &special, first_time: 100, language };
        let tokens: Vec<Timed> =
            ids.iter().zip(1..).map(|(&id, tenth)| Timed { id, end: f64::from(tenth) / 10.0 }).collect();
        let words = splitter.words(&tokens).unwrap();
        words.into_iter().map(|word| (word.text, word.start, word.end)).collect()
    }

    fn texts(ids: &[u32], language: Option<&str>) -> Vec<String> {
        words(ids, language).into_iter().map(|(text, ..)| text).collect()
    }

    #[test]
    fn punctuation_goes_to_its_word() {
        let found = words(&[0, 1, 2, 3, 4, 5, 9], Some("en"));
        assert_eq!(found, [(" hello,".to_owned(), 0.0, 0.3), (" \"you\".".to_owned(), 0.3, 0.7)]);
        assert_eq!(texts(&[6, 7, 8, 9], None), [" two", "-three."]);
        assert_eq!(texts(&[3, 6], None), [" \" two"]);
        assert_eq!(texts(&[0, 1, 13, 2, 9], None), [" hello", " ,."]);
        assert!(texts(&[], None).is_empty());
    }

    #[test]
    fn languages_without_spaces_are_split_at_characters() {
        assert_eq!(texts(&[10, 11, 12], Some("ja")), ["今", "日。"]);
        assert_eq!(texts(&[10, 11, 12], Some("en")), ["今日。"]);
    }

    #[test]
    fn no_word_crosses_the_end_of_a_stretch() {
        // A time that ends the stretch which it begins again is passed over.
        assert_eq!(texts(&[100, 0, 105, 105, 1, 110], None), [" he", "llo"]);
        assert_eq!(texts(&[100, 0, 100, 1, 105], None), [" hello"]);
        let found = words(&[99, 100, 0, 105, 105, 1], None);
        assert_eq!(found, [(" he".to_owned(), 0.2, 0.3), ("llo".to_owned(), 0.5, 0.6)]);
    }
}
