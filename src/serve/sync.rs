//! Locks and threads of the batcher: those of the standard library, or with the feature `shuttle` those of a
//! scheduler that runs a test under many schedules.
#[cfg(not(feature = "shuttle"))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};

#[cfg(feature = "shuttle")]
pub use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Starts a named thread.
///
/// # Errors
/// The operating system grants no thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    #[cfg(not(feature = "shuttle"))]
    use std::thread;

    #[cfg(feature = "shuttle")]
    use shuttle::thread;

    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}
