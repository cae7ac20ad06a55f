//! What the batcher promises. Time stands still unless a test advances it: the compute thread reads the
//! paused clock too.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use tokio::task::JoinHandle;
use tokio::time::advance;

use super::worker::POOL_RESIDENCY;
use super::*;

/// A fake computation that adds one to each job. It reports each batch when it starts, and ends it when the
/// test says so. A job of 666 panics.
struct Gate {
    started: mpsc::Sender<Vec<usize>>,
    finish: Mutex<mpsc::Receiver<()>>,
    /// Number of calls of [`BatchRunner::on_pool`].
    pool_visits: AtomicUsize,
}

impl BatchRunner for Gate {
    type Job = usize;
    type Outcome = usize;

    fn tokens(&self, job: &usize) -> usize {
        *job
    }

    fn run(&self, jobs: &[usize]) -> Vec<usize> {
        self.started.send(jobs.to_vec()).unwrap();
        self.finish.lock().unwrap_or_else(PoisonError::into_inner).recv().unwrap();
        assert!(!jobs.contains(&666), "the job that panics");
        jobs.iter().map(|j| j + 1).collect()
    }

    fn on_pool(&self, work: impl FnOnce() + Send) {
        self.pool_visits.fetch_add(1, Ordering::Relaxed);
        work();
    }
}

struct Bench {
    batcher: Arc<Batcher<Gate>>,
    started: mpsc::Receiver<Vec<usize>>,
    finish: mpsc::Sender<()>,
}

const LIMITS: QueueLimits = QueueLimits {
    batch_tokens: 100,
    backlog_batch_tokens: 100,
    batch_samples: 4,
    queue_samples: 8,
    queue_bytes: 1000,
    batch_overhead: 0,
    queue_wait: Duration::from_secs(600),
};

fn class() -> TrafficClass {
    TrafficClass { client: "a client".into(), priority: Priority::Interactive }
}

fn bench(limits: QueueLimits) -> Bench {
    let (started, batches) = mpsc::channel();
    let (finish, finishes) = mpsc::channel();
    let gate = Gate { started, finish: Mutex::new(finishes), pool_visits: AtomicUsize::new(0) };
    let batcher = Arc::new(Batcher::start(gate, limits).unwrap());
    Bench { batcher, started: batches, finish }
}

fn in_a_minute() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

type Caller = JoinHandle<Result<Computed<usize>, BatchError>>;

/// What a caller receives, without letting the paused clock run on to the caller's deadline meanwhile, as an
/// idle runtime would.
async fn outcome(caller: Caller) -> Result<usize, BatchError> {
    let begun = std::time::Instant::now();
    while !caller.is_finished() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no outcome comes");
        tokio::task::yield_now().await;
    }
    caller.await.unwrap().map(|computed| computed.outcome)
}

impl Bench {
    /// Queues a job and returns once it is queued, or taken already.
    async fn queue(&self, job: usize, deadline: Instant) -> Caller {
        let (slot, arrivals) = (self.reserve(1, deadline).unwrap(), self.arrivals());
        let caller = tokio::spawn(slot.run(job, 1));
        while self.arrivals() == arrivals {
            tokio::task::yield_now().await;
        }
        caller
    }

    fn arrivals(&self) -> u64 {
        self.batcher.shared.state().queue.arrivals()
    }

    fn reserve(&self, bytes: usize, deadline: Instant) -> Result<Slot<Gate>, BatchError> {
        self.batcher.reserve(class(), bytes, deadline)
    }

    /// Occupies the compute thread with a job of its own.
    async fn occupy(&self) -> Caller {
        let caller = self.queue(1, in_a_minute()).await;
        assert_eq!(self.next_batch(), [1]);
        caller
    }

    /// The next batch that starts.
    fn next_batch(&self) -> Vec<usize> {
        self.started.recv().unwrap()
    }

    /// Ends the batch that runs, or the next one as soon as it starts.
    fn finish_batch(&self) {
        self.finish.send(()).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn takes_what_queued_while_it_was_busy_up_to_the_token_budget() {
    let bench = bench(LIMITS);
    bench.occupy().await;
    for job in [40, 50, 20] {
        bench.queue(job, in_a_minute()).await;
    }
    bench.finish_batch();
    assert_eq!(bench.next_batch(), [40, 50]);
    bench.finish_batch();
    assert_eq!(bench.next_batch(), [20]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_holds_no_more_samples_than_allowed() {
    let bench = bench(LIMITS);
    bench.occupy().await;
    for job in [1, 2, 3, 4, 5] {
        bench.queue(job, in_a_minute()).await;
    }
    bench.finish_batch();
    assert_eq!(bench.next_batch(), [1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_sample_over_the_budget_runs_alone() {
    let bench = bench(LIMITS);
    bench.occupy().await;
    let big = bench.queue(500, in_a_minute()).await;
    bench.queue(1, in_a_minute() + Duration::from_secs(1)).await;
    bench.finish_batch();
    assert_eq!(bench.next_batch(), [500]);
    bench.finish_batch();
    assert_eq!(outcome(big).await, Ok(501));
}

#[tokio::test(start_paused = true)]
async fn the_tightest_deadline_goes_first() {
    let bench = bench(QueueLimits { batch_samples: 1, ..LIMITS });
    bench.occupy().await;
    for (job, seconds) in [(30, 90), (10, 70), (20, 80)] {
        bench.queue(job, Instant::now() + Duration::from_secs(seconds)).await;
    }
    for job in [10, 20, 30] {
        bench.finish_batch();
        assert_eq!(bench.next_batch(), [job]);
    }
}

#[tokio::test(start_paused = true)]
async fn refuses_more_samples_than_the_queue_holds_and_says_when_to_retry() {
    let bench = bench(LIMITS);
    bench.occupy().await;
    let of = |client: &str| bench.batcher.reserve(TrafficClass { client: client.into(), ..class() }, 1, in_a_minute());
    let slots: Vec<_> = (0..LIMITS.queue_samples).map(|i| of(&format!("client {i}")).unwrap()).collect();
    let Err(BatchError::QueueFull { retry_after }) = of("another") else { panic!("not refused") };
    assert!(retry_after > Duration::ZERO);
    drop(slots);
    assert!(of("another").is_ok());
}

#[tokio::test(start_paused = true)]
async fn refuses_more_memory_than_the_queue_may_hold() {
    let bench = bench(LIMITS);
    let most = bench.reserve(990, in_a_minute()).unwrap();
    assert!(matches!(bench.reserve(11, in_a_minute()), Err(BatchError::Memory { .. })));
    assert!(matches!(bench.reserve(1001, in_a_minute()), Err(BatchError::TooLarge)));
    let small = bench.reserve(10, in_a_minute()).unwrap();
    assert!(matches!(small.run(1, 11).await, Err(BatchError::Memory { .. })));
    drop(most);
    assert_eq!(bench.batcher.shared.state().queue.bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn answers_at_the_deadline_while_another_batch_still_runs() {
    let bench = bench(LIMITS);
    bench.occupy().await;
    let short = bench.queue(2, Instant::now() + Duration::from_millis(20)).await;
    advance(Duration::from_millis(19)).await;
    tokio::task::yield_now().await;
    assert!(!short.is_finished(), "not before the deadline");
    advance(Duration::from_millis(1)).await;
    assert_eq!(outcome(short).await, Err(BatchError::DeadlineExceeded));
    assert_eq!(bench.batcher.depth(), 0, "it left the queue");
    bench.queue(3, in_a_minute()).await;
    bench.finish_batch();
    assert_eq!(bench.next_batch(), [3], "it cost no compute");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_is_answered_without_compute() {
    let bench = bench(LIMITS);
    let slot = bench.reserve(1, Instant::now() + Duration::from_millis(1)).unwrap();
    advance(Duration::from_millis(1)).await;
    assert_eq!(slot.run(1, 1).await, Err(BatchError::DeadlineExceeded));
    assert_eq!(bench.arrivals(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_hangs_up_drops_the_place_in_the_queue() {
    let bench = bench(LIMITS);
    bench.occupy().await;
    let gone = bench.queue(2, in_a_minute()).await;
    bench.queue(3, in_a_minute()).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    assert_eq!(bench.batcher.depth(), 1);
    bench.finish_batch();
    assert_eq!(bench.next_batch(), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_only_the_sample_that_causes_it_and_the_thread_lives_on() {
    let bench = bench(QueueLimits { batch_tokens: 10_000, backlog_batch_tokens: 10_000, ..LIMITS });
    let first = bench.occupy().await;
    let good = bench.queue(2, in_a_minute()).await;
    let bad = bench.queue(666, in_a_minute()).await;
    let other = bench.queue(3, in_a_minute()).await;
    // The first batch, the three together, then each alone.
    for _ in 0..5 {
        bench.finish_batch();
    }
    assert_eq!(outcome(first).await, Ok(2));
    assert_eq!((outcome(good).await, outcome(bad).await, outcome(other).await), (Ok(3), Err(BatchError::Panicked), Ok(4)));
    let after = bench.queue(7, in_a_minute()).await;
    bench.finish_batch();
    assert_eq!(outcome(after).await, Ok(8));
}

#[tokio::test(start_paused = true)]
async fn batches_follow_each_other_on_one_pool_thread_for_a_bounded_time() {
    let bench = bench(QueueLimits { batch_samples: 1, ..LIMITS });
    let pool_visits = || bench.batcher.shared.runner.pool_visits.load(Ordering::Relaxed);
    let running = bench.occupy().await;
    let waiting = [bench.queue(2, in_a_minute()).await, bench.queue(3, in_a_minute()).await, bench.queue(4, in_a_minute()).await];
    for job in [2, 3] {
        bench.finish_batch();
        assert_eq!(bench.next_batch(), [job]);
    }
    assert_eq!(pool_visits(), 1, "no time has passed");
    advance(POOL_RESIDENCY).await;
    bench.finish_batch();
    assert_eq!(bench.next_batch(), [4]);
    assert_eq!(pool_visits(), 2, "other work had a turn in between");
    bench.finish_batch();
    assert_eq!(outcome(running).await, Ok(2));
    for (caller, expected) in waiting.into_iter().zip(3..) {
        assert_eq!(outcome(caller).await, Ok(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_queue_refuses_and_finishes_what_has_a_slot() {
    let bench = bench(LIMITS);
    let running = bench.occupy().await;
    let (queued, slot) = (bench.queue(2, in_a_minute()).await, bench.reserve(1, in_a_minute()).unwrap());
    bench.batcher.close();
    assert!(matches!(bench.reserve(1, in_a_minute()), Err(BatchError::Draining)));
    for _ in 0..3 {
        bench.finish_batch();
    }
    assert_eq!((outcome(running).await, outcome(queued).await), (Ok(2), Ok(3)));
    assert_eq!(outcome(tokio::spawn(slot.run(4, 1))).await, Ok(5));
    bench.batcher.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_sample_waits_no_longer_than_allowed_and_one_that_is_computed_is_answered() {
    let bench = bench(QueueLimits { queue_wait: Duration::from_millis(40), ..LIMITS });
    let running = bench.occupy().await;
    let waiting = bench.queue(2, in_a_minute()).await;
    advance(Duration::from_millis(39)).await;
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "not before queue_wait has passed");
    advance(Duration::from_millis(1)).await;
    assert!(matches!(outcome(waiting).await, Err(BatchError::QueueWait { .. })));
    assert_eq!(bench.batcher.depth(), 0, "it left the queue");
    bench.finish_batch();
    assert_eq!(outcome(running).await, Ok(2), "it was computed for longer than a sample may wait");
}
