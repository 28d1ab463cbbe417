//! What was spent and what the store saved, for summaries.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::{answer::Usage, money::Money};

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Spending {
    /// Calls that the server answered.
    pub calls: u64,
    /// Their input tokens by the server's count.
    pub prompt_tokens: u64,
    /// Their output tokens by the server's count.
    pub completion_tokens: u64,
    /// Their cost by the price table.
    pub cost: Money,
    /// Whether some of them have no price: then `cost` is too low.
    pub unpriced: bool,
    /// Answers that were in the store already.
    pub from_store: u64,
    /// What those had cost.
    pub saved: Money,
    /// Requests that failed, whatever the reason.
    pub failed: u64,
    /// Requests whose answer broke off, which the server may charge for.
    pub lost: u64,
    /// The most that those can have cost.
    pub lost_cost: Money,
    /// Second requests for calls that were slow; their answers are in `calls` too.
    pub hedged: u64,
    /// Calls that an earlier process had in flight when it was killed, and which may have been asked again.
    pub interrupted: u64,
}

impl Spending {
    /// Adds what another client did.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cost = self.cost.plus(other.cost);
        self.unpriced |= other.unpriced;
        self.from_store += other.from_store;
        self.saved = self.saved.plus(other.saved);
        self.failed += other.failed;
        self.lost += other.lost;
        self.lost_cost = self.lost_cost.plus(other.lost_cost);
        self.hedged += other.hedged;
        self.interrupted += other.interrupted;
    }

    /// Whether any language model was asked, or would have been.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// For the end of a run: `412 calls, 96000 + 21000 tokens, 0.027; 88 answers from the store (0.0061 saved)`.
impl std::fmt::Display for Spending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unpriced = if self.unpriced { " and what has no price" } else { "" };
        write!(
            f,
            "{} calls, {} + {} tokens, {}{unpriced}; {} answers from the store ({} saved)",
            self.calls, self.prompt_tokens, self.completion_tokens, self.cost, self.from_store, self.saved
        )?;
        if self.failed > 0 {
            write!(f, "; {} requests failed", self.failed)?;
        }
        if self.lost > 0 {
            write!(f, ", {} of them may be charged (at most {})", self.lost, self.lost_cost)?;
        }
        if self.hedged > 0 {
            write!(f, "; {} slow calls were asked twice", self.hedged)?;
        }
        if self.interrupted > 0 {
            write!(f, "; {} calls were in flight when an earlier run was killed", self.interrupted)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Ledger(Mutex<Spending>);

impl Ledger {
    pub fn new(interrupted: u64) -> Self {
        Self(Mutex::new(Spending { interrupted, ..Spending::default() }))
    }

    pub fn total(&self) -> Spending {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn answered(&self, usage: Option<Usage>, cost: Money, priced: bool) {
        let usage = usage.unwrap_or_default();
        self.change(|s| {
            s.calls += 1;
            s.prompt_tokens += usage.prompt_tokens;
            s.completion_tokens += usage.completion_tokens;
            s.cost = s.cost.plus(cost);
            s.unpriced |= !priced;
        });
    }

    pub fn found(&self, cost: Money) {
        self.change(|s| {
            s.from_store += 1;
            s.saved = s.saved.plus(cost);
        });
    }

    pub fn hedged(&self) {
        self.change(|s| s.hedged += 1);
    }

    pub fn failed(&self) {
        self.change(|s| s.failed += 1);
    }

    pub fn lost(&self, most: Money) {
        self.change(|s| {
            s.lost += 1;
            s.lost_cost = s.lost_cost.plus(most);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Spending)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
