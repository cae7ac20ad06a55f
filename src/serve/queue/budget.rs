//! How large a batch may be: `batch_tokens = clamp(even_tokens / BACKLOG_BATCHES, usual, max)`.
//!
//! `usual` is [`QueueLimits::batch_tokens`](super::QueueLimits::batch_tokens), and `max` is
//! [`QueueLimits::backlog_batch_tokens`](super::QueueLimits::backlog_batch_tokens) while there is a backlog
//! of interactive samples, otherwise `usual`. A large batch takes longer, but less per token, and while there
//! is a backlog it adds little to a wait that is long anyway. `even_tokens` counts each client like the one
//! with the fewest waiting tokens: that client needs no more batches than its own samples fill, and would
//! only wait longer for the end of a large one. Bulk samples do not count, since interactive samples that
//! arrive later go before them.
use tokio::time::Instant;

use super::Queue;
use super::pace::Pace;

/// While there is a backlog, it is computed in about this many batches.
pub const BACKLOG_BATCHES: usize = 12;

/// What ended the forming of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// All that waited is in it.
    EmptyQueue,
    /// The bound of tokens.
    Tokens,
    /// The bound of samples.
    Samples,
    /// It would end after the earliest deadline in it.
    Deadline,
}

impl EndedBy {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::EmptyQueue, Self::Tokens, Self::Samples, Self::Deadline];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::EmptyQueue => "empty_queue",
            Self::Tokens => "max_tokens",
            Self::Samples => "max_samples",
            Self::Deadline => "deadline",
        }
    }
}

/// A batch that is being formed.
#[derive(Debug)]
pub struct BatchBudget {
    max_tokens: usize,
    max_samples: usize,
    /// When the batch begins.
    now: Instant,
    tokens: usize,
    samples: usize,
    /// Of the samples in the batch; `None` where there are none.
    earliest_deadline: Option<Instant>,
}

impl BatchBudget {
    /// An empty batch.
    pub fn new(max_tokens: usize, max_samples: usize, now: Instant) -> Self {
        Self { max_tokens, max_samples, now, tokens: 0, samples: 0, earliest_deadline: None }
    }

    /// Which bound the batch would break with one sample more; `None` where it stays within its bounds, and ends
    /// before the earliest deadline in it.
    pub fn broken_by(&self, tokens: usize, deadline: Instant, pace: &Pace) -> Option<EndedBy> {
        let tokens = self.tokens + tokens;
        if self.samples >= self.max_samples {
            Some(EndedBy::Samples)
        } else if tokens > self.max_tokens {
            Some(EndedBy::Tokens)
        } else {
            (!pace.ends_in_time(tokens, self.now, self.earliest(deadline))).then_some(EndedBy::Deadline)
        }
    }

    /// Adds a sample.
    pub fn add(&mut self, tokens: usize, deadline: Instant) {
        self.tokens += tokens;
        self.samples += 1;
        self.earliest_deadline = Some(self.earliest(deadline));
    }

    /// Tokens of the batch.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn earliest(&self, deadline: Instant) -> Instant {
        self.earliest_deadline.map_or(deadline, |earliest| earliest.min(deadline))
    }
}

impl<T> Queue<T> {
    /// Most tokens of the next batch.
    pub(super) fn batch_tokens(&self) -> usize {
        if self.interactive.waiting() < self.limits.backlog_threshold() {
            return self.limits.batch_tokens;
        }
        let of_backlog = self.interactive.even_tokens() / BACKLOG_BATCHES;
        of_backlog.min(self.limits.backlog_batch_tokens).max(self.limits.batch_tokens)
    }

    /// Tokens of the batches in which the waiting samples will be computed, as expected.
    pub(super) fn expected_batch_tokens(&self) -> f64 {
        let samples = self.limits.batch_samples as f64 * self.pace.sample_tokens();
        (self.batch_tokens() as f64).min(samples).max(1.0)
    }
}
