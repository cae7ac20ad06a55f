//! How the allocator of glibc is kept from holding what a server that runs for months has long freed; elsewhere, nothing is done.

/// Bounds the arenas, of which there would be eight for each core: what threads that come and go have freed stays in each of them. To be called before there
/// are threads. `MALLOC_ARENA_MAX` in the environment goes first.
pub fn bound_arenas(arenas: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        // SAFETY: it takes no pointers. Refused, it changes nothing.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, libc::c_int::try_from(arenas).unwrap_or(libc::c_int::MAX));
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = arenas;
}

/// Gives freed memory back to the system. Reading a partition takes several times the memory that stays in use, and glibc keeps what is freed in pieces until it
/// is asked.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointers and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
