//! Reads whole objects in pieces: bounded in size and time, going on where a connection broke.
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use rand::Rng;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::manifest::{Entry, MAX_BYTES, Manifest};
use super::place::{Place, Tag};
use super::{AllowedUrls, RemoteError};
use crate::signature::{self, Trust};

/// What one request asks for.
const PIECE: u64 = 4 << 20;
/// Failures of one fetch before it is given up, and of those in a row without a byte.
const MAX_FAILURES: u32 = 20;
const MAX_BARREN: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest signature file.
const SIGNATURE_BYTES: u64 = 1024;

/// Of every fetch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until an answer begins, and again for each piece of it.
    pub timeout: Duration,
    /// Of a partition.
    pub max_bytes: u64,
}

/// A random half to whole of a pause: replicas that fail together do not come back together.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// The artifact of a registry, of the size and digest that the manifest says.
///
/// # Errors
/// What makes it unusable, or why it can't be had now.
pub async fn fetch(place: &Place, entry: &Entry, limits: Limits) -> Result<Bytes, RemoteError> {
    let object = entry.object();
    let shown = place.shown(&object);
    if entry.bytes > limits.max_bytes {
        return Err(RemoteError::TooLarge { object: shown, found: entry.bytes, limit: limits.max_bytes });
    }
    let bytes = Reading::new(place, &object, Some(entry.bytes), limits).into_whole().await?;
    let digested = bytes.clone();
    let found = blocking(move || signature::digest(&digested)).await?;
    if found != entry.sha256 {
        return Err(RemoteError::Digest { object: shown, found });
    }
    Ok(bytes)
}

/// The artifact at an address that is allowed, with the signature beside it (`ADDRESS.sig`) where one may matter and none was given.
///
/// # Errors
/// An address that is not allowed, a signature that is refused, or what [`fetch`] fails with.
pub async fn fetch_url(
    url: &str,
    given: Option<Vec<u8>>,
    allowed: &AllowedUrls,
    trust: &Arc<Trust>,
    limits: Limits,
) -> Result<Bytes, RemoteError> {
    let url = allowed.check(url)?;
    let bytes = Reading::new(&Place::at(url.clone())?, "", None, limits).into_whole().await?;
    let signature = match given {
        // A query that signs one address does not sign another.
        None if trust.wants_signatures() && url.query().is_none() => {
            let mut beside = url;
            beside.set_path(&format!("{}.sig", beside.path()));
            signature_at(&Place::at(beside)?, "", limits).await?
        }
        given => given,
    };
    check_signature(trust, bytes.clone(), signature).await?;
    Ok(bytes)
}

/// Whether an artifact may be served; see [`Trust::check`].
///
/// # Errors
/// Why not.
pub async fn check_signature(trust: &Arc<Trust>, bytes: Bytes, signature: Option<Vec<u8>>) -> Result<(), RemoteError> {
    let trust = trust.clone();
    Ok(blocking(move || trust.check(&bytes, signature.as_deref())).await??)
}

/// Runs work that is long for a large artifact.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RemoteError> {
    let failed = |e: tokio::task::JoinError| RemoteError::Failed { object: "the partition".to_owned(), reason: e.to_string() };
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// The signature in an object; `None` where it is not there.
async fn signature_at(place: &Place, object: &str, limits: Limits) -> Result<Option<Vec<u8>>, RemoteError> {
    let limits = Limits { max_bytes: SIGNATURE_BYTES, ..limits };
    match Reading::new(place, object, None, limits).into_whole().await {
        Ok(bytes) => Ok(Some(signature::from_hex(&String::from_utf8_lossy(&bytes))?)),
        Err(RemoteError::NotThere { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The manifest and its state; `None` where it still is in the state `known`.
///
/// # Errors
/// A manifest that can't be had or is refused.
pub async fn fetch_manifest(place: &Place, known: &Tag, limit: Duration) -> Result<Option<(Manifest, Tag)>, RemoteError> {
    const OBJECT: &str = super::publish::MANIFEST;
    let read = async {
        let mut opened = place.open(OBJECT, None, known).await?;
        let mut text = Vec::new();
        while let Some(piece) = opened.body.next().await {
            text.extend_from_slice(&piece?);
            if text.len() > MAX_BYTES {
                break;
            }
        }
        Ok((Manifest::parse(&text)?, opened.tag))
    };
    let slow = |_| RemoteError::Slow { object: place.shown(OBJECT), piece: PIECE, seconds: limit.as_secs_f64() };
    match timeout(limit, read).await.map_err(slow)? {
        Ok(read) => Ok(Some(read)),
        Err(RemoteError::NotModified { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An object on its way.
struct Reading<'a> {
    place: &'a Place,
    object: &'a str,
    /// The whole object's size, once it is known.
    size: Option<u64>,
    limits: Limits,
    /// What has come, without a gap.
    bytes: Vec<u8>,
}

impl<'a> Reading<'a> {
    fn new(place: &'a Place, object: &'a str, size: Option<u64>, limits: Limits) -> Self {
        Self { place, object, size, limits, bytes: Vec::new() }
    }

    fn have(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn into_whole(mut self) -> Result<Bytes, RemoteError> {
        let (mut failures, mut barren) = (0, 0);
        while self.size.is_none_or(|size| self.have() < size) {
            let had = self.have();
            match self.piece().await {
                Ok(()) => barren = 0,
                Err(error) if error.passes_soon() => {
                    failures += 1;
                    barren = if self.have() > had { 1 } else { barren + 1 };
                    if failures > MAX_FAILURES || barren > MAX_BARREN {
                        return Err(error);
                    }
                    tracing::debug!(%error, bytes = self.have(), "a fetch goes on after a failure");
                    sleep(jittered(FIRST_PAUSE * 2_u32.pow(barren - 1))).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.bytes.into())
    }

    /// One request. What came before a failure is kept.
    async fn piece(&mut self) -> Result<(), RemoteError> {
        let Limits { timeout: patience, max_bytes } = self.limits;
        let object = self.place.shown(self.object);
        let slow = |_| RemoteError::Slow { object: object.clone(), piece: PIECE, seconds: patience.as_secs_f64() };
        let start = self.have();
        let end = self.size.map_or(start + PIECE, |size| size.min(start + PIECE));
        let opened = timeout(patience, self.place.open(self.object, Some(start..end), &Tag::default())).await.map_err(slow)??;
        if let Some(total) = opened.total {
            self.accept_size(&object, total, max_bytes)?;
        }
        if opened.start > start {
            let reason = format!("it was asked for byte {start} and sent from {} on", opened.start);
            return Err(RemoteError::Failed { object, reason });
        }
        // A place that knows no ranges sends all of it again.
        let mut skip = start - opened.start;
        let mut body = opened.body;
        let (began, mut received) = (Instant::now(), 0);
        loop {
            let deadline = began + patience.mul_f64(1.0 + received as f64 / PIECE as f64);
            let Some(piece) = timeout_at(deadline, body.next()).await.map_err(slow)? else { break };
            let mut piece = piece?;
            received += piece.len() as u64;
            metrics::counter!("delo_registry_fetched_bytes_total").increment(piece.len() as u64);
            let before = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            piece.advance(before);
            skip -= before as u64;
            self.bytes.extend_from_slice(&piece);
            let found = self.have();
            match self.size {
                Some(expected) if found > expected => return Err(RemoteError::Size { object, found, expected }),
                None if found > max_bytes => return Err(RemoteError::TooLarge { object, found, limit: max_bytes }),
                _ => {}
            }
        }
        match self.size {
            None => self.size = Some(self.have()),
            Some(size) if self.have() < end.min(size) => return Err(RemoteError::Cut { object, found: self.have() }),
            Some(_) => {}
        }
        Ok(())
    }

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
