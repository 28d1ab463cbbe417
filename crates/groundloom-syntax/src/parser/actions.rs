//! The parser's classes: which action each output of the network stands for.

use std::collections::{BTreeMap, HashMap};

use super::state::{Decision, Validity};
use crate::error::{Result, bad_model, unsupported};

/// Index of a dependency label; decorated labels ("prep||dobj") have indices too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DepId(pub(crate) u16);

/// A transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Moves the first token of the buffer onto the stack.
    Shift,
    /// Pops the stack; a token without a head goes back to the buffer.
    Reduce,
    /// The stack's top becomes a left child of the buffer's first token.
    Left(DepId),
    /// The buffer's first token becomes a right child of the stack's top and is pushed.
    Right(DepId),
    /// The buffer's second token begins a sentence.
    Break,
}

/// Dependency labels by index.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    names: Vec<Box<str>>,
    ids: HashMap<Box<str>, DepId>,
    /// For "new||head": the plain label and the label of the head to look for.
    decorations: Vec<Option<(DepId, DepId)>>,
    /// What a token without a head gets.
    root: Option<DepId>,
}

impl Labels {
    pub(crate) fn intern(&mut self, name: &str) -> DepId {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let decoration = name.split_once("||").map(|(new, head)| (self.intern(new), self.intern(head)));
        let id = DepId(self.names.len() as u16);
        self.names.push(name.into());
        self.ids.insert(name.into(), id);
        self.decorations.push(decoration);
        id
    }

    pub(crate) fn root(&mut self) -> DepId {
        match self.root {
            Some(id) => id,
            None => {
                let id = self.intern("ROOT");
                self.root = Some(id);
                id
            }
        }
    }

    pub(crate) fn name(&self, id: DepId) -> &str {
        self.names.get(usize::from(id.0)).map_or("", AsRef::as_ref)
    }

    pub(crate) fn get(&self, name: &str) -> Option<DepId> {
        self.ids.get(name).copied()
    }

    /// The plain label and the head's label of a decorated label.
    pub(crate) fn decoration(&self, id: DepId) -> Option<(DepId, DepId)> {
        self.decorations.get(usize::from(id.0)).copied().flatten()
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }
}

/// The classes in order, grouped by kind.
#[derive(Debug)]
pub(crate) struct Actions {
    classes: Vec<Action>,
    /// Half-open class ranges of shift, reduce, left, right, break.
    kinds: [(usize, usize); 5],
}

impl Actions {
    /// Reads the `moves` JSON: `{"0": {label: frequency, …}, …}` with 0 shift, 1 reduce,
    /// 2 left, 3 right, 4 break.
    pub(crate) fn read(moves: &str, labels: &mut Labels) -> Result<Self> {
        let file = "parser/moves";
        let moves: BTreeMap<String, BTreeMap<String, i64>> =
            serde_json::from_str(moves).map_err(|e| bad_model(file, e.to_string()))?;
        let mut classes = Vec::new();
        let mut kinds = [(0, 0); 5];
        for (kind, range) in kinds.iter_mut().enumerate() {
            let start = classes.len();
            let mut by_frequency: Vec<(i64, &str)> = moves
                .get(&kind.to_string())
                .ok_or_else(|| bad_model(file, format!("there is no action {kind}")))?
                .iter()
                .map(|(label, &frequency)| (frequency, label.as_str()))
                .filter(|&(frequency, _)| frequency >= 0)
                .collect();
            by_frequency.sort_unstable();
            for (_, label) in by_frequency.into_iter().rev() {
                if label == "subtok" {
                    return Err(unsupported("a parser that joins no tokens", "the label `subtok`"));
                }
                classes.push(match kind {
                    0 => Action::Shift,
                    1 => Action::Reduce,
                    2 => Action::Left(labels.intern(label)),
                    3 => Action::Right(labels.intern(label)),
                    _ => Action::Break,
                });
            }
            *range = (start, classes.len());
        }
        let single = |(start, end): (usize, usize)| end - start == 1;
        if moves.len() != 5 || !single(kinds[0]) || !single(kinds[1]) || !single(kinds[4]) {
            return Err(unsupported(
                "one shift, one reduce and one break move",
                format!("{:?} classes per action", kinds.map(|(start, end)| end - start)),
            ));
        }
        Ok(Self { classes, kinds })
    }

    /// Number of classes.
    pub(crate) fn len(&self) -> usize {
        self.classes.len()
    }

    pub(crate) fn get(&self, class: usize) -> Action {
        self.classes.get(class).copied().unwrap_or(Action::Reduce)
    }

    /// The classes of the actions that are allowed.
    pub(crate) fn allowed(&self, valid: Validity) -> impl Iterator<Item = usize> {
        self.kinds.iter().zip(valid).filter(|(_, valid)| *valid).flat_map(|(&(start, end), _)| start..end)
    }

    /// The valid class of the highest score, the first of equals, and its lead.
    pub(crate) fn best(&self, valid: Validity, scores: &[f32]) -> Decision {
        let mut best = None;
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for (&(start, end), valid) in self.kinds.iter().zip(valid) {
            if !valid {
                continue;
            }
            for (class, &score) in scores.iter().enumerate().take(end).skip(start) {
                if score > first {
                    second = first;
                    (first, best) = (score, Some(class));
                } else if score > second {
                    second = score;
                }
            }
        }
        Decision { class: best, margin: first - second }
    }
}
