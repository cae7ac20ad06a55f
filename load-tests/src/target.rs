//! What requests are sent to.
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request};

use crate::pb::classifier_client::ClassifierClient;
use crate::pb::{ClassifyRequest, ClassifyResponse, ReportOutcomeRequest};
use crate::samples::Sample;

/// Something that answers requests.
pub trait Target: Send + Sync + 'static {
    /// Sends the `n`-th request and waits for how it ends.
    fn call(&self, n: u64) -> impl Future<Output = Code> + Send;
}

/// Why a server can't be a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{url} is no server's URL: write http://127.0.0.1:50051")]
    Url { url: String },
    #[error("{url} is not on this machine: load goes to loopback addresses only, such as http://127.0.0.1:50051")]
    NotLoopback { url: String },
    #[error("cannot connect to {url}: {source}; is the server running?")]
    Connect { url: String, source: tonic::transport::Error },
}

/// A URL's endpoint, if its host is a loopback address (or `localhost`).
pub fn loopback(url: &str) -> Result<Endpoint, TargetError> {
    let bad = || TargetError::Url { url: url.into() };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("http") && uri.port().is_some()).ok_or_else(bad)?;
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if host != "localhost" && !ip.is_ok_and(|ip| ip.is_loopback()) {
        return Err(TargetError::NotLoopback { url: url.into() });
    }
    Ok(Endpoint::from(uri).connect_timeout(Duration::from_secs(5)))
}

/// Counts of answers whose truth is known.
#[derive(Debug, Default)]
pub struct Truth {
    pub answers: AtomicU64,
    pub right_task: AtomicU64,
    pub right_label: AtomicU64,
    /// Outcomes reported to the server, and those that it refused.
    pub reported: AtomicU64,
    pub refused: AtomicU64,
}

/// A server of `delo.v1.Classifier`. Calls take the samples in turn and the connections in turn.
#[derive(Debug)]
pub struct Server {
    clients: Vec<ClassifierClient<Channel>>,
    samples: Vec<Sample>,
    deadline: Duration,
    /// Of each thousand answers, how many have their truth reported.
    reported_per_thousand: u64,
    /// What the server got right so far.
    pub truth: Arc<Truth>,
}

impl Server {
    /// Opens `connections` connections. `samples` is not empty; `outcomes` is the share of answers whose truth is reported back.
    pub async fn connect(
        url: &str,
        connections: usize,
        samples: Vec<Sample>,
        deadline: Duration,
        outcomes: f64,
    ) -> Result<Self, TargetError> {
        let endpoint = loopback(url)?;
        let mut clients = Vec::with_capacity(connections);
        for _ in 0..connections {
            let channel = endpoint.connect().await.map_err(|source| TargetError::Connect { url: url.into(), source })?;
            clients.push(ClassifierClient::new(channel));
        }
        Ok(Self { clients, samples, deadline, reported_per_thousand: (outcomes * 1000.0).round() as u64, truth: Arc::default() })
    }

    /// Counts an answer against the truth and, for some of them, tells the server.
    fn check(&self, n: u64, mut client: ClassifierClient<Channel>, sample: &Sample, answer: ClassifyResponse) {
        let count = |counter: &AtomicU64, yes: bool| counter.fetch_add(u64::from(yes), Ordering::Relaxed);
        count(&self.truth.answers, true);
        count(&self.truth.right_task, answer.task == sample.task);
        count(
            &self.truth.right_label,
            answer.task == sample.task && answer.scores.first().is_some_and(|s| sample.labels.contains(&s.label)),
        );
        // A multiplier without a common divisor with 1,000 spreads the reported ones evenly.
        if n.wrapping_mul(617) % 1000 >= self.reported_per_thousand {
            return;
        }
        let outcome = ReportOutcomeRequest {
            request_id: answer.request_id,
            true_task: sample.task.clone(),
            // Labels of another task than the one that answered are unknown to it.
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

impl Target for Server {
    async fn call(&self, n: u64) -> Code {
        let sample = &self.samples[(n % self.samples.len() as u64) as usize];
        let mut client = self.clients[(n % self.clients.len() as u64) as usize].clone();
        let mut request =
            Request::new(ClassifyRequest { image: sample.image.clone(), text: sample.text.clone(), ..ClassifyRequest::default() });
        request.set_timeout(self.deadline);
        let sent = Instant::now();
        match client.classify(request).await {
            Ok(answer) => {
                self.check(n, client, sample, answer.into_inner());
                Code::Ok
            }
            // The client's own timer calls an expired deadline "cancelled".
            Err(status) if status.code() == Code::Cancelled && sent.elapsed() >= self.deadline => Code::DeadlineExceeded,
            Err(status) => status.code(),
        }
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
