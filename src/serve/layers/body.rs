//! Bodies of requests and answers, wrapped so that a layer sees the frames that pass.
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// What a poll of a body yields: a frame, an error, or the end.
pub type Polled = Option<Result<Frame<Bytes>, Status>>;

/// A body whose frames pass through `see`. The second argument says that the wrapped body has ended with this
/// frame. `see` is dropped with the body.
pub fn watched(body: Body, see: impl FnMut(Polled, bool) -> Polled + Send + Unpin + 'static) -> Body {
    Body::new(Watched { body, see })
}

/// A body that holds a value until it ends, fails or is dropped.
pub fn holding<T: Send + Unpin + 'static>(body: Body, value: T) -> Body {
    let mut held = Some(value);
    watched(body, move |frame, _| {
        if matches!(frame, None | Some(Err(_))) {
            held.take();
        }
        frame
    })
}

/// An answer's body that ends with another status where `instead` has one for its trailers.
pub fn ending_with(body: Body, mut instead: impl FnMut(&HeaderMap) -> Option<Status> + Send + Unpin + 'static) -> Body {
    watched(body, move |frame, _| match trailers_of(&frame).and_then(&mut instead) {
        Some(status) => Some(trailers(&status)),
        None => frame,
    })
}

/// The data in a frame.
pub fn data_of(frame: &Polled) -> Option<&Bytes> {
    frame.as_ref()?.as_ref().ok()?.data_ref()
}

/// The trailers in a frame.
pub fn trailers_of(frame: &Polled) -> Option<&HeaderMap> {
    frame.as_ref()?.as_ref().ok()?.trailers_ref()
}

/// The last frame of an answer that ends with `status`.
pub fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))
}

struct Watched<F> {
    body: Body,
    see: F,
}

impl<F: FnMut(Polled, bool) -> Polled + Unpin> http_body::Body for Watched<F> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Polled> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let ended = frame.is_none() || this.body.is_end_stream();
        Poll::Ready((this.see)(frame, ended))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
