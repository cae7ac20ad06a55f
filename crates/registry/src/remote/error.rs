//! Why a registry or an address can't be read or changed.
use std::path::PathBuf;
use std::time::Duration;

use delo_model::PartitionError;

use crate::blocking::Panicked;
use crate::signature::SignatureError;

/// Why a registry or an address can't be read or changed. No message holds credentials or the query of an
/// address.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum RemoteError {
    #[error("{given:?} can't be used as a registry: {reason}")]
    Location { given: String, reason: String },
    #[error("{url} is not below one of the addresses in registry.allowed_urls: add its prefix to that setting, or upload the file")]
    NotAllowed { url: String },
    #[error("{object} is not there")]
    NotThere { object: String },
    #[error("{object} has not changed")]
    NotModified { object: String },
    #[error("access to {object} is denied: {reason}")]
    Denied { object: String, reason: String },
    #[error("{object} answers with a redirect to another place, which is not followed: give the address of the file itself")]
    Redirected { object: String },
    #[error("{object} can't be read or written: {reason}")]
    Failed { object: String, reason: String },
    #[error("{object} came too slowly: less than a piece of {piece} bytes in {seconds} s (registry.fetch_timeout_seconds)")]
    Slow { object: String, piece: u64, seconds: f64 },
    #[error("{object} was cut off after {found} bytes")]
    Cut { object: String, found: u64 },
    #[error("{object} has {found} bytes or more, the manifest says {expected}: push it again")]
    Size { object: String, found: u64, expected: u64 },
    #[error("{object} has {found} bytes or more, more than the {limit} allowed (admin.max_artifact_bytes)")]
    TooLarge { object: String, found: u64, limit: u64 },
    #[error("{object} is of task {found:?}, the manifest says {expected:?}: push it again")]
    OtherTask { object: String, found: String, expected: String },
    #[error("{object} is damaged: its SHA-256 is {found}; push it again")]
    Digest { object: String, found: String },
    #[error("the registry's manifest is unusable: {reason}")]
    Manifest { reason: String },
    #[error("the registry's manifest is of version {found}, newer than this program reads ({known}): upgrade delo")]
    NewerManifest { found: u32, known: u32 },
    #[error(
        "the manifest at revision {found} is older than the last one seen, {seen}: it is ignored; push or promote again, or, where the registry was put back on purpose, take it by `delo admin sync --accept-older`"
    )]
    Older { found: u64, seen: u64 },
    #[error("{place} is read only: push to the directory or the object store behind it")]
    ReadOnly { place: String },
    #[error("others keep changing {object}: try again in a moment")]
    Contended { object: String },
    #[error("{path} has been there for {} s: another push is at work, or was killed; if none is, delete that file", waited.as_secs())]
    Locked { path: PathBuf, waited: Duration },
    #[error("the registry holds no artifact {what:?}: `delo registry list` shows what there is")]
    UnknownArtifact { what: String },
    #[error("{what:?} fits several artifacts: give more digits of the SHA-256")]
    Ambiguous { what: String },
    #[error("nothing of task {task:?} is live in the registry: `delo registry list` shows what is")]
    NotLive { task: String },
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error(transparent)]
    Partition(#[from] PartitionError),
}

impl RemoteError {
    /// Whether the same request may succeed later although nothing else changes.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::NotThere { .. }
                | Self::Denied { .. }
                | Self::Redirected { .. }
                | Self::Failed { .. }
                | Self::Slow { .. }
                | Self::Cut { .. }
                | Self::Size { .. }
                | Self::Contended { .. }
                | Self::Locked { .. }
        )
    }

    /// Whether the request is worth repeating at once.
    pub(super) fn worth_retrying_at_once(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Slow { .. } | Self::Cut { .. })
    }
}

impl From<Panicked> for RemoteError {
    fn from(panicked: Panicked) -> Self {
        Self::Failed { object: "the partition".to_owned(), reason: panicked.to_string() }
    }
}
