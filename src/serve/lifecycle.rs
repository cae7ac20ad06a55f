//! The server's state: starting, serving, empty or draining. The service [`health`](super::health) shows it.
use std::time::{Duration, Instant};

use tokio::sync::watch;

use delo_registry::CatalogueOwner;

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Loading the model and computing the first batches.
    Starting,
    /// At least one partition is loaded.
    Serving,
    /// No partition is loaded.
    Empty,
    /// Finishing the calls in flight.
    Draining,
}

/// One server's state.
#[derive(Debug)]
pub struct Lifecycle {
    started: Instant,
    state: watch::Sender<State>,
}

impl Lifecycle {
    /// A server that starts at this moment.
    pub fn start() -> Self {
        Self { started: Instant::now(), state: watch::Sender::new(State::Starting) }
    }

    /// The state at this moment.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// The state at this moment, and every later change of it.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends the start: the state is serving or empty, by the live catalogue. A server that drains keeps its state.
    pub fn started(&self, registry: &CatalogueOwner) {
        self.set(registry, |current| current != State::Draining);
    }

    /// Sets the state to serving or empty, by the live catalogue. A server that starts or drains keeps its state.
    pub fn follow(&self, registry: &CatalogueOwner) {
        self.set(registry, |current| !matches!(current, State::Starting | State::Draining));
    }

    fn set(&self, registry: &CatalogueOwner, may_change: impl Fn(State) -> bool) {
        // The catalogue is read under the lock, so that two changes can't overtake each other.
        self.state.send_if_modified(|current| {
            let state = if registry.catalogue().is_empty() { State::Empty } else { State::Serving };
            let changes = may_change(*current) && *current != state;
            if changes {
                *current = state;
            }
            changes
        });
    }

    /// Sets the state to draining.
    pub fn drain(&self) {
        self.state.send_replace(State::Draining);
    }
}
