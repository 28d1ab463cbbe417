//! Where in a form a text stands: stacks of open values, several where it is not yet decided which alternative is written.

use std::collections::HashSet;

use super::{JsonForm, Key, NEVER, Node, rest_of_keys};

/// Digits of a number's whole part, and of the part behind its point, at most: what readers tell apart.
const DIGITS: u8 = 15;
/// Digits of an exponent, at most: numbers stay finite.
const EXPONENT_DIGITS: u8 = 2;
/// Alternatives that are followed at once, at most; of more the first are.
const MOST_STACKS: usize = 1_000;

/// Open values, the innermost last.
type Stack = Vec<Frame>;

/// All ways in which the text so far can be understood. None: it does not fit. One that is empty: it is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    stacks: Vec<Stack>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Frame {
    /// A value is to come; behind a colon or a comma a space may come first.
    Value {
        node: usize,
        space: bool,
    },
    /// Of [`Node::Exactly`]: so many bytes are there.
    Exactly {
        node: usize,
        at: usize,
    },
    Text {
        node: usize,
        chars: usize,
        at: InText,
    },
    Number {
        whole: bool,
        at: InNumber,
        digits: u8,
    },
    /// Of [`Node::Object`]: keys from `next` on may come.
    Object {
        node: usize,
        next: usize,
        at: InObject,
    },
    /// The key before `next` is being written.
    Key {
        node: usize,
        key: usize,
        at: usize,
    },
    Array {
        node: usize,
        items: usize,
        at: InArray,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum InText {
    Between,
    /// Behind a backslash.
    Escape,
    /// Hexadecimal digits of `\u` that are there; 0xd came first where a surrogate has to be kept out.
    Hex {
        digits: u8,
        d: bool,
    },
    /// Bytes of a character that are to come, and the range of the next one (Unicode, table 3-7).
    Inside {
        left: u8,
        low: u8,
        high: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum InNumber {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum InObject {
    Open,
    /// Behind a value.
    Filled,
    /// Behind a comma; `true`: and a space.
    Comma(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum InArray {
    Open,
    Filled,
}

/// Before the first byte.
pub(crate) fn initial(form: &JsonForm) -> State {
    State { stacks: vec![vec![Frame::Value { node: form.root, space: false }]] }
}

impl State {
    /// Behind one more byte; `None` where it does not fit.
    pub(crate) fn behind(&self, form: &JsonForm, byte: u8) -> Option<Self> {
        let mut stacks = Vec::new();
        for stack in &self.stacks {
            step(form, stack.clone(), byte, &mut stacks);
        }
        if stacks.len() > 1 {
            let mut seen = HashSet::new();
            stacks.retain(|stack| seen.insert(stack.clone()));
            stacks.truncate(MOST_STACKS);
        }
        (!stacks.is_empty()).then_some(Self { stacks })
    }

    /// Behind some bytes.
    pub(crate) fn behind_all(&self, form: &JsonForm, bytes: &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first()?;
        rest.iter().try_fold(self.behind(form, *first)?, |state, byte| state.behind(form, *byte))
    }

    /// The fewest bytes to the end; 0 where the text is whole.
    pub(crate) fn left(&self, form: &JsonForm) -> usize {
        self.stacks.iter().map(|stack| left(form, stack)).min().unwrap_or(NEVER)
    }

    /// Whether the text is whole and nothing can follow.
    pub(crate) fn is_over(&self, form: &JsonForm) -> bool {
        // A number may be followed by digits, up to so many.
        self.left(form) == 0 && (0..=255).all(|byte| self.behind(form, byte).is_none())
    }

    /// Where the text can only be inside a text, between characters: how many more may come, and how many must.
    pub(crate) fn in_text(&self, form: &JsonForm) -> Option<(usize, usize)> {
        let [stack] = self.stacks.as_slice() else { return None };
        match stack.last()? {
            Frame::Text { node, chars, at: InText::Between } => match form.nodes[*node] {
                Node::Text { least, most } => Some((most - chars, least.saturating_sub(*chars))),
                _ => None,
            },
            _ => None,
        }
    }
}

fn left(form: &JsonForm, stack: &Stack) -> usize {
    stack.iter().fold(0_usize, |sum, frame| sum.saturating_add(left_of(form, *frame)))
}

fn keys_of(form: &JsonForm, node: usize) -> &[Key] {
    match &form.nodes[node] {
        Node::Object(keys) => keys,
        _ => &[],
    }
}

fn left_of(form: &JsonForm, frame: Frame) -> usize {
    match frame {
        Frame::Value { node, .. } => form.least[node],
        Frame::Exactly { node, at } => form.least[node] - at,
        Frame::Text { node, chars, at } => {
            let (pending, one) = match at {
                InText::Between => (0, 0),
                InText::Escape => (1, 1),
                InText::Hex { digits, .. } => (4 - usize::from(digits), 1),
                InText::Inside { left, .. } => (usize::from(left), 1),
            };
            let least = form.least[node].saturating_sub(2);
            1 + pending + least.saturating_sub(chars + one)
        }
        Frame::Number { at, .. } => match at {
            InNumber::Zero | InNumber::Whole | InNumber::Fraction | InNumber::Exponent => 0,
            _ => 1,
        },
        Frame::Object { node, next, at } => {
            let keys = &keys_of(form, node)[next..];
            match at {
                InObject::Open => rest_of_keys(keys, &form.least, true),
                InObject::Filled => rest_of_keys(keys, &form.least, false),
                InObject::Comma(_) => match keys.iter().any(|key| key.required) {
                    true => rest_of_keys(keys, &form.least, true),
                    // One of them has to come.
                    false => keys
                        .iter()
                        .map(|key| key.written.len().saturating_add(form.least[key.value]))
                        .min()
                        .unwrap_or(NEVER)
                        .saturating_add(1),
                },
            }
        }
        Frame::Key { node, key, at } => {
            let key = &keys_of(form, node)[key];
            (key.written.len() - at).saturating_add(form.least[key.value])
        }
        Frame::Array { node, items, at } => {
            let Node::Array { item, least, .. } = form.nodes[node] else { return NEVER };
            let missing = least.saturating_sub(items).saturating_mul(form.least[item].saturating_add(1));
            // The first item has no comma.
            match at {
                InArray::Open => missing.saturating_add(1) - usize::from(least > 0),
                InArray::Filled => missing.saturating_add(1),
            }
        }
    }
}

/// Puts what `stack` becomes behind `byte` to `out`; nothing where it does not fit.
fn step(form: &JsonForm, mut stack: Stack, byte: u8, out: &mut Vec<Stack>) {
    let Some(frame) = stack.pop() else { return };
    match frame {
        Frame::Value { node, space } => match space && byte == b' ' {
            true => out.push(with(stack, Frame::Value { node, space: false })),
            false => begin(form, stack, node, byte, out),
        },
        Frame::Exactly { node, at } => {
            if let Node::Exactly(bytes) = &form.nodes[node]
                && bytes.get(at) == Some(&byte)
            {
                match at + 1 == bytes.len() {
                    true => out.push(stack),
                    false => out.push(with(stack, Frame::Exactly { node, at: at + 1 })),
                }
            }
        }
        Frame::Text { node, chars, at } => in_text(form, stack, (node, chars, at), byte, out),
        Frame::Number { whole, at, digits } => match in_number(whole, at, digits, byte) {
            Some((at, digits)) => out.push(with(stack, Frame::Number { whole, at, digits })),
            // The number has ended before this byte, if it may.
            None if left_of(form, frame) == 0 => step(form, stack, byte, out),
            None => {}
        },
        Frame::Object { node, next, at } => in_object(form, stack, (node, next, at), byte, out),
        Frame::Key { node, key, at } => {
            let Key { written, value, .. } = &keys_of(form, node)[key];
            if written.get(at) == Some(&byte) {
                match at + 1 == written.len() {
                    true => out.push(with(stack, Frame::Value { node: *value, space: true })),
                    false => out.push(with(stack, Frame::Key { node, key, at: at + 1 })),
                }
            }
        }
        Frame::Array { node, items, at } => {
            let Node::Array { item, least, most } = form.nodes[node] else { return };
            if byte == b']' && items >= least {
                out.push(stack);
            } else if items < most {
                let filled = with(stack, Frame::Array { node, items: items + 1, at: InArray::Filled });
                match at {
                    InArray::Open => begin(form, filled, item, byte, out),
                    InArray::Filled if byte == b',' => out.push(with(filled, Frame::Value { node: item, space: true })),
                    InArray::Filled => {}
                }
            }
        }
    }
}

fn with(mut stack: Stack, frame: Frame) -> Stack {
    stack.push(frame);
    stack
}

/// The first byte of a value.
fn begin(form: &JsonForm, stack: Stack, node: usize, byte: u8, out: &mut Vec<Stack>) {
    if form.least[node] == NEVER {
        return;
    }
    match &form.nodes[node] {
        Node::Exactly(_) => step(form, with(stack, Frame::Exactly { node, at: 0 }), byte, out),
        Node::Any(nodes) => nodes.iter().for_each(|node| begin(form, stack.clone(), *node, byte, out)),
        Node::Text { .. } if byte == b'"' => out.push(with(stack, Frame::Text { node, chars: 0, at: InText::Between })),
        Node::Number { whole } => {
            let at = match byte {
                b'-' => InNumber::Minus,
                b'0' => InNumber::Zero,
                b'1'..=b'9' => InNumber::Whole,
                _ => return,
            };
            out.push(with(stack, Frame::Number { whole: *whole, at, digits: 1 }));
        }
        Node::Object(_) if byte == b'{' => out.push(with(stack, Frame::Object { node, next: 0, at: InObject::Open })),
        Node::Array { .. } if byte == b'[' => out.push(with(stack, Frame::Array { node, items: 0, at: InArray::Open })),
        _ => {}
    }
}

fn in_text(form: &JsonForm, stack: Stack, (node, chars, at): (usize, usize, InText), byte: u8, out: &mut Vec<Stack>) {
    let Node::Text { least, most } = form.nodes[node] else { return };
    let (chars, at) = match (at, byte) {
        (InText::Between, b'"') => {
            if chars >= least {
                out.push(stack);
            }
            return;
        }
        (InText::Between, _) if chars >= most => return,
        (InText::Between, b'\\') => (chars, InText::Escape),
        (InText::Between, 0x20..=0x7e) => (chars + 1, InText::Between),
        (InText::Between, 0xc2..=0xdf) => (chars, InText::Inside { left: 1, low: 0x80, high: 0xbf }),
        (InText::Between, 0xe0) => (chars, InText::Inside { left: 2, low: 0xa0, high: 0xbf }),
        (InText::Between, 0xed) => (chars, InText::Inside { left: 2, low: 0x80, high: 0x9f }),
        (InText::Between, 0xe1..=0xef) => (chars, InText::Inside { left: 2, low: 0x80, high: 0xbf }),
        (InText::Between, 0xf0) => (chars, InText::Inside { left: 3, low: 0x90, high: 0xbf }),
        (InText::Between, 0xf1..=0xf3) => (chars, InText::Inside { left: 3, low: 0x80, high: 0xbf }),
        (InText::Between, 0xf4) => (chars, InText::Inside { left: 3, low: 0x80, high: 0x8f }),
        (InText::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => (chars + 1, InText::Between),
        (InText::Escape, b'u') => (chars, InText::Hex { digits: 0, d: false }),
        (InText::Hex { digits, d }, _) if byte.is_ascii_hexdigit() && !(digits == 1 && d && byte > b'7') => {
            match digits {
                3 => (chars + 1, InText::Between),
                _ => (chars, InText::Hex { digits: digits + 1, d: digits == 0 && byte | 0x20 == b'd' }),
            }
        }
        (InText::Inside { left, low, high }, _) if (low..=high).contains(&byte) => match left {
            1 => (chars + 1, InText::Between),
            _ => (chars, InText::Inside { left: left - 1, low: 0x80, high: 0xbf }),
        },
        _ => return,
    };
    out.push(with(stack, Frame::Text { node, chars, at }));
}

/// A number behind one more byte; `None` where the byte is no part of it. `digits` are those of its present part.
fn in_number(whole: bool, at: InNumber, digits: u8, byte: u8) -> Option<(InNumber, u8)> {
    use InNumber::{E, Exponent, Fraction, Minus, Point, Sign, Whole, Zero};
    Some(match (at, byte) {
        (Minus, b'0') => (Zero, 1),
        (Minus, b'1'..=b'9') => (Whole, 1),
        (Whole, b'0'..=b'9') if digits < DIGITS => (Whole, digits + 1),
        (Zero | Whole, b'.') if !whole => (Point, 0),
        (Point, b'0'..=b'9') => (Fraction, 1),
        (Fraction, b'0'..=b'9') if digits < DIGITS => (Fraction, digits + 1),
        (Zero | Whole | Fraction, b'e' | b'E') if !whole => (E, 0),
        (E, b'+' | b'-') => (Sign, 0),
        (E | Sign, b'0'..=b'9') => (Exponent, 1),
        (Exponent, b'0'..=b'9') if digits < EXPONENT_DIGITS => (Exponent, digits + 1),
        _ => return None,
    })
}

fn in_object(
    form: &JsonForm,
    stack: Stack,
    (node, next, at): (usize, usize, InObject),
    byte: u8,
    out: &mut Vec<Stack>,
) {
    let keys = keys_of(form, node);
    // Up to the first one that is required, any of them may be the next.
    let required = keys[next..].iter().position(|key| key.required);
    let candidates = next..required.map_or(keys.len(), |i| next + i + 1);
    let possible = |i: &usize| form.least[keys[*i].value] != NEVER;
    match (at, byte) {
        (InObject::Open | InObject::Filled, b'}') if required.is_none() => out.push(stack),
        (InObject::Filled, b',') if candidates.clone().any(|i| possible(&i)) => {
            out.push(with(stack, Frame::Object { node, next, at: InObject::Comma(false) }))
        }
        (InObject::Comma(false), b' ') => {
            out.push(with(stack, Frame::Object { node, next, at: InObject::Comma(true) }))
        }
        (InObject::Open | InObject::Comma(_), _) => {
            for key in candidates.filter(possible) {
                let filled = with(stack.clone(), Frame::Object { node, next: key + 1, at: InObject::Filled });
                step(form, with(filled, Frame::Key { node, key, at: 0 }), byte, out);
            }
        }
        _ => {}
    }
}
