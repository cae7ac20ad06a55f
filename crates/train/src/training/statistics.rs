//! What a session stores of the frozen backbone's signals: keys, class statistics, the temperature of its class
//! probabilities, and the analytic classifier (METHOD.md 4, ROUTING.md 7 and 8).
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};

use super::error::TrainError;
use super::prefix::CHUNK;
use super::session::Session;
use crate::data::{Label, Samples, Split};
use delo_model::analytic::{Analytic, AnalyticRecord};
use delo_model::discriminant::Linear;
use delo_model::partition::KeyRule;
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric, SessionKeys, Signals};
use delo_model::routing::{NotPositiveDefinite, session_logits};

/// The statistics of a session.
pub(super) struct SessionStatistics {
    pub(super) keys: SessionKeys,
    /// τ; `None` where the metric needs none, or no val item could fit it.
    pub(super) temperature: Option<f32>,
    pub(super) analytic: Option<Analytic>,
}

impl Session<'_> {
    /// The statistics of the training samples, and τ from the val samples. A moving average follows the batches
    /// in training order.
    ///
    /// Every sample goes through the frozen layers once more: its signals may be those of a later layer than
    /// the kept states.
    pub(super) fn statistics(&self, samples: Samples<'_>, batches: &[Vec<usize>]) -> Result<SessionStatistics, TrainError> {
        let KeyRule { metric, signal, plain_signal, plain_average, .. } = self.key;
        let mut signals = self.signals(samples, &[signal, plain_signal])?;
        let labels: Vec<&Label> = self.data.rows(self.task, Split::Train).iter().map(|&row| &self.data.items[row].label).collect();
        let shares = shares(&labels, self.data.tasks[self.task].labels.len());
        let classes = if metric == Metric::Lda || self.mixes() { Some(matrix(&shares)?) } else { None };
        let mut keys = SessionKeys::of(&signals, &[signal], classes.as_ref())?;
        let analytic = if self.mixes() { Some(self.analytic(&keys, &signals[&signal], &labels)?) } else { None };
        let temperature = if metric == Metric::Lda { self.temperature(&keys)? } else { None };
        if plain_average == KeyAverage::Ema {
            keys.mean.retain(|kept, _| *kept == signal);
            signals.retain(|kept, _| *kept == plain_signal);
            for batch in batches {
                keys.moving_average_step(&signals, batch, self.settings.key_beta as f32)?;
            }
        }
        Ok(SessionStatistics { keys, temperature, analytic })
    }

    /// Whether the scores are a mixture of the head and the analytic classifier.
    fn mixes(&self) -> bool {
        self.settings.head_weight < 1.0
    }

    /// The `wanted` signals of samples, `[samples, width]` each.
    pub(super) fn signals(&self, samples: Samples<'_>, wanted: &[KeySignal]) -> Result<Signals, TrainError> {
        let wanted: Vec<KeySignal> = wanted.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let hidden = self.engine.backbone().config.hidden_size;
        let room = |signal: &KeySignal| (*signal, Vec::with_capacity(samples.len() * signal.width(hidden)));
        let mut rows: BTreeMap<KeySignal, Vec<f32>> = wanted.iter().map(room).collect();
        samples.for_each_chunk(CHUNK, |_, chunk| {
            for (signal, values) in self.engine.signals(&self.engine.embed(chunk, self.dummy_image())?, &wanted)? {
                rows.entry(signal).or_default().extend(values.flatten_all()?.to_vec1::<f32>()?);
            }
            Ok::<_, TrainError>(())
        })?;
        let tensor = |(signal, values): (KeySignal, Vec<f32>)| {
            Ok((signal, Tensor::from_vec(values, (samples.len(), signal.width(hidden)), &Device::Cpu)?))
        };
        Ok(rows.into_iter().map(tensor).collect::<candle_core::Result<Signals>>()?)
    }

    /// The analytic classifier of the session. `values` are the samples' signals `[samples, width]`.
    fn analytic(&self, keys: &SessionKeys, values: &Tensor, labels: &[&Label]) -> Result<Analytic, TrainError> {
        let signal = self.key.signal;
        let record = AnalyticRecord { signal, head_weight: self.settings.head_weight as f32 };
        let classes = self.data.tasks[self.task].labels.len();
        let (Some(statistics), Some(mean)) = (keys.statistics(signal), keys.key(signal, KeyAverage::Mean)) else {
            return Err(candle_core::Error::Msg(format!("no class statistics of {signal}")).into());
        };
        let positive = if self.data.multi_label { positive(values, labels, classes)? } else { Vec::new() };
        Analytic::of(record, statistics, classes, &positive, mean).map_err(degenerate)
    }

    /// τ: the temperature at which the session's own class probabilities fit its val samples best. `None`
    /// without val samples.
    fn temperature(&self, keys: &SessionKeys) -> Result<Option<f32>, TrainError> {
        let signal = self.key.signal;
        let rows = self.data.rows(self.task, Split::Val);
        let Some(statistics) = keys.statistics(signal).filter(|_| !rows.is_empty()) else { return Ok(None) };
        let samples = Samples::new(self.data, rows, self.missing, self.processor);
        let values = self.signals(samples, &[signal])?[&signal].to_vec2::<f32>()?;
        let linear = session_logits(statistics).map_err(degenerate)?;
        let labels: Vec<&Label> = rows.iter().map(|&row| &self.data.items[row].label).collect();
        let mut shares = shares(&labels, self.data.tasks[self.task].labels.len());
        // A class that no training sample has is none of the session's.
        shares.iter_mut().for_each(|share| share.resize(statistics.counts.len(), 0.0));
        Ok(Some(fitted_temperature(&logits(&linear, &values), &shares)))
    }
}

fn degenerate(error: NotPositiveDefinite) -> TrainError {
    candle_core::Error::Msg(format!("the signals of the session do not differ: {error}")).into()
}

/// The share of each sample in each class, `[samples, classes]`: a sample with n labels has 1/n of each. Where
/// some sample has no label, these samples are one more class.
fn shares(labels: &[&Label], classes: usize) -> Vec<Vec<f32>> {
    let unlabelled = |label: &&Label| matches!(label, Label::Classes(flags) if flags.iter().all(|flag| !flag));
    let columns = classes + usize::from(labels.iter().any(unlabelled));
    let share = |label: &&Label| {
        let mut share = vec![0.0; columns];
        match label {
            Label::Class(class) => share[*class] = 1.0,
            Label::Classes(flags) => match flags.iter().filter(|flag| **flag).count() {
                0 => share[classes] = 1.0,
                n => share.iter_mut().zip(flags).filter(|(_, flag)| **flag).for_each(|(share, _)| *share = 1.0 / n as f32),
            },
        }
        share
    };
    labels.iter().map(share).collect()
}

fn matrix(rows: &[Vec<f32>]) -> candle_core::Result<Tensor> {
    Tensor::from_vec(rows.concat(), (rows.len(), rows.first().map_or(0, Vec::len)), &Device::Cpu)
}

/// For each label, the number of samples that have it and their mean signal.
fn positive(values: &Tensor, labels: &[&Label], classes: usize) -> candle_core::Result<Vec<(f32, Vec<f32>)>> {
    let flags = |label: &&Label| match label {
        Label::Class(class) => (0..classes).map(|c| f32::from(u8::from(c == *class))).collect(),
        Label::Classes(flags) => flags.iter().map(|flag| f32::from(u8::from(*flag))).collect::<Vec<_>>(),
    };
    let flags = matrix(&labels.iter().map(flags).collect::<Vec<_>>())?;
    let counts: Vec<f32> = flags.sum(0)?.to_vec1()?;
    let sums = flags.t()?.matmul(values)?.to_vec2::<f32>()?;
    let mean = |(count, sum): (f32, Vec<f32>)| (count, sum.into_iter().map(|x| x / count.max(1.0)).collect());
    Ok(counts.into_iter().zip(sums).map(mean).collect())
}

/// The logits of some signals, `[samples, classes]`.
fn logits(linear: &Linear, signals: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let width = linear.weights.len() / linear.biases.len();
    let of_class =
        |(weight, bias): (&[f64], &f64), signal: &[f32]| bias + weight.iter().zip(signal).map(|(w, x)| w * f64::from(*x)).sum::<f64>();
    let of_sample =
        |signal: &Vec<f32>| linear.weights.chunks_exact(width).zip(&linear.biases).map(|class| of_class(class, signal)).collect();
    signals.iter().map(of_sample).collect()
}

/// τ from e⁻⁴ to e⁴ with the least cross-entropy between softmax(logits / τ) and the shares of the samples in
/// the classes. The cross-entropy is convex in 1/τ, so that a ternary search finds it.
fn fitted_temperature(logits: &[Vec<f64>], shares: &[Vec<f32>]) -> f32 {
    let loss = |inverse: f64| {
        let of_sample = |(logits, shares): (&Vec<f64>, &Vec<f32>)| {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total = logits.iter().map(|z| ((z - largest) * inverse).exp()).sum::<f64>().ln();
            logits.iter().zip(shares).map(|(z, share)| f64::from(*share) * (total - (z - largest) * inverse)).sum::<f64>()
        };
        logits.iter().zip(shares).map(of_sample).sum::<f64>()
    };
    let (mut low, mut high) = ((-4f64).exp(), 4f64.exp());
    for _ in 0..100 {
        let (left, right) = ((2.0 * low + high) / 3.0, (low + 2.0 * high) / 3.0);
        if loss(left) <= loss(right) { high = right } else { low = left }
    }
    (2.0 / (low + high)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_temperature_makes_probabilities_as_sure_as_they_are_right() {
        // Logits ±2: the first class is right three times of four, so that softmax(z / τ) = 3/4 at 4 / τ = ln 3.
        let logits = vec![vec![2.0, -2.0]; 4];
        let mut shares = vec![vec![1.0, 0.0]; 3];
        shares.push(vec![0.0, 1.0]);
        let found = fitted_temperature(&logits, &shares);
        assert!((f64::from(found) - 4.0 / 3f64.ln()).abs() < 1e-3, "{found}");
    }

    #[test]
    fn a_sample_shares_itself_among_its_labels_and_one_without_any_is_a_class_of_its_own() {
        let labels = [vec![true, true, false], vec![false, false, true], vec![false; 3]].map(Label::Classes);
        let found = shares(&labels.iter().collect::<Vec<_>>(), 3);
        assert_eq!(found, [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]);
        let found = shares(&labels[..2].iter().collect::<Vec<_>>(), 3);
        assert_eq!(found, [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]);
    }
}
