//! From arcs to the tree that a document shows: edges, sentence starts, projectivity undone.

use super::actions::{DepId, Labels};
use super::state::State;

/// The finished dependency tree of one document.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Own index for roots.
    pub(crate) heads: Vec<u32>,
    pub(crate) deps: Vec<DepId>,
    /// First token of each token's subtree, as spaCy computes it.
    pub(crate) left_edges: Vec<u32>,
    /// Last token of each token's subtree.
    pub(crate) right_edges: Vec<u32>,
    pub(crate) sentence_starts: Vec<bool>,
}

/// Reads the arcs off a final state into `tree`, whose buffers are reused.
///
/// A token without a head is the root of its sentence. Decorated labels, which say that
/// an arc was moved up to keep the training trees projective, move it back down
/// (Nivre & Nilsson 2005, the "head" scheme; `nonproj.pyx`).
pub(crate) fn resolve(state: &State, labels: &Labels, root: DepId, is_space: impl Fn(usize) -> bool, tree: &mut Tree) {
    tree.heads.clear();
    tree.deps.clear();
    for (i, (&head, &label)) in state.heads().iter().zip(state.labels()).enumerate() {
        let is_root = head < 0 || head as usize == i;
        tree.heads.push(if is_root { i as u32 } else { head as u32 });
        tree.deps.push(if is_root { root } else { label });
    }
    tree.set_edges();
    if tree.deps.iter().any(|&dep| labels.decoration(dep).is_some()) {
        tree.deprojectivize(labels, is_space);
        tree.set_edges();
    }
}

impl Tree {
    /// Subtree edges by repeated sweeps, and sentence starts.
    ///
    /// One sweep each way is enough for a projective tree. spaCy repeats them until every
    /// head lies in its token's sentence, eleven times at most, and keeps what it has then.
    fn set_edges(&mut self) {
        let n = self.heads.len();
        self.left_edges.clear();
        self.left_edges.extend(0..n as u32);
        self.right_edges.clear();
        self.right_edges.extend(0..n as u32);
        for _ in 0..=11 {
            for i in (0..n).chain((0..n).rev()) {
                let h = self.heads[i] as usize;
                self.left_edges[h] = self.left_edges[h].min(self.left_edges[i]);
                self.right_edges[h] = self.right_edges[h].max(self.right_edges[i]);
            }
            self.sentence_starts.clear();
            self.sentence_starts.resize(n, false);
            for i in 0..n {
                if self.heads[i] as usize == i {
                    self.sentence_starts[self.left_edges[i] as usize] = true;
                }
            }
            if self.heads_stay_in_sentences() {
                break;
            }
        }
    }

    fn heads_stay_in_sentences(&self) -> bool {
        let n = self.heads.len();
        let mut start = 0;
        for i in 0..n {
            if (i > 0 && self.sentence_starts[i]) || i + 1 == n {
                let inside = start as u32..=i as u32;
                if self.heads[start..i].iter().any(|head| !inside.contains(head)) {
                    return false;
                }
                start = i;
            }
        }
        true
    }

    fn deprojectivize(&mut self, labels: &Labels, is_space: impl Fn(usize) -> bool) {
        let n = self.heads.len();
        let mut children: Vec<Vec<u32>> = vec![Vec::new(); n];
        for i in 0..n {
            if self.heads[i] as usize != i {
                children[self.heads[i] as usize].push(i as u32);
            }
        }
        for i in 0..n {
            let Some((plain, head_label)) = labels.decoration(self.deps[i]) else { continue };
            let found = self.find_head(i, head_label, &children, &is_space);
            if let Some(new) = found {
                let old = self.heads[i] as usize;
                children[old].retain(|&c| c as usize != i);
                let at = children[new].partition_point(|&c| (c as usize) < i);
                children[new].insert(at, i as u32);
                self.heads[i] = new as u32;
            }
            self.deps[i] = plain;
        }
    }

    /// The first token with `label` below the head of `i`, breadth first.
    fn find_head(
        &self,
        i: usize,
        label: DepId,
        children: &[Vec<u32>],
        is_space: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut level = vec![self.heads[i]];
        let mut next = Vec::new();
        // Ends: `i` is skipped, and so is all below it, the only place a cycle could begin.
        while !level.is_empty() {
            for &q in &level {
                let edges = self.left_edges[q as usize]..=self.right_edges[q as usize];
                for &c in children[q as usize].iter().filter(|&c| edges.contains(c)) {
                    if is_space(c as usize) || c as usize == i {
                        continue;
                    }
                    if self.deps[c as usize] == label {
                        return Some(c as usize);
                    }
                    next.push(c);
                }
            }
            std::mem::swap(&mut level, &mut next);
            next.clear();
        }
        None
    }
}
