//! The server: gRPC services, batcher, feedback, metrics, lifecycle. Holds no tensor code.
//!
//! A call passes the layers of [`layers`], becomes a sample in [`preprocess`], waits in [`batcher`], is
//! computed by [`inference`] and answered by [`classifier`]. [`admin`] changes the live catalogue,
//! [`lifecycle`] holds the server's state, and [`run`] starts and ends all of it.
mod admin;
mod audit;
mod auth;
pub mod batcher;
mod certificate;
mod classifier;
mod closing;
mod connections;
#[doc(hidden)]
pub mod deadline;
mod describe;
mod exemplars;
mod factor_usage;
mod feedback;
mod files;
mod gpu;
mod health;
mod http;
mod inference;
mod layers;
mod lifecycle;
mod loaded_model;
mod methods;
mod metrics;
mod open_inference;
mod ports;
mod preprocess;
mod probe;
mod queue;
mod reason;
mod recent;
mod records;
mod reload;
mod remote;
mod run;
mod scrape;
mod seldom;
mod shadow;
mod signals;
mod status;
mod steps;
mod sync;
mod task_series;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

pub use self::metrics::OwnRecorder;
pub use delo_process::threads::{TooFew, try_to_start};
pub use probe::{ProbeError, Question, probe};
pub use reload::TrustError;
pub use signals::Requests;

use crate::config::{Config, Listen};
use delo_engine::checkpoint::CheckpointError;
use delo_registry::ChangeError;
use delo_registry::remote::RemoteError;
use delo_registry::signature::SignatureError;

/// Why a server does not start, or ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("can't listen at {address} ({setting}): {source}")]
    Listen { setting: &'static str, address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Registry(#[from] ChangeError),
    #[error("registry.manifest: {0}")]
    Remote(#[from] RemoteError),
    #[error("registry.trusted_keys: {0}")]
    TrustedKeys(#[from] SignatureError),
    #[error("can't start the compute thread: {0}; raise the limit of processes and threads (ulimit -u, TasksMax)")]
    Thread(std::io::Error),
    #[error("the first sample failed: {0}")]
    Warm(String),
    #[error("loading the model failed inside the program; the log says more")]
    Panicked,
    #[error("audit.file can't be written: {0}; give a file in a directory that the server may write to")]
    Audit(std::io::Error),
    #[error("records.file can't be written: {0}; give a file in a directory that the server may write to")]
    Records(std::io::Error),
    #[error("tracing.otlp_endpoint: {0}: give the address of a collector, http://127.0.0.1:4317 for example")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the port for requests closed by itself, a fault of the program: the log says more; start it again")]
    Ended,
}

/// The addresses at which a server listens; `None` for a port that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub classifier: SocketAddr,
    pub admin: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub http: Option<SocketAddr>,
}

/// A server whose ports are bound.
pub struct Server {
    config: Arc<Config>,
    classifier: TcpListener,
    admin: Option<TcpListener>,
    metrics: Option<TcpListener>,
    http: Option<TcpListener>,
    addresses: Addresses,
}

impl Server {
    /// Binds the ports; port 0 lets the system choose.
    ///
    /// # Errors
    /// [`ServeError::Listen`]
    pub async fn bind(config: Config) -> Result<Self, ServeError> {
        let classifier = bind("server.listen", config.server.listen).await?;
        let admin = bind_optional("admin.listen", config.admin.listen).await?;
        let metrics = bind_optional("metrics.listen", config.metrics.listen).await?;
        let http = bind_optional("http.listen", config.http.listen).await?;
        let address = |l: &TcpListener| {
            l.local_addr().map_err(|source| ServeError::Listen { setting: "listen", address: config.server.listen, source })
        };
        let addresses = Addresses {
            classifier: address(&classifier)?,
            admin: admin.as_ref().map(address).transpose()?,
            metrics: metrics.as_ref().map(address).transpose()?,
            http: http.as_ref().map(address).transpose()?,
        };
        Ok(Self { config: Arc::new(config), classifier, admin, metrics, http, addresses })
    }

    /// The addresses at which the bound ports listen.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { setting, address, source })
}

async fn bind_optional(setting: &'static str, listen: Listen) -> Result<Option<TcpListener>, ServeError> {
    match listen {
        Listen::Off => Ok(None),
        Listen::At(address) => bind(setting, address).await.map(Some),
    }
}
