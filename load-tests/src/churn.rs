//! Loads and unloads of partitions during the traffic, and the check that every answer came from a version
//! that was live between request and answer.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::pb::admin_client::AdminClient;
use crate::pb::load_partition_request::Source;
use crate::pb::{ListPartitionsRequest, LoadPartitionRequest, Partition, RollbackPartitionRequest, UnloadPartitionRequest};
use crate::scenario;
use crate::tally::{Latencies, code_name};
use crate::target::{Answered, TargetError, loopback};

/// Timeout of a change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two checks of whether the run has ended.
const LOOK: Duration = Duration::from_millis(100);
/// The most failures whose texts are reported; the rest are only counted.
const MAX_REPORTED: usize = 5;

/// Why the churn could not start.
#[derive(Debug, thiserror::Error)]
pub enum ChurnError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Admin(#[from] TargetError),
    #[error("cannot connect to the admin service: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("the admin service does not list its partitions: {0}")]
    List(Status),
}

/// The time in which each version may have been live: from the request of the change that made it live to the
/// response of the change that replaced it.
#[derive(Debug, Default)]
pub struct Ledger {
    spans: BTreeMap<String, Vec<Span>>,
}

#[derive(Debug)]
struct Span {
    version: u64,
    from: Instant,
    to: Option<Instant>,
}

impl Ledger {
    /// Notes that this version may be live from `requested` on, and that the one before it is not live after
    /// `answered`.
    fn live(&mut self, task: &str, version: u64, requested: Instant, answered: Instant) {
        self.gone(task, answered);
        self.spans.entry(task.to_owned()).or_default().push(Span { version, from: requested, to: None });
    }

    /// Notes that no version of this task is live any more.
    fn gone(&mut self, task: &str, answered: Instant) {
        for span in self.spans.get_mut(task).into_iter().flatten() {
            span.to.get_or_insert(answered);
        }
    }

    /// Whether the version may have been live at any time between the sending of the request and the receipt
    /// of the answer.
    pub fn covers(&self, answer: &Answered) -> bool {
        let spans = self.spans.get(&*answer.task).map_or(&[][..], Vec::as_slice);
        spans.iter().any(|s| s.version == answer.version && s.from <= answer.received && s.to.is_none_or(|to| to >= answer.sent))
    }
}

/// The figures of a churn.
#[derive(Debug, Default)]
pub struct Churned {
    /// Cycles of one partition through load, load again, roll back and unload.
    pub cycles: u64,
    /// Requested changes, including failed ones; each is a call of the admin service.
    pub changes: u64,
    /// Durations of the changes.
    pub took: Latencies,
    /// Changes that failed, or whose response names another version than the expected one.
    pub failed: u64,
    /// The texts of the first of these failures.
    pub failures: Vec<String>,
    /// The time at which each rest ended, since the start of the churn.
    pub rests: Vec<Duration>,
    pub ledger: Ledger,
}

/// The churn of one run.
pub struct Churn {
    admin: AdminClient<Channel>,
    artifacts: Vec<Bytes>,
    cycles: u64,
    every: Duration,
    warm_up: u64,
    rest: Duration,
    done: Churned,
}

impl Churn {
    /// Reads the partition files and asks the admin service for the live versions.
    ///
    /// # Errors
    /// A file that can't be read, or an admin service that does not answer or is not on this machine.
    pub async fn prepare(churn: &scenario::Churn, admin: &str) -> Result<Self, ChurnError> {
        let read = |path: &PathBuf| std::fs::read(path).map(Bytes::from).map_err(|source| ChurnError::Read { path: path.clone(), source });
        let artifacts = churn.partitions.iter().map(read).collect::<Result<_, _>>()?;
        let channel = loopback(admin)?.timeout(CHANGE_TIMEOUT).connect().await?;
        let mut admin = AdminClient::new(channel).max_encoding_message_size(1 << 30);
        let mut done = Churned::default();
        let requested = Instant::now();
        let list = admin.list_partitions(ListPartitionsRequest {}).await.map_err(ChurnError::List)?.into_inner();
        for partition in list.partitions {
            done.ledger.live(&partition.task, partition.version, requested, requested);
        }
        let [every, rest] = [churn.every_seconds, churn.rest_seconds].map(Duration::from_secs_f64);
        Ok(Self { admin, artifacts, cycles: churn.cycles.unwrap_or(u64::MAX), every, warm_up: churn.warm_up_cycles, rest, done })
    }

    /// Runs cycles until `stop` is set. After the last cycle and the last rest it sets `stop` itself. All
    /// unloaded partitions are loaded again before each rest and at the end.
    pub async fn run(mut self, stop: Arc<AtomicBool>) -> Churned {
        let begin = tokio::time::Instant::now();
        let mut unloaded = vec![false; self.artifacts.len()];
        let mut next = begin;
        loop {
            let finished = self.done.cycles >= self.cycles;
            if !self.rest.is_zero() && (finished || self.done.cycles == self.warm_up) {
                self.restore(&mut unloaded).await;
                pause(tokio::time::Instant::now() + self.rest, &stop).await;
                // A rest that was cut short by the end of the run is not measured.
                if !stop.load(Ordering::Relaxed) {
                    self.done.rests.push(begin.elapsed());
                }
            }
            if finished || stop.load(Ordering::Relaxed) {
                break;
            }
            let i = (self.done.cycles % self.artifacts.len() as u64) as usize;
            unloaded[i] = self.cycle(i).await;
            self.done.cycles += 1;
            // After a cycle that took longer than the interval, the next one begins at once; missed cycles
            // are not added later.
            next = (next + self.every).max(tokio::time::Instant::now());
            pause(next, &stop).await;
        }
        self.restore(&mut unloaded).await;
        stop.store(true, Ordering::Relaxed);
        self.done
    }

    async fn restore(&mut self, unloaded: &mut [bool]) {
        for (i, unloaded) in unloaded.iter_mut().enumerate() {
            if std::mem::take(unloaded) {
                self.load(i, None).await;
            }
        }
    }

    /// One cycle: load, load again, roll back, unload. A failed step is counted; a load or rollback that failed
    /// ends the cycle. Returns whether the unload was requested.
    async fn cycle(&mut self, i: usize) -> bool {
        let Some(first) = self.load(i, None).await else { return false };
        let Some(second) = self.load(i, Some(first.version + 1)).await else { return false };
        debug_assert_eq!(first.task, second.task);
        let request = RollbackPartitionRequest { task: first.task.clone(), ..Default::default() };
        let requested = Instant::now();
        let answer = self.admin.rollback_partition(request).await.map(|r| r.into_inner().partition);
        if self.made_live("rollback", requested, answer, Some(first.version)).is_none() {
            return false;
        }
        let requested = Instant::now();
        let request = UnloadPartitionRequest { task: first.task.clone(), ..Default::default() };
        let answer = self.admin.unload_partition(request).await.map(Response::into_inner);
        self.done.changes += 1;
        self.done.took.record(requested.elapsed());
        match answer {
            Ok(_) => self.done.ledger.gone(&first.task, Instant::now()),
            Err(status) => self.fail("unload", &status),
        }
        true
    }

    async fn load(&mut self, i: usize, version: Option<u64>) -> Option<Partition> {
        let request = LoadPartitionRequest { source: Some(Source::Artifact(self.artifacts[i].clone())), ..Default::default() };
        let requested = Instant::now();
        let answer = self.admin.load_partition(request).await.map(|r| r.into_inner().partition);
        self.made_live("load", requested, answer, version)
    }

    /// Notes the version that a change made live, and counts a failure where it is not `version`.
    fn made_live(
        &mut self,
        change: &str,
        requested: Instant,
        answer: Result<Option<Partition>, Status>,
        version: Option<u64>,
    ) -> Option<Partition> {
        self.done.changes += 1;
        self.done.took.record(requested.elapsed());
        match answer {
            Ok(Some(partition)) => {
                self.done.ledger.live(&partition.task, partition.version, requested, Instant::now());
                if version.is_some_and(|version| version != partition.version) {
                    self.fail(change, &Status::internal(format!("version {} is live, not {version:?}", partition.version)));
                }
                Some(partition)
            }
            Ok(None) => {
                self.fail(change, &Status::internal("the answer names no partition"));
                None
            }
            Err(status) => {
                self.fail(change, &status);
                None
            }
        }
    }

    fn fail(&mut self, change: &str, status: &Status) {
        self.done.failed += 1;
        if self.done.failures.len() < MAX_REPORTED {
            let code: Code = status.code();
            self.done.failures.push(format!("{change}: {}: {}", code_name(code as i32), status.message()));
        }
    }
}

/// Waits until a time has come or `stop` is set.
async fn pause(until: tokio::time::Instant, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) && tokio::time::Instant::now() < until {
        tokio::time::sleep_until(until.min(tokio::time::Instant::now() + LOOK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_a_version_that_was_not_live_meanwhile_is_found() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut ledger = Ledger::default();
        ledger.live("a", 1, at(0), at(0));
        // Version 2 is requested at 100 and live at 120 at the latest. From 220 on, no version is live.
        ledger.live("a", 2, at(100), at(120));
        ledger.gone("a", at(220));
        let covers = |task: &str, version, sent, received| {
            ledger.covers(&Answered { task: task.into(), version, sent: at(sent), received: at(received) })
        };
        for (version, sent, received, held) in [
            (1, 10, 20, true),
            (1, 110, 130, true),
            (1, 121, 130, false),
            (2, 50, 99, false),
            (2, 50, 101, true),
            (2, 150, 160, true),
            (2, 210, 300, true),
            (2, 221, 300, false),
            (3, 0, 300, false),
        ] {
            assert_eq!(covers("a", version, sent, received), held, "version {version}, sent at {sent}, received at {received}");
        }
        assert!(!covers("b", 1, 0, 300));
    }
}
