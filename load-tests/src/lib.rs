//! An open-loop load generator for delo.
//!
//! Requests are sent at the times of a Poisson process, whether or not earlier ones were answered, and each latency counts from the
//! time at which its request was due. A server that stalls therefore shows the stall in every request that fell into it; a generator that
//! waits for one answer before it sends the next would show one slow request and call the rest fast (coordinated omission).
//!
//! - [`scenario`]: what a run is: rate, mix, length, what must hold; one TOML file each.
//! - [`samples`]: requests made of a data set's items.
//! - [`arrivals`]: when requests are due.
//! - [`target`]: something that answers requests; over gRPC, on this machine only.
//! - [`open_loop`], [`closed_loop`]: the run itself, and the measurement of capacity before it.
//! - [`tally`], [`report`]: what was counted, and how it is printed and judged.
//! - [`server`]: a server started for the run.

pub mod arrivals;
pub mod closed_loop;
pub mod open_loop;
pub mod report;
pub mod samples;
pub mod scenario;
pub mod server;
pub mod tally;
pub mod target;

/// Messages, client and server of `delo.v1`.
pub mod pb {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    tonic::include_proto!("delo.v1");
}
