//! The task decision: one cosine per resident task (METHOD.md 4, Eq. 8 of the paper; ROUTING.md 2).
use faer::linalg::solvers::Llt;
use faer::{Mat, MatRef, Side};

/// λ: how much of the mean second moment is added to the diagonal.
const RIDGE: f64 = 0.1;

/// Keys of the resident tasks in the metric that decides. Built anew for each catalogue; the order of tasks in it is the catalogue's own.
#[derive(Debug)]
pub enum TaskRouter {
    /// Unit keys, `[width]` each.
    Plain { keys: Vec<Vec<f64>> },
    /// With M = L Lᵀ: the cosine of φ and a key in the metric M⁻¹ is the plain cosine of L⁻¹φ and L⁻¹μ, which is kept here at length 1.
    Whitened { factor: Llt<f64>, keys: Vec<Vec<f64>> },
}

/// Why the resident moments give no metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the second moments of the resident partitions are not positive definite: one of them is damaged, retrain or unload it")]
pub struct NotPositiveDefinite;

impl TaskRouter {
    pub fn plain<'a>(keys: impl IntoIterator<Item = &'a [f32]>) -> Self {
        Self::Plain { keys: keys.into_iter().map(|key| unit(key.iter().map(|&x| f64::from(x)).collect())).collect() }
    }

    /// From each task's key `[width]` and the packed upper triangle of its second moment.
    ///
    /// # Errors
    /// Where G + λ tr(G)/width · I has no Cholesky factor.
    pub fn whitened<'a>(tasks: impl IntoIterator<Item = (&'a [f32], &'a [f32])>) -> Result<Self, NotPositiveDefinite> {
        let tasks: Vec<_> = tasks.into_iter().collect();
        let width = tasks.first().map_or(0, |(key, _)| key.len());
        let mut gram = vec![0f64; width * (width + 1) / 2];
        for (_, moment) in &tasks {
            gram.iter_mut().zip(*moment).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let mut metric = Mat::<f64>::zeros(width, width);
        let mut packed = gram.into_iter();
        for i in 0..width {
            for (j, x) in (i..width).zip(&mut packed) {
                // Cholesky reads the lower triangle.
                metric[(j, i)] = x;
            }
        }
        let ridge = RIDGE * (0..width).map(|i| metric[(i, i)]).sum::<f64>() / width.max(1) as f64;
        (0..width).for_each(|i| metric[(i, i)] += ridge);
        let factor = metric.llt(Side::Lower).map_err(|_| NotPositiveDefinite)?;
        let keys = tasks.iter().map(|(key, _)| unit(whiten(&factor, key))).collect();
        Ok(Self::Whitened { factor, keys })
    }

    /// The cosine of one sample's signal `[width]` with every key, in order; 0 for a signal of no length.
    pub fn cosines(&self, signal: &[f32]) -> Vec<f32> {
        let (query, keys) = match self {
            Self::Plain { keys } => (signal.iter().map(|&x| f64::from(x)).collect(), keys),
            Self::Whitened { factor, keys } => (whiten(factor, signal), keys),
        };
        let query = unit(query);
        keys.iter().map(|key| key.iter().zip(&query).map(|(k, q)| k * q).sum::<f64>() as f32).collect()
    }
}

/// L⁻¹ x
fn whiten(factor: &Llt<f64>, x: &[f32]) -> Vec<f64> {
    let mut column: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let n = column.len();
    let lower: MatRef<'_, f64> = factor.L();
    let target = faer::MatMut::from_column_major_slice_mut(&mut column, n, 1);
    faer::linalg::triangular_solve::solve_lower_triangular_in_place(lower, target, faer::Par::Seq);
    column
}

/// Scaled to length 1, unless it has none.
fn unit(mut x: Vec<f64>) -> Vec<f64> {
    let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    if length > 0.0 {
        x.iter_mut().for_each(|x| *x /= length);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitened_cosine_is_the_cosine_in_the_inverse_metric() {
        // Two tasks in two dimensions, by hand: G = S₁ + S₂ = [[3, 1], [1, 2]], M = G + 0.1 · 5/2 · I.
        let (s1, s2) = ([2.0, 0.5, 1.0], [1.0, 0.5, 1.0]);
        let (k1, k2) = ([1.0, 0.2], [-0.3, 0.8]);
        let router = TaskRouter::whitened([(k1.as_slice(), s1.as_slice()), (k2.as_slice(), s2.as_slice())]).unwrap();
        let (a, b, c) = (3.25, 1.0, 2.25);
        let det = a * c - b * b;
        let inverse = |x: [f64; 2], y: [f64; 2]| (c * x[0] * y[0] - b * (x[0] * y[1] + x[1] * y[0]) + a * x[1] * y[1]) / det;
        let phi = [0.7f32, -0.4];
        let wide = |x: [f32; 2]| [f64::from(x[0]), f64::from(x[1])];
        for (key, got) in [k1, k2].into_iter().zip(router.cosines(&phi)) {
            let (p, k) = (wide(phi), wide(key));
            let want = inverse(p, k) / (inverse(p, p) * inverse(k, k)).sqrt();
            assert!((f64::from(got) - want).abs() < 1e-6, "{got} for {want}");
        }
    }

    #[test]
    fn a_signal_of_no_length_has_cosine_zero() {
        assert_eq!(TaskRouter::plain([[1.0f32, 0.0].as_slice()]).cosines(&[0.0, 0.0]), [0.0]);
    }
}
