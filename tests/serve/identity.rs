//! Certificates, tokens and files of clients, for tests of security.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use delo::serve::pb::ClassifyRequest;
use delo::serve::pb::classifier_client::ClassifierClient;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sha2::{Digest, Sha256};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity};
use tonic::{Request, Status};

use crate::harness::{Running, artifact, start_in, text};

/// One who signs certificates.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn issue(&self, common_name: &str, names: &[&str]) -> Issued {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    }
}

impl Issued {
    pub fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }

    /// Writes the pair, so that no reader meets half of a file.
    pub fn write(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let (certificate, key) = (dir.join("server.pem"), dir.join("server.key"));
        replace(&certificate, &self.certificate);
        replace(&key, &self.key);
        (certificate, key)
    }
}

pub fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// A file of clients: name, role, and a token or the name in a certificate.
pub fn clients(of_tokens: &[(&str, &str, &str)], of_certificates: &[(&str, &str, &str)]) -> String {
    let mut out = String::new();
    for (name, role, token) in of_tokens {
        let digest: String = Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(out, "[[client]]\nname = \"{name}\"\nrole = \"{role}\"\ntoken_sha256 = \"{digest}\"").unwrap();
    }
    for (name, role, subject) in of_certificates {
        writeln!(out, "[[client]]\nname = \"{name}\"\nrole = \"{role}\"\ncertificate = \"{subject}\"").unwrap();
    }
    out
}

/// `message` with a token.
pub fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// A server of one task, which may speak TLS; it answers `client` when this returns.
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

/// Asks until the server has loaded, and then what it says.
pub async fn classify(channel: Channel, token: Option<&str>) -> Result<(), Status> {
    let began = Instant::now();
    loop {
        let message: ClassifyRequest = text("soup");
        let request = match token {
            Some(token) => bearing(token, message),
            None => Request::new(message),
        };
        match ClassifierClient::new(channel.clone()).classify(request).await {
            Err(status) if status.code() == tonic::Code::Unavailable && began.elapsed() < Duration::from_secs(60) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            answer => return answer.map(drop),
        }
    }
}

/// Tries until it works.
pub async fn eventually<T, E: std::fmt::Debug>(mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let began = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) if began.elapsed() > Duration::from_secs(20) => panic!("never: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
