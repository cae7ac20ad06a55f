//! Offline training of one task, and evaluation of partitions (METHOD.md 5, 6).
//!
//! | module | holds |
//! | --- | --- |
//! | [`data`] | what a data set is: items, missing modalities, samples, scores of predictions |
//! | [`training`] | one session: objective, optimiser, schedule, frozen prefix, checkpoints, trainer |
//! | [`peers`] | the systems that DeLo is compared with |
//! | [`eval`] | AP, FG and routing accuracy of partitions and of those systems |
//! | [`SignalStore`] | signals of the frozen backbone, which runs share |
//! | [`random`] | random streams that are the same on every machine |
//!
//! `training` and `eval` know `data`, `peers` knows `training`, and `eval` knows the interface of `peers`.
//!
//! Invariant: the result of a session is a function of its data, settings, seed and backbone alone. The
//! number of threads, the memory for kept states and interruptions change how long it takes, and no bit of
//! the artifact.

#![warn(missing_docs)]

pub mod data;
pub mod eval;
pub mod peers;
pub mod random;
mod signals;
pub mod training;

pub use data::{Dataset, DatasetError, MissingKind, MissingTable, Split};
pub use signals::SignalStore;
pub use training::{Event, Outputs, Session, Settings, TrainError, Trained, renew, settings_of, train};
