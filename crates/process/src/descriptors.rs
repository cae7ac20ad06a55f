//! The process's limit of open files. Each connection is an open file.

/// Descriptors that are kept from the classifier's connections: for the other ports, files and the process
/// itself. Of a limit below `2 · RESERVE`, half is kept.
const RESERVE: u64 = 384;

/// Raises the soft limit of open files to the hard one, and returns it. `None` where there is no such limit,
/// or it can't be read.
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

/// There is no such limit here.
#[cfg(not(unix))]
pub fn raise_limit() -> Option<u64> {
    None
}

/// How many connections of the classifier a process that may open `files` can have, at most `most`. The rest
/// is kept, so that operators can connect while clients hold all of these.
pub fn connections(most: usize, files: Option<u64>) -> usize {
    let Some(files) = files else { return most };
    let left = files - RESERVE.min(files / 2);
    most.min(usize::try_from(left).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_to_the_other_ports() {
        assert_eq!(connections(16_384, Some(64)), 32);
        assert_eq!(connections(16_384, Some(1024)), 640);
        assert_eq!(connections(16_384, Some(65_536)), 16_384);
        assert_eq!(connections(10, Some(1024)), 10);
        assert_eq!(connections(10, None), 10);
        assert_eq!(connections(10, Some(0)), 1);
    }
}
