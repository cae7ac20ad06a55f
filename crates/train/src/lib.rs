//! Offline training of one session: data sets, missing tables, objective, optimiser, schedule and trainer (METHOD.md 5, 6).
pub mod checkpoint;
pub mod dataset;
pub mod eval;
pub mod missing;
pub mod objective;
pub mod optimiser;
pub mod prefix;
pub mod random;
pub mod samples;
pub mod schedule;
pub mod score;
pub mod settings;
pub mod step_log;
pub mod trainer;

pub use dataset::{Dataset, DatasetError, Split};
pub use missing::{MissingKind, MissingTable};
pub use settings::Settings;
pub use trainer::{Event, Outputs, Session, TrainError, Trained, train};
