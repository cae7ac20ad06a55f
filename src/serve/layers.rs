//! Policies around every call, one layer each; [`super::Server`] stacks them.
use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::status::{exhausted, refused};

/// What the layers are stacked around: the services that answer.
trait Inner: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static {}
impl<S> Inner for S where S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static {}

type Answer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// Calls the service that was polled ready, leaving a clone in its place.
fn call<S: Inner>(service: &mut S, request: Request<Body>) -> S::Future {
    let clone = service.clone();
    std::mem::replace(service, clone).call(request)
}

/// Counts calls by method and code and measures how long they take, a call that is hung up on included.
#[derive(Clone, Copy, Debug)]
pub struct Measure;

#[derive(Clone, Debug)]
pub struct Measured<S>(S);

impl<S> Layer<S> for Measure {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured(inner)
    }
}

impl<S: Inner> Service<Request<Body>> for Measured<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let mut measurement = Measurement { method: method(request.uri().path()), since: Instant::now(), code: None };
        let answer = call(&mut self.0, request);
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
fn method(path: &str) -> &'static str {
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

/// Admits calls of one service, so many at a time, until it is told to drain. Other services (health, reflection) pass.
#[derive(Clone, Debug)]
pub struct Admit {
    /// Path prefix of the service.
    prefix: &'static str,
    most: u32,
    /// A permit is held from a call's arrival to the end of its answer.
    permits: Arc<Semaphore>,
    draining: Arc<AtomicBool>,
}

impl Admit {
    /// `prefix`: `/package.Service/`.
    pub fn new(prefix: &'static str, most: usize) -> Self {
        let most = u32::try_from(most).unwrap_or(u32::MAX).min(1 << 20);
        Self { prefix, most, permits: Arc::new(Semaphore::new(most as usize)), draining: Arc::default() }
    }

    /// Refuses calls from here on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Waits until no admitted call is in flight. Call [`Admit::drain`] first, or more may arrive.
    pub async fn idle(&self) {
        // An error would mean a closed semaphore, and nothing closes it.
        let _ = self.permits.acquire_many(self.most).await;
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        if self.draining.load(Ordering::SeqCst) {
            refused("draining");
            return Err(Status::unavailable("the server is shutting down: retry with another"));
        }
        self.permits.clone().try_acquire_owned().map_err(|_| {
            refused("too_many_requests");
            exhausted("too many requests are in flight (server.max_in_flight_requests): retry later", Duration::from_millis(100))
        })
    }
}

#[derive(Clone, Debug)]
pub struct Admitted<S> {
    inner: S,
    policy: Admit,
}

impl<S> Layer<S> for Admit {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, policy: self.clone() }
    }
}

impl<S: Inner> Service<Request<Body>> for Admitted<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        if !request.uri().path().starts_with(self.policy.prefix) {
            return Box::pin(call(&mut self.inner, request));
        }
        let permit = match self.policy.permit() {
            Ok(permit) => permit,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let answer = call(&mut self.inner, request);
        Box::pin(async move { Ok(answer.await?.map(|body| Body::new(AdmittedBody { body, _permit: permit }))) })
    }
}

/// An answer's body that gives its call's permit back when it ends.
struct AdmittedBody {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for AdmittedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A panic in a handler fails its own call, with INTERNAL.
#[derive(Clone, Copy, Debug)]
pub struct IsolatePanics;

#[derive(Clone, Debug)]
pub struct Isolated<S>(S);

impl<S> Layer<S> for IsolatePanics {
    type Service = Isolated<S>;

    fn layer(&self, inner: S) -> Isolated<S> {
        Isolated(inner)
    }
}

impl<S: Inner> Service<Request<Body>> for Isolated<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let answer = call(&mut self.0, request);
        // Handlers share state only behind locks that survive a panic.
        Box::pin(AssertUnwindSafe(answer).catch_unwind().map(|outcome| outcome.unwrap_or_else(|panic| Ok(internal(&*panic).into_http()))))
    }
}

/// What a caller is told of a panic.
pub fn internal(panic: &(dyn Any + Send)) -> Status {
    let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(message, "a request panicked");
    Status::internal("this request failed inside the server; its log says more")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    fn code(response: &Response<Body>) -> Code {
        Status::from_header_map(response.headers()).map_or(Code::Ok, |s| s.code())
    }

    /// Answers OK, but panics where the path asks for it.
    fn service() -> impl Inner {
        tower::service_fn(|request: Request<Body>| async move {
            assert!(!request.uri().path().ends_with("Panic"), "as asked");
            Ok(Response::new(Body::new(http_body_util::Full::new(Bytes::from_static(b"answer")))))
        })
    }

    #[tokio::test]
    async fn a_panic_becomes_internal_and_the_next_call_is_served() {
        let mut service = IsolatePanics.layer(service());
        assert_eq!(code(&service.call(request("/s/Panic")).await.unwrap()), Code::Internal);
        assert_eq!(code(&service.call(request("/s/Fine")).await.unwrap()), Code::Ok);
    }

    #[tokio::test]
    async fn admits_so_many_calls_of_its_service_and_any_of_others() {
        let mut service = Admit::new("/s/", 1).layer(service());
        let first = service.call(request("/s/A")).await.unwrap();
        assert_eq!(code(&service.call(request("/s/A")).await.unwrap()), Code::ResourceExhausted);
        assert_eq!(code(&service.call(request("/health/A")).await.unwrap()), Code::Ok);
        drop(first);
        assert_eq!(code(&service.call(request("/s/A")).await.unwrap()), Code::Ok);
    }

    #[tokio::test]
    async fn draining_refuses_its_service_and_waits_for_calls_in_flight() {
        let admit = Admit::new("/s/", 2);
        let mut service = admit.layer(service());
        let first = service.call(request("/s/A")).await.unwrap();
        admit.drain();
        assert_eq!(code(&service.call(request("/s/A")).await.unwrap()), Code::Unavailable);
        assert_eq!(code(&service.call(request("/health/A")).await.unwrap()), Code::Ok);
        assert!(admit.idle().now_or_never().is_none(), "a call is in flight");
        drop(first);
        admit.idle().await;
    }

    #[test]
    fn paths_that_do_not_exist_share_one_label() {
        assert_eq!(method("/delo.v1.Classifier/Classify"), "Classify");
        assert_eq!(method("/anything/else"), "other");
    }
}
