//! The messages, clients and servers of `delo.v1` and of the Open Inference Protocol, generated from `proto/`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

tonic::include_proto!("delo.v1");

#[cfg(feature = "json")]
pub mod json;

/// The Open Inference Protocol, version 2.
pub mod inference {
    tonic::include_proto!("inference");
}

/// The encoded descriptors of both packages, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
