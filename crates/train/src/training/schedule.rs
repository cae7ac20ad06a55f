//! The learning rate over the steps of a session (METHOD.md 5).

/// Linear warm-up, then half a cosine down to zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    peak: f64,
    warm: usize,
    steps: usize,
}

impl Schedule {
    /// A schedule of `steps` steps; over the first `warmup · steps` of them, at least one, the rate rises to
    /// `peak`.
    pub fn new(peak: f64, steps: usize, warmup: f64) -> Self {
        Self { peak, warm: ((steps as f64 * warmup) as usize).max(1), steps }
    }

    /// The learning rate of a step, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        let rising = (step + 1) as f64 / self.warm as f64;
        let done = step.saturating_sub(self.warm) as f64 / self.steps.saturating_sub(self.warm).max(1) as f64;
        self.peak * rising.min(0.5 + 0.5 * (std::f64::consts::PI * done).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_over_the_first_tenth_then_follows_the_cosine() {
        let schedule = Schedule::new(2.0, 100, 0.1);
        let close = |step, rate: f64| assert!((schedule.at(step) - rate).abs() < 1e-12, "step {step}: {}", schedule.at(step));
        close(0, 0.2);
        close(4, 1.0);
        close(9, 2.0);
        close(10, 2.0);
        close(55, 1.0);
        close(40, 1.5);
        assert!(schedule.at(99) > 0.0 && schedule.at(99) < 1e-3);
        assert!((10..99).all(|s| schedule.at(s + 1) < schedule.at(s)));
    }

    #[test]
    fn a_single_step_runs_at_the_peak() {
        assert_eq!(Schedule::new(1e-4, 1, 0.1).at(0), 1e-4);
    }
}
