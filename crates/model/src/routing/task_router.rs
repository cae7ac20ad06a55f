//! The task decision: one cosine per resident task (METHOD.md 4, Eq. 8 of the paper; ROUTING.md 2).
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, Side};

use delo_kernels::Isa;
use delo_kernels::elementwise::dot;

/// λ: how much of the mean second moment is added to the diagonal.
const RIDGE: f64 = 0.1;

/// Keys of the resident tasks in the metric that decides. Built anew for each catalogue; the order of tasks in it is the catalogue's own.
#[derive(Debug)]
pub struct TaskRouter {
    isa: Isa,
    width: usize,
    /// What a signal is multiplied by to give the products with the unit keys: the keys themselves, or with M = L Lᵀ, each key μ's M⁻¹μ / ‖L⁻¹μ‖.
    /// `[tasks, width]`
    keys: Vec<f32>,
    /// The lower triangle of L⁻¹, row by row, whose product with a signal has the signal's length in the metric; `None` for the plain cosine.
    whitening: Option<Vec<f32>>,
}

/// Why the resident moments give no metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the second moments of the resident partitions are not positive definite: one of them is damaged, retrain or unload it")]
pub struct NotPositiveDefinite;

impl TaskRouter {
    pub fn plain<'a>(keys: impl IntoIterator<Item = &'a [f32]>) -> Self {
        let mut width = 0;
        let unit_key = |key: &[f32]| {
            width = key.len();
            unit(key.iter().map(|&x| f64::from(x)).collect()).into_iter().map(|x| x as f32)
        };
        let keys = keys.into_iter().flat_map(unit_key).collect();
        Self { isa: Isa::detect(), width, keys, whitening: None }
    }

    /// From each task's key `[width]` and the packed upper triangle of its second moment. The metric is solved in f64 and kept in f32.
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
        let mut inverse = Mat::<f64>::zeros(width, width);
        invert_lower_triangular(inverse.as_mut(), factor.L(), faer::Par::rayon(0));
        let mut keys = Vec::with_capacity(tasks.len() * width);
        for (key, _) in &tasks {
            let key = Mat::from_fn(width, 1, |i, _| f64::from(key[i]));
            let white = &inverse * &key;
            let length = white.norm_l2();
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            let solved = inverse.transpose() * &white;
            keys.extend((0..width).map(|i| (solved[(i, 0)] * scale) as f32));
        }
        let whitening = (0..width).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| inverse[at] as f32).collect();
        Ok(Self { isa: Isa::detect(), width, keys, whitening: Some(whitening) })
    }

    /// The cosine of one sample's signal `[width]` with every key, in order; 0 for a signal of no length.
    pub fn cosines(&self, signal: &[f32]) -> Vec<f32> {
        let mut cosines = vec![0.0; self.keys.len().checked_div(self.width).unwrap_or(0)];
        self.isa.run(
            #[inline(always)]
            || {
                let length = self.length(signal);
                let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
                for (cosine, key) in cosines.iter_mut().zip(self.keys.chunks_exact(self.width.max(1))) {
                    *cosine = scale * dot(key, signal);
                }
            },
        );
        cosines
    }

    /// ‖φ‖, or ‖L⁻¹φ‖
    #[inline(always)]
    fn length(&self, signal: &[f32]) -> f32 {
        let Some(whitening) = &self.whitening else { return dot(signal, signal).sqrt() };
        let (mut squares, mut rest) = (0f32, whitening.as_slice());
        for i in 0..self.width {
            let (row, below) = rest.split_at(i + 1);
            let x = dot(row, &signal[..=i]);
            squares += x * x;
            rest = below;
        }
        squares.sqrt()
    }
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
