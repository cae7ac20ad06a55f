//! The start: restores what the state directory holds, and loads the first partitions.
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Mutex;

use delo_catalogue::{Catalogue, Resident, Trial};
use delo_engine::Engine;
use delo_model::model_dir::partition_files;
use delo_process::allocator;

use super::candidate::warm_up;
use super::error::ChangeError;
use super::opened_state::OpenedState;
use super::owner::{CatalogueOwner, Settings};
use super::versions::{LedgerStore, VersionStore};
use crate::blocking::blocking;
use crate::ledger::{Ledger, TaskRecord};
use crate::source::{PartitionSource, Root};

/// The versions that the ledger makes live or puts on trial, as far as their artifacts are sound.
#[derive(Default)]
struct Restored {
    residents: Vec<Arc<Resident>>,
    trials: Vec<Trial>,
    /// What could not be restored, for the operator.
    notices: Vec<String>,
}

impl CatalogueOwner {
    /// A catalogue with what the state directory holds; an empty one where there is none.
    ///
    /// # Errors
    /// A root that is no directory; a state directory that can't be read, is in use, or belongs to another
    /// backbone.
    pub async fn open(engine: Arc<Engine>, settings: Settings) -> Result<Arc<Self>, ChangeError> {
        let live = ArcSwap::from_pointee(Catalogue::empty(engine.backbone(), settings.rule).with_special_tokens(settings.special_tokens));
        let fingerprint = engine.backbone().fingerprint.clone();
        let (root, opened) = open_directories(settings.clone()).await?;
        let mut store =
            LedgerStore { ledger: Ledger::of(fingerprint.clone()), versions: VersionStore::Memory(HashMap::new()), notices: Vec::new() };
        let Some(OpenedState { state, found, former, notice }) = opened else {
            return Ok(Arc::new(Self { engine, settings, root, former: None, live, store: Mutex::new(store) }));
        };
        store.ledger = found.ledger.unwrap_or(store.ledger);
        if store.ledger.backbone != fingerprint {
            return Err(ChangeError::OtherBackbone { found: store.ledger.backbone, expected: fingerprint });
        }
        (store.versions, store.notices) = (VersionStore::Disk(state), found.notices);
        let owner = Arc::new(Self { engine, settings, root, former, live, store: Mutex::new(store) });
        owner.restore().await?;
        owner.store.lock().await.notices.extend(notice);
        Ok(owner)
    }

    /// Puts back what the ledger says. Where an artifact is lost or damaged, the task falls back to the
    /// newest sound version that is retained before it, or is left out; the rest is served.
    async fn restore(&self) -> Result<(), ChangeError> {
        let mut store = self.store.lock().await;
        let mut ledger = store.ledger.clone();
        let mut restored = Restored::default();
        for (task, entry) in &mut ledger.tasks {
            self.restore_live(&store, task, entry, &mut restored).await;
            self.restore_trial(&store, task, entry, &mut restored).await;
        }
        let Restored { residents, trials, notices } = restored;
        let (engine, empty) = (self.engine.clone(), self.catalogue());
        let rebuild = move || {
            let mut catalogue = empty.with_all(residents)?;
            for trial in trials {
                catalogue = catalogue.with_trial(trial)?;
            }
            catalogue.residents().try_for_each(|resident| warm_up(&engine, &catalogue, resident))?;
            Ok::<_, ChangeError>(catalogue)
        };
        let catalogue = blocking(rebuild).await?;
        if ledger != store.ledger {
            store.advance_to(ledger, &[])?;
        }
        notices.iter().chain(&store.notices).for_each(|notice| tracing::error!(notice, "state directory"));
        store.notices.extend(notices);
        self.live.store(Arc::new(catalogue));
        allocator::trim_now();
        Ok(())
    }

    /// The live version of a task, or the newest sound one before it, which is live in `entry` then.
    async fn restore_live(&self, store: &LedgerStore, task: &str, entry: &mut TaskRecord, restored: &mut Restored) {
        while let Some(version) = entry.live {
            match self.retained(store, task, version).await {
                Ok(resident) => {
                    restored.residents.push(resident);
                    return;
                }
                Err(error) => {
                    entry.versions.remove(&version);
                    let earlier = entry.retained().rev().find(|&retained| retained < version);
                    entry.live = earlier;
                    let instead = entry.live.map_or("it is not served".to_owned(), |v| format!("fell back to version {v}"));
                    restored.notices.push(format!("version {version} of task {task:?}: {error}; {instead}"));
                }
            }
        }
    }

    /// The version of a task that is on trial. A trial ends where its artifact is not sound, or nothing is
    /// live.
    async fn restore_trial(&self, store: &LedgerStore, task: &str, entry: &mut TaskRecord, restored: &mut Restored) {
        let Some(trial) = entry.trial.take() else { return };
        match self.retained(store, task, trial.version).await {
            Ok(resident) if entry.live.is_some() => {
                restored.trials.push(Trial { resident, mode: trial.mode });
                entry.trial = Some(trial);
            }
            Ok(_) => drop(entry.versions.remove(&trial.version)),
            Err(error) => {
                entry.versions.remove(&trial.version);
                restored.notices.push(format!("version {} of task {task:?}, on trial: {error}; the trial is over", trial.version));
            }
        }
    }

    /// Loads the partitions that lie in the root directory ([`partition_files`]); nothing where there is no
    /// root.
    ///
    /// # Errors
    /// The first file that is refused, by name; no file of the directory is live then.
    pub async fn load_directory(&self) -> Result<(), ChangeError> {
        let Some(dir) = self.root.dir().map(ToOwned::to_owned) else { return Ok(()) };
        let former = self.former.clone();
        let list = move || {
            let mut files = partition_files(&dir).map_err(|source| ChangeError::Directory { dir, source })?;
            files.retain(|file| !former.as_ref().is_some_and(|former| former.wrote(file)));
            Ok::<_, ChangeError>(files)
        };
        let named = |file: PathBuf| (file.to_string_lossy().into_owned(), PartitionSource::File(file));
        self.load_at_start(blocking(list).await?.into_iter().map(named).collect()).await
    }

    /// Loads the first partitions, each given with a name for messages: all of them or none. The catalogue is
    /// made once, so that the task router is solved once. A task that the ledger knows is left as the ledger
    /// has it: what an operator did by hand outlives what lies in a directory.
    ///
    /// # Errors
    /// The first partition that is refused, by its name.
    pub async fn load_at_start(&self, sources: Vec<(String, PartitionSource)>) -> Result<(), ChangeError> {
        let mut store = self.store.lock().await;
        let mut files = HashMap::new();
        let mut ledger = store.ledger.clone();
        let (mut residents, mut artifacts) = (Vec::new(), Vec::new());
        let read = |(file, source): (String, PartitionSource)| async move {
            let origin = source.origin();
            let candidate = self.read(source).await;
            let candidate = candidate.map_err(|reason| ChangeError::AtStart { file: file.clone(), reason: Box::new(reason) })?;
            Ok::<_, ChangeError>((file, origin, candidate))
        };
        // As many at once as there are cores: what is read and not yet packed takes several times its own
        // size.
        let mut candidates = stream::iter(sources.into_iter().map(read)).buffered(num_cpus::get());
        while let Some((file, origin, candidate)) = candidates.try_next().await? {
            let task = candidate.partition.meta.task.clone();
            if let Some(first) = files.insert(task.clone(), file.clone()) {
                return Err(ChangeError::Twice { task, first, second: file });
            }
            if let Some(known) = store.ledger.tasks.get(&task) {
                let live = known.live.and_then(|live| known.versions.get(&live));
                if live.is_none_or(|live| live.digest != candidate.partition.digest) {
                    let notice =
                        format!("{file} is not what is live of task {task:?}: the state directory decides; load it with `delo admin load`");
                    tracing::warn!(notice, "partitions");
                    store.notices.push(notice);
                }
                continue;
            }
            let version = ledger.load(&task, candidate.record(origin), None)?;
            // Kept only until they are written: they take as much memory as what serves.
            if store.is_durable() {
                artifacts.push(candidate.artifact);
            }
            residents.push(Resident::new(candidate.partition, version));
        }
        if residents.is_empty() {
            return Ok(());
        }
        let (engine, before) = (self.engine.clone(), self.catalogue());
        let add = move || {
            let catalogue = before.with_all(residents.iter().cloned())?;
            residents.iter().try_for_each(|resident| warm_up(&engine, &catalogue, resident))?;
            Ok::<_, ChangeError>(catalogue)
        };
        let catalogue = blocking(add).await?;
        store.advance_to(ledger, &artifacts)?;
        self.live.store(Arc::new(catalogue));
        allocator::trim_now();
        Ok(())
    }
}

/// Finds the root directory and opens the state directory, where the settings name one.
async fn open_directories(settings: Settings) -> Result<(Root, Option<OpenedState>), ChangeError> {
    let open = move || {
        let Settings { root: dir, state_dir, max_artifact_bytes, trust, .. } = settings;
        let root = Root::new(dir.as_deref(), max_artifact_bytes, trust);
        let root = root.map_err(|source| ChangeError::Directory { dir: dir.clone().unwrap_or_default(), source })?;
        let opened = state_dir.map(|state_dir| OpenedState::open(&state_dir, dir.as_deref())).transpose()?;
        Ok::<_, ChangeError>((root, opened))
    };
    blocking(open).await
}
