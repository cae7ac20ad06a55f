//! A caller's place in the queue: first a reservation ([`Slot`]), then a queued job ([`QueuedJob`]). Dropping
//! either one gives the place back.
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::{BatchError, BatchRunner, Computation, PendingJob, Priority, Shared, TrafficClass};
use crate::serve::queue::{JobKey, WaitingJob};
use crate::serve::sync::Arc;

/// A reserved place in the queue; released when dropped.
pub struct Slot<R: BatchRunner> {
    shared: Arc<Shared<R>>,
    /// `None` once the slot is filled.
    class: Option<TrafficClass>,
    /// What the slot counts in the queue's memory.
    bytes: usize,
    deadline: Instant,
    /// When it was reserved.
    since: Instant,
}

impl<R: BatchRunner> Slot<R> {
    pub(super) fn new(shared: Arc<Shared<R>>, class: TrafficClass, bytes: usize, deadline: Instant, since: Instant) -> Self {
        Self { shared, class: Some(class), bytes, deadline, since }
    }

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

    /// Queues the job, which holds `bytes` of memory, and waits for its outcome: at most until the deadline,
    /// and in the queue at most as long as a sample may wait there. Dropping the future takes the job out of
    /// the queue.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub async fn run(mut self, job: R::Job, bytes: usize) -> Computation<R> {
        let deadline = self.deadline;
        if deadline <= Instant::now() {
            return Err(BatchError::DeadlineExceeded);
        }
        self.resize(bytes)?;
        let is_interactive = self.class.as_ref().is_some_and(|class| class.priority == Priority::Interactive);
        let (shared, (queued, mut outcome)) = (self.shared.clone(), self.fill(job));
        let queue_deadline = if is_interactive { deadline.min(queued.since + shared.limits.queue_wait) } else { deadline };
        let mut received = timeout_at(queue_deadline, &mut outcome).await;
        if received.is_err() && queue_deadline < deadline {
            if queued.leave() {
                let retry_after = shared.state().queue.retry_after(Instant::now());
                return Err(BatchError::QueueWait { retry_after });
            }
            // It has left the queue and is being computed.
            received = timeout_at(deadline, &mut outcome).await;
        }
        match received {
            Ok(Ok(outcome)) => outcome,
            // The compute thread dropped the sender unused, so that it can't be running any more.
            Ok(Err(_)) => Err(BatchError::Panicked),
            Err(_) => Err(BatchError::DeadlineExceeded),
        }
    }

    /// Turns the reservation into a waiting job.
    pub(super) fn fill(mut self, job: R::Job) -> (QueuedJob<R>, oneshot::Receiver<Computation<R>>) {
        let (sender, outcome) = oneshot::channel();
        let (shared, since) = (self.shared.clone(), Instant::now());
        let tokens = shared.runner.tokens(&job);
        let waiting = WaitingJob { item: PendingJob { job, outcome: sender }, tokens, bytes: self.bytes, since };
        // The class is taken before `self` is dropped, so that the drop does not release the place that is
        // filled here.
        let key = self.class.take().map(|class| {
            let mut state = shared.state();
            let key = state.queue.fill(class, self.deadline, self.since, waiting);
            shared.show_depth(&state);
            key
        });
        shared.changed.notify_all();
        (QueuedJob { key, since, shared }, outcome)
    }
}

impl<R: BatchRunner> Drop for Slot<R> {
    fn drop(&mut self) {
        if let Some(class) = self.class.take() {
            self.shared.state().queue.release(&class, self.bytes);
            self.shared.changed.notify_all();
        }
    }
}

/// A job in the queue; when dropped, the job leaves the queue if it is still there.
pub struct QueuedJob<R: BatchRunner> {
    key: Option<JobKey>,
    since: Instant,
    shared: Arc<Shared<R>>,
}

impl<R: BatchRunner> QueuedJob<R> {
    /// Takes the job out of the queue; false where it has left the queue already.
    fn leave(&self) -> bool {
        let Some(key) = &self.key else { return false };
        let mut state = self.shared.state();
        let left = state.queue.remove(key);
        self.shared.show_depth(&state);
        drop(state);
        // The memory of the job, which is `left`, is freed outside of the lock.
        left.is_some()
    }
}

impl<R: BatchRunner> Drop for QueuedJob<R> {
    fn drop(&mut self) {
        self.leave();
    }
}
