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

/// A thread's share of the tasks, on cache lines of its own: to the threads of other core complexes, a line that all of them write costs more than
/// a small task.
#[repr(align(128))]
struct Share {
    next: AtomicUsize,
    end: usize,
}

impl Share {
    /// The next task that nobody has taken.
    fn take(&self) -> Option<usize> {
        // Only the number matters: what the work reads was written before the threads were woken.
        let left = self.next.load(Ordering::Relaxed) < self.end;
        left.then(|| self.next.fetch_add(1, Ordering::Relaxed)).filter(|task| *task < self.end)
    }
}

/// Calls `work` with each number below `tasks` once, on the threads of the current pool.
///
/// Each thread has neighbouring numbers for its share, the first thread the first ones, and helps the others when it is done. So where numbers follow the
/// rows of a stream, a thread finds in its own cache most of what it reads, since it wrote that itself.
pub fn parallel(tasks: usize, work: impl Fn(usize) + Sync) {
    let threads = threads();
    if threads.min(tasks) <= 1 {
        (0..tasks).for_each(work);
        return;
    }
    let first = |thread: usize| thread * tasks / threads;
    let shares: Vec<Share> = (0..threads).map(|i| Share { next: AtomicUsize::new(first(i)), end: first(i + 1) }).collect();
    let worker = || {
        let (others, own) = shares.split_at(rayon::current_thread_index().unwrap_or(0));
        own.iter().chain(others).for_each(|share| std::iter::from_fn(|| share.take()).for_each(&work));
    };
    rayon::scope(|scope| {
        (1..threads.min(tasks)).for_each(|_| scope.spawn(|_| worker()));
        worker();
    });
}
