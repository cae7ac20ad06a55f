//! Loads and unloads beside traffic.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use delo_proto::{ClassifyRequest, ClassifyResponse};
use futures::{StreamExt, stream};
use tonic::Code;

use crate::harness::{Running, TASKS, agree, artifact, mixed_requests, refused, start, text};

/// Sends the requests, a bounded number in flight, and returns their answers. A failed one panics.
async fn answers(server: &Running, requests: &[ClassifyRequest], in_flight: usize) -> Vec<ClassifyResponse> {
    let client = server.classifier().await;
    stream::iter(requests.to_vec())
        .map(|request| {
            let mut client = client.clone();
            async move { client.classify(request).await.unwrap().into_inner() }
        })
        .buffered(in_flight)
        .collect()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_are_answered_as_one_by_one_while_partitions_come_and_go() {
    let server = Arc::new(start().await);
    let requests = mixed_requests(500);
    // The comings and goings change which tasks there are to route to: each answer must be that of one
    // catalogue or of the other.
    let without = answers(&server, &requests, 1).await;
    server.upload(artifact("symbols")).await.unwrap();
    let with = answers(&server, &requests, 1).await;

    let done = Arc::new(AtomicBool::new(false));
    let swapping = tokio::spawn({
        let (server, done) = (server.clone(), done.clone());
        async move {
            let (symbols, food) = (artifact("symbols"), artifact("food"));
            let mut changes = 0;
            while changes < 50 || !done.load(Ordering::SeqCst) {
                server.unload("symbols").await.unwrap();
                server.upload(food.clone()).await.unwrap();
                server.upload(symbols.clone()).await.unwrap();
                changes += 3;
            }
            changes
        }
    });
    let mut rounds = 0;
    while rounds == 0 || !swapping.is_finished() {
        let together = answers(&server, &requests, 64).await;
        for (i, answer) in together.iter().enumerate() {
            assert_eq!(answer.request_id, requests[i].request_id);
            assert!(agree(answer, &without[i]) || agree(answer, &with[i]), "{answer:?}\n{:?}\n{:?}", without[i], with[i]);
        }
        rounds += 1;
        done.store(true, Ordering::SeqCst);
    }
    assert!(swapping.await.unwrap() >= 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_loaded_again_is_a_new_version_and_serves_at_once() {
    let server = start().await;
    let mut client = server.classifier().await;
    let request = ClassifyRequest { task: "food".to_owned(), ..text("soup") };
    for version in 2..5 {
        assert_eq!(server.upload(artifact("food")).await.unwrap().version, version);
        assert_eq!(client.classify(request.clone()).await.unwrap().into_inner().partition_version, version);
    }
    assert_eq!(server.unload("food").await.unwrap().version, 4);
    refused(client.classify(request).await, Code::NotFound, "food");
    assert_eq!(server.live().await.len(), TASKS.len() - 1);
    assert_eq!(server.upload(artifact("food")).await.unwrap().version, 5, "a version is never used twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_at_the_same_time_take_one_version_each() {
    let server = start().await;
    let food = artifact("food");
    let loads = (0..8).map(|_| server.upload(food.clone()));
    let mut versions: Vec<_> = futures::future::join_all(loads).await.into_iter().map(|l| l.unwrap().version).collect();
    versions.sort_unstable();
    assert_eq!(versions, (2..10).collect::<Vec<_>>());
    assert_eq!(server.live().await[1], ("food".to_owned(), 9));
}
