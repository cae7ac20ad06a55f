//! Samples as they come, and their answers.
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use delo_proto as pb;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tokio_stream::{Stream, StreamExt};
use tonic::Streaming;
use tonic::metadata::MetadataMap;

use crate::answer::result;
use crate::call::Options;
use crate::client::Client;
use crate::{Error, Sample, SampleResult, response};

/// A stream that is opened when it is awaited. `S`: the stream of samples.
#[must_use = "a stream is opened when it is awaited"]
pub struct StreamCall<S> {
    client: Client,
    samples: S,
    options: Options,
    sample_timeout: Option<Duration>,
}

impl<S> fmt::Debug for StreamCall<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamCall").field("sample_timeout", &self.sample_timeout).finish_non_exhaustive()
    }
}

impl<S> StreamCall<S> {
    pub(crate) fn new(client: &Client, samples: S) -> Self {
        Self { client: client.clone(), samples, options: Options::default(), sample_timeout: None }
    }

    /// How long the whole stream may take. Where this is not called, there is no limit: the client's timeout
    /// is for single calls.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(Some(timeout));
        self
    }

    /// How long each sample may take on the server, from its arrival there. Where this is not called, the
    /// stream's timeout, and without one the server's default.
    pub fn sample_timeout(mut self, timeout: Duration) -> Self {
        self.sample_timeout = Some(timeout);
        self
    }

    /// As [`Call::traceparent`](crate::Call::traceparent).
    pub fn traceparent(self, traceparent: &str) -> Self {
        self.metadata("traceparent", traceparent)
    }

    /// As [`Call::metadata`](crate::Call::metadata).
    pub fn metadata(mut self, name: &str, value: &str) -> Self {
        self.options.header(name, value);
        self
    }
}

impl<S: Stream<Item = Sample> + Send + 'static> IntoFuture for StreamCall<S> {
    type Output = Result<Answers, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { client, samples, options, sample_timeout } = self;
            let timeout = options.timeout.flatten();
            let end = timeout.and_then(|timeout| Some((Instant::now().checked_add(timeout)?, timeout)));
            let (alive, dropped) = oneshot::channel();
            let opened = async {
                let metadata = client.metadata(&options, sample_timeout.or(timeout)).await?;
                let samples = Samples { samples: Box::pin(samples), dropped };
                let mut request = tonic::Request::new(samples.map(Sample::into_request));
                *request.metadata_mut() = metadata;
                let wire = client.wire(client.turn());
                wire.classifier().classify_stream(request).await.map_err(Error::of_call)
            };
            let opened = match end {
                None => opened.await,
                Some((at, timeout)) => timeout_at(at, opened).await.unwrap_or_else(|_| Err(Error::late(timeout))),
            };
            let (metadata, answers, _) = opened.map_err(|error| error.of_request(None, 1))?.into_parts();
            let end = end.map(|(at, timeout)| (Box::pin(sleep_until(at)), timeout));
            Ok(Answers { answers: Some(Open { answers, _alive: alive }), metadata, end })
        })
    }
}

/// The answers of a stream, each as soon as it is computed, in any order: they are told apart by their
/// request id.
///
/// An item is `Ok` with the answer to one sample or its error; after `Err`, the stream itself has ended:
/// samples without an answer by then may be sent again where the error [`is_retryable`](Error::is_retryable).
/// Dropping it cancels the call.
pub struct Answers {
    /// `None` after the end.
    answers: Option<Open>,
    metadata: MetadataMap,
    end: Option<(Pin<Box<Sleep>>, Duration)>,
}

struct Open {
    answers: Streaming<pb::ClassifyResult>,
    /// Ends the samples when dropped: a call lasts as long as either of its directions.
    _alive: oneshot::Sender<()>,
}

/// Samples that end when their answers are dropped.
struct Samples<S> {
    samples: Pin<Box<S>>,
    dropped: oneshot::Receiver<()>,
}

impl<S: Stream> Stream for Samples<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if Pin::new(&mut self.dropped).poll(cx).is_ready() { Poll::Ready(None) } else { self.samples.as_mut().poll_next(cx) }
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("ended", &self.answers.is_none()).finish_non_exhaustive()
    }
}

impl Answers {
    /// The next answer. `None`: the samples have ended, and all are answered.
    ///
    /// # Errors
    /// The outer one: the stream has ended. UNAVAILABLE: the server stops, or the connection broke;
    /// DEADLINE_EXCEEDED: the stream's timeout is over. The inner one is of one sample.
    pub async fn next(&mut self) -> Option<Result<SampleResult, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The headers with which the server opened the stream.
    pub fn metadata(&self) -> &MetadataMap {
        &self.metadata
    }

    /// The W3C trace context of the server's span.
    pub fn traceparent(&self) -> Option<&str> {
        response::traceparent(&self.metadata)
    }
}

impl Stream for Answers {
    type Item = Result<SampleResult, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { answers: Some(open), end, .. } = &mut *self else { return Poll::Ready(None) };
        let late = match end {
            Some((end, timeout)) => end.as_mut().poll(cx).is_ready().then_some(*timeout),
            None => None,
        };
        let ended = match late {
            Some(timeout) => Some(Err(Error::late(timeout).of_request(None, 1))),
            None => match ready!(Pin::new(&mut open.answers).poll_next(cx)) {
                Some(Ok(message)) => return Poll::Ready(Some(Ok(result(message)))),
                Some(Err(status)) => Some(Err(Error::of_call(status).of_request(None, 1))),
                None => None,
            },
        };
        self.answers = None;
        Poll::Ready(ended)
    }
}
