//! What is logged while a call is served names its method and its caller.
use http::Request;
use tonic::body::Body;
use tracing::Instrument;

use super::authenticate::Caller;
use super::{Answer, Inner, Policy, call};
use crate::serve::methods::method;

/// Serves each call within a span of the log that names its method and its caller.
#[derive(Clone, Copy, Debug)]
pub struct Trace;

impl Policy for Trace {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        // Neither the path nor a header is quoted: the caller chooses both.
        let Caller { name, role } = Caller::of(request.extensions());
        let span = tracing::info_span!("call", method = method(request.uri().path()).label, client = %name, %role);
        Box::pin(call(next, request).instrument(span))
    }
}
