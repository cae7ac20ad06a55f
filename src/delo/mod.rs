//! The method: factor pools, routing, adapters, task keys, head, and the partition artifact (METHOD.md 2-4).
pub mod device_pools;
pub mod keys;
mod normal;
pub mod partition;
pub mod selection;
pub mod serving_pools;
pub mod task_model;
pub mod task_router;

pub use keys::{KeyAverage, KeySignal, Metric, SessionKeys};
pub use partition::{Partition, PartitionError, PartitionMeta};
pub use task_model::{Layout, PoolSpec, TaskModel};
pub use task_router::TaskRouter;
