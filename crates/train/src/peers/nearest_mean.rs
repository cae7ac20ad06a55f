//! Nearest class mean: the class whose mean signal is nearest to the sample's, by their cosine. No gradient
//! and no hyper-parameter.
use serde::{Deserialize, Serialize};

use super::ContinualLearner;
use super::features::{self, of_samples, of_split};
use crate::data::{Label, Split};
use crate::training::{Session, TrainError};
use delo_model::input::Sample;
use delo_model::routing::keys::KeySignal;

/// Settings of [`NearestMean`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NearestMeanSettings {
    /// The signal of the frozen backbone.
    pub signal: KeySignal,
}

impl Default for NearestMeanSettings {
    fn default() -> Self {
        Self { signal: KeySignal::Pooled }
    }
}

/// The means of the classes seen so far. For multi-label, a class has a mean of the samples that have it and
/// one of those that do not, and its logit is the difference of the two cosines.
#[derive(Debug)]
pub struct NearestMean {
    settings: NearestMeanSettings,
    /// With the class and, for multi-label, without it; scaled to length 1.
    classes: Vec<(Vec<f32>, Option<Vec<f32>>)>,
}

impl NearestMean {
    /// Before the first session.
    pub fn new(settings: NearestMeanSettings) -> Self {
        Self { settings, classes: Vec::new() }
    }
}

impl ContinualLearner for NearestMean {
    fn learn(&mut self, session: &Session<'_>) -> Result<(), TrainError> {
        features::check(session, self.settings.signal)?;
        let signals = of_split(session, Split::Train, self.settings.signal)?;
        let labels: Vec<&Label> = session.data.rows(session.task, Split::Train).iter().map(|&row| &session.data.items[row].label).collect();
        let has = |label: &Label, class: usize| match label {
            Label::Class(own) => *own == class,
            Label::Classes(flags) => flags[class],
        };
        for class in 0..session.data.tasks[session.task].labels.len() {
            let of =
                |wanted: bool| mean_direction(signals.iter().zip(&labels).filter(|(_, label)| has(label, class) == wanted).map(|(s, _)| s));
            self.classes.push((of(true), session.data.multi_label.then(|| of(false))));
        }
        Ok(())
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> Result<Vec<Vec<f32>>, TrainError> {
        let signals = of_samples(session, samples, self.settings.signal)?;
        let logits = |signal: &Vec<f32>| {
            let length = dot(signal, signal).sqrt().max(f32::MIN_POSITIVE);
            let cosine = |mean: &[f32]| dot(mean, signal) / length;
            self.classes.iter().map(|(with, without)| cosine(with) - without.as_deref().map_or(0.0, cosine)).collect()
        };
        Ok(signals.iter().map(logits).collect())
    }

    fn parameters(&self) -> usize {
        0
    }

    fn head_parameters(&self) -> usize {
        self.classes.iter().map(|(with, without)| with.len() + without.as_ref().map_or(0, Vec::len)).sum()
    }
}

/// The mean of some signals, scaled to length 1; empty without signals, which is a mean of 0.
fn mean_direction<'a>(signals: impl Iterator<Item = &'a Vec<f32>>) -> Vec<f32> {
    let mut sum: Vec<f32> = Vec::new();
    for signal in signals {
        sum.resize(signal.len(), 0.0);
        sum.iter_mut().zip(signal).for_each(|(sum, x)| *sum += x);
    }
    let length = dot(&sum, &sum).sqrt().max(f32::MIN_POSITIVE);
    sum.iter().map(|x| x / length).collect()
}

/// 0 where one of them is empty.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
