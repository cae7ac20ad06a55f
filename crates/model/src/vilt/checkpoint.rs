//! The tensors of a Hugging Face checkpoint: `model.safetensors`, or shards with an index, on disk or in the
//! binary.
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::ViltError;
use crate::model_dir::ModelDir;

const SINGLE_FILE: &str = "model.safetensors";
const SHARD_INDEX: &str = "model.safetensors.index.json";
/// The prefix of the backbone's tensors in a checkpoint of a whole task model (`ViltForMaskedLM` …).
const PREFIX: &str = "vilt.";
/// The longest header in bytes that the `safetensors` crate accepts. A longer one is an attack, not a model.
const LONGEST_HEADER: u64 = 100_000_000;

/// An open checkpoint. Tensors are read one at a time, so that at most one of them is in memory twice.
pub(super) struct Checkpoint {
    shards: Vec<Shard>,
    /// Name without [`PREFIX`] → index of the shard, and the tensor's place in it.
    places: HashMap<String, (usize, TensorInfo)>,
    device: Device,
    /// The tensors that were read: name without [`PREFIX`] → SHA-256 of the shape and the values.
    taken: BTreeMap<String, [u8; 32]>,
    /// Makes random tensors in place of reading them.
    random: Option<ChaCha8Rng>,
}

/// `model.safetensors.index.json`
#[derive(Deserialize)]
struct ShardIndex {
    /// Name of a tensor → name of its file.
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Reads the headers of a directory's safetensors files. Tensors will be placed on `device`.
    pub fn open(dir: &ModelDir, device: &Device) -> Result<Self, ViltError> {
        let files = shard_files(dir)?;
        let mut shards = Vec::with_capacity(files.len());
        let mut places = HashMap::new();
        for file in files {
            let shard = Shard::open(dir, &file)?;
            for (name, info) in shard.metadata.tensors() {
                places.insert(name, (shards.len(), info.clone()));
            }
            shards.push(shard);
        }
        if places.keys().any(|name| name.starts_with(PREFIX)) {
            places = places.into_iter().filter_map(|(name, place)| Some((name.strip_prefix(PREFIX)?.to_owned(), place))).collect();
        }
        Ok(Self { shards, places, device: device.clone(), taken: BTreeMap::new(), random: None })
    }

    /// A checkpoint without files that makes every requested tensor at random: gains of layer norms are 1,
    /// all other values lie in ±0.035.
    pub fn random(seed: u64, device: &Device) -> Self {
        let random = Some(ChaCha8Rng::seed_from_u64(seed));
        Self { shards: Vec::new(), places: HashMap::new(), device: device.clone(), taken: BTreeMap::new(), random }
    }

    /// Tensors that are read after this call are placed on this device.
    pub fn onto(&mut self, device: &Device) {
        self.device = device.clone();
    }

    /// One tensor, converted to f32.
    ///
    /// # Errors
    /// The tensor is missing, has another shape, is not f32, f16 or bf16, or holds a number that is not
    /// finite; the message names it.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ViltError> {
        if let Some(rng) = &mut self.random {
            let gain = shape.len() == 1 && name.ends_with("weight");
            let values =
                (0..shape.iter().product()).map(|_| if gain { 1.0 } else { 0.07 * rng.random::<f32>() - 0.035 }).collect::<Vec<_>>();
            return Ok(Tensor::from_vec(values, shape, &self.device)?);
        }
        let (shard, info) = self.place(name).ok_or_else(|| ViltError::MissingTensor(name.to_owned()))?;
        if info.shape != shape {
            return Err(ViltError::Shape { name: name.to_owned(), found: info.shape, expected: shape.to_vec() });
        }
        let shard = &mut self.shards[shard];
        let bytes = shard.bytes(&info)?;
        let values =
            to_f32(&bytes, info.dtype).ok_or_else(|| ViltError::Dtype { name: name.to_owned(), found: format!("{:?}", info.dtype) })?;
        drop(bytes);
        if values.iter().any(|v| !v.is_finite()) {
            return Err(ViltError::NotFinite(name.to_owned()));
        }
        self.taken.insert(name.to_owned(), digest(shape, &values));
        Ok(Tensor::from_vec(values, shape, &self.device)?)
    }

    /// The SHA-256, in hexadecimal digits, over the tensors that were read: in the order of names, each name
    /// and the SHA-256 of its shape and its values in f32. It depends neither on the prefix, nor on the
    /// shards, nor on the types in the files.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (name, digest) in &self.taken {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update(digest);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The place of a tensor. In old checkpoints, the weight and the bias of a `LayerNorm` are named gamma
    /// and beta.
    fn place(&self, name: &str) -> Option<(usize, TensorInfo)> {
        let old = || match name.rsplit_once("LayerNorm.")? {
            (path, "weight") => self.places.get(&format!("{path}LayerNorm.gamma")),
            (path, "bias") => self.places.get(&format!("{path}LayerNorm.beta")),
            _ => None,
        };
        self.places.get(name).or_else(old).cloned()
    }
}

/// The SHA-256 of a tensor's shape and values.
fn digest(shape: &[usize], values: &[f32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((shape.len() as u64).to_le_bytes());
    for &side in shape {
        hash.update((side as u64).to_le_bytes());
    }
    if cfg!(target_endian = "little") {
        hash.update(bytemuck::cast_slice::<f32, u8>(values));
    } else {
        values.iter().for_each(|value| hash.update(value.to_le_bytes()));
    }
    hash.finalize().into()
}

/// The values in f32; `None` for a type other than F32, F16 and BF16.
fn to_f32(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    let halves = |decode: fn([u8; 2]) -> f32| bytes.as_chunks().0.iter().map(|&b| decode(b)).collect();
    match dtype {
        Dtype::F32 => Some(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        Dtype::F16 => Some(halves(|b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Some(halves(|b| bf16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

/// The names of a directory's safetensors files, sorted.
fn shard_files(dir: &ModelDir) -> Result<Vec<String>, ViltError> {
    let Some(index) = dir.read(SHARD_INDEX).map_err(|source| ViltError::Read { file: SHARD_INDEX.to_owned(), source })? else {
        return Ok(vec![SINGLE_FILE.to_owned()]);
    };
    let malformed = |reason: String| ViltError::Malformed { file: SHARD_INDEX.to_owned(), reason };
    let index: ShardIndex = serde_json::from_slice(&index).map_err(|e| malformed(e.to_string()))?;
    let mut files: Vec<String> = index.weight_map.into_values().collect();
    files.sort_unstable();
    files.dedup();
    if let Some(outside) = files.iter().find(|file| file.contains(['/', '\\']) || file.starts_with('.')) {
        return Err(malformed(format!("{outside:?} is not the name of a file beside it")));
    }
    Ok(files)
}

/// One safetensors file.
struct Shard {
    file: String,
    metadata: Metadata,
    /// Where the tensors begin in the file, in bytes.
    data_start: u64,
    source: Source,
}

enum Source {
    Disk(File),
    Memory(Cow<'static, [u8]>),
}

impl Shard {
    fn open(dir: &ModelDir, file: &str) -> Result<Self, ViltError> {
        let unread = |source| ViltError::Read { file: file.to_owned(), source };
        let mut source = match dir {
            ModelDir::Path(path) => match File::open(path.join(file)) {
                Ok(opened) => Source::Disk(opened),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(ViltError::NoWeights { dir: dir.display(), file: file.to_owned() });
                }
                Err(e) => return Err(unread(e)),
            },
            ModelDir::Embedded => match dir.read(file).map_err(unread)? {
                Some(bytes) => Source::Memory(bytes),
                None => return Err(ViltError::NoWeights { dir: dir.display(), file: file.to_owned() }),
            },
        };
        let malformed = |reason: String| ViltError::Malformed { file: file.to_owned(), reason };
        let header_length = source.bytes(0, 8).map_err(unread)?;
        let header_length =
            header_length.as_ref().try_into().map(u64::from_le_bytes).map_err(|_| malformed("shorter than its header".to_owned()))?;
        if header_length > LONGEST_HEADER {
            return Err(malformed(format!("a header of {header_length} bytes: not a safetensors file")));
        }
        let header = source.bytes(8, header_length as usize).map_err(unread)?;
        let metadata = serde_json::from_slice(&header).map_err(|e| malformed(e.to_string()))?;
        drop(header);
        Ok(Self { file: file.to_owned(), metadata, data_start: 8 + header_length, source })
    }

    fn bytes(&mut self, info: &TensorInfo) -> Result<Cow<'_, [u8]>, ViltError> {
        let (start, end) = info.data_offsets;
        self.source.bytes(self.data_start + start as u64, end - start).map_err(|source| ViltError::Read { file: self.file.clone(), source })
    }
}

impl Source {
    /// `length` bytes from `start` on.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file is too short, as after a download that was interrupted.
    fn bytes(&mut self, start: u64, length: usize) -> std::io::Result<Cow<'_, [u8]>> {
        let cut_short = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file ends too early: copy it again");
        match self {
            Self::Disk(file) => {
                if file.metadata()?.len() < start.saturating_add(length as u64) {
                    return Err(cut_short());
                }
                let mut bytes = vec![0; length];
                file.seek(SeekFrom::Start(start))?;
                file.read_exact(&mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
            Self::Memory(all) => {
                let start = start as usize;
                all.get(start..start.saturating_add(length)).map(Cow::Borrowed).ok_or_else(cut_short)
            }
        }
    }
}
