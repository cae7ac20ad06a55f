//! gRPC services, batcher, feedback, metrics, lifecycle. Holds no tensor code.
//!
//! A call passes the layers of [`layers`], becomes a sample in [`intake`], waits in [`batcher`], is computed by [`inference`] and answered by
//! [`classifier`]. [`admin`] changes what is live, [`lifecycle`] says whether the server serves.
mod admin;
mod auth;
pub mod batcher;
mod certificate;
mod classifier;
mod connections;
#[doc(hidden)]
pub mod deadline;
mod feedback;
mod files;
mod health;
mod inference;
mod intake;
mod layers;
mod lifecycle;
mod methods;
mod metrics;
mod ports;
mod probe;
mod queue;
mod reload;
mod remote;
mod room;
mod scrape;
mod seldom;
mod shadow;
mod signals;
mod status;
mod sync;
mod task_series;
mod tls;

use delo_proto as pb;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

pub use self::metrics::OwnRecorder;
use self::metrics::{keep_up, recorder, render};
use admin::Admin;
use classifier::Classifier;
pub use delo_process::threads::{TooFew, try_to_start};
use health::Health;
use layers::Admit;
use lifecycle::Lifecycle;
use pb::admin_server::AdminServer;
use pb::classifier_server::ClassifierServer;
use ports::{ENVELOPE_BYTES, Port, Trusted, warn_of_open_doors};
pub use probe::{ProbeError, Question, probe};
use reload::Trust;
pub use reload::TrustError;
use room::{Room, Rooms};
pub use signals::Requests;

use crate::config::{Config, Listen};
use crate::logging;
use crate::metric_table::ENGINE_INFO;
use delo_model::input::InputError;
use delo_model::vilt::ViltError;
use delo_registry::RegistryError;
use delo_registry::remote::RemoteError;
use delo_registry::signature::SignatureError;

/// Connections get this long to close after the last call has ended.
const GOODBYE: Duration = Duration::from_secs(1);
/// Why a server does not start, or ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("can't listen at {address} ({setting}): {source}")]
    Listen { setting: &'static str, address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Backbone(#[from] ViltError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
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
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the port for requests closed by itself, a fault of the program: the log says more; start it again")]
    Ended,
}

/// Where a server listens. `None`: switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub classifier: SocketAddr,
    pub admin: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
}

/// A server whose ports are bound.
pub struct Server {
    config: Arc<Config>,
    classifier: TcpListener,
    admin: Option<TcpListener>,
    metrics: Option<TcpListener>,
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
        let address = |l: &TcpListener| {
            l.local_addr().map_err(|source| ServeError::Listen { setting: "listen", address: config.server.listen, source })
        };
        let addresses = Addresses {
            classifier: address(&classifier)?,
            admin: admin.as_ref().map(address).transpose()?,
            metrics: metrics.as_ref().map(address).transpose()?,
        };
        Ok(Self { config: Arc::new(config), classifier, admin, metrics, addresses })
    }

    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// As [`Server::run_until_asked`], until `shutdown` is done.
    ///
    /// # Errors
    /// As [`Server::run_until_asked`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let requests = Requests::default();
        let drain = requests.drain.clone();
        let running = self.run_until_asked(requests);
        tokio::pin!(running);
        tokio::select! {
            ended = &mut running => return ended,
            () = shutdown => drain.cancel(),
        }
        running.await
    }

    /// Loads, warms and serves until it is asked to drain. Then clients are told to go elsewhere, and calls in flight finish, at most for the configured
    /// time.
    ///
    /// # Errors
    /// What can't be loaded, or a failure of the transport.
    pub async fn run_until_asked(self, requests: Requests) -> Result<(), ServeError> {
        let Self { config, classifier, admin, metrics, addresses } = self;
        let recorder = recorder()?;
        logging::show();
        let rooms = Rooms::default();
        let _keeping_up = AbortOnDrop(tokio::spawn(keep_up(recorder.clone(), rooms.clone())));
        for variable in &config.ignored_variables {
            tracing::warn!(variable, "this environment variable is no setting and is ignored: settings are written DELO_SECTION__KEY");
        }
        warn_of_open_doors(&config);
        let files = delo_process::descriptors::raise_limit();
        let connections = delo_process::descriptors::connections(config.server.max_connections, files);
        if connections < config.server.max_connections {
            tracing::warn!(
                files,
                connections,
                "the limit of open files allows fewer connections than server.max_connections: raise it (LimitNOFILE, ulimit -n)"
            );
        }
        let trust = Trust::read(&config)?;
        let trusted = Trusted { tls: trust.tls(), clients: trust.clients() };
        let _following = AbortOnDrop(tokio::spawn(trust.follow(requests.reload.clone())));
        let lifecycle = Arc::new(Lifecycle::start());
        let health = HealthServer::new(Health(lifecycle.clone()));
        let (mut port, admin_port) = (Port::classifier(&config, trusted.clone()), Port::admin(&config, trusted));
        port.beginning.most = connections;
        let (admit, goodbye) = (port.stack.admit.clone(), port.drain.clone());

        let limit = config.server.max_message_bytes;
        let service = ClassifierServer::new(Classifier { config: config.clone(), rooms: rooms.clone() })
            .max_decoding_message_size(limit)
            .accept_compressed(Gzip)
            .accept_compressed(Zstd)
            .send_compressed(Gzip)
            .send_compressed(Zstd);
        let services = Routes::new(service)
            .add_service(health.clone())
            .add_service(reflection(CLASSIFIER)?.build_v1()?)
            .add_service(reflection(CLASSIFIER)?.build_v1alpha()?);
        let serving = port.serve(classifier, services);
        let mut serving = AbortOnDrop(tokio::spawn(serving));

        let administering = admin.map(|listener| -> Result<_, ServeError> {
            let service = AdminServer::new(Admin { rooms: rooms.clone(), lifecycle: lifecycle.clone() })
                .max_decoding_message_size(config.admin.max_artifact_bytes + ENVELOPE_BYTES)
                .accept_compressed(Gzip)
                .accept_compressed(Zstd)
                .send_compressed(Gzip)
                .send_compressed(Zstd);
            let services = Routes::new(service)
                .add_service(health)
                .add_service(reflection(ADMIN)?.build_v1()?)
                .add_service(reflection(ADMIN)?.build_v1alpha()?);
            let (admit, goodbye) = (admin_port.stack.admit.clone(), admin_port.drain.clone());
            Ok((admit, goodbye, AbortOnDrop(tokio::spawn(admin_port.serve(listener, services)))))
        });
        let mut administering = administering.transpose()?;

        let page_rooms = rooms.clone();
        let page = move || page_rooms.get().map(|room| render(&recorder, room)).unwrap_or_default();
        let shown_lifecycle = lifecycle.clone();
        let state = move || shown_lifecycle.state();
        let _scraping = metrics.map(|listener| AbortOnDrop(tokio::spawn(scrape::serve(listener, page, state))));

        let started = tokio::select! {
            opened = open(&config, &rooms, &lifecycle) => {
                opened?;
                tracing::info!(
                    classifier = %addresses.classifier,
                    admin = %shown(addresses.admin),
                    metrics = %shown(addresses.metrics),
                    seconds = lifecycle.uptime().as_secs_f64(),
                    "serving"
                );
                true
            }
            () = requests.drain.cancelled() => false,
        };
        if started {
            // Until draining: what is served then only finishes.
            let _following = AbortOnDrop(tokio::spawn(remote::follow(rooms.clone(), lifecycle.clone())));
            tokio::select! {
                _ = &mut serving.0 => return Err(ServeError::Ended),
                () = requests.drain.cancelled() => {}
            }
        }

        let deadline = tokio::time::Instant::now() + config.shutdown.drain;
        tracing::info!(seconds = config.shutdown.drain.as_secs_f64(), "draining");
        lifecycle.drain();
        // Clients go elsewhere from here on. What they call before they know of it is served.
        goodbye.cancel();
        let finished = async {
            gone(&admit, &mut serving.0).await;
            if let Some(room) = rooms.get() {
                room.batcher.close();
                room.batcher.drained().await;
            }
            // Last, so that an operator sees the rest.
            if let Some((admit, goodbye, serving)) = &mut administering {
                goodbye.cancel();
                gone(admit, &mut serving.0).await;
            }
        };
        tokio::select! {
            finished = tokio::time::timeout_at(deadline, finished) => {
                if finished.is_err() {
                    tracing::warn!("calls in flight did not finish in time and are cut off");
                }
            }
            () = requests.cut.cancelled() => {}
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Waits for the calls of a port that has been told to close, and for its connections: after the last call, only for [`GOODBYE`], as a client that has
/// vanished never closes its own.
async fn gone(admit: &Admit, serving: &mut JoinHandle<()>) {
    loop {
        admit.idle().await;
        let closed = tokio::time::timeout(GOODBYE, &mut *serving).await.is_ok();
        if closed || admit.is_idle() {
            return;
        }
    }
}

/// Loads and warms the room, opens it, and lets health say so.
async fn open(config: &Config, rooms: &Rooms, lifecycle: &Lifecycle) -> Result<(), ServeError> {
    let room = Room::load(config, rooms).await?;
    room.warm().await?;
    let room = rooms.open(room);
    let catalogue = room.registry.catalogue();
    tracing::info!(
        model = room.model,
        kernel = room.engine.kernel(),
        threads = room.engine.threads(),
        partitions = catalogue.residents().count(),
        metric = %catalogue.metric(),
        signal = %catalogue.signal(),
        "loaded"
    );
    if catalogue.is_empty() {
        tracing::warn!("no partition is loaded, requests are refused: load one with `delo admin load FILE`");
    }
    if let Some(notice) = catalogue.notice() {
        tracing::warn!(notice, "routing");
    }
    ENGINE_INFO.with_owned([room.engine.kernel().to_owned(), room.engine.threads().to_string()]).set(1.0);
    lifecycle.follow(&room.registry);
    Ok(())
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

fn shown(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "off".to_owned(), |a| a.to_string())
}

/// What reflection shows on each port.
const CLASSIFIER: &[&str] = &["delo.v1.Classifier", "grpc.health.v1.Health"];
const ADMIN: &[&str] = &["delo.v1.Admin", "grpc.health.v1.Health"];

fn reflection(services: &[&str]) -> Result<tonic_reflection::server::Builder<'static>, ServeError> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    Ok(services.iter().fold(builder, |builder, service| builder.with_service_name(*service)))
}

/// A task that ends with its owner.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
