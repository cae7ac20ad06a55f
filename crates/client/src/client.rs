//! The client and its calls.
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use delo_proto as pb;
use delo_proto::classifier_client::ClassifierClient;
use tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::answer::result;
use crate::retry::{Remaining, Repeatable};
use crate::token::Authorization;
use crate::{Answer, Builder, Call, ConnectError, Description, Outcome, Report, Retry, Sample, SampleResult, StreamCall};

/// A client of a server, or of the servers of a fleet. Clones share connections, token and the budget of
/// retries, and cost next to nothing; any number of tasks may call at once.
///
/// Each method says which errors are its own. Beside them, any call can end with UNAVAILABLE (no connection;
/// the server is starting or stopping), RESOURCE_EXHAUSTED with a time to retry (the server is busy), both
/// after the last attempt, DEADLINE_EXCEEDED, UNAUTHENTICATED and PERMISSION_DENIED.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    settings: Settings,
    /// The server of the next call, counted on without end.
    turn: AtomicUsize,
    remaining: Remaining,
}

pub(crate) struct Settings {
    /// One for each server; not empty.
    pub(crate) channels: Vec<Channel>,
    pub(crate) authorization: Option<Authorization>,
    pub(crate) metadata: MetadataMap,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Retry,
    pub(crate) received_bytes: usize,
    pub(crate) sent_bytes: usize,
}

impl fmt::Debug for Client {
    /// Shows no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { channels, timeout, retry, .. } = &self.0.settings;
        f.debug_struct("Client").field("servers", &channels.len()).field("timeout", timeout).field("retry", retry).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to a server with the default settings: `http://host:port`, or `https://host:port`, whose
    /// certificate the authorities of the operating system have signed.
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub async fn connect(server: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder(server).connect().await
    }

    /// A client with other settings.
    pub fn builder(server: impl Into<String>) -> Builder {
        Builder::new(server.into())
    }

    /// Classifies one sample.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: the sample has neither image nor text, or one that cannot be read or is too large;
    /// [`Error::field`](crate::Error::field) says which. NOT_FOUND: its task is not loaded.
    /// FAILED_PRECONDITION: no task is loaded. RESOURCE_EXHAUSTED without a time to retry: the message is
    /// longer than the server takes.
    pub fn classify(&self, sample: Sample) -> Call<Answer> {
        let request = sample.into_request();
        let id = request.request_id.clone();
        let send = |wire: Wire, request| async move { wire.classifier().classify(request).await };
        Call::new(self, Repeatable::Always, request, send, Answer::from).of_request(Some(id))
    }

    /// Classifies many samples in one call: an answer or an error for each, in their order. Errors of single
    /// samples do not end the call, and those samples are not tried again.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: more samples than the server takes in a call ([`Limits`](crate::Limits), in
    /// [`describe`](Self::describe)). RESOURCE_EXHAUSTED without a time to retry, or OUT_OF_RANGE: the
    /// message is longer than the server takes, or the answer than this client.
    pub fn classify_batch(&self, samples: impl IntoIterator<Item = Sample>) -> Call<Vec<SampleResult>> {
        let request = pb::ClassifyBatchRequest { requests: samples.into_iter().map(Sample::into_request).collect() };
        let send = |wire: Wire, request| async move { wire.classifier().classify_batch(request).await };
        let results = |response: pb::ClassifyBatchResponse| response.results.into_iter().map(result).collect();
        Call::new(self, Repeatable::Always, request, send, results)
    }

    /// Classifies samples as they come, and answers each as soon as it is computed, in any order: give each
    /// sample a request id to tell the answers apart. Awaited, it opens the stream; the answers are those of
    /// [`Answers::next`](crate::Answers::next).
    ///
    /// `samples` is read as fast as the server takes them, in another task; where the answers are not read,
    /// it is not read on. When it ends, the stream ends after the last answer. A stream is not tried again.
    ///
    /// # Errors
    /// The stream cannot be opened.
    pub fn classify_stream<S: Stream<Item = Sample> + Send + 'static>(&self, samples: S) -> StreamCall<S> {
        StreamCall::new(self, samples)
    }

    /// Reports what a sample truly was. A report without a request id is not tried again after UNAVAILABLE:
    /// the server could count it twice.
    ///
    /// # Errors
    /// NOT_FOUND: the answer is not remembered. INVALID_ARGUMENT: nothing is reported, or of no answer.
    pub fn report_outcome(&self, report: Report) -> Call<Outcome> {
        let request = report.into_request();
        let id = Some(request.request_id.clone()).filter(|id| !id.is_empty());
        let repeatable = if id.is_some() { Repeatable::Always } else { Repeatable::WhereRefused };
        let send = |wire: Wire, request| async move { wire.classifier().report_outcome(request).await };
        Call::new(self, repeatable, request, send, Outcome::from).of_request(id)
    }

    /// The server's tasks and their labels, its model, its limits, and how well it routed in the last
    /// minutes.
    ///
    /// # Errors
    /// UNIMPLEMENTED: the server is older than this call.
    pub fn describe(&self) -> Call<Description> {
        self.describe_tasks::<String>([])
    }

    /// As [`describe`](Self::describe), of these tasks alone. One that is not loaded is left out; where none
    /// is named, all are described.
    ///
    /// # Errors
    /// As [`describe`](Self::describe).
    pub fn describe_tasks<T: Into<String>>(&self, tasks: impl IntoIterator<Item = T>) -> Call<Description> {
        let request = pb::DescribeRequest { tasks: tasks.into_iter().map(Into::into).collect() };
        let send = |wire: Wire, request| async move { wire.classifier().describe(request).await };
        Call::new(self, Repeatable::Always, request, send, |description| description)
    }

    /// Whether the server is ready for requests. Needs no token, and is not tried again.
    ///
    /// # Errors
    /// UNAVAILABLE: no server answers.
    pub fn health(&self) -> Call<bool> {
        self.health_of("")
    }

    /// As [`health`](Self::health), of a service of the server: "liveness", whether its process works at all.
    ///
    /// # Errors
    /// UNAVAILABLE: no server answers. NOT_FOUND: there is no health of that name.
    pub fn health_of(&self, service: impl Into<String>) -> Call<bool> {
        let send = |wire: Wire, request| async move { HealthClient::new(wire.channel).check(request).await };
        let serves = |response: HealthCheckResponse| response.status() == ServingStatus::Serving;
        Call::new(self, Repeatable::Never, HealthCheckRequest { service: service.into() }, send, serves)
    }

    pub(crate) fn new(settings: Settings) -> Self {
        let remaining = Remaining::of(&settings.retry);
        Self(Arc::new(Shared { settings, turn: AtomicUsize::new(0), remaining }))
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.0.settings.timeout
    }

    pub(crate) fn retry(&self) -> &Retry {
        &self.0.settings.retry
    }

    pub(crate) fn remaining(&self) -> &Remaining {
        &self.0.remaining
    }

    pub(crate) fn authorization(&self) -> Option<&Authorization> {
        self.0.settings.authorization.as_ref()
    }

    pub(crate) fn common_metadata(&self) -> &MetadataMap {
        &self.0.settings.metadata
    }

    pub(crate) fn longest_sent(&self) -> usize {
        self.0.settings.sent_bytes
    }

    /// The number of a call.
    pub(crate) fn turn(&self) -> usize {
        self.0.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The connection of an attempt; the attempts of a call have successive numbers.
    pub(crate) fn wire(&self, number: usize) -> Wire {
        let Settings { channels, received_bytes, sent_bytes, .. } = &self.0.settings;
        Wire { channel: channels[number % channels.len()].clone(), received_bytes: *received_bytes, sent_bytes: *sent_bytes }
    }
}

/// What one attempt is sent over.
pub(crate) struct Wire {
    channel: Channel,
    received_bytes: usize,
    sent_bytes: usize,
}

impl Wire {
    pub(crate) fn classifier(self) -> ClassifierClient<Channel> {
        let client = ClassifierClient::new(self.channel);
        client.max_decoding_message_size(self.received_bytes).max_encoding_message_size(self.sent_bytes)
    }
}
