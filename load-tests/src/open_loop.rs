//! The open loop: each request is sent when it is due, whether or not earlier ones are answered.
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::tally::{Call, Tally};
use crate::target::Target;

/// Sends the `n`-th request at the `n`-th of `arrivals` (times since now, ascending) and waits for every
/// answer. Where `max_outstanding` calls have no answer yet, the next request is dropped and counted as
/// dropped. This bounds memory; a run with drops has offered less than its rate.
pub async fn run<T: Target>(target: Arc<T>, arrivals: impl Iterator<Item = Duration>, max_outstanding: usize) -> Tally {
    let start = Instant::now();
    let mut last = start;
    let mut tally = Tally::default();
    let mut calls = JoinSet::new();
    for (n, since) in (0..).zip(arrivals) {
        let due = start + since;
        sleep_until(due).await;
        last = due;
        tally.offered += 1;
        while let Some(call) = calls.try_join_next() {
            tally.record(finished(call));
        }
        if calls.len() >= max_outstanding {
            tally.dropped += 1;
            continue;
        }
        let target = Arc::clone(&target);
        calls.spawn(async move {
            let lag = due.elapsed();
            let end = target.call(n, since).await;
            Call { end, due: since, latency: due.elapsed(), lag }
        });
    }
    while let Some(call) = calls.join_next().await {
        tally.record(finished(call));
    }
    tally.elapsed = start.elapsed().max(last - start);
    tally
}

/// The figures of a call. A task of the generator fails only by a panic, which this function continues.
fn finished(call: Result<Call, tokio::task::JoinError>) -> Call {
    call.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tonic::Code;

    use super::*;
    use crate::arrivals::{Arrivals, Rates};
    use crate::closed_loop;
    use crate::tally::End;

    /// One worker that takes `service` for each request in turn and stalls from `stall.0` to `stall.1`. Time
    /// is tokio's paused clock.
    struct Stalling {
        start: Instant,
        service: Duration,
        stall: (Duration, Duration),
        free_at: Mutex<Instant>,
    }

    impl Stalling {
        fn new(service: u64, stall: (u64, u64)) -> Arc<Self> {
            let start = Instant::now();
            let ms = Duration::from_millis;
            Arc::new(Self { start, service: ms(service), stall: (ms(stall.0), ms(stall.1)), free_at: Mutex::new(start) })
        }
    }

    impl Target for Stalling {
        async fn call(&self, _: u64, _: Duration) -> End {
            let done = {
                let mut free_at = self.free_at.lock().unwrap();
                let mut begin = (*free_at).max(Instant::now());
                if begin >= self.start + self.stall.0 && begin < self.start + self.stall.1 {
                    begin = self.start + self.stall.1;
                }
                *free_at = begin + self.service;
                *free_at
            };
            sleep_until(done).await;
            Code::Ok.into()
        }
    }

    /// Answers each request after `service`; any number of requests at once.
    struct Parallel(Duration);

    impl Target for Parallel {
        async fn call(&self, _: u64, _: Duration) -> End {
            tokio::time::sleep(self.0).await;
            Code::Ok.into()
        }
    }

    fn every(gap_ms: u64, count: u64) -> impl Iterator<Item = Duration> {
        (0..count).map(move |n| Duration::from_millis(gap_ms * n))
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_shows_in_every_request_that_fell_into_it() {
        // 1,000 requests, one every 10 ms. The server takes 1 ms for each and stalls from second 2 to second
        // 4, during which 200 requests are due.
        let tally = run(Stalling::new(1, (2000, 4000)), every(10, 1000), 10_000).await;
        let ok = &tally.by_code[&(Code::Ok as i32)];
        assert_eq!((tally.offered, tally.dropped, ok.count()), (1000, 0, 1000));
        // The requests that are due at the start of the stall wait 2 s. Behind them, a backlog of 200 shrinks
        // by 9 every 10 ms.
        let over = |seconds: f64| (0..1000).filter(|i| ok.quantile(f64::from(*i) / 1000.0 + 0.0005).unwrap() > seconds).count();
        assert!((195..=225).contains(&over(0.02)), "{} requests were slow", over(0.02));
        assert!((100..=120).contains(&over(1.0)), "{} requests waited over a second", over(1.0));
        assert!((ok.quantile(1.0).unwrap() - 2.001).abs() < 0.01, "{:?}", ok.quantile(1.0));
        assert!(ok.quantile(0.5).unwrap() < 0.003);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_hides_the_same_stall() {
        // For comparison with the test above: one caller that waits for each answer sees the stall once.
        let tally = closed_loop::run(Stalling::new(1, (2000, 4000)), 1, Duration::ZERO, Duration::from_secs(10), Duration::ZERO).await;
        assert!(tally.by_code[&(Code::Ok as i32)].quantile(0.99).unwrap() < 0.01);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_go_out_though_none_was_answered() {
        let tally = run(Arc::new(Parallel(Duration::from_secs(60))), every(10, 500), 10_000).await;
        assert_eq!(tally.count(Code::Ok), 500);
        assert!(tally.lag.quantile(1.0).unwrap() < 0.005);
        assert!((tally.elapsed.as_secs_f64() - 64.99).abs() < 0.01);
    }

    #[tokio::test(start_paused = true)]
    async fn drops_are_counted_when_too_many_calls_are_outstanding() {
        let tally = run(Arc::new(Parallel(Duration::from_secs(60))), every(10, 500), 100).await;
        assert_eq!((tally.offered, tally.sent(), tally.dropped), (500, 100, 400));
    }

    #[tokio::test(start_paused = true)]
    async fn overload_is_offered_at_its_rate_and_goodput_is_the_servers() {
        // 200 requests per second for a worker that answers 100: the backlog grows, and goodput is the
        // worker's rate.
        let arrivals = Arrivals::new(Rates { base: 200.0, burst: None }, Duration::from_secs(30), 7);
        let tally = run(Stalling::new(10, (0, 0)), arrivals, 100_000).await;
        assert!((tally.offered as f64 / 6000.0 - 1.0).abs() < 0.05, "{} offered", tally.offered);
        assert!((tally.goodput() - 100.0).abs() < 1.0, "goodput {}", tally.goodput());
    }

    #[tokio::test(start_paused = true)]
    async fn the_closed_loop_measures_capacity() {
        let tally = closed_loop::run(Stalling::new(5, (0, 0)), 16, Duration::from_secs(1), Duration::from_secs(10), Duration::ZERO).await;
        assert!((tally.goodput() - 200.0).abs() < 2.0, "capacity {}", tally.goodput());
    }
}
