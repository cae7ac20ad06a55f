//! What can fail: connecting, reading a file, and a call.
use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use delo_proto as pb;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use crate::response;

/// Any error.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read {}: {source}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Why there is no token to send.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Its file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The function that returns it failed.
    #[error("the token's source failed: {0}")]
    Source(#[source] BoxError),
    /// It is empty, longer than 4096 bytes, or not printable ASCII.
    #[error("a token has 1 to 4096 bytes of printable ASCII, this one has not")]
    Malformed,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server's address is none.
    #[error("{server:?} is no server: {reason}; give it as http://127.0.0.1:50051 or https://localhost:50051")]
    Address {
        /// As it was given.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificates do not fit each other or the address.
    #[error("{0}")]
    Tls(String),
    /// A setting that is sent in headers cannot be sent: metadata or the user agent.
    #[error("{0:?} cannot be sent in a header")]
    Header(String),
    /// The token cannot be sent.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No server can be reached.
    #[error("no connection to {server}: {reason}")]
    Unreachable {
        /// As it was given; the first of several servers.
        server: String,
        /// What was tried and how it failed.
        reason: String,
        /// The failure itself; `None`: the time to connect is over.
        source: Option<tonic::transport::Error>,
    },
}

/// A call, or one sample of a batch or stream, got no answer.
///
/// Its text is one line: the code, the message, the field at fault and the time to retry.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Failure>);

/// A field of a request, and what is wrong with it (`google.rpc.BadRequest`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldViolation {
    /// The field: `image`, `reject`…
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{}", self.line())]
struct Failure {
    code: Code,
    message: String,
    violations: Vec<FieldViolation>,
    retry_after: Option<Duration>,
    reason: Option<String>,
    request_id: Option<String>,
    attempts: u32,
    metadata: MetadataMap,
    source: Option<BoxError>,
}

impl Failure {
    fn line(&self) -> String {
        let mut line = format!("{:?}: {}", self.code, self.message);
        if let Some(violation) = self.violations.first() {
            line.push_str(&format!(" (field {})", violation.field));
        }
        if let Some(wait) = self.retry_after {
            line.push_str(&format!(" (retry in {:.1} s)", wait.as_secs_f64()));
        }
        line
    }
}

impl Error {
    /// An error that this client makes, without a call.
    pub(crate) fn local(code: Code, message: impl Into<String>, source: Option<BoxError>) -> Self {
        Self(Box::new(Failure {
            code,
            message: message.into(),
            violations: Vec::new(),
            retry_after: None,
            reason: None,
            request_id: None,
            attempts: 0,
            metadata: MetadataMap::new(),
            source,
        }))
    }

    /// No answer came in time.
    pub(crate) fn late(timeout: Duration) -> Self {
        Self::local(Code::DeadlineExceeded, format!("no answer within {timeout:?}"), None)
    }

    /// Of a call that ended with a status.
    pub(crate) fn of_call(status: Status) -> Self {
        let details = status.get_error_details();
        let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        let violation = |v: &tonic_types::FieldViolation| FieldViolation { field: v.field.clone(), description: v.description.clone() };
        let (code, message) = match status.source() {
            // The server sent the status.
            None => (status.code(), status.message().to_owned()),
            Some(source) => (code_on_the_way(status.code(), source), causes(&status)),
        };
        Self(Box::new(Failure {
            code,
            message,
            violations: violations.iter().map(violation).collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            reason: details.error_info().map(|info| info.reason.clone()),
            metadata: status.metadata().clone(),
            source: status.source().is_some().then(|| status.into()),
            request_id: None,
            attempts: 0,
        }))
    }

    /// Of one sample of a batch or stream.
    pub(crate) fn of_sample(error: pb::Error, request_id: String) -> Self {
        let mut made = Self::local(Code::from_i32(error.code), error.message, None);
        let failure = &mut *made.0;
        if !error.field.is_empty() {
            failure.violations = vec![FieldViolation { field: error.field, description: failure.message.clone() }];
        }
        failure.retry_after = error.retry_after_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        failure.request_id = Some(request_id).filter(|id| !id.is_empty());
        made
    }

    pub(crate) fn of_request(mut self, request_id: Option<String>, attempts: u32) -> Self {
        self.0.request_id = request_id;
        self.0.attempts = attempts;
        self
    }

    /// The gRPC status code. `Unavailable` also where the connection broke before the answer.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What is wrong, for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The fields of the request that are at fault (`google.rpc.BadRequest`).
    pub fn field_violations(&self) -> &[FieldViolation] {
        &self.0.violations
    }

    /// The first field of the request that is at fault: `image`, `reject`…
    pub fn field(&self) -> Option<&str> {
        self.0.violations.first().map(|violation| violation.field.as_str())
    }

    /// Why the server refused, for programs (`google.rpc.ErrorInfo`): `QUEUE_FULL`, `UNKNOWN_TASK`… `None`
    /// for one sample of a batch or stream, and where the server gave no reason.
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }

    /// How long the server asks to wait before the request is sent again. `None`: it says nothing.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The request id of the sample at fault, or of the answer that an outcome was reported for.
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// How many times the call was sent. 0: never, or the error is of one sample of a batch or stream.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Headers and trailers of the last attempt. Empty where no server sent any.
    pub fn metadata(&self) -> &MetadataMap {
        &self.0.metadata
    }

    /// The W3C trace context of the server's span.
    pub fn traceparent(&self) -> Option<&str> {
        response::traceparent(&self.0.metadata)
    }

    /// Where the time went before the sample was refused, as
    /// [`Response::server_timing`](crate::Response::server_timing).
    pub fn server_timing(&self) -> Vec<(String, Duration)> {
        response::server_timing(&self.0.metadata)
    }

    /// Whether the same request may be answered later: UNAVAILABLE, and RESOURCE_EXHAUSTED with a time to
    /// retry. RESOURCE_EXHAUSTED without one is a message that is too long, which would be refused again.
    pub fn is_retryable(&self) -> bool {
        match self.0.code {
            Code::Unavailable => true,
            Code::ResourceExhausted => self.0.retry_after.is_some(),
            _ => false,
        }
    }
}

/// The code of a status that this machine made because of `source`. tonic gives a broken connection one of
/// several codes.
fn code_on_the_way(code: Code, source: &(dyn StdError + 'static)) -> Code {
    let mut in_transport = false;
    let mut next = Some(source);
    while let Some(cause) = next {
        if cause.is::<TimeoutExpired>() {
            return Code::DeadlineExceeded;
        }
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return if error.is_io() || error.is_go_away() { Code::Unavailable } else { code };
        }
        in_transport |= cause.is::<tonic::transport::Error>();
        next = cause.source();
    }
    if in_transport { Code::Unavailable } else { code }
}

/// An error and what it came from, on one line.
pub(crate) fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.downcast_ref::<Status>().map_or_else(|| error.to_string(), |status| status.message().to_owned());
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(&format!(": {text}"));
        }
        next = cause.source();
    }
    line
}
