//! A health probe of the server on this machine, by its own settings: for health checks of containers.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::config::{ClientCertificate, Config, Listen};

/// Shorter than the timeouts that health checks usually have.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Of an answer by HTTP.
const MAX_ANSWER: u64 = 4096;

/// Why a server does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("{setting} is port 0, so that the system chose the port: give it a port to be asked at")]
    AnyPort { setting: &'static str },
    #[error("no server answers at {address} ({setting}): {source}")]
    Silent { setting: &'static str, address: SocketAddr, source: io::Error },
    #[error("{address} ({setting}) answers, but not as a delo server does: is it another program's port?")]
    Strange { setting: &'static str, address: SocketAddr },
    #[error("not serving: {0}")]
    NotServing(String),
}

/// What a probe asks of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether it answers.
    Alive,
    /// Whether it serves requests.
    Serving,
}

/// Asks the server with these settings, on this machine: its metrics port, which needs neither TLS nor a
/// token; where that is off, the classifier's health service. Returns the answer in a few words.
///
/// # Errors
/// A server that does not answer in time, or does not serve where `question` is [`Question::Serving`].
pub async fn probe(config: &Config, question: Question) -> Result<String, ProbeError> {
    let (setting, listen) = match config.metrics.listen {
        Listen::At(address) => ("metrics.listen", address),
        Listen::Off => ("server.listen", config.server.listen),
    };
    if listen.port() == 0 {
        return Err(ProbeError::AnyPort { setting });
    }
    let address = SocketAddr::new(reachable(listen.ip()), listen.port());
    let exchange = async {
        match (config.metrics.listen, question) {
            (Listen::At(_), Question::Alive) => over_http(address, "/livez").await,
            (Listen::At(_), Question::Serving) => over_http(address, "/readyz").await,
            (Listen::Off, _) => over_grpc(address, config).await,
        }
    };
    let silent = |source| ProbeError::Silent { setting, address, source };
    let answer = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| silent(io::ErrorKind::TimedOut.into()))?.map_err(silent)?;
    match answer {
        Answer::Strange => Err(ProbeError::Strange { setting, address }),
        Answer::NotServing(why) if question == Question::Serving => Err(ProbeError::NotServing(why)),
        Answer::NotServing(why) => Ok(format!("alive: {why}")),
        Answer::Serving(words) => Ok(words),
    }
}

/// The server's answer.
enum Answer {
    Serving(String),
    NotServing(String),
    Strange,
}

/// Where a server that listens there is reached from its own machine.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

async fn over_http(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Ok(Answer::Strange) };
    let words = body.trim().to_owned();
    Ok(match head.split_whitespace().nth(1) {
        Some("200") => Answer::Serving(words),
        Some("503") => Answer::NotServing(words),
        _ => Answer::Strange,
    })
}

async fn over_grpc(address: SocketAddr, config: &Config) -> io::Result<Answer> {
    let connected = connect(address, config.tls.certificate.is_some()).await;
    let checked = match connected {
        Ok(channel) => HealthClient::new(channel).check(HealthCheckRequest::default()).await.map_err(|status| cause(&status)),
        Err(error) => Err(error),
    };
    match checked {
        Ok(answer) if answer.get_ref().status == ServingStatus::Serving as i32 => Ok(Answer::Serving("SERVING".to_owned())),
        Ok(_) => Ok(Answer::NotServing("NOT_SERVING".to_owned())),
        Err(error) => {
            // The server listens, and refuses clients without a certificate.
            if config.tls.client_certificate == ClientCertificate::Required && TcpStream::connect(address).await.is_ok() {
                let words = "alive; with tls.client_certificate required and metrics off, nobody here can ask whether it serves";
                return Ok(Answer::Serving(words.to_owned()));
            }
            Err(error)
        }
    }
}

async fn connect(address: SocketAddr, secure: bool) -> io::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| cause(&error))?;
    if !secure {
        return endpoint.connect().await.map_err(|error| cause(&error));
    }
    let tls = tokio_rustls::TlsConnector::from(Arc::new(any_server()?));
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(ServerName::IpAddress(address.ip().into()), stream).await?))
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| cause(&error))
}

/// The innermost cause of an error: the outer errors of the transport do not name it.
fn cause(error: &dyn std::error::Error) -> io::Error {
    let last = std::iter::successors(Some(error), |error| error.source()).last();
    io::Error::other(last.unwrap_or(error).to_string())
}

/// TLS with any server, whatever names its certificate has: the probe sends no secret and only reads whether
/// the server is healthy.
fn any_server() -> io::Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let verifier = Arc::new(AnyServer(provider));
    let mut config = config.map_err(io::Error::other)?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
