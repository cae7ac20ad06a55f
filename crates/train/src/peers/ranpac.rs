//! RanPAC (McDonnell et al., 2023): ridge regression on random features, ReLU(P φ) with a fixed Gaussian P,
//! of a signal φ of the frozen backbone. The paper's first stage, adapters trained on the first session, is
//! left out.
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ContinualLearner;
use super::features::{self, Rows, of_samples, of_split};
use super::least_squares::Regression;
use super::ridge::RIDGES;
use crate::data::Split;
use crate::random::{Purpose, stream};
use crate::training::{Session, TrainError};
use delo_model::input::Sample;
use delo_model::method::normals;
use delo_model::routing::keys::KeySignal;

/// Settings of [`RanPac`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RanPacSettings {
    /// The signal of the frozen backbone.
    pub signal: KeySignal,
    /// The number of random features.
    pub features: usize,
    /// The ridges that are tried on val items, relative to the mean of the squared features.
    pub ridges: Vec<f64>,
}

impl Default for RanPacSettings {
    fn default() -> Self {
        Self { signal: KeySignal::Pooled, features: 2048, ridges: RIDGES.to_vec() }
    }
}

/// See the [module](self). P depends on the seed of the first session's settings.
#[derive(Debug)]
pub struct RanPac {
    settings: RanPacSettings,
    /// P, `[features][width]`; empty before the first session.
    projection: Rows,
    regression: Regression,
}

impl RanPac {
    /// Before the first session.
    pub fn new(settings: RanPacSettings) -> Self {
        Self { projection: Vec::new(), regression: Regression::new(&settings.ridges), settings }
    }

    /// ReLU(P φ) of each signal.
    fn features(&self, signals: &Rows) -> Rows {
        let feature = |signal: &Vec<f32>, row: &Vec<f32>| row.iter().zip(signal).map(|(p, x)| p * x).sum::<f32>().max(0.0);
        signals.iter().map(|signal| self.projection.iter().map(|row| feature(signal, row)).collect()).collect()
    }
}

impl ContinualLearner for RanPac {
    fn learn(&mut self, session: &Session<'_>) -> Result<(), TrainError> {
        let signal = self.settings.signal;
        features::check(session, signal)?;
        if self.projection.is_empty() {
            let width = signal.width(session.engine.backbone().config.hidden_size);
            let mut rng = stream(Purpose::Projection, session.settings.seed, (0, 0));
            self.projection = normals(&mut rng, self.settings.features * width).chunks_exact(width).map(<[f32]>::to_vec).collect();
        }
        let of = |split| Ok::<_, TrainError>(self.features(&of_split(session, split, signal)?));
        let (train, val) = (of(Split::Train)?, of(Split::Val)?);
        self.regression.add(session, train, val)
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> Result<Vec<Vec<f32>>, TrainError> {
        Ok(self.regression.logits(self.features(&of_samples(session, samples, self.settings.signal)?)))
    }

    /// The projection is random: nothing of it is learnt.
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
