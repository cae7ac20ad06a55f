//! What one task adds to the backbone: as an artifact, one safetensors file ([`mod@format`]), and bound to a
//! backbone, ready to serve ([`Partition`]).
pub mod format;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::analytic::{Analytic, AnalyticRecord};
use crate::method::{Adapter, BackboneShape, Method, Tensors, flat, tensor_of};
use crate::routing::{ClassStatistics, KeyAverage, KeyChoice, KeySignal, Metric, SessionKeys};
use crate::vilt::Description;
use delo_kernels::Precision;
pub use format::{Artifact, FORMAT_VERSION, MAX_CALIBRATION, check_name, digest, task_name, to_bytes};
use format::{CALIBRATION, CLASS_COUNTS, CLASS_MEANS, EMA_KEY, MEAN_KEY, MOMENT};

/// The metric and the signals that this partition proposes for the decision of tasks (METHOD.md 4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyRule {
    /// The metric.
    pub metric: Metric,
    /// The signal of the metrics `whitened` and `lda`. Where `metric` is one of them, the artifact holds its
    /// mean key and second moment; for `lda`, its class means too.
    pub signal: KeySignal,
    /// The signal of the plain metric, which also decides where some resident partition has no second moment.
    pub plain_signal: KeySignal,
    /// How the keys of the plain metric were averaged.
    pub plain_average: KeyAverage,
    /// τ: the temperature of the class probabilities of the metric `lda`, 0.001 to 1000, fitted on the
    /// session. `None` in artifacts without class statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
}

/// The backbone that a partition was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneRecord {
    /// See [`Description::fingerprint`].
    pub fingerprint: String,
    /// The backbone's name, for messages.
    pub name: String,
}

/// The description of a partition in the header of its artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionMeta {
    /// The task's unique name.
    pub task: String,
    /// Class names, in the order of the head's rows.
    pub labels: Vec<String>,
    /// Whether a sample may have several labels: scores are then independent sigmoids, not a softmax.
    pub multi_label: bool,
    /// The method and its dimensions: the fields `method` and [`crate::method::MethodSpec::field`].
    #[serde(flatten)]
    pub method: Method,
    /// The names of the adapted linear maps: those of [`crate::method::MethodSpec::targets`].
    pub targets: Vec<String>,
    /// The metric and the signals for the decision of tasks.
    pub key: KeyRule,
    /// The analytic classifier that is mixed with the head; `None` where the head alone gives the scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analytic: Option<AnalyticRecord>,
    /// Height and width of the dummy image, white, that stands in for a missing one, in pixels.
    pub dummy_image: [usize; 2],
    /// Whether `[SEP]` and the other special tokens in the texts of the training were read as special tokens,
    /// not as words ([`crate::input::InputProcessor::with_special_tokens`]). `None` in artifacts of programs
    /// without this setting; they are served with either reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub special_tokens: Option<bool>,
    /// The tokens of the longest text of the training, CLS and SEP included, where the backbone's position
    /// table was interpolated to so many ([`crate::vilt::Loader::with_text_positions`]). `None`: the
    /// checkpoint's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_positions: Option<usize>,
    /// The backbone that it was trained on.
    pub backbone: BackboneRecord,
    /// The hyper-parameters of the training, by flag name.
    pub training: serde_json::Value,
    /// The name of the data set, the task number, and the numbers of items by split and modality pattern.
    pub data: serde_json::Value,
    /// The seed of the training.
    pub seed: u64,
    /// The final figures; the name of a figure names its split.
    pub metrics: BTreeMap<String, f64>,
    /// When the artifact was made, in RFC 3339, UTC.
    pub created: String,
    /// The version of the program that wrote the artifact.
    pub delo_version: String,
}

/// What one task adds to the backbone, checked and ready to serve.
#[derive(Clone, Debug)]
pub struct Partition {
    /// The description in the artifact's header.
    pub meta: PartitionMeta,
    /// The SHA-256 over the artifact's tensors (names, types, shapes, bytes), in hexadecimal digits. It
    /// identifies what was learnt.
    pub checksum: String,
    /// The SHA-256 of the artifact's file, in hexadecimal digits. It is the artifact's name in a registry.
    pub digest: String,
    /// What its method adds to the layers.
    pub adapter: Adapter,
    /// The analytic classifier that is mixed with the head; `None` where the head alone gives the scores.
    pub analytic: Option<Analytic>,
    /// The head's weight, `[classes, d]`.
    pub head_weight: Vec<f32>,
    /// The head's bias, `[classes]`.
    pub head_bias: Vec<f32>,
    /// The keys and second moments of its session.
    pub keys: SessionKeys,
}

/// Why an artifact is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum PartitionError {
    #[error("not a delo partition: {0}")]
    Malformed(String),
    #[error("partition format {found} is newer than this program reads ({FORMAT_VERSION}): upgrade delo")]
    NewerFormat { found: u32 },
    #[error("trained on backbone {found}, not on {expected}: load it beside that backbone, or train it again on this one")]
    WrongBackbone { found: String, expected: String },
    #[error("tensor checksum {found} is not the header's {expected}: the file is damaged, copy it again")]
    Checksum { found: String, expected: String },
    #[error("the partition's {field} is unusable: {reason}")]
    Field { field: String, reason: String },
}

fn malformed(e: impl std::fmt::Display) -> PartitionError {
    PartitionError::Malformed(e.to_string())
}

fn field(field: impl Into<String>, reason: impl Into<String>) -> PartitionError {
    PartitionError::Field { field: field.into(), reason: reason.into() }
}

impl Artifact {
    /// Checks an artifact against a backbone and makes it ready to serve.
    ///
    /// # Errors
    /// [`PartitionError::WrongBackbone`] for an artifact of another backbone; [`PartitionError::Field`] for a
    /// tensor of another shape, a missing tensor, or a number in the header that does not fit.
    pub fn bind(self, backbone: &Description) -> Result<Partition, PartitionError> {
        let Self { meta, tensors, checksum, digest } = self;
        let expected = &backbone.fingerprint;
        if meta.backbone.fingerprint != *expected {
            return Err(PartitionError::WrongBackbone { found: meta.backbone.fingerprint, expected: expected.clone() });
        }
        let shape = BackboneShape { layers: backbone.config.num_hidden_layers, hidden: backbone.config.hidden_size };
        check_shape(&meta, shape)?;
        meta.method.validate().map_err(|reason| field(meta.method.field(), reason))?;
        check_dummy(&meta, backbone)?;
        let keys = session_keys(&tensors, &meta, shape)?;
        let unfit = |e: candle_core::Error| field("tensors", e.to_string());
        let head = |name: &str, shape: &[usize]| flat(tensor_of(&tensors, name, shape)?);
        let classes = meta.labels.len();
        Ok(Partition {
            adapter: meta.method.adapter(&tensors).map_err(unfit)?,
            analytic: analytic(&tensors, &meta, shape)?,
            head_weight: head("head.weight", &[classes, shape.hidden]).map_err(unfit)?,
            head_bias: head("head.bias", &[classes]).map_err(unfit)?,
            meta,
            checksum,
            digest,
            keys,
        })
    }
}

impl Partition {
    /// The same partition with its factors and routers in another number format.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { adapter: self.adapter.in_precision(precision), ..self }
    }

    /// Reads an artifact, checks it and binds it to a backbone: [`Artifact::parse`], then [`Artifact::bind`].
    ///
    /// # Errors
    /// See [`PartitionError`].
    pub fn read(bytes: &[u8], backbone: &Description) -> Result<Self, PartitionError> {
        Artifact::parse(bytes)?.bind(backbone)
    }
}

/// Refuses a partition that is made for a backbone of another shape.
fn check_shape(meta: &PartitionMeta, backbone: BackboneShape) -> Result<(), PartitionError> {
    let made_for = meta.method.backbone();
    if made_for == backbone {
        return Ok(());
    }
    let BackboneShape { layers, hidden } = backbone;
    let reason = format!("made for {} layers of width {}; the backbone has {layers} of width {hidden}", made_for.layers, made_for.hidden);
    Err(field(meta.method.field(), reason))
}

/// The most patches of a side of the image that stands in for a missing one.
pub const MAX_DUMMY_PATCHES: usize = 64;

/// Refuses a dummy image whose sides are not whole patches, or more than [`MAX_DUMMY_PATCHES`].
fn check_dummy(meta: &PartitionMeta, backbone: &Description) -> Result<(), PartitionError> {
    let (patch, [height, width]) = (backbone.config.patch_size, meta.dummy_image);
    let sound = |side: usize| side > 0 && side.is_multiple_of(patch) && side <= MAX_DUMMY_PATCHES * patch;
    if sound(height) && sound(width) {
        return Ok(());
    }
    Err(field(
        "dummy_image",
        format!("{height} × {width} is not a positive multiple of the {patch}-pixel patch, up to {MAX_DUMMY_PATCHES} patches a side"),
    ))
}

/// The keys, second moments and class statistics among the tensors. Refuses one that is not of its signal's
/// width, and an artifact without the statistics of its own rule.
fn session_keys(tensors: &Tensors, meta: &PartitionMeta, backbone: BackboneShape) -> Result<SessionKeys, PartitionError> {
    let mut keys = SessionKeys { classes: class_counts(tensors, meta)?, ..SessionKeys::default() };
    let classes = keys.classes.counts.len();
    for (name, tensor) in tensors {
        let (map, signal) = if let Some(signal) = name.strip_prefix(MEAN_KEY) {
            (&mut keys.mean, signal)
        } else if let Some(signal) = name.strip_prefix(EMA_KEY) {
            (&mut keys.ema, signal)
        } else if let Some(signal) = name.strip_prefix(MOMENT) {
            (&mut keys.moments, signal)
        } else if let Some(signal) = name.strip_prefix(CLASS_MEANS) {
            (&mut keys.classes.means, signal)
        } else if let Some(signal) = name.strip_prefix(CALIBRATION) {
            (&mut keys.calibration, signal)
        } else {
            continue;
        };
        let parsed = key_signal(name, signal, backbone)?;
        let width = parsed.width(backbone.hidden);
        let expected = match name {
            _ if name.starts_with(MOMENT) => vec![width * (width + 1) / 2],
            _ if name.starts_with(CLASS_MEANS) => vec![classes, width],
            _ if name.starts_with(CALIBRATION) => vec![tensor.dim(0).unwrap_or(0).clamp(1, MAX_CALIBRATION), width],
            _ => vec![width],
        };
        if tensor.dims() != expected {
            return Err(field(name, format!("its shape is {:?}, not {expected:?}", tensor.dims())));
        }
        map.insert(parsed, flat(tensor).map_err(malformed)?);
    }
    for (signal, means) in &keys.classes.means {
        let width = signal.width(backbone.hidden);
        let empty = keys.classes.counts.iter().zip(means.chunks_exact(width)).filter(|(count, _)| **count == 0.0);
        if empty.flat_map(|(_, mean)| mean).any(|&x| x != 0.0) {
            return Err(field(format!("{CLASS_MEANS}{signal}"), "a class without samples has a mean that is not 0"));
        }
    }
    let rule = &meta.key;
    let choice = KeyChoice { signal: rule.signal, average: KeyAverage::Mean };
    if rule.metric != Metric::Plain && !rule.metric.definition().knows(&keys, choice) {
        return Err(field("key", format!("its metric is {}, and the artifact lacks statistics of {}", rule.metric, rule.signal)));
    }
    if keys.key(rule.plain_signal, rule.plain_average).is_none() {
        return Err(field("key", format!("its {} key of {} is missing", rule.plain_average, rule.plain_signal)));
    }
    Ok(keys)
}

/// The analytic classifier that the header names.
fn analytic(tensors: &Tensors, meta: &PartitionMeta, backbone: BackboneShape) -> Result<Option<Analytic>, PartitionError> {
    let Some(record) = meta.analytic else { return Ok(None) };
    for (name, weight) in [("weight", record.weight), ("head_weight", record.head_weight)] {
        if !(0.0..=1e3).contains(&weight) {
            return Err(field(format!("analytic.{name}"), format!("{weight} is not a number from 0 to 1000")));
        }
    }
    if record.signal.layer().is_some_and(|layer| layer > backbone.layers) {
        return Err(field("analytic.signal", format!("{}: the backbone has {} layers", record.signal, backbone.layers)));
    }
    let width = record.signal.width(backbone.hidden);
    let classifier = Analytic::from_tensors(record, tensors, meta.labels.len(), width);
    classifier.map(Some).map_err(|e| field("tensors", e.to_string()))
}

/// The signal in a tensor's name, where a backbone of this shape has it.
fn key_signal(name: &str, signal: &str, BackboneShape { layers, .. }: BackboneShape) -> Result<KeySignal, PartitionError> {
    let parsed: KeySignal = signal.parse().map_err(|reason: String| field(name, reason))?;
    if parsed.layer().is_some_and(|layer| layer > layers) {
        return Err(field(name, format!("the backbone has {layers} layers")));
    }
    Ok(parsed)
}

/// The numbers of samples of each class, and the temperature; the class means are not read here.
fn class_counts(tensors: &Tensors, meta: &PartitionMeta) -> Result<ClassStatistics, PartitionError> {
    let temperature = meta.key.temperature;
    if let Some(wrong) = temperature.filter(|temperature| !(1e-3..=1e3).contains(temperature)) {
        return Err(field("key.temperature", format!("{wrong} is not a number from 0.001 to 1000")));
    }
    let Some(tensor) = tensors.get(CLASS_COUNTS) else {
        return Ok(ClassStatistics { temperature, ..ClassStatistics::default() });
    };
    let labels = meta.labels.len();
    let counts = flat(tensor).map_err(malformed)?;
    // The samples without a label are one more class of a multi-label task.
    if tensor.dims() != [labels] && !(meta.multi_label && tensor.dims() == [labels + 1]) {
        return Err(field(CLASS_COUNTS, format!("its shape is {:?}; the task has {labels} labels", tensor.dims())));
    }
    if counts.iter().any(|&n| n < 0.0) || counts.iter().sum::<f32>() <= 0.0 {
        return Err(field(CLASS_COUNTS, "numbers of samples are 0 or more, and not all 0"));
    }
    Ok(ClassStatistics { counts, temperature, ..ClassStatistics::default() })
}
