//! Ridge: least squares of the classes on a signal of the frozen backbone, with a ridge chosen on val items.
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ContinualLearner;
use super::features::{self, of_samples, of_split};
use super::least_squares::Regression;
use crate::data::Split;
use crate::training::{Session, TrainError};
use delo_model::input::Sample;
use delo_model::routing::keys::KeySignal;

/// The ridges that are tried, relative to the mean of the squared features.
pub(super) const RIDGES: [f64; 6] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// Settings of [`Ridge`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RidgeSettings {
    /// The signal of the frozen backbone.
    pub signal: KeySignal,
    /// The ridges that are tried on val items, relative to the mean of the squared features.
    pub ridges: Vec<f64>,
}

impl Default for RidgeSettings {
    fn default() -> Self {
        Self { signal: KeySignal::Pooled, ridges: RIDGES.to_vec() }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Ridge {
    signal: KeySignal,
    regression: Regression,
}

impl Ridge {
    /// Before the first session.
    pub fn new(settings: &RidgeSettings) -> Self {
        Self { signal: settings.signal, regression: Regression::new(&settings.ridges) }
    }
}

impl ContinualLearner for Ridge {
    fn learn(&mut self, session: &Session<'_>) -> Result<(), TrainError> {
        features::check(session, self.signal)?;
        let (train, val) = (of_split(session, Split::Train, self.signal)?, of_split(session, Split::Val, self.signal)?);
        self.regression.add(session, train, val)
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> Result<Vec<Vec<f32>>, TrainError> {
        Ok(self.regression.logits(of_samples(session, samples, self.signal)?))
    }

    fn parameters(&self) -> usize {
        0
    }

    fn head_parameters(&self) -> usize {
        self.regression.parameters()
    }

    fn choices(&self) -> Value {
        self.regression.record()
    }
}
