//! The partition artifact: one safetensors file holding what one task adds to the backbone.
use serde::{Deserialize, Serialize};

/// What an artifact says of itself, in its header.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartitionMeta {
    /// The task's unique name.
    pub task: String,
    /// Class names, in the order of the head's rows.
    pub labels: Vec<String>,
    /// Scores are independent sigmoids, not a softmax.
    pub multi_label: bool,
    // … layout, experts, rank, alpha, first_adapted_layer, key signal and metric, training settings, data set, created, …
}

/// One task's factor pools, routers, keys and head, checked and ready to serve.
#[derive(Debug)]
pub struct Partition {
    pub meta: PartitionMeta,
    /// SHA-256 over the artifact's tensors, hexadecimal: the artifact's identity.
    pub checksum: String,
}

/// Why an artifact is refused.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    #[error("not a delo partition: {0}")]
    Malformed(String),
    #[error("partition format {found} is newer than this program reads ({supported}): upgrade delo")]
    NewerFormat { found: u32, supported: u32 },
    #[error("trained on backbone {found}, this server runs {expected}: load it on a server with that backbone, or retrain")]
    WrongBackbone { found: String, expected: String },
    #[error("checksum {found} does not match the header's {expected}: the file is damaged, copy it again")]
    Checksum { found: String, expected: String },
}

impl Partition {
    /// Reads and checks an artifact: format, checksum, shapes, finite numbers, and the backbone it was trained on.
    ///
    /// # Errors
    /// See [`PartitionError`]; nothing is changed by a refusal.
    pub fn read(_bytes: &[u8], _backbone: &crate::vilt::Vilt) -> Result<Self, PartitionError> {
        todo!()
    }
}
