//! Streams end with UNAVAILABLE when the server drains, soon and without losing an answer: nothing else would
//! end them.
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::{Code, Status};

use super::body::{Polled, data_of, ending_with, trailers};
use super::framing::Framing;
use super::{Answer, Inner, Policy, call};
use crate::serve::methods::{DrainKind, method};
use crate::serve::reason::Reason;

/// Bytes of a stream's samples that may have been sent before the client could know of the drain: HTTP/2's
/// window of a stream, as hyper sets it.
const WINDOW: usize = 1 << 20;

/// Ends streams once the token is cancelled. Samples that have arrived are answered first.
#[derive(Clone, Debug)]
pub struct Drain(pub CancellationToken);

impl Policy for Drain {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        let drain = || Box::pin(self.0.clone().cancelled_owned());
        match method(request.uri().path()).drain {
            DrainKind::Finish => Box::pin(call(next, request)),
            DrainKind::EndAnswer => {
                let (answer, drain) = (call(next, request), drain());
                Box::pin(async move { Ok(answer.await?.map(|body| Body::new(EndingAnswer { body, drain, ended: false }))) })
            }
            DrainKind::EndAfterSamples => {
                let cut = Arc::new(AtomicBool::new(false));
                let of_stream = cut.clone();
                let samples =
                    |body| Samples { body, framing: Framing::default(), left: WINDOW, drain: drain(), cut: of_stream, ended: false };
                let answer = call(next, request.map(|body| Body::new(samples(body))));
                // The handler ends a stream well that was ended here; its client did not end it.
                let instead = move |trailers: &HeaderMap| {
                    let ends_well = Status::from_header_map(trailers).is_none_or(|status| status.code() == Code::Ok);
                    (ends_well && cut.load(Ordering::Relaxed)).then(shutting_down)
                };
                Box::pin(async move { Ok(answer.await?.map(|body| ending_with(body, instead))) })
            }
        }
    }
}

fn shutting_down() -> Status {
    Reason::Draining.mark(&Status::unavailable("the server is shutting down: open the stream with another"))
}

/// The samples of a stream, which end after a whole one when the server drains.
struct Samples {
    body: Body,
    framing: Framing,
    /// Bytes that are still taken after the drain has begun.
    left: usize,
    drain: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The stream was ended from here; only ever set.
    cut: Arc<AtomicBool>,
    ended: bool,
}

impl Samples {
    fn end(&mut self) {
        self.ended = true;
        self.cut.store(true, Ordering::Relaxed);
    }
}

impl http_body::Body for Samples {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Polled> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let draining = this.drain.as_mut().poll(cx).is_ready();
        if draining && this.left == 0 && this.framing.at_an_end() {
            this.end();
            return Poll::Ready(None);
        }
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            if draining && this.framing.at_an_end() {
                this.end();
                return Poll::Ready(None);
            }
            return Poll::Pending;
        };
        let Some(data) = data_of(&frame) else { return Poll::Ready(frame) };
        let end = this.framing.last_end(data);
        if draining {
            this.left = this.left.saturating_sub(data.len());
            // A client that never pauses is not given the time to end the sample that it has begun.
            if let Some(end) = end.filter(|_| this.left == 0) {
                let data = data.slice(..end);
                this.end();
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// An answer that ends when the server drains and the answer pauses.
struct EndingAnswer {
    body: Body,
    drain: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl http_body::Body for EndingAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Polled> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        ready!(this.drain.as_mut().poll(cx));
        this.ended = true;
        Poll::Ready(Some(trailers(&shutting_down())))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::channel::mpsc;
    use futures::{FutureExt, StreamExt};
    use http::Response;
    use http_body_util::{BodyExt, StreamBody};
    use tower::Service;

    use super::*;

    /// A body of the data that is sent, and its sender.
    fn body() -> (mpsc::UnboundedSender<Vec<u8>>, Body) {
        let (send, sent) = mpsc::unbounded();
        (send, Body::new(StreamBody::new(sent.map(|data: Vec<u8>| Ok::<_, Status>(Frame::data(Bytes::from(data)))))))
    }

    /// A gRPC message of `bytes` bytes.
    fn message(bytes: u32) -> Vec<u8> {
        [&[0][..], &bytes.to_be_bytes(), &vec![7; bytes as usize]].concat()
    }

    /// What the handler receives of a stream while the server drains, and the code that the stream ends with.
    async fn drained(before: &[Vec<u8>], after: &[Vec<u8>]) -> (Vec<u8>, Code) {
        let token = CancellationToken::new();
        let (send, samples) = body();
        let (hand_on, mut received) = mpsc::unbounded();
        // Hands on what it receives, and then ends well.
        let mut service = Drain(token.clone()).layer(tower::service_fn(move |request: Request<Body>| {
            let hand_on = hand_on.clone();
            async move {
                let received = request.into_body().into_data_stream().map(move |data| hand_on.unbounded_send(data.unwrap()).unwrap());
                let mut end = HeaderMap::new();
                Status::new(Code::Ok, "").add_header(&mut end).unwrap();
                let frames = received.filter_map(|()| async { None }).chain(futures::stream::iter([Ok::<_, Status>(Frame::trailers(end))]));
                Ok::<_, Infallible>(Response::new(Body::new(StreamBody::new(frames))))
            }
        }));
        let request = Request::builder().uri("/delo.v1.Classifier/ClassifyStream").body(samples).unwrap();
        let mut answer = service.call(request).await.unwrap();
        before.iter().for_each(|data| send.unbounded_send(data.clone()).unwrap());
        assert!(answer.body_mut().frame().now_or_never().is_none(), "it waits for samples");
        token.cancel();
        after.iter().for_each(|data| send.unbounded_send(data.clone()).unwrap());
        let end = answer.body_mut().frame().await.unwrap().unwrap().into_trailers().unwrap();
        drop(answer);
        drop(service);
        let mut all = Vec::new();
        while let Some(data) = received.next().await {
            all.extend_from_slice(&data);
        }
        (all, Status::from_header_map(&end).unwrap().code())
    }

    #[tokio::test]
    async fn a_stream_in_which_nothing_moves_ends_at_once_with_unavailable() {
        assert_eq!(drained(&[], &[]).await, (vec![], Code::Unavailable));
        let one = message(3);
        assert_eq!(drained(std::slice::from_ref(&one), &[]).await, (one.clone(), Code::Unavailable));
    }

    #[tokio::test]
    async fn a_sample_that_is_arriving_is_read_to_its_end() {
        let one = message(1000);
        let (begun, rest) = one.split_at(10);
        assert_eq!(drained(&[begun.to_vec()], &[rest.to_vec()]).await, (one.clone(), Code::Unavailable));
        // Samples that have arrived when the drain begins are read.
        assert_eq!(drained(&[], &[one.clone(), one.clone()]).await, ([&one[..], &one].concat(), Code::Unavailable));
    }

    #[tokio::test]
    async fn a_client_that_never_pauses_is_cut_after_a_whole_sample() {
        let one = message(300_000);
        // Pieces that end in the middle of samples.
        let sent: Vec<u8> = std::iter::repeat_n(&one[..], 20).flatten().copied().collect();
        let pieces: Vec<_> = sent.chunks(70_000).map(<[u8]>::to_vec).collect();
        let (received, code) = drained(&[], &pieces).await;
        assert_eq!((received.len() % one.len(), code), (0, Code::Unavailable));
        assert!((WINDOW..WINDOW + 2 * one.len()).contains(&received.len()), "{}", received.len());
    }

    #[tokio::test]
    async fn a_watcher_receives_the_last_status_and_then_unavailable() {
        let token = CancellationToken::new();
        let (send, statuses) = body();
        let statuses = Arc::new(std::sync::Mutex::new(Some(statuses)));
        let mut service = Drain(token.clone()).layer(tower::service_fn(move |_: Request<Body>| {
            let body = statuses.lock().unwrap().take().unwrap();
            async move { Ok::<_, Infallible>(Response::new(body)) }
        }));
        let request = Request::builder().uri("/grpc.health.v1.Health/Watch").body(Body::empty()).unwrap();
        let mut answer = service.call(request).await.unwrap();
        send.unbounded_send(b"not serving".to_vec()).unwrap();
        token.cancel();
        let last = answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(&last[..], b"not serving");
        let end = answer.body_mut().frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(Status::from_header_map(&end).unwrap().code(), Code::Unavailable);
    }
}
