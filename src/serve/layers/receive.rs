//! A bound on the bytes of request messages that are being received, over all calls of a port.
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::deadline::Expiry;
use super::{Answer, Holding, Inner, Policy, call};
use crate::serve::status::{exhausted, refused};

/// Bytes of a gRPC frame before its message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Takes the bytes of messages from one budget as they arrive. Clones share it.
#[derive(Clone, Debug)]
pub struct Receive {
    most: usize,
    /// Bytes received by calls in flight; of a stream, those of the message that is arriving.
    taken: Arc<AtomicUsize>,
    /// The setting that bounds them, for the message.
    setting: &'static str,
}

impl Receive {
    pub fn new(most: usize, setting: &'static str) -> Self {
        Self { most, taken: Arc::default(), setting }
    }

    fn take(&self, bytes: usize) -> Result<(), Status> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= self.most);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(drop).map_err(|_| {
            refused("receive_memory");
            let message = format!("too many bytes of requests are being received ({}): retry later", self.setting);
            exhausted(message, Duration::from_millis(250))
        })
    }
}

/// What one call has taken; given back when dropped. An `Arc` of it is in the extensions of the request.
#[derive(Debug)]
pub struct Share {
    budget: Receive,
    taken: AtomicUsize,
}

impl Share {
    fn take(&self, bytes: usize) -> Result<(), Status> {
        self.budget.take(bytes)?;
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Has the call hold at least `bytes`: a message that came compressed is larger than what arrived of it.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED
    pub fn cover(&self, bytes: usize) -> Result<(), Status> {
        match bytes.saturating_sub(self.taken.load(Ordering::Relaxed)) {
            0 => Ok(()),
            more => self.take(more),
        }
    }

    fn give_back(&self) {
        self.budget.taken.fetch_sub(self.taken.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Policy for Receive {
    fn around<S: Inner>(&self, mut request: Request<Body>, next: &mut S) -> Answer {
        let share = Arc::new(Share { budget: self.clone(), taken: AtomicUsize::new(0) });
        // A stream has no end by the clock, and what it has received is handed on message by message.
        let streams = request.extensions().get::<Arc<Expiry>>().is_some_and(|expiry| expiry.at.is_none());
        let messages = streams.then(Messages::default);
        request.extensions_mut().insert(share.clone());
        let request = request.map(|body| Body::new(Counted { body, share: share.clone(), messages }));
        let answer = call(next, request);
        Box::pin(async move {
            let response = answer.await?;
            // Of a stream, messages are still to come. Any other call has read its own, and must not hold it until the client reads the answer.
            Ok(if streams { response.map(|body| Holding::around(body, share)) } else { response })
        })
    }
}

/// A request's body, counted.
struct Counted {
    body: Body,
    share: Arc<Share>,
    /// Where messages end, in a stream.
    messages: Option<Messages>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) else { return Poll::Ready(frame) };
        if let Some(messages) = &mut self.messages
            && messages.last_end(data).is_some()
        {
            self.share.give_back();
        }
        match self.share.take(data.len()) {
            Ok(()) => Poll::Ready(frame),
            Err(status) => Poll::Ready(Some(Err(status))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Follows the frames of gRPC through the bytes of a stream.
#[derive(Debug, Default)]
pub struct Messages {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are there.
    seen: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Messages {
    /// Whether all that has come are whole messages.
    pub fn at_an_end(&self) -> bool {
        self.seen == 0
    }

    /// Where in `data`, which comes next, its last message ends; `None`: no message ends in it.
    pub fn last_end(&mut self, data: &[u8]) -> Option<usize> {
        let (mut ended, mut at) = (None, 0);
        while at < data.len() {
            let rest = data.len() - at;
            if self.seen < PREFIX {
                let taken = rest.min(PREFIX - self.seen);
                self.prefix[self.seen..self.seen + taken].copy_from_slice(&data[at..at + taken]);
                self.seen += taken;
                at += taken;
                if self.seen == PREFIX {
                    let [_, a, b, c, d] = self.prefix;
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                }
            } else {
                let taken = rest.min(self.left);
                self.left -= taken;
                at += taken;
            }
            if self.seen == PREFIX && self.left == 0 {
                self.seen = 0;
                ended = Some(at);
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use tower::Service;

    use super::*;

    #[test]
    fn gives_back_exactly_what_a_call_took() {
        let budget = Receive::new(10, "a.setting");
        let share = || Share { budget: budget.clone(), taken: AtomicUsize::new(0) };
        let (one, other) = (share(), share());
        one.take(6).unwrap();
        let refusal = other.take(5).unwrap_err();
        assert!(refusal.code() == tonic::Code::ResourceExhausted && refusal.message().contains("a.setting"), "{refusal:?}");
        other.take(4).unwrap();
        drop(one);
        other.take(6).unwrap();
        drop(other);
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn an_answer_that_nobody_reads_holds_nothing_of_the_budget() {
        let budget = Receive::new(100, "a.setting");
        let mut service = budget.layer(tower::service_fn(|request: Request<Body>| async move {
            let received = http_body_util::BodyExt::collect(request.into_body()).await;
            Ok::<_, Infallible>(
                received.map_or_else(Status::into_http, |all| Response::new(Body::new(http_body_util::Full::new(all.to_bytes())))),
            )
        }));
        let mut unread = Vec::new();
        for _ in 0..5 {
            let body = Body::new(http_body_util::Full::new(Bytes::from_static(&[0; 60])));
            let response = service.call(Request::builder().uri("/s/A").body(body).unwrap()).await.unwrap();
            assert!(Status::from_header_map(response.headers()).is_none(), "{response:?}");
            unread.push(response);
        }
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_compressed_message_counts_as_large_as_it_is() {
        let budget = Receive::new(100, "a.setting");
        let share = Share { budget: budget.clone(), taken: AtomicUsize::new(0) };
        share.take(10).unwrap();
        share.cover(80).unwrap();
        share.cover(80).unwrap();
        assert_eq!(budget.taken.load(Ordering::Relaxed), 80);
        assert_eq!(share.cover(101).unwrap_err().code(), tonic::Code::ResourceExhausted);
        drop(share);
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn finds_the_ends_of_messages_however_they_are_cut() {
        let bytes = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 1, 9]].concat();
        let mut messages = Messages::default();
        let ends: Vec<_> = (0..bytes.len()).filter(|&i| messages.last_end(&bytes[i..=i]).is_some()).collect();
        assert_eq!(ends, [7, 12, 18]);
        assert!(messages.at_an_end());
        assert_eq!(Messages::default().last_end(&bytes), Some(19));
        assert_eq!(Messages::default().last_end(&bytes[..10]), Some(8));
        assert_eq!(Messages::default().last_end(&bytes[..7]), None);
    }
}
