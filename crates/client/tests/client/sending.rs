//! What is sent: samples, tokens, headers.
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use delo_client::{ClassifyRequest, Client, Code, ConnectError, Priority, Sample, TokenError};

use crate::fake::{Fake, busy};

fn authorizations(fake: &Fake) -> Vec<String> {
    fake.state().seen.iter().map(|seen| seen.header("authorization").to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_token_is_asked_for_before_every_attempt() {
    let fake = Fake::refusing([busy(10)]);
    let tokens = Mutex::new(VecDeque::from(["old", "new\n"]));
    let client = fake.client(|b| {
        b.token_with(move || {
            let token = tokens.lock().unwrap().pop_front();
            async move { Ok(token.ok_or("there are no more")?.to_owned()) }
        })
    });
    client.classify(Sample::text("pizza")).await.unwrap();
    assert_eq!(authorizations(&fake), ["Bearer old", "Bearer new"]);
    let error = client.classify(Sample::text("pizza")).await.unwrap_err();
    assert_eq!((error.code(), error.attempts(), fake.calls()), (Code::Unauthenticated, 0, 2));
    assert!(error.message().contains("there are no more"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_token_s_file_is_read_again_within_a_second_of_its_change_and_may_vanish_for_a_moment() {
    let fake = Fake::default();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    let client = fake.client(|b| b.token_file(&path));
    assert_eq!(client.classify(Sample::text("pizza")).await.unwrap_err().code(), Code::Unauthenticated);
    for token in ["old", "new\n"] {
        std::fs::write(&path, token).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        client.classify(Sample::text("pizza")).await.unwrap();
    }
    std::fs::remove_file(&path).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    client.classify(Sample::text("pizza")).await.unwrap();
    assert_eq!(authorizations(&fake), ["Bearer old", "Bearer new", "Bearer new"]);
}

#[tokio::test]
async fn what_is_no_token_is_refused_and_no_token_is_shown() {
    for token in ["", " \n", "pässword", "a\nb", &"x".repeat(4097)] {
        let refused = Client::builder("http://localhost:1").token(token).connect_lazy();
        assert!(matches!(refused, Err(ConnectError::Token(TokenError::Malformed))), "{token:?}");
    }
    let builder = Client::builder("http://localhost:1").token("hidden");
    let mut shown = format!("{builder:?}");
    shown.push_str(&format!("{:?}", builder.connect_lazy().unwrap()));
    assert!(!shown.contains("hidden"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn headers_and_the_trace_are_sent_with_every_attempt() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let fake = Fake::refusing([busy(10)]);
    let client = fake.client(|b| b.metadata("x-shop", "7"));
    client.classify(Sample::text("pizza")).traceparent(TRACE).metadata("x-table", "3").await.unwrap();
    for seen in &fake.state().seen {
        assert_eq!([seen.header("x-shop"), seen.header("x-table"), seen.header("traceparent")], ["7", "3", TRACE]);
    }
    let error = client.classify(Sample::text("pizza")).traceparent("a\nb").await.unwrap_err();
    assert_eq!((error.code(), fake.calls()), (Code::InvalidArgument, 2));
    let refused = Client::builder("http://localhost:1").metadata("no name", "1").connect_lazy();
    assert!(matches!(refused, Err(ConnectError::Header(_))));
}

#[tokio::test(start_paused = true)]
async fn every_option_of_a_sample_is_sent() {
    let fake = Fake::default();
    let sample = Sample::image(vec![1, 2]).with_text("a").task("t").top_k(0).max_candidates(1).reject(0.05).explain().timings();
    fake.client(|b| b).classify(sample.request_id("id").priority(Priority::Bulk)).await.unwrap();
    let expected = ClassifyRequest {
        image: Some(vec![1, 2].into()),
        text: Some("a".into()),
        request_id: "id".into(),
        top_k: Some(0),
        task: "t".into(),
        explain: true,
        priority: 2,
        max_candidates: Some(1),
        reject: Some(0.05),
        timings: true,
    };
    assert_eq!(fake.state().seen[0].request, expected);
    // What is not said is left to the server.
    let plain = ClassifyRequest { request_id: "id".into(), text: Some("a".into()), ..Default::default() };
    assert_eq!(Sample::text("a").request_id("id").into_request(), plain);
    assert_eq!(Sample::from(expected.clone()).with_image(vec![1, 2]).into_request(), expected);
}

#[tokio::test]
async fn an_image_is_read_from_its_file_and_a_missing_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("photo.jpg");
    let error = Sample::image_file(&path).await.unwrap_err();
    assert!(error.to_string().contains("photo.jpg"), "{error}");
    std::fs::write(&path, [7, 8]).unwrap();
    assert_eq!(Sample::image_file(&path).await.unwrap().into_request().image, Some(vec![7, 8].into()));
}

#[tokio::test(start_paused = true)]
async fn messages_longer_than_the_client_allows_are_refused() {
    let fake = Fake::default();
    let sample = || Sample::text("x".repeat(2000)).request_id("y".repeat(2000));
    let sending = fake.client(|b| b.max_sent_bytes(1000));
    let error = sending.classify(sample()).await.unwrap_err();
    assert_eq!((error.code(), error.is_retryable(), fake.calls()), (Code::ResourceExhausted, false, 0));
    let receiving = fake.client(|b| b.max_received_bytes(1000));
    assert_eq!(receiving.classify(sample()).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(fake.calls(), 1);
}
