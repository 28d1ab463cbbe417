//! What must not stand in an answer that pretends to come from looking at an image. Each rule has a name, under which rows are refused and counted.

use std::{collections::HashSet, sync::LazyLock};

use fancy_regex::Regex;

use super::turns::Exchange;

/// A named reason to refuse a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// One of the codes of [`CODES`].
    pub code: &'static str,
    /// What was found.
    pub message: String,
}

impl Fault {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Every reason, with what it means.
pub const CODES: &[(&str, &str)] = &[
    ("cut_answer", "the reply was cut at the limit of tokens or by the server's filter"),
    ("empty_answer", "the reply holds nothing"),
    ("refused_answer", "the model declined"),
    ("broken_turns", "the reply is not in the grammar of turns"),
    ("turn_order", "an answer without question, a question without answer"),
    ("empty_turn", "a turn holds nothing"),
    ("repeated_question", "one question twice"),
    ("source_leak", "the reply speaks of captions, boxes or descriptions that it was given"),
    ("coordinate_leak", "the reply quotes coordinates"),
    ("box_out_of_range", "a box that is none: outside the image or turned around"),
];

/// A lazily compiled expression; `None` never happens, as the tests use each.
fn expression(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

static REFUSAL: LazyLock<Option<Regex>> = LazyLock::new(|| {
    expression(
        r"(?i)^\W*(i['’]?m (really |very |so )?sorry|i am sorry|sorry,|i apologi[sz]e|as an ai\b|i (can ?not|can['’]t|am unable to|am not able to|won['’]t) (see|view|help|assist|fulfil|provide|describe|answer|comply|access))",
    )
});

// Words that only somebody says who was given texts and boxes. "Description" and "sentence" are harmless in many answers, so they count only with what gives them away.
static SOURCE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    expression(concat!(
        r"(?i)\b(captions?|bounding[- ]box(es)?|coordinates?|symbolic (context|representation))\b",
        r"|\b(provided|given|above|accompanying|these|five) (image )?(descriptions?|sentences?|annotations?|text|context|information)\b",
        r"|\b(according to|based on|mentioned in|stated in|described in|from) the (text|sentences?|descriptions?|annotations?|context|information)\b",
        r"|\b(is|are|was|were|not|as) (explicitly |specifically )?(mentioned|stated|specified)\b",
        r"|\bthe (image )?descriptions? (do|does|did|say|says|mention|mentions|indicate|indicates|state|states|suggest|suggests)\b",
    ))
});

static PAIR: LazyLock<Option<Regex>> =
    LazyLock::new(|| expression(r"(?<![\d.])(?:0?\.\d+|1\.0+|0\.0)\s*,\s*(?:0?\.\d+|1\.0+|0\.0)(?![\d.]*\d)"));

static BOX: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let number = r"\s*(-?\d*\.?\d+)\s*";
    expression(&format!(r"\[{number},{number},{number},{number}\]"))
});

fn find<'t>(expression: &LazyLock<Option<Regex>>, text: &'t str) -> Option<&'t str> {
    expression.as_ref()?.find(text).ok().flatten().map(|m| m.as_str())
}

/// Whether a reply declines instead of answering.
pub fn refusal(reply: &str) -> Option<Fault> {
    find(&REFUSAL, reply).map(|found| Fault::new("refused_answer", format!("it begins with `{}`", found.trim())))
}

/// The first rule that a text breaks. With `boxes`, boxes may be quoted, and then each must lie in the image: `[x1, y1, x2, y2]`, from 0 to 1, x1 <= x2, y1 <= y2.
pub fn leak(text: &str, boxes: bool) -> Option<Fault> {
    if let Some(found) = find(&SOURCE, text) {
        return Some(Fault::new("source_leak", format!("it says `{found}`")));
    }
    if boxes {
        return box_out_of_range(text);
    }
    let quoted = find(&BOX, text).or_else(|| find(&PAIR, text))?;
    Some(Fault::new("coordinate_leak", format!("it quotes `{quoted}`")))
}

fn box_out_of_range(text: &str) -> Option<Fault> {
    for found in BOX.as_ref()?.captures_iter(text).flatten() {
        let side = |i: usize| found.get(i).and_then(|m| m.as_str().parse::<f64>().ok());
        let lies_inside = match (side(1), side(2), side(3), side(4)) {
            (Some(x1), Some(y1), Some(x2), Some(y2)) => {
                [x1, y1, x2, y2].iter().all(|v| (0.0..=1.0).contains(v)) && x1 <= x2 && y1 <= y2
            }
            _ => false,
        };
        if !lies_inside {
            let text = found.get(0).map_or("", |m| m.as_str());
            return Some(Fault::new("box_out_of_range", format!("`{text}` is no box of fractions")));
        }
    }
    None
}

/// The first question that was asked before in the same dialogue; case, spaces and punctuation make no difference.
pub fn repeated_question(exchanges: &[Exchange]) -> Option<Fault> {
    let mut seen = HashSet::new();
    exchanges
        .iter()
        .map(|e| &e.question)
        .find(|q| !seen.insert(normal(q)))
        .map(|question| Fault::new("repeated_question", format!("`{question}` is asked twice")))
}

fn normal(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(fault: Option<Fault>) -> &'static str {
        fault.map_or("", |f| f.code)
    }

    #[test]
    fn leaks_are_found_and_honest_answers_pass() {
        for (text, expected) in [
            ("Two dogs lean out of a window.", ""),
            ("The sign gives a description of the trail, and a sentence is written below.", ""),
            ("It costs 3.50, 4.00 or 5.20 per piece.", ""),
            ("The ratio of 0.5 is common.", ""),
            ("He took the text from the shelf.", ""),
            ("The caption says that it is raining.", "source_leak"),
            ("Based on the descriptions, there are two.", "source_leak"),
            ("It is not mentioned what colour it is.", "source_leak"),
            ("the given sentences agree", "source_leak"),
            ("Judging by its bounding box, it is large.", "source_leak"),
            ("The dog at [0.36, 0.31, 0.63, 0.78] sleeps.", "coordinate_leak"),
            ("The dog at (0.36, 0.31) sleeps.", "coordinate_leak"),
            ("between 0.0, 1.0", "coordinate_leak"),
        ] {
            assert_eq!(code(leak(text, false)), expected, "{text}");
        }
        for (text, expected) in [
            ("The dog [0.36, 0.31, 0.63, 0.78] sleeps.", ""),
            ("The dog [0, 0, 1, 1] sleeps.", ""),
            ("The dog [0.36, 0.31, 1.2, 0.78] sleeps.", "box_out_of_range"),
            ("The dog [0.9, 0.31, 0.2, 0.78] sleeps.", "box_out_of_range"),
            ("The dog [-0.1, 0.31, 0.2, 0.78] sleeps.", "box_out_of_range"),
            ("The caption says [0.1, 0.2, 0.3, 0.4].", "source_leak"),
        ] {
            assert_eq!(code(leak(text, true)), expected, "{text}");
        }
    }

    #[test]
    fn refusals_and_repetitions_are_found() {
        for (text, refuses) in [
            ("I'm sorry, but I can't help with that.", true),
            ("As an AI language model, I do not see.", true),
            ("I cannot see the image.", true),
            ("I’m really sorry", true),
            ("A man says sorry to a dog.", false),
            ("I can see two dogs.", false),
        ] {
            assert_eq!(refusal(text).is_some(), refuses, "{text}");
        }
        let exchange = |q: &str| Exchange { question: q.into(), answer: "a".into() };
        let asked =
            |questions: &[&str]| code(repeated_question(&questions.iter().map(|q| exchange(q)).collect::<Vec<_>>()));
        assert_eq!(asked(&["How many?", "Where?"]), "");
        assert_eq!(asked(&["How many dogs?", "Where?", "how  many, dogs"]), "repeated_question");
    }
}
