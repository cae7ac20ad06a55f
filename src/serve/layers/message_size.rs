//! A message that is longer than allowed is refused by the name of the setting that bounds it.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::deadline::Expiry;
use super::{Answer, Inner, Policy, call};
use crate::serve::status::refused;

/// tonic's codec finds a message too long, by its prefix or as it is decompressed, and says so with two
/// codes, OUT_OF_RANGE and RESOURCE_EXHAUSTED, in words that tell a caller nothing of the setting. This puts
/// RESOURCE_EXHAUSTED and the setting in their place, without a time after which to retry: the same message
/// is refused again.
#[derive(Clone, Copy, Debug)]
pub struct MessageSize {
    /// Of paths that begin so; other services have bounds that no setting names.
    pub prefix: &'static str,
    pub setting: &'static str,
    /// What the setting says, in bytes.
    pub most: usize,
}

impl MessageSize {
    /// What the caller gets in place of `headers`, the head of an answer or its trailers.
    fn instead(self, headers: &HeaderMap) -> Option<Status> {
        let status = Status::from_header_map(headers)?;
        let words = match status.code() {
            Code::OutOfRange => "Error, decoded message length too large",
            Code::ResourceExhausted => "Error decompressing: size limit",
            _ => return None,
        };
        if !status.message().starts_with(words) {
            return None;
        }
        refused("invalid_input");
        let Self { setting, most, .. } = self;
        Some(Status::resource_exhausted(format!(
            "the message is longer than the {most} bytes that {setting} allows, decompressed: send a smaller one, or have the setting raised"
        )))
    }
}

impl Policy for MessageSize {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        if !request.uri().path().starts_with(self.prefix) {
            return Box::pin(call(next, request));
        }
        // Of a single message, the answer's head tells; of a stream, its trailers.
        let streams = request.extensions().get::<Arc<Expiry>>().is_none_or(|expiry| expiry.at.is_none());
        let (policy, answer) = (*self, call(next, request));
        Box::pin(async move {
            let response = answer.await?;
            Ok(match policy.instead(response.headers()) {
                Some(status) => status.into_http(),
                None if streams => response.map(|body| Body::new(Trailed { body, policy })),
                None => response,
            })
        })
    }
}

/// An answer's body whose trailers may be replaced.
struct Trailed {
    body: Body,
    policy: MessageSize,
}

impl http_body::Body for Trailed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let trailers = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.trailers_ref());
        let Some(status) = trailers.and_then(|trailers| self.policy.instead(trailers)) else { return Poll::Ready(frame) };
        let mut replaced = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut replaced).map(|()| Frame::trailers(replaced))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
