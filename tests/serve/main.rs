//! A real server in this process, over real sockets.
#[path = "../common/mod.rs"]
mod common;
mod harness;

mod artifacts;
mod classifying;
mod lifecycle;
mod overload;
mod rollout;
mod streaming;
mod operations;
mod requests;
mod swapping;
