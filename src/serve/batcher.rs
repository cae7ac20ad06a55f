//! Dynamic batching without timers: while the compute thread is busy, samples queue; when it is free, it takes what is queued, up to a budget of
//! tokens, in the order of [`queue`](super::queue).
//!
//! The queue's state has one owner behind one lock that is never held while anything computes. A sample enters in two steps: a [`Slot`] is reserved
//! before any work is spent on it (so that the bounds cover decoding too), then filled. Whoever waits for an answer holds a guard: dropping it, because
//! the deadline passed or the caller hung up, takes the sample out of the queue at once.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

pub use super::queue::{Claim, Limits, Priority};
use super::queue::{Key, Queue, Refusal, Taken, Waiting};
use super::sync::{Arc, Condvar, Mutex, MutexGuard, spawn};
use crate::metric_table::{BATCH_SAMPLES, BATCH_TOKENS, QUEUE_CAPACITY, QUEUE_DEPTH, STAGE_SECONDS};
use delo_process::allocator::give_back_soon;

/// What the compute thread runs. Its jobs are single samples.
pub trait Compute: Send + Sync + 'static {
    type Job: Send + 'static;
    type Outcome: Send + 'static;

    /// What this job takes of the batch's budget.
    fn tokens(&self, job: &Self::Job) -> usize;

    /// Computes a batch: one outcome for each job, in order. Blocking.
    fn run(&self, jobs: &[Self::Job]) -> Vec<Self::Outcome>;

    /// Does `work`, which computes batches one after another, on a thread from which none of them begins by waking another.
    fn stay(&self, work: impl FnOnce() + Send) {
        work();
    }
}

/// Why a job has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("the queue is full: retry in {} ms, or send fewer requests at once", retry_after.as_millis())]
    QueueFull { retry_after: Duration },
    #[error("this client holds its share of the queue: retry in {} ms, or send fewer requests at once", retry_after.as_millis())]
    ClientShare { retry_after: Duration },
    #[error("the server is busy, the sample would wait longer than batching.max_queue_seconds: retry in {} ms", retry_after.as_millis())]
    QueueWait { retry_after: Duration },
    #[error("the server is busy, the sample would not be computed before its deadline: allow more time, or retry in {} ms", retry_after.as_millis())]
    WouldExpire { retry_after: Duration },
    #[error("the memory for waiting samples is in use (batching.max_queue_bytes): retry in {} ms", retry_after.as_millis())]
    Memory { retry_after: Duration },
    #[error("the sample alone takes more memory than the queue may hold (batching.max_queue_bytes): send a smaller one")]
    TooLarge,
    #[error("the server is shutting down: retry with another")]
    Draining,
    #[error("the deadline passed before the sample was computed: allow more time, or retry when the server is less busy")]
    DeadlineExceeded,
    #[error("computing this sample failed inside the server; its log says more")]
    Panicked,
}

impl BatchError {
    fn refused(refusal: Refusal, retry_after: Duration) -> Self {
        match refusal {
            Refusal::Full => Self::QueueFull { retry_after },
            Refusal::ClientShare => Self::ClientShare { retry_after },
            Refusal::Memory => Self::Memory { retry_after },
            Refusal::Wait => Self::QueueWait { retry_after },
            Refusal::Deadline => Self::WouldExpire { retry_after },
        }
    }
}

/// How long batches follow each other on a thread of the pool before they queue for one again, with whoever else computes: a partition that is tried before it is live, say. A few batches:
/// a thread that waits for others within such work may take them up and goes on with it only after them.
const STAY: Duration = Duration::from_millis(20);

/// A queue and the thread that works it off. Dropping it closes the queue; the thread ends when the queue is empty.
pub struct Batcher<C: Compute> {
    shared: Arc<Shared<C>>,
    /// Turns true when the compute thread has ended.
    ended: watch::Receiver<bool>,
}

struct Shared<C: Compute> {
    compute: C,
    limits: Limits,
    metrics: BatchMetrics,
    state: Mutex<State<C>>,
    /// Signalled when a job is queued, and when the last slot of a closed queue is gone.
    changed: Condvar,
}

/// The series of a queue and its batches. They are looked up where the batcher starts: the threads that compute may
/// be shared with other servers of the process, whose metrics are others.
struct BatchMetrics {
    depth: metrics::Gauge,
    samples: metrics::Histogram,
    tokens: metrics::Histogram,
    queue_seconds: metrics::Histogram,
    compute_seconds: metrics::Histogram,
}

impl BatchMetrics {
    fn look_up() -> Self {
        Self {
            depth: QUEUE_DEPTH.with([]),
            samples: BATCH_SAMPLES.with([]),
            tokens: BATCH_TOKENS.with([]),
            queue_seconds: STAGE_SECONDS.with(["queue"]),
            compute_seconds: STAGE_SECONDS.with(["compute"]),
        }
    }
}

struct State<C: Compute> {
    queue: Queue<Pending<C>>,
    /// No more slots are handed out.
    closed: bool,
}

/// A job and who waits for its outcome.
struct Pending<C: Compute> {
    job: C::Job,
    answer: oneshot::Sender<Result<C::Outcome, BatchError>>,
}

impl<C: Compute> Shared<C> {
    /// The queue. No code that can panic runs under the lock, so a poisoned one is as sound as any.
    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_depth(&self, state: &State<C>) {
        self.metrics.depth.set(state.queue.depth() as f64);
    }

    /// Takes work. Where there is none: waits for it, `None` when the queue is closed and no slot is left; or else, `None` at once.
    fn take(&self, wait: bool) -> Option<Vec<Waiting<Pending<C>>>> {
        loop {
            let (taken, retry_after) = self.take_any(wait)?;
            // Outside of the lock: it wakes callers and frees their samples.
            for late in taken.late {
                // Whoever waits for it knows by its own clock as well.
                let _ = late.item.answer.send(Err(BatchError::DeadlineExceeded));
            }
            for hopeless in taken.hopeless {
                let _ = hopeless.item.answer.send(Err(BatchError::WouldExpire { retry_after }));
            }
            if !taken.batch.is_empty() {
                return Some(taken.batch);
            }
        }
    }

    /// As [`Self::take`], be it only to refuse what is taken; with it, when to try that again.
    fn take_any(&self, wait: bool) -> Option<(Taken<Pending<C>>, Duration)> {
        let mut state = self.state();
        loop {
            let taken = state.queue.take(Instant::now(), |pending| pending.answer.is_closed());
            self.show_depth(&state);
            if !taken.is_empty() {
                return Some((taken, state.queue.retry_after(Instant::now())));
            }
            if !wait || (state.closed && state.queue.reserved() == 0) {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The compute thread.
    fn work(&self) {
        // The most that waited since nothing did.
        let mut deepest = 0;
        while let Some(first) = self.take(true) {
            self.compute.stay(|| self.work_off(first, &mut deepest));
        }
    }

    /// Computes a batch and those that are ready after it, for [`STAY`].
    fn work_off(&self, first: Vec<Waiting<Pending<C>>>, deepest: &mut usize) {
        let (begun, mut next) = (Instant::now(), Some(first));
        while let Some(batch) = next {
            let waiting = self.answer(batch);
            *deepest = waiting.max(*deepest);
            // What a crowd leaves behind goes back to the system, and what it frees while it stays.
            if waiting >= self.limits.crowd() || (waiting == 0 && std::mem::take(deepest) >= self.limits.crowd()) {
                give_back_soon();
            }
            next = if begun.elapsed() < STAY { self.take(false) } else { None };
        }
    }

    /// Computes a batch and answers it; how many jobs wait.
    fn answer(&self, batch: Vec<Waiting<Pending<C>>>) -> usize {
        let started = Instant::now();
        let tokens: usize = batch.iter().map(|w| w.tokens).sum();
        self.metrics.samples.record(batch.len() as f64);
        self.metrics.tokens.record(tokens as f64);
        let (jobs, answers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|w| {
                self.metrics.queue_seconds.record(started - w.since);
                (w.item.job, w.item.answer)
            })
            .unzip();
        let outcomes = self.compute_batch(&jobs);
        let took = started.elapsed();
        self.metrics.compute_seconds.record(took);
        let waiting = self.computed(took);
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // An error here only means that the caller has gone.
            let _ = answer.send(outcome);
        }
        waiting
    }

    /// A batch took so long; how many jobs wait.
    fn computed(&self, took: Duration) -> usize {
        let mut state = self.state();
        state.queue.computed(took);
        state.queue.depth()
    }

    /// A panic while a batch computes is answered by computing its jobs one by one, so that only the job that causes it fails.
    fn compute_batch(&self, jobs: &[C::Job]) -> Vec<Result<C::Outcome, BatchError>> {
        // The compute is stateless between calls, so that nothing broken can be seen after a panic.
        let attempt =
            |jobs: &[C::Job]| catch_unwind(AssertUnwindSafe(|| self.compute.run(jobs))).ok().filter(|out| out.len() == jobs.len());
        if let Some(outcomes) = attempt(jobs) {
            return outcomes.into_iter().map(Ok).collect();
        }
        tracing::error!(samples = jobs.len(), "computing a batch panicked: computing its samples one by one");
        jobs.chunks(1).map(|job| attempt(job).and_then(|mut out| out.pop()).ok_or(BatchError::Panicked)).collect()
    }
}

impl<C: Compute> Batcher<C> {
    /// Starts the compute thread.
    ///
    /// # Errors
    /// The operating system grants no thread.
    pub fn start(compute: C, limits: Limits) -> std::io::Result<Self> {
        let state = Mutex::new(State { queue: Queue::new(limits), closed: false });
        let shared = Arc::new(Shared { compute, limits, metrics: BatchMetrics::look_up(), state, changed: Condvar::new() });
        QUEUE_CAPACITY.with([]).set(limits.queue_samples as f64);
        let (end, ended) = watch::channel(false);
        let worker = shared.clone();
        spawn("delo-compute", move || {
            worker.work();
            let _ = end.send(true);
        })?;
        Ok(Self { shared, ended })
    }

    /// A place in the queue for a sample that holds `bytes` of memory and is to be answered by `deadline`.
    ///
    /// # Errors
    /// Why there is none, see [`BatchError`].
    pub fn reserve(&self, claim: Claim, bytes: usize, deadline: Instant) -> Result<Slot<C>, BatchError> {
        let (mut state, now) = (self.shared.state(), Instant::now());
        if state.closed {
            return Err(BatchError::Draining);
        }
        if bytes > self.shared.limits.queue_bytes {
            return Err(BatchError::TooLarge);
        }
        let reserved = state.queue.reserve(&claim, bytes, deadline, now);
        reserved.map_err(|refusal| BatchError::refused(refusal, state.queue.retry_after(now)))?;
        Ok(Slot { shared: self.shared.clone(), claim: Some(claim), bytes, deadline, since: now })
    }

    /// Gives the queue its first estimate, measured before any batch comes from it: a batch of `tokens` takes
    /// `takes`.
    pub fn expect(&self, tokens: usize, takes: Duration) {
        self.shared.state().queue.expect(tokens, takes);
    }

    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// Jobs that wait for compute.
    pub fn depth(&self) -> usize {
        self.shared.state().queue.depth()
    }

    /// Hands out no more slots. What has a slot is still computed.
    pub fn close(&self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
    }

    /// Waits until a closed queue is worked off and its thread has ended.
    pub async fn drained(&self) {
        // An error means that the thread is gone without a word, which ends the wait as well.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

impl<C: Compute> Drop for Batcher<C> {
    fn drop(&mut self) {
        self.close();
    }
}

/// A reserved place in the queue; given back when dropped.
pub struct Slot<C: Compute> {
    shared: Arc<Shared<C>>,
    /// Whose it is; `None` once it is filled.
    claim: Option<Claim>,
    /// What this slot counts in the queue's memory.
    bytes: usize,
    deadline: Instant,
    /// When it was reserved.
    since: Instant,
}

impl<C: Compute> Slot<C> {
    /// Changes what the slot counts in the queue's memory.
    ///
    /// # Errors
    /// [`BatchError::TooLarge`], [`BatchError::Memory`]: nothing is changed.
    pub fn resize(&mut self, bytes: usize) -> Result<(), BatchError> {
        if bytes > self.shared.limits.queue_bytes {
            return Err(BatchError::TooLarge);
        }
        let mut state = self.shared.state();
        let resized = state.queue.resize(self.bytes, bytes);
        resized.map_err(|refusal| BatchError::refused(refusal, state.queue.retry_after(Instant::now())))?;
        self.bytes = bytes;
        Ok(())
    }

    /// Queues the job, which holds `bytes` of memory, and waits for its outcome: in the queue as long as a sample may wait there, altogether until the
    /// deadline. Dropping the future takes the job out of the queue.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub async fn run(mut self, job: C::Job, bytes: usize) -> Result<C::Outcome, BatchError> {
        let deadline = self.deadline;
        if deadline <= Instant::now() {
            return Err(BatchError::DeadlineExceeded);
        }
        self.resize(bytes)?;
        let interactive = self.claim.as_ref().is_some_and(|claim| claim.priority == Priority::Interactive);
        let (shared, (place, mut outcome)) = (self.shared.clone(), self.fill(job));
        let patience = if interactive { deadline.min(place.since + shared.limits.queue_wait) } else { deadline };
        let mut answered = tokio::time::timeout_at(patience.into(), &mut outcome).await;
        if answered.is_err() && patience < deadline {
            if place.leave() {
                let retry_after = shared.state().queue.retry_after(Instant::now());
                return Err(BatchError::QueueWait { retry_after });
            }
            // It is being computed.
            answered = tokio::time::timeout_at(deadline.into(), &mut outcome).await;
        }
        match answered {
            Ok(Ok(outcome)) => outcome,
            // The compute thread dropped the answer unsent: it can't be running any more.
            Ok(Err(_)) => Err(BatchError::Panicked),
            Err(_) => Err(BatchError::DeadlineExceeded),
        }
    }

    /// Turns the reservation into a waiting job.
    fn fill(mut self, job: C::Job) -> (Place<C>, oneshot::Receiver<Result<C::Outcome, BatchError>>) {
        let (answer, outcome) = oneshot::channel();
        let (shared, since) = (self.shared.clone(), Instant::now());
        let tokens = shared.compute.tokens(&job);
        let waiting = Waiting { item: Pending { job, answer }, tokens, bytes: self.bytes, since };
        // Taken here, before `self` is dropped: a slot is filled once.
        let key = self.claim.take().map(|claim| {
            let mut state = shared.state();
            let key = state.queue.fill(claim, self.deadline, self.since, waiting);
            shared.show_depth(&state);
            key
        });
        shared.changed.notify_all();
        (Place { key, since, shared }, outcome)
    }
}

impl<C: Compute> Drop for Slot<C> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.shared.state().queue.give_back(&claim, self.bytes);
            self.shared.changed.notify_all();
        }
    }
}

/// A job in the queue; when dropped, the job leaves the queue if it is still there.
struct Place<C: Compute> {
    key: Option<Key>,
    since: Instant,
    shared: Arc<Shared<C>>,
}

impl<C: Compute> Place<C> {
    /// Takes the job out; false where it is out already.
    fn leave(&self) -> bool {
        let Some(key) = &self.key else { return false };
        let mut state = self.shared.state();
        let left = state.queue.remove(key);
        self.shared.show_depth(&state);
        drop(state);
        // A job's memory is freed outside of the lock.
        left.is_some()
    }
}

impl<C: Compute> Drop for Place<C> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// A fake compute: adds one to each job. Each batch is reported when it starts and waits for leave to end. A job of 666 panics.
    struct Gate {
        started: mpsc::Sender<Vec<usize>>,
        leave: Mutex<mpsc::Receiver<()>>,
        stays: AtomicUsize,
    }

    impl Compute for Gate {
        type Job = usize;
        type Outcome = usize;

        fn tokens(&self, job: &usize) -> usize {
            *job
        }

        fn run(&self, jobs: &[usize]) -> Vec<usize> {
            self.started.send(jobs.to_vec()).unwrap();
            self.leave.lock().unwrap_or_else(PoisonError::into_inner).recv().unwrap();
            assert!(!jobs.contains(&666), "the job of the beast");
            jobs.iter().map(|j| j + 1).collect()
        }

        fn stay(&self, work: impl FnOnce() + Send) {
            self.stays.fetch_add(1, Ordering::Relaxed);
            work();
        }
    }

    struct Bench {
        batcher: Arc<Batcher<Gate>>,
        started: mpsc::Receiver<Vec<usize>>,
        leave: mpsc::Sender<()>,
    }

    const LIMITS: Limits = Limits {
        batch_tokens: 100,
        backlog_batch_tokens: 100,
        batch_samples: 4,
        queue_samples: 8,
        queue_bytes: 1000,
        batch_overhead: 0,
        queue_wait: Duration::from_secs(600),
    };

    fn claim() -> Claim {
        Claim { client: "a client".into(), priority: Priority::Interactive }
    }

    fn bench(limits: Limits) -> Bench {
        let (started, batches) = mpsc::channel();
        let (leave, leaves) = mpsc::channel();
        let batcher = Arc::new(Batcher::start(Gate { started, leave: Mutex::new(leaves), stays: AtomicUsize::new(0) }, limits).unwrap());
        Bench { batcher, started: batches, leave }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    type Answer = tokio::task::JoinHandle<Result<usize, BatchError>>;

    impl Bench {
        /// Queues a job and returns once it is queued (or already taken).
        async fn queue(&self, job: usize, deadline: Instant) -> Answer {
            let (slot, arrivals) = (self.reserve(1, deadline).unwrap(), self.arrivals());
            let answer = tokio::spawn(slot.run(job, 1));
            while self.arrivals() == arrivals {
                tokio::task::yield_now().await;
            }
            answer
        }

        fn arrivals(&self) -> u64 {
            self.batcher.shared.state().queue.arrivals()
        }

        fn reserve(&self, bytes: usize, deadline: Instant) -> Result<Slot<Gate>, BatchError> {
            self.batcher.reserve(claim(), bytes, deadline)
        }

        /// Occupies the compute thread with a job of its own.
        async fn occupy(&self) -> Answer {
            let answer = self.queue(1, soon()).await;
            assert_eq!(self.started.recv().unwrap(), [1]);
            answer
        }
    }

    #[tokio::test]
    async fn takes_what_queued_while_it_was_busy_up_to_the_token_budget() {
        let bench = bench(LIMITS);
        bench.occupy().await;
        for job in [40, 50, 20] {
            bench.queue(job, soon()).await;
        }
        bench.leave.send(()).unwrap();
        assert_eq!(bench.started.recv().unwrap(), [40, 50]);
        bench.leave.send(()).unwrap();
        assert_eq!(bench.started.recv().unwrap(), [20]);
    }

    #[tokio::test]
    async fn a_batch_holds_no_more_samples_than_allowed() {
        let bench = bench(LIMITS);
        bench.occupy().await;
        for job in [1, 2, 3, 4, 5] {
            bench.queue(job, soon()).await;
        }
        bench.leave.send(()).unwrap();
        assert_eq!(bench.started.recv().unwrap(), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_sample_over_the_budget_runs_alone() {
        let bench = bench(LIMITS);
        bench.occupy().await;
        let big = bench.queue(500, soon()).await;
        bench.queue(1, soon() + Duration::from_secs(1)).await;
        bench.leave.send(()).unwrap();
        assert_eq!(bench.started.recv().unwrap(), [500]);
        bench.leave.send(()).unwrap();
        assert_eq!(big.await.unwrap(), Ok(501));
    }

    #[tokio::test]
    async fn the_tightest_deadline_goes_first() {
        let bench = bench(Limits { batch_samples: 1, ..LIMITS });
        bench.occupy().await;
        for (job, seconds) in [(30, 90), (10, 70), (20, 80)] {
            bench.queue(job, Instant::now() + Duration::from_secs(seconds)).await;
        }
        for job in [10, 20, 30] {
            bench.leave.send(()).unwrap();
            assert_eq!(bench.started.recv().unwrap(), [job]);
        }
    }

    #[tokio::test]
    async fn refuses_more_samples_than_the_queue_holds_and_says_when_to_retry() {
        let bench = bench(LIMITS);
        bench.occupy().await;
        let of = |client: &str| bench.batcher.reserve(Claim { client: client.into(), ..claim() }, 1, soon());
        let slots: Vec<_> = (0..LIMITS.queue_samples).map(|i| of(&format!("client {i}")).unwrap()).collect();
        let Err(BatchError::QueueFull { retry_after }) = of("another") else { panic!("not refused") };
        assert!(retry_after > Duration::ZERO);
        drop(slots);
        assert!(of("another").is_ok());
    }

    #[tokio::test]
    async fn refuses_more_memory_than_the_queue_may_hold() {
        let bench = bench(LIMITS);
        let most = bench.reserve(990, soon()).unwrap();
        assert!(matches!(bench.reserve(11, soon()), Err(BatchError::Memory { .. })));
        assert!(matches!(bench.reserve(1001, soon()), Err(BatchError::TooLarge)));
        let small = bench.reserve(10, soon()).unwrap();
        assert!(matches!(small.run(1, 11).await, Err(BatchError::Memory { .. })));
        drop(most);
        assert_eq!(bench.batcher.shared.state().queue.bytes(), 0);
    }

    #[tokio::test]
    async fn answers_at_the_deadline_while_another_batch_still_runs() {
        let bench = bench(LIMITS);
        bench.occupy().await;
        let late = bench.queue(2, Instant::now() + Duration::from_millis(20)).await;
        assert_eq!(late.await.unwrap(), Err(BatchError::DeadlineExceeded));
        assert_eq!(bench.batcher.depth(), 0, "it left the queue");
        bench.queue(3, soon()).await;
        bench.leave.send(()).unwrap();
        assert_eq!(bench.started.recv().unwrap(), [3], "it cost no compute");
    }

    #[tokio::test]
    async fn a_deadline_that_has_passed_is_answered_without_compute() {
        let bench = bench(LIMITS);
        let slot = bench.reserve(1, Instant::now() + Duration::from_millis(1)).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(slot.run(1, 1).await, Err(BatchError::DeadlineExceeded));
        assert_eq!(bench.arrivals(), 0);
    }

    #[tokio::test]
    async fn a_caller_who_hangs_up_drops_the_place_in_the_queue() {
        let bench = bench(LIMITS);
        bench.occupy().await;
        let gone = bench.queue(2, soon()).await;
        bench.queue(3, soon()).await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        assert_eq!(bench.batcher.depth(), 1);
        bench.leave.send(()).unwrap();
        assert_eq!(bench.started.recv().unwrap(), [3]);
    }

    #[tokio::test]
    async fn a_panic_fails_only_the_sample_that_causes_it_and_the_thread_lives_on() {
        let bench = bench(Limits { batch_tokens: 10_000, backlog_batch_tokens: 10_000, ..LIMITS });
        let first = bench.occupy().await;
        let (good, bad, other) = (bench.queue(2, soon()).await, bench.queue(666, soon()).await, bench.queue(3, soon()).await);
        // The first batch, the three together, then each alone.
        for _ in 0..5 {
            bench.leave.send(()).unwrap();
        }
        assert_eq!(first.await.unwrap(), Ok(2));
        assert_eq!((good.await.unwrap(), bad.await.unwrap(), other.await.unwrap()), (Ok(3), Err(BatchError::Panicked), Ok(4)));
        let after = bench.queue(7, soon()).await;
        bench.leave.send(()).unwrap();
        assert_eq!(after.await.unwrap(), Ok(8));
    }

    #[tokio::test]
    async fn batches_follow_each_other_where_they_are_computed_until_others_may_want_to() {
        let bench = bench(Limits { batch_samples: 1, ..LIMITS });
        let stays = || bench.batcher.shared.compute.stays.load(Ordering::Relaxed);
        let begun = Instant::now();
        let running = bench.occupy().await;
        let waiting = [bench.queue(2, soon()).await, bench.queue(3, soon()).await, bench.queue(4, soon()).await];
        for job in [2, 3] {
            bench.leave.send(()).unwrap();
            assert_eq!(bench.started.recv().unwrap(), [job]);
        }
        assert!(stays() == 1 || begun.elapsed() >= STAY, "{} stays", stays());
        tokio::time::sleep(STAY).await;
        let before = stays();
        bench.leave.send(()).unwrap();
        assert_eq!(bench.started.recv().unwrap(), [4]);
        assert_eq!(stays(), before + 1, "others were let in between");
        bench.leave.send(()).unwrap();
        assert_eq!(running.await.unwrap(), Ok(2));
        for (answer, expected) in waiting.into_iter().zip(3..) {
            assert_eq!(answer.await.unwrap(), Ok(expected));
        }
    }

    #[tokio::test]
    async fn a_closed_queue_refuses_and_finishes_what_has_a_slot() {
        let bench = bench(LIMITS);
        let running = bench.occupy().await;
        let (queued, slot) = (bench.queue(2, soon()).await, bench.reserve(1, soon()).unwrap());
        bench.batcher.close();
        assert!(matches!(bench.reserve(1, soon()), Err(BatchError::Draining)));
        for _ in 0..3 {
            bench.leave.send(()).unwrap();
        }
        assert_eq!((running.await.unwrap(), queued.await.unwrap()), (Ok(2), Ok(3)));
        assert_eq!(slot.run(4, 1).await, Ok(5));
        bench.batcher.drained().await;
    }

    #[tokio::test]
    async fn a_sample_waits_no_longer_than_allowed_and_one_that_is_computed_is_answered() {
        let bench = bench(Limits { queue_wait: Duration::from_millis(40), ..LIMITS });
        let running = bench.occupy().await;
        let waiting = bench.queue(2, soon()).await;
        assert!(matches!(waiting.await.unwrap(), Err(BatchError::QueueWait { .. })));
        assert_eq!(bench.batcher.depth(), 0, "it left the queue");
        bench.leave.send(()).unwrap();
        assert_eq!(running.await.unwrap(), Ok(2), "it was computed for longer than a sample may wait");
    }
}

/// Every schedule of the threads is as good as any other: nothing is lost, answered twice or left waiting. `cargo test --features shuttle --lib schedules`
#[cfg(all(test, feature = "shuttle"))]
mod schedules {
    use shuttle::future::block_on;
    use shuttle::thread;

    use super::*;

    struct Increment;

    impl Compute for Increment {
        type Job = usize;
        type Outcome = usize;

        fn tokens(&self, _: &usize) -> usize {
            40
        }

        fn run(&self, jobs: &[usize]) -> Vec<usize> {
            thread::yield_now();
            jobs.iter().map(|job| job + 1).collect()
        }
    }

    fn limits() -> Limits {
        Limits {
            batch_tokens: 100,
            backlog_batch_tokens: 100,
            batch_samples: 4,
            queue_samples: 8,
            queue_bytes: 100,
            batch_overhead: 0,
            queue_wait: Duration::from_secs(600),
        }
    }

    fn slot(batcher: &Batcher<Increment>, client: usize) -> Result<Slot<Increment>, BatchError> {
        let claim = Claim { client: client.to_string().into(), priority: Priority::Interactive };
        batcher.reserve(claim, 1, Instant::now() + Duration::from_secs(600))
    }

    #[test]
    fn every_job_is_answered_once_or_leaves_whole_while_the_queue_closes() {
        shuttle::check_random(
            || {
                let batcher = Arc::new(Batcher::start(Increment, limits()).unwrap());
                let callers: Vec<_> = (0..4)
                    .map(|i| {
                        let batcher = batcher.clone();
                        thread::spawn(move || {
                            let Ok(slot) = slot(&batcher, i) else { return };
                            match i {
                                // Hangs up before it has filled its slot.
                                0 => drop(slot),
                                // Hangs up while it waits or is computed.
                                1 => drop(slot.fill(i)),
                                _ => {
                                    let (_place, outcome) = slot.fill(i);
                                    assert_eq!(block_on(outcome), Ok(Ok(i + 1)));
                                }
                            }
                        })
                    })
                    .collect();
                let closer = {
                    let batcher = batcher.clone();
                    thread::spawn(move || batcher.close())
                };
                callers.into_iter().for_each(|caller| caller.join().unwrap());
                closer.join().unwrap();
                block_on(batcher.drained());
                let state = batcher.shared.state();
                assert_eq!((state.queue.depth(), state.queue.reserved(), state.queue.bytes()), (0, 0, 0));
            },
            2000,
        );
    }
}
