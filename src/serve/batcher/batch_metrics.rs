//! The metrics of the queue and of its batches.
use metrics::{Gauge, Histogram, gauge, histogram};

/// Handles of the metrics, looked up once.
pub struct BatchMetrics {
    /// Number of waiting samples.
    pub depth: Gauge,
    /// Samples of a batch.
    pub samples: Histogram,
    /// Tokens of a batch.
    pub tokens: Histogram,
    /// Seconds that a sample waits for compute.
    pub queue_seconds: Histogram,
    /// Seconds of compute of a batch.
    pub compute_seconds: Histogram,
}

impl BatchMetrics {
    /// Looks the metrics up and sets the queue's capacity to `places`.
    pub fn new(places: usize) -> Self {
        gauge!("delo_queue_capacity").set(places as f64);
        Self {
            depth: gauge!("delo_queue_depth"),
            samples: histogram!("delo_batch_samples"),
            tokens: histogram!("delo_batch_tokens"),
            queue_seconds: histogram!("delo_stage_duration_seconds", "stage" => "queue"),
            compute_seconds: histogram!("delo_stage_duration_seconds", "stage" => "compute"),
        }
    }
}
