//! AP, FG and routing accuracy on a data set, of partitions and of learners of all sessions (METHOD.md 6).
pub mod curves;
pub mod learner;
pub mod metrics;
pub mod paired;
pub mod partitions;
pub mod protocol;
pub mod report;

mod figures;
mod interval;

pub use curves::{Curves, curves};
pub use learner::LearnerEvaluation;
pub use partitions::{PartitionsError, read_directory, read_embedded};
pub use protocol::{EvalError, Evaluated, Evaluation, evaluate};
pub use report::{Column, Report, SampleRecord, TaskRow};
