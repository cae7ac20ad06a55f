//! When a call is tried again.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use crate::Error;

/// How often, and after what waits, a call is tried again.
///
/// It is tried again after UNAVAILABLE, and after RESOURCE_EXHAUSTED with a time to retry
/// (`google.rpc.RetryInfo`); never beyond its timeout, and never after another code. Where the server names a
/// time, the client waits that long; after UNAVAILABLE without one, [`first_wait`](Self::first_wait) and then
/// twice as long each time.
///
/// ```
/// use std::time::Duration;
/// use delo_client::Retry;
///
/// let patient = Retry::default().attempts(10).longest_wait(Duration::from_secs(30));
/// let once = Retry::never();
/// ```
#[derive(Clone, Debug)]
pub struct Retry {
    attempts: u32,
    first_wait: Duration,
    longest_wait: Duration,
    longest_asked_wait: Duration,
    jitter: f64,
    budget: Option<Budget>,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    retries: u32,
    share: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 4,
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(5),
            longest_asked_wait: Duration::MAX,
            jitter: 0.25,
            budget: Some(Budget { retries: 100, share: 0.1 }),
        }
    }
}

impl Retry {
    /// Every call is sent once.
    pub fn never() -> Self {
        Self::default().attempts(1)
    }

    /// Attempts in all, at least 1. By default 4.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// The wait after the first UNAVAILABLE for which the server names no time; each later one is twice as
    /// long. By default 0.1 s.
    #[must_use]
    pub fn first_wait(mut self, wait: Duration) -> Self {
        self.first_wait = wait;
        self
    }

    /// The longest of those waits. By default 5 s. What the server asks for is not shortened.
    #[must_use]
    pub fn longest_wait(mut self, wait: Duration) -> Self {
        self.longest_wait = wait;
        self
    }

    /// Where the server asks for a longer wait than this, the call ends with its error. By default the call's
    /// timeout alone decides.
    #[must_use]
    pub fn longest_asked_wait(mut self, wait: Duration) -> Self {
        self.longest_asked_wait = wait;
        self
    }

    /// Each wait is longer by a random share of itself, up to this, so that clients that were refused
    /// together do not come back together. By default 0.25; from 0 to 10.
    #[must_use]
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = if share.is_finite() { share.clamp(0.0, 10.0) } else { 0.0 };
        self
    }

    /// The budget of all calls of a client and its clones, so that a server in trouble is not asked many
    /// times over: each retry takes one from it, each answer adds `share`, and it holds at most `retries`, as
    /// at the start. A call that finds it empty ends with its error. By default 100 and 0.1: in the long run
    /// one retry for ten answers.
    #[must_use]
    pub fn budget(mut self, retries: u32, share: f64) -> Self {
        self.budget = Some(Budget { retries, share: if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 } });
        self
    }

    /// Any number of calls may be tried again.
    #[must_use]
    pub fn no_budget(mut self) -> Self {
        self.budget = None;
        self
    }
}

/// What is left of the budget of a client, shared by its clones.
#[derive(Debug)]
pub(crate) struct Remaining {
    budget: Option<Budget>,
    /// In thousandths of a retry.
    thousandths: AtomicU64,
}

impl Remaining {
    pub(crate) fn of(retry: &Retry) -> Self {
        Self { budget: retry.budget, thousandths: AtomicU64::new(retry.budget.map_or(0, |budget| u64::from(budget.retries) * 1000)) }
    }

    fn take(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1000);
        self.budget.is_none() || self.thousandths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    pub(crate) fn answered(&self) {
        let Some(Budget { retries, share }) = self.budget else { return };
        // From 0 to 1000: `share` is from 0 to 1.
        let added = (share * 1000.0) as u64;
        let more = |left: u64| Some((left + added).min(u64::from(retries) * 1000));
        // The function always returns a number.
        let _ = self.thousandths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }
}

/// After which errors doing a call twice does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeatable {
    Never,
    /// After an error that says that nothing was done: not after UNAVAILABLE.
    WhereRefused,
    Always,
}

/// The wait between a failed attempt and the next one; `None`: there is none, the error is the call's result.
/// `failed`: attempts so far.
pub(crate) fn wait_after(
    error: &Error,
    failed: u32,
    retry: &Retry,
    repeatable: Repeatable,
    deadline: Option<Instant>,
    remaining: &Remaining,
) -> Option<Duration> {
    if failed >= retry.attempts || !error.is_retryable() {
        return None;
    }
    match repeatable {
        Repeatable::Always => {}
        Repeatable::WhereRefused if error.code() == Code::ResourceExhausted => {}
        Repeatable::WhereRefused | Repeatable::Never => return None,
    }
    let wait = match error.retry_after() {
        Some(asked) if asked > retry.longest_asked_wait => return None,
        Some(asked) => asked,
        None => retry.first_wait.saturating_mul(2_u32.saturating_pow(failed - 1)).min(retry.longest_wait),
    };
    let wait = Duration::try_from_secs_f64(wait.as_secs_f64() * (1.0 + retry.jitter * rand::random::<f64>())).ok()?;
    let in_time = deadline.is_none_or(|deadline| wait < deadline.saturating_duration_since(Instant::now()));
    (in_time && remaining.take()).then_some(wait)
}
