//! The compute thread: takes batches from the queue, computes them and sends the outcomes.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::{BatchError, BatchRunner, Computed, PendingJob, Shared};
use crate::serve::queue::{Taken, WaitingJob};
use delo_process::allocator::request_trim;

/// How long batches follow each other on one thread of the compute pool. After it, the thread is given up for
/// a moment, so that other work gets a turn: a partition that is tried before it is live, for example. It is
/// the time of a few batches only: a pool thread that waits for others inside such work may pick up the
/// batches meanwhile, and resumes its own work only after them.
pub const POOL_RESIDENCY: Duration = Duration::from_millis(20);

impl<R: BatchRunner> Shared<R> {
    /// Runs until the queue is closed and empty.
    pub(super) fn run(&self) {
        // The largest number of waiting jobs since none waited.
        let mut deepest = 0;
        while let Some(first) = self.take(true) {
            self.runner.on_pool(|| self.run_ready_batches(first, &mut deepest));
        }
    }

    /// Computes a batch and those that are ready after it, for [`POOL_RESIDENCY`].
    fn run_ready_batches(&self, first: Vec<WaitingJob<PendingJob<R>>>, deepest: &mut usize) {
        let (begun, mut next) = (Instant::now(), Some(first));
        let backlog = self.limits.backlog_threshold();
        while let Some(batch) = next {
            let waiting = self.run_batch(batch);
            *deepest = waiting.max(*deepest);
            // The memory that a backlog frees goes back to the system: while it lasts, and once it is gone.
            if waiting >= backlog || (waiting == 0 && std::mem::take(deepest) >= backlog) {
                request_trim();
            }
            next = if begun.elapsed() < POOL_RESIDENCY { self.take(false) } else { None };
        }
    }

    /// Takes the next batch. Where no job waits: with `wait`, waits for one, and returns `None` when the
    /// queue is closed and no slot is left; without, returns `None` at once.
    fn take(&self, wait: bool) -> Option<Vec<WaitingJob<PendingJob<R>>>> {
        loop {
            let (taken, retry_after) = self.take_any(wait)?;
            // Outside of the lock: sending wakes callers and frees their samples. A caller whose deadline has
            // passed may have gone already, so that an error is none.
            for job in taken.expired {
                let _ = job.item.outcome.send(Err(BatchError::DeadlineExceeded));
            }
            for job in taken.would_expire {
                let _ = job.item.outcome.send(Err(BatchError::WouldExpire { retry_after }));
            }
            if !taken.batch.is_empty() {
                self.metrics.ended_by(taken.ended_by).increment(1);
                return Some(taken.batch);
            }
        }
    }

    /// As [`Self::take`], but the batch may be empty if jobs have expired. With it, when their callers should
    /// try again.
    fn take_any(&self, wait: bool) -> Option<(Taken<PendingJob<R>>, Duration)> {
        let mut state = self.state();
        loop {
            let taken = state.queue.take(Instant::now(), |pending| pending.outcome.is_closed());
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

    /// Computes a batch and sends its outcomes. Returns the number of jobs that wait.
    fn run_batch(&self, batch: Vec<WaitingJob<PendingJob<R>>>) -> usize {
        let started = Instant::now();
        self.metrics.running.set(batch.len() as f64);
        let tokens: usize = batch.iter().map(|waiting| waiting.tokens).sum();
        self.metrics.samples.record(batch.len() as f64);
        self.metrics.tokens.record(tokens as f64);
        let (jobs, senders): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| {
                self.metrics.queue_seconds.record(started - waiting.since);
                (waiting.item.job, (waiting.item.outcome, waiting.since))
            })
            .unzip();
        let outcomes = self.compute(&jobs);
        let ended = Instant::now();
        let duration = ended - started;
        self.metrics.compute_seconds.record(duration);
        self.metrics.running.set(0.0);
        let waiting = self.finish_batch(duration);
        for ((sender, queued), outcome) in senders.into_iter().zip(outcomes) {
            let computed = outcome.map(|outcome| Computed { outcome, queued, began: started, ended, samples: jobs.len() });
            // An error only means that the caller has gone.
            let _ = sender.send(computed);
        }
        waiting
    }

    /// Counts the batch that was taken as computed. Returns the number of jobs that wait.
    fn finish_batch(&self, duration: Duration) -> usize {
        let mut state = self.state();
        state.queue.finish_batch(duration);
        state.queue.depth()
    }

    /// Computes jobs as one batch. If that panics, they are computed one by one, so that only the job that
    /// causes the panic fails.
    fn compute(&self, jobs: &[R::Job]) -> Vec<Result<R::Outcome, BatchError>> {
        // The runner keeps no state between calls, so that a panic leaves nothing half changed.
        let attempt = |jobs: &[R::Job]| {
            let outcomes = catch_unwind(AssertUnwindSafe(|| self.runner.run(jobs))).ok()?;
            (outcomes.len() == jobs.len()).then_some(outcomes)
        };
        if let Some(outcomes) = attempt(jobs) {
            return outcomes.into_iter().map(Ok).collect();
        }
        tracing::error!(samples = jobs.len(), "computing a batch panicked: computing its samples one by one");
        jobs.chunks(1).map(|job| attempt(job).and_then(|mut outcomes| outcomes.pop()).ok_or(BatchError::Panicked)).collect()
    }
}
