//! delo: task-agnostic inference and offline training of partitions on a frozen ViLT. This crate is the service and its
//! command line; below it stand `delo-engine`, `delo-train`, `delo-registry` and the crates on which they build.
//!
//! - [`config`]: layered settings.
//! - [`logging`]: the log of a server, best effort.
//! - [`metric_table`]: the metrics, one row each.
//! - [`record`]: the lines of a file of decision records, which `serve` writes and `delo replay` reads.
//! - [`serve`]: gRPC services, the policies around every call, queue and batcher, feedback, metrics, lifecycle.
//! - [`bench`](mod@bench): how fast the engine is on this machine.
//! - [`telemetry`]: where traces go.
//! - [`cli`]: the command line; parses, calls one function of the modules above or of a crate below, prints.
pub mod bench;
pub mod cli;
pub mod config;
pub mod logging;
pub mod metric_table;
pub mod record;
pub mod serve;
pub mod telemetry;
