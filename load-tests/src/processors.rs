//! The processors that the generator and a server that it starts may use.
use std::io;

/// Why the processors can't be separated.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorsError {
    #[error("--isolate needs two processors, and this process may use {0}: leave the flag out")]
    TooFew(usize),
    #[error("--isolate needs Linux: leave the flag out")]
    NotHere,
    #[error("cannot choose the processors of this process: {0}")]
    System(#[from] io::Error),
}

/// Runs `start` on all processors of this thread except the last, then keeps this thread on the last one
/// alone. Processes and threads that `start` starts keep their processors.
///
/// # Errors
/// [`ProcessorsError`]: nothing was started.
#[cfg(target_os = "linux")]
pub fn apart<T>(start: impl FnOnce() -> T) -> Result<T, ProcessorsError> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let of = |processors: &[usize]| {
        let mut set = CpuSet::new();
        processors.iter().for_each(|i| set.set(*i));
        set
    };
    let allowed = sched_getaffinity(None).map_err(io::Error::from)?;
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|i| allowed.is_set(*i)).collect();
    let Some((last, others)) = allowed.split_last().filter(|(_, others)| !others.is_empty()) else {
        return Err(ProcessorsError::TooFew(allowed.len()));
    };
    sched_setaffinity(None, &of(others)).map_err(io::Error::from)?;
    let started = start();
    sched_setaffinity(None, &of(&[*last])).map_err(io::Error::from)?;
    Ok(started)
}

/// Not supported: only Linux lets a process choose its processors.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn apart<T>(_: impl FnOnce() -> T) -> Result<T, ProcessorsError> {
    Err(ProcessorsError::NotHere)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_started_has_all_processors_but_the_one_that_is_left() {
        if std::thread::available_parallelism().unwrap().get() < 2 {
            eprintln!("skipped: it takes two processors");
            return;
        }
        // Each thread has its own processors: this test changes only its own thread.
        let allowed = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            status.lines().find_map(|l| l.strip_prefix("Cpus_allowed:")).unwrap().trim().to_owned()
        };
        let mask = |hex: &str| u128::from_str_radix(&hex.replace(',', ""), 16).unwrap();
        let before = mask(&allowed());
        let child = apart(|| Command::new("cat").arg("/proc/self/status").output().unwrap()).unwrap();
        let child = String::from_utf8(child.stdout).unwrap();
        let of_child = mask(child.lines().find_map(|l| l.strip_prefix("Cpus_allowed:")).unwrap().trim());
        let left = mask(&allowed());
        assert_eq!((left.count_ones(), of_child & left, of_child | left), (1, 0, before));
    }
}
