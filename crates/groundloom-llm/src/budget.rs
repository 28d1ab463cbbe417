//! Limits on what may be spent, kept before a call and not after it.

use std::{
    fmt,
    fs::File,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tokio::sync::Notify;

use crate::{
    error::{LlmError, spent_sentence},
    money::Money,
};

/// The limits a user sets. What is not set is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
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

/// A budget with limits, for summaries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BudgetState {
    /// Its name.
    pub name: String,
    /// Its limits, of those who share it the tightest.
    pub limits: Limits,
    /// What has been spent under the name, by earlier processes too.
    pub spent: Spent,
}

/// For the end of a run: `budget "llava": 0.027 of max_cost 1 spent, by all runs so far`.
impl fmt::Display for BudgetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.limits.max_cost.map(|max| format!("{} of max_cost {max}", self.spent.cost)),
            self.limits.max_tokens.map(|max| format!("{} of max_tokens {max}", self.spent.tokens)),
            self.limits.max_calls.map(|max| format!("{} of max_calls {max}", self.spent.calls)),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        write!(f, "budget {:?}: {} spent, by all runs so far", self.name, parts.join(", "))
    }
}

impl Limits {
    /// The tighter of each.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            a.into_iter().chain(b).min()
        }
        Self {
            max_cost: least(self.max_cost, other.max_cost),
            max_tokens: least(self.max_tokens, other.max_tokens),
            max_calls: least(self.max_calls, other.max_calls),
        }
    }
}

/// What is spent under one name. Spending of earlier processes under it is in the store and counts.
///
/// All clients of a process that name it share it, each with its own limits: what one spends counts against the limits of all.
#[derive(Debug)]
pub(crate) struct Budget {
    accounts: Mutex<Accounts>,
    changed: Notify,
    // Two processes with one budget would each think that they are alone.
    lock: Mutex<Option<File>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Accounts {
    spent: Spent,
    reserved: Spent,
}

impl Budget {
    /// A budget of which `spent` is gone already.
    pub fn new(spent: Spent) -> Arc<Self> {
        let accounts = Mutex::new(Accounts { spent, reserved: Spent::default() });
        Arc::new(Self { accounts, changed: Notify::new(), lock: Mutex::default() })
    }

    /// What is spent, and set aside for calls in flight.
    pub fn spent(&self) -> Spent {
        let accounts = self.accounts();
        accounts.spent.plus(accounts.reserved)
    }

    /// Keeps other processes from spending it too, through a locked file in `folder`.
    ///
    /// # Errors
    /// [`LlmError::Store`] when another process holds it.
    pub fn hold(&self, folder: &Path, number: u64) -> Result<(), LlmError> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_none() {
            std::fs::create_dir_all(folder).map_err(|e| LlmError::store(folder, e))?;
            let path = folder.join(format!("{number:016x}.lock"));
            let file = File::create(&path).map_err(|e| LlmError::store(&path, e))?;
            file.try_lock().map_err(|_| {
                LlmError::store(
                    &path,
                    "another process is spending this budget right now; wait for it to end, or name another `budget`",
                )
            })?;
            *lock = Some(file);
        }
        Ok(())
    }

    /// Sets the most that a call can cost aside. Waits while calls in flight may turn out cheaper than what they reserved.
    ///
    /// # Errors
    /// [`LlmError::Limit`] when the call could pass a limit and nothing is in flight that could change that.
    pub async fn reserve(self: &Arc<Self>, most: Spent, limits: &Limits) -> Result<Reserved, LlmError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.try_reserve(most, limits) {
                Ok(reserved) => return Ok(reserved),
                Err(Full { over: Some(error) }) => return Err(error),
                Err(Full { over: None }) => changed.await,
            }
        }
    }

    /// As [`Budget::reserve`], without waiting.
    pub fn try_reserve(self: &Arc<Self>, most: Spent, limits: &Limits) -> Result<Reserved, Full> {
        let mut accounts = self.accounts();
        let after = accounts.spent.plus(accounts.reserved).plus(most);
        let Some(limit) = after.passes(limits) else {
            accounts.reserved = accounts.reserved.plus(most);
            return Ok(Reserved { budget: Arc::clone(self), most, settled: false });
        };
        let alone = accounts.spent.plus(most).passes(limits).is_some();
        let over = (alone || accounts.reserved.calls == 0).then(|| {
            let spent = accounts.spent.plus(accounts.reserved);
            LlmError::Limit { limit, spent: spent_sentence(spent.calls, spent.tokens, spent.cost) }
        });
        Err(Full { over })
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A limit leaves no room for a call.
#[derive(Debug)]
pub(crate) struct Full {
    /// The limit, when no call in flight can change that by turning out cheaper.
    over: Option<LlmError>,
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

    #[tokio::test]
    async fn calls_in_flight_reserve_their_most_and_give_back_the_rest() {
        let (budget, limits) = (Budget::new(Spent::default()), Limits { max_tokens: Some(100), ..Limits::default() });
        let first = budget.reserve(call(60), &limits).await.unwrap();
        let waiting = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.reserve(call(60), &limits).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "60 + 60 could pass 100, but the first may turn out cheaper");
        first.settle(call(30));
        let second = waiting.await.unwrap().unwrap();
        second.settle_as_lost();
        let error = budget.reserve(call(11), &limits).await.unwrap_err().to_string();
        assert!(error.contains("`max_tokens: 100`") && error.contains("2 calls, 90 tokens"), "{error}");
        drop(budget.reserve(call(10), &limits).await.unwrap());
        budget.reserve(call(10), &limits).await.unwrap().settle(call(10));
        assert!(budget.reserve(call(1), &limits).await.is_err());
        let wider = Limits { max_tokens: Some(101), ..Limits::default() };
        assert!(budget.reserve(call(1), &wider).await.is_ok(), "who shares a budget has limits of its own");
    }

    #[tokio::test]
    async fn what_was_spent_before_counts_and_each_limit_is_kept() {
        let spent = Spent { calls: 5, tokens: 50, cost: Money(50) };
        for limits in [
            Limits { max_calls: Some(5), ..Limits::default() },
            Limits { max_tokens: Some(59), ..Limits::default() },
            Limits { max_cost: Some(Money(59)), ..Limits::default() },
        ] {
            assert!(Budget::new(spent).reserve(call(10), &limits).await.is_err(), "{limits:?}");
        }
        let wide = Limits { max_calls: Some(6), max_tokens: Some(60), max_cost: Some(Money(60)) };
        assert!(Budget::new(spent).reserve(call(10), &wide).await.is_ok());
    }

    #[test]
    fn one_process_at_a_time_spends_a_budget() {
        let folder = tempfile::tempdir().unwrap();
        let held = |number| {
            let budget = Budget::new(Spent::default());
            budget.hold(folder.path(), number).map(|()| budget)
        };
        let first = held(7).unwrap();
        assert!(held(7).is_err());
        assert!(held(8).is_ok());
        first.hold(folder.path(), 7).unwrap();
        drop(first);
        assert!(held(7).is_ok());
    }
}
