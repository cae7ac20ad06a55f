//! gRPC services, batcher, feedback, metrics, lifecycle.
pub mod pb;
