//! Everything that answers: model, registry, intake, queue. It is made while the server already listens, so that health can be asked meanwhile.
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use candle_core::Device;
use tokio::sync::OnceCell;
use tonic::Status;

use super::ServeError;
use super::batcher::{self, Batcher, Claim, Priority};
use super::feedback::AnswerMemory;
use super::inference::Inference;
use super::intake::Intake;
use super::lifecycle::Lifecycle;
use super::remote::Remote;
use super::task_series::TaskSeries;
use crate::config::{self, Config};
use delo_engine::{Engine, EngineError, Options, Query};
use delo_model::input::{InputProcessor, Pixels, Sample};
use delo_model::model_dir::{ModelDir, embedded_partitions};
use delo_model::vilt::Loader;
use delo_registry::signature::Trust;
use delo_registry::{CatalogueOwner, PartitionSource};

/// The fixed cost of a batch, in tokens, is the tokens of a usual batch divided by this. With the embedded
/// backbone on two threads, a batch of 6 tokens took a sixth of the time of one of 157.
const BATCH_OVERHEAD: usize = 4;
/// Batches by which the queue's pace is measured at the start.
const MEASURED_BATCHES: usize = 3;

/// A loaded and warmed model and the way into it.
pub struct Room {
    /// The backbone's name, as answers carry it.
    pub model: String,
    pub engine: Arc<Engine>,
    pub registry: Arc<CatalogueOwner>,
    pub remote: Remote,
    pub intake: Intake,
    pub batcher: Batcher<Inference>,
    pub memory: Mutex<AnswerMemory>,
    pub series: TaskSeries,
    /// How long the one sample of [`Self::warm`] may wait.
    patience: Duration,
    /// Set when the room is warm.
    warm: OnceCell<()>,
    /// Weak, or the room would keep itself.
    rooms: Weak<OnceLock<Room>>,
}

/// The room, once it is ready.
#[derive(Clone, Default)]
pub struct Rooms(Arc<OnceLock<Room>>);

impl Rooms {
    /// # Errors
    /// UNAVAILABLE before the room is ready.
    pub fn room(&self) -> Result<&Room, Status> {
        self.0.get().ok_or_else(|| Status::unavailable("the server is starting: retry in a moment"))
    }

    pub fn get(&self) -> Option<&Room> {
        self.0.get()
    }

    /// Opens the room to requests.
    pub fn open(&self, room: Room) -> &Room {
        self.0.get_or_init(|| room)
    }
}

impl Room {
    /// The way back to this room, for work that outlives a call; `None` where the server has ended.
    pub fn handle(&self) -> Option<Rooms> {
        self.rooms.upgrade().map(Rooms)
    }

    /// Loads the model and the first partitions.
    ///
    /// # Errors
    /// What can't be loaded, by name.
    pub async fn load(config: &Config, rooms: &Rooms) -> Result<Self, ServeError> {
        let dir = ModelDir::from(config.model.backbone.as_deref());
        let (input, options) = (config.input.clone(), config.model.options());
        let (name, load) = (dir.display(), move || load_model(&dir, input, options));
        let (engine, processor) = tokio::task::spawn_blocking(load).await.map_err(|_| ServeError::Panicked)??;
        let engine = Arc::new(engine);
        let trust = Arc::new(Trust::load(&config.registry.trusted_keys, config.registry.require_signature)?);
        let settings = delo_registry::Settings {
            rule: config.routing.rule(),
            special_tokens: config.input.special_tokens,
            root: config.model.partitions.clone(),
            state_dir: config.catalogue.state_dir.clone(),
            retained_versions: config.catalogue.retained_versions,
            max_artifact_bytes: config.admin.max_artifact_bytes,
            trust: trust.clone(),
        };
        let registry = CatalogueOwner::open(engine.clone(), settings).await?;
        let remote = Remote::open(config, &registry, trust)?;
        if config.model.partitions.is_some() {
            registry.load_directory().await?;
        } else if config.model.backbone.is_none() {
            registry.load_at_start(embedded_sources()).await?;
        }
        let limits = batcher::Limits {
            batch_tokens: config.batching.max_tokens.unwrap_or_else(|| engine.batch_tokens()),
            backlog_batch_tokens: config.batching.max_tokens.unwrap_or_else(|| engine.backlog_batch_tokens()),
            batch_samples: config.batching.max_samples,
            queue_samples: config.batching.max_queue_samples,
            queue_bytes: config.batching.max_queue_bytes,
            batch_overhead: engine.batch_tokens() / BATCH_OVERHEAD,
            queue_wait: config.batching.max_queue_wait,
        };
        let batcher =
            Batcher::start(Inference { engine: engine.clone(), registry: registry.clone() }, limits).map_err(ServeError::Thread)?;
        let concurrency = if config.input.concurrency == 0 { num_cpus::get() } else { config.input.concurrency };
        let intake = Intake::new(Arc::new(processor), concurrency);
        let memory = Mutex::new(AnswerMemory::new(config.feedback.remembered_answers));
        let model = config.model.backbone.as_deref().and_then(|d| d.file_name()).map_or(name, |n| n.to_string_lossy().into_owned());
        let (series, rooms) = (TaskSeries::default(), Arc::downgrade(&rooms.0));
        let (patience, warm) = (config.deadline.max, OnceCell::new());
        Ok(Self { model, engine, registry, remote, intake, batcher, memory, series, patience, warm, rooms })
    }

    /// Lets health follow a change of the catalogue, when the room is warm: the first partition of a server
    /// that had none warms it.
    pub async fn follow(&self, lifecycle: &Lifecycle) {
        if let Err(error) = self.warm().await {
            tracing::warn!(%error, "the first batches are computed without a measurement of their pace");
        }
        lifecycle.follow(&self.registry);
    }

    /// Computes once, as soon as a partition is loaded: the largest batch that there can be, so that a server
    /// takes its memory at the start and not under its first overload; batches of the usual size, so that the
    /// queue knows their pace before the first crowd; then one sample through the whole way, so that the
    /// first request finds threads ready.
    ///
    /// # Errors
    /// A sample fails.
    pub async fn warm(&self) -> Result<(), ServeError> {
        if self.registry.catalogue().is_empty() {
            return Ok(());
        }
        self.warm.get_or_try_init(|| self.compute_first()).await.map(drop)
    }

    async fn compute_first(&self) -> Result<(), ServeError> {
        let failed = |e: &dyn std::fmt::Display| ServeError::Warm(e.to_string());
        let text = self.intake.sample(None, Some("warm".to_owned())).await.map_err(|e| failed(&e))?.sample.text;
        let [height, width] = self.registry.catalogue().dummy_image();
        let sample = Sample { text, image: Some(Pixels::dummy(height, width)) };

        let side = self.engine.image_size();
        let full = Sample { image: Some(Pixels::dummy(side, side)), ..sample.clone() };
        let (catalogue, engine, limits) = (self.registry.catalogue(), self.engine.clone(), self.batcher.limits());
        let tokens = engine.tokens(catalogue.dummy_image(), &full);
        let of = move |batch_tokens: usize| {
            vec![Query::open(full.clone()); (batch_tokens / tokens).clamp(1, limits.batch_samples.min(limits.queue_samples))]
        };
        let (largest, usual) = (of(limits.backlog_batch_tokens), of(limits.batch_tokens));
        let usual_tokens = usual.len() * tokens;
        let measuring = move || {
            let compute = |queries: &[Query]| {
                let began = Instant::now();
                engine.classify(&catalogue, queries).into_iter().try_for_each(|answer| answer.map(drop)).map(|()| began.elapsed())
            };
            compute(&largest)?;
            // The fastest: what else the machine does at this moment says nothing of the next.
            (0..MEASURED_BATCHES).try_fold(Duration::MAX, |fastest, _| Ok(fastest.min(compute(&usual)?)))
        };
        let takes = tokio::task::spawn_blocking(measuring).await.map_err(|e| failed(&e))?.map_err(|e: EngineError| failed(&e))?;
        self.batcher.expect(usual_tokens, takes);

        let claim = Claim { client: "start".into(), priority: Priority::Interactive };
        let slot = self.batcher.reserve(claim, 0, Instant::now() + self.patience).map_err(|e| failed(&e))?;
        slot.run(Query::open(sample), 0).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        Ok(())
    }
}

/// The partitions in the binary.
fn embedded_sources() -> Vec<(String, PartitionSource)> {
    let source = |&(name, bytes): &(&str, &'static [u8])| (name.to_owned(), PartitionSource::Embedded(bytes));
    embedded_partitions().iter().map(source).collect()
}

fn load_model(dir: &ModelDir, input: config::Input, options: Options) -> Result<(Engine, InputProcessor), ServeError> {
    let loader = Loader::open(dir, &Device::Cpu)?;
    let (patch_size, positions) = (loader.config().patch_size, loader.config().max_position_embeddings);
    let processor = InputProcessor::load(dir, patch_size, positions, input.limits)?.with_special_tokens(input.special_tokens);
    let engine = Engine::of(loader, processor.dummy_text().to_vec(), options)?;
    Ok((engine, processor))
}
