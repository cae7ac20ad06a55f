//! The deadline of a call. A call ends by the clock, whatever has arrived of it, and whether or not its
//! answer is read.
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::SizeHint;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;

use super::body::{Polled, trailers, watched};
use super::{Answer, Inner, Policy, call};
use crate::config;
use crate::serve::deadline::within;
use crate::serve::methods::{DeadlineKind, method};
use crate::serve::reason::Reason;

/// A handler that has the whole message keeps the deadline by itself, sample by sample, and gets this long to
/// answer.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How long the calls of a port may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub unary: config::Deadline,
    /// How long nothing may move in a stream, in either direction.
    pub stream_idle: Duration,
}

/// Gives every call that is no stream its [`Deadline`], and ends calls when their time is over.
#[derive(Clone, Copy, Debug)]
pub struct Expire(pub Bounds);

/// When a call must be answered; in the extensions of the request of every call with a
/// [`DeadlineKind::Unary`].
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub std::time::Instant);

/// What has moved in a call so far.
#[derive(Debug)]
struct Progress {
    started: Instant,
    /// The whole request has arrived. Only ever set.
    arrived: AtomicBool,
    /// Milliseconds from `started` to the latest frame, of the request or of the answer.
    moved: AtomicU64,
}

impl Progress {
    fn starting() -> Self {
        Self { started: Instant::now(), arrived: AtomicBool::new(false), moved: AtomicU64::new(0) }
    }

    fn frame(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(millis, Ordering::Relaxed);
    }

    fn request_has_arrived(&self) {
        self.arrived.store(true, Ordering::Relaxed);
    }

    fn has_arrived(&self) -> bool {
        self.arrived.load(Ordering::Relaxed)
    }

    fn latest_frame(&self) -> Instant {
        self.started + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }
}

/// When a call ends by the clock.
#[derive(Clone, Copy, Debug)]
enum End {
    At(Instant),
    /// When nothing has moved for this long.
    Idle(Duration),
}

/// One call, whose time a task of its own watches: the transport does not poll the answer of a client that
/// reads nothing, so the answer could not end itself.
#[derive(Debug)]
struct Call {
    end: End,
    progress: Progress,
    /// Cancelled when the time is over.
    over: CancellationToken,
    /// The answer's body. It holds the call's permit and, of a stream, the rest of its requests. Dropped when
    /// the time is over.
    answer: Mutex<Option<Body>>,
}

impl Call {
    fn new(end: End) -> Self {
        Self { end, progress: Progress::starting(), over: CancellationToken::new(), answer: Mutex::new(None) }
    }

    /// Waits until the time is over.
    async fn expire(&self) {
        match self.end {
            End::At(at) => {
                sleep_until(at).await;
                if self.progress.has_arrived() {
                    sleep(LAST_WORD).await;
                }
            }
            End::Idle(idle) => loop {
                let until = self.progress.latest_frame() + idle;
                if Instant::now() >= until {
                    return;
                }
                sleep_until(until).await;
            },
        }
    }

    fn answer(&self) -> MutexGuard<'_, Option<Body>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_answer(&self) {
        // A body may hold anything: it is dropped when the lock is free again.
        let answer = self.answer().take();
        drop(answer);
    }

    /// Keeps the answer's body until the time is over; a body that comes later is dropped.
    fn keep(&self, body: Body) {
        let mut answer = self.answer();
        // Read under the lock: the watch cancels before it takes the lock.
        if !self.over.is_cancelled() {
            *answer = Some(body);
        }
    }

    fn status(&self) -> Status {
        let status = Status::deadline_exceeded(match (self.end, self.progress.has_arrived()) {
            (End::Idle(_), _) => "nothing moved in this stream for too long (server.stream_idle_seconds): open another",
            (End::At(_), false) => "the deadline passed before the whole request had arrived: send it at once, or allow more time",
            (End::At(_), true) => "the deadline passed before the answer was ready: allow more time, or retry later",
        });
        Reason::DeadlineExceeded.refuse(&status)
    }
}

/// A call and the task that watches its time. Dropping it ends the watch and drops the answer.
struct WatchedCall {
    call: Arc<Call>,
    watch: AbortHandle,
}

impl WatchedCall {
    fn start(call: Arc<Call>) -> Self {
        let watched = call.clone();
        let watch = tokio::spawn(async move {
            watched.expire().await;
            watched.over.cancel();
            watched.drop_answer();
        });
        Self { call, watch: watch.abort_handle() }
    }
}

impl Drop for WatchedCall {
    fn drop(&mut self) {
        self.watch.abort();
        self.call.drop_answer();
    }
}

impl Policy for Expire {
    fn around<S: Inner>(&self, mut request: Request<Body>, next: &mut S) -> Answer {
        let end = match method(request.uri().path()).deadline {
            DeadlineKind::Never => return Box::pin(call(next, request)),
            DeadlineKind::Idle => End::Idle(self.0.stream_idle),
            DeadlineKind::Unary => {
                let requested = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
                let at = Instant::now() + within(requested, &self.0.unary);
                request.extensions_mut().insert(Deadline(at.into_std()));
                End::At(at)
            }
        };
        let expiring = Arc::new(Call::new(end));
        let arriving = expiring.clone();
        let request = request.map(|body| {
            watched(body, move |frame, ended| {
                arriving.progress.frame();
                if ended {
                    arriving.progress.request_has_arrived();
                }
                frame
            })
        });
        let watched_call = WatchedCall::start(expiring.clone());
        let answer = call(next, request);
        Box::pin(async move {
            let response = tokio::select! {
                biased;
                response = answer => response?,
                () = expiring.over.cancelled() => return Ok(expiring.status().into_http()),
            };
            let (head, body) = response.into_parts();
            let ended = http_body::Body::is_end_stream(&body);
            expiring.keep(body);
            let over = Box::pin(expiring.over.clone().cancelled_owned());
            Ok(Response::from_parts(head, Body::new(ExpiringAnswer { ended, over, watched_call })))
        })
    }
}

/// An answer's body that ends with DEADLINE_EXCEEDED when its time is over. The body itself is in the
/// [`Call`].
struct ExpiringAnswer {
    ended: bool,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    watched_call: WatchedCall,
}

impl http_body::Body for ExpiringAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Polled> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let call = &this.watched_call.call;
        if let Some(body) = &mut *call.answer()
            && let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx)
        {
            call.progress.frame();
            this.ended = frame.is_none() || body.is_end_stream();
            return Poll::Ready(frame);
        }
        ready!(this.over.as_mut().poll(cx));
        this.ended = true;
        Poll::Ready(Some(trailers(&call.status())))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        // A body that is cut off has fewer bytes than its hint says.
        if self.ended { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt;
    use tower::Service;

    use super::*;

    /// Has no frame, and says when it is dropped.
    struct Silent(Arc<AtomicBool>);

    impl Drop for Silent {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Polled> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_answer_is_dropped_when_its_time_is_over() {
        let unary = config::Deadline { default: Duration::from_secs(30), max: Duration::from_secs(100) };
        let bounds = Bounds { unary, stream_idle: Duration::from_secs(30) };
        for path in ["/delo.v1.Classifier/Classify", "/delo.v1.Classifier/ClassifyStream"] {
            let dropped = Arc::new(AtomicBool::new(false));
            let silent = dropped.clone();
            let mut service = Expire(bounds).layer(tower::service_fn(move |_: Request<Body>| {
                let body = Body::new(Silent(silent.clone()));
                async move { Ok::<_, Infallible>(Response::new(body)) }
            }));
            let mut unread = service.call(Request::builder().uri(path).body(Body::empty()).unwrap()).await.unwrap();
            sleep(Duration::from_secs(29)).await;
            assert!(!dropped.load(Ordering::Relaxed), "{path}");
            sleep(Duration::from_secs(2)).await;
            assert!(dropped.load(Ordering::Relaxed), "{path}");
            let last = unread.body_mut().frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(Status::from_header_map(&last).unwrap().code(), tonic::Code::DeadlineExceeded, "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_answered_too_late_ends_at_its_deadline() {
        let unary = config::Deadline { default: Duration::from_secs(30), max: Duration::from_secs(100) };
        let mut service = Expire(Bounds { unary, stream_idle: Duration::from_secs(1) })
            .layer(tower::service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>()));
        let begun = Instant::now();
        let request = Request::builder().uri("/delo.v1.Classifier/Classify").header("grpc-timeout", "50S").body(Body::empty());
        let answer = service.call(request.unwrap()).await.unwrap();
        assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), tonic::Code::DeadlineExceeded);
        assert!((49..=51).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    }
}
