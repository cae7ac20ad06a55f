//! Errors that the client caused get a code that says so. Of bytes that are no message, tonic says INTERNAL,
//! as if the server were broken; metrics, alerts and the client's author need the true cause.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, Request};
use tonic::body::Body;
use tonic::{Code, Status};

use super::body::{Polled, data_of, ending_with, watched};
use super::framing::Framing;
use super::{Answer, Inner, Policy, call};
use crate::serve::methods::method;
use crate::serve::status::clipped;

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

/// Answers INVALID_ARGUMENT to bytes that are no message and to a second message where the method takes one;
/// CANCELLED where the request broke off.
#[derive(Clone, Copy, Debug)]
pub struct ClientFault;

impl Policy for ClientFault {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        let broken = Arc::new(AtomicBool::new(false));
        let mut watch = Watch { only: (!method(request.uri().path()).streaming).then(OneMessage::default), broken: broken.clone() };
        let answer = call(next, request.map(|body| watched(body, move |frame, _| watch.see(frame))));
        Box::pin(async move {
            let response = answer.await?;
            if let Some(status) = attributed(response.headers(), &broken) {
                return Ok(status.into_http());
            }
            Ok(response.map(|body| ending_with(body, move |trailers| attributed(trailers, &broken))))
        })
    }
}

/// The status that replaces the one in `headers`, where the client caused that one.
fn attributed(headers: &HeaderMap, broken: &AtomicBool) -> Option<Status> {
    let status = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)?;
    if broken.load(Ordering::Relaxed) {
        return Some(Status::cancelled("the call broke off before its request had arrived"));
    }
    let internal = Some(&status).filter(|status| status.code() == Code::Internal)?;
    let (_, advice) = UNREADABLE.iter().find(|(words, _)| internal.message().starts_with(words))?;
    Some(Status::invalid_argument(clipped(format!("{}: {advice}", internal.message().trim_end_matches('.')))))
}

/// Looks for what is wrong with a request's body.
struct Watch {
    /// Of a call with one message.
    only: Option<OneMessage>,
    /// Set where the connection fails or the client resets the call.
    broken: Arc<AtomicBool>,
}

impl Watch {
    fn see(&mut self, frame: Polled) -> Polled {
        if matches!(frame, Some(Err(_))) {
            self.broken.store(true, Ordering::Relaxed);
        }
        let exceeded = self.only.as_mut().zip(data_of(&frame)).is_some_and(|(only, data)| only.is_exceeded_by(data));
        if !exceeded {
            return frame;
        }
        let message = "more than one message: this method takes one, so make a call for each, or use the method for streams";
        Some(Err(Status::invalid_argument(message)))
    }
}

/// Follows the one message of a request.
#[derive(Debug, Default)]
struct OneMessage {
    framing: Framing,
    ended: bool,
}

impl OneMessage {
    /// Whether `data`, which comes next, goes on after the message.
    fn is_exceeded_by(&mut self, data: &[u8]) -> bool {
        if self.ended {
            return !data.is_empty();
        }
        let end = self.framing.next_end(data);
        self.ended = end.is_some();
        end.is_some_and(|end| end < data.len())
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
