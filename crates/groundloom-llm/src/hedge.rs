//! Asking a second time when an answer is slow: bought speed.

use std::{
    collections::VecDeque,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::transport::parse_span;

/// When a call in flight is asked a second time. The first answer wins; both are paid, kept and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedge {
    /// After a fixed time.
    After(Duration),
    /// After the time within which so many in a hundred of the latest answers came (1 to 99).
    Percentile(u8),
}

impl FromStr for Hedge {
    type Err = String;

    /// Reads a time such as `10s`, `500ms` or `1m30s`, or a percentile such as `p95`.
    fn from_str(text: &str) -> Result<Self, String> {
        let percentile = text.strip_prefix('p').and_then(|n| n.parse().ok()).filter(|n| (1..=99).contains(n));
        let time = parse_span(text).filter(|time| !time.is_zero() && text.ends_with(char::is_alphabetic));
        percentile
            .map(Self::Percentile)
            .or_else(|| time.map(Self::After))
            .ok_or_else(|| format!("expected a time such as 10s or a percentile such as p95, found \"{text}\""))
    }
}

/// Answers whose times are remembered.
const REMEMBERED: usize = 256;
/// Fewer than these say nothing about a percentile.
const FEWEST: usize = 20;

/// How long the latest answers took.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Mutex<VecDeque<Duration>>);

impl Latencies {
    /// An answer took so long.
    pub fn note(&self, took: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() == REMEMBERED {
            times.pop_front();
        }
        times.push_back(took);
    }

    /// After what time a call is asked again; `None` while too few answers are in to say.
    pub fn wait(&self, hedge: Hedge) -> Option<Duration> {
        match hedge {
            Hedge::After(time) => Some(time),
            Hedge::Percentile(percentile) => {
                let mut times: Vec<Duration> =
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
                if times.len() < FEWEST {
                    return None;
                }
                let at = (times.len() * usize::from(percentile)).div_ceil(100).clamp(1, times.len()) - 1;
                Some(*times.select_nth_unstable(at).1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_percentiles_are_read() {
        for (text, hedge) in [
            ("10s", Some(Hedge::After(Duration::from_secs(10)))),
            ("500ms", Some(Hedge::After(Duration::from_millis(500)))),
            ("1m30s", Some(Hedge::After(Duration::from_secs(90)))),
            ("p95", Some(Hedge::Percentile(95))),
            ("p0", None),
            ("p100", None),
            ("0s", None),
            ("10", None),
            ("slow", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), hedge, "{text}");
        }
    }

    #[test]
    fn a_percentile_is_that_of_the_latest_answers() {
        let latencies = Latencies::default();
        for ms in 1..=19 {
            latencies.note(Duration::from_millis(ms));
        }
        assert_eq!(latencies.wait(Hedge::Percentile(50)), None);
        for ms in 20..=100 {
            latencies.note(Duration::from_millis(ms));
        }
        assert_eq!(latencies.wait(Hedge::Percentile(95)), Some(Duration::from_millis(95)));
        assert_eq!(latencies.wait(Hedge::After(Duration::from_secs(1))), Some(Duration::from_secs(1)));
        for _ in 0..REMEMBERED {
            latencies.note(Duration::from_secs(3));
        }
        assert_eq!(latencies.wait(Hedge::Percentile(1)), Some(Duration::from_secs(3)));
    }
}
