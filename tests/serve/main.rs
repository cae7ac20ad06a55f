//! A real server in this process, over real sockets.
#[path = "../common/authority.rs"]
mod authority;
mod harness;
mod identity;

mod artifacts;
mod classifying;
mod http;
mod lifecycle;
mod long_texts;
mod methods;
mod network;
mod operations;
mod overload;
mod registry;
mod requests;
mod rollout;
mod security;
mod streaming;
mod swapping;
mod tracing;
mod trust;
mod web;
