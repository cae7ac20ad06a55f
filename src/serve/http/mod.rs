//! The door for callers without gRPC: HTTP/1.1 with JSON, and a page for browsers. It has no services of its own:
//! a request becomes a gRPC call to the classifier's port, through all its layers, and the answer becomes JSON.
mod call;
mod connect;
mod open_inference;
mod page;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::Layer;

use self::call::Grpc;
use super::closing::Closing;
use super::connections::{self, Beginning, Peer};
use super::layers::{Authenticate, Inner, Receive, ReceivedBytes, Stack};
use crate::config::Config;

/// Bytes of a request beside what a message may have in base64.
const ENVELOPE_BYTES: usize = 64 << 10;

/// The port.
pub struct HttpPort {
    pub beginning: Beginning,
    /// The classifier's: calls of both doors are bounded together.
    pub stack: Stack,
    pub drain: CancellationToken,
    /// Requests that have begun and are not answered yet; those whose bodies still arrive are no calls yet.
    pub requests: Arc<AtomicUsize>,
    config: Arc<Config>,
}

/// What answers a request.
#[derive(Clone)]
struct Door {
    grpc: Grpc,
    /// Those of the classifier's stack: what a call meets there after its message has arrived, a request meets here
    /// before its body is read.
    authenticate: Authenticate,
    receive: Receive,
    /// Bytes of a request's body.
    most: usize,
    /// How long a request may take to arrive.
    arrival: Duration,
    drain: CancellationToken,
    requests: Arc<AtomicUsize>,
}

/// A request that is not answered yet; counted until dropped.
struct Begun(Arc<AtomicUsize>);

impl Begun {
    fn new(requests: &Arc<AtomicUsize>) -> Self {
        requests.fetch_add(1, Ordering::Relaxed);
        Self(requests.clone())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HttpPort {
    /// `beginning` and `stack`: those of the classifier's port.
    pub fn new(config: Arc<Config>, beginning: Beginning, stack: Stack) -> Self {
        connections::show("http");
        let beginning = Beginning { port: "http", preface: None, alpn: b"http/1.1", ..beginning };
        Self { beginning, stack, drain: CancellationToken::new(), requests: Arc::default(), config }
    }

    /// Serves the connections of `listener` until the port drains; then what has begun is answered.
    pub async fn serve(self, listener: TcpListener, services: impl Inner + Sync) {
        let server = &self.config.server;
        let door = Door {
            grpc: Grpc::new(self.stack.layer(services)),
            authenticate: self.stack.authenticate,
            receive: self.stack.receive,
            // Four characters of base64 are three bytes.
            most: server.max_message_bytes.div_ceil(3).saturating_mul(4).saturating_add(ENVELOPE_BYTES),
            arrival: self.config.deadline.max,
            drain: self.drain.clone(),
            requests: self.requests,
        };
        let closing = Closing { drain: self.drain.clone(), max_age: server.max_connection_age };
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(server.keepalive);
        let mut open = JoinSet::new();
        let mut connections = connections::incoming(listener, self.beginning);
        while let Some(Some(connection)) = self.drain.run_until_cancelled(connections.recv()).await {
            let (peer, door) = (connection.peer().clone(), door.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (door, peer) = (door.clone(), peer.clone());
                async move { Ok::<_, Infallible>(door.answer(request, peer).await) }
            });
            let serving = closing.clone().serve(http1.serve_connection(TokioIo::new(connection), service));
            while open.try_join_next().is_some() {}
            open.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::debug!(?error, "a connection to the HTTP port ended early");
                }
            });
        }
        drop(connections);
        while open.join_next().await.is_some() {}
    }
}

/// A request whose body has arrived.
struct Arrived {
    parts: http::request::Parts,
    body: Bytes,
    peer: Peer,
    /// Held until the request is answered.
    _received: ReceivedBytes,
}

impl Door {
    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Full<Bytes>> {
        let _begun = Begun::new(&self.requests);
        let path = request.uri().path().to_owned();
        let is_v2 = path.starts_with("/v2");
        let error = if is_v2 { open_inference::error } else { connect::error };
        let mut response = match *request.method() {
            Method::GET | Method::HEAD if !is_v2 => page::asset(&path),
            _ if is_of_another_site(request.headers()) => {
                error(&Status::permission_denied("a page of another site may not call this server"))
            }
            _ => match tokio::time::timeout(self.arrival, self.arrive(request, peer)).await {
                Err(_) => error(&Status::deadline_exceeded("the request did not arrive in time")),
                Ok(Err(status)) => error(&status),
                Ok(Ok(arrived)) if is_v2 => open_inference::answer(&self.grpc, arrived).await,
                Ok(Ok(arrived)) => connect::answer(&self.grpc, arrived).await,
            },
        };
        let headers = response.headers_mut();
        page::protect(headers);
        // A connection that stays open would hold up the drain.
        if self.drain.is_cancelled() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn arrive(&self, request: Request<Incoming>, peer: Peer) -> Result<Arrived, Status> {
        let (parts, body) = request.into_parts();
        // Strangers take no memory.
        self.authenticate.caller(&call::head(&parts, &peer)?)?;
        let (received, mut arrived) = (self.receive.begin(), BytesMut::new());
        let mut body = Limited::new(body, self.most);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.not_arrived(error.is::<http_body_util::LengthLimitError>()))?;
            if let Ok(data) = frame.into_data() {
                received.cover(arrived.len() + data.len())?;
                arrived.extend_from_slice(&data);
            }
        }
        Ok(Arrived { parts, body: arrived.freeze(), peer, _received: received })
    }

    fn not_arrived(&self, is_too_long: bool) -> Status {
        if is_too_long {
            let most = self.most;
            return Status::resource_exhausted(format!(
                "the request is longer than the {most} bytes that server.max_message_bytes allows: send a smaller one, or have the \
                 setting raised"
            ));
        }
        Status::cancelled("the request did not arrive whole")
    }
}

/// Whether a browser says that a page of another site makes the request. It could not read the answer, but the server would
/// compute it.
fn is_of_another_site(headers: &http::HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

/// An answer in JSON.
fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
