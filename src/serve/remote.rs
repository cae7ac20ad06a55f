//! Partitions from outside: signatures of uploads, loads by URL, and the registry that the server follows.
use delo_proto as pb;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tonic::Status;

use super::ServeError;
use super::status::{from_remote, invalid};
use crate::config::Config;
use delo_registry::remote::{AllowedUrls, FetchLimits, Follower, Occasion, RemoteError, Storage, SyncChanges, SyncReport, fetch_url};
use delo_registry::signature::Trust;
use delo_registry::{CatalogueOwner, PartitionSource, ReadArtifact};

/// The way to partitions that are not in the server's own directory.
#[derive(Debug)]
pub struct Remote {
    trust: Arc<Trust>,
    allowed: AllowedUrls,
    limits: FetchLimits,
    /// One permit for each load by URL in progress.
    fetches: Semaphore,
    follower: Option<Follower>,
}

impl Remote {
    /// Opens it by the settings of `[registry]`.
    ///
    /// # Errors
    /// A registry whose address or settings are not valid.
    pub fn open(config: &Config, owner: &Arc<CatalogueOwner>, trust: Arc<Trust>) -> Result<Self, ServeError> {
        let settings = &config.registry;
        let limits = FetchLimits { timeout: settings.fetch_timeout, max_bytes: config.admin.max_artifact_bytes as u64 };
        let follow = |storage| Follower::new(storage, owner.clone(), trust.clone(), limits, settings.poll, settings.max_fetches);
        let follower = match settings.manifest.as_str() {
            "" => None,
            given => {
                let storage = Storage::of_registry(given)?;
                storage.check_apart(config.model.partitions.as_deref())?;
                Some(follow(storage))
            }
        };
        Ok(Self { allowed: settings.allowed_urls.clone(), limits, fetches: Semaphore::new(settings.max_fetches), follower, trust })
    }

    /// An uploaded partition whose signature is good, or not required.
    ///
    /// # Errors
    /// PERMISSION_DENIED for a missing or wrong signature.
    pub async fn uploaded(&self, bytes: Bytes, signature: &[u8]) -> Result<PartitionSource, Status> {
        let artifact = ReadArtifact::hash_aside(bytes).await.map_err(|e| from_remote(&e.into()))?;
        self.trust.check(&artifact, non_empty(signature).as_deref()).map_err(|e| from_remote(&RemoteError::from(e)))?;
        Ok(PartitionSource::Artifact(artifact))
    }

    /// The partition that a request names by `uri`: a path is passed on, an allowed address is fetched.
    ///
    /// # Errors
    /// PERMISSION_DENIED for an address that is not allowed and for a missing or wrong signature; a failed
    /// fetch.
    pub async fn named(&self, uri: String, signature: &[u8]) -> Result<PartitionSource, Status> {
        if !AllowedUrls::is_address(&uri) {
            if !signature.is_empty() {
                return Err(invalid("signature", "for a path the server reads FILE.sig beside the file: leave the signature out"));
            }
            return Ok(PartitionSource::Uri(uri));
        }
        // Before the permit: an address that is not allowed is refused at once.
        self.allowed.check(&uri).map_err(|e| from_remote(&e))?;
        let Ok(_permit) = self.fetches.acquire().await else { return Err(Status::unavailable("the server is stopping")) };
        let fetched = fetch_url(&uri, non_empty(signature), &self.allowed, &self.trust, self.limits).await;
        Ok(PartitionSource::Artifact(fetched.map_err(|e| from_remote(&e))?))
    }

    /// `None` where no registry is followed.
    pub fn follower(&self) -> Option<&Follower> {
        self.follower.as_ref()
    }

    /// What `GetStatus` shows of the registry; `None` where no registry is followed.
    pub fn status(&self) -> Option<pb::RegistryStatus> {
        Some(status(self.follower.as_ref()?.report()))
    }

    /// Synchronises with the registry now, and tries partitions again that were refused before.
    /// `accept_older`: also by a manifest that is older than the last one seen.
    ///
    /// # Errors
    /// FAILED_PRECONDITION where no registry is followed.
    pub async fn sync(&self, accept_older: bool) -> Result<(pb::RegistryStatus, SyncChanges), Status> {
        let none = || Status::failed_precondition("this server follows no registry: set registry.manifest and start it again");
        let follower = self.follower.as_ref().ok_or_else(none)?;
        let changes = follower.sync(Occasion::Requested { accept_older }).await;
        Ok((status(follower.report()), changes))
    }
}

fn non_empty(signature: &[u8]) -> Option<Vec<u8>> {
    (!signature.is_empty()).then(|| signature.to_vec())
}

fn status(report: SyncReport) -> pb::RegistryStatus {
    let SyncReport { manifest, revision, in_sync, error, synced } = report;
    let seconds_since_sync = synced.map_or(-1.0, |at| at.elapsed().as_secs_f64());
    pb::RegistryStatus { manifest, revision, in_sync, error, seconds_since_sync }
}
