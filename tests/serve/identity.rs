//! Servers and connections for tests of security.
use std::path::Path;

use delo_proto::ClassifyRequest;
use delo_proto::classifier_client::ClassifierClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity};
use tonic::{Request, Status};

use crate::authority::Authority;
use crate::harness::{Running, artifact, start_in, text, until};

/// `message` with a token.
pub fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// A server of one task, which may speak TLS; it may still be starting.
pub async fn start_trusting(dir: &Path, changes: &[(&'static str, &str)]) -> Running {
    let partitions = tempfile::tempdir_in(dir).unwrap();
    std::fs::write(partitions.path().join("food.safetensors"), artifact("food")).unwrap();
    start_in(partitions, changes).await
}

/// A connection with TLS, which trusts `authority`.
pub async fn channel(address: std::net::SocketAddr, authority: &Authority, identity: Option<Identity>) -> Result<Channel, Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem)).domain_name("localhost");
    let tls = identity.into_iter().fold(tls, ClientTlsConfig::identity);
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap().connect().await
}

/// Calls until the server has loaded; returns its answer then.
pub async fn classify(channel: Channel, token: Option<&str>) -> Result<(), Status> {
    let attempt = async || {
        let message: ClassifyRequest = text("soup");
        let request = match token {
            Some(token) => bearing(token, message),
            None => Request::new(message),
        };
        ClassifierClient::new(channel.clone()).classify(request).await.map(drop)
    };
    let starting = |answer: &Result<(), Status>| answer.as_ref().is_err_and(|status| status.code() == tonic::Code::Unavailable);
    until("an answer after the start", attempt, |answer| !starting(answer)).await
}
