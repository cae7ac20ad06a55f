//! The capacity of a server: as many calls in flight as it likes, the next sent when one is answered.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::tally::{Call, Tally};
use crate::target::Target;

/// Keeps `in_flight` calls going and counts those that end within `window`, after `warm_up`. The tally's goodput is the capacity.
pub async fn run<T: Target>(target: Arc<T>, in_flight: usize, warm_up: Duration, window: Duration) -> Tally {
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
                let code = target.call(next.fetch_add(1, Ordering::Relaxed)).await;
                if (from..to).contains(&Instant::now()) {
                    calls.push(Call { code, latency: sent.elapsed(), lag: Duration::ZERO });
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
