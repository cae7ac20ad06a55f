//! Requests of the process to the operating system: giving freed memory back, more open files, errors instead
//! of signals, threads.
//!
//! Invariant: the only crate of the service that calls the C library directly.
pub mod allocator;
pub mod descriptors;
pub mod durable;
pub mod file_size;
pub mod threads;
