//! Following a registry: what is live there becomes live here; what goes wrong on the way changes nothing
//! that is served.
use std::path::Path;

use delo_model::{KeySignal, Layout, Metric};
use delo_proto::{GetStatusRequest, ListPartitionsRequest, RegistryStatus, SyncRegistryRequest, SyncRegistryResponse};
use delo_registry::remote::{Storage, promote, push, withdraw};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use crate::harness::{self, Running, artifact, refused, start, start_with, state_in};
use crate::web::{Mode, Web};

fn storage(dir: &Path) -> Storage {
    Storage::Directory(dir.to_owned())
}

/// Pushes a partition and makes it live; returns its SHA-256.
async fn publish(dir: &Path, bytes: Vec<u8>) -> String {
    push(&storage(dir), bytes.into(), None, true).await.unwrap().entry.sha256
}

/// Another partition of this task.
fn other(task: &str, seed: u64) -> Vec<u8> {
    let model = delo_fixtures::random_model(delo_fixtures::spec(Layout::RankOne, 3), 7, seed);
    delo_fixtures::artifact(task, &model, delo_fixtures::key_rule(Metric::Whitened, KeySignal::Parts { layer: 3 }), seed)
}

/// Follows this registry and looks at it often.
fn following(registry: &str) -> [(&'static str, &str); 4] {
    [
        ("registry.manifest", registry),
        ("registry.poll_seconds", "0.05"),
        ("registry.fetch_timeout_seconds", "1.0"),
        ("registry.start_wait_seconds", "0.2"),
    ]
}

/// A server that serves food of its own and follows this registry.
async fn follow(registry: &str) -> Running {
    start_with(&["food"], &following(registry)).await
}

async fn status(server: &Running) -> RegistryStatus {
    server.admin().await.get_status(GetStatusRequest {}).await.unwrap().into_inner().registry.unwrap()
}

async fn sync(server: &Running) -> Result<SyncRegistryResponse, Status> {
    Ok(server.admin().await.sync_registry(SyncRegistryRequest::default()).await?.into_inner())
}

async fn until(server: &Running, what: &str, holds: impl Fn(&RegistryStatus) -> bool) -> RegistryStatus {
    harness::until(what, async || status(server).await, holds).await
}

async fn until_revision(server: &Running, revision: u64) {
    until(server, "being in sync", |s| s.in_sync && s.revision == revision).await;
}

/// Tasks and checksums that are live.
async fn checksums(server: &Running) -> Vec<(String, String)> {
    let list = server.admin().await.list_partitions(ListPartitionsRequest {}).await.unwrap().into_inner();
    list.partitions.into_iter().map(|p| (p.task, p.checksum)).collect()
}

fn tasks(live: &[(String, u64)]) -> Vec<&str> {
    live.iter().map(|(task, _)| task.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_directory_makes_live_is_served_and_what_was_loaded_by_hand_stays() {
    let dir = tempfile::tempdir().unwrap();
    let first = publish(dir.path(), artifact("travel")).await;
    let server = follow(dir.path().to_str().unwrap()).await;
    until_revision(&server, 1).await;
    assert_eq!(server.live().await, [("food".to_owned(), 1), ("travel".to_owned(), 1)]);

    publish(dir.path(), other("travel", 5)).await;
    until_revision(&server, 2).await;
    assert_eq!(server.live().await, [("food".to_owned(), 1), ("travel".to_owned(), 2)]);
    promote(&storage(dir.path()), &format!("travel@{}", &first[..8])).await.unwrap();
    until_revision(&server, 3).await;
    assert_eq!(server.live().await[1].1, 3);

    server.upload(artifact("animals")).await.unwrap();
    withdraw(&storage(dir.path()), "travel").await.unwrap();
    until_revision(&server, 4).await;
    assert_eq!(tasks(&server.live().await), ["animals", "food"]);
    // A comparison at least for each revision.
    let syncs = server.value("delo_registry_syncs_total{outcome=\"ok\"}").await;
    assert!(syncs >= 4.0, "{syncs}");
    server.assert_serving().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_one_manifest_reach_the_same_partitions() {
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path(), other("travel", 1)).await;
    publish(dir.path(), other("food", 2)).await;
    let web = Web::of(dir.path()).await;
    let (one, two) = tokio::join!(follow(dir.path().to_str().unwrap()), async { follow(&web.url("")).await });
    for revision in [2, 3] {
        until_revision(&one, revision).await;
        until_revision(&two, revision).await;
        assert_eq!(checksums(&one).await, checksums(&two).await);
        publish(dir.path(), other("food", revision + 10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_not_ready_before_it_serves_what_the_manifest_makes_live() {
    let (partitions, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(partitions.path().join("food.safetensors"), artifact("food")).unwrap();
    let registry = dir.path().to_str().unwrap();
    let server = harness::start_in(partitions, &[("registry.manifest", registry), ("registry.start_wait_seconds", "3600.0")]).await;
    let asked = async || server.classifier().await.classify(harness::text("soup")).await.map(drop);
    // There is no manifest yet. An operator sees why it waits.
    let report = async || server.admin().await.get_status(GetStatusRequest {}).await.unwrap().into_inner().registry;
    harness::until("the first look at the registry", report, |report| report.as_ref().is_some_and(|r| !r.error.is_empty())).await;
    let status = refused(asked().await, Code::Unavailable, "starting");
    assert_eq!(status.get_details_error_info().unwrap().reason, "STARTING");
    assert_eq!(server.health("").await, ServingStatus::NotServing);
    publish(dir.path(), artifact("travel")).await;
    server.until_health(ServingStatus::Serving).await;
    assert_eq!(tasks(&server.live().await), ["food", "travel"]);
    asked().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_where_the_connection_broke() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = artifact("travel");
    let step = bytes.len() / 5 + 1;
    publish(dir.path(), bytes).await;
    let web = Web::of(dir.path()).await;
    web.set(Mode::Cut(step));
    let server = follow(&web.url("")).await;
    until_revision(&server, 1).await;
    let starts: Vec<_> = web.requests().into_iter().map(|(_, start)| start).collect();
    // The system may hold back the end of what a broken connection brought, never bring anything twice.
    assert_eq!(starts[0], 0);
    assert!(starts.len() >= 5 && starts.is_sorted() && *starts.last().unwrap() >= step as u64, "{starts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_knows_no_ranges_is_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path(), artifact("travel")).await;
    let web = Web::of(dir.path()).await;
    web.set(Mode::Whole);
    let server = follow(&web.url("manifest.json")).await;
    until_revision(&server, 1).await;
    assert_eq!(tasks(&server.live().await), ["food", "travel"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_on_the_way_are_reported_change_nothing_and_pass() {
    let dir = tempfile::tempdir().unwrap();
    let web = Web::of(dir.path()).await;
    let elsewhere = Web::of(dir.path()).await;
    publish(dir.path(), artifact("travel")).await;
    let server = follow(&web.url("")).await;
    until_revision(&server, 1).await;
    for (i, (mode, words)) in [
        (Mode::Longer, "the manifest says"),
        (Mode::Redirect(elsewhere.url("partitions/a")), "redirect"),
        (Mode::Gone, "503"),
        (Mode::Silent, "too slowly"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = checksums(&server).await;
        web.set(mode.clone());
        publish(dir.path(), other("travel", 20 + i as u64)).await;
        let reported = until(&server, &format!("the error of {mode:?}"), |s| s.error.contains(words)).await;
        assert!(!reported.in_sync && reported.seconds_since_sync >= 0.0, "{reported:?}");
        assert_eq!(checksums(&server).await, before, "{mode:?}");
        server.assert_serving().await;
        web.set(Mode::Honest);
        until_revision(&server, i as u64 + 2).await;
        assert_ne!(checksums(&server).await, before, "{mode:?}");
    }
    assert_eq!(elsewhere.requests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_artifact_is_not_fetched_again_until_the_manifest_changes_or_someone_asks() {
    let dir = tempfile::tempdir().unwrap();
    let web = Web::of(dir.path()).await;
    web.set(Mode::Garbage);
    publish(dir.path(), artifact("travel")).await;
    let server = follow(&web.url("")).await;
    until(&server, "the damage", |s| s.error.contains("damaged")).await;
    let failed = async || server.value("delo_registry_syncs_total{outcome=\"failed\"}").await;
    let (requests, before) = (web.requests().len(), failed().await);
    harness::until("five more polls", failed, |polls| *polls >= before + 5.0).await;
    assert!(!status(&server).await.in_sync);
    assert_eq!(web.requests().len(), requests);
    assert_eq!(tasks(&server.live().await), ["food"]);
    web.set(Mode::Honest);
    let answer = sync(&server).await.unwrap();
    assert_eq!((answer.loaded, answer.registry.unwrap().in_sync), (vec!["travel".to_owned()], true));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_another_backbone_or_task_are_refused_beside_those_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    let model = delo_fixtures::random_model(delo_fixtures::spec(Layout::RankOne, 3), 7, 3);
    let mut meta = delo_fixtures::meta("alien", &model, delo_fixtures::key_rule(Metric::Plain, KeySignal::Pooled));
    meta.backbone.fingerprint = "abc".to_owned();
    let keys = delo_model::SessionKeys::default();
    publish(dir.path(), delo_model::partition::to_bytes(&meta, &model, &keys, None).unwrap()).await;
    publish(dir.path(), artifact("animals")).await;
    publish(dir.path(), artifact("travel")).await;
    // Somebody edits the manifest by hand.
    let manifest = dir.path().join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap().replace("\"animals\"", "\"plants\"");
    std::fs::write(&manifest, text).unwrap();
    let server = follow(dir.path().to_str().unwrap()).await;
    let reported = until(&server, "two refusals", |s| s.error.contains("and 1 more")).await;
    assert!(reported.error.contains("backbone abc") || reported.error.contains("is of task \"animals\""), "{reported:?}");
    assert_eq!(tasks(&server.live().await), ["food", "travel"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_or_damaged_manifest_is_ignored_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path(), artifact("animals")).await;
    let manifest = dir.path().join("manifest.json");
    let old = std::fs::read(&manifest).unwrap();
    publish(dir.path(), artifact("travel")).await;
    let new = std::fs::read(&manifest).unwrap();
    let server = follow(dir.path().to_str().unwrap()).await;
    until_revision(&server, 2).await;
    for (text, words) in [(old, "older"), (b"{}".to_vec(), "unusable"), (new[..100].to_vec(), "unusable")] {
        std::fs::write(&manifest, text).unwrap();
        let reported = until(&server, words, |s| s.error.contains(words)).await;
        assert_eq!((reported.revision, tasks(&server.live().await)), (2, vec!["animals", "food", "travel"]));
    }
    std::fs::write(&manifest, new).unwrap();
    until_revision(&server, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_manifest_is_ignored_after_a_restart_too_until_an_operator_takes_it() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish(dir.path(), artifact("travel")).await;
    let manifest = dir.path().join("manifest.json");
    let old = std::fs::read(&manifest).unwrap();
    publish(dir.path(), other("travel", 5)).await;
    let changes = [&following(dir.path().to_str().unwrap())[..], &state_in(state.path())].concat();
    let server = start_with(&["food"], &changes).await;
    until_revision(&server, 2).await;
    let kept = checksums(&server).await;
    std::fs::write(&manifest, old).unwrap();
    let server = server.restarted(&changes).await;
    until(&server, "an older manifest", |s| s.error.contains("older")).await;
    assert_eq!(checksums(&server).await, kept);
    let answer = sync(&server).await.unwrap().registry.unwrap();
    assert!(answer.error.contains("--accept-older") && checksums(&server).await == kept, "{answer:?}");

    let accepting = SyncRegistryRequest { accept_older: true };
    let taken = server.admin().await.sync_registry(accepting).await.unwrap().into_inner();
    assert_eq!(taken.loaded, ["travel"]);
    until_revision(&server, 1).await;
    assert_ne!(checksums(&server).await, kept);
    let server = server.restarted(&changes).await;
    until_revision(&server, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_reach_its_registry_starts_on_what_it_kept() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish(dir.path(), artifact("travel")).await;
    let web = Web::of(dir.path()).await;
    let url = web.url("");
    let changes = [&following(&url)[..], &state_in(state.path())].concat();
    let server = start_with(&["food"], &changes).await;
    until_revision(&server, 1).await;
    let kept = checksums(&server).await;
    web.set(Mode::Gone);
    let server = server.restarted(&changes).await;
    let reported = until(&server, "the registry's error", |s| s.error.contains("503")).await;
    assert!(!reported.in_sync && reported.revision == 0, "{reported:?}");
    assert_eq!(checksums(&server).await, kept, "an unreachable registry has withdrawn nothing");
    server.assert_serving().await;
    web.set(Mode::Honest);
    until_revision(&server, 1).await;
    assert_eq!(checksums(&server).await, kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_withdrawn_while_a_server_was_down_is_unloaded_once_it_is_back() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish(dir.path(), artifact("travel")).await;
    publish(dir.path(), artifact("plants")).await;
    let web = Web::of(dir.path()).await;
    let url = web.url("");
    let changes = [&following(&url)[..], &state_in(state.path())].concat();
    let server = start_with(&["food"], &changes).await;
    until_revision(&server, 2).await;
    server.upload(artifact("animals")).await.unwrap();
    web.set(Mode::Gone);
    let server = server.restarted(&changes).await;
    withdraw(&storage(dir.path()), "travel").await.unwrap();
    web.set(Mode::Honest);
    until_revision(&server, 3).await;
    assert_eq!(tasks(&server.live().await), ["animals", "food", "plants"], "what was loaded by hand stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_follows_nothing_says_so() {
    let server = start().await;
    refused(sync(&server).await, Code::FailedPrecondition, "registry.manifest");
    assert_eq!(server.admin().await.get_status(GetStatusRequest {}).await.unwrap().into_inner().registry, None);
}
