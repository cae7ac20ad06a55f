//! A panic in a handler fails its own call.
use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};

use futures::FutureExt;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Answer, Inner, call};

/// A panic in a handler fails its own call, with INTERNAL.
#[derive(Clone, Copy, Debug)]
pub struct IsolatePanics;

#[derive(Clone, Debug)]
pub struct Isolated<S>(S);

impl<S> Layer<S> for IsolatePanics {
    type Service = Isolated<S>;

    fn layer(&self, inner: S) -> Isolated<S> {
        Isolated(inner)
    }
}

impl<S: Inner> Service<Request<Body>> for Isolated<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let answer = call(&mut self.0, request);
        // Handlers share state only behind locks that survive a panic.
        Box::pin(AssertUnwindSafe(answer).catch_unwind().map(|outcome| outcome.unwrap_or_else(|panic| Ok(internal(&*panic).into_http()))))
    }
}

/// What a caller is told of a panic.
pub fn internal(panic: &(dyn Any + Send)) -> Status {
    let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(message, "a request panicked");
    Status::internal("this request failed inside the server; its log says more")
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::serve::layers::tests::{code, request, service};

    #[tokio::test]
    async fn a_panic_becomes_internal_and_the_next_call_is_served() {
        let mut service = IsolatePanics.layer(service());
        assert_eq!(code(&service.call(request("/s/Panic")).await.unwrap()), Code::Internal);
        assert_eq!(code(&service.call(request("/s/Fine")).await.unwrap()), Code::Ok);
    }
}
