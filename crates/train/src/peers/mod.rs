//! The systems that DeLo is compared with (METHOD.md 8): each learns the sessions of a data set one after
//! another on the same frozen backbone, keeps no data of earlier sessions, and predicts over all classes that
//! it has seen, one sample at a time, without being told the task.
//!
//! One file each. They are for tables: an artifact, which a server loads, is made by [`crate::training`].

pub mod dualprompt;
mod features;
mod fit;
mod heads;
mod hidden_side;
pub mod inflora;
pub mod joint_head;
pub mod l2p;
pub mod lda;
mod least_squares;
pub mod linear_head;
mod logistic;
pub mod map;
pub mod msp;
pub mod named;
pub mod nearest_mean;
pub mod ranpac;
pub mod rebq;
pub mod ridge;
mod subspace;
#[cfg(test)]
mod testing;
mod val;
mod weighted_pool;

use serde_json::Value;

use super::training::{Session, TrainError};
use delo_model::input::Sample;

/// A learner that sees sessions one after another.
pub trait ContinualLearner {
    /// Learns one session. Sessions come in the data set's order, each once; of the data set only the items of
    /// the session's task are read. Hyper-parameters of the optimiser are those of [`Session::settings`].
    ///
    /// # Errors
    /// An image that cannot be read; a failed forward pass; a loss that is not finite.
    fn learn(&mut self, session: &Session<'_>) -> Result<(), TrainError>;

    /// The logits of each sample over all classes seen so far, in the order in which the sessions brought them:
    /// `samples` rows. The result for a sample does not depend on the others.
    ///
    /// # Errors
    /// A failed forward pass.
    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> Result<Vec<Vec<f32>>, TrainError>;

    /// Learnt numbers without the heads, after the sessions until now.
    fn parameters(&self) -> usize;

    /// Learnt numbers of the heads, after the sessions until now.
    fn head_parameters(&self) -> usize {
        0
    }

    /// What was chosen on val items, by name, for the record of a benchmark. Null: nothing.
    fn choices(&self) -> Value {
        Value::Null
    }

    /// Gradient steps of the sessions until now.
    fn steps(&self) -> usize {
        0
    }
}
