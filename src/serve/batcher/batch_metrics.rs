//! The metrics of the queue and of its batches.
use metrics::{Counter, Gauge, Histogram};

use crate::metric_table::{BATCH_SAMPLES, BATCH_TOKENS, BATCHES, QUEUE_CAPACITY, QUEUE_DEPTH, RUNNING_SAMPLES, STAGE_SECONDS};
use crate::serve::queue::EndedBy;

/// Handles of the metrics. They are looked up where the batcher starts: the threads that compute may be shared with
/// other servers of the process, whose metrics are others.
pub struct BatchMetrics {
    /// Number of waiting samples.
    pub depth: Gauge,
    /// Number of samples in compute.
    pub running: Gauge,
    /// Samples of a batch.
    pub samples: Histogram,
    /// Tokens of a batch.
    pub tokens: Histogram,
    /// Seconds that a sample waits for compute.
    pub queue_seconds: Histogram,
    /// Seconds of compute of a batch.
    pub compute_seconds: Histogram,
    /// Batches by what ended their forming.
    ended_by: [Counter; EndedBy::ALL.len()],
}

impl BatchMetrics {
    /// Looks the metrics up and sets the queue's capacity to `places`.
    pub fn new(places: usize) -> Self {
        QUEUE_CAPACITY.with([]).set(places as f64);
        Self {
            depth: QUEUE_DEPTH.with([]),
            running: RUNNING_SAMPLES.with([]),
            samples: BATCH_SAMPLES.with([]),
            tokens: BATCH_TOKENS.with([]),
            queue_seconds: STAGE_SECONDS.with(["queue"]),
            compute_seconds: STAGE_SECONDS.with(["compute"]),
            ended_by: EndedBy::ALL.map(|ended_by| BATCHES.with([ended_by.name()])),
        }
    }

    /// Number of batches whose forming ended so.
    pub fn ended_by(&self, ended_by: EndedBy) -> &Counter {
        &self.ended_by[ended_by as usize]
    }
}
