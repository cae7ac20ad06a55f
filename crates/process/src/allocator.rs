//! Keeps the allocator of glibc from holding memory that the server has freed; other allocators are left as
//! they are.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// An allocation of at least this many bytes is a mapping of its own, which goes back to the system when it
/// is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED: libc::c_int = 4 << 20;
/// Freed memory at the end of an arena goes back to the system when it is more than this many bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIMMED: libc::c_int = 8 << 20;

/// Sets the most arenas of the allocator, and fixes its two thresholds. To be called before there are
/// threads. The variables `MALLOC_ARENA_MAX`, `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` of the
/// environment go first.
///
/// By default there are eight arenas for each core, and each keeps what threads that have ended freed in it.
/// The thresholds grow by themselves to 32 and 64 MiB by default, and [`trim_now`] does not reach the end of
/// most arenas.
pub fn bound_arenas(arenas: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (variable, parameter, value) in [
        ("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, MAPPED),
        ("MALLOC_TRIM_THRESHOLD_", libc::M_TRIM_THRESHOLD, TRIMMED),
        ("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, libc::c_int::try_from(arenas).unwrap_or(libc::c_int::MAX)),
    ] {
        if std::env::var_os(variable).is_none() {
            // SAFETY: mallopt takes no pointers. Refused, it changes nothing.
            unsafe {
                libc::mallopt(parameter, value);
            }
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = arenas;
}

/// Time from a request to trim until it is carried out.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const DELAY: Duration = Duration::from_secs(1);

/// Gives freed memory back to the system, and requests that once more ([`request_trim`]): by then, memory
/// that calls and batches in flight still use is free too. Reading a partition takes several times the memory
/// that stays in use, and glibc keeps small freed pieces until it is trimmed. Blocking.
pub fn trim_now() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    trim();
    request_trim();
}

/// Gives freed memory back to the system one to two seconds from now, at most once a second however often it
/// is called. Returns at once.
pub fn request_trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let before = std::mem::replace(&mut *trim_request(), TrimRequest::New);
        if before == TrimRequest::None && std::thread::Builder::new().name("trim".into()).spawn(run_requested_trims).is_err() {
            *trim_request() = TrimRequest::None;
        }
    }
}

/// Whether a trim is requested. A thread runs while it is not `None`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[derive(Clone, Copy, PartialEq, Eq)]
enum TrimRequest {
    None,
    /// The thread has not read it yet.
    New,
    /// The thread has read it and will trim.
    Accepted,
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim_request() -> MutexGuard<'static, TrimRequest> {
    static REQUEST: Mutex<TrimRequest> = Mutex::new(TrimRequest::None);
    REQUEST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Trims until no new request came during the last trim.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn run_requested_trims() {
    let accept = || {
        let mut request = trim_request();
        *request = if *request == TrimRequest::New { TrimRequest::Accepted } else { TrimRequest::None };
        *request == TrimRequest::Accepted
    };
    while accept() {
        std::thread::sleep(DELAY);
        trim();
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: it takes no pointers and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
