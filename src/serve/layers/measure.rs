//! Counts calls by method and code and measures how long they take.
use std::time::Instant;

use http::{HeaderMap, Request};
use tonic::body::Body;
use tonic::{Code, Status};

use super::body::{trailers_of, watched};
use super::{Answer, Inner, Policy, call};
use crate::metric_table::{REQUEST_SECONDS, REQUESTS};
use crate::serve::methods::{RequiredRole, method, methods};

/// Counts calls by method and code and measures how long they take, a call that its client cancels included.
#[derive(Clone, Copy, Debug)]
pub struct Measure;

impl Policy for Measure {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        let mut measurement = Measurement { method: method(request.uri().path()).label, since: Instant::now(), code: None };
        let answer = call(next, request);
        Box::pin(async move {
            let response = answer.await?;
            // An error without a message says so in its head; anything else ends with trailers.
            measurement.see(response.headers());
            Ok(response.map(|body| {
                watched(body, move |frame, _| {
                    if let Some(trailers) = trailers_of(&frame) {
                        measurement.see(trailers);
                    }
                    frame
                })
            }))
        })
    }
}

/// The codes that callers of the classifier meet.
const OF_CALLERS: [Code; 9] = [
    Code::Ok,
    Code::Cancelled,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Internal,
    Code::Unavailable,
];

/// Makes the series of every method's calls appear at 0: Prometheus sees an increase only of a series that was there
/// before it. Of methods that do not classify, with the two codes by which a server is judged.
pub fn show() {
    for method in methods() {
        let codes = if method.role == RequiredRole::Classify { &OF_CALLERS[..] } else { &[Code::Ok, Code::Internal] };
        codes.iter().for_each(|code| REQUESTS.with([method.label, code_name(*code)]).increment(0));
    }
}

/// One call; recorded when dropped.
struct Measurement {
    method: &'static str,
    since: Instant,
    code: Option<Code>,
}

impl Measurement {
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = Some(status.code());
        }
    }
}

impl Drop for Measurement {
    fn drop(&mut self) {
        // Dropped before any code was sent: the client has cancelled the call.
        let code = code_name(self.code.unwrap_or(Code::Cancelled));
        REQUESTS.with([self.method, code]).increment(1);
        REQUEST_SECONDS.with([self.method]).record(self.since.elapsed());
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
