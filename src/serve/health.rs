//! The service `grpc.health.v1.Health`: whether the server is ready for requests, and whether its process
//! works at all.
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use super::admin::Admin;
use super::classifier::Classifier;
use super::lifecycle::{Lifecycle, State};
use delo_proto::admin_server::AdminServer;
use delo_proto::classifier_server::ClassifierServer;

/// Names whose health is the readiness for requests: the server as a whole, and the classifier.
const READINESS: [&str; 2] = ["", <ClassifierServer<Classifier> as NamedService>::NAME];
/// Names that serve as long as the process works: also without a partition, and while it drains. A process is
/// restarted by this one.
const LIVENESS: [&str; 2] = ["liveness", <AdminServer<Admin> as NamedService>::NAME];

/// Answers by the server's state; the same on each port.
#[derive(Clone, Debug)]
pub struct Health(pub Arc<Lifecycle>);

fn status(service: &str, state: State) -> ServingStatus {
    match service {
        _ if LIVENESS.contains(&service) => ServingStatus::Serving,
        _ if !READINESS.contains(&service) => ServingStatus::ServiceUnknown,
        _ if state == State::Serving => ServingStatus::Serving,
        _ => ServingStatus::NotServing,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match status(&request.get_ref().service, self.0.state()) {
            ServingStatus::ServiceUnknown => {
                let known = [READINESS, LIVENESS].concat();
                Err(Status::not_found(format!("no service of this name has a health: ask for one of {known:?}")))
            }
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    /// The status at once, and again whenever it is another. A name that is not known stays so, and its
    /// stream open, as the protocol wants it.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (service, states) = (request.into_inner().service, self.0.watch());
        let statuses = stream::unfold((service, states, None), |(service, mut states, last)| async move {
            loop {
                let state = *states.borrow_and_update();
                let status = status(&service, state);
                if last != Some(status) {
                    return Some((Ok(response(status)), (service, states, Some(status))));
                }
                if states.changed().await.is_err() {
                    return None;
                }
            }
        });
        Ok(Response::new(statuses.boxed()))
    }
}
