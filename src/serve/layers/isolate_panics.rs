//! A panic in a handler fails its own call.
use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use http::Request;
use tonic::Status;
use tonic::body::Body;

use super::{Answer, Inner, Policy, call};

/// A panic in a handler fails its own call, with INTERNAL.
#[derive(Clone, Copy, Debug)]
pub struct IsolatePanics;

impl Policy for IsolatePanics {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        let answer = call(next, request);
        // Handlers share state only behind locks that survive a panic.
        Box::pin(AssertUnwindSafe(answer).catch_unwind().map(|outcome| outcome.unwrap_or_else(|panic| Ok(internal(&*panic).into_http()))))
    }
}

/// The status that a caller gets after a panic, which the log describes.
pub fn internal(panic: &(dyn Any + Send)) -> Status {
    let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(message, "a request panicked");
    Status::internal("this request failed inside the server; its log says more")
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use tower::Service;

    use super::*;
    use crate::serve::layers::tests::{code, request, service};

    #[tokio::test]
    async fn a_panic_becomes_internal_and_the_next_call_is_served() {
        let mut service = IsolatePanics.layer(service());
        assert_eq!(code(&service.call(request("/s/Panic")).await.unwrap()), Code::Internal);
        assert_eq!(code(&service.call(request("/s/Fine")).await.unwrap()), Code::Ok);
    }
}
