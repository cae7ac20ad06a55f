//! The server's state, and how `grpc.health.v1` shows it: NOT_SERVING until warmed, without a partition, and while draining.
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::classifier::Classifier;
use super::pb::classifier_server::ClassifierServer;
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

/// One server's state.
#[derive(Debug)]
pub struct Lifecycle {
    started: Instant,
    state: Mutex<State>,
    health: HealthReporter,
    /// Held while health follows a change, so that two changes can't overtake each other.
    following: tokio::sync::Mutex<()>,
}

/// The names that health can be asked for: the server as a whole, and the classifier.
const NAMES: [&str; 2] = ["", <ClassifierServer<Classifier> as NamedService>::NAME];

impl Lifecycle {
    pub async fn start(health: HealthReporter) -> Self {
        let lifecycle =
            Self { started: Instant::now(), state: Mutex::new(State::Starting), health, following: tokio::sync::Mutex::default() };
        lifecycle.show(ServingStatus::NotServing).await;
        lifecycle
    }

    pub fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Serving or empty, as the catalogue is at this moment. A server that drains stays so.
    pub async fn follow(&self, registry: &Registry) {
        let _one_at_a_time = self.following.lock().await;
        let state = if registry.catalogue().is_empty() { State::Empty } else { State::Serving };
        if self.enter(state) {
            self.show(if state == State::Serving { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
        }
    }

    pub async fn drain(&self) {
        let _one_at_a_time = self.following.lock().await;
        self.enter(State::Draining);
        self.show(ServingStatus::NotServing).await;
    }

    /// Whether the state changed its owner: nothing follows draining.
    fn enter(&self, state: State) -> bool {
        let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == State::Draining {
            return false;
        }
        *current = state;
        true
    }

    async fn show(&self, status: ServingStatus) {
        for name in NAMES {
            self.health.set_service_status(name, status).await;
        }
    }
}
