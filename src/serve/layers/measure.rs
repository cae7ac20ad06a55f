//! Counts calls by method and code and measures how long they take.
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::{Answer, Inner, Policy, call};

/// Counts calls by method and code and measures how long they take, a call that is hung up on included.
#[derive(Clone, Copy, Debug)]
pub struct Measure;

impl Policy for Measure {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        let mut measurement = Measurement { method: method(request.uri().path()), since: Instant::now(), code: None };
        let answer = call(next, request);
        Box::pin(async move {
            let response = answer.await?;
            // An error without a message says so in its head; anything else ends with trailers.
            measurement.see(response.headers());
            Ok(response.map(|body| Body::new(MeasuredBody { body, measurement })))
        })
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
        // Dropped before any code was sent: the caller has hung up.
        let code = code_name(self.code.unwrap_or(Code::Cancelled));
        metrics::counter!("delo_requests_total", "method" => self.method, "code" => code).increment(1);
        metrics::histogram!("delo_request_duration_seconds", "method" => self.method).record(self.since.elapsed());
    }
}

/// The methods that exist, by what metrics call them.
pub(super) fn method(path: &str) -> &'static str {
    match path {
        "/delo.v1.Classifier/Classify" => "Classify",
        "/delo.v1.Classifier/ClassifyBatch" => "ClassifyBatch",
        "/delo.v1.Classifier/ClassifyStream" => "ClassifyStream",
        "/delo.v1.Classifier/ReportOutcome" => "ReportOutcome",
        "/delo.v1.Admin/LoadPartition" => "LoadPartition",
        "/delo.v1.Admin/UnloadPartition" => "UnloadPartition",
        "/delo.v1.Admin/RollbackPartition" => "RollbackPartition",
        "/delo.v1.Admin/PromoteTrial" => "PromoteTrial",
        "/delo.v1.Admin/AbortTrial" => "AbortTrial",
        "/delo.v1.Admin/ListPartitions" => "ListPartitions",
        "/delo.v1.Admin/GetStatus" => "GetStatus",
        "/delo.v1.Admin/SyncRegistry" => "SyncRegistry",
        "/grpc.health.v1.Health/Check" => "HealthCheck",
        "/grpc.health.v1.Health/Watch" => "HealthWatch",
        _ if path.starts_with("/grpc.reflection.") => "Reflection",
        _ => "other",
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

/// An answer's body that reads the code in its trailers.
struct MeasuredBody {
    body: Body,
    measurement: Measurement,
}

impl http_body::Body for MeasuredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.measurement.see(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_has_a_label_and_paths_that_do_not_exist_share_one() {
        let files = FileDescriptorSet::decode(delo_proto::DESCRIPTORS).unwrap().file;
        let mut known = 0;
        for (package, service) in files.iter().flat_map(|file| file.service.iter().map(|service| (file.package(), service))) {
            for rpc in &service.method {
                assert_eq!(method(&format!("/{package}.{}/{}", service.name(), rpc.name())), rpc.name());
                known += 1;
            }
        }
        assert!(known >= 12, "{known}");
        assert_eq!(method("/anything/else"), "other");
    }
}
