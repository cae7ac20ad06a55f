//! What stands between a socket and a service, for each gRPC port: connections, HTTP/2, and the layers of [`Stack`].
use std::sync::Arc;

use arc_swap::ArcSwap;
use tonic::transport::Server;
use tower::layer::util::{Identity, Stack as Tower};

use super::auth::Clients;
use super::connections::{self, Beginning};
use super::layers::{Admission, Admit, Authenticate, Bounds, Deadline, Receive, Stack};
use super::tls::Tls;
use crate::config::{self, Config};

/// Room for what surrounds an artifact in its message.
pub const ENVELOPE_BYTES: usize = 64 << 10;
/// Connections of the admin port: a handful of people and their programs.
const ADMIN_CONNECTIONS: usize = 256;
/// All headers of a call.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Streams that a client has reset before they were looked at; one more, and its connection is closed. Likewise those that break the protocol.
const MAX_RESET_STREAMS: usize = 20;
const MAX_BROKEN_STREAMS: usize = 256;

/// One port, ready to serve.
pub struct Port {
    pub beginning: Beginning,
    pub stack: Stack,
    server: config::Server,
}

/// What the ports have in common.
#[derive(Clone)]
pub struct Trusted {
    pub tls: Option<Tls>,
    pub clients: Option<Arc<ArcSwap<Clients>>>,
}

impl Port {
    /// The classifier's port.
    pub fn classifier(config: &Config, trusted: Trusted) -> Self {
        let server = &config.server;
        let admission = Admission {
            prefix: "/delo.v1.Classifier/",
            most: server.max_in_flight_requests,
            most_of_a_client: server.max_in_flight_per_client,
            setting: "server.max_in_flight_requests",
        };
        Self::new(
            config,
            trusted,
            "classifier",
            server.max_connections,
            admission,
            config.deadline,
            Receive::new(server.max_receive_bytes, "server.max_receive_bytes"),
        )
    }

    /// The admin's port. Of uploads, there is room for one as large as may be.
    pub fn admin(config: &Config, trusted: Trusted) -> Self {
        let most = config.admin.max_in_flight_requests;
        let setting = "admin.max_in_flight_requests";
        // One operator may have all of the few calls, so that it is always `setting` that a refusal names.
        let admission = Admission { prefix: "/delo.v1.Admin/", most, most_of_a_client: usize::MAX, setting };
        let unary = config::Deadline { default: config.admin.max_call, max: config.admin.max_call };
        let receive = Receive::new(config.admin.max_artifact_bytes.saturating_add(2 * ENVELOPE_BYTES), "admin.max_artifact_bytes");
        Self::new(config, trusted, "admin", ADMIN_CONNECTIONS, admission, unary, receive)
    }

    fn new(
        config: &Config,
        trusted: Trusted,
        name: &'static str,
        connections: usize,
        admission: Admission,
        unary: config::Deadline,
        receive: Receive,
    ) -> Self {
        connections::show(name);
        let server = config.server.clone();
        Self {
            beginning: Beginning {
                port: name,
                most: connections,
                tls: trusted.tls,
                handshake: config.tls.handshake,
                preface: server.handshake,
            },
            stack: Stack {
                authenticate: Authenticate(trusted.clients),
                deadline: Deadline(Bounds { unary, stream_idle: server.stream_idle }),
                admit: Admit::new(admission),
                receive,
            },
            server,
        }
    }

    /// HTTP/2 with its bounds, around [`Stack`].
    pub fn transport(&self) -> Server<Tower<Stack, Identity>> {
        Server::builder()
            // So that connections of vanished clients, and of those who never read, end.
            .http2_keepalive_interval(Some(self.server.keepalive))
            .http2_keepalive_timeout(Some(self.server.keepalive_timeout))
            .max_concurrent_streams(self.server.max_streams_per_connection)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_max_pending_accept_reset_streams(Some(MAX_RESET_STREAMS))
            .http2_max_local_error_reset_streams(Some(MAX_BROKEN_STREAMS))
            .layer(self.stack.clone())
    }
}

/// Says in the log where the operator has left a door open.
pub fn warn_of_open_doors(config: &Config) {
    let open = |address: std::net::SocketAddr| !address.ip().is_loopback();
    if config.auth.clients_file.is_none() {
        if let config::Listen::At(address) = config.admin.listen
            && open(address)
            && config.tls.client_certificate != config::ClientCertificate::Required
        {
            tracing::warn!(%address, "anybody who reaches the admin port can change what is served: set auth.clients_file and tls, or keep admin.listen on the loopback");
        }
    } else if config.tls.certificate.is_none()
        && (open(config.server.listen) || matches!(config.admin.listen, config::Listen::At(a) if open(a)))
    {
        tracing::warn!("tokens cross the network in plaintext: set tls.certificate and tls.key, or let a proxy in front speak TLS");
    }
}
