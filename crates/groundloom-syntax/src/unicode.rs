//! Python's view of characters, which spaCy's answers depend on.
//!
//! spaCy asks Python's `str` whether a character is a letter, a digit, a space. Rust's
//! standard library carries a newer Unicode version and other derived properties, so the
//! classes of Python 3.11 (Unicode 14.0) are kept as tables.

mod tables;

fn in_table(table: &[(u32, u32)], c: char) -> bool {
    let c = c as u32;
    let after = table.partition_point(|&(start, _)| start <= c);
    after > 0 && table.get(after - 1).is_some_and(|&(_, end)| c <= end)
}

/// `str.isalpha` of one character: general category L*.
pub(crate) fn is_alpha(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphabetic() } else { in_table(tables::ALPHABETIC, c) }
}

/// `str.isupper` of one letter.
pub(crate) fn is_upper(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_uppercase() } else { in_table(tables::UPPERCASE, c) }
}

/// `str.isdigit`: decimal digits, superscripts and circled digits.
pub(crate) fn is_digit(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_digit() } else { in_table(tables::DIGIT, c) }
}

/// `\d` of Python's `re`: general category Nd.
pub(crate) fn is_decimal(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_digit() } else { in_table(tables::DECIMAL, c) }
}

/// `\w` of Python's `re`: letters, numbers and the underscore, without combining marks.
pub(crate) fn is_word(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphanumeric() || c == '_' } else { in_table(tables::ALPHANUMERIC, c) }
}

/// `str.isspace`: Rust's white space and the four information separators.
pub(crate) fn is_space(c: char) -> bool {
    match c {
        ' ' | '\t'..='\r' | '\x1c'..='\x1f' => true,
        c if c.is_ascii() => false,
        c => c.is_whitespace(),
    }
}

/// `str.lower`: full lower-casing with the final sigma rule.
///
/// Letters that Unicode assigned after version 14 stay as they are. Such a letter is
/// neither cased nor ignorable to Python, so it parts the text for the sigma rule exactly
/// as the text's ends do, and each piece can be lower-cased by itself.
pub(crate) fn lower(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    if !text.chars().any(is_unassigned) {
        return text.to_lowercase();
    }
    let mut out = String::with_capacity(text.len());
    for piece in text.split_inclusive(is_unassigned) {
        match piece.chars().next_back() {
            Some(last) if is_unassigned(last) => {
                out.push_str(&piece[..piece.len() - last.len_utf8()].to_lowercase());
                out.push(last);
            }
            _ => out.push_str(&piece.to_lowercase()),
        }
    }
    out
}

fn is_unassigned(c: char) -> bool {
    !c.is_ascii() && in_table(tables::UNASSIGNED, c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_pythons_not_rusts() {
        // A combining mark with the Alphabetic property, a Roman numeral, a letter of Unicode 15.
        for c in ['\u{345}', 'Ⅷ', '\u{10efd}'] {
            assert!(!is_alpha(c), "{c:?}");
        }
        assert!(is_alpha('ª') && is_alpha('中') && is_alpha('ǅ'));
        assert!(!is_upper('ǅ') && is_upper('É'));
        assert!(is_digit('²') && is_digit('①') && is_digit('٣') && !is_digit('½'));
        assert!(is_decimal('٣') && !is_decimal('²'));
        assert!(is_word('½') && is_word('_') && !is_word('\u{301}'));
    }

    #[test]
    fn spaces_include_information_separators() {
        for c in ['\x1c', '\x1f', '\u{85}', '\u{a0}', '\u{3000}', '\u{2028}', ' ', '\t'] {
            assert!(is_space(c), "{c:?}");
        }
        for c in ['\u{200b}', '\u{feff}', '\u{180e}', 'x'] {
            assert!(!is_space(c), "{c:?}");
        }
    }

    #[test]
    fn lower_casing_is_full_and_of_unicode_14() {
        for (text, expected) in [
            ("ΟΔΟΣ", "οδος"),
            ("ΟΔΟΣΑ", "οδοσα"),
            ("İ", "i\u{307}"),
            ("STRASSE ẞ", "strasse ß"),
            // U+A7CB got its lower case in Unicode 16 and ends the word before it.
            ("ΑΣ\u{a7cb}Σ", "ας\u{a7cb}σ"),
        ] {
            assert_eq!(lower(text), expected, "{text}");
        }
    }
}
