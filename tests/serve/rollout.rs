//! Versions: rolling back, trying out, and what outlives the server.
use std::collections::BTreeMap;
use std::path::Path;

use delo_proto::load_partition_request::Source;
use delo_proto::trial_mode::Mode;
use delo_proto::{
    AbortTrialRequest, ClassifyRequest, GetStatusRequest, ListPartitionsRequest, LoadPartitionRequest, Partition, PromoteTrialRequest,
    ReportOutcomeRequest, RollbackPartitionRequest, TrialMode, UnloadPartitionRequest,
};
use image::ImageFormat;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{
    Running, TASKS, artifact_of, ends, image, picture, refused, start, start_at, start_in, start_with, state_in, text, until,
};

fn canary(share: f64) -> Option<TrialMode> {
    Some(TrialMode { mode: Some(Mode::CanaryShare(share)) })
}

fn shadow() -> Option<TrialMode> {
    Some(TrialMode { mode: Some(Mode::Shadow(true)) })
}

impl Running {
    async fn load_as(&self, variant: u64, trial: Option<TrialMode>, request_id: &str) -> Result<Partition, Status> {
        let source = Some(Source::Artifact(artifact_of("food", variant).into()));
        let request = LoadPartitionRequest { source, trial, request_id: request_id.to_owned(), ..Default::default() };
        Ok(self.admin().await.load_partition(request).await?.into_inner().partition.unwrap())
    }

    async fn rollback(&self, version: Option<u64>) -> Result<Partition, Status> {
        let request = RollbackPartitionRequest { task: "food".to_owned(), version, ..Default::default() };
        Ok(self.admin().await.rollback_partition(request).await?.into_inner().partition.unwrap())
    }

    async fn promote(&self, trial: Option<TrialMode>) -> Result<Partition, Status> {
        let request = PromoteTrialRequest { task: "food".to_owned(), trial, ..Default::default() };
        Ok(self.admin().await.promote_trial(request).await?.into_inner().partition.unwrap())
    }

    async fn abort(&self) -> Result<Partition, Status> {
        let request = AbortTrialRequest { task: "food".to_owned(), ..Default::default() };
        Ok(self.admin().await.abort_trial(request).await?.into_inner().partition.unwrap())
    }

    async fn food(&self) -> Partition {
        let list = self.admin().await.list_partitions(ListPartitionsRequest {}).await.unwrap().into_inner().partitions;
        list.into_iter().find(|p| p.task == "food").unwrap()
    }

    /// The version that answers a sample of food with this id.
    async fn version(&self, request_id: &str) -> u64 {
        let request = ClassifyRequest { task: "food".to_owned(), request_id: request_id.to_owned(), ..text("soup") };
        self.classifier().await.classify(request).await.unwrap().into_inner().partition_version
    }

    async fn notices(&self) -> Vec<String> {
        self.admin().await.get_status(GetStatusRequest {}).await.unwrap().into_inner().notices
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rolls_back_to_a_retained_version_and_forward_again() {
    let server = start().await;
    let before = server.food().await.digest;
    for variant in 1..4 {
        server.load_as(variant, None, "").await.unwrap();
    }
    assert_eq!(server.food().await.retained_versions, [2, 3], "two versions are retained");
    assert_eq!(server.rollback(None).await.unwrap().version, 3);
    assert_eq!((server.version("a").await, server.food().await.retained_versions), (3, vec![2, 4]));
    assert_eq!(server.rollback(None).await.unwrap().version, 2);
    refused(server.rollback(None).await, Code::FailedPrecondition, "no earlier version");
    refused(server.rollback(Some(1)).await, Code::NotFound, "version 1");
    refused(server.rollback(Some(2)).await, Code::FailedPrecondition, "live already");
    let forward = server.rollback(Some(4)).await.unwrap();
    assert!(forward.version == 4 && forward.digest != before);
    assert_eq!(server.load_as(9, None, "").await.unwrap().version, 5, "a number is never used twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_its_share_is_counted_by_version_and_is_promoted_or_aborted() {
    let server = start().await;
    let loaded = server.load_as(1, canary(0.5), "").await.unwrap();
    assert_eq!(loaded.version, 2);
    assert_eq!(server.live().await, TASKS.map(|task| (task.to_owned(), 1)), "the live version stays");
    let mut versions = Vec::new();
    for i in 0..60 {
        versions.push(server.version(&format!("id-{i}")).await);
    }
    let tried = versions.iter().filter(|&&version| version == 2).count();
    assert!((10..50).contains(&tried), "{tried} of 60 met the canary");
    for (i, version) in versions.iter().enumerate().take(20) {
        assert_eq!(server.version(&format!("id-{i}")).await, *version, "the same id meets the same version");
    }
    let outcome = ReportOutcomeRequest { request_id: "id-0".to_owned(), true_labels: vec!["nothing".to_owned()], ..Default::default() };
    server.classifier().await.report_outcome(outcome).await.unwrap();
    let page = server.metrics().await;
    let role = if versions[0] == 2 { "canary" } else { "live" };
    let series = format!("delo_version_outcomes_total{{task=\"food\",version=\"{}\",role=\"{role}\",correct=\"false\"}} 1", versions[0]);
    assert!(page.contains(&series), "{page}");
    let trial = server.food().await.trial.unwrap();
    assert!(trial.counts.unwrap().answers >= tried as u64 && trial.mode == canary(0.5));

    assert_eq!(server.promote(canary(1.0)).await.unwrap().version, 2);
    assert_eq!(server.version("id-0").await, 2);
    assert_eq!(server.promote(None).await.unwrap().version, 2);
    assert!(server.live().await.contains(&("food".to_owned(), 2)) && server.food().await.trial.is_none());
    refused(server.promote(None).await, Code::FailedPrecondition, "no version on trial");
    server.load_as(2, canary(1.0), "").await.unwrap();
    assert_eq!(server.version("id-0").await, 3);
    let aborted = server.abort().await.unwrap();
    assert_eq!((aborted.version, aborted.labels.len()), (3, 7));
    assert_eq!(server.version("id-0").await, 2);
    refused(server.abort().await, Code::FailedPrecondition, "no version on trial");
    assert!(!server.metrics().await.contains("version=\"3\""), "the series of a version end with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_compared_and_answers_nobody() {
    let server = start().await;
    server.load_as(1, shadow(), "").await.unwrap();
    for i in 0..10 {
        assert_eq!(server.version(&format!("id-{i}")).await, 1);
    }
    let counts = async || server.food().await.trial.unwrap().counts.unwrap();
    let counted = until("the shadow's answers", &counts, |counted| counted.answers == 10).await;
    assert_eq!((counted.answers, counted.agreed + counted.differed), (10, 10), "{counted:?}");
    // The same partition in the shadow of itself agrees with itself.
    server.load_as(0, shadow(), "").await.unwrap();
    for i in 0..5 {
        server.version(&format!("again-{i}")).await;
    }
    assert_eq!(until("the shadow's answers", &counts, |counted| counted.answers == 5).await.agreed, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_trials_that_make_no_sense() {
    let server = start().await;
    for share in [0.0, -1.0, 1.5, f64::NAN] {
        refused(server.load_as(1, canary(share), "").await, Code::InvalidArgument, "share");
    }
    refused(server.load_as(1, Some(TrialMode { mode: None }), "").await, Code::InvalidArgument, "canary_share");
    server.unload("food").await.unwrap();
    refused(server.load_as(1, canary(0.5), "").await, Code::FailedPrecondition, "load it without a trial");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_makes_a_change_once_even_when_calls_race() {
    let server = start().await;
    let loads = (0..6).map(|_| server.load_as(1, None, "first"));
    let versions: Vec<u64> = futures::future::join_all(loads).await.into_iter().map(|p| p.unwrap().version).collect();
    assert_eq!(versions, [2; 6]);
    refused(server.load_as(2, None, "first").await, Code::AlreadyExists, "first");
    assert_eq!(server.load_as(2, None, "second").await.unwrap().version, 3);
    let again = server.load_as(1, None, "first").await.unwrap();
    assert_eq!((again.version, server.food().await.version), (2, 3), "the answer is the first one's; nothing is done again");
    let unload = UnloadPartitionRequest { task: "food".to_owned(), request_id: "third".to_owned() };
    let mut admin = server.admin().await;
    for _ in 0..2 {
        assert_eq!(admin.unload_partition(unload.clone()).await.unwrap().into_inner().partition.unwrap().version, 3);
    }
    refused(server.load_as(1, None, &"x".repeat(129)).await, Code::InvalidArgument, "128");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unload_answers_when_the_requests_that_it_was_serving_have_ended() {
    let server = start_with(&["food"], &[("batching.max_samples", "1")]).await;
    let (client, admin) = (server.classifier().await, server.admin().await);
    let calls: Vec<_> = (0..200)
        .map(|i| {
            let mut client = client.clone();
            let request = ClassifyRequest { task: "food".to_owned(), ..image(picture(i, ImageFormat::Png)) };
            tokio::spawn(async move { client.classify(request).await })
        })
        .collect();
    let depth = async || admin.clone().get_status(GetStatusRequest {}).await.unwrap().into_inner().queue_depth;
    until("samples that wait", &depth, |depth| *depth >= 10).await;
    let answered_before = calls.iter().filter(|call| call.is_finished()).count();
    let request = UnloadPartitionRequest { task: "food".to_owned(), ..Default::default() };
    let answer = server.admin().await.unload_partition(request).await.unwrap().into_inner();
    assert!(answer.drained && answer.partition.unwrap().labels.len() == 7, "it says what was taken out of service");
    assert_eq!(depth().await, 0, "every sample that waited for the partition has been computed");
    let mut served = 0;
    for call in calls {
        match ends("an answer", call).await.unwrap() {
            Ok(answer) => served += usize::from(answer.into_inner().partition_version == 1),
            // Those that arrived after the unload, or were too many.
            Err(status) => {
                assert!(matches!(status.code(), Code::NotFound | Code::FailedPrecondition | Code::ResourceExhausted), "{status:?}")
            }
        }
    }
    assert!(served > answered_before, "no request was in flight: {served} were served, {answered_before} of them before the unload");
    refused(server.rollback(None).await, Code::FailedPrecondition, "retained are none");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_live_on_trial_and_retained_is_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&TASKS, &state_in(dir.path())).await;
    server.load_as(1, None, "one").await.unwrap();
    server.load_as(2, canary(0.25), "").await.unwrap();
    server.unload("travel").await.unwrap();
    let (live, food) = (server.live().await, server.food().await);
    let server = server.restarted(&state_in(dir.path())).await;
    assert_eq!(server.live().await, live, "an unloaded task stays so though its file lies in the partitions directory");
    let back = server.food().await;
    assert_eq!((back.digest, back.retained_versions, back.trial.unwrap().mode), (food.digest, food.retained_versions, canary(0.25)));
    assert_eq!(server.load_as(1, None, "one").await.unwrap().version, 2, "a request that was answered before is not done again");
    assert_eq!(server.rollback(None).await.unwrap().version, 1);
    let travel = RollbackPartitionRequest { task: "travel".to_owned(), ..Default::default() };
    assert_eq!(server.admin().await.rollback_partition(travel).await.unwrap().into_inner().partition.unwrap().version, 1);
    let status = server.admin().await.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert!(status.durable && status.catalogue_revision >= 5, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_state_falls_back_to_what_is_sound_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&TASKS, &state_in(dir.path())).await;
    let loaded = server.load_as(1, None, "").await.unwrap();
    let stored = dir.path().join("delo-state/partitions").join(format!("{}.safetensors", loaded.digest));
    // The artifact of the live version is torn: the version before serves.
    let whole = std::fs::read(&stored).unwrap();
    std::fs::write(&stored, &whole[..whole.len() / 2]).unwrap();
    let server = server.restarted(&state_in(dir.path())).await;
    assert_eq!(server.version("a").await, 1);
    let notices = server.notices().await;
    assert!(notices.iter().any(|n| n.contains("version 2 of task \"food\"") && n.contains("fell back to version 1")), "{notices:?}");
    assert_eq!(server.load_as(1, None, "").await.unwrap().version, 3);

    // The newest catalogue is torn: the one before counts.
    let mut generations: Vec<_> = std::fs::read_dir(dir.path().join("delo-state")).unwrap().map(|e| e.unwrap().path()).collect();
    generations.retain(|p| p.extension().is_some_and(|e| e == "json"));
    generations.sort();
    std::fs::write(generations.last().unwrap(), "torn").unwrap();
    let server = server.restarted(&state_in(dir.path())).await;
    assert_eq!(server.version("a").await, 1);
    let notices = server.notices().await;
    assert!(notices.iter().any(|n| n.contains("fell back to the last good catalogue")), "{notices:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_do_not_share_a_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _server = start_with(&["food"], &state_in(dir.path())).await;
    let second = start_in(tempfile::tempdir().unwrap(), &state_in(dir.path())).await;
    let failure = second.ended().await.unwrap_err().to_string();
    assert!(failure.contains("catalogue.state_dir"), "{failure}");
}

/// Names and contents of all that lies in a directory itself.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_user_s_is_removed_though_partitions_lie_in_the_state_directory() {
    let var = tempfile::tempdir().unwrap();
    // As deploy/systemd/delo.service and README.md lead to: STATE and STATE/partitions; then both the same;
    // then the state below the partitions.
    for (state, partitions) in [("delo", "delo/partitions"), ("same", "same"), ("outer/inner", "outer")] {
        let (state, partitions) = (var.path().join(state), var.path().join(partitions));
        std::fs::create_dir_all(&partitions).unwrap();
        for (name, content) in [
            ("food.safetensors", artifact_of("food", 0)),
            ("travel.safetensors", artifact_of("travel", 0)),
            ("food.safetensors.sig", b"signature".to_vec()),
            ("README.txt", b"mine".to_vec()),
            ("manifest.json", b"{}".to_vec()),
            ("lock", b"mine".to_vec()),
        ] {
            std::fs::write(partitions.join(name), content).unwrap();
        }
        let before = files(&partitions);
        let mut server = start_at(&partitions, &state_in(&state)).await;
        server.until_health(ServingStatus::Serving).await;
        for variant in 1..6 {
            assert_eq!(server.load_as(variant, None, "").await.unwrap().version, variant + 1);
        }
        for _ in 0..2 {
            server.ask_to_stop();
            server.ended().await.unwrap();
            server = start_at(&partitions, &state_in(&state)).await;
            server.until_health(ServingStatus::Serving).await;
            assert_eq!(server.live().await, [("food".to_owned(), 6), ("travel".to_owned(), 1)]);
        }
        assert_eq!(files(&partitions), before, "{}", partitions.display());
        server.ask_to_stop();
        server.ended().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_server_kept_in_the_state_directory_itself_is_taken_over_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let partitions = dir.path().join("partitions");
    let mut server = start_with(&TASKS, &state_in(dir.path())).await;
    server.load_as(1, None, "one").await.unwrap();
    server.load_as(2, canary(0.25), "").await.unwrap();
    server.unload("travel").await.unwrap();
    let (live, food) = (server.live().await, server.food().await);
    server.ask_to_stop();
    server.ended().await.unwrap();
    // The former layout: the same files, without a folder of their own. A user's file lies among them.
    let own = dir.path().join("delo-state");
    for name in std::fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name()) {
        std::fs::rename(own.join(&name), dir.path().join(&name)).unwrap();
    }
    std::fs::remove_file(dir.path().join("README.txt")).unwrap();
    std::fs::remove_dir(&own).unwrap();
    std::fs::write(partitions.join("symbols.safetensors"), artifact_of("symbols", 0)).unwrap();
    let before = [files(dir.path()), files(&partitions)];

    // A server of that layout is still at work.
    let lock = std::fs::File::open(dir.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let refusal = start_at(&partitions, &state_in(dir.path())).await.ended().await.unwrap_err().to_string();
    assert!(refusal.contains("another server"), "{refusal}");
    drop(lock);

    for start in 0..2 {
        let mut server = start_at(&partitions, &state_in(dir.path())).await;
        server.until_health(ServingStatus::Serving).await;
        let now: Vec<_> = server.live().await.into_iter().filter(|(task, _)| task != "symbols").collect();
        assert_eq!(now, live, "travel was unloaded and stays so");
        let back = server.food().await;
        assert_eq!((back.digest, back.retained_versions, back.trial.unwrap().mode), (food.digest.clone(), vec![1], canary(0.25)));
        let notices = server.notices().await;
        assert_eq!(notices.iter().filter(|n| n.contains("was copied to")).count(), usize::from(start == 0), "{notices:?}");
        if start == 0 {
            assert_eq!(server.load_as(1, None, "one").await.unwrap().version, 2, "a request that was answered before is not done again");
        }
        server.ask_to_stop();
        server.ended().await.unwrap();
        assert_eq!([files(dir.path()), files(&partitions)], before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_would_mix_are_refused_and_say_what_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut server = start_with(&["food"], &state_in(&state)).await;
    server.ask_to_stop();
    server.ended().await.unwrap();
    let own = state.join("delo-state");
    let outside = tempfile::tempdir().unwrap();
    for (partitions, state, words) in [
        (own.join("partitions"), state.clone(), "model.partitions"),
        (own.clone(), state.clone(), "model.partitions"),
        (outside.path().to_owned(), own.clone(), "catalogue.state_dir"),
    ] {
        let refusal = start_at(&partitions, &state_in(&state)).await.ended().await.unwrap_err().to_string();
        assert!(refusal.contains(words), "{refusal}");
    }
    std::fs::create_dir(outside.path().join("partitions")).unwrap();
    let manifest = [("registry.manifest", outside.path().to_str().unwrap())];
    let refusal = start_at(&outside.path().join("partitions"), &manifest).await.ended().await.unwrap_err().to_string();
    assert!(refusal.contains("model.partitions"), "{refusal}");
}
