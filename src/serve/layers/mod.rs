//! Policies around every call, one layer each; [`Stack`] says in which order.
mod admit;
mod authenticate;
mod body;
mod client_fault;
mod deadline;
mod drain;
mod framing;
mod isolate_panics;
mod limit_clients;
mod measure;
mod message_size;
mod receive;
mod speak_grpc;
mod trace;

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

pub use admit::{Admission, Admit};
pub use authenticate::{Authenticate, Caller};
pub use client_fault::ClientFault;
pub use deadline::{Bounds, Deadline, Expire};
pub use drain::Drain;
pub use isolate_panics::{IsolatePanics, internal};
pub use limit_clients::LimitClients;
pub use measure::{Measure, show as show_calls};
pub use message_size::MessageSize;
pub use receive::{Receive, ReceivedBytes};
pub use speak_grpc::SpeakGrpc;
pub use trace::Trace;

/// The policies of one port. The other port has the same ones, with bounds of its own.
#[derive(Clone, Debug)]
pub struct Stack {
    pub authenticate: Authenticate,
    pub trace: Trace,
    pub limit_clients: LimitClients,
    pub expire: Expire,
    pub admit: Admit,
    pub receive: Receive,
    pub drain: Drain,
    pub message_size: MessageSize,
}

impl<S: Inner> Layer<S> for Stack {
    type Service = Around<
        Measure,
        Around<
            SpeakGrpc,
            Around<
                Authenticate,
                Around<
                    Trace,
                    Around<
                        LimitClients,
                        Around<
                            Expire,
                            Around<
                                Admit,
                                Around<ClientFault, Around<Receive, Around<MessageSize, Around<Drain, Around<IsolatePanics, S>>>>>,
                            >,
                        >,
                    >,
                >,
            >,
        >,
    >;

    fn layer(&self, services: S) -> Self::Service {
        // From the inside out: a call meets them from the last to the first.
        // A panic ends here, so that all that follows sees an ordinary answer.
        let isolated = IsolatePanics.layer(services);
        // A drain ends a stream in the way in which its client would end it.
        let draining = self.drain.layer(isolated);
        // The services inside of this layer decode messages.
        let bounded = self.message_size.layer(draining);
        // Only the messages of calls that were admitted take from the budget.
        let received = self.receive.layer(bounded);
        // Errors that the client caused get their code here, whichever layer below found them.
        let attributed = ClientFault.layer(received);
        // The layer around this one drops the answer's body when the call's time ends, and with it the
        // permit.
        let admitted = self.admit.layer(attributed);
        // The clock starts before anything waits.
        let expiring = self.expire.layer(admitted);
        // The transport may hold an answer longer than the call's time: its client pays for that, in its own
        // limit.
        let limited = self.limit_clients.layer(expiring);
        // The log names callers that are known; only their calls write to it.
        let traced = self.trace.layer(limited);
        // A call of an unknown client ends here, and is counted.
        let authenticated = self.authenticate.layer(traced);
        // A call that is not gRPC ends here.
        let spoken = SpeakGrpc.layer(authenticated);
        // Sees every answer, refusals included.
        Measure.layer(spoken)
    }
}

/// What the layers are stacked around: the services that answer.
pub trait Inner: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static {}
impl<S> Inner for S where S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static {}

/// A call's answer, to be awaited.
pub type Answer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// What one layer does with a call.
pub trait Policy: Clone + Send + 'static {
    /// Answers the call itself, or lets it go on by [`call`] of `next`.
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer;

    /// This policy around a service.
    fn layer<S>(&self, inner: S) -> Around<Self, S> {
        Around { policy: self.clone(), inner }
    }
}

/// A service and the policy around it.
#[derive(Clone, Debug)]
pub struct Around<P, S> {
    policy: P,
    inner: S,
}

impl<P: Policy, S: Inner> Service<Request<Body>> for Around<P, S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        self.policy.around(request, &mut self.inner)
    }
}

/// Calls the service that was polled ready, leaving a clone in its place.
fn call<S: Inner>(service: &mut S, request: Request<Body>) -> S::Future {
    let clone = service.clone();
    std::mem::replace(service, clone).call(request)
}

/// The answer of a layer that lets a call no further.
fn refusal(status: Status) -> Answer {
    Box::pin(std::future::ready(Ok(status.into_http())))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tonic::Code;

    use super::*;

    pub fn request(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    pub fn code(response: &Response<Body>) -> Code {
        Status::from_header_map(response.headers()).map_or(Code::Ok, |s| s.code())
    }

    /// Answers OK, but panics where the path asks for it.
    pub fn service() -> impl Inner {
        tower::service_fn(|request: Request<Body>| async move {
            assert!(!request.uri().path().ends_with("Panic"), "the path asks for it");
            Ok(Response::new(Body::new(http_body_util::Full::new(Bytes::from_static(b"answer")))))
        })
    }
}
