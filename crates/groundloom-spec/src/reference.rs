//! `${param}`, `${env:NAME}` and the escape `$${` inside text.

use std::borrow::Cow;
use std::ops::Range;

/// What a `${…}` refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference<'a> {
    /// `${name}`.
    Param(&'a str),
    /// `${env:NAME}`.
    Variable(&'a str),
}

/// A piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// Text as it is meant: `$${` has become `${`.
    Text(Cow<'a, str>),
    /// A reference, and the bytes it takes from `$` to `}`.
    Reference { reference: Reference<'a>, range: Range<usize> },
}

/// A `${` that is no reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadReference {
    /// The bytes from `$` on.
    pub range: Range<usize>,
    pub message: String,
}

/// Whether this can be the name of a param, a component or an environment variable.
pub(crate) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Cuts a text into what stands as it is and what refers to something.
///
/// After a [`BadReference`] the text goes on behind it, so that all are found.
pub(crate) fn parts(text: &str) -> impl Iterator<Item = Result<Part<'_>, BadReference>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
        if rest.starts_with("$${") {
            at += 3;
            return Some(Ok(Part::Text("${".into())));
        }
        if let Some(inner) = rest.strip_prefix("${") {
            return Some(reference(inner, &mut at));
        }
        // `$${` begins one byte before its `${`.
        let end = match rest.find("${") {
            Some(found) if rest[..found].ends_with('$') => found - 1,
            Some(found) => found,
            None => rest.len(),
        };
        at += end;
        Some(Ok(Part::Text(rest[..end].into())))
    })
}

/// Reads a reference whose `${` is at `*at` and whose rest is `inner`, and moves `*at` behind it.
fn reference<'a>(inner: &'a str, at: &mut usize) -> Result<Part<'a>, BadReference> {
    let start = *at;
    let Some(length) = inner.find(['}', '\n']).filter(|end| inner[*end..].starts_with('}')) else {
        let line = inner.split('\n').next().unwrap_or_default();
        *at += 2 + line.len();
        return Err(BadReference { range: start..*at, message: "`${` has no closing `}`".to_owned() });
    };
    *at += 2 + length + 1;
    let range = start..*at;
    let name = &inner[..length];
    let (reference, name, what) = match name.split_once(':') {
        None => (Reference::Param(name), name, "a param"),
        Some(("env", variable)) => (Reference::Variable(variable), variable, "an environment variable"),
        Some((scheme, _)) => {
            return Err(BadReference {
                range,
                message: format!(
                    "`${{{}:…}}` is unknown; there are `${{param}}` and `${{env:NAME}}`",
                    crate::render::printable(scheme)
                ),
            });
        }
    };
    if is_name(name) {
        Ok(Part::Reference { reference, range })
    } else {
        Err(BadReference {
            range,
            message: format!(
                "{} can't be the name of {what}: expected letters, digits and `_`, not beginning with a digit",
                crate::spelling::excerpt(name)
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        parts(text)
            .map(|part| match part {
                Ok(Part::Text(text)) => format!("[{text}]"),
                Ok(Part::Reference { reference, range }) => {
                    format!("<{reference:?} {}>", &text[range])
                }
                Err(bad) => format!("!{}: {}!", &text[bad.range], bad.message),
            })
            .collect()
    }

    #[test]
    fn references_and_escapes() {
        for (text, expected) in [
            ("", ""),
            ("plain $5 {x} $", "[plain $5 {x} $]"),
            ("${a}", r#"<Param("a") ${a}>"#),
            ("out/${a}-${env:B}.x", r#"[out/]<Param("a") ${a}>[-]<Variable("B") ${env:B}>[.x]"#),
            ("$${a}", "[${][a}]"),
            ("x$${a}", "[x][${][a}]"),
            ("$$${a}", "[$][${][a}]"),
            ("ü${a}ü", r#"[ü]<Param("a") ${a}>[ü]"#),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn malformed_references() {
        insta::assert_snapshot!(shown("a ${b"), @"[a ]!${b: `${` has no closing `}`!");
        insta::assert_snapshot!(shown("${a\n}"), @r"
        !${a: `${` has no closing `}`![
        }]
        ");
        insta::assert_snapshot!(shown("${} ${a b} ${1}"), @r#"!${}: "" can't be the name of a param: expected letters, digits and `_`, not beginning with a digit![ ]!${a b}: "a b" can't be the name of a param: expected letters, digits and `_`, not beginning with a digit![ ]!${1}: "1" can't be the name of a param: expected letters, digits and `_`, not beginning with a digit!"#);
        insta::assert_snapshot!(shown("${file:x} ${env:} ${env:A-B}"), @r#"!${file:x}: `${file:…}` is unknown; there are `${param}` and `${env:NAME}`![ ]!${env:}: "" can't be the name of an environment variable: expected letters, digits and `_`, not beginning with a digit![ ]!${env:A-B}: "A-B" can't be the name of an environment variable: expected letters, digits and `_`, not beginning with a digit!"#);
    }
}
