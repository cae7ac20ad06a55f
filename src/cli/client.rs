//! What the client commands share: connecting, waiting, and the line about a refusal.
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Uri;
use http::uri::Scheme;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, TimeoutExpired};
use tonic_types::StatusExt;

use super::Failure;
use super::connect::{Observed, Target};

/// The longest token.
const MAX_TOKEN: usize = 4096;

/// The client's credentials, and the authorities that it trusts.
#[derive(clap::Args)]
pub struct Credentials {
    /// A file that holds the token by which the server knows this client; else the environment variable
    /// DELO_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates in PEM of those who sign the server's certificate; the server's address is then https://.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// This client's certificate in PEM, for a server that asks for one.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Its private key in PEM.
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
}

impl fmt::Debug for Credentials {
    /// Shows the paths of the credentials, never their contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("token_file", &self.token_file).field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// A connection that shows the client's token, if it has one, with every call.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// Puts a token into every call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// No token.
    pub fn none() -> Self {
        Self(None)
    }

    /// A connection that shows it with every call.
    pub fn on(self, channel: Channel) -> Authorized {
        InterceptedService::new(channel, self)
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Credentials {
    fn bearer(&self) -> Result<Bearer, Failure> {
        let token = match &self.token_file {
            Some(path) => Some(String::from_utf8(read(path)?).map_err(|_| format!("{} holds no token: it is no text", path.display()))?),
            None => match std::env::var("DELO_TOKEN") {
                // If this counted as absent, the call would be sent without a token.
                Err(std::env::VarError::NotUnicode(_)) => return Err("DELO_TOKEN: a token is printable ASCII, this one is not".into()),
                token => token.ok().filter(|token| !token.is_empty()),
            },
        };
        let Some(token) = token else { return Ok(Bearer(None)) };
        let token = token.trim();
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(format!("a token has 1 to {MAX_TOKEN} bytes, this one has {}", token.len()).into());
        }
        let value = MetadataValue::try_from(format!("Bearer {token}"));
        let mut value = value.map_err(|_| "a token is printable ASCII, this one is not".to_owned())?;
        // So that no layer below shows it.
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }

    /// `None`: plaintext.
    fn tls(&self, server: &str, secure: bool) -> Result<Option<Arc<ClientConfig>>, Failure> {
        if !secure {
            let given = [("--ca", &self.ca), ("--client-cert", &self.client_cert)].into_iter().find(|(_, file)| file.is_some());
            return given
                .map_or(Ok(None), |(flag, _)| Err(Failure::usage(format!("{flag} needs TLS: give --server as https://…, not {server}"))));
        }
        let Some(ca) = &self.ca else {
            return Err(Failure::usage("whose certificate is the server's? give --ca, a PEM file of those who sign it"));
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|e| format!("{}: {e}", ca.display()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_root_certificates(roots);
        let mut tls = match self.client_cert.as_ref().zip(self.client_key.as_ref()) {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| no_pem(key, "private key"))?;
                let refused = |e| format!("{} and {}: {e}", certificate.display(), key.display());
                builder.with_client_auth_cert(certificates(certificate)?, private).map_err(refused)?
            }
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(Arc::new(tls)))
    }

    /// The server's address, and what is needed to speak to it.
    fn target(&self, server: &str) -> Result<Target, Failure> {
        let url = match (server.contains("://"), &self.ca) {
            (true, _) => server.to_owned(),
            (false, Some(_)) => format!("https://{server}"),
            (false, None) => format!("http://{server}"),
        };
        let wrong = |reason: &dyn fmt::Display| Failure::usage(format!("--server {server}: {reason}; give it as http://127.0.0.1:50051"));
        let uri: Uri = url.parse().map_err(|e| wrong(&e))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong(&"it names no host"))?;
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        Ok(Target {
            server: server.to_owned(),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16(),
            tls: self.tls(server, secure)?,
            certified: self.client_cert.is_some(),
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(|_| no_pem(path, "certificate"))?;
    if certificates.is_empty() { Err(no_pem(path, "certificate")) } else { Ok(certificates) }
}

fn no_pem(path: &Path, what: &str) -> Failure {
    Failure::Other(format!("{} holds no {what} in PEM", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    Ok(std::fs::read(path).map_err(|e| format!("can't read {}: {e}", path.display()))?)
}

/// Connects to `server` and runs one exchange with it.
pub fn exchange<T, F: Future<Output = Result<T, Status>>>(
    server: &str,
    credentials: &Credentials,
    talk: impl FnOnce(Authorized) -> F,
) -> Result<T, Failure> {
    let target = credentials.target(server)?;
    let bearer = credentials.bearer()?;
    let observed = Observed::default();
    let scheme = if target.tls.is_some() { "https" } else { "http" };
    let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let authority = target.port.map_or(host.clone(), |port| format!("{host}:{port}"));
    // The connection brings TLS with it: for the transport it is a plain one.
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?.origin(format!("{scheme}://{authority}").parse()?);
    let connector = {
        let (target, observed) = (target.clone(), observed.clone());
        tower::service_fn(move |_: Uri| {
            let (target, observed) = (target.clone(), observed.clone());
            async move { target.connect(&observed).await }
        })
    };
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| target.explain(&observed).unwrap_or_else(|| format!("no connection to {server}: {}", causes(&error))))?;
        talk(bearer.on(channel)).await.map_err(|status| {
            // A status that the server sent has no source.
            let on_the_way = status.source().and_then(|_| target.explain(&observed));
            on_the_way.map_or_else(|| refusal(&status), Failure::Other)
        })
    })
}

/// An error and what it came from, on one line.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut line = error.downcast_ref::<Status>().map_or_else(|| error.to_string(), |status| status.message().to_owned());
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(&format!(": {text}"));
        }
        next = cause.source();
    }
    line
}

/// A refusal as one line: code, message, fields, and when to retry.
fn refusal(status: &Status) -> Failure {
    if status.source().is_some_and(|source| source.is::<TimeoutExpired>()) {
        return Failure::Other(
            "DeadlineExceeded: no answer came in time; give it more with --timeout, or look at the server's load".to_owned(),
        );
    }
    let message = if status.code() == Code::Unimplemented && status.message().is_empty() {
        "nothing here answers this call".to_owned()
    } else {
        causes(status)
    };
    let mut line = format!("{:?}: {message}", status.code());
    if let Some(field) = status.get_details_bad_request().and_then(|b| b.field_violations.into_iter().next()) {
        line.push_str(&format!(" (field {})", field.field));
    }
    if let Some(delay) = status.get_details_retry_info().and_then(|r| r.retry_delay) {
        line.push_str(&format!(" (retry in {:.1} s)", delay.as_secs_f64()));
    }
    if status.code() == Code::Unauthenticated {
        line.push_str("; give --token-file, DELO_TOKEN, or --client-cert");
    }
    if status.code() == Code::Unimplemented {
        line.push_str("; is this the right port of the server?");
    }
    Failure::Other(line)
}
