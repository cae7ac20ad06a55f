//! What is logged while a call is served names its method and its caller.
use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument;

use super::authenticate::Caller;
use super::measure::method;
use super::{Answer, Inner, call};

#[derive(Clone, Copy, Debug)]
pub struct Trace;

#[derive(Clone, Debug)]
pub struct Traced<S>(S);

impl<S> Layer<S> for Trace {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced(inner)
    }
}

impl<S: Inner> Service<Request<Body>> for Traced<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        // Neither the path nor a header is quoted: both are the caller's to choose.
        let Caller { name, role } = Caller::of(request.extensions());
        let span = tracing::info_span!("call", method = method(request.uri().path()), client = %name, %role);
        Box::pin(call(&mut self.0, request).instrument(span))
    }
}
