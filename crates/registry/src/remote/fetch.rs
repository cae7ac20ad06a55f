//! Reads whole objects in pieces: bounded in size and time, going on where a connection broke.
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use rand::Rng;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::allowed::AllowedUrls;
use super::error::RemoteError;
use super::manifest::{self, Entry, MAX_BYTES, Manifest};
use super::storage::{ObjectTag, Storage};
use crate::artifact::ReadArtifact;
use crate::signature::{self, Trust};

/// How many bytes one request is for.
const PIECE: u64 = 4 << 20;
/// Failures after which a fetch is given up.
const MAX_FAILURES: u32 = 20;
/// Failures in a row, without a byte between them, after which a fetch is given up.
const MAX_FAILURES_WITHOUT_A_BYTE: u32 = 4;
/// The pause after the first failure in a row; it doubles with each more.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest signature file that is read.
const SIGNATURE_BYTES: u64 = 1024;

/// How long a fetch may take, and how much it may read.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// Until an answer begins, and again for each 4 MiB of it.
    pub timeout: Duration,
    /// The largest partition that is read.
    pub max_bytes: u64,
}

/// A random part of a pause, from half of it to all of it: replicas that fail together do not return
/// together.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Fetches an artifact of a registry and checks its size and SHA-256 against the manifest. It is hashed on
/// the blocking pool.
///
/// # Errors
/// What makes it unusable, or why it can't be fetched.
pub async fn fetch(storage: &Storage, entry: &Entry, limits: FetchLimits) -> Result<ReadArtifact, RemoteError> {
    let object = entry.object();
    let shown = storage.shown(&object);
    if entry.bytes > limits.max_bytes {
        return Err(RemoteError::TooLarge { object: shown, found: entry.bytes, limit: limits.max_bytes });
    }
    let bytes = Reading::new(storage, &object, Some(entry.bytes), limits).into_whole().await?;
    let artifact = ReadArtifact::hash_aside(bytes).await?;
    let found = artifact.digest();
    if found != entry.sha256 {
        return Err(RemoteError::Digest { object: shown, found });
    }
    Ok(artifact)
}

/// Fetches the artifact at an address and checks its signature: the one that is given, or the one beside it
/// (`ADDRESS.sig`) where none is given and one can change the outcome. It is hashed on the blocking pool.
///
/// # Errors
/// An address that is not allowed, a signature that is refused, or what [`fetch`] fails with.
pub async fn fetch_url(
    url: &str,
    given: Option<Vec<u8>>,
    allowed: &AllowedUrls,
    trust: &Trust,
    limits: FetchLimits,
) -> Result<ReadArtifact, RemoteError> {
    let url = allowed.check(url)?;
    let bytes = Reading::new(&Storage::at(url.clone())?, "", None, limits).into_whole().await?;
    let signature = match given {
        // A query that signs one address does not sign another.
        None if trust.wants_signatures() && url.query().is_none() => {
            let mut beside = url;
            beside.set_path(&format!("{}.sig", beside.path()));
            signature_at(&Storage::at(beside)?, "", limits).await?
        }
        given => given,
    };
    let artifact = ReadArtifact::hash_aside(bytes).await?;
    trust.check(&artifact, signature.as_deref())?;
    Ok(artifact)
}

/// The signature in an object; `None` where it is not there.
async fn signature_at(storage: &Storage, object: &str, limits: FetchLimits) -> Result<Option<Vec<u8>>, RemoteError> {
    let limits = FetchLimits { max_bytes: SIGNATURE_BYTES, ..limits };
    match Reading::new(storage, object, None, limits).into_whole().await {
        Ok(bytes) => Ok(Some(signature::from_hex(&String::from_utf8_lossy(&bytes))?)),
        Err(RemoteError::NotThere { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fetches the manifest with its state, within `limit`; `None` where it still is in the state `known`.
///
/// # Errors
/// A manifest that can't be fetched or is refused.
pub async fn fetch_manifest(storage: &Storage, known: &ObjectTag, limit: Duration) -> Result<Option<(Manifest, ObjectTag)>, RemoteError> {
    let read = async {
        let mut opened = storage.open(manifest::FILE_NAME, None, known).await?;
        let mut text = Vec::new();
        while let Some(piece) = opened.body.next().await {
            text.extend_from_slice(&piece?);
            if text.len() > MAX_BYTES {
                break;
            }
        }
        Ok((Manifest::parse(&text)?, opened.tag))
    };
    let slow = |_| RemoteError::Slow { object: storage.shown(manifest::FILE_NAME), piece: PIECE, seconds: limit.as_secs_f64() };
    match timeout(limit, read).await.map_err(slow)? {
        Ok(read) => Ok(Some(read)),
        Err(RemoteError::NotModified { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An object that is being fetched.
struct Reading<'a> {
    storage: &'a Storage,
    object: &'a str,
    /// The whole object's size, once it is known.
    size: Option<u64>,
    limits: FetchLimits,
    /// What was received, from the object's first byte on.
    bytes: Vec<u8>,
}

impl<'a> Reading<'a> {
    fn new(storage: &'a Storage, object: &'a str, size: Option<u64>, limits: FetchLimits) -> Self {
        Self { storage, object, size, limits, bytes: Vec::new() }
    }

    fn received(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Fetches piece after piece, and goes on after failures that may pass.
    async fn into_whole(mut self) -> Result<Bytes, RemoteError> {
        let (mut failures, mut in_a_row) = (0, 0);
        while self.size.is_none_or(|size| self.received() < size) {
            let before = self.received();
            match self.piece().await {
                Ok(()) => in_a_row = 0,
                Err(error) if error.worth_retrying_at_once() => {
                    failures += 1;
                    in_a_row = if self.received() > before { 1 } else { in_a_row + 1 };
                    if failures > MAX_FAILURES || in_a_row > MAX_FAILURES_WITHOUT_A_BYTE {
                        return Err(error);
                    }
                    tracing::debug!(%error, bytes = self.received(), "a fetch goes on after a failure");
                    sleep(jittered(FIRST_PAUSE * 2_u32.pow(in_a_row - 1))).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.bytes.into())
    }

    /// Makes one request. What was received before a failure is kept.
    async fn piece(&mut self) -> Result<(), RemoteError> {
        let FetchLimits { timeout: limit, max_bytes } = self.limits;
        let object = self.storage.shown(self.object);
        let slow = |_| RemoteError::Slow { object: object.clone(), piece: PIECE, seconds: limit.as_secs_f64() };
        let start = self.received();
        let end = self.size.map_or(start + PIECE, |size| size.min(start + PIECE));
        let opened = timeout(limit, self.storage.open(self.object, Some(start..end), &ObjectTag::default())).await.map_err(slow)??;
        if let Some(total) = opened.total {
            self.accept_size(&object, total, max_bytes)?;
        }
        if opened.start > start {
            let reason = format!("it was asked for byte {start} and sent from {} on", opened.start);
            return Err(RemoteError::Failed { object, reason });
        }
        // A storage without ranges sends all of the object again.
        let mut skip = start - opened.start;
        let mut body = opened.body;
        let (began, mut received) = (Instant::now(), 0);
        loop {
            let deadline = began + limit.mul_f64(1.0 + received as f64 / PIECE as f64);
            let Some(piece) = timeout_at(deadline, body.next()).await.map_err(slow)? else { break };
            let mut piece = piece?;
            received += piece.len() as u64;
            metrics::counter!("delo_registry_fetched_bytes_total").increment(piece.len() as u64);
            let before = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            piece.advance(before);
            skip -= before as u64;
            self.bytes.extend_from_slice(&piece);
            let found = self.received();
            match self.size {
                Some(expected) if found > expected => return Err(RemoteError::Size { object, found, expected }),
                None if found > max_bytes => return Err(RemoteError::TooLarge { object, found, limit: max_bytes }),
                _ => {}
            }
        }
        match self.size {
            None => self.size = Some(self.received()),
            Some(size) if self.received() < end.min(size) => return Err(RemoteError::Cut { object, found: self.received() }),
            Some(_) => {}
        }
        Ok(())
    }

    /// Notes the whole object's size, where it is the expected one and within the limit.
    fn accept_size(&mut self, object: &str, total: u64, limit: u64) -> Result<(), RemoteError> {
        match self.size {
            Some(expected) if total != expected => Err(RemoteError::Size { object: object.to_owned(), found: total, expected }),
            _ if total > limit => Err(RemoteError::TooLarge { object: object.to_owned(), found: total, limit }),
            _ => {
                self.size = Some(total);
                Ok(())
            }
        }
    }
}
