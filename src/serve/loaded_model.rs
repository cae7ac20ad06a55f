//! The loaded model and all that answers with it: engine, catalogue owner, preprocessing and queue. It is
//! made while the server already listens, so that health checks are answered meanwhile.
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::ServeError;
use super::batcher::{Batcher, Priority, QueueLimits, TrafficClass};
use super::feedback::AnswerMemory;
use super::gpu::Gpu;
use super::inference::Inference;
use super::lifecycle::Lifecycle;
use super::preprocess::Preprocessor;
use super::reason::Reason;
use super::records::Records;
use super::remote::Remote;
use super::task_series::TaskSeries;
use crate::config::Config;
use delo_engine::checkpoint::{Checkpoint, TextOptions};
use delo_engine::{Engine, EngineError, Policy, Query};
use delo_model::input::{Pixels, Sample};
use delo_model::model_dir::{ModelDir, embedded_partitions};
use delo_registry::signature::Trust;
use delo_registry::{CatalogueOwner, PartitionSource};

/// `batch_overhead = batch_tokens / BATCH_OVERHEAD_DIVISOR`: the fixed cost of a batch as a part of a usual
/// batch. With the embedded backbone on two threads, a batch of 6 tokens took a sixth of the time of one of
/// 157.
const BATCH_OVERHEAD_DIVISOR: usize = 4;
/// When a caller of a server that is starting should try again.
const START_RETRY: Duration = Duration::from_secs(1);
/// Number of batches by which the queue's pace is measured at the start.
const MEASURED_BATCHES: usize = 3;

/// A loaded model, and what a request passes on its way to it.
pub struct LoadedModel {
    /// The backbone's name, as answers carry it.
    pub name: String,
    pub engine: Arc<Engine>,
    pub registry: Arc<CatalogueOwner>,
    pub remote: Remote,
    pub preprocessor: Preprocessor,
    pub batcher: Batcher<Inference>,
    pub series: TaskSeries,
    pub records: Records,
    pub gpu: Gpu,
    /// When samples are answered otherwise than by one adapted pass.
    pub policy: Policy,
    memory: Mutex<AnswerMemory>,
    /// How long the sample of [`Self::warm`] may take.
    warm_timeout: Duration,
    /// Set when the first batches have been computed.
    warm: OnceCell<()>,
}

/// The loaded model, empty until it is loaded. Clones share it.
#[derive(Clone, Default)]
pub struct ModelCell(Arc<Cell>);

#[derive(Default)]
struct Cell {
    model: OnceLock<Arc<LoadedModel>>,
    /// Set when it serves what it is to serve.
    serves: OnceLock<()>,
}

impl ModelCell {
    /// The model for a sample.
    ///
    /// # Errors
    /// UNAVAILABLE before it serves what it is to serve.
    pub fn ready(&self) -> Result<&Arc<LoadedModel>, Status> {
        Self::or_starting(self.0.serves.get().and_then(|()| self.get()))
    }

    /// The model for an operator.
    ///
    /// # Errors
    /// UNAVAILABLE before it is loaded.
    pub fn loaded(&self) -> Result<&Arc<LoadedModel>, Status> {
        Self::or_starting(self.get())
    }

    fn or_starting(model: Option<&Arc<LoadedModel>>) -> Result<&Arc<LoadedModel>, Status> {
        model.ok_or_else(|| {
            let details = ErrorDetails::with_retry_info(Some(START_RETRY));
            Reason::Starting.refuse(&Status::with_error_details(Code::Unavailable, "the server is starting: retry in a moment", details))
        })
    }

    /// The model; `None` before it is loaded.
    pub fn get(&self) -> Option<&Arc<LoadedModel>> {
        self.0.model.get()
    }

    /// Makes the model available to operators.
    pub fn set(&self, model: LoadedModel) -> &Arc<LoadedModel> {
        self.0.model.get_or_init(|| Arc::new(model))
    }

    /// Makes the model available to samples.
    pub fn serve(&self) {
        self.0.serves.get_or_init(|| ());
    }
}

impl LoadedModel {
    /// Loads the model and the first partitions.
    ///
    /// # Errors
    /// What can't be loaded, by name.
    pub async fn load(config: &Config) -> Result<Self, ServeError> {
        let dir = ModelDir::from(config.model.backbone.as_deref());
        let backbone = config.model.backbone.as_deref().and_then(|path| path.file_name());
        let name = backbone.map_or_else(|| dir.display(), |name| name.to_string_lossy().into_owned());
        let (limits, options) = (config.input.limits.clone(), config.model.options());
        let texts = TextOptions { special_tokens: config.input.special_tokens, positions: config.model.text_positions };
        let load = move || Checkpoint::load(&dir, limits, texts, options);
        let checkpoint = tokio::task::spawn_blocking(load).await.map_err(|_| ServeError::Panicked)??;
        let engine = Arc::new(checkpoint.engine);
        let (registry, remote) = open_registry(config, &engine).await?;
        let runner = Inference { engine: engine.clone(), registry: registry.clone() };
        let batcher = Batcher::start(runner, queue_limits(config, &engine)).map_err(ServeError::Thread)?;
        let concurrency = if config.input.concurrency == 0 { num_cpus::get() } else { config.input.concurrency };
        let gpu = Gpu::of(engine.kernel());
        Ok(Self {
            name,
            engine,
            registry,
            remote,
            preprocessor: Preprocessor::new(Arc::new(checkpoint.processor), concurrency),
            batcher,
            series: TaskSeries::default(),
            gpu,
            records: Records::open(&config.records).map_err(ServeError::Records)?,
            policy: config.routing.policy(),
            memory: Mutex::new(AnswerMemory::new(config.feedback.remembered_answers)),
            warm_timeout: config.deadline.max,
            warm: OnceCell::new(),
        })
    }

    /// The remembered answers.
    pub fn answers(&self) -> MutexGuard<'_, AnswerMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the lifecycle up to date after a change of the catalogue. The first partition of a server that
    /// had none warms the model first.
    pub async fn follow(&self, lifecycle: &Lifecycle) {
        if let Err(error) = self.warm().await {
            tracing::warn!(%error, "the first batches are computed without a measurement of their pace");
        }
        lifecycle.follow(&self.registry);
    }

    /// Computes once, as soon as a partition is loaded:
    ///
    /// 1. the largest batch that can occur, so that the server takes its memory at the start and not under
    ///    load,
    /// 2. batches of the usual size, so that the queue knows the pace before the first samples wait,
    /// 3. one sample through preprocessing and queue, so that the first request finds threads ready.
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
        let text = self.preprocessor.sample(None, Some("warm".to_owned())).await.map_err(|e| failed(&e))?.0.sample.text;
        self.measure_pace(text.clone()).await?;
        let [height, width] = self.registry.catalogue().dummy_image();
        let sample = Sample { text, image: Some(Pixels::dummy(height, width)) };
        let class = TrafficClass { client: "start".into(), priority: Priority::Interactive };
        let slot = self.batcher.reserve(class, 0, Instant::now() + self.warm_timeout).map_err(|e| failed(&e))?;
        slot.run(Query::open(sample), 0).await.map_err(|e| failed(&e))?.outcome.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Computes the largest batch, of samples whose texts fill all text positions, then gives the queue the
    /// time of a usual one. `text`: the token ids of a word or more.
    async fn measure_pace(&self, text: Option<Vec<u32>>) -> Result<(), ServeError> {
        let failed = |e: &dyn std::fmt::Display| ServeError::Warm(e.to_string());
        let (side, positions) = (self.engine.image_size(), self.engine.backbone().config.max_position_embeddings);
        let text = text.map(|ids| lengthened(ids, positions));
        let full = Query::open(Sample { text, image: Some(Pixels::dummy(side, side)) });
        let (catalogue, engine, limits) = (self.registry.catalogue(), self.engine.clone(), self.batcher.limits());
        let tokens = engine.query_tokens(&catalogue, &full);
        let batch_of = |batch_tokens: usize| {
            let samples = (batch_tokens / tokens).clamp(1, limits.batch_samples.min(limits.queue_samples));
            vec![full.clone(); samples]
        };
        let (largest, usual) = (batch_of(limits.backlog_batch_tokens), batch_of(limits.batch_tokens));
        let usual_tokens = usual.len() * tokens;
        let measure = move || {
            let compute = |queries: &[Query]| {
                let began = std::time::Instant::now();
                engine.classify(&catalogue, queries).into_iter().try_for_each(|answer| answer.map(drop)).map(|()| began.elapsed())
            };
            compute(&largest)?;
            // The fastest counts: other work that the machine does at this moment says nothing of the next
            // batches.
            (0..MEASURED_BATCHES).try_fold(Duration::MAX, |fastest, _| Ok(fastest.min(compute(&usual)?)))
        };
        let measured = tokio::task::spawn_blocking(measure).await.map_err(|e| failed(&e))?;
        self.batcher.estimate(usual_tokens, measured.map_err(|e: EngineError| failed(&e))?);
        Ok(())
    }
}

/// The token ids `[CLS] … [SEP]` with the token before `[SEP]` repeated until there are `positions`.
fn lengthened(mut ids: Vec<u32>, positions: usize) -> Vec<u32> {
    let Some(sep) = ids.pop() else { return ids };
    let word = ids.last().copied().unwrap_or(sep);
    ids.resize(ids.len().max(positions - 1), word);
    ids.push(sep);
    ids
}

/// The catalogue owner with the first partitions, and the way to partitions elsewhere.
async fn open_registry(config: &Config, engine: &Arc<Engine>) -> Result<(Arc<CatalogueOwner>, Remote), ServeError> {
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
    Ok((registry, remote))
}

fn queue_limits(config: &Config, engine: &Engine) -> QueueLimits {
    let batching = &config.batching;
    QueueLimits {
        batch_tokens: batching.max_tokens.unwrap_or_else(|| engine.batch_tokens()),
        backlog_batch_tokens: batching.max_tokens.unwrap_or_else(|| engine.backlog_batch_tokens()),
        batch_samples: batching.max_samples,
        queue_samples: batching.max_queue_samples,
        queue_bytes: batching.max_queue_bytes,
        batch_overhead: engine.batch_tokens() / BATCH_OVERHEAD_DIVISOR,
        queue_wait: batching.max_queue_wait,
    }
}

/// The partitions in the binary.
fn embedded_sources() -> Vec<(String, PartitionSource)> {
    let source = |(name, bytes): &(&str, &'static [u8])| ((*name).to_owned(), PartitionSource::Embedded(bytes));
    embedded_partitions().iter().map(source).collect()
}
