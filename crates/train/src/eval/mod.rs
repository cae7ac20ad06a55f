//! AP, FG and routing accuracy of partitions on a data set (METHOD.md 6).
pub mod curves;
pub mod metrics;
pub mod partitions;
pub mod protocol;
pub mod report;

mod figures;
mod interval;

pub use curves::{Curves, curves};
pub use partitions::{PartitionsError, read_directory, read_embedded};
pub use protocol::{EvalError, Evaluated, Evaluation, evaluate};
pub use report::{Column, Report, SampleRecord, TaskRow};
