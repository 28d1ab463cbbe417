//! Limits on what may be spent, kept before a call and not after it.

use std::{
    fs::File,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    error::{LlmError, spent_sentence},
    money::Money,
};

/// The limits a user sets. What is not set is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// The most money.
    pub max_cost: Option<Money>,
    /// The most tokens, input and output together.
    pub max_tokens: Option<u64>,
    /// The most calls that are answered, or may have been: a call that the server turned down with an error costs nothing and does not count.
    pub max_calls: Option<u64>,
}

impl Limits {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// An amount of calls, tokens and money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Calls.
    pub calls: u64,
    /// Input and output tokens.
    pub tokens: u64,
    /// Money.
    pub cost: Money,
}

impl Spent {
    pub(crate) fn add(&mut self, cost: Money, tokens: u64) {
        self.calls += 1;
        self.tokens = self.tokens.saturating_add(tokens);
        self.cost = self.cost.plus(cost);
    }

    fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            tokens: self.tokens.saturating_add(other.tokens),
            cost: self.cost.plus(other.cost),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(other.calls),
            tokens: self.tokens.saturating_sub(other.tokens),
            cost: self.cost.minus(other.cost),
        }
    }

    /// The first limit that it passes, in words.
    fn passes(&self, limits: &Limits) -> Option<String> {
        if let Some(max) = limits.max_cost.filter(|max| self.cost > *max) {
            return Some(format!("`max_cost: {max}`"));
        }
        if let Some(max) = limits.max_tokens.filter(|max| self.tokens > *max) {
            return Some(format!("`max_tokens: {max}`"));
        }
        limits.max_calls.filter(|max| self.calls > *max).map(|max| format!("`max_calls: {max}`"))
    }
}

/// What one run may spend. Spending of earlier processes of the same run is in the store and counts.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    accounts: Mutex<Accounts>,
    changed: Notify,
    // Two processes with one budget would each think that they are alone.
    _lock: Option<File>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Accounts {
    spent: Spent,
    reserved: Spent,
}

impl Budget {
    /// A budget of which `spent` is gone already. With limits, it is held by one process at a time through a locked file in `folder`.
    pub fn new(limits: Limits, spent: Spent, folder: &Path, number: u64) -> Result<Arc<Self>, LlmError> {
        let lock = if limits.any() {
            std::fs::create_dir_all(folder).map_err(|e| LlmError::store(folder, e))?;
            let path = folder.join(format!("{number:016x}.lock"));
            let file = File::create(&path).map_err(|e| LlmError::store(&path, e))?;
            file.try_lock().map_err(|_| {
                LlmError::store(
                    &path,
                    "another process is spending this budget right now; wait for it to end, or name another `budget`",
                )
            })?;
            Some(file)
        } else {
            None
        };
        let accounts = Mutex::new(Accounts { spent, reserved: Spent::default() });
        Ok(Arc::new(Self { limits, accounts, changed: Notify::new(), _lock: lock }))
    }

    /// Sets the most that a call can cost aside. Waits while calls in flight may turn out cheaper than what they reserved.
    ///
    /// # Errors
    /// [`LlmError::Limit`] when the call could pass a limit and nothing is in flight that could change that.
    pub async fn reserve(self: &Arc<Self>, most: Spent) -> Result<Reserved, LlmError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut accounts = self.accounts();
                let after = accounts.spent.plus(accounts.reserved).plus(most);
                let Some(limit) = after.passes(&self.limits) else {
                    accounts.reserved = accounts.reserved.plus(most);
                    return Ok(Reserved { budget: Arc::clone(self), most, settled: false });
                };
                let alone = accounts.spent.plus(most).passes(&self.limits).is_some();
                if alone || accounts.reserved.calls == 0 {
                    let spent = accounts.spent.plus(accounts.reserved);
                    let spent = spent_sentence(spent.calls, spent.tokens, spent.cost);
                    return Err(LlmError::Limit { limit, spent });
                }
            }
            changed.await;
        }
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is set aside for a call; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    budget: Arc<Budget>,
    most: Spent,
    settled: bool,
}

impl Reserved {
    /// The call cost this much.
    pub fn settle(mut self, spent: Spent) {
        self.end(spent);
    }

    /// The call may have cost all that was set aside.
    pub fn settle_as_lost(mut self) {
        self.end(self.most);
    }

    fn end(&mut self, spent: Spent) {
        let mut accounts = self.budget.accounts();
        accounts.reserved = accounts.reserved.minus(self.most);
        accounts.spent = accounts.spent.plus(spent);
        drop(accounts);
        self.settled = true;
        self.budget.changed.notify_waiters();
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.settled {
            self.end(Spent::default());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn call(tokens: u64) -> Spent {
        Spent { calls: 1, tokens, cost: Money(tokens) }
    }

    fn budget(limits: Limits, spent: Spent) -> Arc<Budget> {
        Budget::new(limits, spent, tempfile::tempdir().unwrap().path(), 1).unwrap()
    }

    #[tokio::test]
    async fn calls_in_flight_reserve_their_most_and_give_back_the_rest() {
        let budget = budget(Limits { max_tokens: Some(100), ..Limits::default() }, Spent::default());
        let first = budget.reserve(call(60)).await.unwrap();
        let waiting = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.reserve(call(60)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "60 + 60 could pass 100, but the first may turn out cheaper");
        first.settle(call(30));
        let second = waiting.await.unwrap().unwrap();
        second.settle_as_lost();
        let error = budget.reserve(call(11)).await.unwrap_err().to_string();
        assert!(error.contains("`max_tokens: 100`") && error.contains("2 calls, 90 tokens"), "{error}");
        drop(budget.reserve(call(10)).await.unwrap());
        budget.reserve(call(10)).await.unwrap().settle(call(10));
        assert!(budget.reserve(call(1)).await.is_err());
    }

    #[tokio::test]
    async fn what_was_spent_before_counts_and_each_limit_is_kept() {
        let spent = Spent { calls: 5, tokens: 50, cost: Money(50) };
        for limits in [
            Limits { max_calls: Some(5), ..Limits::default() },
            Limits { max_tokens: Some(59), ..Limits::default() },
            Limits { max_cost: Some(Money(59)), ..Limits::default() },
        ] {
            assert!(budget(limits, spent).reserve(call(10)).await.is_err(), "{limits:?}");
        }
        let wide = Limits { max_calls: Some(6), max_tokens: Some(60), max_cost: Some(Money(60)) };
        assert!(budget(wide, spent).reserve(call(10)).await.is_ok());
    }

    #[test]
    fn one_process_at_a_time_spends_a_budget() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { max_calls: Some(1), ..Limits::default() };
        let held = Budget::new(limits, Spent::default(), folder.path(), 7).unwrap();
        assert!(Budget::new(limits, Spent::default(), folder.path(), 7).is_err());
        assert!(Budget::new(limits, Spent::default(), folder.path(), 8).is_ok());
        drop(held);
        assert!(Budget::new(limits, Spent::default(), folder.path(), 7).is_ok());
    }
}
