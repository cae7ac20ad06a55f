//! How the task of a sample is decided: signals of the frozen backbone, what a session stores of them, and the rule (METHOD.md 4, ROUTING.md).
pub mod keys;
pub mod task_router;

pub use keys::{KeyAverage, KeySignal, Metric, SessionKeys};
pub use task_router::TaskRouter;
