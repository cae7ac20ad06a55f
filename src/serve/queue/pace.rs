//! How long a batch takes: moving averages of what was measured so far.
use std::time::Duration;

use tokio::time::Instant;

/// Weight of the latest measurement in a moving average.
const LATEST_WEIGHT: f64 = 0.2;
/// A batch counts as at most this many times its expected duration, unless the batch before it was too slow
/// as well: one moment at which the process stood still says nothing of the next batch.
const OUTLIER_FACTOR: f64 = 2.0;
/// Preprocessing counts as at most 1 / `PREPROCESS_FRACTION` of the longest wait, for the same reason: every
/// sample that is being preprocessed while the process stands still measures that pause.
const PREPROCESS_FRACTION: u32 = 4;
/// A deadline is compared with `mean + CAUTION · deviation` of the expected duration.
const CAUTION: f64 = 2.0;

/// Seconds of compute per token, the share of a batch's fixed cost included.
#[derive(Clone, Copy, Debug)]
struct TokenSeconds {
    mean: f64,
    /// Mean absolute deviation of a batch.
    deviation: f64,
}

/// The estimate of compute and preprocessing times.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Fixed cost of a batch, in tokens: [`QueueLimits::batch_overhead`](super::QueueLimits::batch_overhead).
    pub batch_overhead: f64,
    /// `None` before the first estimate.
    token_seconds: Option<TokenSeconds>,
    /// Tokens of a sample; `None` before the first.
    sample_tokens: Option<f64>,
    /// Seconds from the reservation of a place to its job.
    preprocess_seconds: f64,
    /// The latest batch took longer than [`OUTLIER_FACTOR`] times the expected duration.
    latest_was_outlier: bool,
}

impl Pace {
    /// Nothing is measured yet.
    pub fn new(batch_overhead: usize) -> Self {
        Self {
            batch_overhead: batch_overhead as f64,
            token_seconds: None,
            sample_tokens: None,
            preprocess_seconds: 0.0,
            latest_was_outlier: false,
        }
    }

    /// Sets the estimate: a batch of `tokens` takes `duration`.
    pub fn estimate(&mut self, tokens: usize, duration: Duration) {
        let mean = duration.as_secs_f64() / self.batch_cost(tokens as f64);
        self.token_seconds = Some(TokenSeconds { mean, deviation: 0.0 });
    }

    /// Counts a batch of `tokens` that took `duration`.
    pub fn record_batch(&mut self, tokens: usize, duration: Duration) {
        let measured = duration.as_secs_f64() / self.batch_cost(tokens as f64);
        self.token_seconds = Some(match self.token_seconds {
            Some(TokenSeconds { mean, deviation }) if mean > 0.0 => {
                let is_outlier = measured > OUTLIER_FACTOR * mean;
                // Two slow batches in a row are no accident.
                let counted = if self.latest_was_outlier { measured } else { measured.min(OUTLIER_FACTOR * mean) };
                self.latest_was_outlier = is_outlier;
                TokenSeconds { mean: moving_average(mean, counted), deviation: moving_average(deviation, (counted - mean).abs()) }
            }
            _ => TokenSeconds { mean: measured, deviation: 0.0 },
        });
    }

    /// Counts a sample of `tokens`.
    pub fn record_sample(&mut self, tokens: usize) {
        let tokens = tokens as f64;
        self.sample_tokens = Some(self.sample_tokens.map_or(tokens, |mean| moving_average(mean, tokens)));
    }

    /// Counts the preprocessing of a sample; `queue_wait`: the longest wait for compute.
    pub fn record_preprocessing(&mut self, duration: Duration, queue_wait: Duration) {
        let counted = duration.min(queue_wait / PREPROCESS_FRACTION);
        self.preprocess_seconds = moving_average(self.preprocess_seconds, counted.as_secs_f64());
    }

    /// Cost of a batch of `tokens`, its fixed part included, in tokens.
    pub fn batch_cost(&self, tokens: f64) -> f64 {
        (tokens + self.batch_overhead).max(1.0)
    }

    /// Whether there is an estimate.
    pub fn is_known(&self) -> bool {
        self.token_seconds.is_some()
    }

    /// Expected seconds of compute per token; 0 before the first estimate.
    pub fn expected(&self) -> f64 {
        self.token_seconds.map_or(0.0, |seconds| seconds.mean)
    }

    /// As [`Self::expected`], rather too long than too short: deadlines are compared with it.
    pub fn cautious(&self) -> f64 {
        self.token_seconds.map_or(0.0, |seconds| seconds.mean + CAUTION * seconds.deviation)
    }

    /// Expected tokens of a sample; 0 before the first.
    pub fn sample_tokens(&self) -> f64 {
        self.sample_tokens.unwrap_or(0.0)
    }

    /// Expected time from the reservation of a place to its job.
    pub fn preprocessing(&self) -> Duration {
        bounded(self.preprocess_seconds)
    }

    /// How long a batch of `tokens` takes, rather too long than too short.
    pub fn cautious_duration(&self, tokens: f64) -> Duration {
        bounded(self.batch_cost(tokens) * self.cautious())
    }

    /// Whether a batch of `tokens` that begins at `now` ends by `deadline`, rather not than barely.
    pub fn ends_in_time(&self, tokens: usize, now: Instant, deadline: Instant) -> bool {
        now + self.cautious_duration(tokens as f64) <= deadline
    }
}

/// At most a day: a duration that can be added to any time.
pub fn bounded(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.min(86_400.0))
}

fn moving_average(mean: f64, latest: f64) -> f64 {
    (1.0 - LATEST_WEIGHT) * mean + LATEST_WEIGHT * latest
}
