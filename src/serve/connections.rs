//! The connections of a port: how many there may be, how they begin, and the peer of each.
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::server::TlsStream;

use super::certificate;
use super::seldom::Seldom;
use super::tls::Tls;
use crate::metric_table::{CONNECTIONS, CONNECTIONS_REFUSED};

/// The first bytes of a client of HTTP/2.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that have not begun yet. One more ends the oldest of them, so that slow clients keep nobody
/// out.
const MAX_BEGINNING: usize = 1024;
/// Connections that have begun and wait to be served.
const MAX_BEGUN: usize = 64;
/// Wait after a failure to accept: the process is probably out of file descriptors, and an attempt at once
/// would spin.
const PAUSE: Duration = Duration::from_millis(50);

/// How connections of one port begin.
#[derive(Clone)]
pub struct Beginning {
    /// The port's name in metrics.
    pub port: &'static str,
    /// Connections at a time; a further one is closed as soon as it is accepted.
    pub most: usize,
    /// `None`: plaintext.
    pub tls: Option<Tls>,
    /// How long the TLS handshake may take.
    pub handshake: Duration,
    /// How long the client's HTTP/2 preface may take. `None`: the port speaks HTTP/1.1, which has none.
    pub preface: Option<Duration>,
    /// The protocol that a TLS client is offered.
    pub alpn: &'static [u8],
}

/// The other end of a connection; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: Option<SocketAddr>,
    /// Names in the client's certificate, which has been verified; `None` without one.
    pub names: Option<Arc<[String]>>,
}

/// The connections of `listener` that have begun, by TLS where the port speaks it and by HTTP/2's preface.
/// Dropping the receiver closes the listener and the connections that have not begun.
pub fn incoming(listener: TcpListener, beginning: Beginning) -> mpsc::Receiver<Connection> {
    let (begun, connections) = mpsc::channel(MAX_BEGUN);
    tokio::spawn(async move {
        tokio::select! {
            () = begun.closed() => {}
            () = accept(listener, beginning, &begun) => {}
        }
    });
    connections
}

async fn accept(listener: TcpListener, beginning: Beginning, begun: &mpsc::Sender<Connection>) {
    // A permit is a connection, from when it is accepted to when it is closed.
    let permits = Arc::new(Semaphore::new(beginning.most.min(Semaphore::MAX_PERMITS)));
    let (mut tasks, mut failures) = (Tasks::default(), Seldom::default());
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(times) = failures.happened() {
                    tracing::warn!(%error, times, port = beginning.port, "connections can't be accepted, the system refuses them");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            refused(beginning.port, "too_many");
            continue;
        };
        let open = Open::new(beginning.port, permit);
        let (beginning, begun) = (beginning.clone(), begun.clone());
        tasks.start(async move {
            // Dropped on any way out, an abort included, unless the connection has begun.
            let unbegun = Unbegun(Some(beginning.port));
            match begin(stream, address, &beginning, open).await {
                Ok(connection) => {
                    unbegun.begun();
                    // An error means that the port is closed.
                    let _ = begun.send(connection).await;
                }
                Err(error) => tracing::debug!(%error, "a connection did not begin"),
            }
        });
    }
}

/// The connections that are beginning, each in a task that ends with this.
#[derive(Default)]
struct Tasks {
    all: JoinSet<()>,
    /// From the oldest to the youngest; some have ended.
    order: VecDeque<AbortHandle>,
}

impl Tasks {
    fn start(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        while self.all.try_join_next().is_some() {}
        if self.order.len() >= MAX_BEGINNING {
            self.order.retain(|task| !task.is_finished());
        }
        if self.order.len() >= MAX_BEGINNING
            && let Some(oldest) = self.order.pop_front()
        {
            oldest.abort();
        }
        self.order.push_back(self.all.spawn(task));
    }
}

/// Counts a connection that ended before it had begun.
struct Unbegun(Option<&'static str>);

impl Unbegun {
    fn begun(mut self) {
        self.0 = None;
    }
}

impl Drop for Unbegun {
    fn drop(&mut self) {
        if let Some(port) = self.0 {
            refused(port, "handshake");
        }
    }
}

fn refused(port: &'static str, reason: &'static str) {
    CONNECTIONS_REFUSED.with([port, reason]).increment(1);
}

/// Makes the series of a port appear at 0: Prometheus sees an increase only of a series that was there before
/// it.
pub fn show(port: &'static str) {
    CONNECTIONS.with([port]).increment(0.0);
    for reason in ["too_many", "handshake"] {
        CONNECTIONS_REFUSED.with([port, reason]).increment(0);
    }
}

/// TLS where the port speaks it, and the preface of HTTP/2 where that is spoken, both in time.
async fn begin(stream: TcpStream, address: SocketAddr, beginning: &Beginning, open: Open) -> io::Result<Connection> {
    // Small frames are not held back to be joined.
    stream.set_nodelay(true)?;
    let (mut io, names) = match &beginning.tls {
        None => (Io::Plain(stream), None),
        Some(tls) => {
            let stream = tokio::time::timeout(beginning.handshake, tls.acceptor(beginning.alpn).accept(stream)).await??;
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let names = certificate.map(|certificate| certificate::names(certificate).into());
            (Io::Tls(Box::new(stream)), names)
        }
    };
    let mut replayed = PREFACE.len();
    if let Some(timeout) = beginning.preface {
        let mut preface = [0; PREFACE.len()];
        tokio::time::timeout(timeout, io.read_exact(&mut preface)).await??;
        if preface != *PREFACE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no HTTP/2"));
        }
        replayed = 0;
    }
    Ok(Connection { io, replayed, peer: Peer { address: Some(address), names }, _open: open })
}

/// An open connection; counted until dropped.
struct Open {
    port: &'static str,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(port: &'static str, permit: OwnedSemaphorePermit) -> Self {
        CONNECTIONS.with([port]).increment(1.0);
        Self { port, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        CONNECTIONS.with([self.port]).decrement(1.0);
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that has begun. Where it speaks HTTP/2, its reader gets the preface once more.
pub struct Connection {
    io: Io,
    /// Bytes of the preface that were read a second time.
    replayed: usize,
    peer: Peer,
    _open: Open,
}

impl Connection {
    /// The other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &PREFACE[self.replayed..];
        if rest.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let length = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..length]);
        self.replayed += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buffer),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, slices),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
