//! Path patterns: `*`, `?`, `[a-z]`, `**`, and the brace forms `{a,b}` and `{00000..00099}`.

/// Most paths that the braces of one pattern may stand for.
const MOST_PATHS: usize = 1_000_000;
/// Most bytes of all these paths, and of a pattern with braces: a few braces must not fill the memory.
const MOST_BYTES: usize = 256 << 20;
const LONGEST_PATTERN: usize = 64 << 10;
/// Digits of the largest number in a range (u64).
const MOST_DIGITS: usize = 20;

/// A pattern whose braces cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PatternError {
    /// What was expected and found.
    pub message: String,
}

/// Whether a path holds any of the pattern characters.
pub fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '[', '{'])
}

/// The part of a pattern before the first path component that holds a pattern character: the root that relative paths start from.
/// Ends with `/` unless it is empty; a path without pattern characters is rooted at its folder.
pub fn root(pattern: &str) -> &str {
    let literal = pattern.find(['*', '?', '[', '{']).map_or(pattern, |at| &pattern[..at]);
    literal.rfind('/').map_or("", |at| &literal[..=at])
}

/// The patterns that the braces of `pattern` stand for, in the order they are written. `{a,b}` lists alternatives; `{7..12}` and `{007..012}` count (with the width
/// of the first number, if that has leading zeros). Braces do not nest.
///
/// # Errors
/// An unclosed or nested brace, a range that counts down or has more than 20 digits, a pattern of more than 64 KiB, and paths that are more than a million or more
/// than 256 MiB in all.
pub fn expand_braces(pattern: &str) -> Result<Vec<String>, PatternError> {
    let error = |message: String| PatternError { message };
    if pattern.contains('{') && pattern.len() > LONGEST_PATTERN {
        let found = pattern.len();
        return Err(error(format!("expected a pattern of at most {LONGEST_PATTERN} bytes, found {found}")));
    }
    let (mut paths, mut rest) = (vec![String::new()], pattern);
    while let Some(open) = rest.find('{') {
        let (head, inside) = (&rest[..open], &rest[open + 1..]);
        let close = inside.find('}');
        let close = close.ok_or_else(|| error(format!("expected a closing `}}` in `{pattern}`, found none")))?;
        let (body, tail) = (&inside[..close], &inside[close + 1..]);
        if body.contains('{') {
            return Err(error(format!("expected no braces inside braces in `{pattern}`")));
        }
        let choices = choices(body).map_err(error)?;
        let count = choices.len().saturating_mul(paths.len());
        if count > MOST_PATHS {
            return Err(error(format!("`{pattern}` stands for more than {MOST_PATHS} paths")));
        }
        let length = |texts: &[String]| texts.iter().map(String::len).sum::<usize>();
        let bytes = length(&choices) * paths.len() + length(&paths) * choices.len() + head.len() * count;
        if bytes > MOST_BYTES {
            return Err(error(format!("`{pattern}` stands for paths of more than {MOST_BYTES} bytes")));
        }
        paths = paths.iter().flat_map(|path| choices.iter().map(move |c| format!("{path}{head}{c}"))).collect();
        rest = tail;
    }
    if rest.len().saturating_mul(paths.len()) > MOST_BYTES {
        return Err(error(format!("`{pattern}` stands for paths of more than {MOST_BYTES} bytes")));
    }
    paths.iter_mut().for_each(|path| path.push_str(rest));
    Ok(paths)
}

/// What stands between braces, one by one; else what is wrong with it.
fn choices(body: &str) -> Result<Vec<String>, String> {
    let Some((first, last)) = body.split_once("..") else { return Ok(body.split(',').map(str::to_owned).collect()) };
    let number = |text: &str| match text.len() <= MOST_DIGITS && text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<u64>().ok(),
        false => None,
    };
    let (Some(from), Some(to)) = (number(first), number(last)) else {
        return Err(format!("expected two whole numbers in `{{{body}}}`, such as `{{00000..00099}}`"));
    };
    if from > to {
        return Err(format!("expected a range that counts up, found `{{{body}}}`"));
    }
    if to - from >= MOST_PATHS as u64 {
        return Err(format!("`{{{body}}}` stands for more than {MOST_PATHS} paths"));
    }
    let width = if first.starts_with('0') { first.len() } else { 0 };
    Ok((from..=to).map(|n| format!("{n:0width$}")).collect())
}

/// Whether a path component matches a pattern component. `*` and `?` do not match a leading dot: hidden files must be named.
pub fn component_matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // Where to go on after the last `*` took one more character.
    let (mut p, mut n, mut retry) = (0, 0, None);
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            retry = Some((p, n));
            continue;
        }
        match one_matches(&pattern[p.min(pattern.len())..], name[n]) {
            Some(used) => {
                p += used;
                n += 1;
            }
            None => {
                let Some((after_star, taken)) = retry else { return false };
                retry = Some((after_star, taken + 1));
                (p, n) = (after_star, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether the first element of `pattern` (a character, `?` or a class) matches `c`, and how many pattern characters it is.
fn one_matches(pattern: &[char], c: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '[' => {
            let Some(close) = pattern.iter().skip(2).position(|p| *p == ']').map(|at| at + 2) else {
                return (c == '[').then_some(1);
            };
            let (negated, class) = match pattern[1] {
                '!' | '^' => (true, &pattern[2..close]),
                _ => (false, &pattern[1..close]),
            };
            let mut found = false;
            let mut i = 0;
            while i < class.len() {
                if class.get(i + 1) == Some(&'-') && i + 2 < class.len() {
                    found |= (class[i]..=class[i + 2]).contains(&c);
                    i += 3;
                } else {
                    found |= class[i] == c;
                    i += 1;
                }
            }
            (found != negated).then_some(close + 1)
        }
        literal => (*literal == c).then_some(1),
    }
}

/// Whether a `/`-separated path matches a pattern; `**` stands for any number of folders, none included.
pub fn path_matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    components_match(&pattern, &path)
}

fn components_match(pattern: &[&str], path: &[&str]) -> bool {
    // The reachable positions of the pattern, so that several `**` cost no more than their product with the path.
    let mut at = vec![false; pattern.len() + 1];
    at[0] = true;
    let skip_stars = |at: &mut Vec<bool>| {
        for p in 0..pattern.len() {
            if at[p] && pattern[p] == "**" {
                at[p + 1] = true;
            }
        }
    };
    skip_stars(&mut at);
    for name in path {
        let mut next = vec![false; pattern.len() + 1];
        for (p, component) in pattern.iter().enumerate().filter(|(p, _)| at[*p]) {
            if *component == "**" {
                next[p] |= !name.starts_with('.');
            } else if component_matches(component, name) {
                next[p + 1] = true;
            }
        }
        skip_stars(&mut next);
        at = next;
    }
    at[pattern.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn braces_expand_in_order() {
        let cases: [(&str, &[&str]); 6] = [
            ("a.tar", &["a.tar"]),
            ("x-{000..002}.tar", &["x-000.tar", "x-001.tar", "x-002.tar"]),
            ("{9..11}", &["9", "10", "11"]),
            ("{098..101}", &["098", "099", "100", "101"]),
            ("{a,b}/{1..2}", &["a/1", "a/2", "b/1", "b/2"]),
            ("{train,}x", &["trainx", "x"]),
        ];
        for (pattern, expected) in cases {
            assert_eq!(expand_braces(pattern).unwrap(), expected, "{pattern}");
        }
        for (pattern, message) in [
            ("a{b", "closing `}`"),
            ("{5..2}", "counts up"),
            ("{a..c}", "two whole numbers"),
            ("{-1..3}", "two whole numbers"),
            ("{{a}}", "no braces inside braces"),
            ("{0..99999999}", "more than 1000000 paths"),
            ("{0..9999}{0..9999}", "more than 1000000 paths"),
        ] {
            let error = expand_braces(pattern).unwrap_err();
            assert!(error.message.contains(message), "{pattern}: {error}");
        }
    }

    #[test]
    fn a_short_pattern_fills_neither_stack_nor_memory() {
        let zeros = |count| format!("{{{}1..999999}}", "0".repeat(count));
        for (pattern, message) in [
            // Wider than Rust formats a number.
            (zeros(70_000), "at most 65536 bytes"),
            (zeros(1000), "two whole numbers"),
            ("{a}".repeat(1_000_000), "at most 65536 bytes"),
            (format!("{{0..999999}}{}", "x".repeat(1000)), "more than 268435456 bytes"),
            (format!("{}{{0..999999}}", "x".repeat(1000)), "more than 268435456 bytes"),
        ] {
            let error = expand_braces(&pattern).unwrap_err();
            assert!(error.message.contains(message), "{}", &error.message[error.message.len().saturating_sub(200)..]);
        }
        assert_eq!(expand_braces(&"{a}".repeat(20_000)).unwrap(), ["a".repeat(20_000)]);
    }

    #[test]
    fn roots() {
        for (pattern, expected) in [
            ("data/a.jsonl", "data/"),
            ("a.jsonl", ""),
            ("/d/x*/y.tar", "/d/"),
            ("s3://bucket/a/{0..3}.tar", "s3://bucket/a/"),
            ("data/**/*.parquet", "data/"),
        ] {
            assert_eq!(root(pattern), expected);
        }
    }

    #[test]
    fn paths_that_match() {
        let cases = [
            ("*.jsonl", "a.jsonl", true),
            ("*.jsonl", ".a.jsonl", false),
            (".*", ".a", true),
            ("*.jsonl", "b/a.jsonl", false),
            ("**/*.jsonl", "b/c/a.jsonl", true),
            ("**/*.jsonl", "a.jsonl", true),
            ("**", "a/b", true),
            ("a/**/b/**/c", "a/x/b/c", true),
            ("a/**/b", "a/.git/b", false),
            ("part-[0-9][!a]?", "part-1bc", true),
            ("part-[0-9][!a]?", "part-1ac", false),
            ("[]x]", "]", true),
            ("[ab", "[ab", true),
            ("a*b*c", "a--b-bc", true),
            ("a*b*c", "a--b-b", false),
            ("", "", true),
            ("*", "ü🐕", true),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(path_matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_is_tried_without_panic(pattern in "[a*?\\[\\]!{}.,/-]{0,12}", path in "[ab./\\[-]{0,12}") {
            let _ = path_matches(&pattern, &path);
            let _ = expand_braces(&pattern);
            prop_assert!(pattern.starts_with(root(&pattern)));
        }

        #[test]
        fn a_path_matches_itself(path in "[a-z0-9.]{1,8}(/[a-z0-9.]{1,8}){0,3}") {
            prop_assert!(path_matches(&path, &path));
        }
    }
}
