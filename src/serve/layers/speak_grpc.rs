//! Only gRPC's own content types are answered.
use http::{HeaderMap, Request, StatusCode, header};
use tonic::Status;
use tonic::body::Body;

use super::{Answer, Inner, Policy, call};
use crate::serve::reason::Reason;

/// Refuses calls whose content type is neither `application/grpc` nor `application/grpc+proto`, with HTTP 415
/// as the specification of gRPC over HTTP/2 says. The services read every message as Protocol Buffers: JSON
/// or gRPC-Web under another name would be misread.
#[derive(Clone, Copy, Debug)]
pub struct SpeakGrpc;

impl Policy for SpeakGrpc {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        if speaks_grpc(request.headers()) {
            return Box::pin(call(next, request));
        }
        let status = Status::invalid_argument("the content type is not application/grpc or application/grpc+proto: send that");
        let mut response = Reason::ContentType.refuse(&status).into_http();
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Box::pin(std::future::ready(Ok(response)))
    }
}

/// Whether there is one content type, and gRPC's; what follows a semicolon does not matter.
fn speaks_grpc(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let kind = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    kind.eq_ignore_ascii_case(b"application/grpc") || kind.eq_ignore_ascii_case(b"application/grpc+proto")
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tower::Service;

    use super::*;
    use crate::serve::layers::tests::{code, request, service};

    #[tokio::test]
    async fn what_is_not_grpc_is_an_unsupported_media_type() {
        let mut service = SpeakGrpc.layer(service());
        for (kinds, spoken) in [
            (&["application/grpc"][..], true),
            (&["application/grpc+proto"], true),
            (&["Application/gRPC"], true),
            (&["application/grpc; charset=utf-8"], true),
            (&[], false),
            (&[""], false),
            (&["application/json"], false),
            (&["application/grpc+json"], false),
            (&["application/grpc-web"], false),
            (&["application/grpc-web+proto"], false),
            (&["application/grpc+protobuf"], false),
            (&["application/grpcx"], false),
            (&["application/grpc", "application/json"], false),
        ] {
            let mut call = request("/s/A");
            for kind in kinds {
                call.headers_mut().append(header::CONTENT_TYPE, kind.parse().unwrap());
            }
            let response = service.call(call).await.unwrap();
            let expected = if spoken { (StatusCode::OK, Code::Ok) } else { (StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument) };
            assert_eq!((response.status(), code(&response)), expected, "{kinds:?}");
        }
    }
}
