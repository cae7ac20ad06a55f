//! What is received.
use std::time::Duration;

use delo_client::{Answer, Client, Code, MetadataMap, Modality, Sample, Score};
use delo_proto as pb;
use tonic::Status;

use crate::fake::Fake;

#[tokio::test(start_paused = true)]
async fn what_came_with_an_answer_or_an_error_can_be_read() {
    let headers = [("traceparent", "00-1-2-01"), ("server-timing", "total;dur=12.5, decode;dur=0.250, odd, cache;desc=\"x\";dur=1")];
    let expected =
        [("total", 12_500), ("decode", 250), ("cache", 1000)].map(|(step, micros)| (step.to_owned(), Duration::from_micros(micros)));
    let fake = Fake::default();
    fake.state().headers = headers.to_vec();
    let client = fake.client(|b| b);
    let response = client.classify(Sample::text("pizza")).response().await.unwrap();
    assert_eq!((response.traceparent(), response.server_timing()), (Some("00-1-2-01"), expected.to_vec()));
    assert_eq!(response.metadata().get("traceparent").unwrap(), "00-1-2-01");
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        metadata.insert(name, value.parse().unwrap());
    }
    fake.state().refusals.push_back(Status::with_metadata(Code::NotFound, "no", metadata));
    let error = client.classify(Sample::text("pizza")).await.unwrap_err();
    assert_eq!((error.traceparent(), error.server_timing()), (Some("00-1-2-01"), expected.to_vec()));
}

#[test]
fn what_is_absent_is_none() {
    let routing = pb::Routing { task: "food".into(), probability: Some(0.5), ..Default::default() };
    let score = Score { label: "pizza".into(), score: 0.5 };
    let modalities = pb::Modalities { image: 2, text: 1, text_reading: None };
    let response = pb::ClassifyResponse {
        task: "food".into(),
        scores: vec![score],
        routing: Some(routing.clone()),
        modalities: Some(modalities),
        ..Default::default()
    };
    let answer = Answer::from(response);
    assert_eq!(
        (answer.task.as_deref(), answer.label(), answer.probability(), answer.rejected()),
        (Some("food"), Some("pizza"), Some(0.5), false)
    );
    assert_eq!((answer.image, answer.text), (Modality::Proxied, Modality::Present));
    let rejected = pb::ClassifyResponse { routing: Some(pb::Routing { rejected: true, ..routing }), ..Default::default() };
    let answer = Answer::from(rejected);
    assert_eq!((answer.task, answer.scores, answer.image), (None, vec![], Modality::Unspecified));
    assert!(answer.routing.is_some_and(|routing| routing.rejected));
    let given = Answer::from(pb::ClassifyResponse { task: "food".into(), ..Default::default() });
    assert_eq!((given.probability(), given.rejected(), given.label()), (None, false, None));
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_answered_in_order_with_errors_in_place() {
    let fake = Fake::default();
    let samples = ["bad", "good", "busy", "nothing"].map(|text| Sample::text(text).request_id(text));
    let results = fake.client(|b| b).classify_batch(samples).await.unwrap();
    let [Err(bad), Ok(good), Err(busy), Err(nothing)] = results.as_slice() else { panic!("{results:?}") };
    assert_eq!((bad.code(), bad.field(), bad.request_id(), bad.is_retryable()), (Code::InvalidArgument, Some("text"), Some("bad"), false));
    assert_eq!(good.request_id, "good");
    assert_eq!((busy.code(), busy.retry_after(), busy.is_retryable()), (Code::ResourceExhausted, Some(Duration::from_millis(1500)), true));
    assert_eq!((nothing.code(), nothing.request_id()), (Code::Internal, Some("nothing")));
}

#[tokio::test(start_paused = true)]
async fn the_other_calls_ask_what_they_say() {
    let client = Fake::default().client(|b| b);
    assert_eq!(client.describe_tasks(["a", "b"]).await.unwrap().model, "a,b");
    assert_eq!(client.describe().await.unwrap().model, "");
    assert!(!client.health().await.unwrap() && client.health_of("liveness").await.unwrap());
}

#[test]
fn a_client_and_its_calls_go_from_thread_to_thread() {
    fn sent<T: Send + Sync>() {}
    fn moved<T: Send>(_: impl FnOnce(Client) -> T) {}
    sent::<Client>();
    sent::<delo_client::Error>();
    moved(|client| client.classify(Sample::text("a")).into_future());
    moved(|client| client.classify_stream(tokio_stream::iter([Sample::text("a")])).into_future());
}
