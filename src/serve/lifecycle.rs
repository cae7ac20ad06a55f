//! The server's state: starting, serving, empty or draining. [`health`](super::health) shows it.
use std::time::{Duration, Instant};

use tokio::sync::watch;

use delo_registry::CatalogueOwner;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Loading and warming.
    Starting,
    Serving,
    /// No partition is loaded.
    Empty,
    /// Finishing what is in flight.
    Draining,
}

/// One server's state.
#[derive(Debug)]
pub struct Lifecycle {
    started: Instant,
    state: watch::Sender<State>,
}

impl Lifecycle {
    pub fn start() -> Self {
        Self { started: Instant::now(), state: watch::Sender::new(State::Starting) }
    }

    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// The state at every moment from here on.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Serving or empty, as the catalogue is at this moment. A server that drains stays so.
    pub fn follow(&self, registry: &CatalogueOwner) {
        // The catalogue is looked at under the lock, so that two changes can't overtake each other.
        self.state.send_if_modified(|current| {
            let state = if registry.catalogue().is_empty() { State::Empty } else { State::Serving };
            let changes = *current != State::Draining && *current != state;
            if changes {
                *current = state;
            }
            changes
        });
    }

    pub fn drain(&self) {
        self.state.send_replace(State::Draining);
    }
}
