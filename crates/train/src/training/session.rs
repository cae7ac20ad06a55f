//! What one session learns, on what and how, and what its artifact says of it (METHOD.md 4, 5).
use candle_core::DeviceLocation;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::error::TrainError;
use super::prefix::CHUNK;
use super::settings::Settings;
use super::statistics::{Residual, SessionStatistics};
use crate::data::{ByPattern, Dataset, MissingTable, Samples, Split, predict, score};
use crate::signals::{SignalStore, signals};
use delo_engine::Engine;
use delo_model::TaskModel;
use delo_model::analytic::Analytic;
use delo_model::input::{InputProcessor, Presence, Sample};
use delo_model::partition::{self, Artifact, BackboneRecord, KeyRule, PartitionMeta};
use delo_model::routing::keys::{KeySignal, Signals};

/// The hyper-parameters that an artifact was trained with.
///
/// # Errors
/// The artifact records none that this program knows.
pub fn settings_of(artifact: &Artifact) -> Result<Settings, serde_json::Error> {
    serde_json::from_value(artifact.meta.training.clone())
}

/// One session: the task to learn, its data, and how it is learnt.
#[derive(Debug)]
pub struct Session<'a> {
    /// The frozen backbone.
    pub engine: &'a Engine,
    /// Makes samples of images and texts, as the backbone's checkpoint says.
    pub processor: &'a InputProcessor,
    /// Name of the backbone, to show to people.
    pub backbone: String,
    /// The data set; only the items of `task` are read.
    pub data: &'a Dataset,
    /// Which items lose a modality.
    pub missing: &'a MissingTable,
    /// Index in [`Dataset::tasks`].
    pub task: usize,
    /// The hyper-parameters.
    pub settings: &'a Settings,
    /// How the artifact's key is compared with a sample.
    pub key: KeyRule,
    /// Where signals of the frozen backbone are kept.
    pub store: Option<&'a SignalStore>,
}

impl Session<'_> {
    /// Computes the keys and the validation score of what was learnt: the bytes of the artifact, and the
    /// score. `created`: the time of creation that the artifact states, RFC 3339, UTC.
    ///
    /// # Errors
    /// A failed forward pass; an image that cannot be read.
    pub(super) fn artifact(
        &self,
        model: &TaskModel,
        samples: Samples<'_>,
        batches: &[Vec<usize>],
        residual: Option<&Residual>,
        created: &str,
    ) -> Result<(Vec<u8>, ByPattern), TrainError> {
        let SessionStatistics { keys, temperature, mut analytic } = self.statistics(samples, batches, residual)?;
        let (validation, logits) = self.validate(model, analytic.as_ref())?;
        if let Some(analytic) = &mut analytic {
            analytic.record = analytic.record.divided_by(self.score_temperature(&logits));
        }
        let mut meta = self.meta(model, &validation, created);
        meta.key.temperature = temperature;
        meta.analytic = analytic.as_ref().map(|analytic| analytic.record);
        Ok((partition::to_bytes(&meta, model, &keys, analytic.as_ref())?, validation))
    }

    /// Refuses an artifact of another task, backbone or data.
    ///
    /// # Errors
    /// [`TrainError::Unfit`].
    pub(super) fn fits(&self, artifact: &Artifact) -> Result<(), TrainError> {
        let (meta, task) = (&artifact.meta, &self.data.tasks[self.task]);
        let unfit = |reason: String| Err(TrainError::Unfit { task: task.name.clone(), reason });
        if meta.task != task.name || meta.labels != task.labels {
            return unfit(format!("it is of task {:?} with other labels: give the data that it was trained on", meta.task));
        }
        if meta.backbone.fingerprint != self.engine.backbone().fingerprint {
            return unfit(format!("it was trained on the backbone {}: give that one with --backbone", meta.backbone.name));
        }
        if let Some(special) = meta.special_tokens.filter(|&special| special != self.processor.special_tokens()) {
            let flag = if special { "give" } else { "leave out" };
            return unfit(format!("it was trained on texts that were read otherwise: {flag} --special-tokens"));
        }
        if self.settings.residual && meta.key.signal != self.key.signal {
            let signal = meta.key.signal;
            return unfit(format!("its head learnt on analytic logits of the signal {signal}: give --key-signal {signal}"));
        }
        let backbone = self.engine.backbone();
        let trained = meta.text_positions.unwrap_or(backbone.checkpoint_positions);
        if trained != backbone.config.max_position_embeddings {
            return unfit(format!("it was trained with {trained} text positions: give --text-positions {trained}"));
        }
        if meta.data != self.data_record() {
            return unfit("it was trained on other items: give the --data, --eta, --missing and --seed of its training".to_owned());
        }
        Ok(())
    }

    /// Height and width of the image that stands in for a missing one, in pixels.
    pub(crate) fn dummy_image(&self) -> [usize; 2] {
        self.settings.dummy_image.unwrap_or(self.engine.default_dummy_image())
    }

    /// The `wanted` signals of some samples, `[samples, width]` each.
    pub(crate) fn frozen_signals(&self, samples: &[Sample], wanted: &[KeySignal]) -> candle_core::Result<Signals> {
        signals(self.engine, self.store, samples, self.dummy_image(), wanted)
    }

    /// All that decides the result, by name.
    pub(super) fn identity(&self) -> Map<String, Value> {
        let task = &self.data.tasks[self.task];
        let mut identity = match json!(self.settings) {
            Value::Object(settings) => settings,
            _ => Map::new(),
        };
        let table = json!(self.missing).to_string();
        identity.extend([
            ("seed".to_owned(), json!(self.settings.seed)),
            ("data".to_owned(), json!(self.data.name)),
            ("task".to_owned(), json!(task.name)),
            ("labels".to_owned(), json!(task.labels)),
            ("samples".to_owned(), json!(self.data.rows(self.task, Split::Train).len())),
            ("missing table (SHA-256)".to_owned(), json!(format!("{:x}", Sha256::digest(table)))),
            ("backbone".to_owned(), json!(self.engine.backbone().fingerprint)),
        ]);
        // A checkpoint without this entry is of a session that read special tokens as words.
        // The analytic logits are of this signal.
        if self.settings.residual {
            identity.insert("--key-signal".to_owned(), json!(self.key.signal));
        }
        if self.processor.special_tokens() {
            identity.insert("--special-tokens".to_owned(), json!(true));
        }
        // A checkpoint without this one was begun on the CPU, whose rounding is another than a GPU's.
        let gpu = match self.engine.learning_device().location() {
            DeviceLocation::Cpu => None,
            DeviceLocation::Cuda { .. } => Some("cuda"),
            DeviceLocation::Metal { .. } => Some("metal"),
        };
        if let Some(gpu) = gpu {
            identity.insert("--device".to_owned(), json!(gpu));
        }
        // And a checkpoint without this one is of the backbone's own number of text positions.
        if let Some(positions) = self.engine.backbone().text_positions() {
            identity.insert("--text-positions".to_owned(), json!(positions));
        }
        identity
    }

    /// Task-oracle score on the val split, in percent, and the logits of its samples.
    fn validate(&self, model: &TaskModel, analytic: Option<&Analytic>) -> Result<(ByPattern, Vec<Vec<f32>>), TrainError> {
        let rows = self.data.rows(self.task, Split::Val);
        let threshold = self.data.multi_label.then_some(0.0);
        let mut all_logits = Vec::with_capacity(rows.len());
        let mut presence = Vec::with_capacity(rows.len());
        let samples = Samples::new(self.data, rows, self.missing, self.processor);
        samples.for_each_chunk(CHUNK, |_, chunk| {
            let embedded = self.engine.embed(chunk, self.dummy_image())?;
            let prefix = self.engine.run_frozen(&embedded, 0..model.method().first_adapted_layer())?;
            let mut logits = self.engine.predict_task(&prefix, model)?.to_vec2::<f32>()?;
            if let Some(analytic) = analytic {
                let signal = analytic.record.signal;
                let signals = self.frozen_signals(chunk, &[signal])?[&signal].to_vec2::<f32>()?;
                logits.iter_mut().zip(&signals).for_each(|(logits, signal)| analytic.mix(signal, logits));
            }
            all_logits.extend(logits);
            presence.extend(chunk.iter().map(Sample::presence));
            Ok::<_, TrainError>(())
        })?;
        let predictions: Vec<_> = all_logits.iter().map(|row| predict(row, threshold)).collect();
        let scores = ByPattern::of(&presence, |chosen| {
            let predicted: Vec<_> = chosen.iter().map(|&i| Some(&predictions[i])).collect();
            let truth: Vec<_> = chosen.iter().map(|&i| &self.data.items[rows[i]].label).collect();
            score(&predicted, &truth)
        });
        Ok((scores, all_logits))
    }

    fn meta(&self, model: &TaskModel, validation: &ByPattern, created: &str) -> PartitionMeta {
        let task = &self.data.tasks[self.task];
        let name = if self.data.multi_label { "val_f1_macro" } else { "val_accuracy" };
        let by_pattern = [
            (name.to_owned(), validation.all),
            (format!("{name}_complete"), validation.complete),
            (format!("{name}_image_only"), validation.image_only),
            (format!("{name}_text_only"), validation.text_only),
        ];
        PartitionMeta {
            task: task.name.clone(),
            labels: task.labels.clone(),
            multi_label: self.data.multi_label,
            method: model.method().clone(),
            targets: model.method().target_names(),
            key: self.key.clone(),
            analytic: None,
            dummy_image: self.dummy_image(),
            special_tokens: Some(self.processor.special_tokens()),
            text_positions: self.engine.backbone().text_positions(),
            backbone: BackboneRecord { fingerprint: self.engine.backbone().fingerprint.clone(), name: self.backbone.clone() },
            training: json!(self.settings),
            data: self.data_record(),
            seed: self.settings.seed,
            metrics: by_pattern.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            created: created.to_owned(),
            delo_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// What the artifact says of its data: the missing table's rule, and items by split and modality pattern.
    fn data_record(&self) -> Value {
        let mut items = Map::new();
        for split in Split::ALL {
            let rows = self.data.rows(self.task, split);
            let count = |p| rows.iter().filter(|&&row| self.missing.presence(self.data, row) == p).count();
            let counts = json!({
                "complete": count(Presence::Complete), "image_only": count(Presence::ImageOnly), "text_only": count(Presence::TextOnly),
            });
            items.insert(split.to_string(), counts);
        }
        json!({
            "name": self.data.name, "task_id": self.data.tasks[self.task].id, "eta": self.missing.eta, "missing": self.missing.kind,
            "missing_seed": self.missing.seed, "items": items,
        })
    }
}
