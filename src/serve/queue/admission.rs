//! Which samples get a place in the queue. A place is reserved before any work is spent on a sample, so that
//! the bounds cover the memory and the time of decoding too.
use std::time::Duration;

use tokio::time::Instant;

use super::fair::{INTERACTIVE_WEIGHT, PriorityJobs};
use super::pace::bounded;
use super::{Priority, Queue, TrafficClass};

/// The part of the places that one client may hold with one priority. The rest is for clients that come
/// later.
const CLIENT_SHARE: f64 = 0.75;
/// Bulk samples are admitted while less than this part of the places is taken. The rest is for interactive
/// samples.
const BULK_SHARE: f64 = 0.75;

/// How long to wait before another attempt while no batch was measured.
const RETRY_BEFORE_FIRST_BATCH: Duration = Duration::from_millis(100);

/// Why a sample gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveError {
    /// All places, or those open to this priority, are taken.
    Full,
    /// The client holds its share of the places with samples of this priority.
    ClientShare,
    /// The memory of the queue is in use.
    Memory,
    /// By the pace measured so far, the sample would wait longer than allowed.
    Wait,
    /// By the pace measured so far, the sample would be computed after its deadline.
    Deadline,
}

impl<T> Queue<T> {
    /// Reserves a place for a sample that holds `bytes` of memory and must be answered by `deadline`.
    ///
    /// # Errors
    /// [`ReserveError`]
    pub fn reserve(&mut self, class: &TrafficClass, bytes: usize, deadline: Instant, now: Instant) -> Result<(), ReserveError> {
        self.check_places(class)?;
        if self.bytes + bytes > self.limits.queue_bytes {
            return Err(ReserveError::Memory);
        }
        // A sample with nothing ahead of it is admitted whatever was measured: otherwise a bad measurement
        // could never be followed by a better one.
        let is_idle = self.waiting + self.reserved() == 0 && self.running.is_none();
        if !is_idle {
            self.check_time(class.priority, deadline, now)?;
        }
        self.jobs_mut(class.priority).reserved += 1;
        self.bytes += bytes;
        *self.held.entry(class.clone()).or_default() += 1;
        Ok(())
    }

    /// Whether there is a place for a sample of this class.
    fn check_places(&self, class: &TrafficClass) -> Result<(), ReserveError> {
        let (places, taken) = (self.limits.queue_samples, self.waiting + self.reserved());
        let part = |share: f64| ((places as f64 * share) as usize).max(1);
        if taken >= places || (class.priority == Priority::Bulk && taken >= part(BULK_SHARE)) {
            return Err(ReserveError::Full);
        }
        let held = self.held.get(class).copied().unwrap_or(0);
        let classes = self.held.len() + usize::from(held == 0);
        // While less than half of the places is taken, a client may use what others do not; then each has an
        // even share. The share is counted per priority, so that a client's bulk samples do not keep out its
        // interactive ones.
        let most = if taken < places / 2 { part(CLIENT_SHARE) } else { part(CLIENT_SHARE).min(places.div_ceil(classes)) };
        if held >= most { Err(ReserveError::ClientShare) } else { Ok(()) }
    }

    /// Whether a sample of this priority would be computed in time.
    fn check_time(&self, priority: Priority, deadline: Instant, now: Instant) -> Result<(), ReserveError> {
        if priority == Priority::Interactive && self.expected_wait(priority, now) > self.limits.queue_wait {
            return Err(ReserveError::Wait);
        }
        let wait = self.wait(priority, now, self.pace.cautious());
        let compute = self.pace.cautious_duration(self.pace.sample_tokens());
        if now + wait + self.pace.preprocessing() + compute > deadline {
            return Err(ReserveError::Deadline);
        }
        Ok(())
    }

    /// Changes the memory of a reserved place from `old` to `new` bytes.
    ///
    /// # Errors
    /// [`ReserveError::Memory`]: nothing is changed.
    pub fn resize(&mut self, old: usize, new: usize) -> Result<(), ReserveError> {
        if self.bytes - old + new > self.limits.queue_bytes {
            return Err(ReserveError::Memory);
        }
        self.bytes = self.bytes - old + new;
        Ok(())
    }

    /// Releases a reserved place of `bytes` that was not filled.
    pub fn release(&mut self, class: &TrafficClass, bytes: usize) {
        self.jobs_mut(class.priority).reserved -= 1;
        self.bytes -= bytes;
        self.count_release(class);
    }

    /// Counts one place less for a class.
    pub(super) fn count_release(&mut self, class: &TrafficClass) {
        if let Some(held) = self.held.get_mut(class) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(class);
            }
        }
    }

    /// How long a sample of this priority would wait for compute, by the pace measured so far. It is
    /// preprocessed meanwhile.
    pub fn expected_wait(&self, priority: Priority, now: Instant) -> Duration {
        self.wait(priority, now, self.pace.expected())
    }

    /// As [`Self::expected_wait`], at a pace of `token_seconds` per token.
    fn wait(&self, priority: Priority, now: Instant, token_seconds: f64) -> Duration {
        if !self.pace.is_known() {
            return Duration::ZERO;
        }
        let tokens = |jobs: &PriorityJobs<T>| jobs.tokens as f64 + jobs.reserved as f64 * self.pace.sample_tokens();
        let (interactive, bulk) = (tokens(&self.interactive), tokens(&self.bulk));
        let ahead = match priority {
            Priority::Interactive => interactive + bulk.min(interactive / INTERACTIVE_WEIGHT),
            Priority::Bulk => interactive + bulk,
        };
        let running = self.running.map_or(0.0, |batch| {
            let duration = self.pace.batch_cost(batch.tokens as f64) * token_seconds;
            (duration - (now - batch.since).as_secs_f64()).max(0.0)
        });
        let overheads = (ahead / self.expected_batch_tokens()).ceil() * self.pace.batch_overhead;
        bounded(running + (ahead + overheads) * token_seconds)
    }

    /// When a refused caller should try again: `clamp(expected wait of a bulk sample / 2, 10 ms, 60 s)`.
    pub fn retry_after(&self, now: Instant) -> Duration {
        if !self.pace.is_known() {
            return RETRY_BEFORE_FIRST_BATCH;
        }
        (self.expected_wait(Priority::Bulk, now) / 2).clamp(Duration::from_millis(10), Duration::from_secs(60))
    }
}
