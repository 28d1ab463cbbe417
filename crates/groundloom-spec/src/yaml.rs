//! YAML text to [`Node`]s.
//!
//! The syntax is granit-parser's; this module builds the tree and refuses what a pipeline file has
//! no use for (anchors, tags, several documents), each with what to write instead.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::node::{Entry, Node, Number, NumberValue, Value};
use crate::source::{SourceFile, Span};
use crate::spelling::excerpt;

/// How deep lists and maps may nest; everything that walks a tree recurses, so this bounds the stack.
pub(crate) const MAX_DEPTH: usize = 64;

/// Reads the one document of a file. Findings go to `diagnostics`; nothing is given for an empty
/// file and where the syntax is broken.
pub(crate) fn read(file: &SourceFile, diagnostics: &mut Diagnostics) -> Option<Node> {
    let options = granit_parser::options! {
        emit_anchor_events: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut reader = Reader { file, diagnostics, open: Vec::new(), root: None };
    let mut documents = 0;
    for next in Parser::new_from_str_with_options(&file.text, options) {
        match next {
            Ok((Event::DocumentStart(..), span)) => {
                documents += 1;
                if documents > 1 {
                    let diagnostic = Diagnostic::error(
                        "multiple_documents",
                        "a pipeline file is one YAML document, and here another begins",
                    );
                    reader.diagnostics.push(
                        diagnostic
                            .at(place(file, span))
                            .label("second document")
                            .help("put each pipeline in a file of its own"),
                    );
                    return None;
                }
            }
            Ok((event, span)) => {
                let tag = span.tag_span().map(|tag| place(file, tag));
                reader.event(event, place(file, span), tag)?;
            }
            Err(error) => {
                let diagnostic = syntax(file, &error);
                reader.diagnostics.push(diagnostic);
                return None;
            }
        }
    }
    let root = reader.root;
    let nothing = root.as_ref().is_none_or(|root| root.value == Value::Null);
    if nothing && !diagnostics.has_errors() {
        diagnostics.push(
            Diagnostic::error("empty_file", "the pipeline file is empty")
                .help("a pipeline has `sources`, `stages` and `sinks`; see the files in `pipelines/`"),
        );
        return None;
    }
    root
}

/// A scalar as it stands unquoted in YAML: by the core schema of YAML 1.2.
///
/// # Errors
/// What is wrong with the number: not finite, or too large for 64 bits.
pub(crate) fn plain_scalar(text: &str) -> Result<Value, (&'static str, String)> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err(("not_finite", format!("expected a finite number, found {text}")));
    }
    let number = |value| Ok(Value::Number(Number { value, text: text.to_owned() }));
    if let Some(int) = integer(text, unsigned) {
        return match int {
            Some(int) if i64::try_from(int).is_ok() || u64::try_from(int).is_ok() => number(NumberValue::Int(int)),
            _ => Err(("integer_too_large", format!("the integer {} does not fit into 64 bits", excerpt(text)))),
        };
    }
    if is_float(unsigned) {
        return match text.parse::<f64>() {
            Ok(float) if float.is_finite() => number(NumberValue::Float(float)),
            _ => Err(("not_finite", format!("the number {} is larger than any 64-bit float", excerpt(text)))),
        };
    }
    Ok(Value::String(text.to_owned()))
}

/// The integer that `text` is; `Some(None)` if it is one that no `i128` holds.
fn integer(text: &str, unsigned: &str) -> Option<Option<i128>> {
    let radix = |digits: &str, radix: u32| {
        (!digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix)))
            .then(|| i128::from_str_radix(digits, radix).ok())
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    let magnitude = radix(unsigned, 10)?;
    Some(magnitude.map(|int| if text.starts_with('-') { -int } else { int }))
}

/// `[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?` or the same with a leading point.
fn is_float(unsigned: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_is_right = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    exponent_is_right && digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty())
}

/// A collection that is being read.
struct Open {
    span: Span,
    items: Items,
}

enum Items {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        /// The keys so far and where they're written.
        keys: HashMap<String, Span>,
        /// The key whose value comes next.
        key: Option<(String, Span)>,
        /// A value that is read and dropped, because its key was refused.
        dropping: bool,
    },
}

struct Reader<'a> {
    file: &'a SourceFile,
    diagnostics: &'a mut Diagnostics,
    open: Vec<Open>,
    root: Option<Node>,
}

impl Reader<'_> {
    /// Takes one event; nothing is given where reading can't go on.
    fn event(&mut self, event: Event<'_>, span: Span, tag: Option<Span>) -> Option<()> {
        if event.tag().is_some() {
            self.refuse_tag(tag.unwrap_or(span));
        }
        match event {
            Event::Scalar(_, _, _, Some(_)) => self.node(Node::new(span, Value::Unresolved)),
            Event::Scalar(text, style, ..) => self.scalar(&text, style, span),
            Event::SequenceStart(..) => self.open(span, Items::List(Vec::new()))?,
            Event::MappingStart(..) => {
                self.open(span, Items::Map { entries: Vec::new(), keys: HashMap::new(), key: None, dropping: false })?
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Anchor(..) => self.refuse_anchor(span),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.refuse_anchor(span);
                self.node(Node::new(span, Value::Unresolved));
            }
            _ => {}
        }
        Some(())
    }

    fn open(&mut self, span: Span, items: Items) -> Option<()> {
        if self.open.len() >= MAX_DEPTH {
            self.diagnostics.push(too_deep(span));
            return None;
        }
        self.open.push(Open { span, items });
        Some(())
    }

    fn close(&mut self, end: Span) {
        let Some(open) = self.open.pop() else { return };
        // The end event of a block collection stands at whatever comes next, so only a flow
        // collection's own bracket counts.
        let bracket = matches!(self.file.slice(end), "]" | "}");
        let own_end = if bracket { end } else { Span::empty(open.span.end) };
        let (last, value) = match open.items {
            Items::List(items) => (items.last().map(|item| item.span), Value::List(items)),
            Items::Map { entries, .. } => {
                (entries.last().map(|entry| entry.key_span.cover(entry.value.span)), Value::Map(entries))
            }
        };
        let span = last.into_iter().fold(open.span.cover(own_end), Span::cover);
        self.node(Node::new(span, value));
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: Span) {
        let is_key =
            matches!(self.open.last(), Some(Open { items: Items::Map { key: None, dropping: false, .. }, .. }));
        if style != ScalarStyle::Plain || is_key {
            self.node(Node::new(span, Value::String(text.to_owned())));
            return;
        }
        let value = plain_scalar(text).unwrap_or_else(|(code, message)| {
            self.diagnostics
                .push(Diagnostic::error(code, message).at(span).help("if it is meant as text, put it in quotes"));
            Value::Unresolved
        });
        self.node(Node::new(span, value));
    }

    /// Puts a finished node where it belongs: a key, a value, an item or the root.
    fn node(&mut self, node: Node) {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return;
        };
        match &mut open.items {
            Items::List(items) => items.push(node),
            Items::Map { dropping, .. } if *dropping => *dropping = false,
            Items::Map { entries, keys, key, dropping } => match key.take() {
                Some((key, key_span)) => entries.push(Entry { key, key_span, value: node }),
                None => match accepted_key(node, keys) {
                    Ok(accepted) => *key = Some(accepted),
                    Err(diagnostic) => {
                        *dropping = true;
                        self.diagnostics.push(*diagnostic);
                    }
                },
            },
        }
    }

    fn refuse_anchor(&mut self, span: Span) {
        self.diagnostics.push(anchor(span));
    }

    fn refuse_tag(&mut self, span: Span) {
        self.diagnostics.push(
            Diagnostic::error("tag", "YAML tags (`!name`) are not supported")
                .at(span)
                .help("leave the tag out; if text is meant, put it in quotes"),
        );
    }
}

/// The key that a node in key position is, or what is wrong with it.
fn accepted_key(node: Node, keys: &mut HashMap<String, Span>) -> Result<(String, Span), Box<Diagnostic>> {
    let Value::String(key) = node.value else {
        let diagnostic = Diagnostic::error("key_not_text", "a key must be text, not a list or a map");
        return Err(Box::new(diagnostic.at(node.span)));
    };
    if key == "<<" {
        return Err(Box::new(
            Diagnostic::error("merge_key", "merge keys (`<<`) are not supported")
                .at(node.span)
                .help("write the keys out, or name the values in `params`"),
        ));
    }
    if let Some(first) = keys.get(&key) {
        return Err(Box::new(
            Diagnostic::error("duplicate_key", format!("the key {} is given twice", excerpt(&key)))
                .at(node.span)
                .label("again here")
                .note_at(*first, "first here")
                .help("remove one of them"),
        ));
    }
    keys.insert(key.clone(), node.span);
    Ok((key, node.span))
}

/// Byte offsets of a parser span. A string input always has them; without them, the whole error
/// would be lost to a missing place, so the start of the file stands in.
fn place(file: &SourceFile, span: granit_parser::Span) -> Span {
    let range = span.byte_range().unwrap_or_default();
    file.clamp(Span::new(range.start, range.end))
}

fn anchor(span: Span) -> Diagnostic {
    Diagnostic::error("anchor", "anchors (`&name`) and aliases (`*name`) are not supported")
        .at(span)
        .help("if text is meant, put it in quotes; to use a value twice, name it in `params`")
}

fn too_deep(span: Span) -> Diagnostic {
    Diagnostic::error("too_deep", format!("lists and maps nest deeper than {MAX_DEPTH} levels"))
        .at(span)
        .help("is a bracket missing? pipeline files are rarely deeper than four levels")
}

fn syntax(file: &SourceFile, error: &ScanError) -> Diagnostic {
    let at = file.clamp(Span::empty(error.marker().byte_offset().unwrap_or_default())).start;
    // What ends too early is shown where it ends, not on the empty line behind the file.
    let at = match file.text[at..].trim().is_empty() {
        true => file.text[..at].trim_end().len(),
        false => at,
    };
    let span = Span::empty(at);
    let line_start = file.text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
    let line = file.text[line_start..].lines().next().unwrap_or_default();
    let kind = error.kind();
    if *kind == ErrorKind::RecursionLimitExceeded {
        return too_deep(span);
    }
    if matches!(kind, ErrorKind::UnknownAnchor | ErrorKind::MissingAnchorOrAliasName) {
        return anchor(span);
    }
    let tab = matches!(
        kind,
        ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabInIndentation
            | ErrorKind::TabAtBlockScalarStart
            | ErrorKind::TabInPlainScalar
            | ErrorKind::InvalidBlockEntryWhitespace
            | ErrorKind::InvalidMappingValueWhitespace
    ) || line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    if tab {
        return Diagnostic::error("tab", "a tab stands where YAML takes spaces only")
            .at(span)
            .help("indent with spaces");
    }
    let diagnostic = Diagnostic::error("syntax", format!("this is not YAML: {}", error.info())).at(span);
    match help_for(kind, line) {
        Some(help) => diagnostic.help(help),
        None => diagnostic,
    }
}

/// What probably went wrong, from the kind of error and the line it is in.
fn help_for(kind: &ErrorKind, line: &str) -> Option<&'static str> {
    let unquoted_reference =
        line.match_indices("${").any(|(at, _)| line[..at].matches(['"', '\'']).count().is_multiple_of(2));
    match kind {
        _ if unquoted_reference => Some("put text that has `${…}` in quotes: \"${name}\""),
        ErrorKind::UnclosedQuotedScalar | ErrorKind::InvalidQuotedScalarIndent => {
            Some("a quote is missing at the end of the text")
        }
        ErrorKind::UnclosedFlowCollection { .. }
        | ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofFlowSequence
        | ErrorKind::UnexpectedEofImplicitFlowMapping => Some("a closing bracket is missing"),
        ErrorKind::MismatchedFlowCollectionEnd { .. } => Some("a closing bracket is missing or the wrong one"),
        ErrorKind::UnknownQuotedScalarEscape => {
            Some("write \\\\ for a backslash, or use single quotes, where it stands for itself")
        }
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => {
            Some("text that has `: ` in it needs quotes")
        }
        ErrorKind::UnexpectedCharacter { .. } => Some("text that begins with this character needs quotes"),
        ErrorKind::SimpleKeyExpected => Some("a key is followed by a colon and a space: `key: value`"),
        _ => None,
    }
}
