//! An artifact in memory: read once, hashed once.
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::blocking::{Panicked, blocking};

/// The bytes of an artifact's file together with the SHA-256 over them. Signatures, the idempotency of a
/// load, the ledger and the comparison with a manifest all use this one hash. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadArtifact {
    bytes: Bytes,
    sha256: [u8; 32],
}

impl ReadArtifact {
    /// Hashes the bytes. Blocks for as long as that takes (about a second for 512 MiB).
    pub fn hash(bytes: Bytes) -> Self {
        let sha256 = Sha256::digest(&bytes).into();
        Self { bytes, sha256 }
    }

    /// Hashes the bytes on the blocking pool.
    ///
    /// # Errors
    /// [`Panicked`]
    pub async fn hash_aside(bytes: Bytes) -> Result<Self, Panicked> {
        blocking(move || Ok(Self::hash(bytes))).await
    }

    /// The content of the file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// SHA-256 over the bytes.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// The same hash as 64 lower-case hexadecimal digits.
    pub fn digest(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_partition_format() {
        let artifact = ReadArtifact::hash(Bytes::from_static(b"partition"));
        assert_eq!(artifact.digest(), delo_model::partition::digest(b"partition"));
    }
}
