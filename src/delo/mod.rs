//! The method: factor pools, routing, adapters, task keys, head, and the partition artifact (METHOD.md 2-4).
pub mod keys;
pub mod partition;
pub mod task_model;

pub use partition::{Partition, PartitionError, PartitionMeta};
