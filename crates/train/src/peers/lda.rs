//! LDA alone: linear discriminant analysis over the classes of all sessions, on a signal of the frozen
//! backbone (ROUTING.md 7). Each session leaves its class statistics. The ridge is chosen on val items.
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ContinualLearner;
use super::features::{self, Rows, of_samples, of_split};
use super::val::Candidates;
use crate::data::{Label, Split};
use crate::training::statistics::{matrix, positive, shares};
use crate::training::{Session, TrainError};
use delo_model::analytic::label_odds;
use delo_model::discriminant::{Discriminant, Linear, Statistics};
use delo_model::input::Sample;
use delo_model::routing::keys::{KeyAverage, KeySignal, SessionKeys, Signals};

/// Settings of [`Lda`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LdaSettings {
    /// The signal of the frozen backbone; `None`: the one that the served rule has
    /// ([`KeySignal::standard`]).
    pub signal: Option<KeySignal>,
    /// λ of the ridge ([`Discriminant`]): those that are tried on val items.
    pub ridges: Vec<f64>,
}

impl Default for LdaSettings {
    fn default() -> Self {
        Self { signal: None, ridges: vec![2.0, 0.01, 0.03, 0.1, 0.3, 1.0, 4.0, 8.0] }
    }
}

/// What a session leaves.
#[derive(Debug)]
struct OneSession {
    keys: SessionKeys,
    /// For multi-label: for each label, the samples that have it and their mean signal.
    positive: Vec<(f32, Vec<f32>)>,
    classes: usize,
}

/// See the [module](self). For multi-label, each label is told from its absence among the samples of its
/// session.
#[derive(Debug)]
pub struct Lda {
    settings: LdaSettings,
    candidates: Candidates<f64>,
    sessions: Vec<OneSession>,
    /// Of the best ridge.
    linear: Linear,
    width: usize,
}

impl Lda {
    /// Before the first session.
    pub fn new(settings: LdaSettings) -> Self {
        let candidates = Candidates::new(settings.ridges.clone());
        Self { settings, candidates, sessions: Vec::new(), linear: Linear { weights: Vec::new(), biases: Vec::new() }, width: 0 }
    }

    fn signal(&self, session: &Session<'_>) -> KeySignal {
        let config = &session.engine.backbone().config;
        self.settings.signal.unwrap_or_else(|| KeySignal::standard(config.num_hidden_layers, config.hidden_size))
    }

    /// The classifier over the classes of all sessions.
    fn solve(&self, signal: KeySignal, ridge: f64) -> Result<Linear, TrainError> {
        let missing = || candle_core::Error::Msg(format!("no class statistics of {signal}"));
        let statistics: Vec<Statistics<'_>> =
            self.sessions.iter().map(|session| session.keys.statistics(signal).ok_or_else(missing)).collect::<Result<_, _>>()?;
        let metric = Discriminant::of(&statistics, self.width, ridge)
            .map_err(|e| candle_core::Error::Msg(format!("the signals of the sessions do not differ: {e}")))?;
        let mut all = Linear { weights: Vec::new(), biases: Vec::new() };
        for (session, statistics) in self.sessions.iter().zip(&statistics) {
            let of_session = if session.positive.is_empty() {
                metric.classes(statistics.means)
            } else {
                let mean = session.keys.key(signal, KeyAverage::Mean).ok_or_else(missing)?;
                label_odds(&metric, statistics.samples(), mean, &session.positive)
            };
            // The samples without a label are a class of the statistics alone.
            all.weights.extend(&of_session.weights[..session.classes * self.width]);
            all.biases.extend(&of_session.biases[..session.classes]);
        }
        Ok(all)
    }

    fn logits_of(&self, linear: &Linear, signals: &Rows) -> Rows {
        let logit = |weight: &[f64], bias: &f64, signal: &Vec<f32>| {
            (bias + weight.iter().zip(signal).map(|(w, x)| w * f64::from(*x)).sum::<f64>()) as f32
        };
        let of_sample = |signal: &Vec<f32>| {
            linear.weights.chunks_exact(self.width).zip(&linear.biases).map(|(weight, bias)| logit(weight, bias, signal)).collect()
        };
        signals.iter().map(of_sample).collect()
    }
}

impl ContinualLearner for Lda {
    fn learn(&mut self, session: &Session<'_>) -> Result<(), TrainError> {
        let signal = self.signal(session);
        features::check(session, signal)?;
        let values = matrix(&of_split(session, Split::Train, signal)?)?;
        let data = session.data;
        let labels: Vec<&Label> = data.rows(session.task, Split::Train).iter().map(|&row| &data.items[row].label).collect();
        let classes = data.tasks[session.task].labels.len();
        let keys = SessionKeys::of(&Signals::from([(signal, values.clone())]), &[signal], Some(&matrix(&shares(&labels, classes))?))?;
        let positive = if data.multi_label { positive(&values, &labels, classes)? } else { Vec::new() };
        self.width = values.dim(1)?;
        self.sessions.push(OneSession { keys, positive, classes });
        let solved = self.candidates.iter().map(|ridge| self.solve(signal, ridge)).collect::<Result<Vec<_>, _>>()?;
        let val = of_split(session, Split::Val, signal)?;
        let logits: Vec<Rows> = solved.iter().map(|linear| self.logits_of(linear, &val)).collect();
        self.candidates.add(session, &logits);
        self.linear = solved.into_iter().nth(self.candidates.best()).unwrap_or_else(|| self.linear.clone());
        Ok(())
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> Result<Vec<Vec<f32>>, TrainError> {
        Ok(self.logits_of(&self.linear, &of_samples(session, samples, self.signal(session))?))
    }

    fn parameters(&self) -> usize {
        0
    }

    fn head_parameters(&self) -> usize {
        self.linear.weights.len() + self.linear.biases.len()
    }

    fn choices(&self) -> Value {
        self.candidates.record()
    }
}
