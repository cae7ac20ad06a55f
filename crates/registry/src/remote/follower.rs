//! Keeps the catalogue equal to what a registry's manifest says is live.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use delo_model::partition::task_name;
use futures::StreamExt;
use futures::stream;
use tokio::time::Instant;

use super::error::RemoteError;
use super::fetch::{FetchLimits, fetch, fetch_manifest, jittered};
use super::manifest::{self, Entry, Manifest};
use super::storage::{ObjectTag, Storage};
use crate::blocking::blocking;
use crate::catalogue::{CatalogueOwner, ChangeError, Load};
use crate::signature::{self, Trust};
use crate::source::PartitionSource;
use crate::state::StateError;

/// The longest pause after failures, in polls.
const LONGEST_PAUSE: u32 = 8;
/// The pause after the first failure, where a poll is not shorter.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Makes the catalogue of one server follow one manifest.
#[derive(Debug)]
pub struct Follower {
    storage: Storage,
    /// The address of the manifest, as people are shown it and the ledger remembers it.
    address: String,
    owner: Arc<CatalogueOwner>,
    trust: Arc<Trust>,
    limits: FetchLimits,
    poll: Duration,
    /// How many artifacts are fetched at once.
    max_fetches: usize,
    /// Locked through a whole synchronisation, so that they happen one after another. The lock of the
    /// catalogue owner and that of `report` are taken while it is held.
    progress: tokio::sync::Mutex<Progress>,
    /// Locked for moments, never over an await.
    report: Mutex<SyncReport>,
}

#[derive(Debug, Default)]
struct Progress {
    /// The manifest that is followed.
    manifest: Manifest,
    /// The state of that manifest's object.
    tag: ObjectTag,
    /// For each task, the SHA-256 of the artifact that the manifest made live here.
    followed: BTreeMap<String, String>,
    /// Whether a manifest was read since the start, and `followed` holds what this server kept over the
    /// restart.
    adopted: bool,
    /// By the SHA-256 of an artifact, why it is not fetched again until the manifest changes.
    refused: HashMap<String, String>,
    /// How many synchronisations in a row failed in a way that may pass.
    failures: u32,
}

/// Why a synchronisation happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The time of a poll has come.
    Poll,
    /// An operator requested it. What was refused gets another chance.
    Requested {
        /// Whether a manifest that is older than the last one followed is followed too.
        accept_older: bool,
    },
}

/// Whether this server serves what its manifest makes live.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// The address of the manifest.
    pub manifest: String,
    /// The revision of the manifest that is followed.
    pub revision: u64,
    /// Whether what is live in the manifest is live here.
    pub in_sync: bool,
    /// Why it is not; empty where it is.
    pub error: String,
    /// When it was last in sync.
    pub synced: Option<Instant>,
}

/// What a synchronisation changed here, by task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncChanges {
    /// Tasks that got another version.
    pub loaded: Vec<String>,
    /// Tasks that are no longer live.
    pub unloaded: Vec<String>,
}

/// Why an artifact is not live.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// It was refused in an earlier synchronisation, for this reason.
    #[error("{0}")]
    Earlier(String),
}

impl Refusal {
    /// Whether another attempt may succeed although the manifest stays.
    fn is_temporary(&self) -> bool {
        match self {
            Self::Remote(error) => error.is_temporary(),
            Self::Change(error) => matches!(error, ChangeError::Panicked | ChangeError::State(StateError::Write(_))),
            Self::Earlier(_) => false,
        }
    }
}

impl Follower {
    /// Prepares to follow the manifest in `storage`: [`Self::sync`] follows it, and [`Self::pause`] says when
    /// to do so again. `poll` is the pause where nothing fails, `max_fetches` how many artifacts are fetched
    /// at once.
    pub fn new(
        storage: Storage,
        owner: Arc<CatalogueOwner>,
        trust: Arc<Trust>,
        limits: FetchLimits,
        poll: Duration,
        max_fetches: usize,
    ) -> Self {
        let address = storage.shown(manifest::FILE_NAME);
        let report = Mutex::new(SyncReport { manifest: address.clone(), ..SyncReport::default() });
        metrics::gauge!("delo_registry_in_sync").set(0.0);
        metrics::gauge!("delo_registry_revision").set(0.0);
        // Each series exists from the first scrape on.
        for outcome in ["ok", "failed"] {
            metrics::counter!("delo_registry_syncs_total", "outcome" => outcome).increment(0);
        }
        metrics::counter!("delo_registry_fetched_bytes_total").increment(0);
        Self { storage, address, owner, trust, limits, poll, max_fetches, progress: tokio::sync::Mutex::default(), report }
    }

    /// The outcome of the last synchronisation.
    pub fn report(&self) -> SyncReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The pause before the next poll: longer after failures, and random, so that replicas do not poll
    /// together. Waits for a synchronisation that is under way.
    pub async fn pause(&self) -> Duration {
        jittered(pause_after(self.progress.lock().await.failures, self.poll))
    }

    /// Whether the last synchronisation failed in a way that may pass. Waits for one that is under way.
    pub async fn is_failing(&self) -> bool {
        self.progress.lock().await.failures > 0
    }

    /// Compares the manifest with what is live, and loads and unloads what differs. A failure is shown in the
    /// report and changes nothing of what is served.
    pub async fn sync(&self, occasion: Occasion) -> SyncChanges {
        let mut progress = self.progress.lock().await;
        if occasion != Occasion::Poll {
            progress.refused.clear();
        }
        let mut changes = SyncChanges::default();
        let mut failures: Vec<Refusal> = Vec::new();
        match self.refresh(&mut progress, occasion == Occasion::Requested { accept_older: true }).await {
            Ok(()) => self.adopt_kept(&mut progress).await,
            Err(error) => failures.push(error.into()),
        }
        match self.remember(&progress).await {
            // Also where no manifest could be read: what the last one made live and failed to load may load
            // now.
            Ok(()) => {
                self.load(&mut progress, &mut changes, &mut failures).await;
                self.unload(&mut progress, &mut changes, &mut failures).await;
            }
            // A manifest that can't be remembered over a restart changes nothing.
            Err(error) => failures.push(error.into()),
        }
        let retry = failures.iter().any(Refusal::is_temporary);
        progress.failures = if retry { progress.failures.saturating_add(1) } else { 0 };
        self.note_outcome(progress.manifest.revision, &failures);
        changes
    }

    /// Fetches the manifest and makes it the one that is followed, if it is another. One that is older than
    /// the last followed one is refused unless `accept_older`.
    async fn refresh(&self, progress: &mut Progress, accept_older: bool) -> Result<(), RemoteError> {
        let Some((manifest, tag)) = fetch_manifest(&self.storage, &progress.tag, self.limits.timeout).await? else { return Ok(()) };
        // After the first one read, that one counts and not the ledger's: it may be an older one that was
        // accepted.
        let seen = if progress.adopted { progress.manifest.revision } else { self.owner.followed_revision(&self.address).await };
        if manifest.revision < seen {
            if !accept_older {
                let error = RemoteError::Older { found: manifest.revision, seen };
                tracing::warn!(%error, "registry");
                return Err(error);
            }
            tracing::warn!(revision = manifest.revision, seen, "an older manifest of the registry is taken, as asked");
        }
        progress.tag = tag;
        if manifest != progress.manifest {
            tracing::info!(revision = manifest.revision, live = manifest.live.len(), "another manifest of the registry is followed");
            progress.refused.clear();
            progress.manifest = manifest;
        }
        Ok(())
    }

    /// Writes to the ledger which revision is followed, once a manifest was read.
    async fn remember(&self, progress: &Progress) -> Result<(), ChangeError> {
        if progress.adopted { self.owner.remember_followed(&self.address, progress.manifest.revision).await } else { Ok(()) }
    }

    /// Counts what this server kept over a restart and had from this registry as followed: it may have been
    /// withdrawn meanwhile. This waits until a manifest was read: an unreachable registry has withdrawn
    /// nothing.
    async fn adopt_kept(&self, progress: &mut Progress) {
        if std::mem::replace(&mut progress.adopted, true) {
            return;
        }
        let from_here = format!("{}/", self.storage.shown("partitions"));
        for (task, entry) in self.owner.report().await.tasks {
            let live = entry.live.and_then(|version| entry.versions.get(&version));
            if let Some(live) = live.filter(|live| live.origin.starts_with(&from_here)) {
                progress.followed.insert(task, live.digest.clone());
            }
        }
    }

    /// Fetches and loads what the manifest makes live and this server does not serve.
    async fn load(&self, progress: &mut Progress, changes: &mut SyncChanges, failures: &mut Vec<Refusal>) {
        let catalogue = self.owner.catalogue();
        let mut missing = Vec::new();
        for entry in progress.manifest.live() {
            if catalogue.get(&entry.task).is_some_and(|resident| resident.partition.digest == entry.sha256) {
                progress.followed.insert(entry.task.clone(), entry.sha256.clone());
            } else if let Some(reason) = progress.refused.get(&entry.sha256) {
                failures.push(Refusal::Earlier(reason.clone()));
            } else {
                missing.push(entry.clone());
            }
        }
        let mut fetches = stream::iter(missing)
            .map(|entry| async move {
                let loaded = self.fetch_and_load(&entry).await;
                (entry, loaded)
            })
            .buffer_unordered(self.max_fetches);
        while let Some((entry, loaded)) = fetches.next().await {
            match loaded {
                Ok(()) => {
                    progress.followed.insert(entry.task.clone(), entry.sha256);
                    changes.loaded.push(entry.task);
                }
                Err(refusal) => {
                    tracing::warn!(task = entry.task, sha256 = entry.sha256, error = %refusal, "a partition of the registry is not loaded");
                    if !refusal.is_temporary() {
                        progress.refused.insert(entry.sha256, format!("task {:?}: {refusal}", entry.task));
                    }
                    failures.push(refusal);
                }
            }
        }
        changes.loaded.sort();
    }

    async fn fetch_and_load(&self, entry: &Entry) -> Result<(), Refusal> {
        let artifact = fetch(&self.storage, entry, self.limits).await?;
        let signature = entry.signature.as_deref().map(signature::from_hex).transpose().map_err(RemoteError::from)?;
        self.trust.check(&artifact, signature.as_deref()).map_err(RemoteError::from)?;
        // A partition of another task would replace that task's, and this entry would never be in sync.
        let bytes = artifact.bytes().clone();
        let found = blocking(move || Ok::<_, RemoteError>(task_name(&bytes)?)).await?;
        if found != entry.task {
            let object = self.storage.shown(&entry.object());
            return Err(RemoteError::OtherTask { object, found, expected: entry.task.clone() }.into());
        }
        let origin = Some(self.storage.shown(&entry.object()));
        self.owner.load(Load { origin, ..PartitionSource::Artifact(artifact).into() }).await?;
        Ok(())
    }

    /// Unloads what the manifest made live and no longer does. What an operator loaded by hand stays.
    async fn unload(&self, progress: &mut Progress, changes: &mut SyncChanges, failures: &mut Vec<Refusal>) {
        let withdrawn: Vec<_> = progress.followed.keys().filter(|task| !progress.manifest.live.contains_key(*task)).cloned().collect();
        for task in withdrawn {
            let Some(digest) = progress.followed.remove(&task) else { continue };
            if self.owner.catalogue().get(&task).is_none_or(|resident| resident.partition.digest != digest) {
                continue;
            }
            match self.owner.unload(&task, "").await {
                Ok(_) => changes.unloaded.push(task),
                Err(error) => {
                    progress.followed.insert(task, digest);
                    failures.push(error.into());
                }
            }
        }
        if !changes.unloaded.is_empty() {
            // A partition that did not go with the unloaded ones may go with the rest.
            progress.refused.clear();
        }
    }

    /// Shows the outcome of a synchronisation in the report and in the metrics.
    fn note_outcome(&self, revision: u64, failures: &[Refusal]) {
        let in_sync = failures.is_empty();
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.revision = revision;
        report.in_sync = in_sync;
        report.error = match failures {
            [] => String::new(),
            [only] => only.to_string(),
            [first, more @ ..] => format!("{first} (and {} more)", more.len()),
        };
        if in_sync {
            report.synced = Some(Instant::now());
        }
        // The process's recorder keeps every number of a gauge as f64.
        metrics::gauge!("delo_registry_revision").set(revision as f64);
        metrics::gauge!("delo_registry_in_sync").set(f64::from(u8::from(in_sync)));
        metrics::counter!("delo_registry_syncs_total", "outcome" => if in_sync { "ok" } else { "failed" }).increment(1);
    }
}

/// The pause after this many failures in a row: doubled with each, up to [`LONGEST_PAUSE`].
fn pause_after(failures: u32, poll: Duration) -> Duration {
    match failures {
        0 => poll,
        n => FIRST_PAUSE.min(poll).saturating_mul(2_u32.saturating_pow(n - 1)).min(poll * LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_failures_up_to_eight_polls() {
        let poll = Duration::from_secs(30);
        let pauses: Vec<_> = [0, 1, 2, 3, 8, 9, 1000].map(|n| pause_after(n, poll).as_secs()).to_vec();
        assert_eq!(pauses, [30, 1, 2, 4, 128, 240, 240]);
        assert_eq!(pause_after(1, Duration::from_millis(50)), Duration::from_millis(50));
    }
}
