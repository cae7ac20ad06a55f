//! Training of one session: objective, optimiser, schedule, frozen prefix, checkpoints and the trainer that
//! joins them (METHOD.md 5).

pub mod checkpoint;
pub mod error;
pub mod objective;
pub mod optimiser;
pub mod prefix;
pub mod schedule;
pub mod sequence;
pub mod session;
pub mod settings;
pub(crate) mod statistics;
mod step_log;
mod steps;
pub mod trainer;

pub use error::TrainError;
pub use objective::AlignedLayers;
pub use sequence::{KeyChoices, artifact_names, settings_to_renew};
pub use session::{Session, settings_of};
pub use settings::{MIXED_HEAD, Settings, SettingsError};
pub use step_log::StepRecord;
pub use trainer::{Event, Outputs, Trained, renew, train};
