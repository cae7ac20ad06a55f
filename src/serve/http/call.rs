//! One gRPC call inside of the process.
use std::convert::Infallible;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use super::{Arrived, open_inference};
use crate::serve::connections::Peer;
use crate::serve::layers::Inner;

/// Headers of a request that its call has as well.
const PASSED: [HeaderName; 3] = [header::AUTHORIZATION, HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];
/// Headers and trailers of the call that its answer has as well.
const RETURNED: [HeaderName; 2] = [HeaderName::from_static("traceparent"), HeaderName::from_static("server-timing")];
/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The classifier's services behind their layers.
#[derive(Clone)]
pub struct Grpc(BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>);

/// The head of the call that a request will become, by which its caller is known.
///
/// # Errors
/// UNIMPLEMENTED: no call has such a path.
pub fn head(parts: &http::request::Parts, peer: &Peer) -> Result<Request<Body>, Status> {
    let path = match parts.uri.path() {
        path if path.starts_with("/v2") => open_inference::method(path, &parts.method),
        path => path,
    };
    let mut head = Request::new(Body::empty());
    *head.uri_mut() = path.parse().map_err(|_| Status::unimplemented("no method has such a path"))?;
    for value in parts.headers.get_all(header::AUTHORIZATION) {
        head.headers_mut().append(header::AUTHORIZATION, value.clone());
    }
    head.extensions_mut().insert(peer.clone());
    Ok(head)
}

/// What a call ended with, and the headers that its caller is to see.
pub struct Called {
    pub result: Result<Bytes, Status>,
    pub headers: HeaderMap,
}

impl Grpc {
    pub fn new(services: impl Inner + Sync) -> Self {
        Self(BoxCloneSyncService::new(services))
    }

    /// Calls a method with one encoded message, for the caller of `request`, who waits at most so long.
    pub async fn call(&self, path: &str, message: &[u8], request: &Arrived, timeout: Option<Duration>) -> Called {
        let mut call = Request::new(Body::new(Full::new(framed(message))));
        *call.method_mut() = Method::POST;
        *call.version_mut() = Version::HTTP_2;
        let Ok(uri) = path.parse() else { return Called::failed(Status::unimplemented("no method has such a path")) };
        *call.uri_mut() = uri;
        let headers = call.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        for name in &PASSED {
            for value in request.parts.headers.get_all(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        if let Some(timeout) = timeout.and_then(|timeout| HeaderValue::try_from(format!("{}m", timeout.as_millis().min(99_999_999))).ok()) {
            headers.insert("grpc-timeout", timeout);
        }
        call.extensions_mut().insert(request.peer.clone());
        let answered = match self.0.clone().ready_oneshot().await {
            Ok(mut services) => services.call(call).await,
            Err(never) => match never {},
        };
        let response = match answered {
            Ok(response) => response,
            Err(never) => match never {},
        };
        Called::of(response).await
    }

    /// As [`Self::call`], with messages of known types.
    pub async fn exchange<T: Message + Default>(
        &self,
        path: &str,
        message: &impl Message,
        request: &Arrived,
    ) -> (Result<T, Status>, HeaderMap) {
        let Called { result, headers } = self.call(path, &message.encode_to_vec(), request, None).await;
        let decode = |bytes: Bytes| T::decode(bytes).map_err(|error| Status::internal(error.to_string()));
        (result.and_then(decode), headers)
    }
}

impl Called {
    fn failed(status: Status) -> Self {
        Self { result: Err(status), headers: HeaderMap::new() }
    }

    async fn of(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let collected = match body.collect().await {
            Ok(collected) => collected,
            Err(status) => return Self::failed(status),
        };
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let status = Status::from_header_map(&head.headers).or_else(|| Status::from_header_map(&trailers));
        let mut headers = HeaderMap::new();
        for name in RETURNED {
            if let Some(value) = trailers.get(&name).or_else(|| head.headers.get(&name)) {
                headers.insert(name, value.clone());
            }
        }
        let mut message = collected.to_bytes();
        let result = match status {
            Some(status) if status.code() != tonic::Code::Ok => Err(status),
            _ if message.len() < PREFIX => Err(Status::internal("the answer has no message")),
            _ => Ok(message.split_off(PREFIX)),
        };
        Self { result, headers }
    }
}

/// A message as gRPC sends it, not compressed.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}
