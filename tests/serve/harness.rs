//! A running server on ports of its own, with three small tasks.
use std::collections::HashMap;
use std::io::Cursor;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use delo::config::Config;
use delo::serve::{Addresses, OwnRecorder, ServeError, Server};
use delo_model::{KeySignal, Layout, Metric};
use delo_proto::admin_client::AdminClient;
use delo_proto::classifier_client::ClassifierClient;
use delo_proto::{
    ClassifyRequest, ClassifyResponse, LoadPartitionRequest, Partition, UnloadPartitionRequest, load_partition_request::Source,
};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

pub const TASKS: [&str; 3] = ["animals", "food", "travel"];

pub struct Running {
    pub addresses: Addresses,
    pub partitions: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<Result<(), ServeError>>,
    _runtime: OwnRuntime,
}

/// The threads of one server. Whatever they record stands on this server's page alone.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn start() -> Self {
        let recorder = OwnRecorder::new().unwrap();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Self(Some(builder.enable_all().on_thread_start(move || recorder.take_thread()).build().unwrap()))
    }

    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.as_ref().unwrap().spawn(task)
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        // The thread that drops it runs other tasks, and may not wait.
        self.0.take().unwrap().shutdown_background();
    }
}

/// The bytes of a small partition of this task.
pub fn artifact(task: &str) -> Vec<u8> {
    artifact_of(task, 0)
}

/// As [`artifact`]; another variant is another model of the same task.
pub fn artifact_of(task: &str, variant: u64) -> Vec<u8> {
    let seed = task.bytes().map(u64::from).sum::<u64>() + 10_000 * variant;
    let model = delo_fixtures::random_model(delo_fixtures::spec(Layout::RankOne, 3), 7, seed);
    delo_fixtures::artifact(task, &model, delo_fixtures::key_rule(Metric::Whitened, KeySignal::Parts { layer: 3 }), seed)
}

/// The default settings, on free ports, with these changes.
pub fn config(partitions: &Path, changes: &[(&'static str, &str)]) -> Config {
    let dir = partitions.to_str().unwrap().to_owned();
    let mut overrides = vec![("model.partitions", dir)];
    overrides.extend(["server.listen", "admin.listen", "metrics.listen"].map(|key| (key, "127.0.0.1:0".to_owned())));
    // Unoptimised and beside other tests, a server is slow.
    overrides.extend(
        [("batching.max_queue_seconds", "60.0"), ("deadline.default_seconds", "120.0")].map(|(key, value)| (key, value.to_owned())),
    );
    overrides.extend(changes.iter().map(|(key, value)| (*key, (*value).to_owned())));
    Config::layered(None, HashMap::new(), overrides).unwrap()
}

/// The setting by which a server keeps its catalogue in this directory.
pub fn state_in(dir: &Path) -> [(&'static str, &str); 1] {
    [("catalogue.state_dir", dir.to_str().unwrap())]
}

/// A server that serves [`TASKS`].
pub async fn start() -> Running {
    start_with(&TASKS, &[]).await
}

pub async fn start_with(tasks: &[&str], changes: &[(&'static str, &str)]) -> Running {
    let partitions = tempfile::tempdir().unwrap();
    for task in tasks {
        std::fs::write(partitions.path().join(format!("{task}.safetensors")), artifact(task)).unwrap();
    }
    let running = start_in(partitions, changes).await;
    if !tasks.is_empty() {
        running.until_health(ServingStatus::Serving).await;
    }
    running
}

/// A server on what lies in a directory; it may still be starting.
pub async fn start_in(partitions: tempfile::TempDir, changes: &[(&'static str, &str)]) -> Running {
    let started = start_at(partitions.path(), changes).await;
    Running { partitions, ..started }
}

/// As [`start_in`], on a directory that outlives the server.
pub async fn start_at(partitions: &Path, changes: &[(&'static str, &str)]) -> Running {
    let runtime = OwnRuntime::start();
    let server = runtime.spawn(Server::bind(config(partitions, changes))).await.unwrap().unwrap();
    let addresses = server.addresses();
    let (stop, stopped) = oneshot::channel::<()>();
    let ended = runtime.spawn(server.run(async {
        let _ = stopped.await;
    }));
    Running { addresses, partitions: tempfile::tempdir().unwrap(), stop: Some(stop), ended, _runtime: runtime }
}

impl Running {
    async fn channel(address: SocketAddr) -> Channel {
        Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
    }

    pub async fn classifier(&self) -> ClassifierClient<Channel> {
        ClassifierClient::new(Self::channel(self.addresses.classifier).await).max_encoding_message_size(1 << 30)
    }

    /// Leaves a call's deadline to the server: a `Channel` would end it by a clock of its own.
    pub fn classifier_without_a_clock(&self) -> ClassifierClient<Client<HttpConnector, Body>> {
        let origin = format!("http://{}", self.addresses.classifier).parse().unwrap();
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        ClassifierClient::with_origin(Client::builder(TokioExecutor::new()).http2_only(true).build(connector), origin)
    }

    pub async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.admin_channel().await)
    }

    pub async fn admin_channel(&self) -> Channel {
        Self::channel(self.addresses.admin.unwrap()).await
    }

    pub async fn classifier_channel(&self) -> Channel {
        Self::channel(self.addresses.classifier).await
    }

    pub async fn health(&self, service: &str) -> ServingStatus {
        let request = HealthCheckRequest { service: service.to_owned() };
        HealthClient::new(self.classifier_channel().await).check(request).await.unwrap().into_inner().status()
    }

    pub async fn until_health(&self, status: ServingStatus) {
        until("the server's health", async || self.health("").await, |health| *health == status).await;
    }

    /// What Prometheus sees.
    pub async fn metrics(&self) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.addresses.metrics.unwrap()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: delo\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        page
    }

    /// The value of a series of the server's page, written as there: `name{label="value"}`. 0 where there is
    /// none.
    pub async fn value(&self, series: &str) -> f64 {
        let page = self.metrics().await;
        page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0.0)
    }

    /// Waits until a series has this value.
    pub async fn until_value(&self, series: &str, value: f64) {
        until(series, async || self.value(series).await, |seen| *seen == value).await;
    }

    /// The server still answers.
    pub async fn assert_serving(&self) {
        let answer = self.classifier().await.classify(text("still there?")).await;
        assert!(answer.is_ok(), "{answer:?}");
    }

    pub fn ask_to_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub async fn ended(self) -> Result<(), ServeError> {
        self.ended.await.unwrap()
    }

    /// Ends it and starts another on the same directories.
    pub async fn restarted(mut self, changes: &[(&'static str, &str)]) -> Running {
        self.ask_to_stop();
        let partitions = std::mem::replace(&mut self.partitions, tempfile::tempdir().unwrap());
        self.ended().await.unwrap();
        let running = start_in(partitions, changes).await;
        running.until_health(ServingStatus::Serving).await;
        running
    }

    pub async fn load(&self, source: Source) -> Result<Partition, Status> {
        let request = LoadPartitionRequest { source: Some(source), ..Default::default() };
        let admin = self.admin().await.max_encoding_message_size(1 << 30);
        Ok({ admin }.load_partition(request).await?.into_inner().partition.unwrap())
    }

    pub async fn upload(&self, artifact: Vec<u8>) -> Result<Partition, Status> {
        self.load(Source::Artifact(artifact.into())).await
    }

    pub async fn unload(&self, task: &str) -> Result<Partition, Status> {
        let request = UnloadPartitionRequest { task: task.to_owned(), ..Default::default() };
        Ok(self.admin().await.unload_partition(request).await?.into_inner().partition.unwrap())
    }

    /// Tasks and versions that are live.
    pub async fn live(&self) -> Vec<(String, u64)> {
        let list = self.admin().await.list_partitions(delo_proto::ListPartitionsRequest {}).await.unwrap().into_inner();
        list.partitions.into_iter().map(|p| (p.task, p.version)).collect()
    }
}

/// How long anything is waited for. A bound, so that a test that waits in vain ends: no test asserts how long
/// it took.
const BOUND: Duration = Duration::from_secs(60);
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(10);
/// Looks that are made however long they take: on a machine with much else to do, one may take longer than the bound.
const LOOKS: usize = 5;

/// Looks until what it sees holds, and returns it.
pub async fn until<T: std::fmt::Debug>(what: &str, look: impl AsyncFn() -> T, holds: impl Fn(&T) -> bool) -> T {
    let began = Instant::now();
    for looks in 1.. {
        let seen = look().await;
        if holds(&seen) {
            return seen;
        }
        assert!(looks < LOOKS || began.elapsed() < BOUND, "{what} never came: {seen:?}");
        tokio::time::sleep(PAUSE).await;
    }
    unreachable!("the bound ends the loop")
}

/// Tries until it works.
pub async fn eventually<T, E: std::fmt::Debug>(mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let began = Instant::now();
    for attempts in 1.. {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(attempts < LOOKS || began.elapsed() < BOUND, "never: {error:?}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    unreachable!("the bound ends the loop")
}

/// The output of a future that must end by itself.
pub async fn ends<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what} never came"))
}

pub fn text(text: &str) -> ClassifyRequest {
    ClassifyRequest { text: Some(text.to_owned()), top_k: Some(0), ..Default::default() }
}

pub fn image(bytes: Vec<u8>) -> ClassifyRequest {
    ClassifyRequest { image: Some(bytes.into()), top_k: Some(0), ..Default::default() }
}

/// A noisy picture of a random shape.
pub fn picture(seed: u64, format: ImageFormat) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (width, height) = (rng.random_range(40..160), rng.random_range(40..160));
    encoded(&DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, rng.random()]))), format)
}

pub fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    if format == ImageFormat::Jpeg {
        let mut bytes = Vec::new();
        let (width, height) = (image.width().try_into().unwrap(), image.height().try_into().unwrap());
        jpeg_encoder::Encoder::new(&mut bytes, 75).encode(&image.to_rgb8(), width, height, jpeg_encoder::ColorType::Rgb).unwrap();
        return bytes;
    }
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Requests of mixed modalities, some with the task given.
pub fn mixed_requests(n: u64) -> Vec<ClassifyRequest> {
    (0..n)
        .map(|i| {
            let words = ["a cat", "hot soup", "the night train", "two dogs and a bird in the rain", "sushi"];
            let text = words[i as usize % words.len()];
            ClassifyRequest {
                text: (i % 3 != 1).then(|| format!("{text} {}", i % 7)),
                image: (i % 3 != 2).then(|| picture(i % 40, if i % 2 == 0 { ImageFormat::Png } else { ImageFormat::Jpeg }).into()),
                task: if i % 5 == 0 { TASKS[i as usize % 2].to_owned() } else { String::new() },
                request_id: format!("request-{i}"),
                top_k: Some(0),
                ..Default::default()
            }
        })
        .collect()
}

/// Whether two answers to the same request say the same, scores within 1e-5.
pub fn agree(a: &ClassifyResponse, b: &ClassifyResponse) -> bool {
    let scores = |r: &ClassifyResponse| r.scores.iter().map(|s| (s.label.clone(), s.score)).collect::<HashMap<_, _>>();
    let (x, y) = (scores(a), scores(b));
    a.task == b.task
        && a.scores.first().map(|s| &s.label) == b.scores.first().map(|s| &s.label)
        && x.len() == y.len()
        && x.iter().all(|(label, score)| y.get(label).is_some_and(|other| (score - other).abs() <= 1e-5))
}

#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &str) -> Status {
    let status = answer.expect_err("not refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "{:?} does not say {words:?}", status.message());
    status
}
