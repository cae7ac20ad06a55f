//! Keeps records of decisions and outcomes in a bounded file, for `delo replay`.
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use metrics::Counter;

use super::seldom::Seldom;
use crate::config;
use crate::metric_table::DECISION_RECORDS;
use crate::record::{Decision, Outcome, Payload, Record};
use delo_proto::ClassifyRequest;

/// Records that wait to be written, and the bytes of their payloads: one more is dropped, since no request waits for
/// the disk.
const MOST_WAITING: usize = 1024;
const MOST_WAITING_BYTES: usize = 64 << 20;

/// Where records go; nowhere without `records.file`.
#[derive(Debug, Default)]
pub struct Records(Option<Keeping>);

#[derive(Debug)]
struct Keeping {
    sample_share: f64,
    payload: bool,
    waiting_bytes: Arc<AtomicUsize>,
    writer: Mutex<Option<(SyncSender<Record>, JoinHandle<()>)>>,
    dropped: Counter,
}

/// What a record has of a request.
#[derive(Debug)]
pub struct Asked {
    pub given_task: String,
    pub reject: Option<f32>,
    pub payload: Option<Payload>,
}

impl Records {
    /// Opens the file, whose records stay.
    ///
    /// # Errors
    /// The file can't be written, or no thread can be had.
    pub fn open(settings: &config::Records) -> io::Result<Self> {
        let Some(path) = &settings.file else { return Ok(Self(None)) };
        // The thread that writes has no recorder of its own: the counters are taken here.
        let (waiting_bytes, dropped) = (Arc::<AtomicUsize>::default(), DECISION_RECORDS.with(["dropped"]));
        let mut writer = Writer {
            file: BoundedFile::open(path, settings.max_bytes as u64)?,
            waiting_bytes: waiting_bytes.clone(),
            written: DECISION_RECORDS.with(["written"]),
            dropped: DECISION_RECORDS.with(["dropped"]),
            failures: Seldom::default(),
        };
        writer.written.increment(0);
        writer.dropped.increment(0);
        let (sender, records) = sync_channel(MOST_WAITING);
        let thread = std::thread::Builder::new().name("records".to_owned()).spawn(move || writer.write_all(&records))?;
        let (sample_share, payload, writer) = (settings.sample_share, settings.payload, Mutex::new(Some((sender, thread))));
        Ok(Self(Some(Keeping { sample_share, payload, waiting_bytes, writer, dropped })))
    }

    /// What a record has of a request, to be taken before the request is consumed. `None` where nothing is recorded.
    pub fn asked(&self, request: &ClassifyRequest) -> Option<Asked> {
        let keeping = self.0.as_ref()?;
        let payload = || Payload { image: request.image.clone(), text: request.text.clone() };
        Some(Asked { given_task: request.task.clone(), reject: request.reject, payload: keeping.payload.then(payload) })
    }

    /// Whether the decision about a request of this id is recorded, and its outcome. `ticket`: the hash of the id.
    pub fn samples(&self, ticket: u64) -> bool {
        // The ticket's own order decides between a version and its canary: the share of both must be sampled alike.
        let uniform = (ticket.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64;
        self.0.as_ref().is_some_and(|keeping| uniform < keeping.sample_share)
    }

    /// Records a decision; [`Self::samples`] says whether to.
    pub fn decided(&self, decision: Decision) {
        self.send(Record::Decision(Box::new(decision)));
    }

    /// Records an outcome; [`Self::samples`] says whether to.
    pub fn turned_out(&self, outcome: Outcome) {
        self.send(Record::Outcome(outcome));
    }

    fn send(&self, record: Record) {
        let Some(keeping) = &self.0 else { return };
        let bytes = payload_bytes(&record);
        let fits = |waiting: usize| waiting.checked_add(bytes).filter(|sum| *sum <= MOST_WAITING_BYTES);
        let has_room = keeping.waiting_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        let writer = keeping.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = has_room && writer.as_ref().is_some_and(|(sender, _)| sender.try_send(record).is_ok());
        if !sent {
            keeping.dropped.increment(1);
            if has_room {
                keeping.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }

    /// Waits until what was recorded is in the file; what comes later is dropped. Blocks.
    pub fn close(&self) {
        let Some(keeping) = &self.0 else { return };
        let writer = keeping.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, thread)) = writer {
            drop(sender);
            // A panic of the thread has been logged.
            let _ = thread.join();
        }
    }
}

fn payload_bytes(record: &Record) -> usize {
    let Record::Decision(decision) = record else { return 0 };
    let bytes = |payload: &Payload| payload.image.as_ref().map_or(0, bytes::Bytes::len) + payload.text.as_ref().map_or(0, String::len);
    decision.payload.as_ref().map_or(0, bytes)
}

struct Writer {
    file: BoundedFile,
    waiting_bytes: Arc<AtomicUsize>,
    written: Counter,
    dropped: Counter,
    failures: Seldom,
}

impl Writer {
    fn write_all(&mut self, records: &Receiver<Record>) {
        while let Ok(record) = records.recv() {
            self.write(&record);
            while let Ok(record) = records.try_recv() {
                self.write(&record);
            }
            let flushed = self.file.flush();
            self.note(flushed.map(|()| 0));
        }
    }

    fn write(&mut self, record: &Record) {
        let line = serde_json::to_vec(record).map_err(io::Error::from);
        self.waiting_bytes.fetch_sub(payload_bytes(record), Ordering::Relaxed);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            self.file.append(&line).map(u64::from)
        });
        self.note(written);
    }

    /// Counts `lines` that were written, or a failure.
    fn note(&mut self, lines: io::Result<u64>) {
        match lines {
            Ok(lines) => self.written.increment(lines),
            Err(error) => {
                self.dropped.increment(1);
                if let Some(times) = self.failures.happened() {
                    tracing::warn!(%error, times, "decisions are not recorded (records.file)");
                }
            }
        }
    }
}

/// A file that begins anew when it is full; the full one stays beside it, as FILE.1, until the next is.
#[derive(Debug)]
struct BoundedFile {
    path: PathBuf,
    most: u64,
    bytes: u64,
    file: BufWriter<File>,
}

impl BoundedFile {
    fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = append(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), most, bytes, file: BufWriter::new(file) })
    }

    /// Appends a line; one that is longer than a whole file may be is an error.
    fn append(&mut self, line: &[u8]) -> io::Result<bool> {
        let length = line.len() as u64;
        if length > self.most {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a record is longer than records.max_bytes, raise that"));
        }
        if self.bytes + length > self.most {
            self.file.flush()?;
            let mut full = self.path.clone().into_os_string();
            full.push(".1");
            std::fs::rename(&self.path, full)?;
            (self.file, self.bytes) = (BufWriter::new(append(&self.path)?), 0);
        }
        self.file.write_all(line)?;
        self.bytes += length;
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Opens a file to append to, which nobody else may read: it may hold what people sent.
fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(dir: &Path, max_bytes: usize, sample_share: f64) -> Records {
        Records::open(&config::Records { file: Some(dir.join("decisions.jsonl")), sample_share, max_bytes, payload: false }).unwrap()
    }

    fn lines(path: &Path) -> Vec<Outcome> {
        let read = |line: &str| match serde_json::from_str(line).unwrap() {
            Record::Outcome(outcome) => outcome,
            Record::Decision(_) => panic!("a decision"),
        };
        std::fs::read_to_string(path).unwrap().lines().map(read).collect()
    }

    #[test]
    fn the_latest_records_stay_in_two_files_of_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(dir.path(), 1000, 1.0);
        for i in 0..100 {
            records.turned_out(Outcome { request_id: i.to_string(), true_task: "food".into(), ..Outcome::default() });
        }
        records.close();
        let (now, before) = (dir.path().join("decisions.jsonl"), dir.path().join("decisions.jsonl.1"));
        assert!([&now, &before].iter().all(|path| path.metadata().unwrap().len() <= 1000));
        let kept: Vec<String> = [lines(&before), lines(&now)].concat().into_iter().map(|outcome| outcome.request_id).collect();
        assert!(kept.len() > 10, "{kept:?}");
        let latest: Vec<String> = (100 - kept.len()..100).map(|i| i.to_string()).collect();
        assert_eq!(kept, latest);
        // A server that starts again goes on in the same file.
        let after = self::records(dir.path(), 1000, 1.0);
        after.turned_out(Outcome { request_id: "later".into(), ..Outcome::default() });
        after.close();
        assert_eq!(lines(&now).last().unwrap().request_id, "later");
    }

    #[test]
    fn a_share_of_the_ids_is_sampled_and_without_a_file_none() {
        let dir = tempfile::tempdir().unwrap();
        let share = |records: &Records| (0..10_000u64).filter(|id| records.samples(id.wrapping_mul(0x0100_0000_01b3))).count();
        assert!((800..1200).contains(&share(&records(dir.path(), 1000, 0.1))));
        assert_eq!(share(&records(dir.path(), 1000, 1.0)), 10_000);
        assert_eq!(share(&Records::default()), 0);
    }
}
