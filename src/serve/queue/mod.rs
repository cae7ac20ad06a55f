//! The queue's state: which samples wait, and which of them form the next batch. It has no lock, no thread
//! and no clock of its own; every time is passed in.
//!
//! - [`fair`]: the order of the samples, by priority, client and deadline
//! - [`admission`]: which samples get a place in the queue
//! - [`pace`]: how long a batch is expected to take
//! - [`budget`]: how large a batch may be
mod admission;
mod budget;
mod fair;
mod pace;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use admission::ReserveError;
use budget::BatchBudget;
pub use budget::EndedBy;
use fair::{INTERACTIVE_WEIGHT, PriorityJobs};
use pace::Pace;

/// The queue has a backlog while 1 / `BACKLOG_THRESHOLD` of its places hold interactive samples that wait. A
/// moment at which the process stands still leaves fewer behind.
const BACKLOG_THRESHOLD: usize = 4;

/// Which samples go first when more wait than one batch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    /// A person waits for the answer.
    Interactive,
    /// The answer may take until its deadline.
    Bulk,
}

/// Bounds of a batch and of the queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Tokens of one batch. A sample with more tokens is a batch of its own.
    pub batch_tokens: usize,
    /// Most tokens of one batch while there is a backlog, see [`budget`].
    pub backlog_batch_tokens: usize,
    /// Samples of one batch.
    pub batch_samples: usize,
    /// Places of the queue: samples that are being preprocessed or wait for compute.
    pub queue_samples: usize,
    /// Memory that those samples hold, in bytes.
    pub queue_bytes: usize,
    /// The fixed cost of a batch, in tokens: `seconds = (batch_overhead + tokens) · seconds_per_token`. The
    /// weights are read once for each batch, whatever is in it. Choose it rather too large than too small.
    /// Where it is too large, large batches look cheaper than they are after small ones, and a sample that
    /// was admitted for too long a wait is refused after [`Self::queue_wait`]. Where it is too small, samples
    /// are refused for which there is time.
    pub batch_overhead: usize,
    /// The longest that an interactive sample may wait for compute. A bulk sample may wait until its
    /// deadline.
    pub queue_wait: Duration,
}

impl QueueLimits {
    /// Number of waiting interactive samples from which on the queue has a backlog.
    pub fn backlog_threshold(&self) -> usize {
        self.queue_samples.div_ceil(BACKLOG_THRESHOLD)
    }
}

/// The client a sample belongs to, and its priority: the unit of fair sharing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrafficClass {
    pub client: Arc<str>,
    pub priority: Priority,
}

/// Order of the jobs of one client: by deadline, then by arrival.
type JobOrder = (Instant, u64);

/// Names one waiting job.
#[derive(Clone, Debug)]
pub struct JobKey {
    class: TrafficClass,
    order: JobOrder,
}

/// A job that waits for compute.
#[derive(Debug)]
pub struct WaitingJob<T> {
    pub item: T,
    /// What it takes of a batch's budget.
    pub tokens: usize,
    /// Memory that it holds.
    pub bytes: usize,
    /// When it began to wait.
    pub since: Instant,
}

/// The jobs that left the queue when a batch formed.
#[derive(Debug)]
pub struct Taken<T> {
    /// The jobs to compute.
    pub batch: Vec<WaitingJob<T>>,
    /// Jobs whose deadline has passed or whose caller has gone. They are not computed.
    pub expired: Vec<WaitingJob<T>>,
    /// Jobs that would end after their deadline, by the pace measured so far. They are not computed.
    pub would_expire: Vec<WaitingJob<T>>,
    /// What ended the forming of the batch.
    pub ended_by: EndedBy,
}

impl<T> Taken<T> {
    /// Whether no job left the queue.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.expired.is_empty() && self.would_expire.is_empty()
    }
}

/// The batch that is being computed.
#[derive(Clone, Copy, Debug)]
struct RunningBatch {
    tokens: usize,
    since: Instant,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<T> {
    limits: QueueLimits,
    interactive: PriorityJobs<T>,
    bulk: PriorityJobs<T>,
    /// Number of places that each class holds, reserved or waiting; classes without a place are not in it.
    held: HashMap<TrafficClass, usize>,
    /// Number of jobs that were ever queued.
    arrivals: u64,
    /// Number of waiting jobs.
    waiting: usize,
    /// Memory of the reserved places and of the waiting jobs.
    bytes: usize,
    running: Option<RunningBatch>,
    pace: Pace,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            interactive: PriorityJobs::new(INTERACTIVE_WEIGHT),
            bulk: PriorityJobs::new(1.0),
            held: HashMap::new(),
            arrivals: 0,
            waiting: 0,
            bytes: 0,
            running: None,
            pace: Pace::new(limits.batch_overhead),
        }
    }

    /// Number of jobs that wait.
    pub fn depth(&self) -> usize {
        self.waiting
    }

    /// Number of places that are reserved: neither filled nor released yet.
    pub fn reserved(&self) -> usize {
        self.interactive.reserved + self.bulk.reserved
    }

    /// Memory of the reserved places and of the waiting jobs.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of jobs that were ever queued.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    fn jobs(&self, priority: Priority) -> &PriorityJobs<T> {
        match priority {
            Priority::Interactive => &self.interactive,
            Priority::Bulk => &self.bulk,
        }
    }

    fn jobs_mut(&mut self, priority: Priority) -> &mut PriorityJobs<T> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Bulk => &mut self.bulk,
        }
    }

    /// Turns a place that was reserved at `reserved` into a waiting job of the same number of bytes.
    pub fn fill(&mut self, class: TrafficClass, deadline: Instant, reserved: Instant, job: WaitingJob<T>) -> JobKey {
        self.waiting += 1;
        self.arrivals += 1;
        self.pace.record_preprocessing(job.since - reserved, self.limits.queue_wait);
        self.pace.record_sample(job.tokens);
        let order = (deadline, self.arrivals);
        let (jobs, other) = match class.priority {
            Priority::Interactive => (&mut self.interactive, &self.bulk),
            Priority::Bulk => (&mut self.bulk, &self.interactive),
        };
        jobs.reserved -= 1;
        jobs.catch_up_with(other);
        jobs.push(class.client.clone(), order, job);
        JobKey { class, order }
    }

    /// Takes a waiting job out; `None` where it is not waiting any more.
    pub fn remove(&mut self, key: &JobKey) -> Option<WaitingJob<T>> {
        let job = self.jobs_mut(key.class.priority).remove(&key.class.client, &key.order)?;
        self.waiting -= 1;
        self.bytes -= job.bytes;
        self.count_release(&key.class);
        Some(job)
    }

    /// The next batch, in fair order: as many jobs as fit and end before the earliest deadline among them.
    /// `has_gone` says whether the caller of a job has gone.
    pub fn take(&mut self, now: Instant, has_gone: impl Fn(&T) -> bool) -> Taken<T> {
        let mut taken = Taken { batch: Vec::new(), expired: Vec::new(), would_expire: Vec::new(), ended_by: EndedBy::EmptyQueue };
        let mut budget = BatchBudget::new(self.batch_tokens(), self.limits.batch_samples, now);
        // Of the jobs that would expire, the one with the latest deadline, as (deadline, place in
        // `would_expire`).
        let mut latest: Option<(Instant, usize)> = None;
        while let Some(key) = self.next_key() {
            let Some(job) = self.jobs(key.class.priority).get(&key.class.client, &key.order) else { break };
            let (tokens, deadline) = (job.tokens, key.order.0);
            if deadline <= now || has_gone(&job.item) {
                taken.expired.extend(self.remove(&key));
            } else if !self.pace.ends_in_time(tokens, now, deadline) {
                latest = latest.max(Some((deadline, taken.would_expire.len())));
                taken.would_expire.extend(self.remove(&key));
            } else if let Some(bound) = budget.broken_by(tokens, deadline, &self.pace).filter(|_| !taken.batch.is_empty()) {
                taken.ended_by = bound;
                break;
            } else {
                self.jobs_mut(key.class.priority).charge(&key.class.client, tokens);
                budget.add(tokens, deadline);
                taken.batch.extend(self.remove(&key));
            }
        }
        // Where nothing else is to be computed, one job that would expire is: the pace may have been measured
        // badly.
        if taken.batch.is_empty()
            && let Some((deadline, place)) = latest
        {
            let job = taken.would_expire.swap_remove(place);
            budget.add(job.tokens, deadline);
            taken.batch.push(job);
        }
        if !taken.batch.is_empty() {
            self.running = Some(RunningBatch { tokens: budget.tokens(), since: now });
        }
        taken
    }

    /// The batch that was taken is computed, in `duration`.
    pub fn finish_batch(&mut self, duration: Duration) {
        if let Some(batch) = self.running.take() {
            self.pace.record_batch(batch.tokens, duration);
        }
    }

    /// Takes the first estimate, before the first batch: a batch of `tokens` takes `duration`.
    pub fn estimate(&mut self, tokens: usize, duration: Duration) {
        self.pace.estimate(tokens, duration);
    }
}
