//! Ridge regression of the classes on features, from sums over the sessions: no item of an earlier session is
//! kept. The ridge is chosen on val items.
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use serde_json::Value;

use super::features::Rows;
use super::val::Candidates;
use crate::data::Split;
use crate::training::statistics::flags;
use crate::training::{Session, TrainError};

/// A ridge, relative to the mean of the squared features, and the value above which a label of a multi-label
/// sample is predicted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    ridge: f64,
    threshold: f32,
}

/// The thresholds that are tried for multi-label, whose targets are 0 and 1.
const THRESHOLDS: [f32; 6] = [0.5, 0.4, 0.3, 0.2, 0.15, 0.1];

/// y ≈ W φ with W = (Σ φφᵀ / n + λ tr(Σ φφᵀ / n) / width · I)⁻¹ Σ φ yᵀ / n over the samples of all sessions;
/// y is 1 for the classes of a sample, else 0, and φ ends with a constant 1.
#[derive(Debug)]
pub(super) struct Regression {
    ridges: Vec<f64>,
    candidates: Option<Candidates<Candidate>>,
    /// Σ φφᵀ, `[width, width]`.
    gram: Mat<f64>,
    /// Σ y φ of each class, `[classes][width]`.
    targets: Vec<Vec<f64>>,
    samples: f64,
    /// Of the best ridge, `[classes][width]`.
    weights: Rows,
    /// Of the best candidate.
    threshold: f32,
}

impl From<Candidate> for Value {
    fn from(candidate: Candidate) -> Self {
        serde_json::json!({"ridge": candidate.ridge, "threshold": candidate.threshold})
    }
}

impl Regression {
    /// Before the first session. `ridges`: those that are tried.
    pub(super) fn new(ridges: &[f64]) -> Self {
        let (gram, targets, weights) = (Mat::new(), Vec::new(), Rows::new());
        Self { ridges: ridges.to_vec(), candidates: None, gram, targets, samples: 0.0, weights, threshold: 0.0 }
    }

    /// Adds a session: the features of its training and of its val items.
    ///
    /// # Errors
    /// A sum that is not positive definite with any ridge.
    pub(super) fn add(&mut self, session: &Session<'_>, train: Rows, val: Rows) -> Result<(), TrainError> {
        let features: Rows = train.into_iter().map(with_constant).collect();
        let width = features.first().map_or(0, Vec::len);
        let matrix = Mat::from_fn(features.len(), width, |i, j| f64::from(features[i][j]));
        let square = matrix.transpose() * &matrix;
        self.gram = if self.gram.nrows() == 0 { square } else { &self.gram + &square };
        let classes = session.data.tasks[session.task].labels.len();
        let mut sums = vec![vec![0.0; width]; classes];
        for (row, feature) in session.data.rows(session.task, Split::Train).iter().zip(&features) {
            for (sum, flag) in sums.iter_mut().zip(flags(&session.data.items[*row].label, classes)) {
                sum.iter_mut().zip(feature).for_each(|(sum, x)| *sum += f64::from(flag) * f64::from(*x));
            }
        }
        self.targets.extend(sums);
        self.samples += features.len() as f64;

        let thresholds = if session.data.multi_label { &THRESHOLDS[..] } else { &[0.0] };
        let ridges = &self.ridges;
        let all = || ridges.iter().flat_map(|&ridge| thresholds.iter().map(move |&threshold| Candidate { ridge, threshold })).collect();
        let mut candidates = self.candidates.take().unwrap_or_else(|| Candidates::new(all()));
        let solutions = ridges.iter().map(|&ridge| self.solve(ridge)).collect::<Result<Vec<_>, _>>()?;
        let val: Rows = val.into_iter().map(with_constant).collect();
        let of_solution = |weights: &Rows| -> Rows { val.iter().map(|feature| products(weights, feature)).collect() };
        let values: Vec<Rows> = solutions.iter().map(of_solution).collect();
        let shifted = |(index, candidate): (usize, Candidate)| -> Rows {
            values[index / thresholds.len()].iter().map(|row| row.iter().map(|x| x - candidate.threshold).collect()).collect()
        };
        let logits: Vec<Rows> = candidates.iter().enumerate().map(shifted).collect();
        candidates.add(session, &logits);
        let best = candidates.best();
        self.threshold = thresholds[best % thresholds.len()];
        self.weights = solutions.into_iter().nth(best / thresholds.len()).unwrap_or_default();
        self.candidates = Some(candidates);
        Ok(())
    }

    /// The logits of each row of features over all classes seen.
    pub(super) fn logits(&self, features: Rows) -> Rows {
        let logits = |feature| products(&self.weights, &with_constant(feature)).into_iter().map(|x| x - self.threshold).collect();
        features.into_iter().map(logits).collect()
    }

    pub(super) fn parameters(&self) -> usize {
        self.weights.iter().map(Vec::len).sum()
    }

    pub(super) fn record(&self) -> Value {
        self.candidates.as_ref().map_or(Value::Null, Candidates::record)
    }

    fn solve(&self, ridge: f64) -> Result<Rows, TrainError> {
        let (width, n) = (self.gram.nrows(), self.samples);
        let trace: f64 = (0..width).map(|i| self.gram[(i, i)]).sum();
        let scale = ridge * trace / (n * width.max(1) as f64);
        let system = Mat::from_fn(width, width, |i, j| self.gram[(i, j)] / n + if i == j { scale } else { 0.0 });
        let factor = system.llt(Side::Lower).map_err(|_| {
            candle_core::Error::Msg(format!("the features of the sessions do not differ enough for a ridge of {ridge}: give larger ridges"))
        })?;
        let targets = Mat::from_fn(width, self.targets.len(), |i, class| self.targets[class][i] / n);
        let solved = factor.solve(&targets);
        Ok((0..self.targets.len()).map(|class| (0..width).map(|i| solved[(i, class)] as f32).collect()).collect())
    }
}

/// A feature with the constant 1 behind it.
fn with_constant(mut feature: Vec<f32>) -> Vec<f32> {
    feature.push(1.0);
    feature
}

fn products(weights: &Rows, feature: &[f32]) -> Vec<f32> {
    weights.iter().map(|weight| weight.iter().zip(feature).map(|(w, x)| w * x).sum()).collect()
}
