//! TLS of the gRPC ports: certificates that are read again while the server runs, and the check of clients'
//! certificates.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::certificate;
use super::files::{self, FileError};
use crate::config::{self, ClientCertificate};
use crate::metric_table::CERTIFICATE_EXPIRY;

/// The longest file of certificates.
const MAX_BYTES: u64 = 1 << 20;
const DAY: i64 = 86_400;
/// The first byte of a file in DER.
const DER_SEQUENCE: u8 = 0x30;
/// How long before a certificate expires the log warns of it; the alert DeloCertificateExpires has the same
/// time.
const SOON: i64 = 14 * DAY;

/// Why certificates are not taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path} holds no {what} in PEM: {hint}")]
    Pem { path: PathBuf, what: &'static str, hint: String },
    #[error(
        "{path} holds an encrypted private key, and a server has nobody to ask for the passphrase: decrypt it \
         (openssl pkey -in {path} -out NEW), and let the server's user alone read it"
    )]
    Encrypted { path: PathBuf },
    #[error(
        "{path}: the private key is damaged, or of a kind that is not supported: use ECDSA with P-256 or P-384, \
         Ed25519, or RSA with 2048 to 8192 bits"
    )]
    Key { path: PathBuf },
    #[error("the private key in {key} is not the one of the certificate in {certificate}: give files that belong together")]
    Mismatch { key: PathBuf, certificate: PathBuf },
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

/// The configuration of handshakes. Clones share it.
#[derive(Clone)]
pub struct Tls {
    /// For further handshakes; a connection keeps the configuration that it was made with.
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

    /// Warns in the log of certificates that are not valid yet, have expired or will soon expire.
    #[expect(clippy::disallowed_methods, reason = "certificates are valid by the time of day")]
    pub fn warn_of_validity(&self, paths: &TlsPaths) {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let of_clients = paths.client_ca.as_deref().zip(self.client_ca.as_deref());
        for (path, pem) in [(paths.certificate.as_path(), self.certificate.as_slice())].into_iter().chain(of_clients) {
            for certificate in certificates(path, pem).unwrap_or_default() {
                if let Some(concern) = concern(&certificate, now) {
                    let subject = certificate::names(&certificate).into_iter().next().unwrap_or_default();
                    tracing::warn!(file = %path.display(), subject, "a certificate {concern}: put another in its place");
                }
            }
        }
    }
}

/// Where the files are, and whether clients need a certificate.
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

    /// Uses other certificates from the next handshake on.
    ///
    /// # Errors
    /// As [`Tls::new`]; what was there stays.
    pub fn replace(&self, paths: &TlsPaths, files: &Files) -> Result<(), TlsError> {
        self.config.store(Arc::new(server(paths, files)?));
        Ok(())
    }

    /// For a port that speaks this protocol.
    pub fn acceptor(&self, alpn: &[u8]) -> tokio_rustls::TlsAcceptor {
        let mut config = self.config.load_full();
        if !config.alpn_protocols.iter().any(|protocol| protocol == alpn) {
            Arc::make_mut(&mut config).alpn_protocols = vec![alpn.to_vec()];
        }
        tokio_rustls::TlsAcceptor::from(config)
    }
}

fn server(paths: &TlsPaths, files: &Files) -> Result<ServerConfig, TlsError> {
    let chain = certificates(&paths.certificate, &files.certificate)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = private_key(&paths.key, &files.key, &provider)?;
    let refused = |source| match source {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { key: paths.key.clone(), certificate: paths.certificate.clone() },
        source => TlsError::Refused { path: paths.certificate.clone(), source },
    };
    let expires = chain.first().and_then(certificate::validity).map(|(_, until)| until);
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(refused)?;
    let builder = match (&paths.client_ca, &files.client_ca) {
        (Some(path), Some(bytes)) => builder.with_client_cert_verifier(verifier(path, bytes, paths.required, provider)?),
        _ => builder.with_no_client_auth(),
    };
    let mut server = builder.with_single_cert(chain, key).map_err(refused)?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    CERTIFICATE_EXPIRY.with([]).set(expires.unwrap_or(0) as f64);
    Ok(server)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let none = |error: Option<pem::Error>| missing(path, pem, "certificate", error);
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| none(Some(error)))?;
    if certificates.is_empty() { Err(none(None)) } else { Ok(certificates) }
}

/// The first private key in a file, of a kind that the server can sign with.
fn private_key(path: &Path, pem: &[u8], provider: &CryptoProvider) -> Result<PrivateKeyDer<'static>, TlsError> {
    let has = |words: &str| pem.windows(words.len()).any(|window| window == words.as_bytes());
    // PKCS #8, and OpenSSL's older way.
    if has("-----BEGIN ENCRYPTED PRIVATE KEY-----") || has("Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::Encrypted { path: path.to_owned() });
    }
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| missing(path, pem, "private key", Some(error)))?;
    let usable = provider.key_provider.load_private_key(key.clone_key());
    usable.map_err(|_| TlsError::Key { path: path.to_owned() })?;
    Ok(key)
}

/// Why a file lacks a certificate or a private key, and what to do.
fn missing(path: &Path, bytes: &[u8], what: &'static str, error: Option<pem::Error>) -> TlsError {
    let has = |words: &str| bytes.windows(words.len()).any(|window| window == words.as_bytes());
    let command = if what == "certificate" { "x509" } else { "pkey" };
    let hint = if bytes.trim_ascii().is_empty() {
        "it is empty".to_owned()
    } else if bytes.first() == Some(&DER_SEQUENCE) {
        format!("it is in DER, convert it: openssl {command} -inform DER -in {} -out NEW", path.display())
    } else if what != "certificate" && has("-----BEGIN CERTIFICATE-----") {
        "it holds a certificate, are tls.certificate and tls.key exchanged?".to_owned()
    } else if what == "certificate" && has("PRIVATE KEY-----") {
        "it holds a private key, are tls.certificate and tls.key exchanged?".to_owned()
    } else {
        match error {
            None | Some(pem::Error::NoItemsFound) => format!("such a file has a line -----BEGIN {}-----", what.to_ascii_uppercase()),
            Some(pem::Error::MissingSectionEnd { .. }) => "its line -----END …----- is missing, the file is cut off".to_owned(),
            Some(_) => "its text is damaged, copy the file again".to_owned(),
        }
    };
    TlsError::Pem { path: path.to_owned(), what, hint }
}

/// What the log says of a certificate that is not valid at `now`, in seconds since 1970, or soon will not be.
fn concern(certificate: &CertificateDer<'_>, now: i64) -> Option<String> {
    let (from, until) = certificate::validity(certificate)?;
    let day = |seconds| OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default();
    if now < from {
        Some(format!("is not valid before {}", day(from)))
    } else if until <= now {
        Some(format!("has expired, on {}", day(until)))
    } else if until - now < SOON {
        Some(format!("expires on {}, in {} days", day(until), (until - now) / DAY))
    } else {
        None
    }
}

fn verifier(path: &Path, pem: &[u8], required: bool, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|source| TlsError::Refused { path: path.to_owned(), source })?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|source| TlsError::ClientCa { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    /// `openssl ecparam -name secp521r1 -genkey -noout`.
    const P521: &str = "-----BEGIN EC PRIVATE KEY-----
MIHcAgEBBEIAwPMSqmqQIB7LbUg4JtWx+P+M4dogaQXuzujh3pfZidR/kXSnhsmb
TwXlysi+qovBAYQEqPWvcICW0i9bj2Hb24ygBwYFK4EEACOhgYkDgYYABABQtJAq
t0uyhNWUrFYCS4Qwbcz0qgzjNZFmiIy7WwwQEZ5C/7zCbjRp3Ht3lZO1nTV4Tzmo
9fIn1ddJOWxaQOUxjwAOFxAwbCA2Jw018WlX3w7N9Y3f57FzOf2JHrKvKeEb2BkS
QU6QJwODsgWF1gc+JuMeizLhJKddsL60Ak10jvs8KA==
-----END EC PRIVATE KEY-----
";

    fn issued() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "server");
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn files_that_make_no_server_are_named_with_what_to_do() {
        let paths = TlsPaths { certificate: "cert.pem".into(), key: "key.pem".into(), client_ca: None, required: false };
        let refused = |certificate: &[u8], key: &[u8]| {
            let files = Files { certificate: certificate.to_vec(), key: key.to_vec(), client_ca: None };
            server(&paths, &files).expect_err("no server").to_string()
        };
        let ((certificate, key), (_, another)) = (issued(), issued());
        let [certificate, key] = [certificate.as_bytes(), key.as_bytes()];
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIH0\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let older =
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIH0\n-----END RSA PRIVATE KEY-----\n";
        for (certificate, key, file, words) in [
            (certificate, encrypted.as_bytes(), "key.pem", "openssl pkey -in key.pem"),
            (certificate, older.as_bytes(), "key.pem", "openssl pkey -in key.pem"),
            (certificate, P521.as_bytes(), "key.pem", "P-256 or P-384"),
            (certificate, another.as_bytes(), "key.pem", "not the one of the certificate in cert.pem"),
            (key, certificate, "cert.pem", "exchanged"),
            (certificate, certificate, "key.pem", "exchanged"),
            (certificate, b"", "key.pem", "empty"),
            (b"\n", key, "cert.pem", "empty"),
            (b"\x30\x82\x01\x00", key, "cert.pem", "openssl x509 -inform DER"),
            (certificate, b"\x30\x82\x01\x00", "key.pem", "openssl pkey -inform DER"),
            (certificate, b"hello", "key.pem", "BEGIN PRIVATE KEY"),
            (&certificate[..certificate.len() / 2], key, "cert.pem", "cut off"),
        ] {
            let message = refused(certificate, key);
            assert!(message.contains(file) && message.contains(words), "{message}");
        }
        let both = [certificate, key].concat();
        assert!(server(&paths, &Files { certificate: both.clone(), key: both, client_ca: None }).is_ok());
    }

    #[test]
    fn a_warning_names_the_day_on_which_a_certificate_becomes_valid_or_expires() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(2030, 1, 1);
        params.not_after = rcgen::date_time_ymd(2031, 1, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let on = |year, month, day| concern(certificate.der(), rcgen::date_time_ymd(year, month, day).unix_timestamp());
        assert_eq!(on(2029, 12, 31).unwrap(), "is not valid before 2030-01-01T00:00:00Z");
        assert_eq!(on(2030, 1, 1), None);
        assert_eq!(on(2030, 12, 18), None);
        assert_eq!(on(2030, 12, 19).unwrap(), "expires on 2031-01-01T00:00:00Z, in 13 days");
        assert_eq!(on(2031, 1, 1).unwrap(), "has expired, on 2031-01-01T00:00:00Z");
    }
}
