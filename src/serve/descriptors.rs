//! The process's limit of open files, which is one of connections.

/// Raises the soft limit of open files to the hard one, and says what it is then. `None` where there is no such limit, or it can't be read.
#[cfg(unix)]
pub fn raise_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is one `rlimit`, valid for writes during the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return None;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: `raised` is one `rlimit`, valid for reads during the call.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0;
    Some(if done { raised.rlim_cur } else { limit.rlim_cur })
}

#[cfg(not(unix))]
pub fn raise_limit() -> Option<u64> {
    None
}
