//! What is live, on trial and retained, as plain facts: the part of the catalogue that outlives the process.
//! Every change is a pure function.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use delo_catalogue::TrialMode;

/// How many requests are remembered with their outcome, so that a repeated one is answered and not carried
/// out again.
const REMEMBERED_REQUESTS: usize = 256;

/// Where a version came from and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// SHA-256 over the artifact's file.
    pub digest: String,
    /// SHA-256 over the artifact's tensors.
    pub checksum: String,
    /// A path, a URL, `upload` or `embedded`.
    pub origin: String,
    /// When it was trained: RFC 3339, UTC.
    pub created: String,
    /// The version of the program that trained it.
    pub delo_version: String,
    /// Whether a sample may have several labels.
    pub multi_label: bool,
    /// When it was loaded: RFC 3339, UTC. Shown to people; nothing is decided by it.
    pub loaded: String,
}

/// A version on trial.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialRecord {
    /// Its number.
    pub version: u64,
    /// Whether it answers a share of the requests, or copies of them whose answers are not sent.
    pub mode: TrialMode,
}

/// One task's versions. `live`, the trial's and the retained ones are all in `versions`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The highest version number given so far. Kept when the task is unloaded: a number is never used twice.
    pub latest: u64,
    /// The version that serves.
    pub live: Option<u64>,
    /// The version on trial beside it.
    pub trial: Option<TrialRecord>,
    /// All versions that are kept, by number.
    pub versions: BTreeMap<u64, VersionRecord>,
}

/// A request that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedRequest {
    /// The caller's id of it.
    pub request_id: String,
    /// SHA-256 over what was requested. Its name in files is `asked`.
    #[serde(rename = "asked")]
    pub request_fingerprint: String,
    /// The task that it changed.
    pub task: String,
    /// The version that it made live, took away, or put on trial.
    pub version: u64,
    /// The record of that version.
    pub record: VersionRecord,
}

/// The newest manifest of a registry that was followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowedManifest {
    /// Its address.
    pub manifest: String,
    /// Its revision.
    pub revision: u64,
}

/// Every task that was ever loaded, with its versions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Counts the changes.
    pub revision: u64,
    /// Fingerprint of the backbone that the partitions belong to.
    pub backbone: String,
    /// By name.
    pub tasks: BTreeMap<String, TaskRecord>,
    /// The manifest of the registry that is followed: an older one is noticed after a restart too. Its name
    /// in files is `seen`.
    #[serde(default, rename = "seen", skip_serializing_if = "Option::is_none")]
    pub followed: Option<FollowedManifest>,
    /// The latest requests, oldest first.
    requests: VecDeque<CompletedRequest>,
}

/// Why a change is not possible. The ledger stays as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum LedgerError {
    #[error("no task {0:?} is loaded: `delo admin list` shows those that are")]
    UnknownTask(String),
    #[error("no task {0:?} is live, and a version on trial is compared with a live one: load it without a trial")]
    NothingToCompare(String),
    #[error("task {task:?} has no version {version}; retained are {}", listed(.retained))]
    UnknownVersion { task: String, version: u64, retained: Vec<u64> },
    #[error("no earlier version of task {task:?} is retained (retained are {}): load its artifact again", listed(.retained))]
    NothingToRollBackTo { task: String, retained: Vec<u64> },
    #[error("version {version} of task {task:?} is live already")]
    LiveAlready { task: String, version: u64 },
    #[error("task {0:?} has no version on trial: start one with `delo admin load FILE --canary SHARE` or --shadow")]
    NoTrial(String),
    #[error("request_id {0:?} was used for another request: give each request an id of its own")]
    RequestIdReused(String),
}

fn listed(versions: &[u64]) -> String {
    if versions.is_empty() {
        return "none".to_owned();
    }
    versions.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

impl TaskRecord {
    /// Versions that can be rolled back to.
    pub fn retained(&self) -> impl DoubleEndedIterator<Item = u64> + '_ {
        let trial = self.trial.map(|t| t.version);
        self.versions.keys().copied().filter(move |&v| Some(v) != self.live && Some(v) != trial)
    }

    fn add(&mut self, record: VersionRecord) -> u64 {
        self.latest += 1;
        self.versions.insert(self.latest, record);
        self.latest
    }

    /// Drops the oldest retained versions beyond `keep`.
    fn prune(&mut self, keep: usize) {
        let beyond: Vec<u64> = self.retained().rev().skip(keep).collect();
        beyond.iter().for_each(|version| drop(self.versions.remove(version)));
    }
}

impl Ledger {
    /// An empty ledger for partitions of this backbone.
    pub fn of(backbone: String) -> Self {
        Self { backbone, ..Self::default() }
    }

    /// A new version of a task, live at once or on trial; returns its number.
    ///
    /// # Errors
    /// [`LedgerError::NothingToCompare`]
    pub fn load(&mut self, task: &str, record: VersionRecord, trial: Option<TrialMode>) -> Result<u64, LedgerError> {
        let Some(mode) = trial else {
            let entry = self.tasks.entry(task.to_owned()).or_default();
            let version = entry.add(record);
            entry.live = Some(version);
            return Ok(version);
        };
        let entry = self.tasks.get_mut(task).filter(|entry| entry.live.is_some());
        let entry = entry.ok_or_else(|| LedgerError::NothingToCompare(task.to_owned()))?;
        if let Some(former) = entry.trial.take() {
            entry.versions.remove(&former.version);
        }
        let version = entry.add(record);
        entry.trial = Some(TrialRecord { version, mode });
        Ok(version)
    }

    /// Takes a task out of service; returns the version that was live. Its retained versions stay, its trial
    /// does not.
    ///
    /// # Errors
    /// [`LedgerError::UnknownTask`]
    pub fn unload(&mut self, task: &str) -> Result<u64, LedgerError> {
        let entry = self.tasks.get_mut(task).filter(|entry| entry.live.is_some());
        let entry = entry.ok_or_else(|| LedgerError::UnknownTask(task.to_owned()))?;
        if let Some(trial) = entry.trial.take() {
            entry.versions.remove(&trial.version);
        }
        entry.live.take().ok_or_else(|| LedgerError::UnknownTask(task.to_owned()))
    }

    /// Makes a retained version live: the one that is named, or the highest below the live one (the highest
    /// of all where none is live).
    ///
    /// # Errors
    /// A task or version that isn't there; nothing earlier.
    pub fn roll_back(&mut self, task: &str, version: Option<u64>) -> Result<u64, LedgerError> {
        let entry = self.tasks.get_mut(task).ok_or_else(|| LedgerError::UnknownTask(task.to_owned()))?;
        let retained: Vec<u64> = entry.retained().collect();
        let target = match version {
            Some(version) if entry.live == Some(version) => return Err(LedgerError::LiveAlready { task: task.to_owned(), version }),
            Some(version) => {
                let known = retained.contains(&version);
                known.then_some(version).ok_or_else(|| LedgerError::UnknownVersion { task: task.to_owned(), version, retained })?
            }
            None => {
                let earlier = retained.iter().copied().filter(|&v| entry.live.is_none_or(|live| v < live)).max();
                earlier.ok_or_else(|| LedgerError::NothingToRollBackTo { task: task.to_owned(), retained })?
            }
        };
        entry.live = Some(target);
        Ok(target)
    }

    /// Makes the version on trial live, or gives it another share of the traffic; returns its number.
    ///
    /// # Errors
    /// [`LedgerError::NoTrial`]
    pub fn promote(&mut self, task: &str, share: Option<TrialMode>) -> Result<u64, LedgerError> {
        let (entry, trial) = self.on_trial(task)?;
        match share {
            Some(mode) => entry.trial = Some(TrialRecord { mode, ..trial }),
            None => (entry.live, entry.trial) = (Some(trial.version), None),
        }
        Ok(trial.version)
    }

    /// Ends a trial; returns the version that was on it, which is not retained.
    ///
    /// # Errors
    /// [`LedgerError::NoTrial`]
    pub fn abort(&mut self, task: &str) -> Result<u64, LedgerError> {
        let (entry, trial) = self.on_trial(task)?;
        entry.trial = None;
        entry.versions.remove(&trial.version);
        Ok(trial.version)
    }

    fn on_trial(&mut self, task: &str) -> Result<(&mut TaskRecord, TrialRecord), LedgerError> {
        let entry = self.tasks.get_mut(task).and_then(|entry| entry.trial.map(|trial| (entry, trial)));
        entry.ok_or_else(|| LedgerError::NoTrial(task.to_owned()))
    }

    /// Drops every version of a task that is neither live nor on trial.
    pub fn forget_retained(&mut self, task: &str) {
        self.prune(task, 0);
    }

    /// Drops the oldest retained versions of a task beyond `keep`.
    pub fn prune(&mut self, task: &str, keep: usize) {
        if let Some(entry) = self.tasks.get_mut(task) {
            entry.prune(keep);
        }
    }

    /// A version's record.
    pub fn record(&self, task: &str, version: u64) -> Option<&VersionRecord> {
        self.tasks.get(task)?.versions.get(&version)
    }

    /// The digests of all artifacts that this ledger needs.
    pub fn digests(&self) -> BTreeSet<&str> {
        self.tasks.values().flat_map(|task| task.versions.values()).map(|record| record.digest.as_str()).collect()
    }

    /// The outcome of a request that was carried out before. An empty id is no id.
    ///
    /// # Errors
    /// [`LedgerError::RequestIdReused`]: the id belongs to a request for something else.
    pub fn replay(&self, request_id: &str, request_fingerprint: &str) -> Result<Option<&CompletedRequest>, LedgerError> {
        let same_id = |request: &&CompletedRequest| !request_id.is_empty() && request.request_id == request_id;
        match self.requests.iter().rev().find(same_id) {
            None => Ok(None),
            Some(request) if request.request_fingerprint == request_fingerprint => Ok(Some(request)),
            Some(_) => Err(LedgerError::RequestIdReused(request_id.to_owned())),
        }
    }

    /// Remembers the request that this change carries out; one without an id is not remembered.
    pub fn remember(&mut self, request: CompletedRequest) {
        if request.request_id.is_empty() {
            return;
        }
        self.requests.push_back(request);
        while self.requests.len() > REMEMBERED_REQUESTS {
            self.requests.pop_front();
        }
    }

    /// Whether the ledger is consistent: what is live or on trial has a record, a trial stands beside another
    /// live version, and no number is above the latest.
    ///
    /// # Errors
    /// What is not, in words.
    pub fn check(&self) -> Result<(), String> {
        for (name, task) in &self.tasks {
            let missing = |version: u64| !task.versions.contains_key(&version);
            if task.live.is_some_and(missing) || task.trial.is_some_and(|trial| missing(trial.version)) {
                return Err(format!("task {name:?} names a version without a record"));
            }
            if task.trial.is_some() && (task.live.is_none() || task.trial.map(|trial| trial.version) == task.live) {
                return Err(format!("task {name:?} has a trial without another live version"));
            }
            if task.versions.keys().next_back().is_some_and(|&highest| highest > task.latest) {
                return Err(format!("task {name:?} has a version above its latest"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use delo_catalogue::Share;

    pub(crate) fn record(digest: &str) -> VersionRecord {
        VersionRecord {
            digest: digest.to_owned(),
            checksum: String::new(),
            origin: "upload".to_owned(),
            created: String::new(),
            delo_version: String::new(),
            multi_label: false,
            loaded: String::new(),
        }
    }

    fn canary(share: f64) -> Option<TrialMode> {
        Some(TrialMode::Canary(Share::try_from(share).unwrap()))
    }

    fn loaded(times: u64) -> Ledger {
        let mut ledger = Ledger::default();
        (1..=times).for_each(|v| assert_eq!(ledger.load("a", record(&v.to_string()), None), Ok(v)));
        ledger
    }

    #[test]
    fn rolls_back_step_by_step_and_forward_by_name() {
        let mut ledger = loaded(3);
        assert_eq!(ledger.roll_back("a", None), Ok(2));
        assert_eq!(ledger.roll_back("a", None), Ok(1));
        assert!(matches!(ledger.roll_back("a", None), Err(LedgerError::NothingToRollBackTo { .. })));
        assert_eq!(ledger.roll_back("a", Some(3)), Ok(3));
        assert!(matches!(ledger.roll_back("a", Some(3)), Err(LedgerError::LiveAlready { .. })));
        assert!(matches!(ledger.roll_back("a", Some(9)), Err(LedgerError::UnknownVersion { .. })));
        assert_eq!(ledger.roll_back("b", None), Err(LedgerError::UnknownTask("b".to_owned())));
        assert_eq!(ledger.load("a", record("x"), None), Ok(4), "a number is never used twice");
    }

    #[test]
    fn an_unloaded_task_can_be_rolled_back_to_and_its_numbers_go_on() {
        let mut ledger = loaded(2);
        assert_eq!(ledger.unload("a"), Ok(2));
        assert!(ledger.unload("a").is_err());
        assert_eq!(ledger.clone().roll_back("a", None), Ok(2));
        ledger.forget_retained("a");
        assert!(matches!(ledger.roll_back("a", None), Err(LedgerError::NothingToRollBackTo { .. })));
        assert_eq!(ledger.load("a", record("x"), None), Ok(3));
    }

    #[test]
    fn a_trial_is_promoted_reweighted_or_aborted() {
        let mut ledger = loaded(1);
        assert_eq!(ledger.load("a", record("t"), canary(0.1)), Ok(2));
        assert_eq!((ledger.tasks["a"].live, ledger.tasks["a"].trial.unwrap().version), (Some(1), 2));
        assert_eq!(ledger.promote("a", canary(0.5)), Ok(2));
        assert_eq!(Some(ledger.tasks["a"].trial.unwrap().mode), canary(0.5));
        let mut aborted = ledger.clone();
        assert_eq!(aborted.abort("a"), Ok(2));
        assert_eq!(aborted.abort("a"), Err(LedgerError::NoTrial("a".to_owned())));
        assert_eq!(aborted.digests(), BTreeSet::from(["1"]), "it is not retained");
        assert_eq!(ledger.promote("a", None), Ok(2));
        assert_eq!((ledger.tasks["a"].live, ledger.tasks["a"].trial), (Some(2), None));
        assert_eq!(ledger.roll_back("a", None), Ok(1));
        assert_eq!(Ledger::default().load("a", record("t"), canary(0.1)), Err(LedgerError::NothingToCompare("a".to_owned())));
    }

    #[test]
    fn a_request_id_is_answered_from_memory_and_refused_for_another_request() {
        let mut ledger = loaded(1);
        let request = |id: usize| CompletedRequest {
            request_id: id.to_string(),
            request_fingerprint: "load".to_owned(),
            task: "a".to_owned(),
            version: 1,
            record: record("1"),
        };
        (0..=REMEMBERED_REQUESTS).for_each(|id| ledger.remember(request(id)));
        assert_eq!(ledger.replay("7", "load").unwrap().unwrap().version, 1);
        assert_eq!(ledger.replay("7", "unload"), Err(LedgerError::RequestIdReused("7".to_owned())));
        assert_eq!(ledger.replay("0", "load"), Ok(None), "the oldest is forgotten");
        assert!(ledger.replay("1", "load").unwrap().is_some(), "the one after it is not");
        assert_eq!(ledger.replay("", "load"), Ok(None));
    }

    #[test]
    fn a_refused_rollback_names_the_versions_that_are_retained() {
        let mut ledger = loaded(3);
        let message = |refusal: LedgerError| refusal.to_string();
        let unknown = ledger.roll_back("a", Some(9)).map_err(message);
        assert_eq!(unknown, Err("task \"a\" has no version 9; retained are 1, 2".to_owned()));
        ledger.forget_retained("a");
        let unknown = ledger.roll_back("a", Some(2)).map_err(message);
        assert_eq!(unknown, Err("task \"a\" has no version 2; retained are none".to_owned()));
    }

    #[test]
    fn a_version_that_is_kept_has_its_record_and_one_that_is_dropped_has_none() {
        let mut ledger = loaded(2);
        assert_eq!(ledger.record("a", 1), Some(&record("1")));
        ledger.prune("a", 0);
        assert_eq!((ledger.record("a", 1), ledger.record("a", 2)), (None, Some(&record("2"))));
    }

    #[test]
    fn an_empty_ledger_names_its_backbone_also_in_its_file() {
        let ledger = Ledger::of("fingerprint".to_owned());
        assert_eq!((ledger.backbone.as_str(), ledger.revision), ("fingerprint", 0));
        assert_eq!(serde_json::to_value(&ledger).unwrap()["backbone"], "fingerprint");
    }

    #[test]
    fn a_damaged_ledger_is_refused_with_what_is_wrong() {
        let mut sound = loaded(2);
        assert_eq!(sound.load("a", record("t"), canary(0.1)), Ok(3));
        assert_eq!(sound.check(), Ok(()));
        let damaged = |damage: fn(&mut TaskRecord)| {
            let mut ledger = sound.clone();
            damage(ledger.tasks.get_mut("a").unwrap());
            ledger.check().unwrap_err()
        };
        let without_record = "task \"a\" names a version without a record";
        assert_eq!(damaged(|task| task.live = Some(7)), without_record);
        assert_eq!(damaged(|task| drop(task.versions.remove(&3))), without_record, "the one on trial");
        let without_live = "task \"a\" has a trial without another live version";
        assert_eq!(damaged(|task| task.live = None), without_live);
        assert_eq!(damaged(|task| task.live = Some(3)), without_live, "it is compared with itself");
        assert_eq!(damaged(|task| task.latest = 2), "task \"a\" has a version above its latest");
    }

    #[test]
    fn the_fields_of_its_file_keep_their_names() {
        let mut ledger = loaded(1);
        ledger.followed = Some(FollowedManifest { manifest: "m".to_owned(), revision: 7 });
        let (request_id, request_fingerprint, task) = ("id".to_owned(), "fingerprint".to_owned(), "a".to_owned());
        ledger.remember(CompletedRequest { request_id, request_fingerprint, task, version: 1, record: record("1") });
        let json = serde_json::to_value(&ledger).unwrap();
        assert_eq!(json["seen"]["revision"], 7);
        assert_eq!(json["requests"][0]["asked"], "fingerprint");
        assert_eq!(serde_json::from_value::<Ledger>(json).unwrap(), ledger);
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Load(u8),
        Try(u8),
        Unload(u8),
        RollBack(u8, Option<u64>),
        Promote(u8, bool),
        Abort(u8),
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let operation = (0u8..6, 0u8..3, prop::option::of(1u64..6), any::<bool>()).prop_map(|(kind, task, version, whole)| match kind {
            0 => Operation::Load(task),
            1 => Operation::Try(task),
            2 => Operation::Unload(task),
            3 => Operation::RollBack(task, version),
            4 => Operation::Promote(task, whole),
            _ => Operation::Abort(task),
        });
        prop::collection::vec(operation, 1..60)
    }

    proptest! {
        #[test]
        fn after_any_changes_the_ledger_is_consistent_and_retains_no_more_than_it_may(operations in operations(), keep in 0usize..4) {
            let mut ledger = Ledger::default();
            let mut highest = BTreeMap::new();
            for (i, operation) in operations.into_iter().enumerate() {
                let before = ledger.clone();
                let name = |task: u8| format!("task-{task}");
                let (task, done) = match operation {
                    Operation::Load(task) => (name(task), ledger.load(&name(task), record(&i.to_string()), None)),
                    Operation::Try(task) => (name(task), ledger.load(&name(task), record(&i.to_string()), canary(0.5))),
                    Operation::Unload(task) => (name(task), ledger.unload(&name(task))),
                    Operation::RollBack(task, version) => (name(task), ledger.roll_back(&name(task), version)),
                    Operation::Promote(task, whole) => (name(task), ledger.promote(&name(task), (!whole).then_some(TrialMode::Shadow))),
                    Operation::Abort(task) => (name(task), ledger.abort(&name(task))),
                };
                if done.is_err() {
                    prop_assert_eq!(&ledger, &before, "a refusal changes nothing");
                    continue;
                }
                ledger.prune(&task, keep);
                prop_assert_eq!(ledger.check(), Ok(()));
                prop_assert!(ledger.tasks[&task].retained().count() <= keep);
                let latest = ledger.tasks[&task].latest;
                prop_assert!(latest >= highest.insert(task, latest).unwrap_or(0), "numbers never fall");
            }
        }
    }
}
