//! The partitions to evaluate: those of a folder, or those in the program.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use delo_engine::Resident;
use delo_model::model_dir::{embedded_partitions, partition_files};
use delo_model::vilt::Description;
use delo_model::{Partition, PartitionError};

/// Why partitions cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PartitionsError {
    #[error("cannot read {}: {source}; --partitions names a folder of *.safetensors", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: no *.safetensors in this folder; `delo train` writes them", .0.display())]
    Empty(PathBuf),
    #[error("this program holds no partitions: name a folder with --partitions")]
    NoneEmbedded,
    #[error("{name}: {source}")]
    Refused { name: String, source: PartitionError },
}

/// The partitions of a folder ([`partition_files`]), in order of name.
///
/// # Errors
/// [`PartitionsError`] names the file that is refused.
pub fn read_directory(dir: &Path, backbone: &Description) -> Result<Vec<Arc<Resident>>, PartitionsError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| PartitionsError::Unreadable { path, source }
    };
    let paths = partition_files(dir).map_err(unreadable(dir))?;
    if paths.is_empty() {
        return Err(PartitionsError::Empty(dir.to_owned()));
    }
    paths.iter().map(|path| resident(path.display().to_string(), &std::fs::read(path).map_err(unreadable(path))?, backbone)).collect()
}

/// The partitions in the program.
///
/// # Errors
/// [`PartitionsError::Refused`] where `vilt` is not the backbone in the program.
pub fn read_embedded(backbone: &Description) -> Result<Vec<Arc<Resident>>, PartitionsError> {
    if embedded_partitions().is_empty() {
        return Err(PartitionsError::NoneEmbedded);
    }
    embedded_partitions().iter().map(|(name, bytes)| resident((*name).to_owned(), bytes, backbone)).collect()
}

fn resident(name: String, bytes: &[u8], backbone: &Description) -> Result<Arc<Resident>, PartitionsError> {
    let partition = Partition::read(bytes, backbone).map_err(|source| PartitionsError::Refused { name, source })?;
    Ok(Resident::new(partition, 1))
}
