//! Why the catalogue can't be restored or changed.
use std::path::PathBuf;

use delo_catalogue::CatalogueError;
use delo_model::PartitionError;

use crate::blocking::Panicked;
use crate::folder::FolderError;
use crate::ledger::LedgerError;
use crate::source::SourceError;
use crate::state::StateError;

/// Why the catalogue can't be restored or changed. A change that fails changes nothing.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum ChangeError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Partition(#[from] PartitionError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("task {task:?} could not classify a blank image: {reason}")]
    WarmUp { task: String, reason: String },
    #[error("{Panicked}")]
    Panicked,
    #[error("can't list the partitions of {dir}: {source}")]
    Directory { dir: PathBuf, source: std::io::Error },
    /// A partition that was to be loaded at the start.
    #[error("partition {file}: {reason}")]
    AtStart { file: String, reason: Box<ChangeError> },
    #[error("partitions {first} and {second} are both of task {task:?}: leave one of them out")]
    Twice { task: String, first: String, second: String },
    #[error(
        "the state directory belongs to backbone {found}, not to {expected}: start with that backbone, or with another catalogue.state_dir"
    )]
    OtherBackbone { found: String, expected: String },
}

impl From<Panicked> for ChangeError {
    fn from(_: Panicked) -> Self {
        Self::Panicked
    }
}
