//! What the client commands share: connecting, waiting, and telling of a refusal.
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::Failure;

/// Until a connection must stand.
const CONNECT: Duration = Duration::from_secs(5);

/// The longest token.
const MAX_TOKEN: usize = 4096;

/// Who the client is, and whom it trusts.
#[derive(clap::Args)]
pub struct Credentials {
    /// A file that holds the token by which the server knows this client; else the environment variable DELO_TOKEN.
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
    /// Says where credentials are, and nothing that they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("token_file", &self.token_file).field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// A connection that shows the client's token, if it has one, with every call.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// Puts a token into every call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

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
                // Not taken for absent: the call would go out without a token.
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
    fn tls(&self, server: &str, secure: bool) -> Result<Option<ClientTlsConfig>, Failure> {
        if !secure {
            let given = [("--ca", &self.ca), ("--client-cert", &self.client_cert)].into_iter().find(|(_, file)| file.is_some());
            return given
                .map_or(Ok(None), |(flag, _)| Err(Failure::usage(format!("{flag} needs TLS: give --server as https://…, not {server}"))));
        }
        let Some(ca) = &self.ca else {
            return Err(Failure::usage("whose certificate is the server's? give --ca, a PEM file of those who sign it"));
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let Some((certificate, key)) = self.client_cert.as_ref().zip(self.client_key.as_ref()) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(Some(tls))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    Ok(std::fs::read(path).map_err(|e| format!("can't read {}: {e}", path.display()))?)
}

/// Connects to `server` and runs one exchange with it.
pub fn exchange<T, F: Future<Output = Result<T, Failure>>>(
    server: &str,
    credentials: &Credentials,
    talk: impl FnOnce(Authorized) -> F,
) -> Result<T, Failure> {
    let url = match (server.contains("://"), &credentials.ca) {
        (true, _) => server.to_owned(),
        (false, Some(_)) => format!("https://{server}"),
        (false, None) => format!("http://{server}"),
    };
    let secure = url.starts_with("https://");
    let mut endpoint =
        Endpoint::from_shared(url).map_err(|e| Failure::usage(format!("--server {server}: {e}; give it as http://127.0.0.1:50051")))?;
    if let Some(tls) = credentials.tls(server, secure)? {
        endpoint = endpoint.tls_config(tls).map_err(|e| format!("--ca, --client-cert or --client-key: {}", causes(&e)))?;
    }
    let bearer = credentials.bearer()?;
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let channel = endpoint.connect_timeout(CONNECT).connect().await.map_err(|error| match secure {
            true => {
                format!("no connection to {server}: {}; is it the server's name, and is its certificate signed by --ca?", causes(&error))
            }
            false => format!("no server answers at {server}: start one with `delo serve`, or name another with --server"),
        })?;
        talk(InterceptedService::new(channel, bearer)).await
    })
}

/// An error and what it came from, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// A refusal as one line: code, message, fields, and when to retry.
pub fn refusal(status: &Status) -> Failure {
    let mut line = format!("{:?}: {}", status.code(), status.message());
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
