//! The times at which requests are due.
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Requests per second over time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    pub base: f64,
    /// `(every, length, rate)`: after each `every` seconds since the start, requests are due at `rate` for
    /// `length` seconds; `length < every`.
    pub burst: Option<(f64, f64, f64)>,
}

impl Rates {
    /// The rate at `at` seconds, and the time in seconds at which it changes next.
    fn at(&self, at: f64) -> (f64, f64) {
        let Some((every, length, rate)) = self.burst else { return (self.base, f64::INFINITY) };
        // A little later, so that rounding at a bound does not give the period that has just ended.
        let start = (at / every + 1e-9).floor() * every;
        if start > 0.0 && at < start + length { (rate, start + length) } else { (self.base, start + every) }
    }

    /// The expected number of requests in the first `seconds` seconds.
    pub fn expected(&self, seconds: f64) -> f64 {
        let (mut at, mut sum) = (0.0, 0.0);
        while at < seconds {
            let (rate, until) = self.at(at);
            sum += rate * (until.min(seconds) - at);
            at = until;
        }
        sum
    }
}

/// The times of a Poisson process within a window, since its start. While the rate is constant, the gaps are
/// independent and exponentially distributed.
#[derive(Debug)]
pub struct Arrivals {
    rng: ChaCha8Rng,
    rates: Rates,
    /// Seconds.
    window: f64,
    /// The time of the last arrival, in seconds.
    at: f64,
}

impl Arrivals {
    /// A process of these rates, which are positive and finite, over `window`. The same seed gives the same
    /// times.
    pub fn new(rates: Rates, window: Duration, seed: u64) -> Self {
        let burst = rates.burst.map_or(rates.base, |(_, _, rate)| rate);
        assert!([rates.base, burst].iter().all(|r| *r > 0.0 && r.is_finite()), "a rate is positive and finite");
        Self { rng: ChaCha8Rng::seed_from_u64(seed), rates, window: window.as_secs_f64(), at: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // A process of rate 1 whose time runs faster where the rate is higher. `random` is in [0, 1), so that
        // the logarithm's argument is in (0, 1].
        let mut gap = -(1.0 - self.rng.random::<f64>()).ln();
        while self.at < self.window {
            let (rate, until) = self.rates.at(self.at);
            if self.at + gap / rate <= until {
                self.at += gap / rate;
                break;
            }
            gap -= (until - self.at) * rate;
            self.at = until;
        }
        (self.at < self.window).then(|| Duration::from_secs_f64(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn constant(rate: f64, window: Duration, seed: u64) -> Arrivals {
        Arrivals::new(Rates { base: rate, burst: None }, window, seed)
    }

    #[test]
    fn bursts_come_when_they_are_due_and_at_their_rate() {
        let rates = Rates { base: 10.0, burst: Some((20.0, 5.0, 40.0)) };
        let mut counts = [0f64; 20];
        for t in Arrivals::new(rates, HOUR, 6).filter(|t| t.as_secs() >= 20) {
            counts[t.as_secs() as usize % 20] += 1.0 / 179.0;
        }
        for (second, count) in counts.into_iter().enumerate() {
            let rate = if second < 5 { 40.0 } else { 10.0 };
            assert!((count - rate).abs() < 5.0 * (rate / 179.0).sqrt(), "second {second}: {count}");
        }
        assert!(Arrivals::new(rates, Duration::from_secs(20), 6).count() < 260, "the first burst is due after 20 seconds");
    }

    #[test]
    fn the_expected_number_of_requests_is_that_of_the_arrivals() {
        let rates = Rates { base: 10.0, burst: Some((20.0, 5.0, 40.0)) };
        assert_eq!((rates.expected(20.0), rates.expected(22.0), rates.expected(40.0)), (200.0, 280.0, 550.0));
        let (n, expected) = (Arrivals::new(rates, HOUR, 7).count() as f64, rates.expected(3600.0));
        assert!((n - expected).abs() < 5.0 * expected.sqrt(), "{n} arrivals, {expected} expected");
    }

    #[test]
    fn requests_arrive_at_the_given_rate() {
        let n = constant(50.0, HOUR, 1).count() as f64;
        // A Poisson count of mean 180,000 has a standard deviation of 424.
        assert!((n - 180_000.0).abs() < 5.0 * 424.0, "{n} arrivals");
    }

    #[test]
    fn gaps_are_exponential() {
        let times: Vec<f64> = constant(10.0, HOUR, 2).map(|t| t.as_secs_f64()).collect();
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
        for t in constant(20.0, HOUR, 3) {
            counts[t.as_secs() as usize] += 1.0;
        }
        let mean = counts.iter().sum::<f64>() / 3600.0;
        let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 3599.0;
        assert!((variance / mean - 1.0).abs() < 0.15, "variance {variance}, mean {mean}");
    }

    #[test]
    fn times_rise_stay_within_the_window_and_repeat_with_the_seed() {
        let times: Vec<_> = constant(100.0, Duration::from_secs(10), 4).collect();
        assert!(times.windows(2).all(|w| w[0] <= w[1]) && times.iter().all(|t| *t < Duration::from_secs(10)));
        assert_eq!(times, constant(100.0, Duration::from_secs(10), 4).collect::<Vec<_>>());
        assert_ne!(times, constant(100.0, Duration::from_secs(10), 5).collect::<Vec<_>>());
    }
}
