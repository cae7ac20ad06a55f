//! Many cells in processes, a few at a time.
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::folder::CellFolder;

/// One cell to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name of the cell.
    pub cell: String,
    /// Its folder.
    pub folder: CellFolder,
    /// The cell that must be finished before, where it is not yet.
    pub after: Option<String>,
}

/// What happens to a cell.
#[derive(Debug)]
pub enum JobEvent<'a> {
    /// Its process runs.
    Started(&'a Job),
    /// It has a result.
    Finished(&'a Job),
    /// It has none, and why; its log says more.
    Failed(&'a Job, String),
}

/// What waits and runs. Whoever changes it wakes the others.
struct Queue<'a> {
    waiting: Vec<&'a Job>,
    /// Names of the cells that wait or run.
    unfinished: BTreeSet<&'a str>,
    failed: BTreeSet<&'a str>,
}

/// Runs all jobs, at most `processes` at a time, in their order as far as they need not wait for each other.
/// `command` is the process of a cell; it must end when its standard input does, so that it does not outlive
/// this process. A cell that fails does not stop the others, except those that wait for it. Returns the
/// number of cells without a result.
pub fn run(jobs: &[Job], processes: usize, command: &(dyn Fn(&Job) -> Command + Sync), tell: &(dyn Fn(JobEvent<'_>) + Sync)) -> usize {
    let unfinished = jobs.iter().map(|job| job.cell.as_str()).collect();
    let queue = Mutex::new(Queue { waiting: jobs.iter().collect(), unfinished, failed: BTreeSet::new() });
    let changed = Condvar::new();
    std::thread::scope(|scope| {
        for _ in 0..processes.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = next(&queue, &changed) {
                    let needed = job.after.as_deref().filter(|cell| lock(&queue).failed.contains(cell));
                    let done = match needed {
                        Some(cell) => Err(format!("it needs {cell}, which failed")),
                        None => {
                            tell(JobEvent::Started(job));
                            one(job, command(job))
                        }
                    };
                    let mut state = lock(&queue);
                    state.unfinished.remove(job.cell.as_str());
                    if done.is_err() {
                        state.failed.insert(&job.cell);
                    }
                    drop(state);
                    changed.notify_all();
                    match done {
                        Ok(()) => tell(JobEvent::Finished(job)),
                        Err(problem) => tell(JobEvent::Failed(job, problem)),
                    }
                }
            });
        }
    });
    lock(&queue).failed.len()
}

/// A panic elsewhere leaves the queue whole: every change of it is one statement.
fn lock<'q, 'a>(queue: &'q Mutex<Queue<'a>>) -> MutexGuard<'q, Queue<'a>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first job that need not wait for another; `None` once all were taken.
fn next<'a>(queue: &Mutex<Queue<'a>>, changed: &Condvar) -> Option<&'a Job> {
    let mut state = lock(queue);
    loop {
        if state.waiting.is_empty() {
            return None;
        }
        let ready = state.waiting.iter().position(|job| job.after.as_deref().is_none_or(|cell| !state.unfinished.contains(cell)));
        match ready {
            Some(position) => return Some(state.waiting.remove(position)),
            None => state = changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// Runs the process of one cell to its end. What it says goes to the cell's log.
fn one(job: &Job, mut command: Command) -> Result<(), String> {
    let log = job.folder.log();
    let file = OpenOptions::new().create(true).append(true).open(&log).map_err(|e| format!("{}: {e}", log.display()))?;
    let errors = file.try_clone().map_err(|e| e.to_string())?;
    let mut child =
        command.stdin(Stdio::piped()).stdout(file).stderr(errors).spawn().map_err(|e| format!("its process does not start: {e}"))?;
    // Held until the process has ended: `wait` would close it.
    let input = child.stdin.take();
    let status = child.wait().map_err(|e| e.to_string())?;
    drop(input);
    if status.success() {
        return Ok(());
    }
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    Err(format!("{} ({}; {})", said.lines().next_back().unwrap_or("it said nothing"), ended(status), log.display()))
}

fn ended(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(dir: &std::path::Path, cell: &str, after: Option<&str>) -> Job {
        let folder = CellFolder::of(dir, cell);
        std::fs::create_dir_all(folder.path()).unwrap();
        Job { cell: cell.to_owned(), folder, after: after.map(str::to_owned) }
    }

    #[test]
    fn a_cell_waits_for_the_one_that_it_needs_and_a_failure_stops_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = [
            job(dir.path(), "child", Some("parent")),
            job(dir.path(), "parent", None),
            job(dir.path(), "bad", None),
            job(dir.path(), "orphan", Some("bad")),
        ];
        let command = |job: &Job| {
            let mut command = Command::new("sh");
            let script = match job.cell.as_str() {
                "bad" => "echo broken; exit 3".to_owned(),
                name => format!("echo {name} >> {}", dir.path().join("order").display()),
            };
            command.args(["-c", &script]);
            command
        };
        let told = Mutex::new(Vec::new());
        let tell = |event: JobEvent<'_>| match event {
            JobEvent::Started(_) => {}
            JobEvent::Finished(job) => told.lock().unwrap().push(format!("{} finished", job.cell)),
            JobEvent::Failed(job, problem) => told.lock().unwrap().push(format!("{}: {problem}", job.cell)),
        };
        assert_eq!(run(&jobs, 2, &command, &tell), 2);
        assert_eq!(std::fs::read_to_string(dir.path().join("order")).unwrap(), "parent\nchild\n");
        let told = told.into_inner().unwrap();
        let says = |words: &str| assert!(told.iter().any(|line| line.contains(words)), "{words}: {told:?}");
        for words in ["child finished", "parent finished", "bad: broken (exit code 3;", "orphan: it needs bad, which failed"] {
            says(words);
        }
    }
}
