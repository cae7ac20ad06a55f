//! What a client sends wrong is told as its fault. Of bytes that are no message, tonic says INTERNAL, as if
//! the server were broken; metrics, alerts and the client's author are to know better.
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::{Answer, Inner, Policy, call};
use crate::serve::status::clipped;

/// Bytes of a gRPC frame before its message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// How tonic's answers to bytes that are no message begin, and what is added to them. It has no type for
/// them. `tests/serve/network.rs` tries each.
const UNREADABLE: [(&str, &str); 6] = [
    ("failed to decode Protobuf message", "send the message of this method, encoded as the proto file says"),
    ("protocol error: received message with invalid compression flag", "let a gRPC library frame the message"),
    ("protocol error: received message with compressed-flag", "name the compression in the header grpc-encoding"),
    ("Unexpected EOF decoding stream", "the request ends in the middle of a message: send all of it"),
    ("Missing request message", "send one message"),
    ("Error decompressing", "compress the message as the header grpc-encoding says"),
];

/// Answers INVALID_ARGUMENT to bytes that are no message and to a second message where one is wanted,
/// CANCELLED where the request broke off.
#[derive(Clone, Copy, Debug)]
pub struct ClientFault;

impl Policy for ClientFault {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        let path = request.uri().path();
        let streams = path == "/delo.v1.Classifier/ClassifyStream" || path.starts_with("/grpc.reflection.");
        let broken = Arc::new(AtomicBool::new(false));
        let only = (!streams).then(OneMessage::default);
        let request = request.map(|body| Body::new(Arriving { body, only, broken: broken.clone() }));
        let answer = call(next, request);
        Box::pin(async move {
            let response = answer.await?;
            if let Some(status) = attributed(response.headers(), &broken) {
                return Ok(status.into_http());
            }
            Ok(response.map(|body| Body::new(Leaving { body, broken })))
        })
    }
}

/// The status to tell in place of the one in `headers`, where that one is the client's fault.
fn attributed(headers: &HeaderMap, broken: &AtomicBool) -> Option<Status> {
    let status = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)?;
    if broken.load(Ordering::Relaxed) {
        return Some(Status::cancelled("the call broke off before its request had arrived"));
    }
    let internal = Some(&status).filter(|status| status.code() == Code::Internal)?;
    let (_, advice) = UNREADABLE.iter().find(|(words, _)| internal.message().starts_with(words))?;
    Some(Status::invalid_argument(clipped(format!("{}: {advice}", internal.message().trim_end_matches('.')))))
}

/// A request's body, watched for what is wrong with it.
struct Arriving {
    body: Body,
    /// Of a call with one message.
    only: Option<OneMessage>,
    /// Set where the connection fails or the client resets the call.
    broken: Arc<AtomicBool>,
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.broken.store(true, Ordering::Relaxed),
            Some(Ok(frame)) => {
                if let (Some(data), Some(only)) = (frame.data_ref(), &mut self.only)
                    && only.is_exceeded_by(data)
                {
                    let message = "more than one message: this method takes one, so make a call for each, or use the method for streams";
                    return Poll::Ready(Some(Err(Status::invalid_argument(message))));
                }
            }
            None => {}
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

/// Follows one framed message through the bytes of a request.
#[derive(Debug, Default)]
struct OneMessage {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are there.
    seen: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl OneMessage {
    /// Whether `data`, which comes next, goes on after the message.
    fn is_exceeded_by(&mut self, data: &[u8]) -> bool {
        let (head, rest) = data.split_at(data.len().min(PREFIX - self.seen));
        self.prefix[self.seen..self.seen + head.len()].copy_from_slice(head);
        self.seen += head.len();
        if self.seen < PREFIX {
            return false;
        }
        if !head.is_empty() {
            let [_, a, b, c, d] = self.prefix;
            self.left = u32::from_be_bytes([a, b, c, d]) as usize;
        }
        let exceeded = rest.len() > self.left;
        self.left = self.left.saturating_sub(rest.len());
        exceeded
    }
}

/// An answer's body whose last word may be about the client's fault.
struct Leaving {
    body: Body,
    broken: Arc<AtomicBool>,
}

impl http_body::Body for Leaving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let trailers = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.trailers_ref());
        let Some(status) = trailers.and_then(|trailers| attributed(trailers, &self.broken)) else { return Poll::Ready(frame) };
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
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
    use super::*;

    #[test]
    fn finds_what_follows_the_first_message_however_it_is_cut() {
        let bytes = [0, 0, 0, 0, 2, 7, 7, 0, 0, 0, 0, 0];
        for cut in 0..7 {
            let mut only = OneMessage::default();
            assert!(!only.is_exceeded_by(&bytes[..cut]) && !only.is_exceeded_by(&bytes[cut..7]), "{cut}");
            assert!(!only.is_exceeded_by(&[]) && only.is_exceeded_by(&bytes[7..8]), "{cut}");
            let mut only = OneMessage::default();
            assert!(!only.is_exceeded_by(&bytes[..cut]) && only.is_exceeded_by(&bytes[cut..]), "{cut}");
        }
        let empty = [0, 0, 0, 0, 0];
        assert!(!OneMessage::default().is_exceeded_by(&empty) && OneMessage::default().is_exceeded_by(&[empty, empty].concat()));
    }
}
