//! What the client commands share: connecting, waiting, and telling of a refusal.
use std::future::Future;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::Failure;

/// Until a connection must stand.
const CONNECT: Duration = Duration::from_secs(5);

/// Connects to `server` and runs one exchange with it.
pub fn exchange<T, F: Future<Output = Result<T, Failure>>>(server: &str, talk: impl FnOnce(Channel) -> F) -> Result<T, Failure> {
    let url = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
    let endpoint =
        Endpoint::from_shared(url).map_err(|e| Failure::usage(format!("--server {server}: {e}; give it as http://127.0.0.1:50051")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = endpoint.connect_timeout(CONNECT).connect().await;
        let channel =
            channel.map_err(|_| format!("no server answers at {server}: start one with `delo serve`, or name another with --server"))?;
        talk(channel).await
    })
}

/// A refusal as one line: code, message, fields, and when to retry.
pub fn refusal(status: &Status) -> Failure {
    let mut line = format!("{:?}: {}", status.code(), status.message());
    if let Some(field) = status.get_details_bad_request().and_then(|b| b.field_violations.into_iter().next()) {
        line.push_str(&format!(" (field {})", field.field));
    }
    if let Some(delay) = status.get_details_retry_info().and_then(|r| r.retry_delay) {
        line.push_str(&format!(" (retry in {:.1} s)", delay.as_secs_f64()));
    }
    if status.code() == Code::Unimplemented {
        line.push_str("; is this the right port of the server?");
    }
    Failure::Other(line)
}
