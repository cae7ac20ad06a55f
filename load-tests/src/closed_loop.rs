//! Measurement of a server's capacity by a closed loop: a fixed number of calls is in flight, and each answer
//! triggers the next call.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::tally::{Call, Tally};
use crate::target::Target;

/// Keeps `in_flight` calls in flight and counts those that end within `window`, which follows `warm_up`. The
/// goodput of the tally is the capacity. The requests of the run's `span` are spread over `window` here.
pub async fn run<T: Target>(target: Arc<T>, in_flight: usize, warm_up: Duration, window: Duration, span: Duration) -> Tally {
    let faster = span.as_secs_f64() / window.as_secs_f64();
    let from = Instant::now() + warm_up;
    let to = from + window;
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let (target, next) = (Arc::clone(&target), Arc::clone(&next));
        callers.spawn(async move {
            let mut calls = Vec::new();
            while Instant::now() < to {
                let sent = Instant::now();
                let due = sent.saturating_duration_since(from);
                let end = target.call(next.fetch_add(1, Ordering::Relaxed), due.mul_f64(faster)).await;
                let now = Instant::now();
                if (from..to).contains(&now) {
                    // The time of its end, so that each second counts the calls that ended in it.
                    calls.push(Call { end, due: now - from, latency: now - sent, lag: Duration::ZERO });
                }
            }
            calls
        });
    }
    let mut tally = Tally { elapsed: window, ..Tally::default() };
    for call in callers.join_all().await.into_iter().flatten() {
        tally.offered += 1;
        tally.record(call);
    }
    tally
}
