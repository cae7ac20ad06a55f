//! Until when a call may take. A call ends then, whatever has arrived of it, and whether or not its answer is read.
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;

use super::admit::{Admitted, Place};
use super::{Answer, Inner, Policy, call};
use crate::config;
use crate::serve::deadline::within;
use crate::serve::status::refused;

/// A handler that has the whole message keeps the deadline by itself, sample by sample, and gets this long to say so.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How long the calls of a port may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub unary: config::Deadline,
    /// How long nothing may move in a stream, in either direction.
    pub stream_idle: Duration,
}

/// Gives every call its [`Expiry`], and ends it when that is over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Bounds);

/// When one call ends by the clock; an `Arc` of it is in the extensions of the request.
#[derive(Debug)]
pub struct Expiry {
    /// `None`: a stream, which may be open for as long as something moves in it.
    pub at: Option<Instant>,
    started: Instant,
    /// Cancelled when the time is over, once and for ever.
    over: CancellationToken,
    /// The whole request has arrived. Only ever set.
    arrived: AtomicBool,
    /// Milliseconds from `started` to the latest frame of a stream.
    moved: AtomicU64,
    /// What the call holds until it ends or its time is over; given back by whoever is first.
    permit: Mutex<Option<Admitted>>,
    /// The answer's body, and in it what a stream still has of its requests; dropped when the time is over. The transport does not poll the body of a
    /// client that reads nothing, so that it can't be left to the body to end itself.
    answer: Mutex<Option<Body>>,
}

impl Default for Expiry {
    /// Never.
    fn default() -> Self {
        Self::at(None)
    }
}

impl Expiry {
    fn at(at: Option<Instant>) -> Self {
        Self {
            at,
            started: Instant::now(),
            over: CancellationToken::new(),
            arrived: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            permit: Mutex::new(None),
            answer: Mutex::new(None),
        }
    }

    /// Lets the call hold `permit`. One whose time is over holds nothing.
    pub fn hold(&self, permit: Admitted) {
        let mut held = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock: `end` cancels before it takes the lock.
        if !self.over.is_cancelled() {
            *held = Some(permit);
        }
    }

    /// Gives the permit back.
    pub fn release(&self) {
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn end(&self) {
        self.over.cancel();
        self.release();
        self.drop_answer();
    }

    fn answer(&self) -> MutexGuard<'_, Option<Body>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_answer(&self) {
        // A body may hold anything: it is dropped when the lock is free again.
        let answer = self.answer().take();
        drop(answer);
    }

    /// Leaves the answer's body here until the time is over; one that comes later is dropped.
    fn keep(&self, body: Body) {
        let mut answer = self.answer();
        // Looked at under the lock: `end` cancels before it takes the lock.
        if !self.over.is_cancelled() {
            *answer = Some(body);
        }
    }

    fn touch(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(millis, Ordering::Relaxed);
    }

    /// Done when the time is over.
    async fn watch(&self, idle: Duration) {
        if let Some(at) = self.at {
            tokio::time::sleep_until(at.into()).await;
            if self.arrived.load(Ordering::Relaxed) {
                tokio::time::sleep(LAST_WORD).await;
            }
            return;
        }
        loop {
            let until = self.started + Duration::from_millis(self.moved.load(Ordering::Relaxed)) + idle;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until.into()).await;
        }
    }

    fn status(&self) -> Status {
        refused("deadline_exceeded");
        Status::deadline_exceeded(match (self.at, self.arrived.load(Ordering::Relaxed)) {
            (None, _) => "nothing moved in this stream for too long (server.stream_idle_seconds): open another",
            (Some(_), false) => "the deadline passed before the whole request had arrived: send it at once, or allow more time",
            (Some(_), true) => "the deadline passed before the answer was ready: allow more time, or retry later",
        })
    }
}

/// Ends the watch with the call.
struct Watched {
    expiry: Arc<Expiry>,
    watch: AbortHandle,
}

impl Watched {
    fn start(expiry: Arc<Expiry>, idle: Duration) -> Self {
        let watched = expiry.clone();
        // In a task of its own: an answer that nobody reads is never polled, and yet its time passes.
        let watch = tokio::spawn(async move {
            watched.watch(idle).await;
            watched.end();
        });
        Self { expiry, watch: watch.abort_handle() }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.abort();
        self.expiry.release();
        self.expiry.drop_answer();
    }
}

impl Policy for Deadline {
    fn around<S: Inner>(&self, mut request: Request<Body>, next: &mut S) -> Answer {
        let path = request.uri().path();
        if path.starts_with("/grpc.health.v1.Health/") {
            // Whoever watches health may do so for ever.
            return Box::pin(call(next, request));
        }
        let streams = path == "/delo.v1.Classifier/ClassifyStream" || path.starts_with("/grpc.reflection.");
        let at = (!streams).then(|| {
            let asked = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
            Instant::now() + within(asked, &self.0.unary)
        });
        let expiry = Arc::new(Expiry::at(at));
        request.extensions_mut().insert(expiry.clone());
        let request = request.map(|body| Body::new(Arriving { body, expiry: expiry.clone() }));
        let watched = Watched::start(expiry.clone(), self.0.stream_idle);
        let answer = call(next, request);
        Box::pin(async move {
            let response = tokio::select! {
                biased;
                response = answer => response?,
                () = expiry.over.cancelled() => return Ok(expiry.status().into_http()),
            };
            let over = Box::pin(expiry.over.clone().cancelled_owned());
            let (mut head, body) = response.into_parts();
            let place = head.extensions.remove();
            let ended = http_body::Body::is_end_stream(&body);
            expiry.keep(body);
            Ok(Response::from_parts(head, Body::new(Leaving { ended, over, watched, _place: place })))
        })
    }
}

/// A request's body that tells its call's expiry of what arrives.
struct Arriving {
    body: Body,
    expiry: Arc<Expiry>,
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.expiry.touch();
        if frame.is_none() || self.body.is_end_stream() {
            self.expiry.arrived.store(true, Ordering::Relaxed);
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

/// An answer's body that ends with DEADLINE_EXCEEDED when its time is over. The body itself is in the call's [`Expiry`].
struct Leaving {
    ended: bool,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    watched: Watched,
    /// The call's place among those of its client, as long as the transport has something of the call: also when its time is over.
    _place: Option<Place>,
}

impl http_body::Body for Leaving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let expiry = &this.watched.expiry;
        if let Some(body) = &mut *expiry.answer()
            && let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx)
        {
            expiry.touch();
            this.ended = frame.is_none() || body.is_end_stream();
            return Poll::Ready(frame);
        }
        ready!(this.over.as_mut().poll(cx));
        this.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(expiry.status().add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        // Of a body that is cut off, less comes than it hinted at.
        if self.ended { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

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

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_reads_is_dropped_when_its_time_is_over() {
        let unary = config::Deadline { default: Duration::from_millis(50), max: Duration::from_secs(100) };
        let bounds = Bounds { unary, stream_idle: Duration::from_millis(50) };
        for path in ["/delo.v1.Classifier/Classify", "/delo.v1.Classifier/ClassifyStream"] {
            let dropped = Arc::new(AtomicBool::new(false));
            let silent = dropped.clone();
            let mut service = Deadline(bounds).layer(tower::service_fn(move |_: Request<Body>| {
                let body = Body::new(Silent(silent.clone()));
                async move { Ok::<_, Infallible>(Response::new(body)) }
            }));
            let mut unread = service.call(Request::builder().uri(path).body(Body::empty()).unwrap()).await.unwrap();
            assert!(!dropped.load(Ordering::Relaxed), "{path}");
            tokio::time::timeout(Duration::from_secs(10), async {
                while !dropped.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .expect("dropped");
            let last = http_body_util::BodyExt::frame(unread.body_mut()).await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(Status::from_header_map(&last).unwrap().code(), tonic::Code::DeadlineExceeded, "{path}");
        }
    }
}
