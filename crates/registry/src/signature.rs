//! Signatures of partitions (ed25519, over the SHA-256 of the file), and the keys that a server trusts.
//!
//! A signature is written as 128 hexadecimal digits, on one line, in `FILE.sig` beside the file. What is
//! signed is `"delo partition v1\n"` followed by the 32 bytes of the SHA-256, so that a signature made for
//! something else is never one of a partition. Keys are PEM files as `openssl genpkey -algorithm ed25519` and
//! `openssl pkey -pubout` write them.
use std::io::Read;
use std::path::{Path, PathBuf};

use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

pub use delo_model::partition::digest;

use crate::artifact::ReadArtifact;

/// What is signed begins with this.
const CONTEXT: &[u8] = b"delo partition v1\n";
/// The longest key or signature file that is read.
const MAX_FILE_BYTES: u64 = 16 << 10;

/// Why a key, a signature or an unsigned partition is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum SignatureError {
    #[error("can't read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is no ed25519 private key in PEM: make one with `openssl genpkey -algorithm ed25519 -out {path}`")]
    PrivateKey { path: PathBuf },
    #[error("{path} is no ed25519 public key in PEM: make one with `openssl pkey -in PRIVATE.pem -pubout -out {path}`")]
    PublicKey { path: PathBuf },
    #[error("the signature is malformed: it must be 64 bytes, 128 hexadecimal digits in a file; sign again with `delo partition sign`")]
    Malformed,
    #[error(
        "the signature is of no trusted key (registry.trusted_keys), or of another file: sign it with `delo partition sign`, or do not load it"
    )]
    Wrong,
    #[error(
        "the partition is not signed, and this server requires it (registry.require_signature): sign it with `delo partition sign FILE --key KEY`"
    )]
    Missing,
}

/// `FILE.sig`, the file of a signature.
pub fn signature_path(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".sig");
    path.into()
}

/// What a signature of an artifact signs.
fn message(artifact: &ReadArtifact) -> Vec<u8> {
    [CONTEXT, artifact.sha256()].concat()
}

/// Reads a private key. Blocks.
///
/// # Errors
/// A file that can't be read or is no such key.
pub fn signing_key(path: &Path) -> Result<SigningKey, SignatureError> {
    SigningKey::from_pkcs8_pem(&read_text(path)?).map_err(|_| SignatureError::PrivateKey { path: path.to_owned() })
}

/// Reads a public key. Blocks.
///
/// # Errors
/// A file that can't be read or is no such key.
pub fn verifying_key(path: &Path) -> Result<VerifyingKey, SignatureError> {
    VerifyingKey::from_public_key_pem(&read_text(path)?).map_err(|_| SignatureError::PublicKey { path: path.to_owned() })
}

/// Signs an artifact. The signature is in hexadecimal, as files and manifests hold it.
pub fn sign(key: &SigningKey, artifact: &ReadArtifact) -> String {
    format!("{:x}", key.sign(&message(artifact)))
}

/// The 64 bytes of a signature that is written in hexadecimal.
///
/// # Errors
/// [`SignatureError::Malformed`]
pub fn from_hex(text: &str) -> Result<Vec<u8>, SignatureError> {
    let text = text.trim();
    if text.len() != 2 * Signature::BYTE_SIZE {
        return Err(SignatureError::Malformed);
    }
    text.to_ascii_lowercase().parse::<Signature>().map(|s| s.to_bytes().to_vec()).map_err(|_| SignatureError::Malformed)
}

/// Reads the signature in `FILE.sig`; `None` where there is no such file. Blocks.
///
/// # Errors
/// A file that can't be read or holds something else.
pub fn beside(file: &Path) -> Result<Option<Vec<u8>>, SignatureError> {
    match read_text(&signature_path(file)) {
        Ok(text) => from_hex(&text).map(Some),
        Err(SignatureError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_text(path: &Path) -> Result<String, SignatureError> {
    let failed = |source| SignatureError::Read { path: path.to_owned(), source };
    // Checked before the file is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("it is not a file")));
    }
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// The keys that a server trusts, and whether it serves what none of them signed. Never changes.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    keys: Vec<VerifyingKey>,
    required: bool,
}

impl Trust {
    /// Reads the trusted keys. Blocks.
    ///
    /// # Errors
    /// A key file that can't be read or is no public key.
    pub fn load(keys: &[PathBuf], required: bool) -> Result<Self, SignatureError> {
        Ok(Self { keys: keys.iter().map(|path| verifying_key(path)).collect::<Result<_, _>>()?, required })
    }

    /// Trusts one key, and requires its signature.
    pub fn in_key(key: VerifyingKey) -> Self {
        Self { keys: vec![key], required: true }
    }

    /// Whether a signature can change the outcome of [`Self::check`] for a partition: where it can't, none is
    /// looked for.
    pub fn wants_signatures(&self) -> bool {
        self.required || !self.keys.is_empty()
    }

    /// Whether an artifact may be served. A signature that is given must be right, required or not. Where no
    /// key is trusted and none is required, a signature can't be checked, and its form alone is.
    ///
    /// Does not block: it verifies 50 bytes with each trusted key, some 50 µs each.
    ///
    /// # Errors
    /// [`SignatureError::Missing`], [`SignatureError::Malformed`], [`SignatureError::Wrong`]
    pub fn check(&self, artifact: &ReadArtifact, signature: Option<&[u8]>) -> Result<(), SignatureError> {
        let Some(signature) = signature else {
            return if self.required { Err(SignatureError::Missing) } else { Ok(()) };
        };
        let signature = Signature::from_slice(signature).map_err(|_| SignatureError::Malformed)?;
        if !self.wants_signatures() {
            return Ok(());
        }
        let message = message(artifact);
        // Strict: no key of small order, no second form of the same signature.
        let right = self.keys.iter().any(|key| key.verify_strict(&message, &signature).is_ok());
        if right { Ok(()) } else { Err(SignatureError::Wrong) }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// As `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` wrote them.
    const PRIVATE: &str =
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str =
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

    fn artifact(bytes: &'static [u8]) -> ReadArtifact {
        ReadArtifact::hash(Bytes::from_static(bytes))
    }

    fn keys() -> (SigningKey, VerifyingKey) {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("private.pem"), dir.path().join("public.pem"));
        std::fs::write(&private, PRIVATE).unwrap();
        std::fs::write(&public, PUBLIC).unwrap();
        (signing_key(&private).unwrap(), verifying_key(&public).unwrap())
    }

    #[test]
    fn reads_keys_as_openssl_makes_them() {
        // The pair of RFC 8032, 7.1, test 1.
        let (private, public) = keys();
        assert_eq!(private.verifying_key(), public);
    }

    #[test]
    fn a_signature_holds_for_its_file_and_key_alone() {
        let (private, public) = keys();
        let trust = Trust::in_key(public);
        let signature = from_hex(&sign(&private, &artifact(b"partition"))).unwrap();
        trust.check(&artifact(b"partition"), Some(&signature)).unwrap();
        assert!(matches!(trust.check(&artifact(b"another"), Some(&signature)), Err(SignatureError::Wrong)));
        let other = Trust::in_key(SigningKey::from_bytes(&[7; 32]).verifying_key());
        assert!(matches!(other.check(&artifact(b"partition"), Some(&signature)), Err(SignatureError::Wrong)));
        // A signature of the bytes alone is none of a partition.
        let bare = private.sign(b"partition").to_bytes();
        assert!(matches!(trust.check(&artifact(b"partition"), Some(&bare)), Err(SignatureError::Wrong)));
        assert!(matches!(trust.check(&artifact(b"partition"), Some(&signature[1..])), Err(SignatureError::Malformed)));
    }

    #[test]
    fn a_missing_signature_is_refused_where_one_is_required_and_a_wrong_one_everywhere() {
        let (private, public) = keys();
        let optional = Trust { keys: vec![public], required: false };
        optional.check(&artifact(b"partition"), None).unwrap();
        let wrong = from_hex(&sign(&private, &artifact(b"another"))).unwrap();
        assert!(matches!(optional.check(&artifact(b"partition"), Some(&wrong)), Err(SignatureError::Wrong)));
        assert!(matches!(Trust::in_key(public).check(&artifact(b"partition"), None), Err(SignatureError::Missing)));
    }

    #[test]
    fn refuses_what_is_no_key_and_no_signature() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        std::fs::write(&file, PUBLIC).unwrap();
        assert!(matches!(signing_key(&file), Err(SignatureError::PrivateKey { .. })));
        std::fs::write(&file, PRIVATE).unwrap();
        assert!(matches!(verifying_key(&file), Err(SignatureError::PublicKey { .. })));
        for text in ["", "zz", &"z".repeat(128), &"0".repeat(127), &"é".repeat(64)] {
            assert!(from_hex(text).is_err(), "{text}");
        }
        assert!(beside(&dir.path().join("nothing")).unwrap().is_none());
    }
}
