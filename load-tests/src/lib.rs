//! An open-loop load generator for delo.
//!
//! Requests are sent at the times of a Poisson process, whether or not earlier ones were answered, and each
//! latency counts from the time at which its request was due. The stall of a server therefore shows in every
//! request that was due during the stall. A generator that waits for one answer before it sends the next
//! request would report one slow request and many fast ones (coordinated omission).
//!
//! - [`scenario`]: the description of a run in a TOML file: rate, mix, length, expectations.
//! - [`samples`], [`plan`]: the items of a data set, and the requests made of them.
//! - [`arrivals`]: when requests are due.
//! - [`target`]: a server that answers requests; over gRPC, on this machine only.
//! - [`open_loop`], [`closed_loop`]: the run itself, and the measurement of capacity before and after it.
//! - [`churn`]: loads and unloads of partitions during the run, and when each version was live.
//! - [`server`], [`memory`], [`scrape`]: a server started for the run, its memory over time, its metrics.
//! - [`tally`], [`report`], [`plot`]: the counts, and how they are printed, judged and drawn.
//! - [`run`]: one run from start to report.
//! - [`export`]: the requests as a file for other generators.

pub mod arrivals;
pub mod churn;
pub mod closed_loop;
pub mod export;
pub mod memory;
pub mod open_loop;
pub mod plan;
pub mod plot;
pub mod processors;
pub mod report;
pub mod run;
pub mod samples;
pub mod scenario;
pub mod scrape;
pub mod server;
pub mod tally;
pub mod target;

/// Messages, client and server of `delo.v1`.
pub use delo_proto as pb;
