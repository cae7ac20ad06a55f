//! How typical of a task a sample is: where its fit lies in the distribution of the fits of the task's own samples.
use delo_kernels::elementwise::erf;

/// The fewest calibration samples that a distribution is estimated from.
pub(super) const FEWEST: usize = 8;

/// The normal distribution of the fits of a task's own samples. The low tail, which decides about rejection, is
/// smoother than that of a few dozen samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OwnFits {
    mean: f32,
    deviation: f32,
}

impl OwnFits {
    /// The distribution with the mean and the deviation of some fits; `None` where they are fewer than [`FEWEST`] or
    /// all equal.
    pub(super) fn of(fits: &[f32]) -> Option<Self> {
        let n = fits.len() as f64;
        let mean = fits.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = fits.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (fits.len() >= FEWEST && variance > 0.0).then_some(Self { mean: mean as f32, deviation: variance.sqrt() as f32 })
    }

    /// The share of the task's own samples whose fit is below this one, 0 to 1.
    pub(super) fn share_below(self, fit: f32) -> f32 {
        0.5 * (1.0 + erf((fit - self.mean) / self.deviation * std::f32::consts::FRAC_1_SQRT_2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_the_normal_distribution() {
        let own = OwnFits::of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]).unwrap();
        // Mean 5, variance 60 / 8.
        let deviation = 7.5f32.sqrt();
        for (standard, share) in [(0.0, 0.5), (-1.644_854, 0.05), (-1.281_552, 0.1), (1.0, 0.841_345)] {
            let found = own.share_below(5.0 + standard * deviation);
            assert!((found - share).abs() < 1e-5, "{standard}: {found}");
        }
    }

    #[test]
    fn a_few_samples_or_equal_ones_give_no_distribution() {
        assert_eq!(OwnFits::of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), None);
        assert_eq!(OwnFits::of(&[1.0; 20]), None);
        assert_eq!(OwnFits::of(&[]), None);
    }
}
