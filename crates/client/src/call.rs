//! One call: its options, its attempts, its deadline.
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::client::{Client, Wire};
use crate::retry::{Repeatable, wait_after};
use crate::{Error, Response};

/// The longest time that is sent to a server; longer ones mean as much.
const LONGEST_SENT: Duration = Duration::from_secs(99_999_999);

type Sent<A> = Pin<Box<dyn Future<Output = Result<tonic::Response<A>, Status>> + Send>>;

/// A call that is made when it is awaited. `A`: what it is answered with.
///
/// Awaited as it is, it returns the answer; [`response`](Self::response) also returns what came with it.
#[must_use = "a call is made when it is awaited"]
pub struct Call<A> {
    client: Client,
    options: Options,
    /// Of its one sample, for its error.
    request_id: Option<String>,
    repeatable: Repeatable,
    /// Of the message.
    bytes: usize,
    send: Box<dyn Fn(Wire, MetadataMap) -> Sent<A> + Send + Sync>,
}

impl<A> fmt::Debug for Call<A> {
    /// Shows no sample: an image is long, and a text is somebody's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("request_id", &self.request_id).finish_non_exhaustive()
    }
}

impl<A: 'static> Call<A> {
    pub(crate) fn new<M, R, F>(
        client: &Client,
        repeatable: Repeatable,
        message: M,
        send: impl Fn(Wire, tonic::Request<M>) -> F + Send + Sync + 'static,
        answer: impl Fn(R) -> A + Copy + Send + Sync + 'static,
    ) -> Self
    where
        M: prost::Message + Clone + Send + Sync + 'static,
        F: Future<Output = Result<tonic::Response<R>, Status>> + Send + 'static,
    {
        let bytes = message.encoded_len();
        let send = move |wire: Wire, metadata: MetadataMap| -> Sent<A> {
            let mut request = tonic::Request::new(message.clone());
            *request.metadata_mut() = metadata;
            let sent = send(wire, request);
            Box::pin(async move { Ok(sent.await?.map(answer)) })
        };
        Self { client: client.clone(), options: Options::default(), request_id: None, repeatable, bytes, send: Box::new(send) }
    }

    pub(crate) fn of_request(mut self, id: Option<String>) -> Self {
        self.request_id = id;
        self
    }

    /// How long the call may take, all attempts and waits included; the server is told what is left. `None`:
    /// as long as the server's own setting allows each attempt. Where this is not called, the client's
    /// [`timeout`](crate::Builder::timeout).
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.options.timeout = Some(timeout.into());
        self
    }

    /// The caller's W3C trace context (`00-…`), which the server's spans join.
    pub fn traceparent(self, traceparent: &str) -> Self {
        self.metadata("traceparent", traceparent)
    }

    /// Sends a header with every attempt of this call. What no header can be makes the call end with
    /// INVALID_ARGUMENT.
    pub fn metadata(mut self, name: &str, value: &str) -> Self {
        self.options.header(name, value);
        self
    }

    /// Makes the call, and returns the answer with its metadata: the trace, the server's timing, the
    /// attempts.
    ///
    /// # Errors
    /// The method of [`Client`] that made this call says which.
    pub async fn response(self) -> Result<Response<A>, Error> {
        let Self { client, options, request_id, repeatable, bytes, send } = self;
        if bytes > client.longest_sent() {
            let message = format!("the message has {bytes} bytes, and this client sends at most {}", client.longest_sent());
            return Err(Error::local(Code::ResourceExhausted, message, None).of_request(request_id, 0));
        }
        let mut attempts = 0;
        let answered = client.answered(&options, repeatable, &send, &mut attempts).await;
        answered.map_err(|error| error.of_request(request_id, attempts))
    }
}

impl Client {
    async fn answered<A>(
        &self,
        options: &Options,
        repeatable: Repeatable,
        send: &(dyn Fn(Wire, MetadataMap) -> Sent<A> + Send + Sync),
        attempts: &mut u32,
    ) -> Result<Response<A>, Error> {
        let timeout = options.timeout.unwrap_or(self.timeout());
        // A deadline that is too far away to be told is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let turn = self.turn();
        let answered = async {
            loop {
                let metadata = self.metadata(options, deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))).await?;
                let wire = self.wire(turn.wrapping_add(*attempts as usize));
                *attempts += 1;
                let error = match send(wire, metadata).await {
                    Ok(response) => {
                        self.remaining().answered();
                        return Ok(Response::new(response, *attempts));
                    }
                    Err(status) => Error::of_call(status),
                };
                match wait_after(&error, *attempts, self.retry(), repeatable, deadline, self.remaining()) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(error),
                }
            }
        };
        match deadline.zip(timeout) {
            None => answered.await,
            Some((deadline, timeout)) => timeout_at(deadline, answered).await.unwrap_or_else(|_| Err(Error::late(timeout))),
        }
    }

    /// The headers of one attempt. `left`: the time that it may take.
    pub(crate) async fn metadata(&self, options: &Options, left: Option<Duration>) -> Result<MetadataMap, Error> {
        if let Some(wrong) = &options.wrong {
            return Err(Error::local(Code::InvalidArgument, format!("{wrong:?} cannot be sent in a header"), None));
        }
        let mut request = tonic::Request::new(());
        *request.metadata_mut() = self.common_metadata().clone();
        if let Some(left) = left {
            request.set_timeout(left.min(LONGEST_SENT));
        }
        let metadata = request.metadata_mut();
        for (name, value) in &options.headers {
            metadata.insert(name.clone(), value.clone());
        }
        if let Some(authorization) = self.authorization() {
            let header = authorization.header().await;
            let header = header.map_err(|error| Error::local(Code::Unauthenticated, error.to_string(), Some(error.into())))?;
            metadata.insert("authorization", header);
        }
        Ok(request.into_parts().0)
    }
}

/// The options of one call.
#[derive(Clone, Default)]
pub(crate) struct Options {
    /// `None`: the client's.
    pub(crate) timeout: Option<Option<Duration>>,
    headers: Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>,
    /// The name of the first header that is none.
    wrong: Option<String>,
}

impl Options {
    pub(crate) fn header(&mut self, name: &str, value: &str) {
        match header(name, value) {
            Some(header) => self.headers.push(header),
            None => {
                self.wrong.get_or_insert(name.to_owned());
            }
        }
    }
}

pub(crate) fn header(name: &str, value: &str) -> Option<(MetadataKey<Ascii>, MetadataValue<Ascii>)> {
    Some((MetadataKey::from_bytes(name.as_bytes()).ok()?, value.parse().ok()?))
}

impl<A: Send + 'static> IntoFuture for Call<A> {
    type Output = Result<A, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.response().await?.into_answer()) })
    }
}
