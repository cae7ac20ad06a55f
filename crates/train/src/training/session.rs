//! What one session learns, on what and how, and what its artifact says of it (METHOD.md 4, 5).
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::error::TrainError;
use super::prefix::CHUNK;
use super::settings::Settings;
use crate::data::{ByPattern, Dataset, MissingTable, Samples, Split, predict, score};
use delo_engine::Engine;
use delo_model::TaskModel;
use delo_model::input::{InputProcessor, Presence, Sample};
use delo_model::partition::{self, BackboneRecord, KeyRule, PartitionMeta};
use delo_model::routing::keys::{KeyAverage, KeySignal, SessionKeys, Signals};

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
}

impl Session<'_> {
    /// Computes the keys and the validation score of what was learnt: the bytes of the artifact, and the score.
    /// `created`: the time of creation that the artifact states, RFC 3339, UTC.
    ///
    /// # Errors
    /// A failed forward pass; an image that cannot be read.
    pub(super) fn artifact(
        &self,
        model: &TaskModel,
        samples: Samples<'_>,
        batches: &[Vec<usize>],
        created: &str,
    ) -> Result<(Vec<u8>, ByPattern), TrainError> {
        let keys = self.keys(samples, batches)?;
        let validation = self.validate(model)?;
        let meta = self.meta(model, &validation, created);
        Ok((partition::to_bytes(&meta, model, &keys)?, validation))
    }

    /// Height and width of the image that stands in for a missing one, in pixels.
    pub(super) fn dummy_image(&self) -> [usize; 2] {
        self.settings.dummy_image.unwrap_or(self.engine.default_dummy_image())
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
        if self.processor.special_tokens() {
            identity.insert("--special-tokens".to_owned(), json!(true));
        }
        identity
    }

    /// What the artifact's two rules compare, from the signals of the frozen backbone: key and second moment
    /// of the whitened rule, the key of the plain one. A moving average follows the batches in training
    /// order.
    ///
    /// Every sample goes through the frozen layers once more: its signals may be those of a later layer than
    /// the kept states.
    fn keys(&self, samples: Samples<'_>, batches: &[Vec<usize>]) -> Result<SessionKeys, TrainError> {
        let KeyRule { signal, plain_signal, plain_average, .. } = self.key;
        let wanted: Vec<KeySignal> = BTreeSet::from([signal, plain_signal]).into_iter().collect();
        let hidden = self.engine.backbone().config.hidden_size;
        let room = |signal: &KeySignal| (*signal, Vec::with_capacity(samples.len() * signal.width(hidden)));
        let mut rows: BTreeMap<KeySignal, Vec<f32>> = wanted.iter().map(room).collect();
        samples.for_each_chunk(CHUNK, |_, chunk| {
            for (signal, values) in self.engine.signals(&self.engine.embed(chunk, self.dummy_image())?, &wanted)? {
                rows.entry(signal).or_default().extend(values.flatten_all()?.to_vec1::<f32>()?);
            }
            Ok::<_, TrainError>(())
        })?;
        let tensor = |(signal, values): (KeySignal, Vec<f32>)| {
            let shape = (samples.len(), values.len() / samples.len());
            Ok((signal, Tensor::from_vec(values, shape, &Device::Cpu)?))
        };
        let mut signals = rows.into_iter().map(tensor).collect::<candle_core::Result<Signals>>()?;
        let mut keys = SessionKeys::of(&signals, &[signal])?;
        if plain_average == KeyAverage::Ema {
            keys.mean.retain(|kept, _| *kept == signal);
            signals.retain(|kept, _| *kept == plain_signal);
            for batch in batches {
                keys.moving_average_step(&signals, batch, self.settings.key_beta as f32)?;
            }
        }
        Ok(keys)
    }

    /// Task-oracle score on the val split, in percent.
    fn validate(&self, model: &TaskModel) -> Result<ByPattern, TrainError> {
        let rows = self.data.rows(self.task, Split::Val);
        let threshold = self.data.multi_label.then_some(0.0);
        let mut predictions = Vec::with_capacity(rows.len());
        let mut presence = Vec::with_capacity(rows.len());
        let samples = Samples::new(self.data, rows, self.missing, self.processor);
        samples.for_each_chunk(CHUNK, |_, chunk| {
            let prefix = self.engine.run_frozen(&self.engine.embed(chunk, self.dummy_image())?, 0..model.method().first_adapted_layer())?;
            let logits = self.engine.run_task(&prefix, model)?.logits.to_vec2::<f32>()?;
            predictions.extend(logits.iter().map(|row| predict(row, threshold)));
            presence.extend(chunk.iter().map(Sample::presence));
            Ok::<_, TrainError>(())
        })?;
        Ok(ByPattern::of(&presence, |chosen| {
            let predicted: Vec<_> = chosen.iter().map(|&i| Some(&predictions[i])).collect();
            let truth: Vec<_> = chosen.iter().map(|&i| &self.data.items[rows[i]].label).collect();
            score(&predicted, &truth)
        }))
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
            dummy_image: self.dummy_image(),
            special_tokens: Some(self.processor.special_tokens()),
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
