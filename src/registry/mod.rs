//! Which partitions are live, and where they come from: one atomic catalogue, changed by one load or unload at a time.
pub mod remote;
pub mod signature;
mod source;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Mutex;

use crate::delo::{Partition, PartitionError};
use crate::engine::{Catalogue, CatalogueError, Engine, EngineError, Query, Resident, RoutingRule};
use crate::input::{Pixels, Sample};
use signature::Trust;
pub use source::{Root, Source, SourceError};

/// The live catalogue and everything that changes it.
#[derive(Debug)]
pub struct Registry {
    engine: Arc<Engine>,
    /// Where partitions may be read from by path.
    root: Root,
    /// Replaced as a whole: whoever holds a snapshot keeps a consistent catalogue, whatever is loaded meanwhile.
    live: ArcSwap<Catalogue>,
    /// The latest version of every task name loaded so far. Held through a change, so that changes happen one after another.
    versions: Mutex<HashMap<String, u64>>,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Partition(#[from] PartitionError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("task {task:?} could not classify a blank image: {reason}")]
    Trial { task: String, reason: String },
    #[error("reading the partition failed inside the server; its log says more")]
    Panicked,
    #[error("can't list the partitions of {dir}: {source}")]
    Directory { dir: PathBuf, source: std::io::Error },
    /// At start.
    #[error("partition {file}: {reason}")]
    AtStart { file: String, reason: Box<RegistryError> },
    #[error("partitions {first} and {second} are both of task {task:?}: leave one of them out")]
    Twice { task: String, first: String, second: String },
}

impl Registry {
    /// An empty registry. Partitions are loaded by path from inside `root` only; from nowhere where it is `None`.
    ///
    /// # Errors
    /// A root that is no directory.
    pub fn new(engine: Arc<Engine>, rule: RoutingRule, root: Option<&Path>, max_artifact_bytes: usize) -> Result<Self, RegistryError> {
        let live = ArcSwap::from_pointee(Catalogue::empty(engine.backbone(), rule));
        let root = Root::new(root, max_artifact_bytes)
            .map_err(|source| RegistryError::Directory { dir: root.unwrap_or(Path::new("")).to_owned(), source })?;
        Ok(Self { root, engine, live, versions: Mutex::default() })
    }

    /// Reads files by path only where `trust` lets them be served. Artifacts given as bytes are checked by who gives them.
    #[must_use]
    pub fn trusting(mut self, trust: Arc<Trust>) -> Self {
        self.root.trust(trust);
        self
    }

    /// What is live at this moment.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.live.load_full()
    }

    /// Loads every `*.safetensors` of the root directory, or nothing where there is none.
    ///
    /// # Errors
    /// The first file that is refused, by name; nothing is live then.
    pub async fn load_directory(&self) -> Result<(), RegistryError> {
        let Some(dir) = self.root.dir() else { return Ok(()) };
        let failed = |source| RegistryError::Directory { dir: dir.to_owned(), source };
        let mut files = Vec::new();
        let mut entries = tokio::fs::read_dir(dir).await.map_err(failed)?;
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                files.push(path.to_string_lossy().into_owned());
            }
        }
        files.sort();
        self.load_at_start(files.into_iter().map(|file| (file.clone(), Source::Uri(file))).collect()).await
    }

    /// Loads the first partitions, all of them or none, solving the router once.
    ///
    /// # Errors
    /// The first that is refused, by its name.
    pub async fn load_at_start(&self, sources: Vec<(String, Source)>) -> Result<(), RegistryError> {
        let mut versions = self.versions.lock().await;
        let mut files = HashMap::new();
        let mut residents = Vec::new();
        let read = |(file, source): (String, Source)| async move {
            let partition = self.read(source).await;
            let read = partition.map_err(|reason| RegistryError::AtStart { file: file.clone(), reason: Box::new(reason) })?;
            Ok::<_, RegistryError>((file, read))
        };
        // As many at once as there are cores: what is read and not yet packed takes several times its own size.
        let mut partitions = stream::iter(sources.into_iter().map(read)).buffered(num_cpus::get());
        while let Some((file, (partition, digest))) = partitions.try_next().await? {
            let task = partition.meta.task.clone();
            if let Some(first) = files.insert(task.clone(), file.clone()) {
                return Err(RegistryError::Twice { task, first, second: file });
            }
            residents.push(Arc::new(Resident { partition, digest, version: 1 }));
        }
        let catalogue = self.catalogue();
        let engine = self.engine.clone();
        let added = move || {
            let catalogue = catalogue.with_all(residents)?;
            catalogue.residents().try_for_each(|r| try_out(&engine, &catalogue, r.task()))?;
            Ok::<_, RegistryError>(catalogue)
        };
        self.live.store(Arc::new(blocking(added).await??));
        versions.extend(files.into_keys().map(|task| (task, 1)));
        give_memory_back();
        Ok(())
    }

    /// Reads, checks and tries out a partition and makes it live. A name that is loaded already gets a new version. A failure changes nothing.
    ///
    /// # Errors
    /// A source that can't be read, an artifact that is refused, a partition that does not go with the others.
    pub async fn load(&self, source: Source) -> Result<Arc<Resident>, RegistryError> {
        let started = Instant::now();
        // Reading and checking is the long part: it goes on beside the serving and beside other loads.
        let (partition, digest) = self.read(source).await?;
        let mut versions = self.versions.lock().await;
        let task = partition.meta.task.clone();
        let version = versions.get(&task).copied().unwrap_or(0) + 1;
        let resident = Arc::new(Resident { partition, digest, version });
        let (engine, catalogue, new) = (self.engine.clone(), self.catalogue(), resident.clone());
        let added = move || {
            let catalogue = catalogue.with(new.clone())?;
            try_out(&engine, &catalogue, new.task())?;
            Ok::<_, RegistryError>(catalogue)
        };
        self.live.store(Arc::new(blocking(added).await??));
        versions.insert(task.clone(), version);
        give_memory_back();
        metrics::histogram!("delo_partition_load_seconds").record(started.elapsed());
        tracing::info!(
            task,
            version,
            checksum = resident.partition.checksum,
            seconds = started.elapsed().as_secs_f64(),
            "partition loaded"
        );
        Ok(resident)
    }

    /// Takes a task's partition out of service; returns what it was. Batches that hold it finish with it.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownTask`]
    pub async fn unload(&self, task: &str) -> Result<Arc<Resident>, RegistryError> {
        let _one_change_at_a_time = self.versions.lock().await;
        let catalogue = self.catalogue();
        let resident = catalogue.get(task).ok_or_else(|| CatalogueError::UnknownTask(task.to_owned()))?.clone();
        let name = task.to_owned();
        self.live.store(Arc::new(blocking(move || catalogue.without(&name)).await??));
        tracing::info!(task, version = resident.version, "partition unloaded");
        Ok(resident)
    }

    /// The partition and the digest of its file.
    async fn read(&self, source: Source) -> Result<(Partition, String), RegistryError> {
        let (root, engine) = (self.root.clone(), self.engine.clone());
        let read = move || {
            let bytes = root.read(source)?;
            Ok((Partition::read(&bytes, engine.backbone())?.in_precision(engine.precision()), signature::digest(&bytes)))
        };
        blocking(read).await?
    }
}

/// Classifies a blank image with a task that isn't live yet: proves that it will serve, and touches its memory.
fn try_out(engine: &Engine, catalogue: &Catalogue, task: &str) -> Result<(), RegistryError> {
    let [height, width] = catalogue.dummy_image();
    let sample = Sample { text: None, image: Some(Pixels::dummy(height, width)) };
    let query = Query { sample, task: Some(task.to_owned()), explain: false };
    let failed = |reason: String| RegistryError::Trial { task: task.to_owned(), reason };
    let answer =
        engine.classify(catalogue, &[query]).pop().unwrap_or(Err(EngineError::NothingLoaded)).map_err(|e| failed(e.to_string()))?;
    if answer.scores.iter().all(|s| s.is_finite()) {
        return Ok(());
    }
    Err(failed("its scores are not finite, its weights are out of range; train it again".to_owned()))
}

/// Reading a partition takes several times the memory that stays in use; the allocator of glibc keeps what is freed in pieces until it is asked.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointers and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Runs long work on the blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RegistryError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RegistryError::Panicked)
}
