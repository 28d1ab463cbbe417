//! Diagnostics as text for a terminal or a log.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::diagnostic::{Diagnostic, Diagnostics, Severity, severity_name};
use crate::source::{SourceFile, Span};

/// All findings with the source lines they are about, each ending in a blank line.
///
/// The first line of a finding is `file:line:column: error[code]: message`, which editors and CI
/// systems recognise; the lines below show the source with the place underlined, remarks and help.
/// With `color`, ANSI escapes are added. Control characters of the source and of messages are made
/// visible, so a hostile file can't drive the terminal.
pub fn render(file: &SourceFile, diagnostics: &Diagnostics, color: bool) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        out.push_str(&headline(file, diagnostic, color));
        out.push('\n');
        let body = body(file, diagnostic, color);
        if !body.is_empty() {
            out.push_str(&body);
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

fn headline(file: &SourceFile, diagnostic: &Diagnostic, color: bool) -> String {
    let place = match diagnostic.span {
        Some(span) => {
            let at = file.location(span.start);
            format!("{}:{}:{}", printable(&file.name), at.line, at.column)
        }
        None => printable(&file.name),
    };
    let severity = severity_name(diagnostic.severity);
    let message = printable(&diagnostic.message);
    let code = diagnostic.code;
    if color {
        let hue = match diagnostic.severity {
            Severity::Error => 31,
            Severity::Warning => 33,
        };
        format!("{place}: \x1b[1;{hue}m{severity}[{code}]\x1b[0m\x1b[1m: {message}\x1b[0m")
    } else {
        format!("{place}: {severity}[{code}]: {message}")
    }
}

fn body(file: &SourceFile, diagnostic: &Diagnostic, color: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut group = Group::with_level(level);
    if let Some(span) = diagnostic.span {
        let label = printable(&diagnostic.label);
        let mut snippet = Snippet::source(&file.text).annotation(
            AnnotationKind::Primary.span(underlined(file, span)).label((!label.is_empty()).then_some(label)),
        );
        for note in &diagnostic.notes {
            if let Some(span) = note.span {
                snippet = snippet
                    .annotation(AnnotationKind::Context.span(underlined(file, span)).label(printable(&note.text)));
            }
        }
        group = group.element(snippet);
    }
    for note in &diagnostic.notes {
        if note.span.is_none() || diagnostic.span.is_none() {
            group = group.element(Level::NOTE.message(printable(&note.text)));
        }
    }
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(printable(help)));
    }
    if group.is_empty() {
        return String::new();
    }
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    renderer.decor_style(DecorStyle::Ascii).render(&[group])
}

/// A span of several lines is shown by its first: the place is what matters, and a component can be
/// a page long.
fn underlined(file: &SourceFile, span: Span) -> std::ops::Range<usize> {
    let span = file.clamp(span);
    let text = file.slice(span);
    let line = text.split(['\n', '\r']).next().unwrap_or_default();
    span.start..span.start + line.trim_end().len()
}

/// The text in one line, its control characters visible as escapes.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_bidi_control(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// These reorder the text around them, so that a message could show something it doesn't say.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
