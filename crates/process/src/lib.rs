//! Requests of the process to the operating system: giving freed memory back, more open files, errors instead
//! of signals, threads.
//!
//! Invariant: no other crate changes limits, signals or the allocator of the process.
pub mod allocator;
pub mod descriptors;
pub mod durable;
pub mod file_size;
pub mod threads;
