//! The ledger, and the versions that it retains beside those in the catalogue.
use std::collections::HashMap;
use std::sync::Arc;

use delo_catalogue::{Catalogue, Resident};

use super::error::ChangeError;
use crate::artifact::ReadArtifact;
use crate::folder::Folder;
use crate::ledger::Ledger;
use crate::state::StateDir;

/// The ledger with the store that keeps it and the retained versions.
#[derive(Debug)]
pub struct LedgerStore {
    pub ledger: Ledger,
    pub versions: VersionStore,
    /// What the operator should know of the start.
    pub notices: Vec<String>,
}

/// Where versions are kept that are not in the catalogue.
#[derive(Debug)]
pub enum VersionStore {
    /// Every version that the ledger names, and the ledger itself.
    Disk(StateDir<Folder>),
    /// Retained versions by task and version number. They end with the process.
    Memory(HashMap<(String, u64), Arc<Resident>>),
}

impl LedgerStore {
    /// Makes `ledger`, a later state of the one here, the next revision. `new` are the artifacts that it
    /// names for the first time. Blocks as [`Self::commit`] does.
    ///
    /// # Errors
    /// [`ChangeError::State`]: the disk can't be written; the ledger stays as it was.
    pub fn advance_to(&mut self, mut ledger: Ledger, new: &[ReadArtifact]) -> Result<(), ChangeError> {
        ledger.revision += 1;
        self.commit(&ledger, new)?;
        self.ledger = ledger;
        Ok(())
    }

    /// Writes a ledger and its new artifacts to the disk; does nothing where there is no state directory.
    ///
    /// Blocks for some milliseconds of disk. It does so in place (tokio moves other work off this thread
    /// meanwhile): a write that ran elsewhere would be left alone in its middle by a caller that stops
    /// waiting.
    ///
    /// # Errors
    /// [`ChangeError::State`]
    pub fn commit(&mut self, ledger: &Ledger, new: &[ReadArtifact]) -> Result<(), ChangeError> {
        match &mut self.versions {
            VersionStore::Memory(_) => Ok(()),
            VersionStore::Disk(state) => Ok(tokio::task::block_in_place(|| state.commit(ledger, new))?),
        }
    }

    /// Keeps in memory the versions of a task that `ledger` retains and the catalogue `before` the change was
    /// serving, unless the disk keeps them.
    pub fn keep_retained(&mut self, task: &str, ledger: &Ledger, before: &Catalogue) {
        let VersionStore::Memory(kept) = &mut self.versions else { return };
        let retained: Vec<u64> = ledger.tasks.get(task).map(|entry| entry.retained().collect()).unwrap_or_default();
        kept.retain(|(name, version), _| name != task || retained.contains(version));
        for version in retained {
            if let Some(resident) = before.version(task, version) {
                kept.insert((task.to_owned(), version), resident.clone());
            }
        }
    }

    /// Whether what is live outlives the process.
    pub fn is_durable(&self) -> bool {
        matches!(self.versions, VersionStore::Disk(_))
    }
}
