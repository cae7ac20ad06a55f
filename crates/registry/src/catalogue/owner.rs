//! What the catalogue owner holds, and what it tells.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use delo_catalogue::{Catalogue, Resident, RoutingRule};
use delo_engine::Engine;

use super::candidate::Candidate;
use super::error::ChangeError;
use super::opened_state::FormerState;
use super::versions::{LedgerStore, VersionStore};
use crate::blocking::blocking;
use crate::ledger::{FollowedManifest, LedgerError, TaskRecord};
use crate::signature::Trust;
use crate::source::{PartitionSource, Root};

/// What a catalogue owner is set up with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How a sample's task is recognised.
    pub rule: RoutingRule,
    /// Whether special tokens in texts are read as such. A partition whose training read them the other way
    /// is refused.
    pub special_tokens: bool,
    /// Partitions are read by path from inside this directory only; from nowhere where it is `None`.
    pub root: Option<PathBuf>,
    /// Where the catalogue and its artifacts are kept over restarts; `None`: not at all.
    pub state_dir: Option<PathBuf>,
    /// How many earlier versions of a task can be rolled back to.
    pub retained_versions: usize,
    /// The largest artifact that is read.
    pub max_artifact_bytes: usize,
    /// Whose signatures count, and whether they are required.
    pub trust: Arc<Trust>,
}

/// The live catalogue and everything that changes it.
#[derive(Debug)]
pub struct CatalogueOwner {
    pub(super) engine: Arc<Engine>,
    pub(super) settings: Settings,
    pub(super) root: Root,
    /// The state in the former layout, where the state directory holds one.
    pub(super) former: Option<FormerState>,
    /// Replaced as a whole: a snapshot that was taken of it stays a consistent catalogue, whatever is loaded
    /// meanwhile.
    pub(super) live: ArcSwap<Catalogue>,
    /// Locked from the first to the last step of a change, so that changes are made one after another and in
    /// the order of their calls. No other lock is taken while it is held.
    pub(super) store: Mutex<LedgerStore>,
}

/// The ledger of a catalogue owner at one moment.
#[derive(Clone, Debug)]
pub struct CatalogueReport {
    /// Counts the changes.
    pub revision: u64,
    /// Whether what is live outlives the process.
    pub durable: bool,
    /// What the operator should know of the start.
    pub notices: Vec<String>,
    /// Every task that was ever loaded, by name.
    pub tasks: BTreeMap<String, TaskRecord>,
}

impl CatalogueOwner {
    /// What is live at this moment. Never waits.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.live.load_full()
    }

    /// The versions of all tasks, how many changes were made, and what the operator should know of the start.
    /// Waits for a change that is being made.
    pub async fn report(&self) -> CatalogueReport {
        let store = self.store.lock().await;
        CatalogueReport {
            revision: store.ledger.revision,
            durable: store.is_durable(),
            notices: store.notices.clone(),
            tasks: store.ledger.tasks.clone(),
        }
    }

    /// The revision at which the manifest at this address was last followed; 0 before the first time, or
    /// where another manifest was followed since.
    pub async fn followed_revision(&self, manifest: &str) -> u64 {
        let store = self.store.lock().await;
        store.ledger.followed.as_ref().filter(|followed| followed.manifest == manifest).map_or(0, |followed| followed.revision)
    }

    /// Remembers that the manifest at this address is followed at this revision.
    ///
    /// # Errors
    /// The state can't be written.
    pub async fn remember_followed(&self, manifest: &str, revision: u64) -> Result<(), ChangeError> {
        let followed = Some(FollowedManifest { manifest: manifest.to_owned(), revision });
        let mut store = self.store.lock().await;
        if store.ledger.followed == followed {
            return Ok(());
        }
        let mut ledger = store.ledger.clone();
        ledger.followed = followed;
        store.advance_to(ledger, &[])
    }

    /// Reads and checks a partition, on the blocking pool.
    pub(super) async fn read(&self, source: PartitionSource) -> Result<Candidate, ChangeError> {
        let (root, engine) = (self.root.clone(), self.engine.clone());
        blocking(move || Candidate::check(root.read(source)?, &engine)).await
    }

    /// A version that the ledger retains, from memory or from the disk.
    pub(super) async fn retained(&self, store: &LedgerStore, task: &str, version: u64) -> Result<Arc<Resident>, ChangeError> {
        let unknown = || LedgerError::UnknownVersion { task: task.to_owned(), version, retained: Vec::new() };
        match &store.versions {
            VersionStore::Memory(kept) => Ok(kept.get(&(task.to_owned(), version)).cloned().ok_or_else(unknown)?),
            VersionStore::Disk(state) => {
                let digest = store.ledger.record(task, version).ok_or_else(unknown)?.digest.clone();
                let (artifacts, engine) = (state.artifacts(), self.engine.clone());
                let limit = self.settings.max_artifact_bytes as u64;
                let candidate = blocking(move || Candidate::check(artifacts.read(&digest, limit)?, &engine)).await?;
                Ok(Resident::new(candidate.partition, version))
            }
        }
    }
}
