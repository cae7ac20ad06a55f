//! The process's limit of the size of a file (`ulimit -f`, `LimitFSIZE`).

/// Makes a write beyond the limit fail with an error, like a write to a full disk. By default the system ends
/// the process by SIGXFSZ.
pub fn fail_beyond_limit() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal installs no handler, and `signal` takes no pointer then.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
