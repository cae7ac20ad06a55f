//! A check that the system grants the threads that a server or a client needs.
use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

/// The system does not grant them.
#[derive(Debug, thiserror::Error)]
#[error(
    "the system lets this process start {granted} of the {wanted} threads that it needs: raise the limit of processes and threads (ulimit -u, \
     LimitNPROC and TasksMax in a systemd unit, --pids-limit of a container), or set a server's model.threads lower: {source}"
)]
pub struct TooFew {
    granted: usize,
    wanted: usize,
    source: io::Error,
}

/// Starts `wanted` threads at once and ends them again. A runtime that lacks one of its threads would panic
/// or wait forever, without an error that says what to do.
///
/// # Errors
/// Not all of them start.
pub fn try_to_start(wanted: usize) -> Result<(), TooFew> {
    let mut threads: Vec<(mpsc::Sender<()>, JoinHandle<()>)> = Vec::new();
    let mut refused = None;
    while threads.len() < wanted {
        let (end, ended) = mpsc::channel();
        // Until the sender is dropped.
        let wait = move || {
            let _ = ended.recv();
        };
        match Builder::new().spawn(wait) {
            Ok(thread) => threads.push((end, thread)),
            Err(source) => {
                refused = Some(TooFew { granted: threads.len(), wanted, source });
                break;
            }
        }
    }
    for (end, thread) in threads {
        drop(end);
        // An error would be a panic of the thread, and it can't panic.
        let _ = thread.join();
    }
    refused.map_or(Ok(()), Err)
}
