//! `GET /metrics` for Prometheus on a port of its own, and the health probes `/livez` and `/readyz`.
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, Sleep};

use super::lifecycle::State;
use super::seldom::Seldom;

/// Connections at a time; a scraper needs one. A further one ends the one in which no byte has moved for
/// longest, so that clients that hold connections keep no scraper out.
const MAX_CONNECTIONS: usize = 64;
/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(10);
/// How long an answer waits for its reader to take more of it.
const STALL: Duration = Duration::from_secs(10);

/// Answers until the future is dropped. `page` makes the answer of each scrape, `state` is the server's.
pub async fn serve(
    listener: TcpListener,
    page: impl Fn(Format) -> String + Clone + Send + 'static,
    state: impl Fn() -> State + Clone + Send + 'static,
) {
    let mut connections = Connections::default();
    let mut failures = Seldom::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(times) = failures.happened() {
                    tracing::warn!(%error, times, port = "metrics", "connections can't be accepted, the system refuses them");
                }
                // The process is probably out of file descriptors, and an attempt at once would spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (page, state) = (page.clone(), state.clone());
        connections.start(stream, async move |stream| {
            let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &page, &state))));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection to the metrics port ended early");
            }
        });
    }
}

/// The open connections, each in a task that ends with this.
struct Connections {
    tasks: JoinSet<()>,
    open: Vec<(Arc<Moved>, AbortHandle)>,
    began: Instant,
}

impl Default for Connections {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), open: Vec::new(), began: Instant::now() }
    }
}

impl Connections {
    fn start<F: Future<Output = ()> + Send + 'static>(&mut self, stream: TcpStream, serve: impl FnOnce(Moving<TcpStream>) -> F) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(_, task)| !task.is_finished());
        if self.open.len() >= MAX_CONNECTIONS
            && let Some(stillest) = (0..self.open.len()).min_by_key(|&i| self.open[i].0.at.load(Ordering::Relaxed))
        {
            self.open.remove(stillest).1.abort();
        }
        let moved = Arc::new(Moved { began: self.began, at: AtomicU64::new(0) });
        let stream = Moving::new(stream, moved.clone(), STALL);
        self.open.push((moved, self.tasks.spawn(serve(stream))));
    }
}

/// When bytes last moved in a connection.
#[derive(Debug)]
struct Moved {
    began: Instant,
    /// Milliseconds since then.
    at: AtomicU64,
}

impl Moved {
    fn touch(&self) {
        self.at.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// A connection that says when bytes move in it, and fails where its reader takes nothing for too long.
struct Moving<S> {
    stream: S,
    moved: Arc<Moved>,
    /// How long bytes may wait to be taken.
    stall_timeout: Duration,
    /// Runs while bytes wait to be taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Moving<S> {
    fn new(stream: S, moved: Arc<Moved>, stall_timeout: Duration) -> Self {
        moved.touch();
        Self { stream, moved, stall_timeout, stalled: None }
    }

    /// The outcome of a write, which fails where no byte has moved for the timeout.
    fn written<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            self.moved.touch();
            return outcome;
        }
        ready!(self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.stall_timeout))).as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Moving<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        self.moved.touch();
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moving<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, outcome)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How the page of metrics is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format.
    Text,
    /// OpenMetrics 1.0, which has exemplars.
    OpenMetrics,
}

impl Format {
    /// What the scraper asks for. Prometheus asks for OpenMetrics, everybody else for nothing.
    fn wanted(headers: &HeaderMap) -> Self {
        let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("application/openmetrics-text"));
        if headers.get_all(header::ACCEPT).iter().any(accepts) { Self::OpenMetrics } else { Self::Text }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        })
    }
}

fn answer(request: &Request<Incoming>, page: impl Fn(Format) -> String, state: impl Fn() -> State) -> Response<Full<Bytes>> {
    let mut format = Format::Text;
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            format = Format::wanted(request.headers());
            (StatusCode::OK, page(format))
        }
        (&Method::GET | &Method::HEAD, "/livez" | "/healthz" | "/readyz") => health(request.uri().path(), state()),
        (_, "/metrics" | "/livez" | "/healthz" | "/readyz") => (StatusCode::METHOD_NOT_ALLOWED, "GET it\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "the metrics are at /metrics, health is at /livez and /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, format.content_type());
    response
}

/// The answer to a health probe. Any answer shows that the server lives; it is ready when it serves.
fn health(path: &str, state: State) -> (StatusCode, String) {
    let (name, serves) = match state {
        State::Starting => ("STARTING", false),
        State::Serving => ("SERVING", true),
        State::Empty => ("EMPTY", false),
        State::Draining => ("DRAINING", false),
    };
    let status = if serves || path != "/readyz" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{name}\n"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pipe(stall_timeout: Duration) -> (Moving<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (server, client) = tokio::io::duplex(10);
        (Moving::new(server, Arc::new(Moved { began: Instant::now(), at: AtomicU64::new(0) }), stall_timeout), client)
    }

    #[tokio::test]
    async fn an_unread_answer_ends_its_connection_and_one_that_is_read_in_pieces_does_not() {
        let (mut server, _client) = pipe(Duration::ZERO);
        assert_eq!(server.write_all(&[0; 40]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (mut server, mut client) = pipe(Duration::from_secs(3600));
        let writing = tokio::spawn(async move { server.write_all(&[0; 40]).await });
        client.read_exact(&mut [0; 40]).await.unwrap();
        writing.await.unwrap().unwrap();
    }
}
