//! Sharing pieces of work among the threads of the pool.
use std::sync::atomic::{AtomicUsize, Ordering};

/// Makes the one compute pool of this process: `threads` of them, or as many as the process may use cores. Where each has a core of its own, it
/// is pinned to it; fewer threads than cores go where the system puts them, beside whatever else runs.
///
/// # Errors
/// A pool that exists already, or threads that the system does not grant.
pub fn make_pool(threads: Option<usize>) -> Result<(), rayon::ThreadPoolBuildError> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or(usable);
    let pinned = threads == cores.len() && threads == usable;
    let start = move |index: usize| {
        if let Some(core) = cores.get(index).filter(|_| pinned) {
            // Where a thread cannot be pinned, it works all the same.
            core_affinity::set_for_current(*core);
        }
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("delo-compute-{index}"))
        .start_handler(start)
        .build_global()
}

/// Threads of the current pool.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `work` with each number below `tasks` once, on the threads of the current pool; the next free thread takes the next number.
pub fn parallel(tasks: usize, work: impl Fn(usize) + Sync) {
    let threads = threads().min(tasks);
    if threads <= 1 {
        (0..tasks).for_each(work);
        return;
    }
    let next = AtomicUsize::new(0);
    let worker = || {
        loop {
            // Only the number matters: what the work reads was written before the threads were woken.
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task);
        }
    };
    rayon::scope(|scope| {
        (1..threads).for_each(|_| scope.spawn(|_| worker()));
        worker();
    });
}
