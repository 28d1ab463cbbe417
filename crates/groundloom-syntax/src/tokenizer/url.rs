//! Whether a whole token is a URL.
//!
//! spaCy's `url_match` is one regular expression anchored at both ends, so only the
//! language that it accepts matters: `scheme? userinfo? host port? rest?`. Each part can
//! be recognised from where it starts, without search: a host ends at the first of `:`,
//! `/`, `?`, `#`, and user info may be anything that ends with `@`.

use super::charset::CharSet;
use super::patterns::parse_class;
use crate::error::{Result, unsupported};
use crate::strings;
use crate::unicode;

/// Hash of spaCy's pattern without the characters of the top-level domain.
const SKELETON: u64 = 0xf034_b6dd_80e6_5e4d;
const REPEAT: &str = "]{2,63})";

#[derive(Debug)]
pub(super) struct UrlPattern {
    /// Characters of a top-level domain.
    top_level: CharSet,
}

impl UrlPattern {
    /// Accepts spaCy's own pattern with any set of top-level domain characters.
    pub(super) fn compile(pattern: &str) -> Result<Self> {
        let other = || unsupported("spaCy's own `url_match`", "another pattern");
        let end = pattern.find(REPEAT).ok_or_else(other)?;
        let start = pattern[..end].rfind('[').ok_or_else(other)?;
        let skeleton = [&pattern[..start], &pattern[end + 1..]].concat();
        if strings::hash(skeleton.as_bytes()) != SKELETON {
            return Err(other());
        }
        let top_level = parse_class(&pattern[start + 1..end], "url_match")?;
        if ".:/?#@".chars().any(|c| top_level.contains(c)) {
            return Err(unsupported("letters in top-level domains", "punctuation"));
        }
        Ok(Self { top_level })
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        if !text.contains('.') {
            return false;
        }
        let after_at = text.match_indices('@').map(|(i, _)| i + 1).filter(|&i| i > 1);
        self.host_onwards(text)
            || after_scheme(text).is_some_and(|i| self.host_onwards(&text[i..]))
            || after_at.into_iter().any(|i| self.host_onwards(&text[i..]))
    }

    /// `host port? rest?`
    fn host_onwards(&self, text: &str) -> bool {
        // An `@` is in no host: stopping there keeps a run of them from costing its square.
        let end = text.find([':', '/', '?', '#', '@']).unwrap_or(text.len());
        let (host, rest) = text.split_at(end);
        let rest = match rest.strip_prefix(':') {
            None => rest,
            Some(port) => {
                let digits = port.find(|c| !unicode::is_decimal(c)).unwrap_or(port.len());
                if !(2..=5).contains(&port[..digits].chars().count()) {
                    return false;
                }
                &port[digits..]
            }
        };
        (rest.is_empty() || rest.starts_with(['/', '?', '#'])) && (is_public_ipv4(host) || self.is_name(host))
    }

    /// Labels of at most 64 characters and a top-level domain of 2 to 63.
    fn is_name(&self, host: &str) -> bool {
        let Some((labels, top)) = host.rsplit_once('.') else { return false };
        (2..=63).contains(&top.chars().take(64).count())
            && top.chars().all(|c| self.top_level.contains(c))
            && labels.split('.').all(is_label)
    }
}

/// The byte after `scheme://`.
fn after_scheme(text: &str) -> Option<usize> {
    let at = text.find("://")?;
    let scheme = &text[..at];
    let sound = scheme.chars().all(|c| unicode::is_word(c) || "+-.".contains(c));
    (sound && scheme.chars().nth(1).is_some()).then_some(at + 3)
}

fn is_label(label: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric() || ('\u{a1}'..='\u{ffff}').contains(&c);
    label.starts_with(edge)
        && label.ends_with(edge)
        && label.chars().take(65).count() <= 64
        && label.chars().all(|c| edge(c) || c == '_' || c == '-')
}

/// Dotted quads outside the private, loopback and link-local ranges.
fn is_public_ipv4(host: &str) -> bool {
    let octets: Vec<&str> = host.split('.').take(5).collect();
    let [a, b, c, d] = octets[..] else { return false };
    let private = matches!(a, "10" | "127")
        || matches!((a, b), ("169", "254") | ("192", "168"))
        || a == "172" && is_octet(b, |tens| matches!(tens, '1' | '2' | '3'), 16, 31);
    !private && is_leading(a, 223) && is_middle(b) && is_middle(c) && is_leading(d, 254)
}

/// Two digits with a value in `low..=high`, the last of any script.
fn is_octet(text: &str, tens: impl Fn(char) -> bool, low: u32, high: u32) -> bool {
    let chars: Vec<char> = text.chars().collect();
    let [ten, unit] = chars[..] else { return false };
    if !tens(ten) {
        return false;
    }
    match unit.to_digit(10) {
        Some(unit) => ten.to_digit(10).is_some_and(|t| (low..=high).contains(&(t * 10 + unit))),
        // The pattern says `\d` after a 2 only, and there any digit is in range.
        None => ten == '2' && unicode::is_decimal(unit),
    }
}

/// An octet of one to three digits that doesn't begin with 0 and is at most `max`.
fn is_leading(octet: &str, max: u32) -> bool {
    let chars: Vec<char> = octet.chars().take(4).collect();
    let digit = unicode::is_decimal;
    match chars[..] {
        [a] => ('1'..='9').contains(&a),
        [a, b] => ('1'..='9').contains(&a) && digit(b),
        ['1', b, c] => digit(b) && digit(c),
        // 200 up to the last full ten may end in any script's digit; the last ten is spelt out.
        ['2', b, c] => {
            let tens = max / 10 % 10;
            match b.to_digit(10) {
                Some(b) if b < tens => digit(c),
                Some(b) if b == tens => c.to_digit(10).is_some_and(|c| c <= max % 10),
                _ => false,
            }
        }
        _ => false,
    }
}

/// An octet between dots, where leading zeros are allowed.
fn is_middle(octet: &str) -> bool {
    let chars: Vec<char> = octet.chars().take(4).collect();
    let digit = unicode::is_decimal;
    match chars[..] {
        [a] => digit(a),
        [a, b] => digit(a) && digit(b),
        ['1', b, c] => digit(b) && digit(c),
        ['2', b, c] => match b {
            '0'..='4' => digit(c),
            '5' => ('0'..='5').contains(&c),
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lower_case() -> UrlPattern {
        UrlPattern { top_level: CharSet::from_ranges([(0x61, 0x7a)], false) }
    }

    #[test]
    fn accepts_and_refuses_what_spacy_does() {
        let url = lower_case();
        for text in [
            "example.com",
            "http://a.b-c.de/x?y#z",
            "ftp.x+y://user:pw@host.org:8080",
            "@@x.yz",
            "me@site.co",
            "1.1.1.1:80",
            "8.08.0.1/",
            "éé.fr",
            "a_b.cd",
        ] {
            assert!(url.is_match(text), "{text}");
        }
        for text in [
            "example",
            "http://",
            "a.b",
            "-a.com",
            "a-.com",
            "a..com",
            "10.1.1.1",
            "172.16.1.1",
            "192.168.0.1",
            "224.1.1.1",
            "1.256.1.1",
            "1.1.1.0",
            "example.com:1",
            "example.com:123456",
            "example.com:80x",
            "h://1.1.1.0",
            "@x.y",
        ] {
            assert!(!url.is_match(text), "{text}");
        }
    }
}
