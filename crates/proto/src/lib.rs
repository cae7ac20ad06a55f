//! The messages, clients and servers of `delo.v1`, generated from `proto/`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

tonic::include_proto!("delo.v1");

/// The encoded descriptors of `delo.v1`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
