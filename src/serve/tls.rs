//! TLS of the gRPC ports: certificates that are read again while the server runs, and the check of clients' certificates.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::certificate;
use super::files::{self, FileError};
use crate::config::{self, ClientCertificate};

/// The longest file of certificates.
const MAX_BYTES: u64 = 1 << 20;

/// Why certificates are not taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path} holds no {what} in PEM")]
    Pem { path: PathBuf, what: &'static str },
    #[error("{path}: {source}")]
    Refused { path: PathBuf, source: rustls::Error },
    #[error("{path}: {source}")]
    ClientCa { path: PathBuf, source: rustls::server::VerifierBuilderError },
}

/// The files of `[tls]`, as they were read.
#[derive(PartialEq, Eq)]
pub struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// What handshakes are made with. Clones are the same.
#[derive(Clone)]
pub struct Tls {
    /// Of handshakes from now on; connections keep what they were made with.
    config: Arc<ArcSwap<ServerConfig>>,
}

impl Files {
    /// # Errors
    /// A file that can't be read or is too large.
    pub fn read(paths: &TlsPaths) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: files::read(&paths.certificate, MAX_BYTES)?,
            key: files::read(&paths.key, MAX_BYTES)?,
            client_ca: paths.client_ca.as_ref().map(|path| files::read(path, MAX_BYTES)).transpose()?,
        })
    }
}

/// Where the files are, and what is asked of clients.
#[derive(Clone, Debug)]
pub struct TlsPaths {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    required: bool,
}

impl TlsPaths {
    /// `None`: the ports speak plaintext.
    pub fn of(tls: &config::Tls) -> Option<Self> {
        let (certificate, key) = (tls.certificate.clone()?, tls.key.clone()?);
        let client_ca = tls.client_ca.clone().filter(|_| tls.client_certificate != ClientCertificate::Off);
        Some(Self { certificate, key, client_ca, required: tls.client_certificate == ClientCertificate::Required })
    }
}

impl Tls {
    /// # Errors
    /// Certificates and a key that don't make a server.
    pub fn new(paths: &TlsPaths, files: &Files) -> Result<Self, TlsError> {
        Ok(Self { config: Arc::new(ArcSwap::from_pointee(server(paths, files)?)) })
    }

    /// Takes other certificates from the next handshake on.
    ///
    /// # Errors
    /// As [`Tls::new`]; what was there stays.
    pub fn replace(&self, paths: &TlsPaths, files: &Files) -> Result<(), TlsError> {
        self.config.store(Arc::new(server(paths, files)?));
        Ok(())
    }

    pub fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        tokio_rustls::TlsAcceptor::from(self.config.load_full())
    }
}

fn server(paths: &TlsPaths, files: &Files) -> Result<ServerConfig, TlsError> {
    let chain = certificates(&paths.certificate, &files.certificate)?;
    let pem = |_| TlsError::Pem { path: paths.key.clone(), what: "private key" };
    let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(pem)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let refused = |source| TlsError::Refused { path: paths.certificate.clone(), source };
    let expires = chain.first().and_then(certificate::expires);
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(refused)?;
    let builder = match (&paths.client_ca, &files.client_ca) {
        (Some(path), Some(bytes)) => builder.with_client_cert_verifier(verifier(path, bytes, paths.required, provider)?),
        _ => builder.with_no_client_auth(),
    };
    let mut server = builder.with_single_cert(chain, key).map_err(refused)?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    metrics::gauge!("delo_tls_certificate_expiry_timestamp_seconds").set(expires.unwrap_or(0) as f64);
    Ok(server)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let none = || TlsError::Pem { path: path.to_owned(), what: "certificate" };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| none())?;
    if certificates.is_empty() { Err(none()) } else { Ok(certificates) }
}

fn verifier(
    path: &Path,
    pem: &[u8],
    required: bool,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|source| TlsError::Refused { path: path.to_owned(), source })?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|source| TlsError::ClientCa { path: path.to_owned(), source })
}
