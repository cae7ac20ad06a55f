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
use delo_model::partition::{KeyRule, MAX_CALIBRATION};
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric, SessionKeys, Signals};
use delo_model::routing::{NotPositiveDefinite, session_logits};

/// The statistics of a session.
pub(super) struct SessionStatistics {
    pub(super) keys: SessionKeys,
    /// τ; `None` where the metric needs none, or no val item could fit it.
    pub(super) temperature: Option<f32>,
    pub(super) analytic: Option<Analytic>,
}

/// What the scores start from where head and adapters learn a residual.
#[derive(Debug)]
pub(super) struct Residual {
    /// The analytic logits of each training sample, times `weight`, `[samples, labels]`. They are of classifiers
    /// that were made without the samples of its fold; the samples of a group are in one fold.
    pub(super) logits: Tensor,
    /// The factor of the analytic logits, at which they fit the samples best.
    pub(super) weight: f32,
}

/// The fewest samples that a temperature is fitted to.
const FEWEST: usize = 8;

/// The number of folds of [`Residual`].
const FOLDS: usize = 10;

impl Session<'_> {
    /// The statistics of the training samples, and τ from the val samples. A moving average follows the batches
    /// in training order.
    ///
    /// Every sample goes through the frozen layers once more: its signals may be those of a later layer than
    /// the kept states.
    pub(super) fn statistics(
        &self,
        samples: Samples<'_>,
        batches: &[Vec<usize>],
        residual: Option<&Residual>,
    ) -> Result<SessionStatistics, TrainError> {
        let KeyRule { metric, signal, plain_signal, plain_average, .. } = self.key;
        let mut signals = self.signals(samples, &[signal, plain_signal])?;
        let labels = self.labels(Split::Train);
        let shares = shares(&labels, self.data.tasks[self.task].labels.len());
        let classes = if metric == Metric::Lda || self.mixes() { Some(matrix(&shares)?) } else { None };
        let mut keys = SessionKeys::of(&signals, &[signal], classes.as_ref())?;
        let analytic = if self.mixes() {
            let record = self.analytic_record(residual.map(|residual| residual.weight));
            Some(self.analytic(record, &keys, &signals[&signal], &labels)?)
        } else {
            None
        };
        let held_out = if metric == Metric::Lda { self.held_out(signal)? } else { Vec::new() };
        let temperature = self.temperature(&keys, &held_out)?;
        if !held_out.is_empty() {
            keys.calibration.insert(signal, calibration(&held_out));
        }
        if plain_average == KeyAverage::Ema {
            keys.mean.retain(|kept, _| *kept == signal);
            signals.retain(|kept, _| *kept == plain_signal);
            for batch in batches {
                keys.moving_average_step(&signals, batch, self.settings.key_beta as f32)?;
            }
        }
        Ok(SessionStatistics { keys, temperature, analytic })
    }

    /// Whether the analytic classifier has a part in the scores.
    fn mixes(&self) -> bool {
        self.settings.residual || self.settings.head_weight < 1.0
    }

    /// The factors of the logits: of a residual, `weight` and 1; else 1 − w and w.
    fn analytic_record(&self, weight: Option<f32>) -> AnalyticRecord {
        let head_weight = if weight.is_some() { 1.0 } else { self.settings.head_weight as f32 };
        AnalyticRecord { signal: self.key.signal, weight: weight.unwrap_or(1.0 - head_weight), head_weight }
    }

    /// The labels of a split's samples.
    fn labels(&self, split: Split) -> Vec<&Label> {
        self.data.rows(self.task, split).iter().map(|&row| &self.data.items[row].label).collect()
    }

    /// See [`Residual`]; `None` where the settings ask for none.
    pub(super) fn residual(&self, samples: Samples<'_>) -> Result<Option<Residual>, TrainError> {
        if !self.settings.residual {
            return Ok(None);
        }
        let signal = self.key.signal;
        let values = self.signals(samples, &[signal])?.remove(&signal).ok_or_else(|| missing_statistics(signal))?;
        let (labels, classes) = (self.labels(Split::Train), self.data.tasks[self.task].labels.len());
        let shares = shares(&labels, classes);
        let folds = folds(self.data.rows(self.task, Split::Train).iter().map(|&row| self.data.items[row].group.as_deref()));
        let rows = values.to_vec2::<f32>()?;
        let mut logits = vec![vec![0f32; classes]; rows.len()];
        for fold in 0..FOLDS {
            let kept: Vec<usize> = (0..rows.len()).filter(|&i| folds[i] != fold).collect();
            if kept.is_empty() || kept.len() == rows.len() {
                continue;
            }
            let index: Vec<u32> = kept.iter().map(|&i| i as u32).collect();
            let of_kept = values.index_select(&Tensor::from_vec(index, kept.len(), &Device::Cpu)?, 0)?;
            let kept_shares: Vec<Vec<f32>> = kept.iter().map(|&i| shares[i].clone()).collect();
            let keys = SessionKeys::of(&Signals::from([(signal, of_kept.clone())]), &[signal], Some(&matrix(&kept_shares)?))?;
            let kept_labels: Vec<&Label> = kept.iter().map(|&i| labels[i]).collect();
            let classifier = self.analytic(self.analytic_record(None), &keys, &of_kept, &kept_labels)?;
            (0..rows.len()).filter(|&i| folds[i] == fold).for_each(|i| logits[i] = classifier.logits(&rows[i]));
        }
        let wide = |row: &Vec<f32>| row.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let of_labels: Vec<Vec<f32>> = labels.iter().map(|label| flags(label, classes)).collect();
        let temperature = fitted_temperature(&logits.iter().map(wide).collect::<Vec<_>>(), &of_labels, self.data.multi_label);
        let weight = 1.0 / temperature.unwrap_or(1.0);
        logits.iter_mut().flatten().for_each(|x| *x *= weight);
        Ok(Some(Residual { logits: matrix(&logits)?, weight }))
    }

    /// The `wanted` signals of samples, `[samples, width]` each.
    pub(super) fn signals(&self, samples: Samples<'_>, wanted: &[KeySignal]) -> Result<Signals, TrainError> {
        let wanted: Vec<KeySignal> = wanted.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let hidden = self.engine.backbone().config.hidden_size;
        let room = |signal: &KeySignal| (*signal, Vec::with_capacity(samples.len() * signal.width(hidden)));
        let mut rows: BTreeMap<KeySignal, Vec<f32>> = wanted.iter().map(room).collect();
        samples.for_each_chunk(CHUNK, |_, chunk| {
            for (signal, values) in self.frozen_signals(chunk, &wanted)? {
                rows.entry(signal).or_default().extend(values.flatten_all()?.to_vec1::<f32>()?);
            }
            Ok::<_, TrainError>(())
        })?;
        let tensor = |(signal, values): (KeySignal, Vec<f32>)| {
            Ok((signal, Tensor::from_vec(values, (samples.len(), signal.width(hidden)), &Device::Cpu)?))
        };
        Ok(rows.into_iter().map(tensor).collect::<candle_core::Result<Signals>>()?)
    }

    /// The analytic classifier of some samples of the session. `values` are their signals `[samples, width]`.
    fn analytic(&self, record: AnalyticRecord, keys: &SessionKeys, values: &Tensor, labels: &[&Label]) -> Result<Analytic, TrainError> {
        let signal = self.key.signal;
        let classes = self.data.tasks[self.task].labels.len();
        let (Some(statistics), Some(mean)) = (keys.statistics(signal), keys.key(signal, KeyAverage::Mean)) else {
            return Err(missing_statistics(signal));
        };
        let positive = if self.data.multi_label { positive(values, labels, classes)? } else { Vec::new() };
        Analytic::of(record, statistics, classes, &positive, mean).map_err(degenerate)
    }

    /// The temperature at which the scores fit the val samples best, whose `logits` are given in the order of the
    /// list. At least 1: some dozens of samples that are all right are no reason to be surer than the classifiers.
    pub(super) fn score_temperature(&self, logits: &[Vec<f32>]) -> f32 {
        if logits.is_empty() {
            return 1.0;
        }
        let classes = self.data.tasks[self.task].labels.len();
        let labels: Vec<Vec<f32>> = self.labels(Split::Val).iter().map(|label| flags(label, classes)).collect();
        let wide: Vec<Vec<f64>> = logits.iter().map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
        fitted_temperature(&wide, &labels, self.data.multi_label).unwrap_or(1.0).max(1.0)
    }

    /// The signals of the val samples.
    fn held_out(&self, signal: KeySignal) -> Result<Vec<Vec<f32>>, TrainError> {
        let samples = Samples::new(self.data, self.data.rows(self.task, Split::Val), self.missing, self.processor);
        Ok(self.signals(samples, &[signal])?[&signal].to_vec2::<f32>()?)
    }

    /// τ: the temperature at which the session's own class probabilities fit its val samples best, whose signals
    /// are `held_out`. `None` where they fit none ([`fitted_temperature`]).
    fn temperature(&self, keys: &SessionKeys, held_out: &[Vec<f32>]) -> Result<Option<f32>, TrainError> {
        let Some(statistics) = keys.statistics(self.key.signal).filter(|_| !held_out.is_empty()) else { return Ok(None) };
        let linear = session_logits(statistics).map_err(degenerate)?;
        let mut shares = shares(&self.labels(Split::Val), self.data.tasks[self.task].labels.len());
        // A class that no training sample has is none of the session's.
        shares.iter_mut().for_each(|share| share.resize(statistics.counts.len(), 0.0));
        Ok(fitted_temperature(&logits(&linear, held_out), &shares, false))
    }
}

/// The signals that the artifact keeps of the held-out samples: all, or as many as it holds at even distances.
fn calibration(held_out: &[Vec<f32>]) -> Vec<f32> {
    let kept = held_out.len().min(MAX_CALIBRATION);
    (0..kept).flat_map(|i| held_out[i * held_out.len() / kept].iter().copied()).collect()
}

fn missing_statistics(signal: KeySignal) -> TrainError {
    candle_core::Error::Msg(format!("no class statistics of {signal}")).into()
}

/// The fold of each sample: the groups, in the order in which they appear, go to the folds in turn. A sample
/// without a group is one of its own.
fn folds<'a>(groups: impl Iterator<Item = Option<&'a str>>) -> Vec<usize> {
    let (mut known, mut next) = (BTreeMap::new(), 0);
    let fold = |group: Option<&'a str>| match group.and_then(|group| known.get(group)) {
        Some(fold) => *fold,
        None => {
            let fold = next % FOLDS;
            next += 1;
            known.extend(group.map(|group| (group, fold)));
            fold
        }
    };
    groups.map(fold).collect()
}

fn degenerate(error: NotPositiveDefinite) -> TrainError {
    candle_core::Error::Msg(format!("the signals of the session do not differ: {error}")).into()
}

/// The share of each sample in each class, `[samples, classes]`: a sample with n labels has 1/n of each. Where
/// some sample has no label, these samples are one more class.
pub(crate) fn shares(labels: &[&Label], classes: usize) -> Vec<Vec<f32>> {
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

pub(crate) fn matrix(rows: &[Vec<f32>]) -> candle_core::Result<Tensor> {
    Tensor::from_vec(rows.concat(), (rows.len(), rows.first().map_or(0, Vec::len)), &Device::Cpu)
}

/// 1 for each label that a sample has, else 0, `[labels]`.
pub(crate) fn flags(label: &Label, classes: usize) -> Vec<f32> {
    match label {
        Label::Class(class) => (0..classes).map(|c| f32::from(u8::from(c == *class))).collect(),
        Label::Classes(flags) => flags.iter().map(|flag| f32::from(u8::from(*flag))).collect(),
    }
}

/// For each label, the number of samples that have it and their mean signal.
pub(crate) fn positive(values: &Tensor, labels: &[&Label], classes: usize) -> candle_core::Result<Vec<(f32, Vec<f32>)>> {
    let flags = matrix(&labels.iter().map(|label| flags(label, classes)).collect::<Vec<_>>())?;
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
/// the classes; where the labels are `independent`, between a sigmoid for each label and its flag. The
/// cross-entropy is convex in 1/τ, so that a ternary search finds it. `None` for one class, whose probability is 1 at any τ,
/// and for fewer than [`FEWEST`] samples: one that is wrong would decide alone.
fn fitted_temperature(logits: &[Vec<f64>], shares: &[Vec<f32>], independent: bool) -> Option<f32> {
    if logits.len() < FEWEST || (!independent && shares.iter().all(|shares| shares.len() < 2)) {
        return None;
    }
    let loss = |inverse: f64| {
        if independent {
            let of_label =
                |(z, flag): (&f64, &f32)| (z * inverse).max(0.0) + (-(z * inverse).abs()).exp().ln_1p() - f64::from(*flag) * z * inverse;
            return logits.iter().flatten().zip(shares.iter().flatten()).map(of_label).sum::<f64>();
        }
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
    Some((2.0 / (low + high)) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_temperature_makes_probabilities_as_sure_as_they_are_right() {
        // Logits ±2: the first class is right three times of four, so that softmax(z / τ) = 3/4 at 4 / τ = ln 3.
        let logits = vec![vec![2.0, -2.0]; 8];
        let mut shares = vec![vec![1.0, 0.0]; 6];
        shares.extend(vec![vec![0.0, 1.0]; 2]);
        let found = fitted_temperature(&logits, &shares, false).unwrap();
        assert!((f64::from(found) - 4.0 / 3f64.ln()).abs() < 1e-3, "{found}");
        // Of independent labels: sigmoid(2 / τ) = 3/4 at 2 / τ = ln 3.
        let found = fitted_temperature(&logits, &shares, true).unwrap();
        assert!((f64::from(found) - 2.0 / 3f64.ln()).abs() < 1e-3, "{found}");
    }

    #[test]
    fn one_class_and_a_handful_of_samples_fit_no_temperature() {
        assert_eq!(fitted_temperature(&vec![vec![3.0]; 20], &vec![vec![1.0]; 20], false), None);
        assert_eq!(fitted_temperature(&vec![vec![2.0, -2.0]; 7], &vec![vec![0.0, 1.0]; 7], false), None);
    }

    #[test]
    fn the_samples_of_a_group_are_in_one_fold() {
        let groups = [Some("a"), None, Some("a"), Some("b"), None];
        assert_eq!(folds(groups.into_iter()), [0, 1, 0, 2, 3]);
        assert_eq!(folds((0..12).map(|_| None))[9..], [9, 0, 1]);
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
