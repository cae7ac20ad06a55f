//! ClassifyStream: answers as they finish.
use std::collections::HashSet;

use delo_proto::classify_result::Result as Outcome;
use delo_proto::{ClassifyRequest, Priority};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::{agree, ends, mixed_requests, start, text, until};

#[tokio::test(flavor = "multi_thread")]
async fn every_sample_of_a_stream_is_answered_once_under_its_id() {
    let server = start().await;
    let mut client = server.classifier().await;
    let requests = mixed_requests(200);
    let mut answers = client.classify_stream(tokio_stream::iter(requests.clone())).await.unwrap().into_inner();
    let mut seen = HashSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(seen.insert(answer.request_id.clone()), "{} twice", answer.request_id);
        let i: usize = answer.request_id.strip_prefix("request-").unwrap().parse().unwrap();
        let Some(Outcome::Response(response)) = answer.result else { panic!("{answer:?}") };
        if i < 20 {
            let alone = client.classify(requests[i].clone()).await.unwrap().into_inner();
            assert!(agree(&response, &alone));
        }
    }
    assert_eq!(seen.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_sample_fails_alone_and_an_open_stream_answers_at_once() {
    let server = start().await;
    let (send, requests) = mpsc::channel(8);
    let mut answers = server.classifier().await.classify_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let mut answer = async |request: ClassifyRequest| {
        send.send(request).await.unwrap();
        ends("an answer", answers.next()).await.unwrap().unwrap()
    };
    let good = answer(ClassifyRequest { request_id: "good".to_owned(), priority: Priority::Interactive.into(), ..text("a cat") }).await;
    assert!(matches!(good.result, Some(Outcome::Response(_))) && good.request_id == "good");
    let empty = answer(ClassifyRequest { request_id: "empty".to_owned(), ..Default::default() }).await;
    let Some(Outcome::Error(error)) = empty.result else { panic!("{empty:?}") };
    assert_eq!((error.code, error.field.as_str(), empty.request_id.as_str()), (Code::InvalidArgument as i32, "image", "empty"));
    assert!(matches!(answer(text("still there?")).await.result, Some(Outcome::Response(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_or_half_closed_leaves_nothing_behind() {
    let server = start().await;
    for _ in 0..50 {
        let (send, requests) = mpsc::channel(8);
        let answers = server.classifier().await.classify_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
        send.send(text("never read")).await.unwrap();
        drop(answers);
    }
    let depth = async || server.admin().await.get_status(delo_proto::GetStatusRequest {}).await.unwrap().into_inner().queue_depth;
    until("an empty queue", depth, |depth| *depth == 0).await;
    server.assert_serving().await;
}
