//! Sharing pieces of work among the threads of the pool.
use std::sync::atomic::{AtomicUsize, Ordering};

/// Makes the one compute pool of this process, of `threads` threads, by default one for each core that the
/// process may use. Where every core has its thread, each thread is pinned to its core; fewer threads run
/// where the system puts them.
///
/// # Errors
/// There is a pool already, or the system does not grant the threads.
pub fn make_pool(threads: Option<usize>) -> Result<(), rayon::ThreadPoolBuildError> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or(usable);
    let pinned = threads == cores.len() && threads == usable;
    let start = move |index: usize| {
        if let Some(core) = cores.get(index).filter(|_| pinned) {
            // A thread that cannot be pinned works too.
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

/// The tasks of one thread, on cache lines of their own: a line that threads of several core complexes write
/// costs them more than a small task.
#[repr(align(128))]
struct TaskRange {
    next: AtomicUsize,
    end: usize,
}

impl TaskRange {
    /// The next task that no thread has taken.
    fn take(&self) -> Option<usize> {
        // Relaxed: the threads exchange only the number. What the work reads was written before they were
        // woken.
        let left = self.next.load(Ordering::Relaxed) < self.end;
        left.then(|| self.next.fetch_add(1, Ordering::Relaxed)).filter(|task| *task < self.end)
    }
}

/// Calls `work` with each number below `tasks` once, on the threads of the current pool.
///
/// Each thread begins with a range of neighbouring numbers, the first thread with the first ones, and helps
/// the others when it is done. Where numbers follow the rows of a matrix, a thread therefore finds most of
/// what it reads in its own cache, since it wrote it.
pub fn parallel(tasks: usize, work: impl Fn(usize) + Sync) {
    let threads = threads();
    if threads.min(tasks) <= 1 {
        (0..tasks).for_each(work);
        return;
    }
    let first = |thread: usize| thread * tasks / threads;
    let ranges: Vec<TaskRange> = (0..threads).map(|i| TaskRange { next: AtomicUsize::new(first(i)), end: first(i + 1) }).collect();
    let worker = || {
        let (others, own) = ranges.split_at(rayon::current_thread_index().unwrap_or(0));
        own.iter().chain(others).for_each(|range| std::iter::from_fn(|| range.take()).for_each(&work));
    };
    rayon::scope(|scope| {
        (1..threads.min(tasks)).for_each(|_| scope.spawn(|_| worker()));
        worker();
    });
}
