//! Opens a state directory at the start, and takes over a state that an earlier delo kept there.
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::error::ChangeError;
use crate::folder::Folder;
use crate::state::{self, Found, StateDir};

/// The artifacts of a state in the former layout ([`Folder::former`]). They are read once, when the state is
/// taken over, and stay as they are.
#[derive(Clone, Debug)]
pub struct FormerState {
    /// The folder of its artifacts. A user's partitions may lie there too.
    partitions: PathBuf,
    /// The SHA-256 of each artifact that it named.
    digests: BTreeSet<String>,
}

impl FormerState {
    /// Whether a file is one of its artifacts. Blocks.
    pub fn wrote(&self, file: &Path) -> bool {
        let named = file.file_name().and_then(OsStr::to_str).and_then(state::named_digest);
        named.is_some_and(|digest| self.digests.contains(digest))
            && file.parent().and_then(|dir| dir.canonicalize().ok()) == self.partitions.canonicalize().ok()
    }
}

/// What a state directory holds.
pub struct OpenedState {
    pub state: StateDir<Folder>,
    pub found: Found,
    /// The state in the former layout, where there is one.
    pub former: Option<FormerState>,
    /// What the operator should know beside the notices in `found`.
    pub notice: Option<String>,
}

impl OpenedState {
    /// Opens a state directory. A state in the former layout is taken over where there is none in the present
    /// one. `partitions` is the directory of the user's partitions, which must lie outside the server's
    /// folder. Blocks.
    ///
    /// # Errors
    /// [`ChangeError::Folder`], [`ChangeError::State`]
    pub fn open(dir: &Path, partitions: Option<&Path>) -> Result<Self, ChangeError> {
        let folder = Folder::open(dir)?;
        if let Some(partitions) = partitions {
            folder.check_apart(partitions)?;
        }
        let own = folder.path().to_owned();
        let (mut state, mut found) = StateDir::open(folder)?;
        let Some(former_folder) = Folder::former(dir)? else { return Ok(Self { state, found, former: None, notice: None }) };
        let (former_state, former_found) = StateDir::open(former_folder)?;
        let former = FormerState { partitions: dir.join(state::PARTITIONS), digests: former_state.digests() };
        let mut notice = None;
        if let (true, Some(ledger)) = (found.is_empty(), &former_found.ledger) {
            state.adopt(&former_state, ledger)?;
            let text = format!(
                "what an earlier delo kept in {} was copied to {}; its files stay, and are not read any more: catalogue-*.json, lock, and in partitions those named by a SHA-256",
                dir.display(),
                own.display()
            );
            tracing::info!(notice = text, "state directory");
            notice = Some(text);
            found = former_found;
        }
        Ok(Self { state, found, former: Some(former), notice })
    }
}
