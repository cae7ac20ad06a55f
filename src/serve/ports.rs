//! What stands between a socket and a service, for each gRPC port: connections, HTTP/2, and the layers of
//! [`Stack`].
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use opentelemetry_sdk::trace::SdkTracer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer, ServiceExt};

use super::auth::Clients;
use super::closing::Closing;
use super::connections::{self, Beginning};
use super::exemplars::Exemplars;
use super::layers::{Admission, Admit, Authenticate, Bounds, Drain, Expire, LimitClients, MessageSize, Receive, Stack, Trace};
use super::tls::Tls;
use crate::config::{self, Config};

/// Bytes of an upload's message beside its artifact.
pub const ENVELOPE_BYTES: usize = 64 << 10;
/// Connections of the admin port: a handful of people and their programs.
const ADMIN_CONNECTIONS: usize = 256;
/// Bytes of all headers of a call.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Streams that a client has reset before they were accepted; one more, and its connection is closed.
const MAX_RESET_STREAMS: usize = 20;
/// Streams that the server has reset because they broke the protocol; one more, and their connection is
/// closed.
const MAX_BROKEN_STREAMS: usize = 256;

/// One port, ready to serve.
pub struct Port {
    pub beginning: Beginning,
    pub stack: Stack,
    server: config::Server,
    /// Cancelled when the port drains: it takes no more connections, and asks its clients to open others
    /// elsewhere.
    pub drain: CancellationToken,
}

/// What the ports have in common.
#[derive(Clone)]
pub struct Shared {
    pub tls: Option<Tls>,
    /// `None`: nobody is authenticated.
    pub clients: Option<Arc<ArcSwap<Clients>>>,
    pub tracer: SdkTracer,
    pub exemplars: Exemplars,
}

/// The bounds of one port.
struct PortBounds {
    connections: usize,
    admission: Admission,
    most_of_a_client: usize,
    unary: config::Deadline,
    receive: Receive,
    message_size: MessageSize,
}

impl Port {
    /// The classifier's port.
    pub fn classifier(config: &Config, shared: Shared) -> Self {
        let server = &config.server;
        let admission = Admission { most: server.max_in_flight_requests, setting: "server.max_in_flight_requests" };
        let bounds = PortBounds {
            connections: server.max_connections,
            admission,
            most_of_a_client: server.max_in_flight_per_client,
            unary: config.deadline,
            receive: Receive::new(server.max_receive_bytes, "server.max_receive_bytes"),
            message_size: MessageSize { setting: "server.max_message_bytes", most: server.max_message_bytes },
        };
        Self::new(config, shared, "classifier", bounds)
    }

    /// The admin's port. Its budget of bytes has room for one upload of the largest size.
    pub fn admin(config: &Config, shared: Shared) -> Self {
        let most = config.admin.max_in_flight_requests;
        let setting = "admin.max_in_flight_requests";
        let admission = Admission { most, setting };
        let unary = config::Deadline { default: config.admin.max_call, max: config.admin.max_call };
        let receive = Receive::new(config.admin.max_artifact_bytes.saturating_add(2 * ENVELOPE_BYTES), "admin.max_artifact_bytes");
        let message_size = MessageSize { setting: "admin.max_artifact_bytes", most: config.admin.max_artifact_bytes };
        // One operator may have all of the few calls, so that a refusal always names `setting`.
        let most_of_a_client = usize::MAX;
        let connections = ADMIN_CONNECTIONS;
        Self::new(config, shared, "admin", PortBounds { connections, admission, most_of_a_client, unary, receive, message_size })
    }

    fn new(config: &Config, shared: Shared, name: &'static str, bounds: PortBounds) -> Self {
        let PortBounds { connections, admission, most_of_a_client, unary, receive, message_size } = bounds;
        connections::show(name);
        let (server, drain) = (config.server.clone(), CancellationToken::new());
        Self {
            beginning: Beginning {
                port: name,
                most: connections,
                tls: shared.tls,
                handshake: config.tls.handshake,
                preface: Some(server.handshake),
                alpn: b"h2",
            },
            stack: Stack {
                authenticate: Authenticate(shared.clients),
                trace: Trace { tracer: shared.tracer, exemplars: shared.exemplars },
                limit_clients: LimitClients::new(most_of_a_client),
                expire: Expire(Bounds { unary, stream_idle: server.stream_idle }),
                admit: Admit::new(admission),
                receive,
                drain: Drain(drain.clone()),
                message_size,
            },
            server,
            drain,
        }
    }

    /// Serves the connections of `listener` until the port drains. Then the port is closed, every connection
    /// is sent GOAWAY, so that its client opens further calls elsewhere, and streams end ([`Drain`]). Returns
    /// when every connection is closed; calls are served until then.
    ///
    /// tonic's own server is not used: it ends a call by a clock outside of all layers, with the code
    /// CANCELLED, and neither the metrics nor the log know of it.
    pub async fn serve(self, listener: TcpListener, services: Routes) {
        let http2 = self.http2();
        let closing = Closing { drain: self.drain.clone(), max_age: self.server.max_connection_age };
        let services = self.stack.layer(services.prepare());
        let mut open = JoinSet::new();
        let mut connections = connections::incoming(listener, self.beginning);
        while let Some(Some(connection)) = self.drain.run_until_cancelled(connections.recv()).await {
            let (peer, services) = (connection.peer().clone(), services.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(peer.clone());
                services.clone().oneshot(request)
            });
            let serving = closing.clone().serve(http2.serve_connection(TokioIo::new(connection), service));
            while open.try_join_next().is_some() {}
            open.spawn(async move {
                // Only the Debug form of the error names its cause.
                if let Err(error) = serving.await {
                    tracing::debug!(?error, "a connection ended early");
                }
            });
        }
        drop(connections);
        while open.join_next().await.is_some() {}
    }

    /// HTTP/2 with its bounds.
    fn http2(&self) -> http2::Builder<TokioExecutor> {
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            // Ends the connections of clients that have vanished or never read.
            .keep_alive_interval(self.server.keepalive)
            .keep_alive_timeout(self.server.keepalive_timeout)
            .max_concurrent_streams(self.server.max_streams_per_connection)
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
            .max_local_error_reset_streams(MAX_BROKEN_STREAMS);
        http2
    }
}

/// Warns in the log where the settings let anybody in, or send tokens in plaintext.
pub fn warn_of_open_doors(config: &Config) {
    let open = |address: std::net::SocketAddr| !address.ip().is_loopback();
    if config.auth.clients_file.is_none() {
        if let config::Listen::At(address) = config.admin.listen
            && open(address)
            && config.tls.client_certificate != config::ClientCertificate::Required
        {
            tracing::warn!(
                %address,
                "anybody who reaches the admin port can change what is served: set auth.clients_file and tls, or \
                 keep admin.listen on the loopback"
            );
        }
    } else if config.tls.certificate.is_none()
        && (open(config.server.listen) || matches!(config.admin.listen, config::Listen::At(a) if open(a)))
    {
        tracing::warn!("tokens cross the network in plaintext: set tls.certificate and tls.key, or let a proxy in front speak TLS");
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::task::{Context, Poll};
    use std::time::Duration;

    use futures::future::BoxFuture;
    use http::Response;
    use http_body_util::BodyExt;
    use hyper_util::client::legacy::Client;
    use tonic::server::NamedService;
    use tonic::{Code, Request as Call};
    use tower::Service;

    use super::*;
    use crate::telemetry::Telemetry;
    use delo_proto::ClassifyRequest;
    use delo_proto::classifier_client::ClassifierClient;

    /// Reads a call's message and answers nothing, ever.
    #[derive(Clone)]
    struct Silent;

    impl NamedService for Silent {
        const NAME: &'static str = "delo.v1.Classifier";
    }

    impl Service<Request<Body>> for Silent {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, call: Request<Body>) -> Self::Future {
            Box::pin(async move {
                call.into_body().collect().await.unwrap();
                std::future::pending().await
            })
        }
    }

    #[tokio::test]
    async fn a_call_that_nothing_answers_ends_by_the_deadline_s_own_code() {
        let config = Config::layered(None, std::collections::HashMap::new(), Vec::new()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let tracer = Telemetry::start(&config.tracing).unwrap().tracer();
        let port = Port::classifier(&config, Shared { tls: None, clients: None, tracer, exemplars: Exemplars::default() });
        let drain = port.drain.clone();
        let serving = tokio::spawn(port.serve(listener, Routes::new(Silent)));

        // A `Channel` would end the call by a clock of its own.
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let mut call = Call::new(ClassifyRequest::default());
        call.set_timeout(Duration::from_millis(50));
        // The default deadline is half a minute.
        let answer = tokio::time::timeout(Duration::from_secs(10), ClassifierClient::with_origin(client, origin).classify(call)).await;
        let status = answer.expect("the call's own deadline counts").unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");

        drain.cancel();
        tokio::time::timeout(Duration::from_secs(10), serving).await.expect("its connections end").unwrap();
    }
}
