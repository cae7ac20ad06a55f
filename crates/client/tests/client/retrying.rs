//! When a call is tried again, and its deadline. All on tokio's paused clock.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use delo_client::{Code, Report, Retry, Sample};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tonic::Status;

use crate::fake::{Fake, busy, exact, refusal};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn waits_as_long_as_the_server_asks_and_keeps_the_request_id() {
    let fake = Fake::refusing([busy(2000), refusal(Code::Unavailable, Some(3000))]);
    let response = fake.client(|b| b).classify(Sample::text("pizza")).response().await.unwrap();
    assert_eq!(fake.waits(), [2000, 3000]);
    assert_eq!(response.attempts(), 3);
    let ids: Vec<_> = fake.state().seen.iter().map(|seen| seen.request.request_id.clone()).collect();
    assert!(!ids[0].is_empty() && ids.iter().all(|id| *id == response.answer().request_id), "{ids:?}");
}

#[tokio::test(start_paused = true)]
async fn each_wait_is_longer_by_a_random_share_of_itself() {
    let fake = Fake::refusing(vec![busy(4000); 20]);
    let client = fake.client(|b| b.retry(Retry::default().attempts(21)).timeout(None));
    client.classify(Sample::text("pizza")).await.unwrap();
    let waits = fake.waits();
    // A millisecond is what tokio's clock rounds up.
    assert!(waits.iter().all(|wait| (4000..=5001).contains(wait)), "{waits:?}");
    assert!(waits.iter().max().unwrap() - waits.iter().min().unwrap() > 100, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_server_that_names_no_time_is_asked_after_waits_that_double_up_to_a_bound() {
    let fake = Fake::refusing(vec![refusal(Code::Unavailable, None); 5]);
    let client = fake.client(|b| b.retry(exact().attempts(6).longest_wait(Duration::from_millis(400))));
    client.classify(Sample::text("pizza")).await.unwrap();
    assert_eq!(fake.waits(), [100, 200, 400, 400, 400]);
}

#[tokio::test(start_paused = true)]
async fn exhausted_without_a_time_is_not_tried_again() {
    let fake = Fake::refusing([refusal(Code::ResourceExhausted, None)]);
    let error = fake.client(|b| b).classify(Sample::text("pizza")).await.unwrap_err();
    assert_eq!((error.code(), error.is_retryable(), fake.calls()), (Code::ResourceExhausted, false, 1));
}

#[tokio::test(start_paused = true)]
async fn other_codes_are_not_tried_again_whatever_they_ask() {
    use Code::{Aborted, Cancelled, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound, Unauthenticated, Unknown};
    let codes = [InvalidArgument, NotFound, FailedPrecondition, Internal, Unknown, Unauthenticated, DeadlineExceeded, Aborted, Cancelled];
    for code in codes {
        let fake = Fake::refusing([refusal(code, Some(10))]);
        let error = fake.client(|b| b).classify(Sample::text("pizza")).await.unwrap_err();
        assert_eq!((error.code(), error.is_retryable(), fake.calls()), (code, false, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_are_bounded_and_the_error_says_all_that_the_server_said() {
    let fake = Fake::refusing(vec![busy(10); 9]);
    let client = fake.client(|b| b.retry(exact().attempts(3)));
    let error = client.classify(Sample::text("pizza").request_id("mine")).await.unwrap_err();
    assert_eq!((error.attempts(), fake.calls()), (3, 3));
    assert_eq!((error.code(), error.message(), error.reason()), (Code::ResourceExhausted, "no", Some("QUEUE_FULL")));
    assert_eq!((error.retry_after(), error.request_id()), (Some(Duration::from_millis(10)), Some("mine")));
    let violation = &error.field_violations()[0];
    assert_eq!((error.field(), violation.description.as_str()), (Some("image"), "is none"));
    assert_eq!(error.to_string(), "ResourceExhausted: no (field image) (retry in 0.0 s)");
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_the_deadline_or_longer_than_allowed_is_not_begun() {
    let fake = Fake::refusing([busy(60_000)]);
    let start = Instant::now();
    let error = fake.client(|b| b).classify(Sample::text("pizza")).timeout(5 * SECOND).await.unwrap_err();
    assert_eq!((error.code(), error.retry_after(), start.elapsed()), (Code::ResourceExhausted, Some(60 * SECOND), Duration::ZERO));
    let fake = Fake::refusing([busy(3000)]);
    let client = fake.client(|b| b.retry(exact().longest_asked_wait(2 * SECOND)));
    assert_eq!(client.classify(Sample::text("pizza")).await.unwrap_err().attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_over_all_attempts_and_the_server_is_told_what_is_left() {
    let fake = Fake::refusing([busy(3000), busy(3000), busy(5000)]);
    let start = Instant::now();
    let error = fake.client(|b| b.timeout(10 * SECOND)).classify(Sample::text("pizza")).await.unwrap_err();
    assert_eq!((error.code(), start.elapsed().as_secs()), (Code::ResourceExhausted, 6));
    let told: Vec<_> = fake.state().seen.iter().map(|seen| seen.timeout().unwrap().as_millis()).collect();
    assert_eq!(told, [10_000, 7000, 4000]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_without_an_answer_ends_at_the_deadline_of_the_call() {
    let fake = Fake::refusing([busy(2000)]);
    let client = fake.client(|b| b);
    let start = Instant::now();
    let classified = client.classify(Sample::text("pizza").request_id("mine")).timeout(5 * SECOND);
    let silent = async {
        tokio::time::sleep(SECOND).await;
        fake.state().delay = Duration::from_secs(3600);
    };
    let error = tokio::join!(classified.into_future(), silent).0.unwrap_err();
    assert_eq!((error.code(), error.attempts(), error.request_id()), (Code::DeadlineExceeded, 2, Some("mine")));
    assert_eq!(start.elapsed().as_millis(), 5000);
    assert!(!error.is_retryable());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_never_comes_and_a_connection_that_never_answers_end_at_the_deadline() {
    let never = || std::future::pending::<Result<String, delo_client::BoxError>>();
    for tokens in [true, false] {
        let channel = Fake::default().channel_through(|connection| {
            // Kept open, and never read.
            std::mem::forget(connection);
            Ok(None)
        });
        let builder = delo_client::Client::builder("http://fake").timeout(5 * SECOND);
        let builder = if tokens { builder.token_with(never) } else { builder };
        let client = builder.over_channel(channel).unwrap();
        let start = Instant::now();
        let classified = client.classify(Sample::text("pizza")).into_future();
        let error = timeout(60 * SECOND, classified).await.unwrap().unwrap_err();
        assert_eq!((error.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 5), "{error}");
        let stream = client.classify_stream(tokio_stream::iter([Sample::text("pizza")])).timeout(5 * SECOND).into_future();
        let error = timeout(60 * SECOND, stream).await.unwrap().unwrap_err();
        assert_eq!((error.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 10), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_timeout_tells_the_server_none() {
    let fake = Fake::default();
    let client = fake.client(|b| b.timeout(None));
    client.classify(Sample::text("pizza")).await.unwrap();
    client.classify(Sample::text("pizza")).timeout(Duration::MAX).await.unwrap();
    // A time that has no bound for people, but has one for the clock.
    client.classify(Sample::text("pizza")).timeout(Duration::from_secs(1 << 40)).await.unwrap();
    let told: Vec<_> = fake.state().seen.iter().map(|seen| seen.metadata.contains_key("grpc-timeout")).collect();
    assert_eq!(told[..2], [false, false]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_ends_retries_of_all_clones_until_answers_fill_it() {
    let fake = Fake::refusing(vec![busy(10); 3]);
    let client = fake.client(|b| b.retry(exact().budget(2, 0.5)));
    // The third refusal finds the budget empty.
    assert_eq!(client.clone().classify(Sample::text("pizza")).await.unwrap_err().attempts(), 3);
    fake.state().refusals.push_back(busy(10));
    assert_eq!(client.classify(Sample::text("pizza")).await.unwrap_err().attempts(), 1);
    for _ in 0..2 {
        client.classify(Sample::text("pizza")).await.unwrap();
    }
    fake.state().refusals.push_back(busy(10));
    assert_eq!(client.classify(Sample::text("pizza")).response().await.unwrap().attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_could_be_counted_twice_is_tried_again_only_where_nothing_was_done() {
    let fake = Fake::refusing([refusal(Code::Unavailable, Some(10))]);
    let client = fake.client(|b| b);
    let by_task = || client.report_outcome(Report::of_task("a").true_task("b"));
    assert_eq!(by_task().await.unwrap_err().code(), Code::Unavailable);
    fake.state().refusals.push_back(busy(10));
    assert!(by_task().await.unwrap().counted);
    fake.state().refusals.push_back(refusal(Code::Unavailable, Some(10)));
    let by_id = client.report_outcome(Report::of("id").true_task("b")).response().await.unwrap();
    assert_eq!((by_id.attempts(), fake.calls()), (2, 5));
}

#[tokio::test(start_paused = true)]
async fn health_and_streams_are_not_tried_again() {
    let fake = Fake::refusing([refusal(Code::Unavailable, Some(10)), refusal(Code::Unavailable, Some(10))]);
    let client = fake.client(|b| b);
    assert_eq!(client.health().await.unwrap_err().attempts(), 1);
    let stream = client.classify_stream(tokio_stream::iter([Sample::text("pizza")])).await;
    assert_eq!((stream.unwrap_err().code(), fake.calls()), (Code::Unavailable, 2));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_starts_late_is_reached() {
    let fake = Fake::default();
    let tries = AtomicUsize::new(0);
    let channel = fake.channel_through(move |connection| match tries.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => Err(std::io::ErrorKind::ConnectionRefused.into()),
        _ => Ok(Some(connection)),
    });
    let client = delo_client::Client::builder("http://fake").retry(exact()).over_channel(channel).unwrap();
    assert_eq!(client.classify(Sample::text("pizza")).response().await.unwrap().attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_before_the_answer_is_unavailable_and_the_call_is_tried_again() {
    let fake = Fake::default();
    let tries = AtomicUsize::new(0);
    let channel = fake.channel_through(move |mut connection| match tries.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => {
            tokio::spawn(async move {
                // The beginning of the request, which is never answered.
                let mut received = [0; 100];
                let _ = connection.read_exact(&mut received).await;
            });
            Ok(None)
        }
        _ => Ok(Some(connection)),
    });
    let client = delo_client::Client::builder("http://fake").retry(exact().attempts(1)).over_channel(channel.clone()).unwrap();
    let error = client.classify(Sample::text("pizza")).await.unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), (Code::Unavailable, true), "{error}");
    let client = delo_client::Client::builder("http://fake").retry(exact()).over_channel(channel).unwrap();
    assert_eq!(client.classify(Sample::text("pizza")).response().await.unwrap().attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_leaving_server_did_not_take_is_tried_again() {
    let fake = Fake::default();
    let tries = AtomicUsize::new(0);
    let channel = fake.channel_through(move |mut connection| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => {
            tokio::spawn(async move {
                /// A frame of SETTINGS, and GOAWAY with NO_ERROR and 0 as the last stream that was taken.
                const GO_AWAY: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
                // Up to the headers of the request.
                let mut received = vec![0; 100];
                connection.read_exact(&mut received).await.unwrap();
                connection.write_all(GO_AWAY).await.unwrap();
                let _ = connection.read_to_end(&mut received).await;
            });
            Ok(None)
        }
        _ => Ok(Some(connection)),
    });
    let client = delo_client::Client::builder("http://fake").retry(exact()).over_channel(channel).unwrap();
    assert_eq!(client.classify(Sample::text("pizza")).response().await.unwrap().attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn details_that_cannot_be_read_count_as_absent() {
    let broken = Status::with_details(Code::Unavailable, "no", vec![0xff; 7].into());
    let fake = Fake::refusing([broken]);
    let error = fake.client(|b| b.retry(Retry::never())).classify(Sample::text("pizza")).await.unwrap_err();
    assert_eq!((error.code(), error.message(), error.retry_after(), error.field()), (Code::Unavailable, "no", None, None));
}
