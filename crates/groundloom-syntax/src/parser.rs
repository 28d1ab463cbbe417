//! The arc-eager transition parser, greedy, with spaCy's features and tie-breaks.
//!
//! `spacy/pipeline/_parser_internals/{arc_eager,_state,nonproj}.pyx` 3.8; the transition
//! system is Nivre's (2008) with a reduce that may push its token back on the buffer
//! (Honnibal, Goldberg, Johnson 2013) and a break move for sentence ends.

mod actions;
mod state;
mod tree;

pub(crate) use actions::{Actions, DepId, Labels};
pub(crate) use state::{Decision, Features, State, Validity};
pub(crate) use tree::{Tree, resolve};

/// Chooses an action for the tokens that the features name.
pub(crate) trait Scorer {
    /// The best of the actions that are allowed. `features` are token indices of the
    /// document, -1 for none.
    fn decide(&mut self, features: &Features, valid: Validity) -> Decision;
}

/// Runs the parser over `tokens` tokens and returns its narrowest margin.
pub(crate) fn run(state: &mut State, actions: &Actions, tokens: usize, scorer: &mut impl Scorer) -> f32 {
    state.reset(tokens);
    let mut narrowest = f32::INFINITY;
    while !state.is_final() {
        let decision = scorer.decide(&state.features(), state.validity());
        narrowest = narrowest.min(decision.margin);
        match decision.class {
            Some(class) => state.apply(actions.get(class)),
            // spaCy gives up on a document that allows no action; with this system the
            // first or last of shift and reduce is always allowed.
            None => break,
        }
    }
    narrowest
}
