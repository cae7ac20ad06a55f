//! The analytic classifier of a task: linear discriminant analysis over the session's own classes, on a signal
//! of the frozen backbone. Its logits are mixed with those of the head (ROUTING.md 8).
use serde::{Deserialize, Serialize};

use crate::discriminant::{Discriminant, Linear, Statistics};
use crate::method::{Tensors, flat, tensor_of};
use crate::routing::{KeySignal, NotPositiveDefinite};
use candle_core::{Device, Result, Tensor};
use delo_kernels::elementwise::dot;

/// The tensor of the weights, `[labels, width]`.
const WEIGHT: &str = "analytic.weight";
/// The tensor of the biases, `[labels]`.
const BIAS: &str = "analytic.bias";

/// λ of its ridge ([`Discriminant`]), chosen on the val splits of Emoji-CMML.
const RIDGE: f64 = 1.0;

/// What an artifact's header says of its analytic classifier. The two factors may share a temperature, 1/τ, at which
/// the scores are probabilities that hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnalyticRecord {
    /// The signal that it reads.
    pub signal: KeySignal,
    /// The factor of its own logits in the scores.
    pub weight: f32,
    /// The factor of the head's logits in the scores.
    pub head_weight: f32,
}

impl AnalyticRecord {
    /// The record whose scores have the temperature τ.
    #[must_use]
    pub fn divided_by(self, temperature: f32) -> Self {
        Self { weight: self.weight / temperature, head_weight: self.head_weight / temperature, ..self }
    }
}

/// The analytic classifier of a task. It depends on the task's own session alone.
#[derive(Clone, Debug)]
pub struct Analytic {
    /// What the header says of it.
    pub record: AnalyticRecord,
    width: usize,
    /// `[labels, width]`.
    weights: Vec<f32>,
    /// `[labels]`.
    biases: Vec<f32>,
}

impl Analytic {
    /// The classifier of a session from its statistics on a signal of `width` values. Of a multi-label task,
    /// each label is told from its absence: `positive` holds, for each label, the samples that have it and
    /// their mean signal `[width]`, and `mean` the mean signal of the session; of another task, they are empty.
    ///
    /// # Errors
    /// The within-class scatter of the session is not positive definite.
    pub fn of(
        record: AnalyticRecord,
        statistics: Statistics<'_>,
        labels: usize,
        positive: &[(f32, Vec<f32>)],
        mean: &[f32],
    ) -> std::result::Result<Self, NotPositiveDefinite> {
        let width = mean.len();
        let metric = Discriminant::of(&[statistics], width, RIDGE)?;
        let linear =
            if positive.is_empty() { metric.classes(statistics.means) } else { label_odds(&metric, statistics.samples(), mean, positive) };
        let narrow = |values: &[f64], length: usize| values[..length].iter().map(|&x| x as f32).collect();
        let (weights, biases) = (narrow(&linear.weights, labels * width), narrow(&linear.biases, labels));
        Ok(Self { record, width, weights, biases })
    }

    /// The classifier of an artifact with `labels` labels, for a signal of `width` values.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub(crate) fn from_tensors(record: AnalyticRecord, tensors: &Tensors, labels: usize, width: usize) -> Result<Self> {
        let weights = flat(tensor_of(tensors, WEIGHT, &[labels, width])?)?;
        let biases = flat(tensor_of(tensors, BIAS, &[labels])?)?;
        Ok(Self { record, width, weights, biases })
    }

    /// The tensors under their names in an artifact.
    ///
    /// # Errors
    /// The tensors cannot be made.
    pub(crate) fn tensors(&self) -> Result<Tensors> {
        let labels = self.biases.len();
        let weight = Tensor::from_slice(&self.weights, (labels, self.width), &Device::Cpu)?;
        Ok([(WEIGHT.to_owned(), weight), (BIAS.to_owned(), Tensor::from_slice(&self.biases, labels, &Device::Cpu)?)].into())
    }

    /// The classifier's own logits z for a signal `[width]`, `[labels]`.
    pub fn logits(&self, signal: &[f32]) -> Vec<f32> {
        self.weights.chunks_exact(self.width.max(1)).zip(&self.biases).map(|(weight, bias)| bias + dot(weight, signal)).collect()
    }

    /// weight · z + head_weight · logits in place of the head's `logits` `[labels]`, for a signal `[width]`.
    pub fn mix(&self, signal: &[f32], logits: &mut [f32]) {
        let AnalyticRecord { weight, head_weight, .. } = self.record;
        logits.iter_mut().zip(self.logits(signal)).for_each(|(logit, z)| *logit = weight * z + head_weight * *logit);
    }
}

/// The logarithm of the odds of each label of a multi-label session, each told from its absence. `samples`
/// and `mean` `[width]` are of the session; `positive` holds, for each label, the samples that have it and
/// their mean signal `[width]`.
pub fn label_odds(metric: &Discriminant, samples: f64, mean: &[f32], positive: &[(f32, Vec<f32>)]) -> Linear {
    let (with, without) = positive.iter().map(|(count, of_label)| pair(samples, mean, *count, of_label)).unzip();
    difference(metric, with, without, positive, samples)
}

/// The mean signal of the samples with a label, and of the others.
fn pair(samples: f64, mean: &[f32], count: f32, of_label: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let others = (samples - f64::from(count)).max(1.0);
    let other = |(&all, &with): (&f32, &f32)| ((samples * f64::from(all) - f64::from(count) * f64::from(with)) / others) as f32;
    (of_label.to_vec(), mean.iter().zip(of_label).map(other).collect())
}

/// The logarithm of the odds of each label: the logits of `with` minus those of `without`, plus the logarithm
/// of the ratio of their samples.
fn difference(metric: &Discriminant, with: Vec<Vec<f32>>, without: Vec<Vec<f32>>, positive: &[(f32, Vec<f32>)], samples: f64) -> Linear {
    let [mut with, without] = [with, without].map(|means| metric.classes(&means.concat()));
    with.weights.iter_mut().zip(&without.weights).for_each(|(x, y)| *x -= y);
    for ((x, y), (count, _)) in with.biases.iter_mut().zip(&without.biases).zip(positive) {
        // Half a sample more on each side: a label that all samples have, or none, has finite odds.
        let count = f64::from(*count);
        *x += ((count + 0.5) / (samples - count + 0.5)).ln() - y;
    }
    with
}
