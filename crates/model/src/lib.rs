//! What a sample, the frozen backbone and a partition are.
//!
//! - [`model_dir`]: a Hugging Face checkpoint directory, on disk or embedded in the binary.
//! - [`input`]: an image or a text from outside becomes a [`input::Sample`].
//! - [`vilt`]: the frozen backbone; knows no method.
//! - [`method`]: what a partition adds to the backbone.
//! - [`routing`]: how the task of a sample is decided.
//! - [`partition`]: the artifact, one file that holds what one task adds.
pub mod input;
pub mod method;
pub mod modality;
pub mod model_dir;
pub mod partition;
pub mod routing;
pub mod vilt;

pub use method::{Layout, LinearSpec, LoraSpec, Method, MethodKind, PoolSpec, TaskModel};
pub use modality::{Modality, PerModality};
pub use partition::{Partition, PartitionError, PartitionMeta};
pub use routing::{KeyAverage, KeySignal, Metric, SessionKeys};
