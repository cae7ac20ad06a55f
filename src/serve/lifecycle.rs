//! The server's state: starting, serving, empty or draining. [`health`](super::health) shows it.
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::registry::Registry;

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

/// What those who watch the server see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub state: State,
    /// Nothing follows: who watches may go.
    pub over: bool,
}

/// One server's state.
#[derive(Debug)]
pub struct Lifecycle {
    started: Instant,
    moment: watch::Sender<Moment>,
}

impl Lifecycle {
    pub fn start() -> Self {
        Self { started: Instant::now(), moment: watch::Sender::new(Moment { state: State::Starting, over: false }) }
    }

    pub fn state(&self) -> State {
        self.moment.borrow().state
    }

    /// The state at every moment from here on.
    pub fn watch(&self) -> watch::Receiver<Moment> {
        self.moment.subscribe()
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Serving or empty, as the catalogue is at this moment. A server that drains stays so.
    pub fn follow(&self, registry: &Registry) {
        // The catalogue is looked at under the lock, so that two changes can't overtake each other.
        self.moment.send_if_modified(|moment| {
            let state = if registry.catalogue().is_empty() { State::Empty } else { State::Serving };
            let changes = moment.state != State::Draining && moment.state != state;
            if changes {
                moment.state = state;
            }
            changes
        });
    }

    pub fn drain(&self) {
        self.moment.send_modify(|moment| moment.state = State::Draining);
    }

    /// Ends the streams of those who watch health, which would hold their connections open.
    pub fn stop_watches(&self) {
        self.moment.send_modify(|moment| moment.over = true);
    }
}
