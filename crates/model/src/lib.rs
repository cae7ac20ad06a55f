//! What a sample, the frozen backbone, a method, a task decision and a partition are (METHOD.md 1 to 4).
//!
//! | module | holds |
//! | --- | --- |
//! | [`model_dir`] | a Hugging Face checkpoint directory, on disk or embedded in the binary |
//! | [`modality`] | the modalities, image and text, and one value for each of them |
//! | [`input`] | samples from image files and texts: decoding, resizing, tokens, hard limits |
//! | [`vilt`] | the frozen backbone and its padded forward, the reference of the faster ones; no method |
//! | [`method`] | what a partition adds to the backbone: the interface of methods, one file for each |
//! | [`routing`] | how the task of a sample is decided: signals, task keys, and one file for each metric |
//! | [`discriminant`] | linear discriminant analysis from the statistics of classes |
//! | [`analytic`] | the analytic classifier of a task, and its mixture with the head |
//! | [`partition`] | the artifact, one file with what one task adds, and the same bound to a backbone |
//!
//! **Invariant: it knows no batch, no thread and no device.** It says what one sample, one partition and one
//! decision are; the engine computes many of them together.

#![warn(missing_docs)]

pub mod analytic;
pub mod discriminant;
pub mod input;
pub mod method;
pub mod modality;
pub mod model_dir;
pub mod partition;
pub mod routing;
pub mod vilt;

pub use method::{DualPromptSpec, L2pSpec, Layout, LinearSpec, LoraSpec, Method, MethodKind, PoolSpec, TaskModel};
pub use modality::{Modality, PerModality};
pub use partition::{Partition, PartitionError, PartitionMeta};
pub use routing::{KeyAverage, KeySignal, Metric, SessionKeys};
