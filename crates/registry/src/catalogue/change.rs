//! Changes of the catalogue while it serves: load, unload, roll back, promote, abort. All of them take one
//! [`step`].
//!
//! [`step`]: CatalogueOwner::step
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use delo_catalogue::{Catalogue, Resident, Trial, TrialMode};
use delo_model::partition::digest;
use delo_process::allocator;

use super::candidate::{Candidate, warm_up};
use super::error::ChangeError;
use super::owner::CatalogueOwner;
use super::versions::LedgerStore;
use crate::blocking::blocking;
use crate::crash;
use crate::ledger::{CompletedRequest, Ledger, LedgerError, TaskRecord, VersionRecord};
use crate::source::PartitionSource;

/// How long an unload waits for the requests that the partition is serving.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two looks at whether they have ended.
const DRAIN_POLL: Duration = Duration::from_millis(2);

/// A version that a change made live, took away, or put on trial.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Its task.
    pub task: String,
    /// Its number within the task.
    pub version: u64,
    /// Its entry in the ledger.
    pub record: VersionRecord,
    /// The version itself, while it is in the catalogue.
    pub resident: Option<Arc<Resident>>,
    /// Its labels, where it was in the catalogue before or after the change.
    pub labels: Vec<String>,
}

/// What [`CatalogueOwner::load`] is to load.
#[derive(Clone, Debug)]
pub struct Load {
    /// The partition.
    pub source: PartitionSource,
    /// On trial beside the live version; `None`: live at once.
    pub trial: Option<TrialMode>,
    /// Where the partition is from: shown to people, and part of what makes two requests the same. `None`:
    /// what the source tells of itself.
    pub origin: Option<String>,
    /// The caller's id of this request; empty: none. A request whose id was used before is answered from
    /// memory and not carried out again.
    pub request_id: String,
}

impl From<PartitionSource> for Load {
    fn from(source: PartitionSource) -> Self {
        Self { source, trial: None, origin: None, request_id: String::new() }
    }
}

/// A request whose caller gave it an id.
pub(super) struct NamedRequest {
    id: String,
    /// SHA-256 over what is requested, by which a second request of the same id is compared with the first.
    pub(super) fingerprint: String,
}

impl NamedRequest {
    /// `None` where the id is empty; `what` is not asked then.
    fn new(id: &str, method: &str, what: impl FnOnce() -> String) -> Option<Self> {
        let fingerprint = || digest(format!("{method} {}", what()).as_bytes());
        (!id.is_empty()).then(|| Self { id: id.to_owned(), fingerprint: fingerprint() })
    }

    /// A request to load what `what` identifies: an origin, a path, or the digest of an upload.
    pub(super) fn to_load(id: &str, trial: Option<TrialMode>, what: impl FnOnce() -> String) -> Option<Self> {
        Self::new(id, "load", || format!("{} {trial:?}", what()))
    }
}

/// One change of one task.
struct Change<'a> {
    task: &'a str,
    request: Option<NamedRequest>,
    /// The partition that enters with this change, if it is not retained already.
    candidate: Option<Candidate>,
}

impl CatalogueOwner {
    /// What a load from this origin led to, where the request of this id was carried out before. To be asked
    /// before a fetch, which need not succeed again.
    ///
    /// # Errors
    /// [`LedgerError::RequestIdReused`]: the id belongs to a request for something else.
    pub async fn loaded_before(&self, origin: &str, trial: Option<TrialMode>, request_id: &str) -> Result<Option<Changed>, ChangeError> {
        self.completed(NamedRequest::to_load(request_id, trial, || origin.to_owned()).as_ref()).await
    }

    async fn completed(&self, request: Option<&NamedRequest>) -> Result<Option<Changed>, ChangeError> {
        match request {
            Some(request) => self.replay(&self.store.lock().await.ledger, request),
            None => Ok(None),
        }
    }

    fn replay(&self, ledger: &Ledger, request: &NamedRequest) -> Result<Option<Changed>, ChangeError> {
        let completed = ledger.replay(&request.id, &request.fingerprint)?.cloned();
        Ok(completed.map(|completed| self.changed(completed.task, completed.version, completed.record)))
    }

    /// Reads, checks and warms up a partition and makes it live, or puts it on trial. A task that is loaded
    /// already gets a new version. A failure changes nothing.
    ///
    /// # Errors
    /// A source that can't be read; an artifact that is refused; a partition that does not go with the
    /// others; a state that can't be written.
    pub async fn load(&self, load: Load) -> Result<Changed, ChangeError> {
        let Load { source, trial, origin, request_id } = load;
        let started = Instant::now();
        let request = NamedRequest::to_load(&request_id, trial, || origin.clone().unwrap_or_else(|| source.identity()));
        if let Some(changed) = self.completed(request.as_ref()).await? {
            return Ok(changed);
        }
        let origin = origin.unwrap_or_else(|| source.origin());
        // Reading and checking takes longest: it goes on beside the serving and beside other loads.
        let candidate = self.read(source).await?;
        crash::point("registry.read");
        let (task, record) = (candidate.partition.meta.task.clone(), candidate.record(origin));
        let change = Change { task: &task, request, candidate: Some(candidate) };
        let changed = self.step(change, |ledger| ledger.load(&task, record, trial)).await?;
        metrics::histogram!("delo_partition_load_seconds").record(started.elapsed());
        let Changed { task, version, record, .. } = &changed;
        tracing::info!(task, version, checksum = record.checksum, ?trial, seconds = started.elapsed().as_secs_f64(), "partition loaded");
        Ok(changed)
    }

    /// Takes a task's partition out of service. Returns what it was, and whether all requests that it was
    /// serving had ended when this returned: requests finish with the version that they started with.
    ///
    /// # Errors
    /// No such task; a state that can't be written.
    pub async fn unload(&self, task: &str, request_id: &str) -> Result<(Changed, bool), ChangeError> {
        let leaving = self.catalogue().get(task).map(Arc::downgrade);
        let forget = self.settings.state_dir.is_none();
        let change = Change { task, request: NamedRequest::new(request_id, "unload", || task.to_owned()), candidate: None };
        let changed = self.step(change, |ledger| {
            let version = ledger.unload(task)?;
            if forget {
                // Retained versions would stay in memory, and an unload is to free it.
                ledger.forget_retained(task);
            }
            Ok(version)
        });
        let changed = changed.await?;
        tracing::info!(task, version = changed.version, "partition unloaded");
        let until = Instant::now() + DRAIN_TIMEOUT;
        let serving = || leaving.as_ref().is_some_and(|resident| resident.strong_count() > 0);
        while serving() && Instant::now() < until {
            sleep(DRAIN_POLL).await;
        }
        allocator::trim_now();
        Ok((changed, !serving()))
    }

    /// Makes a retained version live again: the one that is named, or the one before the live one.
    ///
    /// # Errors
    /// Nothing that fits is retained, or its artifact is lost; a state that can't be written.
    pub async fn roll_back(&self, task: &str, version: Option<u64>, request_id: &str) -> Result<Changed, ChangeError> {
        let request = NamedRequest::new(request_id, "rollback", || format!("{task} {version:?}"));
        let changed = self.step(Change { task, request, candidate: None }, |ledger| ledger.roll_back(task, version)).await?;
        tracing::info!(task, version = changed.version, "rolled back");
        Ok(changed)
    }

    /// Makes the version on trial live, or gives it another share of the traffic.
    ///
    /// # Errors
    /// No trial; a state that can't be written.
    pub async fn promote(&self, task: &str, mode: Option<TrialMode>, request_id: &str) -> Result<Changed, ChangeError> {
        let request = NamedRequest::new(request_id, "promote", || format!("{task} {mode:?}"));
        let changed = self.step(Change { task, request, candidate: None }, |ledger| ledger.promote(task, mode)).await?;
        tracing::info!(task, version = changed.version, ?mode, "promoted");
        Ok(changed)
    }

    /// Ends a trial; the version that was on it is dropped.
    ///
    /// # Errors
    /// No trial; a state that can't be written.
    pub async fn abort(&self, task: &str, request_id: &str) -> Result<Changed, ChangeError> {
        let request = NamedRequest::new(request_id, "abort", || task.to_owned());
        let changed = self.step(Change { task, request, candidate: None }, |ledger| ledger.abort(task)).await?;
        tracing::info!(task, version = changed.version, "trial aborted");
        Ok(changed)
    }

    /// Makes one change: that of the ledger, then the catalogue that follows from it, then the write to the
    /// disk, then the swap.
    async fn step(&self, change: Change<'_>, apply: impl FnOnce(&mut Ledger) -> Result<u64, LedgerError>) -> Result<Changed, ChangeError> {
        let Change { task, request, candidate } = change;
        let mut store = self.store.lock().await;
        // Another request of this id may have been carried out since the caller looked.
        if let Some(request) = &request
            && let Some(changed) = self.replay(&store.ledger, request)?
        {
            return Ok(changed);
        }
        let before = self.catalogue();
        let mut ledger = store.ledger.clone();
        let version = apply(&mut ledger)?;
        // The record of a version that leaves with this change is in the old ledger only.
        let record = ledger.record(task, version).or_else(|| store.ledger.record(task, version)).cloned();
        let record = record.ok_or_else(|| LedgerError::UnknownTask(task.to_owned()))?;
        ledger.prune(task, self.settings.retained_versions);
        ledger.revision += 1;
        if let Some(NamedRequest { id, fingerprint }) = request {
            let (task, record) = (task.to_owned(), record.clone());
            ledger.remember(CompletedRequest { request_id: id, request_fingerprint: fingerprint, task, version, record });
        }

        let TaskRecord { live, trial, .. } = ledger.tasks.get(task).cloned().unwrap_or_default();
        let new_artifact: Vec<_> = candidate.iter().map(|candidate| candidate.artifact.clone()).collect();
        let mut entering = candidate.map(|candidate| Resident::new(candidate.partition, version));
        let mut resident = async |wanted: u64| match entering.take_if(|entering| entering.version == wanted) {
            Some(entering) => Ok(entering),
            None => self.resident(&store, &before, task, wanted).await,
        };
        let live = match live {
            Some(version) => Some(resident(version).await?),
            None => None,
        };
        let trial = match trial {
            Some(trial) => Some(Trial { resident: resident(trial.version).await?, mode: trial.mode }),
            None => None,
        };
        let (engine, old, name) = (self.engine.clone(), before.clone(), task.to_owned());
        let build = move || {
            let catalogue = old.with_task(&name, live.clone(), trial.clone())?;
            let serving = live.iter().chain(trial.as_ref().map(|trial| &trial.resident));
            let entering = serving.filter(|resident| old.version(&name, resident.version).is_none());
            entering.into_iter().try_for_each(|resident| warm_up(&engine, &catalogue, resident))?;
            Ok::<_, ChangeError>(catalogue)
        };
        let catalogue = blocking(build).await?;
        crash::point("registry.tried");
        store.commit(&ledger, &new_artifact)?;
        store.keep_retained(task, &ledger, &before);
        store.ledger = ledger;
        crash::point("registry.committed");
        self.live.store(Arc::new(catalogue));
        let mut changed = self.changed(task.to_owned(), version, record);
        if let Some(left) = before.version(task, version) {
            changed.labels.clone_from(&left.partition.meta.labels);
        }
        // The old catalogue is freed with the last batch that uses it.
        drop(before);
        allocator::trim_now();
        Ok(changed)
    }

    fn changed(&self, task: String, version: u64, record: VersionRecord) -> Changed {
        let resident = self.catalogue().version(&task, version).cloned();
        let labels = resident.as_ref().map(|resident| resident.partition.meta.labels.clone()).unwrap_or_default();
        Changed { task, version, record, resident, labels }
    }

    /// A version from the catalogue, or a retained one.
    async fn resident(&self, store: &LedgerStore, catalogue: &Catalogue, task: &str, version: u64) -> Result<Arc<Resident>, ChangeError> {
        match catalogue.version(task, version) {
            Some(resident) => Ok(resident.clone()),
            None => self.retained(store, task, version).await,
        }
    }
}
