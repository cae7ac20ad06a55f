//! Where the server is, how the client shows who it is, and what holds for all its calls.
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};

use crate::call::header;
use crate::client::{Client, Settings};
use crate::error::{BoxError, causes};
use crate::token::{Authorization, Token};
use crate::{ConnectError, Retry};

/// Bytes of a received message: tonic's own limit, 4 MiB, is less than the answers of a batch may need.
const RECEIVED_BYTES: usize = 64 << 20;

/// Settings of a [`Client`].
///
/// ```no_run
/// use std::time::Duration;
/// use delo_client::Client;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder("https://delo.example:50051")
///     .ca_certificate(std::fs::read("ca.pem")?)
///     .token_file("/run/secrets/delo-token")
///     .timeout(Duration::from_secs(2))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Builder {
    servers: Vec<String>,
    token: Option<Token>,
    ca: Vec<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    domain_name: Option<String>,
    connect_timeout: Duration,
    timeout: Option<Duration>,
    retry: Retry,
    keepalive: Option<(Duration, Duration)>,
    received_bytes: usize,
    sent_bytes: usize,
    user_agent: String,
    metadata: Vec<(String, String)>,
}

impl fmt::Debug for Builder {
    /// Shows no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("servers", &self.servers).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new(server: String) -> Self {
        Self {
            servers: vec![server],
            token: None,
            ca: Vec::new(),
            identity: None,
            domain_name: None,
            connect_timeout: Duration::from_secs(5),
            timeout: Some(Duration::from_secs(30)),
            retry: Retry::default(),
            keepalive: None,
            received_bytes: RECEIVED_BYTES,
            sent_bytes: usize::MAX,
            user_agent: concat!("delo-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            metadata: Vec::new(),
        }
    }

    /// Another server of the same fleet. Calls go to the servers in turn, and so do the attempts of one call.
    /// All have the same token, certificates and domain name.
    pub fn server(mut self, server: impl Into<String>) -> Self {
        self.servers.push(server.into());
        self
    }

    /// The token by which the server knows this client, sent as `authorization: Bearer`. Without TLS
    /// everybody on the way can read it.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Token::Fixed(token.into()));
        self
    }

    /// A file that holds the token. It is read again before an attempt, at most once a second, so that the
    /// token can be exchanged. Where it cannot be read any more, the token that was read last is sent.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(Token::File(path.into()));
        self
    }

    /// A function that returns the token. It is called before every attempt: keep the token in it where
    /// making one takes long. Where it fails, the call ends with UNAUTHENTICATED.
    ///
    /// ```
    /// # use delo_client::Client;
    /// Client::builder("https://localhost:50051").token_with(|| async { Ok(std::env::var("DELO_TOKEN")?) });
    /// ```
    pub fn token_with<F>(mut self, function: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, BoxError>> + Send + 'static,
    {
        self.token = Some(Token::Function(Box::new(move || Box::pin(function()))));
        self
    }

    /// Certificates in PEM of those who sign the server's certificate. Called again, it adds others. Without
    /// any, an https:// server is checked by those of the operating system (feature `native-roots`).
    pub fn ca_certificate(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.ca.push(pem.as_ref().to_owned());
        self
    }

    /// This client's certificate and its private key in PEM, for a server that asks for one.
    pub fn client_certificate(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.identity = Some((certificate.as_ref().to_owned(), key.as_ref().to_owned()));
        self
    }

    /// The name that the server's certificate must be for. Where this is not called, the host of the server's
    /// address.
    pub fn domain_name(mut self, name: impl Into<String>) -> Self {
        self.domain_name = Some(name.into());
        self
    }

    /// How long connecting to one server may take. By default 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a call may take, all attempts and waits included, unless the call says otherwise. By default
    /// 30 s. `None`: as long as the server's own setting allows each attempt. It does not hold for streams.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// When a call is tried again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Sends an HTTP/2 ping each `interval`, also while no call is in flight, and closes the connection where
    /// none is answered within `timeout`. By default none is sent: needed where something on the way forgets
    /// idle connections.
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keepalive = Some((interval, timeout));
        self
    }

    /// Bytes of the longest message that is received. By default 64 MiB.
    pub fn max_received_bytes(mut self, bytes: usize) -> Self {
        self.received_bytes = bytes;
        self
    }

    /// Bytes of the longest message that is sent; a call with a longer one ends with RESOURCE_EXHAUSTED
    /// before it is sent, and a stream with a longer one ends. By default the server's limit alone holds.
    pub fn max_sent_bytes(mut self, bytes: usize) -> Self {
        self.sent_bytes = bytes;
        self
    }

    /// What the client calls itself. tonic adds its own name. By default `delo-client/VERSION`.
    pub fn user_agent(mut self, name: impl Into<String>) -> Self {
        self.user_agent = name.into();
        self
    }

    /// A header that is sent with every call.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((name.into(), value.into()));
        self
    }

    /// Connects. Of several servers, one that can be reached is enough. A connection that breaks later is
    /// made again by itself.
    ///
    /// # Errors
    /// [`ConnectError`]: a setting is wrong, the token's file cannot be read, or no server can be reached.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let endpoints = self.endpoints()?;
        let (servers, limit) = (self.servers.clone(), self.connect_timeout);
        let mut first_failure = None;
        let mut channels = Vec::new();
        let mut connected = false;
        for (endpoint, server) in endpoints.iter().zip(servers) {
            // One is enough to begin with.
            if !connected {
                let failure = match tokio::time::timeout(limit, endpoint.connect()).await {
                    Ok(Ok(channel)) => {
                        channels.push(channel);
                        connected = true;
                        continue;
                    }
                    Ok(Err(error)) => ConnectError::Unreachable { server, reason: causes(&error), source: Some(error) },
                    Err(_) => ConnectError::Unreachable { server, reason: format!("no answer within {limit:?}"), source: None },
                };
                first_failure.get_or_insert(failure);
            }
            channels.push(endpoint.connect_lazy());
        }
        if let Some(failure) = first_failure.filter(|_| !connected) {
            return Err(failure);
        }
        let client = self.over(channels)?;
        if let Some(authorization) = client.authorization() {
            authorization.check().await?;
        }
        Ok(client)
    }

    /// Connects at the first call, so that the server may start later than its client. Must be called within
    /// a tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError`]: a setting is wrong.
    pub fn connect_lazy(self) -> Result<Client, ConnectError> {
        let channels = self.endpoints()?.iter().map(Endpoint::connect_lazy).collect();
        self.over(channels)
    }

    /// A client over a channel of the caller's own: through a Unix socket, a proxy or a layer of tower. The
    /// channel's maker decides address, TLS, user agent, keepalive and the time to connect; what is set here
    /// of those has no effect.
    ///
    /// # Errors
    /// [`ConnectError`]: the token or the metadata cannot be sent.
    pub fn over_channel(self, channel: Channel) -> Result<Client, ConnectError> {
        self.over(vec![channel])
    }

    fn over(self, channels: Vec<Channel>) -> Result<Client, ConnectError> {
        let mut metadata = MetadataMap::new();
        for (name, value) in &self.metadata {
            let (name, value) = header(name, value).ok_or_else(|| ConnectError::Header(name.clone()))?;
            metadata.insert(name, value);
        }
        Ok(Client::new(Settings {
            channels,
            authorization: self.token.map(Authorization::of).transpose()?,
            metadata,
            timeout: self.timeout,
            retry: self.retry,
            received_bytes: self.received_bytes,
            sent_bytes: self.sent_bytes,
        }))
    }

    fn endpoints(&self) -> Result<Vec<Endpoint>, ConnectError> {
        self.servers.iter().map(|server| self.endpoint(server)).collect()
    }

    fn endpoint(&self, server: &str) -> Result<Endpoint, ConnectError> {
        let address = |reason: &dyn fmt::Display| ConnectError::Address { server: server.to_owned(), reason: reason.to_string() };
        let certified = !self.ca.is_empty() || self.identity.is_some();
        let url = match (server.contains("://"), certified) {
            (true, _) => server.to_owned(),
            (false, true) => format!("https://{server}"),
            (false, false) => format!("http://{server}"),
        };
        let uri: Uri = url.parse().map_err(|error| address(&error))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| address(&"it names no host"))?.to_owned();
        let secure = match uri.scheme_str() {
            Some("http") if certified => return Err(ConnectError::Tls(format!("a certificate needs TLS: give https://…, not {server}"))),
            Some("http") => false,
            Some("https") => true,
            _ => return Err(address(&"its scheme is neither http nor https")),
        };
        let mut endpoint = Endpoint::from(uri)
            .user_agent(self.user_agent.clone())
            .map_err(|_| ConnectError::Header(self.user_agent.clone()))?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true);
        if let Some((interval, timeout)) = self.keepalive {
            endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(timeout).keep_alive_while_idle(true);
        }
        if secure {
            endpoint = endpoint.tls_config(self.tls(&host)?).map_err(|error| ConnectError::Tls(causes(&error)))?;
        }
        Ok(endpoint)
    }

    fn tls(&self, host: &str) -> Result<ClientTlsConfig, ConnectError> {
        let name = self.domain_name.as_deref().unwrap_or_else(|| host.trim_start_matches('[').trim_end_matches(']'));
        let mut tls = ClientTlsConfig::new().domain_name(name).timeout(self.connect_timeout);
        if self.ca.is_empty() {
            #[cfg(feature = "native-roots")]
            {
                tls = tls.with_native_roots();
            }
            #[cfg(not(feature = "native-roots"))]
            return Err(ConnectError::Tls("whose certificate is the server's? give ca_certificate".to_owned()));
        }
        for pem in &self.ca {
            if !pem.windows(BEGINNING.len()).any(|window| window == BEGINNING) {
                return Err(ConnectError::Tls("ca_certificate holds no certificate in PEM".to_owned()));
            }
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        }
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        Ok(tls)
    }
}

/// How a certificate in PEM begins.
const BEGINNING: &[u8] = b"-----BEGIN CERTIFICATE-----";
