//! A server that is started for a run on free loopback ports, and ended after it.
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::processors::{ProcessorsError, apart};
use crate::target::loopback;

/// Timeout of the start of a server.
const START: Duration = Duration::from_secs(120);
/// Timeout of its end after SIGTERM.
const STOP: Duration = Duration::from_secs(60);

/// Why the server for a run could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot start {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error(transparent)]
    Processors(#[from] ProcessorsError),
    #[error("no free loopback port: {0}")]
    Port(io::Error),
    #[error("the server ended before it served, with {0}; its log says why (--server-log)")]
    Ended(ExitStatus),
    #[error("the server did not serve within {} seconds", START.as_secs())]
    Slow,
    #[error("the server did not end within {} seconds of SIGTERM and was killed", STOP.as_secs())]
    Stuck,
    #[error("cannot wait for the server: {0}")]
    Wait(io::Error),
}

/// How to start a server.
#[derive(Debug, Clone)]
pub struct Launch {
    pub program: PathBuf,
    /// Further arguments of its `serve`.
    pub args: Vec<String>,
    /// The file to which its output goes; `None` discards it.
    pub log: Option<PathBuf>,
    /// Keep the last processor for this process and give the server the others.
    pub isolate: bool,
}

/// A running server. It is killed if it is dropped before [`stop`](Self::stop).
#[derive(Debug)]
pub struct Spawned {
    child: Child,
    /// URL of its classifier.
    pub url: String,
    /// URL of its admin service.
    pub admin: String,
    /// URL of its metrics.
    pub metrics: String,
}

impl Spawned {
    /// Starts a server and waits until its health service answers SERVING.
    pub async fn start(launch: &Launch) -> Result<Self, ServerError> {
        let Launch { program, args, log, isolate } = launch;
        let [listen, admin, metrics] = free_ports().map_err(ServerError::Port)?;
        let start = |source| ServerError::Start { program: program.clone(), source };
        let mut command = Command::new(program);
        command.arg("serve").args(args);
        for (flag, port) in [("--listen", listen), ("--admin-listen", admin), ("--metrics-listen", metrics)] {
            command.arg(flag).arg(format!("127.0.0.1:{port}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(log) = log {
            let log = File::create(log).map_err(start)?;
            command.stdout(log.try_clone().map_err(start)?).stderr(log);
        }
        let child = if *isolate { apart(|| command.spawn())? } else { command.spawn() }.map_err(start)?;
        let at = |port: u16| format!("http://127.0.0.1:{port}");
        let mut server = Self { child, url: at(listen), admin: at(admin), metrics: format!("{}/metrics", at(metrics)) };
        let deadline = Instant::now() + START;
        while !serving(&server.url).await {
            if let Some(status) = server.child.try_wait().map_err(ServerError::Wait)? {
                return Err(ServerError::Ended(status));
            }
            if Instant::now() > deadline {
                return Err(ServerError::Slow);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM, so that it drains and ends, and waits for its end.
    pub async fn stop(mut self) -> Result<ExitStatus, ServerError> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).map_err(|e| ServerError::Wait(e.into()))?;
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().map_err(ServerError::Wait)? {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(ServerError::Stuck)
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three ports that are free now; another process may take one before the server does.
fn free_ports() -> io::Result<[u16; 3]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// Whether the server's health service answers SERVING.
async fn serving(url: &str) -> bool {
    let Ok(endpoint) = loopback(url) else { return false };
    let Ok(channel) = endpoint.connect().await else { return false };
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await;
    answer.is_ok_and(|a| a.into_inner().status() == ServingStatus::Serving)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(program: &str) -> Launch {
        Launch { program: program.into(), args: Vec::new(), log: None, isolate: false }
    }

    #[tokio::test]
    async fn a_server_that_ends_at_once_is_an_error() {
        let error = Spawned::start(&launch("false")).await.unwrap_err();
        assert!(matches!(error, ServerError::Ended(_)), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = Spawned::start(&launch("/no/such/delo")).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/delo"), "{error}");
    }
}
