//! Dynamic batching without a timer: while the compute thread is busy, samples queue. When it is free, it
//! takes what is queued, up to a budget of tokens, in the order of [`queue`](super::queue).
//!
//! The queue's state stands behind one lock, which is never held while anything computes. A sample enters in
//! two steps. A [`Slot`] is reserved before any work is spent on the sample, so that the bounds cover
//! decoding too; then the slot is filled and waits for the outcome. Dropping that future, because the
//! deadline has passed or the caller has hung up, takes the sample out of the queue at once.
mod batch_metrics;
#[cfg(all(test, feature = "shuttle"))]
mod schedules;
mod slot;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
mod worker;

use std::sync::PoisonError;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::batch_metrics::BatchMetrics;
pub use self::slot::Slot;
pub use super::queue::{Priority, QueueLimits, TrafficClass};
use super::queue::{Queue, ReserveError};
use super::sync::{Arc, Condvar, Mutex, MutexGuard, spawn};

/// What the compute thread runs. Its jobs are single samples.
pub trait BatchRunner: Send + Sync + 'static {
    type Job: Send + 'static;
    type Outcome: Send + 'static;

    /// What this job takes of the batch's budget.
    fn tokens(&self, job: &Self::Job) -> usize;

    /// Computes a batch: one outcome for each job, in order. Blocking.
    fn run(&self, jobs: &[Self::Job]) -> Vec<Self::Outcome>;

    /// Runs `work`, which computes several batches, on a thread of the compute pool, so that none of these
    /// batches waits for another thread to wake.
    fn on_pool(&self, work: impl FnOnce() + Send) {
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
    #[error("the server is shutting down: retry with another server")]
    Draining,
    #[error("the deadline passed before the sample was computed: allow more time, or retry when the server is less busy")]
    DeadlineExceeded,
    #[error("computing this sample failed inside the server; its log says more")]
    Panicked,
}

impl BatchError {
    fn refused(refusal: ReserveError, retry_after: Duration) -> Self {
        match refusal {
            ReserveError::Full => Self::QueueFull { retry_after },
            ReserveError::ClientShare => Self::ClientShare { retry_after },
            ReserveError::Memory => Self::Memory { retry_after },
            ReserveError::Wait => Self::QueueWait { retry_after },
            ReserveError::Deadline => Self::WouldExpire { retry_after },
        }
    }
}

/// A queue and its compute thread. Dropping it closes the queue; the thread ends when the queue is empty.
pub struct Batcher<R: BatchRunner> {
    shared: Arc<Shared<R>>,
    /// Becomes true when the compute thread has ended.
    ended: watch::Receiver<bool>,
}

/// What the callers and the compute thread share.
struct Shared<R: BatchRunner> {
    runner: R,
    limits: QueueLimits,
    metrics: BatchMetrics,
    state: Mutex<QueueState<R>>,
    /// Signalled when a job is queued, and when the last slot of a closed queue is gone.
    changed: Condvar,
}

struct QueueState<R: BatchRunner> {
    queue: Queue<PendingJob<R>>,
    /// No more slots are reserved.
    closed: bool,
}

/// A job and the sender of its outcome.
struct PendingJob<R: BatchRunner> {
    job: R::Job,
    outcome: oneshot::Sender<Computation<R>>,
}

/// What becomes of a job.
type Computation<R> = Result<Computed<<R as BatchRunner>::Outcome>, BatchError>;

/// A job's outcome, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Computed<T> {
    pub outcome: T,
    /// When the job began to wait in the queue.
    pub queued: Instant,
    /// When its batch was taken from the queue.
    pub began: Instant,
    /// When its batch was computed.
    pub ended: Instant,
    /// Samples of its batch.
    pub samples: usize,
}

impl<R: BatchRunner> Shared<R> {
    /// The queue. No code that can panic runs under the lock, so the state behind a poisoned lock is sound.
    fn state(&self) -> MutexGuard<'_, QueueState<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_depth(&self, state: &QueueState<R>) {
        self.metrics.depth.set(state.queue.depth() as f64);
    }
}

impl<R: BatchRunner> Batcher<R> {
    /// Starts the compute thread.
    ///
    /// # Errors
    /// The operating system grants no thread.
    pub fn start(runner: R, limits: QueueLimits) -> std::io::Result<Self> {
        let state = Mutex::new(QueueState { queue: Queue::new(limits), closed: false });
        let metrics = BatchMetrics::new(limits.queue_samples);
        let shared = Arc::new(Shared { runner, limits, metrics, state, changed: Condvar::new() });
        let (end, ended) = watch::channel(false);
        let (worker, runtime) = (shared.clone(), Handle::try_current().ok());
        spawn("delo-compute", move || {
            // In the runtime of the callers, so that both sides read one clock, also one that a test has
            // paused.
            let _entered = runtime.as_ref().map(Handle::enter);
            worker.run();
            let _ = end.send(true);
        })?;
        Ok(Self { shared, ended })
    }

    /// Reserves a place in the queue for a sample that holds `bytes` of memory and is to be answered by
    /// `deadline`.
    ///
    /// # Errors
    /// Why there is none, see [`BatchError`].
    pub fn reserve(&self, class: TrafficClass, bytes: usize, deadline: Instant) -> Result<Slot<R>, BatchError> {
        let (mut state, now) = (self.shared.state(), Instant::now());
        if state.closed {
            return Err(BatchError::Draining);
        }
        if bytes > self.shared.limits.queue_bytes {
            return Err(BatchError::TooLarge);
        }
        let reserved = state.queue.reserve(&class, bytes, deadline, now);
        reserved.map_err(|refusal| BatchError::refused(refusal, state.queue.retry_after(now)))?;
        drop(state);
        Ok(Slot::new(self.shared.clone(), class, bytes, deadline, now))
    }

    /// Gives the queue its first estimate, measured before any batch comes from it: a batch of `tokens` takes
    /// `duration`.
    pub fn estimate(&self, tokens: usize, duration: Duration) {
        self.shared.state().queue.estimate(tokens, duration);
    }

    /// The bounds of the queue and of a batch.
    pub fn limits(&self) -> QueueLimits {
        self.shared.limits
    }

    /// Number of jobs that wait for compute.
    pub fn depth(&self) -> usize {
        self.shared.state().queue.depth()
    }

    /// Reserves no more slots. Samples that have a slot are still computed.
    pub fn close(&self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
    }

    /// Waits until a closed queue is empty and its thread has ended.
    pub async fn drained(&self) {
        // An error means that the thread ended without sending, which ends the wait as well.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

impl<R: BatchRunner> Drop for Batcher<R> {
    fn drop(&mut self) {
        self.close();
    }
}
