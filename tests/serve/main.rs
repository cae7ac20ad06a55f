//! A real server in this process, over real sockets.
#[path = "../common/mod.rs"]
mod common;
mod harness;

mod artifacts;
mod classifying;
mod lifecycle;
mod operations;
mod overload;
mod network;
mod requests;
mod rollout;
mod security;
mod streaming;
mod swapping;
mod trust;
