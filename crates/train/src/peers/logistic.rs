//! Logistic regression trained to convergence: softmax for one class a sample, a sigmoid for each of several,
//! by L-BFGS (Liu and Nocedal, 1989) on all samples at once.
use faer::Mat;

use super::features::Rows;

/// Gradient and step differences that L-BFGS keeps.
const HISTORY: usize = 10;
/// The largest entry of the gradient at which the optimum is reached.
const TOLERANCE: f64 = 1e-5;
/// Iterations after which it ends in any case.
const MOST_ITERATIONS: usize = 500;

/// z = W (φ − mean) / scale + b, classes by features.
#[derive(Clone, Debug, Default)]
pub(super) struct Classifier {
    /// `[classes, width]`, row by row, over the features as they are.
    weights: Vec<f32>,
    /// `[classes]`.
    biases: Vec<f32>,
}

impl Classifier {
    /// The logits of each feature.
    pub(super) fn logits(&self, features: &Rows) -> Rows {
        let width = self.weights.len() / self.biases.len().max(1);
        let logit = |weight: &[f32], bias: &f32, feature: &[f32]| bias + weight.iter().zip(feature).map(|(w, x)| w * x).sum::<f32>();
        let of_sample =
            |feature: &Vec<f32>| self.weights.chunks_exact(width.max(1)).zip(&self.biases).map(|(w, b)| logit(w, b, feature)).collect();
        features.iter().map(of_sample).collect()
    }

    pub(super) fn parameters(&self) -> usize {
        self.weights.len() + self.biases.len()
    }
}

/// The samples, their features scaled to mean 0 and variance 1, with a constant 1 behind them.
pub(super) struct Problem {
    /// `[samples, width + 1]`.
    features: Mat<f64>,
    /// `[samples, classes]`: 1 for the classes of a sample.
    targets: Mat<f64>,
    means: Vec<f64>,
    scales: Vec<f64>,
    multi_label: bool,
}

/// Where the loss has its minimum, as far as it was reached.
pub(super) struct Optimum {
    /// W and b, `[width + 1, classes]`, over the scaled features: where another search may begin.
    pub(super) point: Vec<f64>,
    /// The same as a classifier of features.
    pub(super) classifier: Classifier,
    /// Iterations that it took.
    pub(super) iterations: usize,
}

impl Problem {
    /// `targets`: for each sample, 1 for each of its classes and 0 for the others. At least one sample.
    pub(super) fn new(features: &Rows, targets: &Rows, multi_label: bool) -> Self {
        let (samples, width) = (features.len(), features.first().map_or(0, Vec::len));
        let n = samples as f64;
        let column = |j: usize| features.iter().map(move |row| f64::from(row[j]));
        let means: Vec<f64> = (0..width).map(|j| column(j).sum::<f64>() / n).collect();
        let variance = |j: usize| column(j).map(|x| (x - means[j]).powi(2)).sum::<f64>() / n;
        // A feature that never varies is 0 after scaling, whatever it is divided by.
        let scales: Vec<f64> = (0..width).map(|j| variance(j).sqrt().max(1e-6)).collect();
        let scaled = |i: usize, j: usize| if j == width { 1.0 } else { (f64::from(features[i][j]) - means[j]) / scales[j] };
        let classes = targets.first().map_or(0, Vec::len);
        Self {
            features: Mat::from_fn(samples, width + 1, scaled),
            targets: Mat::from_fn(samples, classes, |i, c| f64::from(targets[i][c])),
            means,
            scales,
            multi_label,
        }
    }

    /// The minimum of the mean cross-entropy + l2 / 2 · ‖W‖², the biases left out of the norm. `start`: where
    /// the search begins; zeros if it has another length.
    pub(super) fn minimise(&self, l2: f64, start: &[f64]) -> Optimum {
        let size = self.features.ncols() * self.targets.ncols();
        let start = if start.len() == size { start.to_vec() } else { vec![0.0; size] };
        let (point, iterations) = lbfgs(start, |point| self.loss(point, l2));
        Optimum { classifier: self.classifier(&point), point, iterations }
    }

    /// The loss and its gradient at a point `[width + 1, classes]`, column by column.
    fn loss(&self, point: &[f64], l2: f64) -> (f64, Vec<f64>) {
        let (rows, classes) = (self.features.ncols(), self.targets.ncols());
        let weights = Mat::from_fn(rows, classes, |i, c| point[c * rows + i]);
        let mut z = &self.features * &weights;
        let n = self.features.nrows() as f64;
        let terms = if self.multi_label { n * classes as f64 } else { n };
        let mut loss = 0.0;
        for i in 0..z.nrows() {
            // z becomes the derivative of the loss by z.
            let largest = (0..classes).map(|c| z[(i, c)]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..classes).map(|c| (z[(i, c)] - largest).exp()).sum();
            for c in 0..classes {
                let (x, y) = (z[(i, c)], self.targets[(i, c)]);
                let (p, term) = if self.multi_label {
                    (1.0 / (1.0 + (-x).exp()), x.max(0.0) + (-x.abs()).exp().ln_1p() - x * y)
                } else {
                    ((x - largest).exp() / sum, y * (largest + sum.ln() - x))
                };
                loss += term / terms;
                z[(i, c)] = (p - y) / terms;
            }
        }
        let slope = self.features.transpose() * &z;
        let mut gradient = vec![0.0; point.len()];
        for c in 0..classes {
            for i in 0..rows {
                let regular = if i + 1 == rows { 0.0 } else { l2 * point[c * rows + i] };
                loss += 0.5 * regular * point[c * rows + i];
                gradient[c * rows + i] = slope[(i, c)] + regular;
            }
        }
        (loss, gradient)
    }

    /// The classifier of features that are not scaled.
    fn classifier(&self, point: &[f64]) -> Classifier {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for of_class in point.chunks_exact(self.features.ncols()) {
            let (w, b) = of_class.split_at(self.means.len());
            let scaled: Vec<f64> = w.iter().zip(&self.scales).map(|(w, scale)| w / scale).collect();
            biases.push((b[0] - dot(&scaled, &self.means)) as f32);
            weights.extend(scaled.into_iter().map(|x| x as f32));
        }
        Classifier { weights, biases }
    }
}

/// The point at which a convex function has its minimum, and the iterations that it took. `f`: value and
/// gradient.
fn lbfgs(mut point: Vec<f64>, f: impl Fn(&[f64]) -> (f64, Vec<f64>)) -> (Vec<f64>, usize) {
    let (mut value, mut gradient) = f(&point);
    // Steps s and differences of gradients y, the latest last.
    let mut history: Vec<(Vec<f64>, Vec<f64>)> = Vec::new();
    for iteration in 0..MOST_ITERATIONS {
        if gradient.iter().all(|g| g.abs() <= TOLERANCE) {
            return (point, iteration);
        }
        let mut direction = descent(&gradient, &history);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 {
            history.clear();
            direction = gradient.iter().map(|g| -g).collect();
            slope = -dot(&gradient, &gradient);
        }
        let mut step = if history.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt().max(1.0) } else { 1.0 };
        let found = loop {
            let next: Vec<f64> = point.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
            let (next_value, next_gradient) = f(&next);
            if next_value <= value + 1e-4 * step * slope {
                break Some((next, next_value, next_gradient));
            }
            step /= 2.0;
            if step < 1e-12 {
                break None;
            }
        };
        // No step is lower: the value is as small as f64 can tell.
        let Some((next, next_value, next_gradient)) = found else { return (point, iteration) };
        let s: Vec<f64> = next.iter().zip(&point).map(|(a, b)| a - b).collect();
        let y: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        if dot(&s, &y) > 1e-12 {
            history.push((s, y));
            if history.len() > HISTORY {
                history.remove(0);
            }
        }
        (point, value, gradient) = (next, next_value, next_gradient);
    }
    (point, MOST_ITERATIONS)
}

/// −H g by the two loops of L-BFGS.
fn descent(gradient: &[f64], history: &[(Vec<f64>, Vec<f64>)]) -> Vec<f64> {
    let mut q = gradient.to_vec();
    let mut alphas = Vec::with_capacity(history.len());
    for (s, y) in history.iter().rev() {
        let alpha = dot(s, &q) / dot(s, y);
        q.iter_mut().zip(y).for_each(|(q, y)| *q -= alpha * y);
        alphas.push(alpha);
    }
    if let Some((s, y)) = history.last() {
        let scale = dot(s, y) / dot(y, y);
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for ((s, y), alpha) in history.iter().zip(alphas.into_iter().rev()) {
        let beta = dot(y, &q) / dot(s, y);
        q.iter_mut().zip(s).for_each(|(q, s)| *q += (alpha - beta) * s);
    }
    q.iter().map(|x| -x).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples of two classes whose one feature overlaps.
    fn samples() -> (Rows, Rows) {
        let features = [-2.0f32, -1.0, 1.0, -1.0, 1.0, 2.0].map(|x| vec![x, 3.0]).to_vec();
        let targets = [0, 0, 0, 1, 1, 1].map(|class| (0..2).map(|c| f32::from(u8::from(c == class))).collect()).to_vec();
        (features, targets)
    }

    #[test]
    fn the_gradient_is_zero_at_the_optimum_and_the_loss_is_larger_around_it() {
        let (features, targets) = samples();
        for multi_label in [false, true] {
            let problem = Problem::new(&features, &targets, multi_label);
            let optimum = problem.minimise(0.01, &[]);
            assert!(optimum.iterations < MOST_ITERATIONS);
            let (lowest, gradient) = problem.loss(&optimum.point, 0.01);
            assert!(gradient.iter().all(|g| g.abs() <= TOLERANCE), "{gradient:?}");
            for i in 0..optimum.point.len() {
                let mut moved = optimum.point.clone();
                moved[i] += 0.1;
                assert!(problem.loss(&moved, 0.01).0 >= lowest, "{i}");
            }
            let logits = optimum.classifier.logits(&features);
            assert!(logits[0][0] > logits[0][1] && logits[5][1] > logits[5][0], "{logits:?}");
        }
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let (features, targets) = samples();
        for multi_label in [false, true] {
            let problem = Problem::new(&features, &targets, multi_label);
            let point: Vec<f64> = (0..6).map(|i| 0.3 * f64::from(i) - 0.7).collect();
            let gradient = problem.loss(&point, 0.1).1;
            for i in 0..6 {
                let at = |by: f64| {
                    let mut moved = point.clone();
                    moved[i] += by;
                    problem.loss(&moved, 0.1).0
                };
                assert!(((at(1e-5) - at(-1e-5)) / 2e-5 - gradient[i]).abs() < 1e-6, "{i}");
            }
        }
    }
}
