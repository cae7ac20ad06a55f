//! A client command's connection to its server. Its errors say what is probably wrong and what to do.
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// How long connecting may take, TLS included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The default ports, for messages.
const PORTS: &str = "the classifier listens at port 50051 and the admin service at 50052, unless they are set otherwise";

/// Where a server is, and how to speak to it.
#[derive(Clone)]
pub struct Target {
    /// As it was given, for messages.
    pub server: String,
    /// A name or an address, an IPv6 address without its brackets.
    pub host: String,
    /// `None`: the default of the scheme.
    pub port: Option<u16>,
    /// `None`: plaintext.
    pub tls: Option<Arc<ClientConfig>>,
    /// The client has a certificate to show.
    pub certified: bool,
}

/// What happened to a connection. Clones share it.
#[derive(Clone, Default)]
pub struct Observed(Arc<Mutex<Observations>>);

/// Each is of the first connection that had one.
#[derive(Default)]
struct Observations {
    /// Why there is no connection at all.
    unreachable: Option<io::Error>,
    /// TCP stands, and TLS where it is spoken.
    connected: bool,
    /// The first bytes from the server, in TLS the first ones that were encrypted.
    first: Vec<u8>,
    /// What ended the handshake of TLS, or the connection.
    broken: Option<io::Error>,
    /// The server has closed the connection.
    closed: bool,
}

type Stream = Either<TcpStream, TlsStream<TcpStream>>;

impl Target {
    /// # Errors
    /// No connection; `observed` knows why.
    pub async fn connect(&self, observed: &Observed) -> io::Result<TokioIo<Watched>> {
        let timeout = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", TIMEOUT.as_secs()));
        let port = self.port.unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let reached = tokio::time::timeout(TIMEOUT, TcpStream::connect((self.host.as_str(), port))).await;
        let tcp = match reached.map_err(timeout).flatten() {
            Ok(tcp) => tcp,
            Err(error) => return Err(kept(&mut observed.lock().unreachable, error)),
        };
        tcp.set_nodelay(true)?;
        let stream = match &self.tls {
            None => Either::Left(tcp),
            Some(config) => {
                let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
                let shaken = tokio::time::timeout(TIMEOUT, TlsConnector::from(config.clone()).connect(name, tcp)).await;
                match shaken.map_err(timeout).flatten() {
                    Ok(stream) => Either::Right(stream),
                    Err(error) => return Err(kept(&mut observed.lock().broken, error)),
                }
            }
        };
        observed.lock().connected = true;
        Ok(TokioIo::new(Watched { stream, observed: observed.clone(), failed: None }))
    }

    /// Why the connection makes calls fail, and what to do; `None` where the connection shows no reason.
    pub fn explain(&self, observed: &Observed) -> Option<String> {
        let Observations { unreachable, connected, first, broken, closed } = &*observed.lock();
        let server = &self.server;
        if let Some(error) = unreachable {
            let port = if self.port.is_none() { format!(" (it names no port; {PORTS})") } else { String::new() };
            return Some(format!(
                "no server answers at {server}{port}: {error}; start one with `delo serve`, or name another with --server"
            ));
        }
        if let Some(error) = broken.as_ref().and_then(|error| error.get_ref()?.downcast_ref()) {
            return Some(self.explain_tls(error));
        }
        if first.starts_with(b"HTTP/1") {
            return Some(format!("{server} is a web server and speaks no gRPC; is it the metrics port? {PORTS}"));
        }
        // A record of TLS: an alert or a handshake, of version 3.
        if self.tls.is_none() && matches!(first[..], [21 | 22, 3, ..]) {
            return Some(format!(
                "{server} speaks TLS: give --server as https://…, and --ca, a PEM file of those who sign its certificate"
            ));
        }
        if !first.is_empty() || !(*closed || broken.is_some()) {
            return None;
        }
        Some(match (self.tls.is_some(), connected, self.certified) {
            (false, ..) => {
                format!("{server} closed the connection without an answer; a port that speaks TLS needs https:// and --ca, and {PORTS}")
            }
            (true, false, _) => format!("{server} does not speak TLS: give --server as http://… without --ca, or name its port with TLS"),
            (true, true, false) => {
                format!(
                    "{server} closed the connection after the TLS handshake; if it asks clients for a certificate, give \
                     --client-cert and --client-key"
                )
            }
            (true, true, true) => format!(
                "{server} closed the connection after the TLS handshake; is --client-cert signed by those whom \
                  the server trusts, and has it not expired?"
            ),
        })
    }

    fn explain_tls(&self, error: &rustls::Error) -> String {
        use AlertDescription as Alert;
        let server = &self.server;
        let certificate = format!("the certificate of {server}");
        match error {
            rustls::Error::InvalidCertificate(wrong) => match wrong {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    format!("{certificate} is not signed by --ca: give the PEM file of those who sign it")
                }
                CertificateError::NotValidForName => {
                    format!("{certificate} is not for the name {}: give --server by a name in it", self.host)
                }
                CertificateError::NotValidForNameContext { presented, .. } => {
                    // Each as `DnsName("localhost")`.
                    let names: Vec<_> = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name)).collect();
                    format!("{certificate} is for {}, not for {}: give --server by a name in it", names.join(", "), self.host)
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    format!("{certificate} has expired: its operator must renew it (tls.certificate)")
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    format!("{certificate} is not valid yet: is the clock of this machine right?")
                }
                // The verifier gives it no name of its own.
                CertificateError::Other(cause) if cause.to_string().contains("CaUsedAsEndEntity") => format!(
                    "{certificate} is that of an authority, which signs others: its operator must set tls.certificate to one that is \
                     the server's own"
                ),
                other => format!("{certificate} is not accepted: {other}"),
            },
            rustls::Error::InvalidMessage(_) => {
                format!("{server} does not speak TLS: give --server as http://… without --ca, or name its port with TLS")
            }
            rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::NoCertificate) => {
                format!("{server} asks for a certificate of the client: give --client-cert and --client-key")
            }
            rustls::Error::AlertReceived(Alert::HandshakeFailure) if !self.certified => {
                format!("{server} refuses the TLS handshake; if it asks clients for a certificate, give --client-cert and --client-key")
            }
            rustls::Error::AlertReceived(Alert::CertificateExpired) => {
                format!("{server} refuses --client-cert: it has expired or is not valid yet; give another")
            }
            rustls::Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => {
                format!("{server} refuses --client-cert: it is not signed by those whom the server trusts (tls.client_ca)")
            }
            rustls::Error::AlertReceived(
                alert @ (Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::AccessDenied),
            ) => format!(
                "{server} refuses --client-cert ({alert:?}): give one that is made for clients and signed by those whom the server trusts"
            ),
            rustls::Error::AlertReceived(Alert::NoApplicationProtocol) => {
                format!("{server} speaks TLS, but no HTTP/2 in it; is it this server's port? {PORTS}")
            }
            other => format!("TLS with {server} fails: {other}"),
        }
    }
}

/// Stores the first error in `place`; returns one of the same kind and words.
fn kept(place: &mut Option<io::Error>, error: io::Error) -> io::Error {
    let like = io::Error::new(error.kind(), error.to_string());
    place.get_or_insert(error);
    like
}

impl Observed {
    fn lock(&self) -> MutexGuard<'_, Observations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that records what happens to it.
pub struct Watched {
    stream: Stream,
    observed: Observed,
    /// The error of a write that failed and was not returned yet.
    failed: Option<io::Error>,
}

impl Watched {
    /// Returns the error of a failed write after all that the server has sent is read: it may have sent the
    /// reason before it closed the connection, and the transport does not read a connection whose write has
    /// failed. What the server sent arrives before its close, so that reading ends.
    fn after_last_read(&mut self, cx: &mut Context<'_>, error: io::Error) -> Poll<io::Error> {
        let error = self.failed.take().unwrap_or(error);
        loop {
            let mut rest = [0; 256];
            let mut buffer = ReadBuf::new(&mut rest);
            match Pin::new(&mut *self).poll_read(cx, &mut buffer) {
                Poll::Pending => {
                    self.failed = Some(error);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(kept(&mut self.observed.lock().broken, error)),
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        /// Bytes by which protocols are recognised.
        const FIRST: usize = 8;
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        let mut observed = self.observed.lock();
        Poll::Ready(match read {
            Ok(()) => {
                let new = &buffer.filled()[before..];
                observed.closed |= new.is_empty() && buffer.remaining() > 0;
                let missing = FIRST.saturating_sub(observed.first.len());
                observed.first.extend(new.iter().take(missing));
                Ok(())
            }
            Err(error) => Err(kept(&mut observed.broken, error)),
        })
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.stream).poll_write(cx, bytes)) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(error) => self.after_last_read(cx, error).map(Err),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => self.after_last_read(cx, error).map(Err),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
