//! The whitened metric: the cosine with each task's key in the metric of all resident sessions' second
//! moments (ROUTING.md 2).
use std::sync::Arc;

use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, Side};

use super::{KeyAverage, KeyChoice, NotPositiveDefinite, SessionKeys, TaskMetric, TaskRule, TaskScore, cosines};
use delo_kernels::Isa;
use delo_kernels::elementwise::dot;

/// λ of the ridge λ tr(Σ S) / width that is added to the diagonal of the sum of the second moments S.
const RIDGE: f64 = 0.1;

/// The whitened metric.
pub(super) struct Whitened;

/// cos(φ, key) for each task in the metric M⁻¹, where M = L Lᵀ = Σ S + λ tr(Σ S) / width · I and S are the
/// second moments of the sessions.
#[derive(Debug)]
struct WhitenedRule {
    isa: Isa,
    width: usize,
    /// M⁻¹μ / ‖L⁻¹μ‖ for each key μ, `[tasks, width]`.
    keys: Vec<f32>,
    /// The lower triangle of L⁻¹, row by row. The length of a signal φ in the metric is ‖L⁻¹φ‖.
    whitening: Vec<f32>,
}

impl TaskMetric for Whitened {
    fn statistics(&self) -> &'static str {
        "second moment"
    }

    /// Requires the second moment and the mean key of the signal.
    fn knows(&self, session: &SessionKeys, choice: KeyChoice) -> bool {
        session.moments.contains_key(&choice.signal) && session.key(choice.signal, KeyAverage::Mean).is_some()
    }

    fn rule(&self, sessions: &[&SessionKeys], choice: KeyChoice) -> Result<Arc<dyn TaskRule>, NotPositiveDefinite> {
        let statistics = sessions
            .iter()
            .filter_map(|session| Some((session.mean.get(&choice.signal)?.as_slice(), session.moments.get(&choice.signal)?.as_slice())));
        Ok(Arc::new(WhitenedRule::new(statistics)?))
    }
}

impl WhitenedRule {
    /// The rule over tasks, each with its key `[width]` and its second moment, the packed upper triangle. The
    /// metric is solved in f64 and kept in f32.
    ///
    /// # Errors
    /// M has no Cholesky factor.
    fn new<'a>(tasks: impl IntoIterator<Item = (&'a [f32], &'a [f32])>) -> Result<Self, NotPositiveDefinite> {
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
        let whitening: Vec<f32> = (0..width).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| inverse[at] as f32).collect();
        // Solved in f64, a number may be too large for f32.
        if keys.iter().chain(&whitening).any(|x| !x.is_finite()) {
            return Err(NotPositiveDefinite);
        }
        Ok(Self { isa: Isa::detect(), width, keys, whitening })
    }

    /// ‖L⁻¹φ‖ of a signal φ `[width]`.
    #[inline(always)]
    fn length(&self, signal: &[f32]) -> f32 {
        let (mut squares, mut rest) = (0f32, self.whitening.as_slice());
        for i in 0..self.width {
            let (row, below) = rest.split_at(i + 1);
            let x = dot(row, &signal[..=i]);
            squares += x * x;
            rest = below;
        }
        squares.sqrt()
    }
}

impl TaskRule for WhitenedRule {
    /// The cosines; 0 for a signal that is zero.
    fn scores(&self, signal: &[f32]) -> Vec<TaskScore> {
        cosines(
            self.isa,
            &self.keys,
            signal,
            #[inline(always)]
            || self.length(signal),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KeySignal, Metric};
    use super::*;

    #[test]
    fn whitened_cosine_is_the_cosine_in_the_inverse_metric() {
        // Two tasks in two dimensions, by hand: G = S₁ + S₂ = [[3, 1], [1, 2]], M = G + 0.1 · 5/2 · I.
        let (s1, s2) = ([2.0, 0.5, 1.0], [1.0, 0.5, 1.0]);
        let (k1, k2) = ([1.0, 0.2], [-0.3, 0.8]);
        let rule = WhitenedRule::new([(k1.as_slice(), s1.as_slice()), (k2.as_slice(), s2.as_slice())]).unwrap();
        let (a, b, c) = (3.25, 1.0, 2.25);
        let det = a * c - b * b;
        let inverse = |x: [f64; 2], y: [f64; 2]| (c * x[0] * y[0] - b * (x[0] * y[1] + x[1] * y[0]) + a * x[1] * y[1]) / det;
        let phi = [0.7f32, -0.4];
        let wide = |x: [f32; 2]| [f64::from(x[0]), f64::from(x[1])];
        for (key, got) in [k1, k2].into_iter().zip(rule.scores(&phi)) {
            let (p, k) = (wide(phi), wide(key));
            let want = inverse(p, k) / (inverse(p, p) * inverse(k, k)).sqrt();
            assert!((f64::from(got.score) - want).abs() < 1e-6, "{got:?} for {want}");
        }
    }

    fn session(key: [f32; 2], moment: [f32; 3]) -> SessionKeys {
        let (mean, moments) = ([(KeySignal::Pooled, key.to_vec())].into(), [(KeySignal::Pooled, moment.to_vec())].into());
        SessionKeys { mean, moments, ..SessionKeys::default() }
    }

    const CHOICE: KeyChoice = KeyChoice { signal: KeySignal::Pooled, average: KeyAverage::Mean };

    #[test]
    fn a_session_is_known_by_its_mean_key_and_its_second_moment() {
        let both = session([1.0, 0.2], [2.0, 0.5, 1.0]);
        assert!(Whitened.knows(&both, CHOICE));
        assert!(!Whitened.knows(&SessionKeys { moments: [].into(), ..both.clone() }, CHOICE));
        assert!(!Whitened.knows(&SessionKeys { mean: [].into(), ..both }, CHOICE));
    }

    #[test]
    fn a_zero_signal_and_a_zero_key_have_cosine_zero() {
        let sessions = [session([0.0, 0.0], [2.0, 0.5, 1.0]), session([1.0, 0.0], [2.0, 0.5, 1.0])];
        let rule = Metric::Whitened.definition().rule(&[&sessions[0], &sessions[1]], CHOICE).unwrap();
        let scores = |signal: [f32; 2]| rule.scores(&signal).iter().map(|task| task.score).collect::<Vec<_>>();
        assert_eq!(scores([0.0, 0.0]), [0.0, 0.0]);
        let [of_zero, of_itself] = scores([3.0, 0.0])[..] else { panic!("two tasks") };
        assert!(of_zero == 0.0 && (of_itself - 1.0).abs() < 1e-6, "{of_itself}");
    }

    #[test]
    fn damaged_second_moments_are_refused() {
        assert_eq!(Whitened.rule(&[&session([1.0, 0.0], [-2.0, 0.0, -1.0])], CHOICE).unwrap_err(), NotPositiveDefinite);
    }
}
