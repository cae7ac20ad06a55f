//! The partitions to evaluate: those of a folder, or those embedded in the program.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use delo_catalogue::Resident;
use delo_model::model_dir::{embedded_partitions, partition_files};
use delo_model::vilt::Description;
use delo_model::{Partition, PartitionError};

/// Why partitions cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PartitionsError {
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}; --partitions names a folder of *.safetensors", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A folder without partitions.
    #[error("{}: no *.safetensors in this folder; `delo train` writes them", .0.display())]
    Empty(PathBuf),
    /// The program was built without partitions.
    #[error("this program holds no partitions: name a folder with --partitions")]
    NoneEmbedded,
    /// A file that is no partition of the backbone.
    #[error("{name}: {source}")]
    Refused {
        /// Name of the partition's file.
        name: String,
        /// Why it is refused.
        source: PartitionError,
    },
}

/// The partitions of a folder ([`partition_files`]), by rising name.
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

/// The partitions embedded in the program.
///
/// # Errors
/// [`PartitionsError::NoneEmbedded`]; [`PartitionsError::Refused`] where `backbone` is not the one in the
/// program.
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
