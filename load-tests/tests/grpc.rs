//! The generator against a real gRPC server whose answers are known.
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use delo_load::open_loop;
use delo_load::pb::classifier_server::{Classifier, ClassifierServer};
use delo_load::pb::{
    ClassifyBatchRequest, ClassifyBatchResponse, ClassifyRequest, ClassifyResponse, ClassifyResult, DescribeRequest, DescribeResponse,
    ReportOutcomeRequest, ReportOutcomeResponse, Score,
};
use delo_load::plan::Plan;
use delo_load::samples::{self, Sample};
use delo_load::scenario::{Mix, Scenario};
use delo_load::tally::Tally;
use delo_load::target::{Server, TargetError};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

/// Classifies every sample as an animal and refuses every fourth call. A text `late` is answered with
/// DEADLINE_EXCEEDED, a text `never` not at all.
#[derive(Clone, Default)]
struct Animals {
    calls: Arc<AtomicU64>,
    shapes: Arc<Mutex<BTreeSet<(bool, bool)>>>,
    outcomes: Arc<Mutex<Vec<ReportOutcomeRequest>>>,
}

#[tonic::async_trait]
impl Classifier for Animals {
    async fn classify(&self, request: Request<ClassifyRequest>) -> Result<Response<ClassifyResponse>, Status> {
        assert!(request.metadata().contains_key("grpc-timeout"), "every call carries its deadline");
        let request = request.into_inner();
        self.shapes.lock().unwrap().insert((request.image.is_some(), request.text.is_some()));
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        if request.text.as_deref() == Some("late") {
            return Err(Status::deadline_exceeded("late"));
        }
        if request.text.as_deref() == Some("never") {
            std::future::pending::<()>().await;
        }
        if n % 4 == 3 {
            return Err(Status::resource_exhausted("full"));
        }
        let scores = vec![Score { label: "animal-mammal".into(), score: 1.0 }];
        Ok(Response::new(ClassifyResponse {
            request_id: n.to_string(),
            task: "animals-nature".into(),
            scores,
            ..ClassifyResponse::default()
        }))
    }

    async fn classify_batch(&self, _: Request<ClassifyBatchRequest>) -> Result<Response<ClassifyBatchResponse>, Status> {
        Err(Status::unimplemented("not sent"))
    }

    type ClassifyStreamStream = tokio_stream::Empty<Result<ClassifyResult, Status>>;

    async fn classify_stream(&self, _: Request<tonic::Streaming<ClassifyRequest>>) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        Err(Status::unimplemented("not sent"))
    }

    async fn report_outcome(&self, request: Request<ReportOutcomeRequest>) -> Result<Response<ReportOutcomeResponse>, Status> {
        self.outcomes.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ReportOutcomeResponse::default()))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Err(Status::unimplemented("not sent"))
    }
}

async fn listen(service: Animals) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(ClassifierServer::new(service));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    url
}

fn scenario() -> Scenario {
    Scenario::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/steady.toml")).unwrap()
}

/// Every test item once, with a deadline that is not met.
fn items() -> Arc<Plan> {
    let scenario = Scenario { deadline_seconds: 30.0, ..scenario() };
    Arc::new(Plan::new(&scenario, samples::read(&scenario).unwrap()))
}

fn at_once(count: usize) -> impl Iterator<Item = Duration> {
    std::iter::repeat_n(Duration::ZERO, count)
}

#[tokio::test]
async fn counts_answers_by_code_and_against_the_truth() {
    let service = Animals::default();
    let url = listen(service.clone()).await;
    let server = Arc::new(Server::connect(&url, 3, items(), 1.0).await.unwrap());
    // Every test item once.
    let tally = open_loop::run(Arc::clone(&server), at_once(986), 10_000).await;
    assert_eq!((tally.offered, tally.dropped), (986, 0));
    assert_eq!((tally.count(Code::Ok), tally.count(Code::ResourceExhausted)), (740, 246));
    assert_eq!(server.truth.answers.load(Ordering::Relaxed), 740);
    let right = server.truth.right_task.load(Ordering::Relaxed);
    // 93 of the 986 items are animals or plants; a quarter of the calls is refused.
    assert!((40..=93).contains(&right), "{right} right");
    assert!(server.truth.right_label.load(Ordering::Relaxed) <= right);
    assert_eq!(service.shapes.lock().unwrap().len(), 3, "both, image alone, text alone");
}

#[tokio::test]
async fn truth_is_reported_for_answered_requests() {
    let service = Animals::default();
    let url = listen(service.clone()).await;
    let server = Arc::new(Server::connect(&url, 1, items(), 1.0).await.unwrap());
    open_loop::run(Arc::clone(&server), at_once(200), 10_000).await;
    while server.truth.reported.load(Ordering::Relaxed) < 150 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let outcomes = service.outcomes.lock().unwrap();
    let ids: BTreeSet<_> = outcomes.iter().map(|o| o.request_id.clone()).collect();
    assert_eq!((outcomes.len(), ids.len()), (150, 150));
    // The labels of a task that did not answer mean nothing to it.
    assert!(outcomes.iter().all(|o| o.true_labels.is_empty() == (o.true_task != "animals-nature")));
}

/// Five calls with this text and deadline.
async fn five(text: &str, deadline_seconds: f64) -> Tally {
    let url = listen(Animals::default()).await;
    let sample = Sample { image: Vec::new().into(), text: text.into(), task: "objects".into(), labels: Vec::new() };
    let mix = Mix { both: 0.0, image: 0.0, text: 1.0 };
    let plan = Plan::new(&Scenario { deadline_seconds, mix, ..scenario() }, vec![sample]);
    let server = Arc::new(Server::connect(&url, 1, Arc::new(plan), 0.0).await.unwrap());
    open_loop::run(server, (0..5).map(Duration::from_millis), 10).await
}

#[tokio::test]
async fn a_call_without_an_answer_ends_when_and_as_its_server_says() {
    // tonic's server ends it at its deadline by this code; the generator would wait much longer, and call it
    // DEADLINE_EXCEEDED.
    assert_eq!(five("never", 0.05).await.count(Code::Cancelled), 5);
}

#[tokio::test]
async fn what_the_server_lets_expire_is_counted_so() {
    let tally = five("late", 30.0).await;
    assert_eq!(tally.count(Code::DeadlineExceeded), 5);
    // Answered before its deadline, none was late; the histogram's least value is a microsecond.
    assert_eq!((tally.overrun.count(), tally.overrun.quantile(1.0)), (5, Some(1e-6)));
}

#[tokio::test]
async fn nothing_listening_is_said_before_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Server::connect(&url, 1, items(), 0.0).await.unwrap_err();
    assert!(matches!(error, TargetError::Connect { .. }), "{error}");
}
