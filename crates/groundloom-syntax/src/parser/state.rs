//! The parser's state: stack, buffer, and the arcs so far.

use super::actions::{Action, DepId};

/// Tokens that the network looks at, -1 for none: B0 B1 S0 S1 S2 L1(B0) L1(S0) R1(S0).
pub(crate) type Features = [i32; 8];

/// Whether shift, reduce, left, right and break are allowed.
pub(crate) type Validity = [bool; 5];

/// What the parser chose, and by how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decision {
    /// None if nothing was allowed.
    pub(crate) class: Option<usize>,
    /// Best score minus the best of the others that were allowed; infinite if there is none.
    pub(crate) margin: f32,
}

const NONE: i32 = -1;
/// The token was pushed back by a reduce and may not be shifted again.
const UNSHIFTABLE: u8 = 1;
/// The token begins a sentence.
const SENTENCE_START: u8 = 2;

/// Reused from document to document, so that a step allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct State {
    tokens: usize,
    stack: Vec<i32>,
    /// Tokens that a reduce pushed back, the next one last.
    rebuffer: Vec<i32>,
    /// First token that has not been on the stack.
    next: usize,
    heads: Vec<i32>,
    labels: Vec<DepId>,
    /// The child added last on each side; earlier ones through `elder`.
    left: Vec<i32>,
    right: Vec<i32>,
    elder: Vec<i32>,
    flags: Vec<u8>,
}

impl State {
    pub(super) fn reset(&mut self, tokens: usize) {
        self.tokens = tokens;
        self.next = 0;
        self.stack.clear();
        self.rebuffer.clear();
        for list in [&mut self.heads, &mut self.left, &mut self.right, &mut self.elder] {
            list.clear();
            list.resize(tokens, NONE);
        }
        self.labels.clear();
        self.labels.resize(tokens, DepId(0));
        self.flags.clear();
        self.flags.resize(tokens, 0);
        if let Some(first) = self.flags.first_mut() {
            *first = SENTENCE_START;
        }
    }

    /// The head of each token, -1 for none.
    pub(crate) fn heads(&self) -> &[i32] {
        &self.heads
    }

    /// The label of each token's arc; meaningless without a head.
    pub(crate) fn labels(&self) -> &[DepId] {
        &self.labels
    }

    pub(super) fn is_final(&self) -> bool {
        self.stack.is_empty() && self.buffer_len() == 0
    }

    fn buffer_len(&self) -> usize {
        self.tokens - self.next + self.rebuffer.len()
    }

    fn stack_at(&self, depth: usize) -> i32 {
        self.stack.len().checked_sub(depth + 1).map_or(NONE, |i| self.stack[i])
    }

    fn buffer_at(&self, i: usize) -> i32 {
        match self.rebuffer.len().checked_sub(i + 1) {
            Some(at) => self.rebuffer[at],
            None => {
                let token = self.next + i - self.rebuffer.len();
                if token < self.tokens { token as i32 } else { NONE }
            }
        }
    }

    pub(super) fn features(&self) -> Features {
        let (b0, s0) = (self.buffer_at(0), self.stack_at(0));
        let of = |list: &[i32], token: i32| if token < 0 { NONE } else { list[token as usize] };
        [
            b0,
            self.buffer_at(1),
            s0,
            self.stack_at(1),
            self.stack_at(2),
            of(&self.left, b0),
            of(&self.left, s0),
            of(&self.right, s0),
        ]
    }

    fn has_flag(&self, token: i32, flag: u8) -> bool {
        token >= 0 && self.flags[token as usize] & flag != 0
    }

    pub(super) fn validity(&self) -> Validity {
        let (b0, b1) = (self.buffer_at(0), self.buffer_at(1));
        let (buffer, depth) = (self.buffer_len(), self.stack.len());
        let starts = self.has_flag(b0, SENTENCE_START);
        let shift = depth == 0 || buffer >= 2 && !starts && !self.has_flag(b0, UNSHIFTABLE);
        let arc = depth >= 1 && buffer >= 1 && !starts;
        let split = buffer >= 2 && b1 == b0 + 1 && !self.has_flag(b1, SENTENCE_START);
        [shift, depth >= 1, arc, arc, split]
    }

    pub(super) fn apply(&mut self, action: Action) {
        let (b0, s0) = (self.buffer_at(0), self.stack_at(0));
        match action {
            Action::Shift => self.push(),
            Action::Reduce => {
                if self.heads[s0 as usize] < 0 && self.stack.len() > 1 {
                    self.flags[s0 as usize] |= UNSHIFTABLE;
                    self.rebuffer.push(s0);
                }
                self.stack.pop();
            }
            Action::Left(label) => {
                self.add_arc(b0, s0, label);
                self.flags[b0 as usize] &= !UNSHIFTABLE;
                self.stack.pop();
            }
            Action::Right(label) => {
                self.add_arc(s0, b0, label);
                self.push();
            }
            Action::Break => {
                let b1 = self.buffer_at(1);
                self.flags[b1 as usize] |= SENTENCE_START;
            }
        }
    }

    fn push(&mut self) {
        let token = self.rebuffer.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next as i32 - 1
        });
        self.stack.push(token);
    }

    fn add_arc(&mut self, head: i32, child: i32, label: DepId) {
        let (h, c) = (head as usize, child as usize);
        let old = self.heads[c];
        if old >= 0 {
            // The child is the youngest of its old head: nothing was attached there since.
            let side = if old > child { &mut self.left } else { &mut self.right };
            debug_assert_eq!(side[old as usize], child);
            side[old as usize] = self.elder[c];
        }
        let side = if head > child { &mut self.left } else { &mut self.right };
        self.elder[c] = side[h];
        side[h] = child;
        self.heads[c] = head;
        self.labels[c] = label;
    }
}
