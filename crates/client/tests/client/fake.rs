//! A fake server, in memory, so that tests run on tokio's paused clock: it refuses as a test tells it, and
//! then answers.
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use delo_client::{Builder, Channel, Client, Code, Retry};
use delo_proto as pb;
use delo_proto::classifier_server::{Classifier, ClassifierServer};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::{ErrorDetails, StatusExt};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Clones are the same server.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
pub struct State {
    /// How the next calls end, one after another.
    pub refusals: VecDeque<Status>,
    /// How long each call takes.
    pub delay: Duration,
    pub seen: Vec<Seen>,
    /// What a text is answered with, beside its request id.
    pub answer: pb::ClassifyResponse,
    /// Headers of an answer.
    pub headers: Vec<(&'static str, &'static str)>,
    /// How a stream ends after its samples.
    pub stream_end: Option<Status>,
}

/// A call that was received.
pub struct Seen {
    pub at: Instant,
    pub metadata: MetadataMap,
    /// Of Classify.
    pub request: pb::ClassifyRequest,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.metadata.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The time that the call may take, as the client told it.
    pub fn timeout(&self) -> Option<Duration> {
        let header = self.metadata.get("grpc-timeout")?.to_str().unwrap();
        let (number, unit) = header.split_at(header.len() - 1);
        let number: u64 = number.parse().unwrap();
        Some(match unit {
            "n" => Duration::from_nanos(number),
            "u" => Duration::from_micros(number),
            "m" => Duration::from_millis(number),
            "S" => Duration::from_secs(number),
            other => panic!("{other}"),
        })
    }
}

impl Fake {
    pub fn refusing(refusals: impl IntoIterator<Item = Status>) -> Self {
        let fake = Self::default();
        fake.state().refusals.extend(refusals);
        fake
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn calls(&self) -> usize {
        self.state().seen.len()
    }

    /// The times between the calls, in milliseconds.
    pub fn waits(&self) -> Vec<u128> {
        self.state().seen.windows(2).map(|pair| (pair[1].at - pair[0].at).as_millis()).collect()
    }

    pub fn routes(&self) -> Routes {
        Routes::new(ClassifierServer::new(self.clone())).add_service(HealthServer::new(self.clone()))
    }

    /// A connection to this server, in memory.
    pub fn channel(&self) -> Channel {
        self.channel_through(|connection| Ok(Some(connection)))
    }

    /// As [`Self::channel`]; `pass` may refuse a connection, or take the server's end of it.
    pub fn channel_through(&self, pass: impl Fn(DuplexStream) -> io::Result<Option<DuplexStream>> + Send + Sync + 'static) -> Channel {
        let (connections, incoming) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
        tokio::spawn(Server::builder().add_routes(self.routes()).serve_with_incoming(UnboundedReceiverStream::new(incoming)));
        let connector = tower::service_fn(move |_| {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let passed = pass(theirs).map(|theirs| theirs.map(|theirs| connections.send(Ok(theirs)).unwrap()));
            async move { passed.map(|_| TokioIo::new(ours)) }
        });
        Endpoint::from_static("http://fake").connect_with_connector_lazy(connector)
    }

    /// A client of this server, with settings.
    pub fn client(&self, set: impl FnOnce(Builder) -> Builder) -> Client {
        set(Client::builder("http://fake").retry(exact())).over_channel(self.channel()).unwrap()
    }

    async fn next<T>(&self, request: &Request<T>, sample: pb::ClassifyRequest) -> Result<(), Status> {
        let (delay, refusal) = {
            let mut state = self.state();
            state.seen.push(Seen { at: Instant::now(), metadata: request.metadata().clone(), request: sample });
            (state.delay, state.refusals.pop_front())
        };
        tokio::time::sleep(delay).await;
        refusal.map_or(Ok(()), Err)
    }

    /// "bad", "busy" and "nothing" are texts that get no answer.
    fn result(&self, request: pb::ClassifyRequest) -> pb::ClassifyResult {
        let request_id = request.request_id.clone();
        let result = match request.text() {
            "bad" => {
                pb::classify_result::Result::Error(pb::Error { code: 3, message: "no".into(), field: "text".into(), ..Default::default() })
            }
            "busy" => pb::classify_result::Result::Error(pb::Error {
                code: 8,
                message: "full".into(),
                retry_after_seconds: Some(1.5),
                ..Default::default()
            }),
            "nothing" => return pb::ClassifyResult { request_id, result: None },
            _ => {
                let answer = self.state().answer.clone();
                pb::classify_result::Result::Response(pb::ClassifyResponse { request_id: request_id.clone(), ..answer })
            }
        };
        pb::ClassifyResult { request_id, result: Some(result) }
    }
}

/// Waits without chance.
pub fn exact() -> Retry {
    Retry::default().jitter(0.0)
}

/// A refusal, with the time to retry in milliseconds.
pub fn refusal(code: Code, retry_after_millis: Option<u64>) -> Status {
    let mut details = ErrorDetails::new();
    if let Some(millis) = retry_after_millis {
        details.set_retry_info(Some(Duration::from_millis(millis)));
    }
    details.add_bad_request_violation("image", "is none").set_error_info("QUEUE_FULL", "delo", [("a".to_owned(), "b".to_owned())]);
    Status::with_error_details(code, "no", details)
}

/// RESOURCE_EXHAUSTED, with the time to retry in milliseconds.
pub fn busy(retry_after_millis: u64) -> Status {
    refusal(Code::ResourceExhausted, Some(retry_after_millis))
}

#[tonic::async_trait]
impl Classifier for Fake {
    type ClassifyStreamStream = Answers<pb::ClassifyResult>;

    async fn classify(&self, request: Request<pb::ClassifyRequest>) -> Result<Response<pb::ClassifyResponse>, Status> {
        let sample = request.get_ref().clone();
        self.next(&request, sample).await?;
        let state = self.state();
        let request_id = request.into_inner().request_id;
        let mut response = Response::new(pb::ClassifyResponse { request_id, ..state.answer.clone() });
        for (name, value) in &state.headers {
            response.metadata_mut().insert(*name, value.parse().unwrap());
        }
        Ok(response)
    }

    async fn classify_batch(&self, request: Request<pb::ClassifyBatchRequest>) -> Result<Response<pb::ClassifyBatchResponse>, Status> {
        self.next(&request, Default::default()).await?;
        let results = request.into_inner().requests.into_iter().map(|sample| self.result(sample)).collect();
        Ok(Response::new(pb::ClassifyBatchResponse { results }))
    }

    async fn classify_stream(
        &self,
        request: Request<Streaming<pb::ClassifyRequest>>,
    ) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        self.next(&request, Default::default()).await?;
        let (fake, end) = (self.clone(), self.state().stream_end.take());
        let answers = request.into_inner().map(move |sample| Ok(fake.result(sample?)));
        Ok(Response::new(Box::pin(answers.chain(tokio_stream::iter(end.map(Err))))))
    }

    async fn report_outcome(&self, request: Request<pb::ReportOutcomeRequest>) -> Result<Response<pb::ReportOutcomeResponse>, Status> {
        self.next(&request, Default::default()).await?;
        Ok(Response::new(pb::ReportOutcomeResponse { counted: true, ..Default::default() }))
    }

    async fn describe(&self, request: Request<pb::DescribeRequest>) -> Result<Response<pb::DescribeResponse>, Status> {
        self.next(&request, Default::default()).await?;
        Ok(Response::new(pb::DescribeResponse { model: request.into_inner().tasks.join(","), ..Default::default() }))
    }
}

#[tonic::async_trait]
impl Health for Fake {
    type WatchStream = Answers<HealthCheckResponse>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.next(&request, Default::default()).await?;
        let status = if request.get_ref().service.is_empty() { 2 } else { 1 };
        Ok(Response::new(HealthCheckResponse { status }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented(""))
    }
}
