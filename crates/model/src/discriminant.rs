//! Linear discriminant analysis (LDA): a classifier from the statistics of classes, without a gradient
//! (ROUTING.md 7). It decides tasks ([`crate::routing`]) and scores classes ([`crate::analytic`]).
use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, Side};

use crate::routing::NotPositiveDefinite;

/// The class statistics of one session on one signal.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a> {
    /// S: the mean of φφᵀ over the samples, the upper triangle row by row, `[width (width + 1) / 2]`.
    pub moment: &'a [f32],
    /// n_c: the samples of each class, `[classes]`.
    pub counts: &'a [f32],
    /// μ_c: the mean signals of the classes, `[classes, width]`.
    pub means: &'a [f32],
}

impl Statistics<'_> {
    /// n: the samples of the session.
    pub fn samples(&self) -> f64 {
        self.counts.iter().map(|&n| f64::from(n)).sum()
    }
}

/// The least tr(W) that the ridge is taken of, as a part of tr(S): classes of one sample each have W = 0.
const LEAST_SCATTER: f64 = 0.1;

/// The metric M⁻¹ of some sessions, where M = W + λ max(tr(W), tr(S) / 10) / width · I, λ is the ridge,
/// S the mean of φφᵀ over the samples of all sessions, and W = Σ (n S − Σ n_c μ_c μ_cᵀ) / Σ n the scatter within
/// their classes.
#[derive(Debug)]
pub struct Discriminant {
    width: usize,
    factor: Llt<f64>,
}

/// Linear functions of a signal: z_c = weights_c · φ + biases_c.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[classes, width]`.
    pub weights: Vec<f64>,
    /// `[classes]`.
    pub biases: Vec<f64>,
}

impl Discriminant {
    /// The metric of some sessions with the ridge λ, on a signal of `width` values. It is the same for the same sessions in the
    /// same order.
    ///
    /// # Errors
    /// M has no Cholesky factor.
    pub fn of(sessions: &[Statistics<'_>], width: usize, ridge: f64) -> Result<Self, NotPositiveDefinite> {
        let mut scatter = vec![0f64; width * (width + 1) / 2];
        let mut total = 0.0;
        for session in sessions {
            let n = session.samples();
            total += n * trace(session.moment, width);
            scatter.iter_mut().zip(session.moment).for_each(|(sum, &x)| *sum += n * f64::from(x));
            for (&count, mean) in session.counts.iter().zip(session.means.chunks_exact(width.max(1))) {
                let mut rest = scatter.as_mut_slice();
                for (i, &x) in mean.iter().enumerate() {
                    let (row, below) = rest.split_at_mut(width - i);
                    let scale = f64::from(count) * f64::from(x);
                    row.iter_mut().zip(&mean[i..]).for_each(|(sum, &y)| *sum -= scale * f64::from(y));
                    rest = below;
                }
            }
        }
        let samples: f64 = sessions.iter().map(Statistics::samples).sum();
        let mut metric = Mat::<f64>::zeros(width, width);
        let mut packed = scatter.into_iter();
        for i in 0..width {
            for (j, x) in (i..width).zip(&mut packed) {
                // Cholesky reads the lower triangle.
                metric[(j, i)] = x / samples;
            }
        }
        let within = (0..width).map(|i| metric[(i, i)]).sum::<f64>();
        let ridge = ridge * within.max(LEAST_SCATTER * total / samples) / width.max(1) as f64;
        (0..width).for_each(|i| metric[(i, i)] += ridge);
        let factor = metric.llt(Side::Lower).map_err(|_| NotPositiveDefinite)?;
        Ok(Self { width, factor })
    }

    /// z_c = μ_cᵀ M⁻¹ φ − ½ μ_cᵀ M⁻¹ μ_c for each class mean of `means` `[classes, width]`.
    pub fn classes(&self, means: &[f32]) -> Linear {
        let width = self.width;
        let classes = means.len().checked_div(width).unwrap_or(0);
        let means = Mat::from_fn(width, classes, |i, class| f64::from(means[class * width + i]));
        let solved = self.factor.solve(&means);
        let column = |class: usize| (0..width).map(move |i| (i, class));
        let bias = |class| -0.5 * column(class).map(|at| means[at] * solved[at]).sum::<f64>();
        Linear { weights: (0..classes).flat_map(column).map(|at| solved[at]).collect(), biases: (0..classes).map(bias).collect() }
    }
}

/// The trace of a symmetric matrix, given its upper triangle row by row.
fn trace(triangle: &[f32], width: usize) -> f64 {
    let mut rest = triangle;
    let diagonal = (0..width).map(|i| {
        let first = f64::from(rest[0]);
        rest = &rest[width - i..];
        first
    });
    diagonal.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_those_of_a_discriminant_by_hand() {
        // One session in two dimensions: two classes of 3 and 1 samples.
        let (counts, means) = ([3.0f32, 1.0], [1.0f32, 0.0, -1.0, 2.0]);
        let moment = [2.0f32, -0.25, 1.75];
        let statistics = Statistics { moment: &moment, counts: &counts, means: &means };
        let found = Discriminant::of(&[statistics], 2, 1.0).unwrap().classes(&means);
        // W = S − ¾ μ₁μ₁ᵀ − ¼ μ₂μ₂ᵀ = [[1, 0.25], [0.25, 0.75]]; M = W + 1.75 / 2 · I.
        let (a, b, c) = (1.875, 0.25, 1.625);
        let det = a * c - b * b;
        for (class, mean) in [[1.0, 0.0], [-1.0, 2.0]].into_iter().enumerate() {
            let solved = [(c * mean[0] - b * mean[1]) / det, (a * mean[1] - b * mean[0]) / det];
            for (weight, solved) in found.weights[2 * class..].iter().zip(solved) {
                assert!((weight - solved).abs() < 1e-12, "{found:?}");
            }
            let bias = -0.5 * (mean[0] * solved[0] + mean[1] * solved[1]);
            assert!((found.biases[class] - bias).abs() < 1e-12, "{found:?}");
        }
    }

    #[test]
    fn sessions_that_are_joined_give_the_scatter_of_their_samples_together() {
        let one = Statistics { moment: &[2.0, 0.5, 1.5], counts: &[2.0], means: &[1.0, 0.5] };
        let two = Statistics { moment: &[1.0, 0.0, 2.5], counts: &[1.0, 1.0], means: &[0.5, -1.0, 0.0, 1.0] };
        let joined = Statistics { moment: &[1.5, 0.25, 2.0], counts: &[2.0, 1.0, 1.0], means: &[1.0, 0.5, 0.5, -1.0, 0.0, 1.0] };
        let apart = Discriminant::of(&[one, two], 2, 1.0).unwrap().classes(joined.means);
        let together = Discriminant::of(&[joined], 2, 1.0).unwrap().classes(joined.means);
        for (x, y) in apart.weights.iter().zip(&together.weights) {
            assert!((x - y).abs() < 1e-12, "{apart:?} {together:?}");
        }
    }

    #[test]
    fn classes_of_one_sample_each_are_told_apart() {
        // φ = (1, 0) and (0, 1): W = 0, and M = 0.1 · 1 / 2 · I.
        let means = [1.0f32, 0.0, 0.0, 1.0];
        let session = Statistics { moment: &[0.5, 0.0, 0.5], counts: &[1.0, 1.0], means: &means };
        let found = Discriminant::of(&[session], 2, 1.0).unwrap().classes(&means);
        assert!(found.weights.iter().zip([20.0, 0.0, 0.0, 20.0]).all(|(x, y)| (x - y).abs() < 1e-9), "{found:?}");
    }

    #[test]
    fn moments_that_are_smaller_than_their_means_allow_are_refused() {
        let damaged = Statistics { moment: &[-1.0, 0.0, -1.0], counts: &[1.0], means: &[0.0, 0.0] };
        assert_eq!(Discriminant::of(&[damaged], 2, 1.0).err(), Some(NotPositiveDefinite));
    }
}
