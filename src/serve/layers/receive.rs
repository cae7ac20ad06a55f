//! A bound on the bytes of request messages that are being received, over all calls of a port.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use tonic::Status;
use tonic::body::Body;

use super::body::{Polled, data_of, holding, watched};
use super::framing::Framing;
use super::{Answer, Inner, Policy, call};
use crate::serve::methods::method;
use crate::serve::reason::Reason;
use crate::serve::status::exhausted;

/// Takes the bytes of messages from one budget as they arrive. Clones share it.
#[derive(Clone, Debug)]
pub struct Receive {
    most: usize,
    /// Bytes received by calls in flight; of a stream, those of the message that is arriving.
    taken: Arc<AtomicUsize>,
    /// The name of the setting that bounds them, for the refusal.
    setting: &'static str,
}

impl Receive {
    pub fn new(most: usize, setting: &'static str) -> Self {
        Self { most, taken: Arc::default(), setting }
    }

    /// A call that has taken nothing yet.
    pub fn begin(&self) -> ReceivedBytes {
        ReceivedBytes { budget: self.clone(), taken: AtomicUsize::new(0) }
    }

    fn take(&self, bytes: usize) -> Result<(), Status> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= self.most);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(drop).map_err(|_| {
            let message = format!("too many bytes of requests are being received ({}): retry later", self.setting);
            Reason::ReceiveMemory.refuse(&exhausted(message, Duration::from_millis(250)))
        })
    }
}

/// The bytes that one call has taken from the budget; given back when dropped. An `Arc` of it is in the
/// extensions of the request.
#[derive(Debug)]
pub struct ReceivedBytes {
    budget: Receive,
    taken: AtomicUsize,
}

impl ReceivedBytes {
    fn take(&self, bytes: usize) -> Result<(), Status> {
        self.budget.take(bytes)?;
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Raises what the call has taken to at least `bytes`: a message is larger decompressed than it arrived.
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

impl Drop for ReceivedBytes {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Policy for Receive {
    fn around<S: Inner>(&self, mut request: Request<Body>, next: &mut S) -> Answer {
        let received = Arc::new(self.begin());
        // A stream may stay open for long, and hands on what it has received message by message.
        let streaming = method(request.uri().path()).streaming;
        let mut count = Count { received: received.clone(), framing: streaming.then(Framing::default) };
        request.extensions_mut().insert(received.clone());
        let answer = call(next, request.map(|body| watched(body, move |frame, _| count.see(frame))));
        Box::pin(async move {
            let response = answer.await?;
            // Messages of a stream are still to come. Any other call has read its own, and must not hold its
            // bytes until the client reads the answer.
            Ok(if streaming { response.map(|body| holding(body, received)) } else { response })
        })
    }
}

/// Counts the bytes of a request's body.
struct Count {
    received: Arc<ReceivedBytes>,
    /// Where messages end, in a stream.
    framing: Option<Framing>,
}

impl Count {
    fn see(&mut self, frame: Polled) -> Polled {
        let Some(data) = data_of(&frame) else { return frame };
        if self.framing.as_mut().is_some_and(|framing| framing.last_end(data).is_some()) {
            self.received.give_back();
        }
        match self.received.take(data.len()) {
            Ok(()) => frame,
            Err(status) => Some(Err(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::Response;
    use tower::Service;

    use super::*;

    #[test]
    fn gives_back_exactly_what_a_call_took() {
        let budget = Receive::new(10, "a.setting");
        let call = || ReceivedBytes { budget: budget.clone(), taken: AtomicUsize::new(0) };
        let (one, other) = (call(), call());
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
    async fn an_unread_answer_holds_nothing_of_the_budget() {
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
        let call = ReceivedBytes { budget: budget.clone(), taken: AtomicUsize::new(0) };
        call.take(10).unwrap();
        call.cover(80).unwrap();
        call.cover(80).unwrap();
        assert_eq!(budget.taken.load(Ordering::Relaxed), 80);
        assert_eq!(call.cover(101).unwrap_err().code(), tonic::Code::ResourceExhausted);
        drop(call);
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }
}
