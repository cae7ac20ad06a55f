//! Dynamic batching without timers: while the compute thread is busy, samples queue; when it is free, it takes what is queued, tightest deadline
//! first, up to a budget of tokens.
//!
//! The queue's state has one owner, [`Queue`], behind one lock that is never held while anything computes. A sample enters in two steps: a
//! [`Slot`] is reserved before any work is spent on it (so that the bound covers decoding too), then filled. Whoever waits for an answer holds a
//! guard: dropping it, because the deadline passed or the caller hung up, takes the sample out of the queue at once.
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

/// What the compute thread runs. Its jobs are single samples.
pub trait Compute: Send + Sync + 'static {
    type Job: Send + 'static;
    type Outcome: Send + 'static;

    /// What this job takes of the batch's budget.
    fn tokens(&self, job: &Self::Job) -> usize;

    /// Computes a batch: one outcome for each job, in order. Blocking.
    fn run(&self, jobs: &[Self::Job]) -> Vec<Self::Outcome>;
}

/// Bounds of a batch and of the queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of one batch. A job that is larger runs alone.
    pub batch_tokens: usize,
    pub batch_samples: usize,
    /// Slots that are reserved or wait for compute.
    pub queue_samples: usize,
    /// Memory that those hold.
    pub queue_bytes: usize,
}

/// Why a job has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("the queue is full: retry in {} ms, or send fewer requests at once", retry_after.as_millis())]
    QueueFull { retry_after: Duration },
    #[error("the sample alone takes more memory than the queue may hold (batching.max_queue_bytes): send a smaller one")]
    TooLarge,
    #[error("the server is shutting down: retry with another")]
    Draining,
    #[error("the deadline passed before the sample was computed: allow more time, or retry when the server is less busy")]
    DeadlineExceeded,
    #[error("computing this sample failed inside the server; its log says more")]
    Panicked,
}

/// A queue and the thread that works it off. Dropping it closes the queue; the thread ends when the queue is empty.
pub struct Batcher<C: Compute> {
    shared: Arc<Shared<C>>,
    /// Turns true when the compute thread has ended.
    ended: watch::Receiver<bool>,
}

struct Shared<C: Compute> {
    compute: C,
    limits: Limits,
    queue: Mutex<Queue<C>>,
    /// Signalled when a job is queued, and when the last slot of a closed queue is gone.
    changed: Condvar,
}

struct Queue<C: Compute> {
    /// By deadline, then by arrival.
    waiting: BTreeMap<(Instant, u64), Waiting<C>>,
    arrivals: u64,
    /// Slots handed out and not yet filled or given back.
    reserved: usize,
    /// Memory of the reserved slots and of the waiting jobs.
    bytes: usize,
    /// Jobs of the batch that runs.
    running: usize,
    /// No more slots are handed out.
    closed: bool,
    /// Seconds of compute a sample, a moving average over batches; `None` before the first.
    pace: Option<f64>,
}

struct Waiting<C: Compute> {
    job: C::Job,
    tokens: usize,
    bytes: usize,
    since: Instant,
    answer: oneshot::Sender<Result<C::Outcome, BatchError>>,
}

impl<C: Compute> Queue<C> {
    /// When a full queue will have been worked off, by the pace measured so far.
    fn retry_after(&self) -> Duration {
        let ahead = self.waiting.len() + self.reserved + self.running;
        let seconds = self.pace.map_or(0.1, |pace| pace * ahead as f64);
        Duration::from_secs_f64(seconds.clamp(0.01, 60.0))
    }

    fn measure(&mut self, samples: usize, took: Duration) {
        let latest = took.as_secs_f64() / samples.max(1) as f64;
        self.pace = Some(self.pace.map_or(latest, |pace| 0.8 * pace + 0.2 * latest));
    }

    /// The next batch: the tightest deadlines, as far as they fit. Jobs whose time is over or whose caller is gone are dropped.
    fn batch(&mut self, limits: Limits, now: Instant) -> Vec<Waiting<C>> {
        let (mut batch, mut tokens) = (Vec::new(), 0);
        while let Some(next) = self.waiting.first_entry() {
            if next.get().answer.is_closed() || next.key().0 <= now {
                let late = next.remove();
                self.bytes -= late.bytes;
                let _ = late.answer.send(Err(BatchError::DeadlineExceeded));
                continue;
            }
            let fits = batch.len() < limits.batch_samples && tokens + next.get().tokens <= limits.batch_tokens;
            if !(fits || batch.is_empty()) {
                break;
            }
            let job = next.remove();
            tokens += job.tokens;
            self.bytes -= job.bytes;
            batch.push(job);
        }
        batch
    }
}

impl<C: Compute> Shared<C> {
    /// The queue. No code that can panic runs under the lock, so a poisoned one is as sound as any.
    fn queue(&self) -> MutexGuard<'_, Queue<C>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_depth(queue: &Queue<C>) {
        metrics::gauge!("delo_queue_depth").set(queue.waiting.len() as f64);
    }

    /// Waits for work and takes it; `None` when the queue is closed and no slot is left.
    fn take(&self) -> Option<Vec<Waiting<C>>> {
        let mut queue = self.queue();
        loop {
            let batch = queue.batch(self.limits, Instant::now());
            Self::show_depth(&queue);
            if !batch.is_empty() {
                queue.running = batch.len();
                return Some(batch);
            }
            if queue.closed && queue.reserved == 0 {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The compute thread.
    fn work(&self) {
        while let Some(batch) = self.take() {
            let started = Instant::now();
            let tokens: usize = batch.iter().map(|w| w.tokens).sum();
            metrics::histogram!("delo_batch_samples").record(batch.len() as f64);
            metrics::histogram!("delo_batch_tokens").record(tokens as f64);
            let (jobs, answers): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .map(|w| {
                    metrics::histogram!("delo_stage_duration_seconds", "stage" => "queue").record(started - w.since);
                    (w.job, w.answer)
                })
                .unzip();
            let outcomes = self.compute_batch(&jobs);
            let took = started.elapsed();
            metrics::histogram!("delo_stage_duration_seconds", "stage" => "compute").record(took);
            {
                let mut queue = self.queue();
                queue.running = 0;
                queue.measure(jobs.len(), took);
            }
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                // An error here only means that the caller has gone.
                let _ = answer.send(outcome);
            }
        }
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
        let queue = Queue { waiting: BTreeMap::new(), arrivals: 0, reserved: 0, bytes: 0, running: 0, closed: false, pace: None };
        let shared = Arc::new(Shared { compute, limits, queue: Mutex::new(queue), changed: Condvar::new() });
        metrics::gauge!("delo_queue_capacity").set(limits.queue_samples as f64);
        let (end, ended) = watch::channel(false);
        let worker = shared.clone();
        std::thread::Builder::new().name("delo-compute".to_owned()).spawn(move || {
            worker.work();
            let _ = end.send(true);
        })?;
        Ok(Self { shared, ended })
    }

    /// A place in the queue for a sample that holds `bytes` of memory.
    ///
    /// # Errors
    /// [`BatchError::QueueFull`], [`BatchError::TooLarge`], [`BatchError::Draining`]
    pub fn reserve(&self, bytes: usize) -> Result<Slot<C>, BatchError> {
        let mut queue = self.shared.queue();
        if queue.closed {
            return Err(BatchError::Draining);
        }
        if bytes > self.shared.limits.queue_bytes {
            return Err(BatchError::TooLarge);
        }
        if queue.waiting.len() + queue.reserved >= self.shared.limits.queue_samples || queue.bytes + bytes > self.shared.limits.queue_bytes
        {
            return Err(BatchError::QueueFull { retry_after: queue.retry_after() });
        }
        queue.reserved += 1;
        queue.bytes += bytes;
        Ok(Slot { shared: self.shared.clone(), bytes })
    }

    /// Jobs that wait for compute.
    pub fn depth(&self) -> usize {
        self.shared.queue().waiting.len()
    }

    /// How long a caller who is refused should wait.
    pub fn retry_after(&self) -> Duration {
        self.shared.queue().retry_after()
    }

    /// Hands out no more slots. What has a slot is still computed.
    pub fn close(&self) {
        self.shared.queue().closed = true;
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
    /// What this slot counts in [`Queue::bytes`].
    bytes: usize,
}

impl<C: Compute> Slot<C> {
    /// Queues the job, which holds `bytes` of memory, and waits for its outcome, until `deadline` at most. Dropping the future takes the job
    /// out of the queue.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub async fn run(self, job: C::Job, bytes: usize, deadline: Instant) -> Result<C::Outcome, BatchError> {
        let tokens = self.shared.compute.tokens(&job);
        let (answer, outcome) = oneshot::channel();
        let shared = self.shared.clone();
        let place = Place { key: self.fill(Waiting { job, tokens, bytes, since: Instant::now(), answer }, deadline)?, shared };
        let outcome = tokio::time::timeout_at(deadline.into(), outcome).await;
        drop(place);
        match outcome {
            Ok(Ok(outcome)) => outcome,
            // The compute thread dropped the answer unsent: it can't be running any more.
            Ok(Err(_)) => Err(BatchError::Panicked),
            Err(_) => Err(BatchError::DeadlineExceeded),
        }
    }

    /// Turns the reservation into a waiting job and returns its key.
    fn fill(self, waiting: Waiting<C>, deadline: Instant) -> Result<(Instant, u64), BatchError> {
        let limits = self.shared.limits;
        if deadline <= Instant::now() {
            return Err(BatchError::DeadlineExceeded);
        }
        if waiting.bytes > limits.queue_bytes {
            return Err(BatchError::TooLarge);
        }
        let mut queue = self.shared.queue();
        if queue.bytes - self.bytes + waiting.bytes > limits.queue_bytes {
            let retry_after = queue.retry_after();
            // Before `self` is dropped, which takes the lock as well.
            drop(queue);
            return Err(BatchError::QueueFull { retry_after });
        }
        let key = (deadline, queue.arrivals);
        queue.arrivals += 1;
        queue.bytes += waiting.bytes;
        queue.waiting.insert(key, waiting);
        Shared::show_depth(&queue);
        drop(queue);
        // `self` is dropped here: its reservation ends and the compute thread is woken.
        Ok(key)
    }
}

impl<C: Compute> Drop for Slot<C> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.reserved -= 1;
        queue.bytes -= self.bytes;
        drop(queue);
        self.shared.changed.notify_all();
    }
}

/// A job in the queue; when dropped, the job leaves the queue if it is still there.
struct Place<C: Compute> {
    key: (Instant, u64),
    shared: Arc<Shared<C>>,
}

impl<C: Compute> Drop for Place<C> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        if let Some(left) = queue.waiting.remove(&self.key) {
            queue.bytes -= left.bytes;
            Shared::show_depth(&queue);
            drop(queue);
            drop(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A fake compute: adds one to each job. Each batch is reported when it starts and waits for leave to end. A job of 666 panics.
    struct Gate {
        started: mpsc::Sender<Vec<usize>>,
        leave: Mutex<mpsc::Receiver<()>>,
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
    }

    struct Bench {
        batcher: Arc<Batcher<Gate>>,
        started: mpsc::Receiver<Vec<usize>>,
        leave: mpsc::Sender<()>,
    }

    const LIMITS: Limits = Limits { batch_tokens: 100, batch_samples: 4, queue_samples: 8, queue_bytes: 1000 };

    fn bench(limits: Limits) -> Bench {
        let (started, batches) = mpsc::channel();
        let (leave, leaves) = mpsc::channel();
        let batcher = Arc::new(Batcher::start(Gate { started, leave: Mutex::new(leaves) }, limits).unwrap());
        Bench { batcher, started: batches, leave }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    type Answer = tokio::task::JoinHandle<Result<usize, BatchError>>;

    impl Bench {
        /// Queues a job and returns once it is queued (or already taken).
        async fn queue(&self, job: usize, deadline: Instant) -> Answer {
            let (slot, arrivals) = (self.batcher.reserve(1).unwrap(), self.arrivals());
            let answer = tokio::spawn(slot.run(job, 1, deadline));
            while self.arrivals() == arrivals {
                tokio::task::yield_now().await;
            }
            answer
        }

        fn arrivals(&self) -> u64 {
            self.batcher.shared.queue().arrivals
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
        let slots: Vec<_> = (0..LIMITS.queue_samples).map(|_| bench.batcher.reserve(1).unwrap()).collect();
        let Err(BatchError::QueueFull { retry_after }) = bench.batcher.reserve(1) else { panic!("not refused") };
        assert!(retry_after > Duration::ZERO);
        drop(slots);
        assert!(bench.batcher.reserve(1).is_ok());
    }

    #[tokio::test]
    async fn refuses_more_memory_than_the_queue_may_hold() {
        let bench = bench(LIMITS);
        let most = bench.batcher.reserve(990).unwrap();
        assert!(matches!(bench.batcher.reserve(11), Err(BatchError::QueueFull { .. })));
        assert!(matches!(bench.batcher.reserve(1001), Err(BatchError::TooLarge)));
        let small = bench.batcher.reserve(10).unwrap();
        assert!(matches!(small.run(1, 11, soon()).await, Err(BatchError::QueueFull { .. })));
        drop(most);
        assert_eq!(bench.batcher.shared.queue().bytes, 0);
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
        let slot = bench.batcher.reserve(1).unwrap();
        assert_eq!(slot.run(1, 1, Instant::now()).await, Err(BatchError::DeadlineExceeded));
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
        let bench = bench(Limits { batch_tokens: 10_000, ..LIMITS });
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
    async fn a_closed_queue_refuses_and_finishes_what_has_a_slot() {
        let bench = bench(LIMITS);
        let running = bench.occupy().await;
        let (queued, slot) = (bench.queue(2, soon()).await, bench.batcher.reserve(1).unwrap());
        bench.batcher.close();
        assert!(matches!(bench.batcher.reserve(1), Err(BatchError::Draining)));
        for _ in 0..3 {
            bench.leave.send(()).unwrap();
        }
        assert_eq!((running.await.unwrap(), queued.await.unwrap()), (Ok(2), Ok(3)));
        assert_eq!(slot.run(4, 1, soon()).await, Ok(5));
        bench.batcher.drained().await;
    }

    #[test]
    fn the_time_to_retry_grows_with_the_queue_and_the_measured_pace() {
        let mut queue: Queue<Gate> =
            Queue { waiting: BTreeMap::new(), arrivals: 0, reserved: 4, bytes: 0, running: 0, closed: false, pace: None };
        queue.measure(10, Duration::from_secs(1));
        assert_eq!(queue.retry_after(), Duration::from_millis(400));
        queue.reserved = 8;
        assert_eq!(queue.retry_after(), Duration::from_millis(800));
        (0..100).for_each(|_| queue.measure(10, Duration::from_secs(2)));
        assert!(queue.retry_after() > Duration::from_millis(1599));
    }
}
