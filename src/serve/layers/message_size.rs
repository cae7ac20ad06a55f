//! A message that is longer than allowed is refused by the name of the setting that bounds it.
use http::{HeaderMap, Request};
use tonic::body::Body;
use tonic::{Code, Status};

use super::body::ending_with;
use super::{Answer, Inner, Policy, call};
use crate::serve::methods::method;
use crate::serve::reason::Reason;

/// Answers RESOURCE_EXHAUSTED with the setting's name, and no time after which to retry: the same message is
/// refused again. tonic's codec finds a message too long, by its prefix or while it is decompressed, and
/// answers OUT_OF_RANGE or RESOURCE_EXHAUSTED in words that do not name the setting.
#[derive(Clone, Copy, Debug)]
pub struct MessageSize {
    pub setting: &'static str,
    /// The setting's value, in bytes.
    pub most: usize,
}

impl MessageSize {
    /// The status that replaces the one in `headers`, the head of an answer or its trailers.
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
        let Self { setting, most, .. } = self;
        let message = format!(
            "the message is longer than the {most} bytes that {setting} allows, decompressed: send a smaller one, \
             or have the setting raised"
        );
        Some(Reason::InvalidInput.refuse(&Status::resource_exhausted(message)))
    }
}

impl Policy for MessageSize {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        let path = request.uri().path();
        // Health and reflection have bounds that no setting names.
        if !method(path).is_counted {
            return Box::pin(call(next, request));
        }
        // The refusal of a single message is in the answer's head; that of a stream's message is in its
        // trailers.
        let streaming = method(path).streaming;
        let (policy, answer) = (*self, call(next, request));
        Box::pin(async move {
            let response = answer.await?;
            Ok(match policy.instead(response.headers()) {
                Some(status) => status.into_http(),
                None if streaming => response.map(|body| ending_with(body, move |trailers| policy.instead(trailers))),
                None => response,
            })
        })
    }
}
