//! Where a referring expression begins and ends: trims what punctuation and space a subtree took along.
//!
//! A dependency subtree covers every token between its edges, so the subtree of *dog* in "A dog in a field of flowers." ends with the full stop, and that of a quoted
//! noun phrase may hold one quotation mark out of two. GrIT's authors take those edges as they are (their `ref_exps` show it); a phrase that a model should learn to
//! point at is better without. The rule here is ours:
//!
//! - space and control characters go;
//! - sentence punctuation, dashes and separators go;
//! - a bracket or quotation mark goes where its partner is outside the span, or where both wrap the whole span; balanced ones stay;
//! - nothing else goes: `#`, `+`, `%`, emoji and letters are part of names.

use groundloom_data::CharSpan;

/// Narrows `span`, character positions of `text`, until neither end is stray punctuation or space.
///
/// The end never moves below `keep.end` and the start never above `keep.start`, which is how the full stop of "Washington D.C." survives:
/// the chunk's head noun ends with it. `keep` must lie inside `span`; a span outside the text is cut to it.
pub fn trim_edges(text: &[char], span: CharSpan, keep: CharSpan) -> CharSpan {
    let mut end = span.end.min(text.len());
    let mut start = span.start.min(end);
    let (keep_start, keep_end) = (keep.start.clamp(start, end), keep.end.clamp(start, end));
    loop {
        let Some((&first, &last)) = text[start..end].first().zip(text[start..end].last()) else {
            return CharSpan { start, end };
        };
        let (open, close) = (start < keep_start, end > keep_end);
        let inside = &text[start..end];
        if close && is_stray_end(inside, last) {
            end -= 1;
        } else if open && is_stray_start(inside, first) {
            start += 1;
        } else if open && close && is_wrapped(inside) {
            start += 1;
            end -= 1;
        } else {
            return CharSpan { start, end };
        }
    }
}

/// Whether the last character of `inside` does not belong to the phrase.
fn is_stray_end(inside: &[char], last: char) -> bool {
    match mark(last) {
        Mark::Space | Mark::Separator | Mark::Opening(_) => true,
        Mark::Closing(opening) => !closes(inside, opening, last),
        Mark::Straight => quotes(inside, last) % 2 == 1,
        Mark::Apostrophe => !inside.contains(&'\u{2018}'),
        Mark::None => false,
    }
}

/// Whether the first character of `inside` does not belong to the phrase.
fn is_stray_start(inside: &[char], first: char) -> bool {
    let elides = matches!(first, '\'' | '\u{2018}' | '\u{2019}') && inside.get(1).is_some_and(char::is_ascii_digit);
    match mark(first) {
        _ if elides => false, // ’90s
        Mark::Space | Mark::Separator | Mark::Closing(_) => true,
        Mark::Opening(closing) => !opens(inside, first, closing),
        Mark::Straight => quotes(inside, first) % 2 == 1,
        Mark::Apostrophe => true,
        Mark::None => false,
    }
}

/// Whether the first and the last character of `inside` are one pair.
fn is_wrapped(inside: &[char]) -> bool {
    let [first, middle @ .., last] = inside else { return false };
    match mark(*first) {
        Mark::Opening(closing) if closing == *last => {
            let mut depth = 0_usize;
            middle.iter().all(|&c| {
                if c == *first {
                    depth += 1;
                } else if c == closing {
                    if depth == 0 {
                        return false;
                    }
                    depth -= 1;
                }
                true
            })
        }
        Mark::Straight => first == last && quotes(inside, *first) == 2,
        _ => false,
    }
}

/// Whether the closing mark that ends `inside` has its opening one in there.
fn closes(inside: &[char], opening: char, closing: char) -> bool {
    let mut depth = 0_usize;
    for &c in inside.iter().rev() {
        if c == closing {
            depth += 1;
        } else if c == opening {
            depth -= 1;
            if depth == 0 {
                return true;
            }
        }
    }
    false
}

/// Whether the opening mark that begins `inside` has its closing one in there.
fn opens(inside: &[char], opening: char, closing: char) -> bool {
    let mut depth = 0_usize;
    for &c in inside {
        if c == opening {
            depth += 1;
        } else if c == closing {
            depth -= 1;
            if depth == 0 {
                return true;
            }
        }
    }
    false
}

/// How often the straight quotation mark `wanted` quotes; between two letters or digits it is an apostrophe.
fn quotes(inside: &[char], wanted: char) -> usize {
    let letter = |at: Option<usize>| at.and_then(|at| inside.get(at)).is_some_and(|c| c.is_alphanumeric());
    inside
        .iter()
        .enumerate()
        .filter(|&(at, &c)| c == wanted && !(letter(at.checked_sub(1)) && letter(Some(at + 1))))
        .count()
}

/// What a character does at the end of a phrase.
enum Mark {
    /// White space, a control or an invisible formatting character.
    Space,
    /// Ends or divides sentences and lists.
    Separator,
    /// Opens a bracket or quotation that this character closes.
    Opening(char),
    /// Closes a bracket or quotation that this character opens.
    Closing(char),
    /// A quotation mark that opens and closes.
    Straight,
    /// U+2019, closing quotation mark and apostrophe in one.
    Apostrophe,
    /// Part of the phrase.
    None,
}

fn mark(c: char) -> Mark {
    match c {
        '(' => Mark::Opening(')'),
        ')' => Mark::Closing('('),
        '[' => Mark::Opening(']'),
        ']' => Mark::Closing('['),
        '{' => Mark::Opening('}'),
        '}' => Mark::Closing('{'),
        '<' => Mark::Opening('>'),
        '>' => Mark::Closing('<'),
        '\u{201C}' => Mark::Opening('\u{201D}'),
        '\u{201D}' => Mark::Closing('\u{201C}'),
        '\u{2018}' => Mark::Opening('\u{2019}'),
        '\u{2019}' => Mark::Apostrophe,
        '«' => Mark::Opening('»'),
        '»' => Mark::Closing('«'),
        '（' => Mark::Opening('）'),
        '）' => Mark::Closing('（'),
        '「' => Mark::Opening('」'),
        '」' => Mark::Closing('「'),
        '『' => Mark::Opening('』'),
        '』' => Mark::Closing('『'),
        '"' | '\'' | '`' => Mark::Straight,
        '.' | ',' | ';' | ':' | '!' | '?' | '…' | '|' | '/' | '\\' | '•' | '·' | '~' | '_' => Mark::Separator,
        '-' | '\u{2010}'..='\u{2015}' | '\u{2212}' => Mark::Separator,
        '¡' | '¿' | '‽' | '،' | '؛' | '؟' | '۔' | '\u{05BE}' | '\u{05C3}' | '।' | '॥' => Mark::Separator,
        '、' | '。' | '，' | '．' | '！' | '？' | '；' | '：' => Mark::Separator,
        // Zero-width space, directional marks and isolates, the byte order mark. Not the joiners U+200C and U+200D: emoji and Persian words need them.
        '\u{200B}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}' => {
            Mark::Space
        }
        c if c.is_whitespace() || c.is_control() => Mark::Space,
        _ => Mark::None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use proptest::prelude::*;

    /// Trims all of `text`; what equals `kept` (its first occurrence) is untouchable.
    fn trimmed(text: &str, kept: &str) -> String {
        let chars: Vec<char> = text.chars().collect();
        let at = text.find(kept).expect("kept text stands in the text");
        let keep_start = text[..at].chars().count();
        let keep = CharSpan { start: keep_start, end: keep_start + kept.chars().count() };
        let span = trim_edges(&chars, CharSpan { start: 0, end: chars.len() }, keep);
        chars[span.start..span.end].iter().collect()
    }

    #[test]
    fn ends_lose_stray_punctuation_and_keep_what_belongs() {
        let cases = [
            ("A dog in a field of flowers.", "dog", "A dog in a field of flowers"),
            ("A dog in a field of flowers .  ", "dog", "A dog in a field of flowers"),
            ("a dog, ", "dog", "a dog"),
            ("- a dog on grass", "dog", "a dog on grass"),
            ("— a dog on grass —", "dog", "a dog on grass"),
            ("a dog in snow!?…", "dog", "a dog in snow"),
            ("a dog | ", "dog", "a dog"),
            ("• a dog", "dog", "a dog"),
            ("A woman (left) with a red hat", "woman", "A woman (left) with a red hat"),
            ("A woman with a red hat (left)", "woman", "A woman with a red hat (left)"),
            ("A woman with a red hat (left).", "woman", "A woman with a red hat (left)"),
            ("a woman with a red hat)", "woman", "a woman with a red hat"),
            ("(a woman with a red hat", "woman", "a woman with a red hat"),
            ("a woman (", "woman", "a woman"),
            (") a woman", "woman", "a woman"),
            ("(left) a woman", "woman", "(left) a woman"),
            ("(a woman with a red hat)", "woman", "a woman with a red hat"),
            ("(a woman) with (a red hat)", "woman", "(a woman) with (a red hat)"),
            ("((a woman))", "woman", "a woman"),
            ("a woman (in a (red) hat))", "woman", "a woman (in a (red) hat)"),
            ("\"Starry Night\" by van Gogh", "Night", "\"Starry Night\" by van Gogh"),
            ("a poster that says \"stop\"", "poster", "a poster that says \"stop\""),
            ("a poster that says \"stop\".", "poster", "a poster that says \"stop\""),
            ("a poster that says \"stop.\"", "poster", "a poster that says \"stop.\""),
            ("\"a dog in a field", "dog", "a dog in a field"),
            ("a dog in a field\"", "dog", "a dog in a field"),
            ("\"a dog in a field\"", "dog", "a dog in a field"),
            ("“a dog in a field”", "dog", "a dog in a field"),
            ("a dog called “Rex”", "dog", "a dog called “Rex”"),
            ("a dog called Rex”,", "dog", "a dog called Rex"),
            ("‘a dog’", "dog", "a dog"),
            ("a dog called ‘Rex’", "dog", "a dog called ‘Rex’"),
            ("the dogs’ house", "house", "the dogs’ house"),
            ("’90s cars in a row", "cars", "’90s cars in a row"),
            ("'90s cars in a row", "cars", "'90s cars in a row"),
            ("'a dog's bone'", "bone", "a dog's bone"),
            ("a poster that says 'don't'", "poster", "a poster that says 'don't'"),
            ("the house of the Joneses’", "house", "the house of the Joneses"),
            ("a view of Washington D.C.", "Washington D.C.", "a view of Washington D.C."),
            ("a view of Washington D.C..", "Washington D.C.", "a view of Washington D.C."),
            ("a book about C#", "book", "a book about C#"),
            ("a sale of 50%", "sale", "a sale of 50%"),
            ("a dog in a field 🐶", "dog", "a dog in a field 🐶"),
            ("a family 👨\u{200D}👩\u{200D}👧.", "family", "a family 👨\u{200D}👩\u{200D}👧"),
            ("\u{FEFF}\ta dog\n\0", "dog", "a dog"),
            ("كلب في حقل،", "كلب", "كلب في حقل"),
            ("\u{202B}كلب في حقل؟\u{202C}", "كلب", "كلب في حقل"),
        ];
        for (text, kept, expected) in cases {
            assert_eq!(trimmed(text, kept), expected, "{text:?}");
        }
    }

    #[test]
    fn a_phrase_of_punctuation_alone_is_kept() {
        assert_eq!(trimmed("...", "..."), "...");
    }

    proptest! {
        #[test]
        fn the_result_lies_between_the_kept_part_and_the_span(
            text in "[a-c ().,\"'“”‘’«»\\-\\[\\]\u{0}\t\u{200F}é🐶]{0,24}", a in 0_usize..30, b in 0_usize..30, c in 0_usize..30, d in 0_usize..30,
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut bounds = [a, b, c, d];
            bounds.sort_unstable();
            let [start, keep_start, keep_end, end] = bounds.map(|at| at.min(chars.len()));
            let keep = CharSpan { start: keep_start, end: keep_end };
            let span = trim_edges(&chars, CharSpan { start, end }, keep);
            prop_assert!(start <= span.start && span.end <= end && span.start <= span.end);
            prop_assert!(span.start <= keep_start.max(start) && span.end >= keep_end);
            prop_assert_eq!(trim_edges(&chars, span, keep), span, "a second pass changes nothing");
        }

        #[test]
        fn balanced_text_stays_balanced(text in "[a-c ]{1,5}(\\([a-c ]{1,5}\\)[a-c ]{0,5}){1,3}") {
            let chars: Vec<char> = text.chars().collect();
            let span = trim_edges(&chars, CharSpan { start: 0, end: chars.len() }, CharSpan { start: 0, end: 1 });
            let inside = &chars[span.start..span.end];
            let count = |wanted| inside.iter().filter(|&&c| c == wanted).count();
            prop_assert_eq!(count('('), count(')'));
        }
    }
}
