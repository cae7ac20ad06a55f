//! The method: factor pools, routing, adapters, task keys, head, and the partition artifact (METHOD.md 2-4).
pub mod partition;

pub use partition::{Partition, PartitionError, PartitionMeta};
