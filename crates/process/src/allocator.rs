//! How the allocator of glibc is kept from holding what a server that runs for months has long freed; elsewhere, nothing is done.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// From this size on, in bytes, an allocation is a mapping of its own, which goes back to the system when it is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED: libc::c_int = 4 << 20;
/// Freed bytes at the end of an arena, beyond which they go back to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIMMED: libc::c_int = 8 << 20;

/// Bounds the arenas, of which there would be eight for each core: what threads that come and go have freed stays in each of them. And keeps the two sizes fixed that grow
/// to 32 and 64 MiB by themselves, since [`give_back`] does not reach the end of most arenas. To be called before there are threads.
/// `MALLOC_ARENA_MAX`, `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` in the environment go first.
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

/// From a wish to give memory back to its being done.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const DELAY: Duration = Duration::from_secs(1);

/// Gives freed memory back to the system, and once more as [`give_back_soon`] does: by then what was still in use by calls and batches under way is free too.
/// Reading a partition takes several times the memory that stays in use, and glibc keeps what is freed in pieces until it is asked.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    trim();
    give_back_soon();
}

/// Gives freed memory back to the system one to two seconds from now, and once a second however often it is called. Returns at once.
pub fn give_back_soon() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let before = std::mem::replace(&mut *wish(), Wish::New);
        if before == Wish::None && std::thread::Builder::new().name("give-back".into()).spawn(fulfil).is_err() {
            *wish() = Wish::None;
        }
    }
}

/// Whether memory is to be given back. A thread sees to it unless there is no wish.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    None,
    /// Since the thread last looked.
    New,
    Seen,
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn wish() -> MutexGuard<'static, Wish> {
    static WISH: Mutex<Wish> = Mutex::new(Wish::None);
    WISH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Until no new wish came while the last was fulfilled.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn fulfil() {
    let is_new = || {
        let mut wish = wish();
        *wish = if *wish == Wish::New { Wish::Seen } else { Wish::None };
        *wish == Wish::Seen
    };
    while is_new() {
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
