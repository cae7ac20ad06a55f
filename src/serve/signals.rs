//! What an operator asks of a running server, and the signals by which it is asked.
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A signal that follows another within this time is the same request: `timeout` signals its child and then the child's group, and a terminal
/// signals both `cargo run` and what that runs, which hands the signal on.
const SAME: Duration = Duration::from_millis(200);

/// Requests to one running server. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// Cancelled: finish what is in flight, and end.
    pub drain: CancellationToken,
    /// Cancelled: end at once.
    pub cut: CancellationToken,
    /// Notified: read certificates and clients again.
    pub reload: Arc<Notify>,
    /// The number of the signal that asked to end at once; 0 before.
    by: Arc<AtomicU8>,
}

impl Requests {
    /// The number of the signal that ended the server at once.
    pub fn cut_by(&self) -> Option<u8> {
        Some(self.by.load(Ordering::Relaxed)).filter(|_| self.cut.is_cancelled())
    }

    /// Takes the process's signals from here on, in a runtime; what they ask for comes while the returned future is polled. SIGTERM and SIGINT drain,
    /// a second one of them ends at once, and SIGHUP reads certificates and clients again.
    ///
    /// # Errors
    /// The system lets no handler be set.
    #[cfg(unix)]
    pub fn of_signals(&self) -> std::io::Result<impl Future<Output = ()> + use<>> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hangup = signal(SignalKind::hangup())?;
        let requests = self.clone();
        Ok(async move {
            let mut asked: Option<Instant> = None;
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
                if let Some(asked) = asked {
                    if asked.elapsed() < SAME {
                        continue;
                    }
                    tracing::warn!("a second signal, {name}: ending at once, calls in flight are cut off");
                    requests.by.store(u8::try_from(kind.as_raw_value()).unwrap_or(u8::MAX), Ordering::Relaxed);
                    requests.cut.cancel();
                    return;
                }
                tracing::info!("{name}");
                asked = Some(Instant::now());
                requests.drain.cancel();
            }
        })
    }

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
