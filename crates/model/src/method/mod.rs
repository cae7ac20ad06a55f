//! The method: factor pools, factor routing, adapters and the head (METHOD.md 2-3).
pub mod device_pools;
mod normal;
pub mod selection;
pub mod serving_pools;
pub mod task_model;

pub use task_model::{Layout, PoolSpec, TaskModel};
