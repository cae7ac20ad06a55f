//! An operator's requests to a running server: drain, cut, reload. Signals of the process make them.
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A signal that follows another within this time is the same request: `timeout` signals its child and then
/// the child's group, and a terminal signals both `cargo run`, which passes the signal on, and the program
/// that it runs.
const SAME_REQUEST: Duration = Duration::from_millis(200);

/// Requests to one running server. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// Cancelled: finish the calls in flight, then end.
    pub drain: CancellationToken,
    /// Cancelled: end at once.
    pub cut: CancellationToken,
    /// Notified: read certificates and clients again.
    pub reload: Arc<Notify>,
    /// The number of the signal that cancelled `cut`; 0 before.
    cut_signal: Arc<AtomicU8>,
}

impl Requests {
    /// The number of the signal that ended the server at once.
    pub fn cut_by(&self) -> Option<u8> {
        Some(self.cut_signal.load(Ordering::Relaxed)).filter(|_| self.cut.is_cancelled())
    }

    /// Handles the process's signals from here on; to be called in a runtime. The requests are made while the
    /// returned future is polled. SIGTERM and SIGINT drain, a second one of them ends the server at once, and
    /// SIGHUP reads certificates and clients again.
    ///
    /// # Errors
    /// The system refuses a signal handler.
    #[cfg(unix)]
    pub fn of_signals(&self) -> std::io::Result<impl Future<Output = ()> + use<>> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hangup = signal(SignalKind::hangup())?;
        let requests = self.clone();
        Ok(async move {
            let mut drain_requested: Option<Instant> = None;
            loop {
                let (name, kind) = tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                    _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
                    _ = hangup.recv() => {
                        tracing::info!("SIGHUP: reading certificates and clients again");
                        requests.reload.notify_one();
                        continue;
                    }
                };
                if let Some(requested) = drain_requested {
                    if requested.elapsed() < SAME_REQUEST {
                        continue;
                    }
                    tracing::warn!("a second signal, {name}: ending at once, calls in flight are cut off");
                    requests.cut_signal.store(u8::try_from(kind.as_raw_value()).unwrap_or(u8::MAX), Ordering::Relaxed);
                    requests.cut.cancel();
                    return;
                }
                tracing::info!("{name}");
                drain_requested = Some(Instant::now());
                requests.drain.cancel();
            }
        })
    }

    /// Handles the process's signals from here on: ctrl-c drains. The request is made while the returned
    /// future is polled.
    ///
    /// # Errors
    /// None on this system.
    #[cfg(not(unix))]
    pub fn of_signals(&self) -> std::io::Result<impl Future<Output = ()> + use<>> {
        let requests = self.clone();
        Ok(async move {
            // Without a handler the system ends the process itself.
            let _ = tokio::signal::ctrl_c().await;
            requests.drain.cancel();
        })
    }
}
