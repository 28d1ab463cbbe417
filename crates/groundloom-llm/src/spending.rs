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
    /// Calls that an earlier process had in flight when it was killed, and which may have been asked again.
    pub interrupted: u64,
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
