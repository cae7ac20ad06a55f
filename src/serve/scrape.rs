//! `GET /metrics` for Prometheus on a port of its own, and `/livez` and `/readyz` for those who ask whether the server lives and serves.
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::lifecycle::State;
use super::seldom::Seldom;

/// Connections at once; a scraper needs one.
const MAX_CONNECTIONS: usize = 64;
/// Until a connection's request head must be there.
const HEAD_SECONDS: u64 = 10;

/// Answers until the future is dropped. `page` makes the answer of each scrape, `state` is the server's.
pub async fn serve(
    listener: TcpListener,
    page: impl Fn() -> String + Clone + Send + 'static,
    state: impl Fn() -> State + Clone + Send + 'static,
) {
    // A permit is taken before a connection is accepted and given back when it ends.
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut failures = Seldom::default();
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(times) = failures.happened() {
                    tracing::warn!(%error, times, port = "metrics", "connections can't be accepted, the system refuses them");
                }
                // Out of file descriptors, most likely: accepting again at once would spin.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (page, state) = (page.clone(), state.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &page, &state))));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(HEAD_SECONDS))
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection to the metrics port ended early");
            }
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, page: impl Fn() -> String, state: impl Fn() -> State) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, page()),
        (&Method::GET | &Method::HEAD, "/livez" | "/healthz" | "/readyz") => health(request.uri().path(), state()),
        (_, "/metrics" | "/livez" | "/healthz" | "/readyz") => (StatusCode::METHOD_NOT_ALLOWED, "GET it\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "the metrics are at /metrics, health is at /livez and /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

/// Whoever gets an answer sees that the server lives; ready is one that serves.
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
