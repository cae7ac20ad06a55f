//! An open-loop load generator for delo.
//!
//! Requests are sent at the times of a Poisson process, whether or not earlier ones were answered, and each latency counts from the
//! time at which its request was due. A server that stalls therefore shows the stall in every request that fell into it; a generator that
//! waits for one answer before it sends the next would show one slow request and call the rest fast (coordinated omission).
//!
//! - [`scenario`]: what a run is: rate, mix, length, what must hold; one TOML file each.
//! - [`samples`], [`plan`]: the items of a data set, and the requests made of them.
//! - [`arrivals`]: when requests are due.
//! - [`target`]: something that answers requests; over gRPC, on this machine only.
//! - [`open_loop`], [`closed_loop`]: the run itself, and the measurement of capacity before and after it.
//! - [`churn`]: partitions that come and go meanwhile, and which versions were live when.
//! - [`server`], [`memory`], [`scrape`]: a server started for the run, its memory over time, its metrics.
//! - [`tally`], [`report`], [`plot`]: what was counted, and how it is printed, judged and drawn.
//! - [`run`]: all of it together.
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
