//! Whether the task's probability is as high as it is right.
use serde::{Deserialize, Serialize};

/// Bins of equal width over 0 to 1.
pub const BINS: usize = 10;

/// The reliability of the probability of the likeliest task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// With temperature 1.
    pub before: Reliability,
    /// With the temperature of the partitions: what a server answers.
    pub after: Reliability,
}

/// Probabilities against how often they are right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// The expected calibration error: Σ n_b / n · |accuracy_b − confidence_b| over the bins b.
    pub error: f64,
    /// `[BINS]`; the i-th bin begins at i / [`BINS`].
    pub bins: Vec<Bin>,
}

/// The samples whose probability is in a bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// How many.
    pub samples: usize,
    /// Their mean probability; 0 without samples.
    pub confidence: f64,
    /// The share of them whose likeliest task is the true one; 0 without samples.
    pub accuracy: f64,
}

impl Reliability {
    /// The reliability of some decisions: the probability of each, and whether it is right.
    pub fn of(decisions: &[(f64, bool)]) -> Self {
        let mut bins = vec![Bin::default(); BINS];
        for &(probability, right) in decisions {
            let bin = &mut bins[((probability * BINS as f64) as usize).min(BINS - 1)];
            bin.samples += 1;
            bin.confidence += probability;
            bin.accuracy += f64::from(u8::from(right));
        }
        let mut error = 0.0;
        for bin in bins.iter_mut().filter(|bin| bin.samples > 0) {
            let samples = bin.samples as f64;
            bin.confidence /= samples;
            bin.accuracy /= samples;
            error += samples / decisions.len() as f64 * (bin.accuracy - bin.confidence).abs();
        }
        Self { error, bins }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_the_mean_gap_of_the_bins_weighted_by_their_samples() {
        let decisions = [(0.95, true), (0.95, true), (1.0, false), (0.3, true), (0.3, false)];
        let found = Reliability::of(&decisions);
        assert_eq!((found.bins[9].samples, found.bins[3].samples), (3, 2));
        let expected = 3.0 / 5.0 * (2.9 / 3.0 - 2.0 / 3.0) + 2.0 / 5.0 * (0.5 - 0.3);
        assert!((found.error - expected).abs() < 1e-12, "{}", found.error);
        assert_eq!((found.bins[0].samples, Reliability::of(&[]).error), (0, 0.0));
    }
}
