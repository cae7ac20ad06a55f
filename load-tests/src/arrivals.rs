//! When requests are due.
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The times of a Poisson process, since its start, falling within a window: gaps are independent and exponential.
#[derive(Debug)]
pub struct Arrivals {
    rng: ChaCha8Rng,
    /// Arrivals per second.
    rate: f64,
    /// Seconds.
    window: f64,
    /// Seconds, of the last arrival.
    at: f64,
}

impl Arrivals {
    /// A process of `rate` arrivals per second (positive and finite) over `window`. The same seed gives the same times.
    pub fn new(rate: f64, window: Duration, seed: u64) -> Self {
        assert!(rate > 0.0 && rate.is_finite(), "a rate is positive and finite");
        Self { rng: ChaCha8Rng::seed_from_u64(seed), rate, window: window.as_secs_f64(), at: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // `random` is in [0, 1), so the logarithm's argument is in (0, 1].
        self.at -= (1.0 - self.rng.random::<f64>()).ln() / self.rate;
        (self.at < self.window).then(|| Duration::from_secs_f64(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn arrives_at_the_rate_asked_for() {
        let n = Arrivals::new(50.0, HOUR, 1).count() as f64;
        // A Poisson count of mean 180,000 has a standard deviation of 424.
        assert!((n - 180_000.0).abs() < 5.0 * 424.0, "{n} arrivals");
    }

    #[test]
    fn gaps_are_exponential() {
        let times: Vec<f64> = Arrivals::new(10.0, HOUR, 2).map(|t| t.as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        let share = |limit: f64| gaps.iter().filter(|&&g| g > limit).count() as f64 / gaps.len() as f64;
        for limit in [0.01f64, 0.1, 0.2, 0.5] {
            let expected = (-10.0 * limit).exp();
            assert!((share(limit) - expected).abs() < 0.02, "{} of gaps are over {limit} s, {expected} expected", share(limit));
        }
    }

    #[test]
    fn counts_of_disjoint_seconds_are_as_spread_as_their_mean() {
        let mut counts = vec![0f64; 3600];
        for t in Arrivals::new(20.0, HOUR, 3) {
            counts[t.as_secs() as usize] += 1.0;
        }
        let mean = counts.iter().sum::<f64>() / 3600.0;
        let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 3599.0;
        assert!((variance / mean - 1.0).abs() < 0.15, "variance {variance}, mean {mean}");
    }

    #[test]
    fn times_rise_stay_within_the_window_and_repeat_with_the_seed() {
        let times: Vec<_> = Arrivals::new(100.0, Duration::from_secs(10), 4).collect();
        assert!(times.windows(2).all(|w| w[0] <= w[1]) && times.iter().all(|t| *t < Duration::from_secs(10)));
        assert_eq!(times, Arrivals::new(100.0, Duration::from_secs(10), 4).collect::<Vec<_>>());
        assert_ne!(times, Arrivals::new(100.0, Duration::from_secs(10), 5).collect::<Vec<_>>());
    }
}
