//! The bytes of an artifact: one safetensors file whose metadata describe the partition. This module makes
//! all checks that need no backbone.
use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{PartitionError, PartitionMeta, field, malformed};
use crate::analytic::Analytic;
use crate::method::{MethodKind, TaskModel, Tensors};
use crate::routing::{Metric, SessionKeys};

/// The value of `format` in the header.
const FORMAT: &str = "delo-partition";
/// The newest format version that this program reads.
pub const FORMAT_VERSION: u32 = 4;
/// The longest task name or label, in bytes.
const MAX_NAME: usize = 256;
/// The largest number of classes of a task.
const MAX_CLASSES: usize = 65_536;
/// The prefix of a tensor that holds a mean key; the signal's name follows.
pub(super) const MEAN_KEY: &str = "key.mean.";
/// The prefix of a tensor that holds a moving average; the signal's name follows.
pub(super) const EMA_KEY: &str = "key.ema.";
/// The prefix of a tensor that holds a second moment; the signal's name follows.
pub(super) const MOMENT: &str = "moment.";
/// The tensor of the numbers of samples of each class, `[classes]`.
pub(super) const CLASS_COUNTS: &str = "class.count";
/// The prefix of a tensor of class means, `[classes, width]`; the signal's name follows.
pub(super) const CLASS_MEANS: &str = "class.mean.";
/// The prefix of a tensor of calibration samples' signals, `[samples, width]`; the signal's name follows.
pub(super) const CALIBRATION: &str = "calibration.";
/// The most calibration samples of a partition.
pub const MAX_CALIBRATION: usize = 64;

/// An artifact that passed all checks of this module; it is not bound to a backbone yet.
#[derive(Debug)]
pub struct Artifact {
    /// The description in the header.
    pub meta: PartitionMeta,
    /// All tensors, by their names, in f32.
    pub tensors: Tensors,
    /// See [`super::Partition::checksum`].
    pub checksum: String,
    /// See [`super::Partition::digest`].
    pub digest: String,
}

/// The SHA-256 of some bytes, in hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The SHA-256 over the names, types, shapes and bytes of tensors, in the order of names, in hexadecimal
/// digits.
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

/// The oldest format version in which all of this description has a meaning. Version 1 names no method,
/// version 2 does. A program that reads version 2 alone would cut texts at the checkpoint's own number of
/// positions, and take a method that lacks a part for the whole one: such partitions are of version 3. A
/// program that reads version 3 alone does not know the methods with prefixes or prompts, and may take the head for the
/// whole classifier where an analytic one stands beside it: such partitions are of version 4.
fn format_version(meta: &PartitionMeta) -> u32 {
    match meta.method.kind() {
        _ if meta.analytic.is_some() || meta.key.metric == Metric::Lda => 4,
        MethodKind::DualPrompt | MethodKind::L2p => 4,
        MethodKind::Delo | MethodKind::Lora | MethodKind::Linear => {
            if meta.text_positions.is_some() || meta.method.ablation().is_some() {
                3
            } else {
                2
            }
        }
    }
}

/// The bytes of an artifact.
///
/// # Errors
/// [`PartitionError::Malformed`]: a tensor is not f32 on the CPU.
pub fn to_bytes(
    meta: &PartitionMeta,
    model: &TaskModel,
    keys: &SessionKeys,
    analytic: Option<&Analytic>,
) -> Result<Vec<u8>, PartitionError> {
    let mut tensors = BTreeMap::new();
    let analytic = analytic.map_or(Ok(Tensors::new()), Analytic::tensors).map_err(malformed)?;
    for (name, tensor) in model.to_tensors().map_err(malformed)?.into_iter().chain(analytic) {
        let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(malformed)?;
        tensors.insert(name, (tensor.dims().to_vec(), values));
    }
    for (prefix, vectors) in [(MEAN_KEY, &keys.mean), (EMA_KEY, &keys.ema), (MOMENT, &keys.moments)] {
        tensors.extend(vectors.iter().map(|(signal, values)| (format!("{prefix}{signal}"), (vec![values.len()], values.clone()))));
    }
    let classes = keys.classes.counts.len();
    if classes > 0 {
        tensors.insert(CLASS_COUNTS.to_owned(), (vec![classes], keys.classes.counts.clone()));
        let means = keys.classes.means.iter();
        tensors.extend(
            means.map(|(signal, values)| (format!("{CLASS_MEANS}{signal}"), (vec![classes, values.len() / classes], values.clone()))),
        );
    }
    for (signal, values) in &keys.calibration {
        let width = keys.mean.get(signal).map_or(values.len(), Vec::len).max(1);
        tensors.insert(format!("{CALIBRATION}{signal}"), (vec![values.len() / width, width], values.clone()));
    }
    let bytes: BTreeMap<&str, (&[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name.as_str(), (shape.as_slice(), values.iter().flat_map(|x| x.to_le_bytes()).collect())))
        .collect();
    let sum = checksum(bytes.iter().map(|(name, (shape, bytes))| (*name, Dtype::F32, *shape, bytes.as_slice())));
    let header = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("format_version".to_owned(), format_version(meta).to_string()),
        ("checksum".to_owned(), sum),
        ("partition".to_owned(), serde_json::to_string(meta).map_err(malformed)?),
    ]);
    let views: Vec<(&str, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, (shape, bytes))| Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(malformed)?)))
        .collect::<Result<_, PartitionError>>()?;
    in_order(safetensors::serialize(views, Some(header)).map_err(malformed)?)
}

/// The same file with the keys of its header sorted. `safetensors` writes the metadata in the order of a hash
/// map, which differs between processes, but the same session must give the same bytes.
fn in_order(mut file: Vec<u8>) -> Result<Vec<u8>, PartitionError> {
    let (length, rest) = file.split_first_chunk_mut::<8>().ok_or_else(|| malformed("it has no header"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(malformed)?;
    let header = rest.get_mut(..length).ok_or_else(|| malformed("its header is cut off"))?;
    let entries: BTreeMap<String, BTreeMap<String, serde_json::Value>> = serde_json::from_slice(header).map_err(malformed)?;
    let sorted = serde_json::to_vec(&entries).map_err(malformed)?;
    // The same entries in another order have the same length; the rest is the padding that aligns the
    // tensors.
    let (text, padding) = header.split_at_mut_checked(sorted.len()).ok_or_else(|| malformed("its header grew when it was sorted"))?;
    text.copy_from_slice(&sorted);
    padding.fill(b' ');
    Ok(file)
}

/// The task's name in an artifact's header. Nothing else is checked.
///
/// # Errors
/// [`PartitionError::Malformed`]: the header cannot be read.
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
    /// Reads an artifact and checks all that needs no backbone: header, format, checksum, names, and that all
    /// numbers are finite. Hashes the bytes twice, which takes seconds for hundreds of MiB: an asynchronous
    /// caller runs it on a blocking pool.
    ///
    /// # Errors
    /// See [`PartitionError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PartitionError> {
        Self::parse_hashed(bytes, digest(bytes))
    }

    /// As [`Self::parse`], for a caller that has the [`digest`] of the bytes.
    ///
    /// # Errors
    /// See [`PartitionError`].
    pub fn parse_hashed(bytes: &[u8], digest: String) -> Result<Self, PartitionError> {
        let (header_bytes, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
        let header = metadata.metadata().as_ref().ok_or_else(|| malformed("its header holds no metadata"))?;
        let entry = |key: &str| header.get(key).ok_or_else(|| malformed(format!("its header has no {key}")));
        if entry("format")? != FORMAT {
            return Err(malformed(format!("its format is {:?}", entry("format")?)));
        }
        let found: u32 = entry("format_version")?.parse().map_err(|_| malformed("its format version is not a number"))?;
        if found > FORMAT_VERSION {
            return Err(PartitionError::NewerFormat { found });
        }
        let views = views(&metadata, &bytes[LENGTH + header_bytes..])?;
        let sum = checksum(views.iter().map(|(name, view)| (name.as_str(), view.dtype(), view.shape(), view.data())));
        if sum != *entry("checksum")? {
            return Err(PartitionError::Checksum { found: sum, expected: entry("checksum")?.clone() });
        }
        let meta = meta(found, entry("partition")?)?;
        check_names(&meta)?;
        let tensors = views.into_iter().map(|(name, view)| Ok((name.clone(), finite(&name, &view)?)));
        Ok(Self { meta, tensors: tensors.collect::<Result<_, PartitionError>>()?, checksum: sum, digest })
    }
}

/// The number of bytes in which a safetensors file states the length of its header.
const LENGTH: usize = 8;

/// The tensors of a file, from its header and `data`, the bytes after the header.
fn views<'a>(metadata: &Metadata, data: &'a [u8]) -> Result<Vec<(String, TensorView<'a>)>, PartitionError> {
    let view = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (from, to) = info.data_offsets;
        let data = data.get(from..to).ok_or_else(|| malformed(format!("tensor {name} is cut off")))?;
        Ok((name, TensorView::new(info.dtype, info.shape.clone(), data).map_err(malformed)?))
    };
    metadata.tensors().into_iter().map(view).collect()
}

/// The description of the partition in the header. Format version 1 names no method: its only method is
/// `delo`.
fn meta(version: u32, text: &str) -> Result<PartitionMeta, PartitionError> {
    if version > 1 {
        return serde_json::from_str(text).map_err(malformed);
    }
    let mut meta: Value = serde_json::from_str(text).map_err(malformed)?;
    if let Some(fields) = meta.as_object_mut() {
        fields.insert("method".to_owned(), "delo".into());
    }
    serde_json::from_value(meta).map_err(malformed)
}

/// Checks a task's name or a label: 1 to 256 bytes without control characters.
///
/// # Errors
/// A sentence about what is wrong with the name.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("a name has 1 to {MAX_NAME} bytes, not {}", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err("a name holds no control characters".to_owned());
    }
    Ok(())
}

/// Checks the task's name, the labels and the targets.
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
    let targets = meta.method.target_names();
    if meta.targets != targets {
        return Err(field("targets", format!("the method {} adapts {targets:?}, not {:?}", meta.method.kind(), meta.targets)));
    }
    Ok(())
}

/// The tensor in f32. Refuses other types than F32, F16 and BF16, and numbers that are not finite.
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
