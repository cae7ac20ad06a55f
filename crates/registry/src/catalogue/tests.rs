use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use delo_catalogue::RoutingRule;
use delo_engine::{Engine, Options};
use delo_fixtures::{artifact, engine_with, key_rule, random_model, spec};
use delo_model::{KeySignal, Layout, Metric};
use tokio::time::Instant;

use super::change::{DRAIN_TIMEOUT, NamedRequest};
use super::*;
use crate::artifact::ReadArtifact;
use crate::ledger::LedgerError;
use crate::signature::Trust;
use crate::source::{PartitionSource, SourceError};

fn engine() -> Arc<Engine> {
    static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();
    ENGINE.get_or_init(|| Arc::new(engine_with(Options::default()))).clone()
}

/// A random partition of task `food`.
fn partition(seed: u64) -> Bytes {
    let key = key_rule(Metric::Plain, KeySignal::Pooled);
    artifact("food", &random_model(spec(Layout::RankOne, 2), 3, seed), key, seed).into()
}

/// An owner that keeps everything in memory.
async fn owner(max_artifact_bytes: usize) -> Arc<CatalogueOwner> {
    let settings = Settings {
        rule: RoutingRule::default(),
        special_tokens: false,
        root: None,
        state_dir: None,
        retained_versions: 2,
        max_artifact_bytes,
        trust: Arc::new(Trust::default()),
    };
    CatalogueOwner::open(engine(), settings).await.unwrap()
}

fn upload(bytes: &Bytes, request_id: &str) -> Load {
    let source = PartitionSource::Artifact(ReadArtifact::hash(bytes.clone()));
    Load { request_id: request_id.to_owned(), ..source.into() }
}

#[tokio::test]
async fn a_partition_is_served_and_recorded_by_the_hash_of_its_file() {
    let (owner, bytes) = (owner(1 << 30).await, partition(1));
    let changed = owner.load(upload(&bytes, "")).await.unwrap();
    let digest = delo_model::partition::digest(&bytes);
    assert_eq!((changed.record.digest, changed.record.origin.as_str()), (digest.clone(), "upload"));
    assert_eq!(owner.catalogue().get("food").unwrap().partition.digest, digest);
}

#[tokio::test]
async fn a_partition_in_the_binary_is_said_to_be_embedded() {
    let owner = owner(1 << 30).await;
    let bytes: &'static [u8] = Vec::leak(partition(1).to_vec());
    owner.load_at_start(vec![("food".to_owned(), PartitionSource::Embedded(bytes))]).await.unwrap();
    assert_eq!(owner.report().await.tasks["food"].versions[&1].origin, "embedded");
}

#[tokio::test]
async fn an_upload_that_is_sent_again_is_carried_out_once_if_it_has_an_id() {
    let (owner, bytes) = (owner(1 << 30).await, partition(1));
    for (id, version) in [("one", 1), ("one", 1), ("two", 2), ("", 3), ("", 4)] {
        assert_eq!(owner.load(upload(&bytes, id)).await.unwrap().version, version, "{id:?}");
    }
    let other = owner.load(upload(&partition(2), "one")).await;
    assert!(matches!(other, Err(ChangeError::Ledger(LedgerError::RequestIdReused(_)))), "{other:?}");
    assert_eq!(owner.report().await.revision, 4, "a refused load is no change");
}

#[tokio::test]
async fn an_artifact_over_the_limit_or_damaged_changes_nothing() {
    let bytes = partition(1);
    let limited = owner(bytes.len() - 1).await;
    assert!(matches!(limited.load(upload(&bytes, "")).await, Err(ChangeError::Source(SourceError::TooLarge { .. }))));
    let owner = owner(bytes.len()).await;
    let mut damaged = bytes.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    assert!(matches!(owner.load(upload(&damaged.into(), "")).await, Err(ChangeError::Partition(_))));
    assert!(owner.catalogue().is_empty() && owner.report().await.revision == 0);
}

#[test]
fn what_identifies_a_request_is_computed_for_a_request_with_an_id_alone() {
    assert!(NamedRequest::to_load("", None, || panic!("a request without an id is not identified")).is_none());
    let upload = NamedRequest::to_load("id", None, || "digest".to_owned()).unwrap();
    // State directories hold this value: it must not change.
    assert_eq!(upload.fingerprint, delo_model::partition::digest(b"load digest None"));
}

#[tokio::test(start_paused = true)]
async fn an_unload_waits_for_what_its_partition_serves_up_to_a_limit() {
    let (owner, bytes) = (owner(1 << 30).await, partition(1));
    owner.load(upload(&bytes, "")).await.unwrap();
    let serving = owner.catalogue().get("food").cloned().unwrap();
    let began = Instant::now();
    let (_, drained) = owner.unload("food", "").await.unwrap();
    assert!(!drained && began.elapsed() >= DRAIN_TIMEOUT, "{:?}", began.elapsed());
    drop(serving);

    owner.load(upload(&bytes, "")).await.unwrap();
    let serving = owner.catalogue().get("food").cloned().unwrap();
    let began = Instant::now();
    let (unloaded, ()) = tokio::join!(owner.unload("food", ""), async {
        tokio::time::sleep(DRAIN_TIMEOUT / 2).await;
        drop(serving);
    });
    assert!(unloaded.unwrap().1 && began.elapsed() < DRAIN_TIMEOUT, "{:?}", began.elapsed());
}
