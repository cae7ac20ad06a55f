//! Keeps what is live here equal to what a manifest says is live.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;

use super::RemoteError;
use super::fetch::{Limits, check_signature, fetch, fetch_manifest, jittered};
use super::manifest::{Entry, Manifest};
use super::place::{Place, Tag};
use crate::signature::{self, Trust};
use crate::state::StateError;
use crate::{Load, Registry, RegistryError, Source};

/// The longest pause after failures, in polls.
const LONGEST_PAUSE: u32 = 8;
/// The pause after the first failure, where a poll is not shorter.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// One server's following of one manifest.
#[derive(Debug)]
pub struct Follower {
    place: Place,
    /// Where the manifest lies, as it is told to people and remembered.
    address: String,
    registry: Arc<Registry>,
    trust: Arc<Trust>,
    limits: Limits,
    poll: Duration,
    /// Artifacts fetched at once.
    max_fetches: usize,
    /// What only one synchronisation at a time may know and change: held through all of it, so that they happen one after another.
    progress: tokio::sync::Mutex<Progress>,
    /// What is told of it. Held for moments, never over an await.
    report: Mutex<Report>,
}

#[derive(Debug, Default)]
struct Progress {
    /// The newest manifest read and its state.
    manifest: Manifest,
    tag: Tag,
    /// By task, the digest that the manifest made live here.
    followed: BTreeMap<String, String>,
    /// Whether `followed` holds what this server kept over a restart.
    adopted: bool,
    /// By digest, why an artifact is not fetched again until the manifest changes.
    refused: HashMap<String, String>,
    /// Synchronisations in a row after which another may go better.
    failures: u32,
}

/// Why a synchronisation happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// It was time to look.
    Poll,
    /// Somebody asked. What was refused gets another chance, and an older manifest than the last one seen is taken where that is wanted.
    Asked { accept_older: bool },
}

/// How far this server is with its manifest.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub manifest: String,
    /// Of the newest manifest seen.
    pub revision: u64,
    /// What is live there is live here.
    pub in_sync: bool,
    /// Why not; empty where it is.
    pub error: String,
    /// When they were last found equal.
    pub synced: Option<Instant>,
}

/// What a synchronisation changed here, by task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub loaded: Vec<String>,
    pub unloaded: Vec<String>,
}

/// Why an artifact is not live.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{0}")]
    Before(String),
}

impl Refusal {
    /// Whether another attempt may go better while the manifest stays.
    fn passes(&self) -> bool {
        match self {
            Self::Remote(error) => error.passes(),
            Self::Registry(error) => matches!(error, RegistryError::Panicked | RegistryError::State(StateError::Write(_))),
            Self::Before(_) => false,
        }
    }
}

impl Follower {
    /// Follows the manifest of `place` every `poll`.
    pub fn new(place: Place, registry: Arc<Registry>, trust: Arc<Trust>, limits: Limits, poll: Duration, max_fetches: usize) -> Self {
        let address = place.shown(super::publish::MANIFEST);
        let report = Mutex::new(Report { manifest: address.clone(), ..Report::default() });
        metrics::gauge!("delo_registry_in_sync").set(0.0);
        metrics::gauge!("delo_registry_revision").set(0.0);
        // Present from the first scrape on.
        for outcome in ["ok", "failed"] {
            metrics::counter!("delo_registry_syncs_total", "outcome" => outcome).increment(0);
        }
        metrics::counter!("delo_registry_fetched_bytes_total").increment(0);
        Self { place, address, registry, trust, limits, poll, max_fetches, progress: tokio::sync::Mutex::default(), report }
    }

    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The pause before the next poll: longer after failures, never the same on two replicas.
    pub async fn pause(&self) -> Duration {
        jittered(pause_after(self.progress.lock().await.failures, self.poll))
    }

    /// Compares the manifest with what is live, and loads and unloads what differs. A failure is told in the report and changes nothing of what is served.
    pub async fn sync(&self, occasion: Occasion) -> Changes {
        let mut progress = self.progress.lock().await;
        if occasion != Occasion::Poll {
            progress.refused.clear();
        }
        let mut changes = Changes::default();
        let mut failures: Vec<Refusal> = Vec::new();
        match self.refresh(&mut progress, occasion == Occasion::Asked { accept_older: true }).await {
            Ok(()) => self.adopt(&mut progress).await,
            Err(error) => failures.push(error.into()),
        }
        match self.remember(&progress).await {
            // An old manifest is still worth following: what failed to load may load now.
            Ok(()) => {
                self.load(&mut progress, &mut changes, &mut failures).await;
                self.unload(&mut progress, &mut changes, &mut failures).await;
            }
            // Nothing follows from a manifest that a restart would not know.
            Err(error) => failures.push(error.into()),
        }
        let retry = failures.iter().any(Refusal::passes);
        progress.failures = if retry { progress.failures.saturating_add(1) } else { 0 };
        self.tell(progress.manifest.revision, &failures);
        changes
    }

    /// Takes a newer manifest, if there is one; an older one too where that is wanted.
    async fn refresh(&self, progress: &mut Progress, accept_older: bool) -> Result<(), RemoteError> {
        let Some((manifest, tag)) = fetch_manifest(&self.place, &progress.tag, self.limits.timeout).await? else { return Ok(()) };
        // Once one was read it counts alone: it may be an older one that was accepted.
        let seen = if progress.adopted { progress.manifest.revision } else { self.registry.seen(&self.address).await };
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

    /// Lets the registry remember which revision is followed, once a manifest was read.
    async fn remember(&self, progress: &Progress) -> Result<(), RegistryError> {
        if progress.adopted { self.registry.see(&self.address, progress.manifest.revision).await } else { Ok(()) }
    }

    /// Counts what this server kept over a restart, and had from this registry, as followed: it may have been withdrawn meanwhile. Only once a manifest was
    /// read: an unreachable registry has withdrawn nothing.
    async fn adopt(&self, progress: &mut Progress) {
        if std::mem::replace(&mut progress.adopted, true) {
            return;
        }
        let from_here = format!("{}/", self.place.shown("partitions"));
        for (task, entry) in self.registry.report().await.tasks {
            let live = entry.live.and_then(|version| entry.versions.get(&version));
            if let Some(live) = live.filter(|live| live.origin.starts_with(&from_here)) {
                progress.followed.insert(task, live.digest.clone());
            }
        }
    }

    async fn load(&self, progress: &mut Progress, changes: &mut Changes, failures: &mut Vec<Refusal>) {
        let catalogue = self.registry.catalogue();
        let mut missing = Vec::new();
        for entry in progress.manifest.live() {
            if catalogue.get(&entry.task).is_some_and(|resident| resident.partition.digest == entry.sha256) {
                progress.followed.insert(entry.task.clone(), entry.sha256.clone());
            } else if let Some(reason) = progress.refused.get(&entry.sha256) {
                failures.push(Refusal::Before(reason.clone()));
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
                    if !refusal.passes() {
                        progress.refused.insert(entry.sha256, format!("task {:?}: {refusal}", entry.task));
                    }
                    failures.push(refusal);
                }
            }
        }
        changes.loaded.sort();
    }

    async fn fetch_and_load(&self, entry: &Entry) -> Result<(), Refusal> {
        let bytes = fetch(&self.place, entry, self.limits).await?;
        let signature = entry.signature.as_deref().map(signature::from_hex).transpose().map_err(RemoteError::from)?;
        check_signature(&self.trust, bytes.clone(), signature).await?;
        // Loaded under another name it would never be found equal, and take that name's place.
        let found = delo_model::partition::task_name(&bytes).map_err(RemoteError::from)?;
        if found != entry.task {
            let object = self.place.shown(&entry.object());
            return Err(RemoteError::OtherTask { object, found, expected: entry.task.clone() }.into());
        }
        let origin = Some(self.place.shown(&entry.object()));
        self.registry.load(Load { origin, ..Source::Artifact(bytes).into() }).await?;
        Ok(())
    }

    /// Unloads what the manifest made live and no longer does. What somebody loaded by hand since, or besides, stays.
    async fn unload(&self, progress: &mut Progress, changes: &mut Changes, failures: &mut Vec<Refusal>) {
        let withdrawn: Vec<_> = progress.followed.keys().filter(|task| !progress.manifest.live.contains_key(*task)).cloned().collect();
        for task in withdrawn {
            let Some(digest) = progress.followed.remove(&task) else { continue };
            if self.registry.catalogue().get(&task).is_none_or(|resident| resident.partition.digest != digest) {
                continue;
            }
            match self.registry.unload(&task, "").await {
                Ok(_) => changes.unloaded.push(task),
                Err(error) => {
                    progress.followed.insert(task, digest);
                    failures.push(error.into());
                }
            }
        }
        if !changes.unloaded.is_empty() {
            // What did not go with those that are gone now may go with the rest.
            progress.refused.clear();
        }
    }

    fn tell(&self, revision: u64, failures: &[Refusal]) {
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

/// Doubled with each failure in a row, up to some polls.
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
