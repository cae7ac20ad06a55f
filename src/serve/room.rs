//! Everything that answers: model, registry, intake, queue. It is made while the server already listens, so that health can be asked meanwhile.
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use candle_core::Device;
use tonic::Status;

use super::ServeError;
use super::batcher::{self, Batcher, Claim, Priority};
use super::feedback::AnswerMemory;
use super::inference::Inference;
use super::intake::Intake;
use super::remote::Remote;
use crate::config::{self, Config};
use crate::engine::{Engine, Options, Query};
use crate::input::{InputProcessor, Pixels, Sample};
use crate::model_dir::{ModelDir, embedded_partitions};
use crate::registry::signature::Trust;
use crate::registry::{self, Registry, Source};
use crate::vilt::Loader;

/// A loaded and warmed model and the way into it.
pub struct Room {
    /// The backbone's name, as answers carry it.
    pub model: String,
    pub engine: Arc<Engine>,
    pub registry: Arc<Registry>,
    pub remote: Remote,
    pub intake: Intake,
    pub batcher: Batcher<Inference>,
    pub memory: Mutex<AnswerMemory>,
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
        let settings = registry::Settings {
            rule: config.routing.rule(),
            special_tokens: config.input.special_tokens,
            root: config.model.partitions.clone(),
            state_dir: config.catalogue.state_dir.clone(),
            retained_versions: config.catalogue.retained_versions,
            max_artifact_bytes: config.admin.max_artifact_bytes,
            trust: trust.clone(),
        };
        let registry = Registry::open(engine.clone(), settings).await?;
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
            queue_wait: config.batching.max_queue_wait,
        };
        let batcher =
            Batcher::start(Inference { engine: engine.clone(), registry: registry.clone() }, limits).map_err(ServeError::Thread)?;
        let concurrency = if config.input.concurrency == 0 { num_cpus::get() } else { config.input.concurrency };
        let intake = Intake::new(Arc::new(processor), concurrency);
        let memory = Mutex::new(AnswerMemory::new(config.feedback.remembered_answers));
        let model = config.model.backbone.as_deref().and_then(|d| d.file_name()).map_or(name, |n| n.to_string_lossy().into_owned());
        Ok(Self { model, engine, registry, remote, intake, batcher, memory, rooms: Arc::downgrade(&rooms.0) })
    }

    /// One sample through the whole way, so that the first request finds threads ready and the queue knows its pace; then the largest batch that there can be, so that
    /// a server takes its memory at the start and not under its first overload. Does nothing where no partition is loaded.
    ///
    /// # Errors
    /// A sample fails.
    pub async fn warm(&self, patience: Duration) -> Result<(), ServeError> {
        if self.registry.catalogue().is_empty() {
            return Ok(());
        }
        let failed = |e: &dyn std::fmt::Display| ServeError::Warm(e.to_string());
        let text = self.intake.sample(None, Some("warm".to_owned())).await.map_err(|e| failed(&e))?.sample.text;
        let [height, width] = self.registry.catalogue().dummy_image();
        let sample = Sample { text, image: Some(Pixels::dummy(height, width)) };
        let claim = Claim { client: "start".into(), priority: Priority::Interactive };
        let slot = self.batcher.reserve(claim, 0, std::time::Instant::now() + patience).map_err(|e| failed(&e))?;
        slot.run(Query::open(sample.clone()), 0).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;

        let side = self.engine.image_size();
        let full = Sample { image: Some(Pixels::dummy(side, side)), ..sample };
        let (catalogue, engine, limits) = (self.registry.catalogue(), self.engine.clone(), self.batcher.limits());
        let tokens = engine.tokens(catalogue.dummy_image(), &full);
        let queries = vec![Query::open(full); (limits.backlog_batch_tokens / tokens).clamp(1, limits.batch_samples)];
        let answers = tokio::task::spawn_blocking(move || engine.classify(&catalogue, &queries)).await;
        answers.map_err(|e| failed(&e))?.into_iter().try_for_each(|answer| answer.map(drop)).map_err(|e| failed(&e))
    }
}

/// The partitions in the binary.
fn embedded_sources() -> Vec<(String, Source)> {
    let source = |(name, bytes): &(&str, &'static [u8])| ((*name).to_owned(), Source::Artifact(bytes::Bytes::from_static(bytes)));
    embedded_partitions().iter().map(source).collect()
}

fn load_model(dir: &ModelDir, input: config::Input, options: Options) -> Result<(Engine, InputProcessor), ServeError> {
    let loader = Loader::open(dir, &Device::Cpu)?;
    let (patch_size, positions) = (loader.config().patch_size, loader.config().max_position_embeddings);
    let processor = InputProcessor::load(dir, patch_size, positions, input.limits)?.with_special_tokens(input.special_tokens);
    let engine = Engine::of(loader, processor.dummy_text().to_vec(), options)?;
    Ok((engine, processor))
}
