//! Text into HTML: everything that comes from data is escaped here, and templates are filled in one pass.

use std::fmt::{self, Display, Write as _};

/// Text as HTML text or a quoted attribute value.
///
/// Markup is escaped. Control characters, which browsers drop or replace, show as Unicode's control pictures, so that a NUL or an escape in a caption is seen; tabs and newlines stay.
/// The directional overrides and isolates are shown as their names' initials, so that they cannot reorder the text around them.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\t' | '\n' => f.write_char(c)?,
                '\0'..='\u{1f}' => f.write_char(char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'))?,
                '\u{7f}' => f.write_char('\u{2421}')?,
                '\u{80}'..='\u{9f}' => f.write_char('\u{fffd}')?,
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => write!(f, "[U+{:04X}]", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Fills `{{name}}` places of a template. What is filled in is not looked at again, so data that looks like a place stays text.
pub(super) fn fill(template: &str, mut value: impl FnMut(&str, &mut String)) -> String {
    let mut page = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, after)) = after.split_once("}}") else { break };
        page.push_str(before);
        value(name.trim(), &mut page);
        rest = after;
    }
    page.push_str(rest);
    page
}

/// The first `chars` characters, with an ellipsis where text was cut.
pub(super) fn excerpt(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((byte, _)) => format!("{}…", text[..byte].trim_end()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_text_is_shown() {
        let cases = [
            ("</script><script>alert(1)</script>", "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;"),
            ("\" onload='x'", "&quot; onload=&#39;x&#39;"),
            ("a\0b\u{1b}[31m", "a␀b␛[31m"),
            ("\u{202e}gpj.exe", "[U+202E]gpj.exe"),
            ("tab\tline\nשלום 🐕", "tab\tline\nשלום 🐕"),
        ];
        for (text, html) in cases {
            assert_eq!(Text(text).to_string(), html);
        }
    }

    #[test]
    fn filled_places_are_not_filled_again() {
        let page = fill("<b>{{a}}</b>{{ b }}", |name, page| page.push_str(if name == "a" { "{{b}}" } else { "2" }));
        assert_eq!(page, "<b>{{b}}</b>2");
        assert_eq!(fill("open {{ end", |_, _| ()), "open {{ end");
    }

    proptest! {
        #[test]
        fn no_markup_survives(text in any::<String>()) {
            let html = Text(&text).to_string();
            prop_assert!(!html.contains(['<', '>', '"', '\'', '\0']));
            let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
            for (at, _) in html.match_indices('&') {
                prop_assert!(entities.iter().any(|e| html[at..].starts_with(e)));
            }
        }
    }
}
