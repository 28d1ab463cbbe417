//! When a call may go out: concurrency that adapts to the server, limits per minute, pauses that the server asked for, and a circuit breaker.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use crate::error::LlmError;

/// How fast a server may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The most calls at the same time.
    pub max_concurrency: usize,
    /// The most calls a minute.
    pub requests_per_minute: Option<u64>,
    /// The most tokens a minute; a call counts with its input and its most output, corrected when the answer is in.
    pub tokens_per_minute: Option<u64>,
    /// How long the server may fail without a single success before the run ends.
    pub give_up_after: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            max_concurrency: 64,
            requests_per_minute: None,
            tokens_per_minute: None,
            give_up_after: Duration::from_secs(15 * 60),
        }
    }
}

/// Concurrency to start with; it doubles per round trip until the server complains.
const START: usize = 32;
/// Failures in a row, of whatever calls, after which the server counts as down.
const FAILURES_TO_OPEN: u32 = 10;
/// While the server is down one call tries after this time, then after twice as long, ….
const FIRST_COOLDOWN: Duration = Duration::from_millis(250);
const LONGEST_COOLDOWN: Duration = Duration::from_secs(30);
/// A pause when a server says "too many" without saying until when.
const THROTTLE_PAUSE: Duration = Duration::from_millis(500);
/// Nobody who asks for a longer pause is believed.
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);
/// A server that comes and goes is not told of each time.
const BETWEEN_WORDS: Duration = Duration::from_secs(30);
/// Several calls that fail together are one reason to slow down, not several.
const BETWEEN_CUTS: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Gate {
    pace: Pace,
    url: String,
    places: Arc<Semaphore>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Calls allowed at the same time, at least 1.
    limit: f64,
    /// Places to take away as calls end.
    debt: usize,
    /// Before the first complaint.
    starting: bool,
    last_cut: Option<Instant>,
    paused_until: Instant,
    next_request: Instant,
    next_token: Instant,
    /// Signs that the server is alive, so far.
    heard: u64,
    /// Since the last of them.
    failing_since: Option<Instant>,
    failures_in_a_row: u32,
    /// Calls that failed for the first time since then.
    calls_failing: u32,
    /// Whether one of the failures says that it is the server.
    away: bool,
    /// The server counts as down: one call at a time tries.
    down: bool,
    trying: bool,
    cooldown: Duration,
    last_failure: String,
    /// When it was last said that the server is down.
    told: Option<Instant>,
    /// Whether it is still to be said that it is back.
    to_tell: bool,
}

impl State {
    /// Since when the server has been failing, where that is not just a few calls that fail whenever they are made.
    fn suspected_since(&self) -> Option<Instant> {
        self.failing_since.filter(|_| self.away || self.calls_failing >= FAILURES_TO_OPEN)
    }
}

impl Gate {
    pub fn new(pace: Pace, url: String) -> Arc<Self> {
        let start = START.min(pace.max_concurrency.max(1));
        let now = Instant::now();
        Arc::new(Self {
            pace,
            url,
            places: Arc::new(Semaphore::new(start)),
            changed: Notify::new(),
            state: Mutex::new(State {
                limit: start as f64,
                debt: 0,
                starting: true,
                last_cut: None,
                paused_until: now,
                next_request: now,
                next_token: now,
                heard: 0,
                failing_since: None,
                failures_in_a_row: 0,
                calls_failing: 0,
                away: false,
                down: false,
                trying: false,
                cooldown: FIRST_COOLDOWN,
                last_failure: String::new(),
                told: None,
                to_tell: false,
            }),
        })
    }

    /// Waits until a call of at most `tokens` tokens may go out.
    ///
    /// # Errors
    /// [`LlmError::Down`] when the server has been failing for too long.
    pub async fn admit(self: &Arc<Self>, tokens: u64) -> Result<Admitted, LlmError> {
        let permit =
            Arc::clone(&self.places).acquire_owned().await.map_err(|_| LlmError::Setup("the gate is closed".into()))?;
        let mut admitted = Admitted { gate: Arc::clone(self), permit: Some(permit), tokens, tries: false };
        if let Some(slot) = self.take_slot(tokens) {
            sleep_until(slot).await;
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wake = {
                let mut state = self.state();
                let now = Instant::now();
                let given_up = state.suspected_since().map(|since| since + self.pace.give_up_after);
                if let (Some(since), Some(true)) = (state.failing_since, given_up.map(|given_up| now >= given_up)) {
                    let seconds = now.duration_since(since).as_secs();
                    return Err(LlmError::Down { url: self.url.clone(), seconds, last: state.last_failure.clone() });
                }
                if now >= state.paused_until && !(state.down && state.trying) {
                    if state.down {
                        state.trying = true;
                        admitted.tries = true;
                    }
                    return Ok(admitted);
                }
                let resumed = if state.down && state.trying { None } else { Some(state.paused_until) };
                given_up.into_iter().chain(resumed).min()
            };
            match wake {
                Some(wake) => tokio::select! { () = sleep_until(wake) => {}, () = changed => {} },
                None => changed.await,
            }
        }
    }

    /// The moment at which the limits per minute let the call out; `None` where that is now, since a timer that is due is still heard of a millisecond later.
    /// Calls are spread evenly, since servers count in short windows.
    fn take_slot(&self, tokens: u64) -> Option<Instant> {
        let mut state = self.state();
        let now = Instant::now();
        let mut slot = now;
        if let Some(rate) = self.pace.requests_per_minute.filter(|r| *r > 0) {
            let start = state.next_request.max(now);
            state.next_request = start + Duration::from_secs_f64(60.0 / rate as f64);
            slot = slot.max(start);
        }
        if let Some(rate) = self.pace.tokens_per_minute.filter(|r| *r > 0) {
            let start = state.next_token.max(now);
            state.next_token = start + Duration::from_secs_f64(60.0 * tokens as f64 / rate as f64);
            slot = slot.max(start);
        }
        (slot > now).then_some(slot)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, state: &mut State, now: Instant) {
        state.starting = false;
        if state.last_cut.is_some_and(|t| now.duration_since(t) < BETWEEN_CUTS) {
            return;
        }
        state.last_cut = Some(now);
        let before = state.limit as usize;
        state.limit = (state.limit * 0.7).max(1.0);
        let surplus = before - state.limit as usize;
        let taken = self.places.forget_permits(surplus);
        state.debt += surplus - taken;
    }

    fn grow(&self, state: &mut State) {
        let most = self.pace.max_concurrency.max(1) as f64;
        let before = state.limit as usize;
        let step = if state.starting { 1.0 } else { 1.0 / state.limit };
        state.limit = (state.limit + step).min(most);
        for _ in before..state.limit as usize {
            if state.debt > 0 {
                state.debt -= 1;
            } else {
                self.places.add_permits(1);
            }
        }
    }

    #[cfg(test)]
    fn limit(&self) -> usize {
        self.state().limit as usize
    }
}

/// A call that may go out. Told how it went, it adapts the gate; dropped untold, it changes nothing.
#[derive(Debug)]
pub(crate) struct Admitted {
    gate: Arc<Gate>,
    permit: Option<OwnedSemaphorePermit>,
    tokens: u64,
    /// The one call that tries whether the server is back.
    tries: bool,
}

impl Admitted {
    /// The server answered; `used` tokens were counted. `pause`: it says that nothing is left until then.
    pub fn succeeded(mut self, used: Option<u64>, pause: Option<Duration>) {
        let gate = Arc::clone(&self.gate);
        let mut state = gate.state();
        self.heard_of(&mut state);
        gate.grow(&mut state);
        if let (Some(rate), Some(used)) = (gate.pace.tokens_per_minute.filter(|r| *r > 0), used) {
            let unused = Duration::from_secs_f64(60.0 * self.tokens.saturating_sub(used) as f64 / rate as f64);
            state.next_token = state.next_token.checked_sub(unused).unwrap_or(state.next_token);
        }
        pause_for(&mut state, pause);
    }

    /// The server turned this request down for what it is: it is alive.
    pub fn refused(mut self) {
        let gate = Arc::clone(&self.gate);
        self.heard_of(&mut gate.state());
    }

    /// The server has too much to do and may say until when.
    pub fn throttled(mut self, pause: Option<Duration>, what: &str) {
        let gate = Arc::clone(&self.gate);
        let mut state = gate.state();
        let now = Instant::now();
        state.failing_since.get_or_insert(now);
        state.away = true;
        what.clone_into(&mut state.last_failure);
        gate.cut(&mut state, now);
        self.end_try(&mut state);
        pause_for(&mut state, Some(pause.unwrap_or(THROTTLE_PAUSE)));
    }

    /// No answer: a broken connection, a timeout, a server error. Returns whether the server counts as down, so that it is not this call's fault.
    ///
    /// Some requests fail whenever they are made, and in the end nothing is left to do but those: what a call fails with counts against the server only while no other call has
    /// got through since `first_failure`, which is set here and belongs to the call, or when the failure says that the server is `away`. A failure that may be the call's own
    /// is one more of its attempts even while it tries whether the server is back.
    pub fn failed(mut self, pause: Option<Duration>, what: &str, away: bool, first_failure: &OnceLock<u64>) -> bool {
        let gate = Arc::clone(&self.gate);
        let mut state = gate.state();
        let now = Instant::now();
        what.clone_into(&mut state.last_failure);
        let first = first_failure.set(state.heard).is_ok();
        let counts = away || first_failure.get() == Some(&state.heard);
        if counts {
            state.failing_since.get_or_insert(now);
            state.failures_in_a_row += 1;
            state.calls_failing += u32::from(first);
            state.away |= away;
            gate.cut(&mut state, now);
        }
        let tried = self.tries;
        let opens = !state.down && state.failures_in_a_row >= FAILURES_TO_OPEN;
        if opens && state.told.is_none_or(|told| now.duration_since(told) >= BETWEEN_WORDS) {
            (state.told, state.to_tell) = (Some(now), true);
            let (url, patience) = (&gate.url, gate.pace.give_up_after.as_secs());
            tracing::warn!(
                "{url} counts as down after {FAILURES_TO_OPEN} failures in a row, the last one: {what}; one call at a time tries whether it is back, for {patience} s"
            );
        }
        if opens || tried {
            state.cooldown = if opens { FIRST_COOLDOWN } else { (state.cooldown * 2).min(LONGEST_COOLDOWN) };
            state.down = true;
            let cooldown = state.cooldown;
            pause_for(&mut state, Some(cooldown));
        }
        self.end_try(&mut state);
        pause_for(&mut state, pause);
        state.down && (away || !tried)
    }

    fn heard_of(&mut self, state: &mut State) {
        state.heard += 1;
        state.failing_since = None;
        state.failures_in_a_row = 0;
        state.calls_failing = 0;
        state.away = false;
        if state.down {
            if std::mem::take(&mut state.to_tell) {
                tracing::warn!("{} is back", self.gate.url);
            }
            state.down = false;
            state.paused_until = Instant::now();
        }
        self.end_try(state);
    }

    fn end_try(&mut self, state: &mut State) {
        if std::mem::take(&mut self.tries) {
            state.trying = false;
        }
        self.gate.changed.notify_waiters();
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let gate = Arc::clone(&self.gate);
        let mut state = gate.state();
        if self.tries {
            self.end_try(&mut state);
        }
        if state.debt > 0
            && let Some(permit) = self.permit.take()
        {
            state.debt -= 1;
            permit.forget();
        }
    }
}

fn pause_for(state: &mut State, pause: Option<Duration>) {
    if let Some(pause) = pause {
        state.paused_until = state.paused_until.max(Instant::now() + pause.min(LONGEST_PAUSE));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn gate(pace: Pace) -> Arc<Gate> {
        Gate::new(pace, "http://server".into())
    }

    /// Calls that all get in before any of them ends.
    async fn calls(gate: &Arc<Gate>, n: usize) -> Vec<Admitted> {
        let mut calls = Vec::new();
        for _ in 0..n {
            calls.push(gate.admit(1).await.unwrap());
        }
        calls
    }

    #[tokio::test]
    async fn concurrency_grows_until_the_server_complains_and_shrinks_once_per_complaint() {
        let gate = gate(Pace { max_concurrency: 100, ..Pace::default() });
        for _ in 0..200 {
            gate.admit(1).await.unwrap().succeeded(None, None);
        }
        assert_eq!((gate.limit(), gate.places.available_permits()), (100, 100));
        for call in calls(&gate, 100).await {
            call.throttled(Some(Duration::ZERO), "429");
        }
        assert_eq!((gate.limit(), gate.places.available_permits()), (70, 70));
        for _ in 0..70 {
            gate.admit(1).await.unwrap().succeeded(None, None);
        }
        assert!((70..=71).contains(&gate.limit()), "at most one more place per round of answers: {}", gate.limit());
    }

    /// A timer that is due is heard of a millisecond later, which is much beside a fast server.
    #[tokio::test]
    async fn a_call_that_need_not_wait_goes_out_at_once() {
        use futures::FutureExt;
        let pace = Pace { requests_per_minute: Some(60), tokens_per_minute: Some(60), ..Pace::default() };
        for gate in [gate(Pace::default()), gate(pace)] {
            gate.admit(1).now_or_never().expect("no wait").unwrap().succeeded(None, None);
        }
        let gate = gate(pace);
        gate.admit(1).await.unwrap().succeeded(None, None);
        assert!(gate.admit(1).now_or_never().is_none(), "the second has to wait for its second");
    }

    #[tokio::test]
    async fn requests_and_tokens_per_minute_are_spread_evenly() {
        let start = Instant::now();
        let by_requests = gate(Pace { requests_per_minute: Some(6_000), ..Pace::default() });
        for _ in 0..11 {
            by_requests.admit(1).await.unwrap().succeeded(None, None);
        }
        assert!(start.elapsed() >= Duration::from_millis(99), "{:?}", start.elapsed());

        let start = Instant::now();
        let by_tokens = gate(Pace { tokens_per_minute: Some(600_000), ..Pace::default() });
        for _ in 0..11 {
            by_tokens.admit(100).await.unwrap().succeeded(Some(100), None);
        }
        assert!(start.elapsed() >= Duration::from_millis(99), "{:?}", start.elapsed());
        let call = by_tokens.admit(100).await.unwrap();
        let next = by_tokens.state().next_token;
        call.succeeded(Some(40), None);
        assert_eq!(next - by_tokens.state().next_token, Duration::from_millis(6), "unused tokens are given back");
    }

    #[tokio::test]
    async fn a_pause_that_the_server_asks_for_holds_everybody() {
        let gate = gate(Pace::default());
        let start = Instant::now();
        gate.admit(1).await.unwrap().throttled(Some(Duration::from_millis(70)), "429");
        gate.admit(1).await.unwrap().succeeded(None, Some(Duration::from_millis(30)));
        assert!(start.elapsed() >= Duration::from_millis(70));
        gate.admit(1).await.unwrap().succeeded(None, None);
        assert!(start.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_server_that_is_down_is_tried_by_one_call_and_given_up_in_the_end() {
        let gate = gate(Pace { give_up_after: Duration::from_millis(600), ..Pace::default() });
        let down: Vec<bool> = calls(&gate, 20)
            .await
            .into_iter()
            .map(|c| c.failed(None, "connection refused", true, &OnceLock::new()))
            .collect();
        assert_eq!(down, [vec![false; 9], vec![true; 11]].concat());

        let one = gate.admit(1).await.unwrap();
        let other = tokio::time::timeout(Duration::from_millis(50), gate.admit(1)).await;
        assert!(other.is_err(), "only one call tries");
        one.succeeded(None, None);
        for call in calls(&gate, 2).await {
            call.succeeded(None, None);
        }

        let start = Instant::now();
        let error = loop {
            match gate.admit(1).await {
                Ok(call) => drop(call.failed(None, "no route", true, &OnceLock::new())),
                Err(error) => break error.to_string(),
            }
        };
        assert!(start.elapsed() >= Duration::from_millis(600));
        assert!(error.contains("http://server has been failing for") && error.contains("no route"), "{error}");
    }

    /// Whether the server was blamed, for each of `times` failures of one call that another call's success lies behind.
    async fn fails_alone(gate: &Arc<Gate>, first_failure: &OnceLock<u64>, times: usize) -> Vec<bool> {
        let mut blamed = Vec::new();
        for _ in 0..times {
            blamed.push(gate.admit(1).await.unwrap().failed(None, "500", false, first_failure));
        }
        blamed
    }

    #[tokio::test]
    async fn calls_that_always_fail_are_not_the_servers_fault() {
        let gate = gate(Pace { give_up_after: Duration::ZERO, ..Pace::default() });
        let rows: Vec<OnceLock<u64>> = (0..5).map(|_| OnceLock::new()).collect();
        for row in &rows {
            assert_eq!(fails_alone(&gate, row, 1).await, [false]);
            gate.admit(1).await.unwrap().succeeded(None, None);
        }
        let limit = gate.limit();
        // Nothing else is left to do.
        for row in &rows {
            assert_eq!(fails_alone(&gate, row, 8).await, [false; 8]);
        }
        assert_eq!(gate.limit(), limit, "nor does it have too much to do");
        // A server that cannot be reached is another matter.
        let away = gate.admit(1).await.unwrap().failed(None, "refused", true, &rows[0]);
        assert!(!away && gate.admit(1).await.is_err());
    }

    /// Rows that fail behind everything else: there is no telling until they have had their attempts, and they get them.
    #[tokio::test]
    async fn a_call_that_tries_whether_the_server_is_back_uses_its_attempts_up() {
        let gate = gate(Pace { give_up_after: Duration::ZERO, ..Pace::default() });
        let rows = [OnceLock::new(), OnceLock::new()];
        let mut blamed = Vec::new();
        for row in rows.iter().cycle().take(11) {
            blamed.push(gate.admit(1).await.unwrap().failed(None, "500", false, row));
        }
        assert_eq!(blamed, [vec![false; 9], vec![true, false]].concat());
        // The same from one that is away says nothing of the call.
        assert!(gate.state().down && gate.state().suspected_since().is_none());
        gate.state().paused_until = Instant::now();
        assert!(gate.admit(1).await.unwrap().failed(None, "503", true, &rows[0]));
    }

    #[tokio::test]
    async fn a_call_that_is_cancelled_while_it_tries_lets_another_try() {
        let gate = gate(Pace::default());
        for call in calls(&gate, FAILURES_TO_OPEN as usize).await {
            call.failed(None, "x", false, &OnceLock::new());
        }
        drop(gate.admit(1).await.unwrap());
        gate.admit(1).await.unwrap().succeeded(None, None);
    }
}
