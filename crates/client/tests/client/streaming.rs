//! Samples as they come.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use delo_client::{Client, Code, Sample};
use delo_proto as pb;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::fake::{Fake, refusal};

const SECOND: Duration = Duration::from_secs(1);

fn sample(text: &str) -> Sample {
    Sample::text(text).request_id(text)
}

#[tokio::test(start_paused = true)]
async fn a_sample_may_depend_on_the_answer_before_it() {
    let fake = Fake::default();
    let (samples, received) = mpsc::channel(1);
    samples.send(sample("first")).await.unwrap();
    let mut answers = fake.client(|b| b).classify_stream(ReceiverStream::new(received)).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap().request_id, "first");
    samples.send(sample("second")).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap().request_id, "second");
    drop(samples);
    assert!(answers.next().await.is_none() && answers.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_error_of_one_sample_leaves_the_stream_and_the_end_of_the_stream_is_told_once() {
    let fake = Fake::default();
    fake.state().stream_end = Some(refusal(Code::Unavailable, Some(2000)));
    let samples = tokio_stream::iter(["good", "bad", "fine"].map(sample));
    let mut answers = fake.client(|b| b).classify_stream(samples).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap().request_id, "good");
    let bad = answers.next().await.unwrap().unwrap().unwrap_err();
    assert_eq!((bad.code(), bad.request_id(), bad.field()), (Code::InvalidArgument, Some("bad"), Some("text")));
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap().request_id, "fine");
    let end = answers.next().await.unwrap().unwrap_err();
    assert_eq!((end.code(), end.retry_after(), end.is_retryable()), (Code::Unavailable, Some(2 * SECOND), true));
    assert!(answers.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn where_answers_are_not_read_samples_are_not_read_on() {
    let fake = Fake::default();
    // The answers alone fill what lies between.
    fake.state().answer = pb::ClassifyResponse { model: "m".repeat(50_000), ..Default::default() };
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let samples = tokio_stream::iter(0..10_000).map(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Sample::text("x".repeat(50_000))
    });
    let client = fake.client(|b| b);
    let mut answers = client.classify_stream(samples).await.unwrap();
    // The clock goes on when nothing moves any more.
    tokio::time::sleep(SECOND).await;
    let before = taken.load(Ordering::Relaxed);
    assert!((1..1000).contains(&before), "{before}");
    for _ in 0..2 * before {
        answers.next().await.unwrap().unwrap().unwrap();
    }
    assert!(taken.load(Ordering::Relaxed) > before);
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_dropped_end_the_call_and_the_samples() {
    let fake = Fake::default();
    let (samples, received) = mpsc::channel(1);
    samples.send(sample("first")).await.unwrap();
    let mut answers = fake.client(|b| b).classify_stream(ReceiverStream::new(received)).await.unwrap();
    answers.next().await.unwrap().unwrap().unwrap();
    drop(answers);
    tokio::time::timeout(SECOND, samples.closed()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_ends_the_stream_as_unavailable() {
    let fake = Fake::default();
    let cut = Arc::new(Notify::new());
    let cutting = cut.clone();
    let channel = fake.channel_through(move |mut theirs| {
        let (mut between, server) = tokio::io::duplex(1 << 16);
        let cut = cutting.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut theirs, &mut between) => {}
                () = cut.notified() => {}
            }
        });
        Ok(Some(server))
    });
    let client = Client::builder("http://fake").over_channel(channel).unwrap();
    let (samples, received) = mpsc::channel(1);
    samples.send(sample("first")).await.unwrap();
    let mut answers = client.classify_stream(ReceiverStream::new(received)).await.unwrap();
    answers.next().await.unwrap().unwrap().unwrap();
    cut.notify_one();
    let error = answers.next().await.unwrap().unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), (Code::Unavailable, true), "{error}");
    assert!(answers.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_its_timeout_and_samples_have_one_of_their_own() {
    let fake = Fake::default();
    let client = fake.client(|b| b);
    let never = || tokio_stream::pending::<Sample>();
    let start = Instant::now();
    let mut answers = client.classify_stream(never()).timeout(60 * SECOND).sample_timeout(5 * SECOND).await.unwrap();
    let ended = tokio::time::timeout(600 * SECOND, answers.next()).await.unwrap();
    let error = ended.unwrap().unwrap_err();
    assert_eq!((error.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 60));
    assert!(answers.next().await.is_none());
    // The client's own timeout, 30 s, is for single calls.
    let mut endless = client.classify_stream(never()).await.unwrap();
    assert!(tokio::time::timeout(600 * SECOND, endless.next()).await.is_err());
    drop(client.classify_stream(never()).timeout(60 * SECOND).await.unwrap());
    let told: Vec<_> = fake.state().seen.iter().map(|seen| seen.timeout().map(|timeout| timeout.as_secs())).collect();
    assert_eq!(told, [Some(5), None, Some(60)]);
}
