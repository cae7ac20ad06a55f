//! A server's run: the ports start, the model is loaded, calls are served until a drain is requested, and the
//! calls in flight finish.
use delo_proto as pb;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use super::admin::Admin;
use super::audit::AuditLog;
use super::classifier::Classifier;
use super::exemplars::Exemplars;
use super::health::Health;
use super::http::HttpPort;
use super::layers::Admit;
use super::lifecycle::Lifecycle;
use super::loaded_model::{LoadedModel, ModelCell};
use super::metrics::{keep_up, recorder, render};
use super::open_inference::OpenInference;
use super::ports::{ENVELOPE_BYTES, Port, Shared, warn_of_open_doors};
use super::reload::Credentials;
use super::scrape::{self, Format};
use super::{Requests, ServeError, Server};
use crate::config::Config;
use crate::logging;
use crate::metric_table::ENGINE_INFO;
use crate::telemetry::Telemetry;
use delo_registry::remote::{Occasion, SyncChanges};
use pb::admin_server::AdminServer;
use pb::classifier_server::ClassifierServer;
use pb::inference::grpc_inference_service_server::GrpcInferenceServiceServer;

/// How long connections may take to close after the last call has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Server {
    /// As [`Server::run_until_requested`], until `shutdown` is done.
    ///
    /// # Errors
    /// As [`Server::run_until_requested`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let requests = Requests::default();
        let drain = requests.drain.clone();
        let running = self.run_until_requested(requests);
        tokio::pin!(running);
        tokio::select! {
            ended = &mut running => return ended,
            () = shutdown => drain.cancel(),
        }
        running.await
    }

    /// Loads and warms the model and serves until a drain is requested. Then clients are asked to go
    /// elsewhere, and calls in flight finish, at most for `shutdown.drain_seconds`.
    ///
    /// # Errors
    /// A file, model or partition that can't be loaded, or a port that ends by itself.
    pub async fn run_until_requested(self, requests: Requests) -> Result<(), ServeError> {
        let recorder = recorder()?;
        logging::show();
        let model = ModelCell::default();
        let _upkeep = AbortOnDrop(tokio::spawn(keep_up(recorder.clone(), model.clone())));
        for variable in &self.config.ignored_variables {
            tracing::warn!(variable, "this environment variable is no setting and is ignored: settings are written DELO_SECTION__KEY");
        }
        warn_of_open_doors(&self.config);
        let connections = max_connections(&self.config);
        let credentials = Credentials::read(&self.config)?;
        let telemetry = Telemetry::start(&self.config.tracing)?;
        let shared =
            Shared { tls: credentials.tls(), clients: credentials.clients(), tracer: telemetry.tracer(), exemplars: Exemplars::default() };
        let _reloading = AbortOnDrop(tokio::spawn(credentials.follow(requests.reload.clone())));
        let audit = AuditLog::open(self.config.audit.file.as_deref()).map_err(ServeError::Audit)?;
        let running = Running { config: self.config.clone(), model, lifecycle: Arc::new(Lifecycle::start()), audit };
        let addresses = self.addresses;
        let mut ports = running.start_ports(self, shared, connections, recorder)?;

        let loaded = tokio::select! {
            loaded = running.load_model() => Some(loaded?),
            () = requests.drain.cancelled() => None,
        };
        if let Some(_following) = loaded {
            tracing::info!(
                classifier = %addresses.classifier,
                admin = %shown(addresses.admin),
                metrics = %shown(addresses.metrics),
                http = %shown(addresses.http),
                seconds = running.lifecycle.uptime().as_secs_f64(),
                "serving"
            );
            running.until_shutdown(&mut ports, &requests).await?;
        }
        running.drain(ports, &requests).await;
        if let Some(model) = running.model.get().cloned() {
            // Waits for the disk, on a thread that may wait.
            let _ = tokio::task::spawn_blocking(move || model.records.close()).await;
        }
        // Waits for the collector, on a thread that may wait.
        let _ = tokio::task::spawn_blocking(move || telemetry.end()).await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// What all parts of a running server share.
struct Running {
    config: Arc<Config>,
    model: ModelCell,
    lifecycle: Arc<Lifecycle>,
    audit: AuditLog,
}

/// The ports of a running server. Dropping it ends them.
struct RunningPorts {
    classifier: RunningPort,
    admin: Option<RunningPort>,
    http: Option<RunningHttp>,
    _metrics: Option<AbortOnDrop<()>>,
}

impl Running {
    /// Serves all ports. Until the model is loaded, health and GetStatus answer; other methods are UNAVAILABLE.
    fn start_ports(
        &self,
        server: Server,
        shared: Shared,
        connections: usize,
        recorder: PrometheusHandle,
    ) -> Result<RunningPorts, ServeError> {
        let health = HealthServer::new(Health(self.lifecycle.clone()));
        let exemplars = shared.exemplars.clone();
        let mut port = Port::classifier(&self.config, shared.clone());
        port.beginning.most = connections;
        let http = server.http.map(|listener| {
            let http = HttpPort::new(self.config.clone(), port.beginning.clone(), port.stack.clone());
            let (drain, requests) = (http.drain.clone(), http.requests.clone());
            let services = self.classifier_services(health.clone())?.prepare();
            Ok::<_, ServeError>(RunningHttp { drain, requests, serving: AbortOnDrop(tokio::spawn(http.serve(listener, services))) })
        });
        let classifier = RunningPort::start(port, server.classifier, self.classifier_services(health.clone())?);
        let admin = server.admin.map(|listener| {
            let port = Port::admin(&self.config, shared);
            Ok::<_, ServeError>(RunningPort::start(port, listener, self.admin_services(health)?))
        });
        let metrics = server.metrics.map(|listener| {
            let (model, lifecycle) = (self.model.clone(), self.lifecycle.clone());
            let page = move |format| {
                let page = model.get().map(|model| render(&recorder, model)).unwrap_or_default();
                match format {
                    Format::Text => page,
                    Format::OpenMetrics => exemplars.open_metrics(&page),
                }
            };
            AbortOnDrop(tokio::spawn(scrape::serve(listener, page, move || lifecycle.state())))
        });
        Ok(RunningPorts { classifier, admin: admin.transpose()?, http: http.transpose()?, _metrics: metrics })
    }

    fn classifier_services(&self, health: HealthServer<Health>) -> Result<Routes, ServeError> {
        let service = ClassifierServer::new(Classifier { config: self.config.clone(), model: self.model.clone() })
            .max_decoding_message_size(self.config.server.max_message_bytes)
            .accept_compressed(Gzip)
            .accept_compressed(Zstd)
            .send_compressed(Gzip)
            .send_compressed(Zstd);
        let inference = self.open_inference(false).max_decoding_message_size(self.config.server.max_message_bytes);
        with_reflection(Routes::new(service).add_service(inference).add_service(health), CLASSIFIER)
    }

    fn admin_services(&self, health: HealthServer<Health>) -> Result<Routes, ServeError> {
        let service = AdminServer::new(self.admin())
            .max_decoding_message_size(self.config.admin.max_artifact_bytes + ENVELOPE_BYTES)
            .accept_compressed(Gzip)
            .accept_compressed(Zstd)
            .send_compressed(Gzip)
            .send_compressed(Zstd);
        let inference = self.open_inference(true).max_decoding_message_size(self.config.admin.max_artifact_bytes + ENVELOPE_BYTES);
        with_reflection(Routes::new(service).add_service(inference).add_service(health), ADMIN)
    }

    fn admin(&self) -> Admin {
        Admin { model: self.model.clone(), lifecycle: self.lifecycle.clone(), audit: self.audit.clone() }
    }

    fn open_inference(&self, may_change: bool) -> GrpcInferenceServiceServer<OpenInference> {
        let classifier = Classifier { config: self.config.clone(), model: self.model.clone() };
        GrpcInferenceServiceServer::new(OpenInference { classifier, admin: self.admin(), may_change })
            .accept_compressed(Gzip)
            .accept_compressed(Zstd)
            .send_compressed(Gzip)
            .send_compressed(Zstd)
    }

    /// Loads and warms the model, follows the registry, makes the model available to requests, and sets the lifecycle
    /// to serving or empty. Dropping what it returns ends the following.
    async fn load_model(&self) -> Result<AbortOnDrop<()>, ServeError> {
        let model = LoadedModel::load(&self.config).await?;
        model.warm().await?;
        let model = self.model.set(model);
        let followed = CancellationToken::new();
        let following = follow_registry(model.clone(), self.lifecycle.clone(), self.audit.clone(), followed.clone());
        let following = AbortOnDrop(tokio::spawn(following));
        // Without what is live elsewhere, answers would be wrong: until then there are none.
        if let Some(wait) = self.config.registry.start_wait
            && tokio::time::timeout(wait, followed.cancelled()).await.is_err()
        {
            tracing::warn!(
                seconds = wait.as_secs_f64(),
                "the registry's manifest is not followed yet, the server begins with what it has (registry.start_wait_seconds)"
            );
        }
        model.warm().await?;
        let catalogue = model.registry.catalogue();
        tracing::info!(
            model = model.name,
            kernel = model.engine.kernel(),
            threads = model.engine.threads(),
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
        let (kernel, threads) = (model.engine.kernel().to_owned(), model.engine.threads().to_string());
        ENGINE_INFO.with_owned([kernel, threads]).set(1.0);
        self.model.serve();
        self.lifecycle.started(&model.registry);
        Ok(following)
    }

    /// Serves until a drain is requested.
    async fn until_shutdown(&self, ports: &mut RunningPorts, requests: &Requests) -> Result<(), ServeError> {
        tokio::select! {
            _ = &mut ports.classifier.serving.0 => Err(ServeError::Ended),
            () = requests.drain.cancelled() => Ok(()),
        }
    }

    /// Closes the classifier's port and finishes the calls in flight, until the drain's time is over or a cut
    /// is requested. Calls that clients begin before they know of the drain are served.
    async fn drain(&self, mut ports: RunningPorts, requests: &Requests) {
        let deadline = tokio::time::Instant::now() + self.config.shutdown.drain;
        tracing::info!(seconds = self.config.shutdown.drain.as_secs_f64(), "draining");
        self.lifecycle.drain();
        ports.classifier.drain.cancel();
        if let Some(http) = &ports.http {
            http.drain.cancel();
        }
        let finished = async {
            ports.classifier.finished().await;
            if let Some(http) = &mut ports.http {
                http.finished().await;
            }
            if let Some(model) = self.model.get() {
                model.batcher.close();
                model.batcher.drained().await;
            }
            // The admin port is last, so that an operator can follow the drain.
            if let Some(admin) = &mut ports.admin {
                admin.drain.cancel();
                admin.finished().await;
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
    }
}

/// Follows the registry until the future is dropped, and brings the lifecycle of a server that has started up to date
/// after each change. `followed` is cancelled when the server serves what the manifest makes live, but for what it has
/// refused, or when no registry is followed.
async fn follow_registry(model: Arc<LoadedModel>, lifecycle: Arc<Lifecycle>, audit: AuditLog, followed: CancellationToken) {
    let Some(follower) = model.remote.follower() else { return followed.cancel() };
    loop {
        let changes = follower.sync(Occasion::Poll).await;
        if !follower.is_failing().await {
            followed.cancel();
        }
        if changes != SyncChanges::default() {
            tracing::info!(loaded = ?changes.loaded, unloaded = ?changes.unloaded, "the registry's manifest was followed");
            audit.all_followed(&changes);
            model.follow(&lifecycle).await;
        }
        let pause: Duration = follower.pause().await;
        tokio::time::sleep(pause).await;
    }
}

/// The HTTP port while it serves. Dropping it ends the port.
struct RunningHttp {
    drain: CancellationToken,
    /// Requests that are not answered yet.
    requests: Arc<AtomicUsize>,
    serving: AbortOnDrop<()>,
}

impl RunningHttp {
    /// As [`RunningPort::finished`]; a request whose body is still arriving is no call yet, and is waited for.
    async fn finished(&mut self) {
        loop {
            let closed = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.serving.0).await.is_ok();
            if closed || self.requests.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }
}

/// A port that serves. Dropping it ends the port.
struct RunningPort {
    admit: Admit,
    /// Cancelled: take no more connections, and ask the clients of open ones to go elsewhere.
    drain: CancellationToken,
    serving: AbortOnDrop<()>,
}

impl RunningPort {
    fn start(port: Port, listener: TcpListener, services: Routes) -> Self {
        let (admit, drain) = (port.stack.admit.clone(), port.drain.clone());
        Self { admit, drain, serving: AbortOnDrop(tokio::spawn(port.serve(listener, services))) }
    }

    /// Waits until the calls of a draining port have ended and its connections are closed. After the last
    /// call, connections get [`CLOSE_TIMEOUT`], since a client that has vanished never closes its own.
    async fn finished(&mut self) {
        loop {
            self.admit.idle().await;
            let closed = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.serving.0).await.is_ok();
            if closed || self.admit.is_idle() {
                return;
            }
        }
    }
}

/// Most connections of the classifier's port: `server.max_connections`, or fewer where the limit of open
/// files is lower.
fn max_connections(config: &Config) -> usize {
    let files = delo_process::descriptors::raise_limit();
    let connections = delo_process::descriptors::connections(config.server.max_connections, files);
    if connections < config.server.max_connections {
        tracing::warn!(
            files,
            connections,
            "the limit of open files allows fewer connections than server.max_connections: raise it (LimitNOFILE, ulimit -n)"
        );
    }
    connections
}

fn shown(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "off".to_owned(), |address| address.to_string())
}

/// The services that reflection shows on each port.
const CLASSIFIER: &[&str] = &["delo.v1.Classifier", "inference.GRPCInferenceService", "grpc.health.v1.Health"];
const ADMIN: &[&str] = &["delo.v1.Admin", "inference.GRPCInferenceService", "grpc.health.v1.Health"];

/// Adds both versions of the reflection service.
fn with_reflection(routes: Routes, services: &[&str]) -> Result<Routes, ServeError> {
    Ok(routes.add_service(reflection(services).build_v1()?).add_service(reflection(services).build_v1alpha()?))
}

fn reflection(services: &[&str]) -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // The details of errors, which clients by reflection would else show as bytes.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
    services.iter().fold(builder, |builder, service| builder.with_service_name(*service))
}

/// A task that ends with its owner.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
