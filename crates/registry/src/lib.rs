//! Which partitions are live, on trial or retained, and where they come from: one atomic catalogue, changed by one operation at a time.
//!
//! [`ledger`] says what a change means, [`state`] makes it outlive the process, and this module makes it happen: read and check beside the serving, try
//! out, write down, swap.
mod crash;
mod file_address;
mod folder;
pub mod ledger;
pub mod remote;
pub mod signature;
mod source;
pub mod state;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;

use delo_engine::{Catalogue, CatalogueError, Engine, EngineError, Query, Resident, RoutingRule, Trial, TrialMode};
use delo_model::input::{Pixels, Sample};
use delo_model::model_dir::partition_files;
use delo_model::partition::digest;
use delo_model::{Partition, PartitionError};
use delo_process::allocator;
use folder::Folder;
pub use folder::FolderError;
use ledger::{Done, Ledger, LedgerError, Seen, TaskRecord, VersionRecord};
use signature::Trust;
pub use source::{Root, Source, SourceError};
use state::{Found, StateDir, StateError};

/// How long an unload waits for the requests that the partition is serving.
const DRAIN: Duration = Duration::from_secs(30);
/// How often it looks.
const DRAIN_STEP: Duration = Duration::from_millis(2);

/// What a registry is set up with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub rule: RoutingRule,
    /// Whether special tokens in texts are read as such; no partition whose training read them otherwise is
    /// taken.
    pub special_tokens: bool,
    /// Partitions are read by path from inside this directory only; from nowhere where it is `None`.
    pub root: Option<PathBuf>,
    /// Where the catalogue and its artifacts are kept over restarts; `None`: not at all.
    pub state_dir: Option<PathBuf>,
    /// Earlier versions of a task that can be rolled back to.
    pub retained_versions: usize,
    pub max_artifact_bytes: usize,
    /// Whose signatures count, and whether they are required.
    pub trust: Arc<Trust>,
}

/// The live catalogue and everything that changes it.
#[derive(Debug)]
pub struct Registry {
    engine: Arc<Engine>,
    settings: Settings,
    root: Root,
    /// `None` where the state directory holds no state in the former layout.
    former: Option<Former>,
    /// Replaced as a whole: whoever holds a snapshot keeps a consistent catalogue, whatever is loaded meanwhile.
    live: ArcSwap<Catalogue>,
    /// Held through a change, so that changes happen one after another and in the order of their calls.
    books: Mutex<Books>,
}

/// Files of a state in the former layout ([`Folder::former`]). They are read once, when the state is taken
/// over, and stay as they are.
#[derive(Debug)]
struct Former {
    /// The folder of its artifacts, in which partitions of a user may lie too.
    partitions: PathBuf,
    /// The artifacts that it named.
    digests: BTreeSet<String>,
}

impl Former {
    /// Whether a file is one of its artifacts.
    fn wrote(&self, file: &Path) -> bool {
        let named = file.file_name().and_then(OsStr::to_str).and_then(state::named_digest);
        named.is_some_and(|digest| self.digests.contains(digest))
            && file.parent().and_then(|dir| dir.canonicalize().ok()) == self.partitions.canonicalize().ok()
    }
}

/// What a state directory holds.
struct Kept {
    state: StateDir<Folder>,
    found: Found,
    former: Option<Former>,
    /// What the operator should know besides.
    notice: Option<String>,
}

impl Kept {
    /// Opens a state directory; a state in the former layout is taken over where there is none in the present
    /// one.
    fn open(dir: &Path, partitions: Option<&Path>) -> Result<Self, RegistryError> {
        let folder = Folder::open(dir)?;
        if let Some(partitions) = partitions {
            folder.check_apart(partitions)?;
        }
        let own = folder.path().to_owned();
        let (mut state, mut found) = StateDir::open(folder)?;
        let Some(former) = Folder::former(dir)? else { return Ok(Self { state, found, former: None, notice: None }) };
        let (old, old_found) = StateDir::open(former)?;
        let former = Former { partitions: dir.join(state::PARTITIONS), digests: old.digests() };
        let mut notice = None;
        if let (true, Some(ledger)) = (found.is_empty(), &old_found.ledger) {
            state.adopt(&old, ledger)?;
            let text = format!(
                "what an earlier delo kept in {} was copied to {}; its files stay, and are not read any more: catalogue-*.json, lock, and in partitions those named by a SHA-256",
                dir.display(),
                own.display()
            );
            tracing::info!(notice = text, "state directory");
            notice = Some(text);
            found = old_found;
        }
        Ok(Self { state, found, former: Some(former), notice })
    }
}

/// What is known beyond the catalogue.
#[derive(Debug)]
struct Books {
    ledger: Ledger,
    store: Store,
    /// What the operator should know of the start.
    notices: Vec<String>,
}

/// Where versions are kept that are not in the catalogue.
#[derive(Debug)]
enum Store {
    Disk(StateDir<Folder>),
    /// By task and version.
    Memory(HashMap<(String, u64), Arc<Resident>>),
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Partition(#[from] PartitionError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("task {task:?} could not classify a blank image: {reason}")]
    Trial { task: String, reason: String },
    #[error("the work failed inside the server; its log says more")]
    Panicked,
    #[error("can't list the partitions of {dir}: {source}")]
    Directory { dir: PathBuf, source: std::io::Error },
    /// At start.
    #[error("partition {file}: {reason}")]
    AtStart { file: String, reason: Box<RegistryError> },
    #[error("partitions {first} and {second} are both of task {task:?}: leave one of them out")]
    Twice { task: String, first: String, second: String },
    #[error(
        "the state directory belongs to backbone {found}, not to {expected}: start with that backbone, or with another catalogue.state_dir"
    )]
    OtherBackbone { found: String, expected: String },
}

/// A version that an operation made live, took away, or put on trial.
#[derive(Clone, Debug)]
pub struct Changed {
    pub task: String,
    pub version: u64,
    pub record: VersionRecord,
    /// While it is resident.
    pub resident: Option<Arc<Resident>>,
    /// Of a version that was resident before or after the change.
    pub labels: Vec<String>,
}

/// What is asked of [`Registry::load`].
#[derive(Clone, Debug)]
pub struct Load {
    pub source: Source,
    /// On trial beside the live version; `None`: live at once.
    pub trial: Option<TrialMode>,
    /// Where it is from, for people and to tell whether a request is the same again; what the source says of itself where it is `None`.
    pub origin: Option<String>,
    /// Empty, or the caller's id of this request: asked again with the same id, it is answered and not done again.
    pub request_id: String,
}

impl From<Source> for Load {
    fn from(source: Source) -> Self {
        Self { source, trial: None, origin: None, request_id: String::new() }
    }
}

/// A partition that was read and checked, and is not yet part of anything.
struct Fresh {
    partition: Partition,
    bytes: Bytes,
}

/// A step from one ledger to the next, and what is done with it.
struct Step<'a> {
    task: &'a str,
    request_id: &'a str,
    /// SHA-256 over what is asked.
    asked: String,
    fresh: Option<Fresh>,
}

impl Registry {
    /// What the state directory holds; an empty registry where there is none.
    ///
    /// # Errors
    /// A root that is no directory; a state directory that can't be read, is in use, or belongs to another backbone.
    pub async fn open(engine: Arc<Engine>, settings: Settings) -> Result<Arc<Self>, RegistryError> {
        let live = ArcSwap::from_pointee(Catalogue::empty(engine.backbone(), settings.rule).with_special_tokens(settings.special_tokens));
        let dir = settings.root.clone().unwrap_or_default();
        let root = Root::new(settings.root.as_deref(), settings.max_artifact_bytes, settings.trust.clone());
        let root = root.map_err(|source| RegistryError::Directory { dir, source })?;
        let fingerprint = engine.backbone().fingerprint.clone();
        let blank = Ledger::of(fingerprint.clone());
        let Some(dir) = settings.state_dir.clone() else {
            let books = Books { ledger: blank, store: Store::Memory(HashMap::new()), notices: Vec::new() };
            return Ok(Arc::new(Self { engine, settings, root, former: None, live, books: Mutex::new(books) }));
        };
        let partitions = settings.root.clone();
        let Kept { state, found, former, notice } = blocking(move || Kept::open(&dir, partitions.as_deref())).await??;
        let ledger = found.ledger.unwrap_or(blank);
        if ledger.backbone != fingerprint {
            return Err(RegistryError::OtherBackbone { found: ledger.backbone, expected: fingerprint });
        }
        let books = Books { ledger, store: Store::Disk(state), notices: found.notices };
        let registry = Arc::new(Self { engine, settings, root, former, live, books: Mutex::new(books) });
        registry.restore().await?;
        registry.books.lock().await.notices.extend(notice);
        Ok(registry)
    }

    /// What is live at this moment.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.live.load_full()
    }

    /// What is retained, how many changes were made, and what the operator should know of the start.
    pub async fn report(&self) -> Report {
        let books = self.books.lock().await;
        Report {
            revision: books.ledger.revision,
            durable: matches!(books.store, Store::Disk(_)),
            notices: books.notices.clone(),
            tasks: books.ledger.tasks.clone(),
        }
    }

    /// The revision of the newest manifest at this address that was followed; 0 before the first, or where another was followed since.
    pub async fn seen(&self, manifest: &str) -> u64 {
        let books = self.books.lock().await;
        books.ledger.seen.as_ref().filter(|seen| seen.manifest == manifest).map_or(0, |seen| seen.revision)
    }

    /// Remembers that the manifest at this address is followed at this revision.
    ///
    /// # Errors
    /// The state can't be written.
    pub async fn see(&self, manifest: &str, revision: u64) -> Result<(), RegistryError> {
        let seen = Some(Seen { manifest: manifest.to_owned(), revision });
        let mut books = self.books.lock().await;
        if books.ledger.seen == seen {
            return Ok(());
        }
        let mut ledger = books.ledger.clone();
        ledger.seen = seen;
        books.turn_to(ledger, &[])
    }

    /// Puts back what the ledger says. An artifact that is lost or damaged falls back to the newest sound version that is retained before it, or leaves
    /// its task out; the rest is served.
    async fn restore(&self) -> Result<(), RegistryError> {
        let mut books = self.books.lock().await;
        let mut ledger = books.ledger.clone();
        let (mut residents, mut trials, mut notices) = (Vec::new(), Vec::new(), Vec::new());
        for (task, entry) in &mut ledger.tasks {
            while let Some(version) = entry.live {
                match self.stored(&books, task, version).await {
                    Ok(resident) => {
                        residents.push(resident);
                        break;
                    }
                    Err(error) => {
                        entry.versions.remove(&version);
                        let earlier = entry.retained().rev().find(|&retained| retained < version);
                        entry.live = earlier;
                        let instead = entry.live.map_or("it is not served".to_owned(), |v| format!("fell back to version {v}"));
                        notices.push(format!("version {version} of task {task:?}: {error}; {instead}"));
                    }
                }
            }
            if let Some(trial) = entry.trial.take() {
                match self.stored(&books, task, trial.version).await {
                    Ok(resident) if entry.live.is_some() => {
                        trials.push(Trial { resident, mode: trial.mode });
                        entry.trial = Some(trial);
                    }
                    Ok(_) => drop(entry.versions.remove(&trial.version)),
                    Err(error) => {
                        entry.versions.remove(&trial.version);
                        notices.push(format!("version {} of task {task:?}, on trial: {error}; the trial is over", trial.version));
                    }
                }
            }
        }
        let (engine, catalogue) = (self.engine.clone(), self.catalogue());
        let rebuilt = move || {
            let mut catalogue = catalogue.with_all(residents)?;
            for trial in trials {
                catalogue = catalogue.with_trial(trial)?;
            }
            catalogue.residents().try_for_each(|resident| try_out(&engine, &catalogue, resident))?;
            Ok::<_, RegistryError>(catalogue)
        };
        let catalogue = blocking(rebuilt).await??;
        if ledger != books.ledger {
            books.turn_to(ledger, &[])?;
        }
        notices.iter().chain(&books.notices).for_each(|notice| tracing::error!(notice, "state directory"));
        books.notices.extend(notices);
        self.live.store(Arc::new(catalogue));
        allocator::trim_now();
        Ok(())
    }

    /// Loads the partitions that lie in the root directory ([`partition_files`]), or nothing where there is
    /// none.
    ///
    /// # Errors
    /// The first file that is refused, by name; nothing of them is live then.
    pub async fn load_directory(&self) -> Result<(), RegistryError> {
        let Some(dir) = self.root.dir() else { return Ok(()) };
        let mut files = partition_files(dir).map_err(|source| RegistryError::Directory { dir: dir.to_owned(), source })?;
        files.retain(|file| !self.former.as_ref().is_some_and(|former| former.wrote(file)));
        let named = |file: PathBuf| (file.to_string_lossy().into_owned(), Source::File(file));
        self.load_at_start(files.into_iter().map(named).collect()).await
    }

    /// Loads the first partitions, all of them or none, solving the router once. A task that the ledger knows is left as the ledger has it: what an
    /// operator did by hand outlives what lies in a directory.
    ///
    /// # Errors
    /// The first that is refused, by its name.
    pub async fn load_at_start(&self, sources: Vec<(String, Source)>) -> Result<(), RegistryError> {
        let mut books = self.books.lock().await;
        let mut files = HashMap::new();
        let mut ledger = books.ledger.clone();
        let (mut residents, mut artifacts) = (Vec::new(), Vec::new());
        let read = |(file, source): (String, Source)| async move {
            let fresh = self.read(source.clone()).await;
            let fresh = fresh.map_err(|reason| RegistryError::AtStart { file: file.clone(), reason: Box::new(reason) })?;
            Ok::<_, RegistryError>((file, origin(&source), fresh))
        };
        // As many at once as there are cores: what is read and not yet packed takes several times its own size.
        let mut partitions = stream::iter(sources.into_iter().map(read)).buffered(num_cpus::get());
        while let Some((file, origin, Fresh { partition, bytes })) = partitions.try_next().await? {
            let task = partition.meta.task.clone();
            if let Some(first) = files.insert(task.clone(), file.clone()) {
                return Err(RegistryError::Twice { task, first, second: file });
            }
            if let Some(known) = books.ledger.tasks.get(&task) {
                if known.live.and_then(|live| known.versions.get(&live)).is_none_or(|live| live.digest != partition.digest) {
                    let notice =
                        format!("{file} is not what is live of task {task:?}: the state directory decides; load it with `delo admin load`");
                    tracing::warn!(notice, "partitions");
                    books.notices.push(notice);
                }
                continue;
            }
            let version = ledger.load(&task, record(&partition, origin), None)?;
            // Kept in memory only where they are to be written: they are as large as what serves.
            artifacts.extend(matches!(books.store, Store::Disk(_)).then(|| (partition.digest.clone(), bytes)));
            residents.push(Resident::new(partition, version));
        }
        if residents.is_empty() {
            return Ok(());
        }
        let (engine, catalogue) = (self.engine.clone(), self.catalogue());
        let added = move || {
            let catalogue = catalogue.with_all(residents.iter().cloned())?;
            residents.iter().try_for_each(|resident| try_out(&engine, &catalogue, resident))?;
            Ok::<_, RegistryError>(catalogue)
        };
        let catalogue = blocking(added).await??;
        books.turn_to(ledger, &artifacts)?;
        self.live.store(Arc::new(catalogue));
        allocator::trim_now();
        Ok(())
    }

    /// What a load from this origin led to, where the request of this id was carried out before: what is asked before a fetch, which need not succeed again.
    ///
    /// # Errors
    /// The id belongs to a request for something else.
    pub async fn loaded_before(&self, origin: &str, trial: Option<TrialMode>, request_id: &str) -> Result<Option<Changed>, RegistryError> {
        let done = self.books.lock().await.ledger.replay(request_id, &asked_to_load(origin, trial))?.cloned();
        Ok(done.map(|done| self.changed(done.task, done.version, done.record)))
    }

    /// Reads, checks and tries out a partition and makes it live, or puts it on trial. A name that is loaded already gets a new version. A failure
    /// changes nothing.
    ///
    /// # Errors
    /// A source that can't be read, an artifact that is refused, a partition that does not go with the others, a state that can't be written.
    pub async fn load(&self, load: Load) -> Result<Changed, RegistryError> {
        let Load { source, trial, origin: said, request_id } = load;
        let started = Instant::now();
        let what = said.clone().unwrap_or_else(|| identity(&source));
        if let Some(done) = self.loaded_before(&what, trial, &request_id).await? {
            return Ok(done);
        }
        let asked = asked_to_load(&what, trial);
        let origin = said.unwrap_or_else(|| origin(&source));
        // Reading and checking is the long part: it goes on beside the serving and beside other loads.
        let fresh = self.read(source).await?;
        crash::point("registry.read");
        let (task, record) = (fresh.partition.meta.task.clone(), record(&fresh.partition, origin));
        let step = Step { task: &task, request_id: &request_id, asked, fresh: Some(fresh) };
        let changed = self.step(step, |ledger| ledger.load(&task, record, trial)).await?;
        metrics::histogram!("delo_partition_load_seconds").record(started.elapsed());
        let Changed { task, version, record, .. } = &changed;
        tracing::info!(task, version, checksum = record.checksum, ?trial, seconds = started.elapsed().as_secs_f64(), "partition loaded");
        Ok(changed)
    }

    /// Takes a task's partition out of service; returns what it was, and whether every request that it was serving had ended when this returned.
    /// Requests finish with the version that they started with.
    ///
    /// # Errors
    /// No such task; a state that can't be written.
    pub async fn unload(&self, task: &str, request_id: &str) -> Result<(Changed, bool), RegistryError> {
        let leaving = self.catalogue().get(task).map(Arc::downgrade);
        let forget = self.settings.state_dir.is_none();
        let step = Step { task, request_id, asked: asked("unload", task), fresh: None };
        let changed = self.step(step, |ledger| {
            let version = ledger.unload(task)?;
            if forget {
                // Nothing but memory would keep them, and an unload is to free it.
                ledger.forget_retained(task);
            }
            Ok(version)
        });
        let changed = changed.await?;
        tracing::info!(task, version = changed.version, "partition unloaded");
        let until = Instant::now() + DRAIN;
        let serving = || leaving.as_ref().is_some_and(|resident| resident.strong_count() > 0);
        while serving() && Instant::now() < until {
            tokio::time::sleep(DRAIN_STEP).await;
        }
        allocator::trim_now();
        Ok((changed, !serving()))
    }

    /// Makes a retained version live again: the one that is named, or the one before the live one.
    ///
    /// # Errors
    /// Nothing that fits is retained, or its artifact is lost; a state that can't be written.
    pub async fn roll_back(&self, task: &str, version: Option<u64>, request_id: &str) -> Result<Changed, RegistryError> {
        let step = Step { task, request_id, asked: asked("rollback", &format!("{task} {version:?}")), fresh: None };
        let changed = self.step(step, |ledger| ledger.roll_back(task, version)).await?;
        tracing::info!(task, version = changed.version, "rolled back");
        Ok(changed)
    }

    /// Makes the version on trial live, or gives it another share of the traffic.
    ///
    /// # Errors
    /// No trial; a state that can't be written.
    pub async fn promote(&self, task: &str, mode: Option<TrialMode>, request_id: &str) -> Result<Changed, RegistryError> {
        let step = Step { task, request_id, asked: asked("promote", &format!("{task} {mode:?}")), fresh: None };
        let changed = self.step(step, |ledger| ledger.promote(task, mode)).await?;
        tracing::info!(task, version = changed.version, ?mode, "promoted");
        Ok(changed)
    }

    /// Ends a trial; the version that was on it is dropped.
    ///
    /// # Errors
    /// No trial; a state that can't be written.
    pub async fn abort(&self, task: &str, request_id: &str) -> Result<Changed, RegistryError> {
        let step = Step { task, request_id, asked: asked("abort", task), fresh: None };
        let changed = self.step(step, |ledger| ledger.abort(task)).await?;
        tracing::info!(task, version = changed.version, "trial aborted");
        Ok(changed)
    }

    /// One change: the ledger's, then what it means for the catalogue, then the disk, then the swap.
    async fn step(&self, step: Step<'_>, change: impl FnOnce(&mut Ledger) -> Result<u64, LedgerError>) -> Result<Changed, RegistryError> {
        let Step { task, request_id, asked, fresh } = step;
        let mut books = self.books.lock().await;
        if let Some(done) = books.ledger.replay(request_id, &asked)?.cloned() {
            return Ok(self.changed(done.task, done.version, done.record));
        }
        let before = self.catalogue();
        let mut ledger = books.ledger.clone();
        let version = change(&mut ledger)?;
        // The record of a version that leaves with this change is in the old ledger only.
        let record = ledger.record(task, version).or_else(|| books.ledger.record(task, version)).cloned();
        let record = record.ok_or_else(|| LedgerError::UnknownTask(task.to_owned()))?;
        ledger.prune(task, self.settings.retained_versions);
        ledger.revision += 1;
        ledger.remember(Done { request_id: request_id.to_owned(), asked, task: task.to_owned(), version, record: record.clone() });

        let TaskRecord { live, trial, .. } = ledger.tasks.get(task).cloned().unwrap_or_default();
        let artifact: Vec<_> = fresh.iter().map(|fresh| (fresh.partition.digest.clone(), fresh.bytes.clone())).collect();
        let mut new = fresh.map(|fresh| Resident::new(fresh.partition, version));
        let mut resident = async |wanted: u64| match new.take_if(|new| new.version == wanted) {
            Some(new) => Ok(new),
            None => self.resident(&books, &before, task, wanted).await,
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
        let changed = move || {
            let catalogue = old.with_task(&name, live.clone(), trial.clone())?;
            let entering = live.iter().chain(trial.as_ref().map(|trial| &trial.resident));
            let entering = entering.filter(|resident| old.version(&name, resident.version).is_none());
            entering.into_iter().try_for_each(|resident| try_out(&engine, &catalogue, resident))?;
            Ok::<_, RegistryError>(catalogue)
        };
        let catalogue = blocking(changed).await??;
        crash::point("registry.tried");
        books.commit(&ledger, &artifact)?;
        books.keep(task, &ledger, &before);
        books.ledger = ledger;
        crash::point("registry.committed");
        self.live.store(Arc::new(catalogue));
        let mut changed = self.changed(task.to_owned(), version, record);
        if let Some(left) = before.version(task, version) {
            changed.labels.clone_from(&left.partition.meta.labels);
        }
        // What it held goes with its last batch.
        drop(before);
        allocator::trim_now();
        Ok(changed)
    }

    fn changed(&self, task: String, version: u64, record: VersionRecord) -> Changed {
        let resident = self.catalogue().version(&task, version).cloned();
        let labels = resident.as_ref().map(|resident| resident.partition.meta.labels.clone()).unwrap_or_default();
        Changed { task, version, record, resident, labels }
    }

    /// A version that is resident already, or is kept.
    async fn resident(&self, books: &Books, catalogue: &Catalogue, task: &str, version: u64) -> Result<Arc<Resident>, RegistryError> {
        match catalogue.version(task, version) {
            Some(resident) => Ok(resident.clone()),
            None => self.stored(books, task, version).await,
        }
    }

    /// A version that is kept.
    async fn stored(&self, books: &Books, task: &str, version: u64) -> Result<Arc<Resident>, RegistryError> {
        let unknown = || LedgerError::UnknownVersion { task: task.to_owned(), version, retained: Vec::new() };
        match &books.store {
            Store::Memory(kept) => Ok(kept.get(&(task.to_owned(), version)).cloned().ok_or_else(unknown)?),
            Store::Disk(state) => {
                let record = books.ledger.record(task, version).ok_or_else(unknown)?;
                let bytes = tokio::task::block_in_place(|| state.artifact(&record.digest, self.settings.max_artifact_bytes as u64))?;
                Ok(Resident::new(self.checked(bytes).await?.partition, version))
            }
        }
    }

    async fn read(&self, source: Source) -> Result<Fresh, RegistryError> {
        let root = self.root.clone();
        let bytes = blocking(move || root.read(source)).await??;
        self.checked(bytes).await
    }

    async fn checked(&self, bytes: Bytes) -> Result<Fresh, RegistryError> {
        let engine = self.engine.clone();
        let check = move || {
            let partition = Partition::read(&bytes, engine.backbone())?.in_precision(engine.precision());
            Ok(Fresh { partition, bytes })
        };
        blocking(check).await?
    }
}

/// A registry's books, for those who ask.
#[derive(Clone, Debug)]
pub struct Report {
    pub revision: u64,
    /// What is live outlives the process.
    pub durable: bool,
    pub notices: Vec<String>,
    pub tasks: std::collections::BTreeMap<String, TaskRecord>,
}

impl Books {
    /// Makes this ledger, a later state of the one here, the next revision, with the artifacts that it names for the first time.
    fn turn_to(&mut self, mut ledger: Ledger, new: &[(String, Bytes)]) -> Result<(), RegistryError> {
        ledger.revision += 1;
        self.commit(&ledger, new)?;
        self.ledger = ledger;
        Ok(())
    }

    fn commit(&mut self, ledger: &Ledger, new: &[(String, Bytes)]) -> Result<(), RegistryError> {
        match &mut self.store {
            Store::Memory(_) => Ok(()),
            // Some milliseconds of disk, which must not be abandoned halfway with its caller.
            Store::Disk(state) => Ok(tokio::task::block_in_place(|| state.commit(ledger, new))?),
        }
    }

    /// Keeps in memory what the ledger retains of a task and the old catalogue was serving, where nothing else keeps it.
    fn keep(&mut self, task: &str, ledger: &Ledger, before: &Catalogue) {
        let Store::Memory(kept) = &mut self.store else { return };
        let retained: Vec<u64> = ledger.tasks.get(task).map(|entry| entry.retained().collect()).unwrap_or_default();
        kept.retain(|(name, version), _| name != task || retained.contains(version));
        for version in retained {
            if let Some(resident) = before.version(task, version) {
                kept.insert((task.to_owned(), version), resident.clone());
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a version tells people when it was loaded; nothing is decided by it")]
fn record(partition: &Partition, origin: String) -> VersionRecord {
    VersionRecord {
        digest: partition.digest.clone(),
        checksum: partition.checksum.clone(),
        origin,
        created: partition.meta.created.clone(),
        delo_version: partition.meta.delo_version.clone(),
        multi_label: partition.meta.multi_label,
        loaded: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
    }
}

fn origin(source: &Source) -> String {
    match source {
        Source::Uri(uri) => uri.clone(),
        Source::File(path) => path.display().to_string(),
        Source::Artifact(_) => "upload".to_owned(),
    }
}

/// What makes two sources the same request.
fn identity(source: &Source) -> String {
    match source {
        Source::Uri(uri) => uri.clone(),
        Source::File(path) => path.display().to_string(),
        Source::Artifact(bytes) => digest(bytes),
    }
}

fn asked_to_load(what: &str, trial: Option<TrialMode>) -> String {
    asked("load", &format!("{what} {trial:?}"))
}

fn asked(method: &str, what: &str) -> String {
    digest(format!("{method} {what}").as_bytes())
}

/// Classifies a blank image with a partition that isn't live yet: proves that it will serve, and touches its memory.
fn try_out(engine: &Engine, catalogue: &Catalogue, resident: &Arc<Resident>) -> Result<(), RegistryError> {
    let [height, width] = resident.dummy_image();
    let sample = Sample { text: None, image: Some(Pixels::dummy(height, width)) };
    let failed = |reason: String| RegistryError::Trial { task: resident.task().to_owned(), reason };
    let answer = engine.classify(catalogue, &[Query::given(sample, resident.clone())]).pop();
    let answer = answer.unwrap_or(Err(EngineError::NothingLoaded)).map_err(|e| failed(e.to_string()))?;
    if answer.scores.iter().all(|s| s.is_finite()) {
        return Ok(());
    }
    Err(failed("its scores are not finite, its weights are out of range; train it again".to_owned()))
}

/// Runs long work on the blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RegistryError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RegistryError::Panicked)
}
