//! The partition artifact: one safetensors file holding what one task adds to the backbone.
use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::method::serving_pools::ServingPools;
use crate::method::task_model::{PoolSpec, TaskModel};
use crate::routing::keys::{KeyAverage, KeySignal, Metric, SessionKeys};
use crate::vilt::Description;
use delo_kernels::Precision;

/// What the header's `format` says.
const FORMAT: &str = "delo-partition";
/// The newest format version that this program reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;
/// Longest task name and label, in bytes.
const MAX_NAME: usize = 256;
/// Most classes of a task.
const MAX_CLASSES: usize = 65_536;
/// Prefixes of the tensors that tell the task.
const MEAN_KEY: &str = "key.mean.";
const EMA_KEY: &str = "key.ema.";
const MOMENT: &str = "moment.";

/// How this partition's key is meant to be compared (METHOD.md 4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyRule {
    pub metric: Metric,
    /// The signal of the whitened metric; the artifact holds its second moment.
    pub signal: KeySignal,
    /// The signal and average of the plain metric, also used where some resident partition has no moments.
    pub plain_signal: KeySignal,
    pub plain_average: KeyAverage,
}

/// The backbone a partition was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneRecord {
    /// See [`Description::fingerprint`].
    pub fingerprint: String,
    pub name: String,
}

/// What an artifact says of itself, in its header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionMeta {
    /// The task's unique name.
    pub task: String,
    /// Class names, in the order of the head's rows.
    pub labels: Vec<String>,
    /// Scores are independent sigmoids, not a softmax.
    pub multi_label: bool,
    pub pools: PoolSpec,
    /// The adapted maps; today's formats know `query`, `key` and `value`.
    pub targets: Vec<String>,
    pub key: KeyRule,
    /// Height and width of the white image that stands in for a missing one, in pixels.
    pub dummy_image: [usize; 2],
    /// Whether `[SEP]` and the like in the texts it was trained on were read as special tokens, not as words
    /// ([`crate::input::InputProcessor::with_special_tokens`]). `None`: written by a program that knew no
    /// choice; it goes with either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub special_tokens: Option<bool>,
    pub backbone: BackboneRecord,
    /// Hyper-parameters of the training, by flag name.
    pub training: serde_json::Value,
    /// Name of the data set, task number, and items by split and modality pattern.
    pub data: serde_json::Value,
    pub seed: u64,
    /// Final figures, on the split that their name says.
    pub metrics: BTreeMap<String, f64>,
    /// RFC 3339, UTC.
    pub created: String,
    /// Of the program that wrote it.
    pub delo_version: String,
}

/// An artifact that was read and found sound in itself; not yet bound to a backbone.
#[derive(Debug)]
pub struct Artifact {
    pub meta: PartitionMeta,
    pub tensors: BTreeMap<String, Tensor>,
    /// See [`Partition::checksum`].
    pub checksum: String,
    /// See [`Partition::digest`].
    pub digest: String,
}

/// SHA-256 over some bytes, hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// One task's factor pools, routers, keys and head, checked and ready to serve.
#[derive(Clone, Debug)]
pub struct Partition {
    pub meta: PartitionMeta,
    /// SHA-256 over the artifact's tensors (names, types, shapes, bytes), hexadecimal: its identity.
    pub checksum: String,
    /// SHA-256 over the bytes of the artifact's file, hexadecimal: what a registry names it by.
    pub digest: String,
    /// From layer `meta.pools.first_adapted_layer` on.
    pub pools: Vec<ServingPools>,
    /// `[classes, d]`
    pub head_weight: Vec<f32>,
    /// `[classes]`
    pub head_bias: Vec<f32>,
    pub keys: SessionKeys,
}

/// Why an artifact is refused.
#[derive(Debug, thiserror::Error)]
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

/// SHA-256 over names, types, shapes and bytes, in the order of names.
fn checksum<'a>(tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize], &'a [u8])>) -> String {
    let mut sorted: Vec<_> = tensors.into_iter().collect();
    sorted.sort_by_key(|(name, ..)| *name);
    let mut hash = Sha256::new();
    for (name, dtype, shape, bytes) in sorted {
        hash.update(format!("{name} {dtype:?} {shape:?}\n"));
        hash.update(bytes);
    }
    format!("{:x}", hash.finalize())
}

/// The bytes of an artifact.
///
/// # Errors
/// Tensors that are not f32 on the CPU.
pub fn to_bytes(meta: &PartitionMeta, model: &TaskModel, keys: &SessionKeys) -> Result<Vec<u8>, PartitionError> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in model.to_tensors().map_err(malformed)? {
        let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(malformed)?;
        tensors.insert(name, (tensor.dims().to_vec(), values));
    }
    for (prefix, vectors) in [(MEAN_KEY, &keys.mean), (EMA_KEY, &keys.ema), (MOMENT, &keys.moments)] {
        tensors.extend(vectors.iter().map(|(name, values)| (format!("{prefix}{name}"), (vec![values.len()], values.clone()))));
    }
    let bytes: BTreeMap<&str, (&[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name.as_str(), (shape.as_slice(), values.iter().flat_map(|x| x.to_le_bytes()).collect())))
        .collect();
    let sum = checksum(bytes.iter().map(|(name, (shape, bytes))| (*name, Dtype::F32, *shape, bytes.as_slice())));
    let header = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("format_version".to_owned(), FORMAT_VERSION.to_string()),
        ("checksum".to_owned(), sum),
        ("partition".to_owned(), serde_json::to_string(meta).map_err(malformed)?),
    ]);
    let views: Vec<(&str, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, (shape, bytes))| Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(malformed)?)))
        .collect::<Result<_, PartitionError>>()?;
    in_order(safetensors::serialize(views, Some(header)).map_err(malformed)?)
}

/// The same file with its header's keys sorted: `safetensors` writes the metadata in the order of a hash map, which is another in every process,
/// and the same session must give the same bytes.
fn in_order(mut file: Vec<u8>) -> Result<Vec<u8>, PartitionError> {
    let (length, rest) = file.split_first_chunk_mut::<8>().ok_or_else(|| malformed("it has no header"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(malformed)?;
    let header = rest.get_mut(..length).ok_or_else(|| malformed("its header is cut off"))?;
    let entries: BTreeMap<String, BTreeMap<String, serde_json::Value>> = serde_json::from_slice(header).map_err(malformed)?;
    let sorted = serde_json::to_vec(&entries).map_err(malformed)?;
    // The same entries in another order take the same room; the rest is the padding that aligns the tensors.
    let (text, padding) = header.split_at_mut_checked(sorted.len()).ok_or_else(|| malformed("its header has no room"))?;
    text.copy_from_slice(&sorted);
    padding.fill(b' ');
    Ok(file)
}

/// The task that an artifact says it is of, from its header alone; nothing else is checked.
///
/// # Errors
/// A header that can't be read.
pub fn task_name(bytes: &[u8]) -> Result<String, PartitionError> {
    #[derive(Deserialize)]
    struct Named {
        task: String,
    }
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
    let meta =
        metadata.metadata().as_ref().and_then(|header| header.get("partition")).ok_or_else(|| malformed("its header names no task"))?;
    Ok(serde_json::from_str::<Named>(meta).map_err(malformed)?.task)
}

impl Artifact {
    /// Reads an artifact and checks what can be checked without a backbone: header, format, checksum, names, finite numbers.
    ///
    /// # Errors
    /// See [`PartitionError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PartitionError> {
        Self::parse_hashed(bytes, digest(bytes))
    }

    /// As [`Self::parse`], for a file whose SHA-256 is known: `digest` is that hash over `bytes`, in hexadecimal.
    ///
    /// # Errors
    /// See [`PartitionError`].
    pub fn parse_hashed(bytes: &[u8], digest: String) -> Result<Self, PartitionError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
        let header = metadata.metadata().as_ref().ok_or_else(|| malformed("its header holds no metadata"))?;
        let entry = |key: &str| header.get(key).ok_or_else(|| malformed(format!("its header does not say its {key}")));
        if entry("format")? != FORMAT {
            return Err(malformed(format!("its format is {:?}", entry("format")?)));
        }
        let found: u32 = entry("format_version")?.parse().map_err(|_| malformed("its format version is no number"))?;
        if found > FORMAT_VERSION {
            return Err(PartitionError::NewerFormat { found });
        }
        let file = SafeTensors::deserialize(bytes).map_err(malformed)?;
        let views = file.tensors();
        let sum = checksum(views.iter().map(|(name, view)| (name.as_str(), view.dtype(), view.shape(), view.data())));
        if sum != *entry("checksum")? {
            return Err(PartitionError::Checksum { found: sum, expected: entry("checksum")?.clone() });
        }
        let meta: PartitionMeta = serde_json::from_str(entry("partition")?).map_err(malformed)?;
        check_names(&meta)?;
        let tensors = views.into_iter().map(|(name, view)| Ok((name.clone(), finite(&name, &view)?)));
        Ok(Self { meta, tensors: tensors.collect::<Result<_, PartitionError>>()?, checksum: sum, digest })
    }

    /// Checks an artifact against a backbone and makes it ready to serve.
    ///
    /// # Errors
    /// Another backbone, or shapes that do not fit it.
    pub fn bind(self, backbone: &Description) -> Result<Partition, PartitionError> {
        let Self { meta, tensors, checksum, digest } = self;
        let expected = &backbone.fingerprint;
        if meta.backbone.fingerprint != *expected {
            return Err(PartitionError::WrongBackbone { found: meta.backbone.fingerprint, expected: expected.clone() });
        }
        let (layers, hidden) = (backbone.config.num_hidden_layers, backbone.config.hidden_size);
        if (meta.pools.layers, meta.pools.hidden) != (layers, hidden) {
            return Err(field(
                "pools",
                format!(
                    "they are made for {} layers, {} wide; the backbone has {layers}, {hidden} wide",
                    meta.pools.layers, meta.pools.hidden
                ),
            ));
        }
        meta.pools.validate().map_err(|reason| field("pools", reason))?;
        check_dummy(&meta, backbone)?;
        let keys = session_keys(&tensors, &meta, layers, hidden)?;
        let model =
            TaskModel::from_tensors(meta.pools.clone(), meta.labels.len(), &tensors).map_err(|e| field("tensors", e.to_string()))?;
        let pools = model.layers.iter().map(|pools| ServingPools::new(&meta.pools, pools)).collect::<candle_core::Result<_>>();
        let values = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(malformed);
        Ok(Partition {
            pools: pools.map_err(malformed)?,
            head_weight: values(&model.head_weight)?,
            head_bias: values(&model.head_bias)?,
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
        Self { pools: self.pools.into_iter().map(|pools| pools.in_precision(precision)).collect(), ..self }
    }

    /// Reads and checks an artifact: format, checksum, shapes, finite numbers, and the backbone it was trained on.
    ///
    /// # Errors
    /// See [`PartitionError`]; nothing is changed by a refusal.
    pub fn read(bytes: &[u8], backbone: &Description) -> Result<Self, PartitionError> {
        Artifact::parse(bytes)?.bind(backbone)
    }
}

/// Whether `name` can be a task's name or a label: 1 to 256 bytes without control characters.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("a name has 1 to {MAX_NAME} bytes, not {}", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err("a name holds no control characters".to_owned());
    }
    Ok(())
}

fn check_names(meta: &PartitionMeta) -> Result<(), PartitionError> {
    check_name(&meta.task).map_err(|reason| field("task", reason))?;
    if meta.labels.is_empty() || meta.labels.len() > MAX_CLASSES {
        return Err(field("labels", format!("a task has 1 to {MAX_CLASSES} labels, not {}", meta.labels.len())));
    }
    let mut places = HashMap::new();
    for (i, label) in meta.labels.iter().enumerate() {
        check_name(label).map_err(|reason| field(format!("labels[{i}]"), reason))?;
        if let Some(first) = places.insert(label, i) {
            return Err(field(
                format!("labels[{i}]"),
                format!("{label:?} is labels[{first}] already: give each class a name of its own and train again"),
            ));
        }
    }
    if meta.targets != crate::method::task_model::TARGETS {
        return Err(field("targets", format!("this program adapts query, key and value, not {:?}", meta.targets)));
    }
    Ok(())
}

fn check_dummy(meta: &PartitionMeta, backbone: &Description) -> Result<(), PartitionError> {
    let (patch, [height, width]) = (backbone.config.patch_size, meta.dummy_image);
    let sound = |side: usize| side > 0 && side.is_multiple_of(patch) && side <= 64 * patch;
    if sound(height) && sound(width) {
        return Ok(());
    }
    Err(field("dummy_image", format!("{height} × {width} is not a positive multiple of the {patch}-pixel patch, up to 64 patches a side")))
}

/// The tensor's values in f32.
fn finite(name: &str, view: &TensorView<'_>) -> Result<Tensor, PartitionError> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => return Err(field(name, format!("its type is {other:?}; F32, F16 and BF16 are read"))),
    };
    let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu).and_then(|t| t.to_dtype(DType::F32));
    let tensor = tensor.map_err(malformed)?;
    let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(malformed)?;
    if values.iter().all(|x| x.is_finite()) { Ok(tensor) } else { Err(field(name, "it holds a NaN or an infinite number")) }
}

/// The keys and moments among the tensors, each of its signal's width.
fn session_keys(
    tensors: &BTreeMap<String, Tensor>,
    meta: &PartitionMeta,
    layers: usize,
    hidden: usize,
) -> Result<SessionKeys, PartitionError> {
    let mut keys = SessionKeys::default();
    for (name, tensor) in tensors {
        let (map, signal) = if let Some(signal) = name.strip_prefix(MEAN_KEY) {
            (&mut keys.mean, signal)
        } else if let Some(signal) = name.strip_prefix(EMA_KEY) {
            (&mut keys.ema, signal)
        } else if let Some(signal) = name.strip_prefix(MOMENT) {
            (&mut keys.moments, signal)
        } else {
            continue;
        };
        let parsed: KeySignal = signal.parse().map_err(|reason: String| field(name, reason))?;
        if parsed.layer().is_some_and(|layer| layer > layers) {
            return Err(field(name, format!("the backbone has {layers} layers")));
        }
        let width = parsed.width(hidden);
        let expected = if name.starts_with(MOMENT) { width * (width + 1) / 2 } else { width };
        if tensor.dims() != [expected] {
            return Err(field(name, format!("its shape is {:?}, not [{expected}]", tensor.dims())));
        }
        map.insert(signal.to_owned(), tensor.to_vec1().map_err(malformed)?);
    }
    let rule = &meta.key;
    if rule.metric == Metric::Whitened
        && (keys.key(rule.signal, KeyAverage::Mean).is_none() || !keys.moments.contains_key(&rule.signal.to_string()))
    {
        return Err(field("key", format!("it is whitened over {}, whose key or second moment is missing", rule.signal)));
    }
    if keys.key(rule.plain_signal, rule.plain_average).is_none() {
        return Err(field("key", format!("its {} key of {} is missing", rule.plain_average, rule.plain_signal)));
    }
    Ok(keys)
}
