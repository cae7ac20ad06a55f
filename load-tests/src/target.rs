//! The servers to which requests are sent.
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::pb::classifier_client::ClassifierClient;
use crate::pb::{ClassifyResponse, ReportOutcomeRequest};
use crate::plan::Plan;
use crate::samples::Sample;
use crate::tally::End;

/// Time after its deadline at which a call is given up. The server must keep the deadline itself: a timer of
/// the client would hide a late answer.
const GIVE_UP_AFTER: Duration = Duration::from_secs(5);

/// One HTTP/2 connection. It sends the deadline and, unlike tonic's own channel, sets no timer by it.
type Connection = Client<HttpConnector, Body>;

/// A server that answers requests, or its stand-in in tests.
pub trait Target: Send + Sync + 'static {
    /// Sends the `n`-th request, which is due at this time since the start, and waits for its end.
    fn call(&self, n: u64, due: Duration) -> impl Future<Output = End> + Send;
}

/// Why a server can't be a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{url} is no server's URL: write http://127.0.0.1:50051")]
    Url { url: String },
    #[error("{url} is not on this machine: load goes to loopback addresses only, such as http://127.0.0.1:50051")]
    NotLoopback { url: String },
    #[error("cannot connect to {url}: {source}; is the server running?")]
    Connect { url: String, source: std::io::Error },
}

/// The endpoint of a URL whose host is a loopback address or `localhost`.
pub fn loopback(url: &str) -> Result<Endpoint, TargetError> {
    Ok(Endpoint::from(loopback_uri(url)?).connect_timeout(Duration::from_secs(5)))
}

/// The same as a URI.
fn loopback_uri(url: &str) -> Result<Uri, TargetError> {
    let bad = || TargetError::Url { url: url.into() };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("http") && uri.port().is_some()).ok_or_else(bad)?;
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if host != "localhost" && !ip.is_ok_and(|ip| ip.is_loopback()) {
        return Err(TargetError::NotLoopback { url: url.into() });
    }
    Ok(uri)
}

/// Connects to the URL once, so that a server that is not running is reported before the run.
async fn reach(uri: &Uri, url: &str) -> Result<(), TargetError> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or_default();
    TcpStream::connect((host, port)).await.map(drop).map_err(|source| TargetError::Connect { url: url.into(), source })
}

/// Counts of answers whose true task and label are known.
#[derive(Debug, Default)]
pub struct Truth {
    pub answers: AtomicU64,
    pub right_task: AtomicU64,
    pub right_label: AtomicU64,
    /// Outcomes that were reported to the server, and those that it refused.
    pub reported: AtomicU64,
    pub refused: AtomicU64,
}

/// The parts of a good answer that are compared with the live versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub task: Arc<str>,
    pub version: u64,
    pub sent: Instant,
    pub received: Instant,
}

/// A server of `delo.v1.Classifier`. Calls send the plan's requests over the connections of their group in
/// turn.
#[derive(Debug)]
pub struct Server {
    /// The connections of each group.
    connections: Vec<Vec<ClassifierClient<Connection>>>,
    plan: Arc<Plan>,
    /// Of each 1,000 answers, the number whose outcome is reported to the server.
    reported_per_thousand: u64,
    /// The counts of right answers so far.
    pub truth: Arc<Truth>,
    /// Replaces the deadlines of the groups.
    deadline: Option<Duration>,
    /// The version of each good answer; `None` where versions are not checked.
    answers: Option<Mutex<Answers>>,
}

#[derive(Debug, Default)]
struct Answers {
    /// The names of tasks, each stored once.
    tasks: Vec<Arc<str>>,
    given: Vec<Answered>,
}

impl Server {
    /// Opens about `connections` connections: for each group by its share, at least one. `outcomes` is the
    /// share of answers whose outcome is reported to the server.
    pub async fn connect(url: &str, connections: usize, plan: Arc<Plan>, outcomes: f64) -> Result<Self, TargetError> {
        let uri = loopback_uri(url)?;
        reach(&uri, url).await?;
        let mut clients = Vec::new();
        for group in plan.groups() {
            let count = ((connections as f64 * group.share).round() as usize).max(1);
            let mut opened = Vec::with_capacity(count);
            for _ in 0..count {
                opened.push(open(&uri).await);
            }
            clients.push(opened);
        }
        let reported_per_thousand = (outcomes * 1000.0).round() as u64;
        Ok(Self { connections: clients, plan, reported_per_thousand, truth: Arc::default(), deadline: None, answers: None })
    }

    /// The same target with this deadline for every call.
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// The same target, which also keeps the version of each answer.
    pub fn keeping_answers(self) -> Self {
        Self { answers: Some(Mutex::default()), ..self }
    }

    /// The answers kept so far.
    pub fn take_answers(&self) -> Vec<Answered> {
        let Some(answers) = &self.answers else { return Vec::new() };
        std::mem::take(&mut answers.lock().unwrap_or_else(PoisonError::into_inner).given)
    }

    fn keep(&self, answer: &ClassifyResponse, sent: Instant) {
        let Some(answers) = &self.answers else { return };
        let received = Instant::now();
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = answers.tasks.iter().find(|task| ***task == *answer.task).cloned();
        let task = known.unwrap_or_else(|| {
            let task: Arc<str> = answer.task.as_str().into();
            answers.tasks.push(Arc::clone(&task));
            task
        });
        answers.given.push(Answered { task, version: answer.partition_version, sent, received });
    }

    /// Compares an answer with the truth, counts it, and reports the outcome of a share of the answers to the
    /// server.
    fn check(&self, n: u64, mut client: ClassifierClient<Connection>, sample: &Sample, answer: ClassifyResponse) {
        let count = |counter: &AtomicU64, yes: bool| counter.fetch_add(u64::from(yes), Ordering::Relaxed);
        count(&self.truth.answers, true);
        count(&self.truth.right_task, answer.task == sample.task);
        count(
            &self.truth.right_label,
            answer.task == sample.task && answer.scores.first().is_some_and(|s| sample.labels.contains(&s.label)),
        );
        // A multiplier without a common divisor with 1,000 spreads the reported answers evenly.
        if n.wrapping_mul(617) % 1000 >= self.reported_per_thousand {
            return;
        }
        let outcome = ReportOutcomeRequest {
            request_id: answer.request_id,
            true_task: sample.task.clone(),
            // A task does not know the labels of another task.
            true_labels: if answer.task == sample.task { sample.labels.clone() } else { Vec::new() },
            ..ReportOutcomeRequest::default()
        };
        let truth = Arc::clone(&self.truth);
        tokio::spawn(async move {
            let counter = if client.report_outcome(outcome).await.is_ok() { &truth.reported } else { &truth.refused };
            counter.fetch_add(1, Ordering::Relaxed);
        });
    }
}

/// A connection that is open already if the server accepts it; otherwise its first call opens it.
async fn open(uri: &Uri) -> ClassifierClient<Connection> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(5)));
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build(connector);
    // Any answer opens the connection, also that there is no such service.
    let mut health = HealthClient::with_origin(client.clone(), uri.clone());
    let _ = tokio::time::timeout(GIVE_UP_AFTER, health.check(HealthCheckRequest::default())).await;
    ClassifierClient::with_origin(client, uri.clone())
}

impl Target for Server {
    async fn call(&self, n: u64, due: Duration) -> End {
        let planned = self.plan.request(n, due);
        let (group, sample) = (planned.group, planned.sample);
        let connections = &self.connections[group];
        let mut client = connections[(n % connections.len() as u64) as usize].clone();
        let deadline = self.deadline.unwrap_or(self.plan.groups()[group].deadline);
        let mut request = Request::new(self.plan.message(&planned));
        request.set_timeout(deadline);
        let sent = Instant::now();
        let Ok(answer) = tokio::time::timeout(deadline + GIVE_UP_AFTER, client.classify(request)).await else {
            return End { code: Code::DeadlineExceeded, group, overrun: Some(GIVE_UP_AFTER) };
        };
        let took = sent.elapsed();
        let code = match answer {
            Ok(answer) => {
                self.keep(answer.get_ref(), sent);
                self.check(n, client, sample, answer.into_inner());
                Code::Ok
            }
            Err(status) => status.code(),
        };
        End { code, group, overrun: (code == Code::DeadlineExceeded).then(|| took.saturating_sub(deadline)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loaded() {
        for url in ["http://127.0.0.1:50051", "http://127.8.0.1:1", "http://[::1]:50051", "http://localhost:50051"] {
            assert!(loopback(url).is_ok(), "{url}");
        }
        for url in [
            "http://10.0.0.1:50051",
            "http://example.com:50051",
            "http://localhost.example.com:1",
            "http://[2001:db8::1]:50051",
            "http://0.0.0.0:1",
        ] {
            assert!(matches!(loopback(url), Err(TargetError::NotLoopback { .. })), "{url}");
        }
        for url in ["", "127.0.0.1:50051", "http://127.0.0.1", "ftp://127.0.0.1:50051", "http://"] {
            assert!(matches!(loopback(url), Err(TargetError::Url { .. })), "{url}");
        }
    }
}
