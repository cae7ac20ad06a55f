//! The log of a server, as lines on stderr, best effort: a reader that has gone, a full disk or a pipe that
//! nobody empties costs lines, and nothing else.
//!
//! Lines go through a bounded queue to a thread of their own, so that no caller waits for stderr; what does
//! not fit or can't be written is counted (`delo_log_lines_lost_total`).
use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Logging};
use crate::metric_table::LOG_LINES_LOST;

/// Bytes of lines that wait to be written; more are lost.
const MAX_WAITING: usize = 1 << 20;
/// How long the end of the process waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Wait before writing again to a stderr that takes nothing.
const PAUSE: Duration = Duration::from_millis(10);

/// Why the log does not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("configuration: logging.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("can't start the thread that writes the log: {0}; raise the limit of processes and threads (ulimit -u, TasksMax)")]
    Thread(io::Error),
}

/// The queue of this process, once its log has begun.
static LINES: OnceLock<&Lines> = OnceLock::new();

/// Lines on their way to stderr.
#[derive(Default)]
struct Lines {
    state: Mutex<State>,
    /// Signalled when a line comes, and when all are written.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The thread has taken lines and not yet written them.
    writing: bool,
    /// Lines lost since the start.
    lost: u64,
    /// Lost lines that the log itself has reported.
    reported: u64,
}

impl Lines {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.bytes + line.len() > MAX_WAITING {
            self.lose(state, 1);
            return;
        }
        state.bytes += line.len();
        state.waiting.push_back(line.to_vec());
        drop(state);
        self.changed.notify_all();
    }

    fn lose(&self, mut state: MutexGuard<'_, State>, lines: u64) {
        state.lost += lines;
        let lost = state.lost;
        drop(state);
        LOG_LINES_LOST.with([]).absolute(lost);
    }

    /// Writes what comes, for ever.
    fn write_to(&self, out: &mut impl Write) {
        let mut state = self.state();
        loop {
            let lines = std::mem::take(&mut state.waiting);
            if lines.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.writing = true;
            drop(state);
            for line in &lines {
                let written = write_whole(out, line);
                let mut state = self.state();
                // What waits counts until it is written.
                state.bytes -= line.len();
                if written.is_err() {
                    self.lose(state, 1);
                } else if state.lost > state.reported {
                    let lines = state.lost - state.reported;
                    state.reported = state.lost;
                    drop(state);
                    tracing::warn!(lines, "lines of this log were lost: nothing took them from stderr");
                }
            }
            state = self.state();
            state.writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits until everything is written, at most [`LAST_LINES`].
    fn flush(&self) {
        let until = Instant::now() + LAST_LINES;
        let mut state = self.state();
        while state.writing || !state.waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// As `write_all`, and waits where a terminal or a pipe in non-blocking mode takes nothing at this moment.
fn write_whole(out: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match out.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => line = &line[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the subscriber writes to: a whole line each time.
struct ToQueue(&'static Lines);

impl Write for ToQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins the log of this process, panics included. To be called once.
///
/// # Errors
/// A filter that is none, or a system that grants no thread.
pub fn start(logging: &Logging) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&logging.filter)?;
    // As long as the process.
    let lines: &'static Lines = Box::leak(Box::default());
    std::thread::Builder::new().name("delo-log".to_owned()).spawn(|| lines.write_to(&mut io::stderr())).map_err(LogError::Thread)?;
    let _ = LINES.set(lines);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || ToQueue(lines))
        .with_ansi(coloured())
        // Otherwise it would write about its own failures to stderr by itself, and panic where that fails.
        .log_internal_errors(false);
    match logging.format {
        LogFormat::Human => subscriber.init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            tracing::error!(panic = message, place, %backtrace, "the program panicked");
        } else {
            tracing::error!(panic = message, place, "the program panicked");
        }
    }));
    Ok(())
}

/// Colours are for terminals, unless NO_COLOR asks for none (<https://no-color.org>).
fn coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Records how many lines were lost so far: lines may be lost before the first metric is recorded.
pub fn show() {
    let lost = LINES.get().map_or(0, |lines| lines.state().lost);
    LOG_LINES_LOST.with([]).absolute(lost);
}

/// Waits for the last lines, for a bounded time. Does nothing where no log has begun.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush();
    }
}

/// Writes one line to stderr, beside the log where there is one. A stderr that takes nothing is no failure.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    match LINES.get() {
        Some(lines) => {
            lines.push(line.as_bytes());
            lines.flush();
        }
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a line for each `takes`, and reports it.
    struct Reader {
        takes: mpsc::Receiver<io::Result<()>>,
        took: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Reader {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // A closed channel: the test has ended.
            self.takes.recv().unwrap_or(Ok(()))?;
            let _ = self.took.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn queue() -> (&'static Lines, mpsc::Sender<io::Result<()>>, mpsc::Receiver<Vec<u8>>) {
        let lines: &'static Lines = Box::leak(Box::default());
        let ((let_in, takes), (took, taken)) = (mpsc::channel(), mpsc::channel());
        std::thread::spawn(move || lines.write_to(&mut Reader { takes, took }));
        (lines, let_in, taken)
    }

    #[test]
    fn a_reader_that_reads_nothing_costs_lines_and_delays_nobody() {
        let (lines, let_in, taken) = queue();
        let line = [b'a'; 1 << 10];
        // Nothing is taken: were logging to wait for the reader, this would not end.
        for _ in 0..3000 {
            lines.push(&line);
        }
        assert_eq!(lines.state().lost, 3000 - 1024);
        for _ in 0..1024 {
            let_in.send(Ok(())).unwrap();
            taken.recv().unwrap();
        }
        lines.push(b"later");
        let_in.send(Ok(())).unwrap();
        assert_eq!(taken.recv().unwrap(), b"later");
    }

    #[test]
    fn a_stderr_that_fails_costs_the_line_and_the_next_one_is_tried() {
        let (lines, let_in, taken) = queue();
        lines.push(b"one");
        let_in.send(Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        lines.push(b"two");
        let_in.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        let_in.send(Err(io::ErrorKind::Interrupted.into())).unwrap();
        let_in.send(Ok(())).unwrap();
        assert_eq!(taken.recv().unwrap(), b"two");
        assert_eq!(lines.state().lost, 1);
    }
}
