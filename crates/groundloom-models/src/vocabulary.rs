//! From the nouns of a caption to a detector's classes.

use std::{collections::HashMap, sync::Arc};

use crate::ModelError;

/// The class that marks nouns which name none, though their last word alone would.
const NO_CLASS: &str = "-";

/// Which English nouns name which class of a detector.
///
/// The file form is lines of `class`, tab, nouns separated by commas; `#` begins a comment line; the class `-`
/// excludes its nouns. Nouns are lower case; a noun of several words is matched at the end of a phrase.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// `None`: excluded.
    classes: HashMap<String, Option<Arc<str>>>,
    longest: usize,
}

impl Vocabulary {
    /// Reads the file form; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] with the line: a class that is not among `labels`, a noun listed twice, one that is
    /// not lower case or empty.
    pub fn read(origin: &str, text: &str, labels: &[Arc<str>]) -> Result<Self, ModelError> {
        let mut vocabulary = Self::default();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let bad =
                |problem: String| ModelError::BadConfig { origin: format!("{origin}, line {}", number + 1), problem };
            let (class, nouns) = line
                .split_once('\t')
                .ok_or_else(|| bad(format!("expected a class, a tab and nouns, found {line:?}")))?;
            let label = match labels.iter().find(|label| ***label == *class) {
                Some(label) => Some(label.clone()),
                None if class == NO_CLASS => None,
                None => return Err(bad(format!("expected a class of the model or {NO_CLASS:?}, found {class:?}"))),
            };
            for noun in nouns.split(',').map(str::trim) {
                if noun.is_empty() || noun != noun.to_lowercase() {
                    return Err(bad(format!("expected a noun in lower case, found {noun:?}")));
                }
                if vocabulary.insert(noun, label.clone()) {
                    return Err(bad(format!("expected each noun once, found {noun:?} again")));
                }
            }
        }
        Ok(vocabulary)
    }

    /// Each label of a detector, in lower case, names itself: for models that bring no vocabulary. Label 0 is
    /// background.
    pub fn of_labels(labels: &[Arc<str>]) -> Self {
        let mut vocabulary = Self::default();
        for label in labels.iter().skip(1) {
            vocabulary.insert(&label.to_lowercase(), Some(label.clone()));
        }
        vocabulary
    }

    /// Whether `noun` was there before.
    fn insert(&mut self, noun: &str, label: Option<Arc<str>>) -> bool {
        self.longest = self.longest.max(noun.split_whitespace().count());
        self.classes.insert(noun.to_owned(), label).is_some()
    }

    /// The class that a phrase names. `phrase` is in lower case and ends with its head (a noun chunk does);
    /// `head_lemma` is the lemma of that head in lower case. The longest noun of several words at the phrase's end
    /// decides (with its last word as written, or as lemma), else the head's lemma.
    pub fn lookup(&self, phrase: &str, head_lemma: &str) -> Option<&str> {
        let words: Vec<&str> = phrase
            .split_whitespace()
            .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()))
            .filter(|word| !word.is_empty())
            .collect();
        for count in (2..=self.longest.min(words.len())).rev() {
            let written = &words[words.len() - count..];
            let lemma = [&written[..count - 1], &[head_lemma]].concat();
            for noun in [written.join(" "), lemma.join(" ")] {
                if let Some(class) = self.classes.get(&noun) {
                    return class.as_deref();
                }
            }
        }
        self.classes.get(head_lemma)?.as_deref()
    }

    /// Nouns and their classes, excluded ones without, in no particular order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.classes.iter().map(|(noun, class)| (noun.as_str(), class.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::{Classes, DEFAULT_DETECTOR, resolve};

    fn labels(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|&name| name.into()).collect()
    }

    #[test]
    fn embedded_vocabulary_names_classes() {
        let detector = resolve(DEFAULT_DETECTOR).unwrap();
        let vocabulary = detector.vocabulary().unwrap();
        let cases = [
            ("a man", "man", Some("Person")),
            ("two tennis players", "player", Some("Person")),
            ("the people", "people", Some("Person")),
            ("an astronaut", "astronaut", Some("Person")),
            ("a small kitten", "kitten", Some("Cat")),
            ("puppies", "puppy", Some("Dog")),
            ("a hot dog", "dog", None),
            ("hot dogs", "dog", None),
            ("her dog", "dog", Some("Dog")),
            ("a red sedan", "sedan", Some("Car")),
            ("a toy car", "car", None),
            ("his bike", "bike", Some("Bicycle")),
            ("a dirt bike", "bike", Some("Vehicle")),
            ("an exercise bike", "bike", Some("Stationary bicycle")),
            ("cows", "cow", Some("Cattle")),
            ("a mouse", "mouse", None),
            ("a computer mouse", "mouse", Some("Computer mouse")),
            ("two computer mice", "mouse", Some("Computer mouse")),
            ("a flat screen monitor", "monitor", Some("Computer monitor")),
            ("a movie screen", "screen", None),
            ("red high heels", "heel", Some("High heels")),
            ("cowboy boots", "boot", Some("Boot")),
            ("his sneakers", "sneaker", Some("Footwear")),
            ("a mailbox", "mailbox", None),
            ("a litter box", "box", None),
            ("a cardboard box", "box", Some("Box")),
            ("the coffee cup", "cup", Some("Coffee cup")),
            ("a coffee mug", "mug", Some("Mug")),
            ("a school bus", "bus", Some("Vehicle")),
            ("a coffee table", "table", Some("Table")),
            ("a field", "field", None),
            ("flowers", "flower", None),
            ("time", "time", None),
            ("", "", None),
        ];
        for (phrase, head, expected) in cases {
            assert_eq!(vocabulary.lookup(phrase, head), expected, "{phrase}");
        }
    }

    #[test]
    fn every_class_has_a_noun_and_no_line_is_idle() {
        let detector = resolve(DEFAULT_DETECTOR).unwrap();
        let vocabulary = detector.vocabulary().unwrap();
        let Classes::Fixed(labels) = &detector.info().classes else { panic!("a fixed set of classes") };
        for label in &labels[1..] {
            assert!(vocabulary.entries().any(|(_, class)| class == Some(label)), "{label}");
        }
        for (noun, class) in vocabulary.entries() {
            let shorter = noun.split_once(' ').map(|(_, rest)| rest);
            let anyway = shorter.and_then(|rest| vocabulary.lookup(rest, rest.rsplit(' ').next().unwrap()));
            assert_ne!(class, anyway, "{noun:?} means this without being listed");
        }
    }

    #[test]
    fn the_longest_noun_wins_and_punctuation_is_no_word() {
        let text = "# comment\n\nDog\tdog, sausage dog\n-\thot dog\nSnack\thot sausage dog\n";
        let vocabulary = Vocabulary::read("v", text, &labels(&["???", "Dog", "Snack"])).unwrap();
        assert_eq!(vocabulary.lookup("a hot sausage dog", "dog"), Some("Snack"));
        assert_eq!(vocabulary.lookup("a sausage dog.", "dog"), Some("Dog"));
        assert_eq!(vocabulary.lookup("\"hot\" dogs", "dog"), None);
        assert_eq!(Vocabulary::of_labels(&labels(&["???", "Hot Dog"])).lookup("hot dogs", "dog"), Some("Hot Dog"));
    }

    #[test]
    fn a_bad_line_is_named() {
        let labels = labels(&["???", "Dog"]);
        let cases = [
            ("Dog dog\n", "line 1: expected a class, a tab and nouns"),
            ("# x\nDgo\tdog\n", "line 2: expected a class of the model or \"-\", found \"Dgo\""),
            ("Dog\tDog\n", "expected a noun in lower case, found \"Dog\""),
            ("Dog\tdog,, pup\n", "expected a noun in lower case, found \"\""),
            ("Dog\tdog\n-\tdog\n", "line 2: expected each noun once, found \"dog\" again"),
        ];
        for (text, message) in cases {
            let error = Vocabulary::read("v", text, &labels).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
