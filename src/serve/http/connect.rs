//! Calls with one message and one answer as the Connect protocol has them: POST of JSON to
//! `/package.Service/Method`.
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use prost::Message;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::call::{Called, Grpc};
use super::{Arrived, json};
use crate::serve::status::invalid;
use delo_proto::json::{decode, encode, unary};

/// The service whose calls this door carries.
const SERVICE: &str = "/delo.v1.Classifier/";

/// The answer to a call.
pub async fn answer(grpc: &Grpc, request: Arrived) -> Response<Full<Bytes>> {
    match call(grpc, &request).await {
        Ok((body, headers)) => with_headers(json(StatusCode::OK, body), headers),
        Err((status, headers)) => with_headers(error(&status), headers),
    }
}

type Failed = (Status, HeaderMap);

async fn call(grpc: &Grpc, request: &Arrived) -> Result<(Vec<u8>, HeaderMap), Failed> {
    let failed = |status: Status| (status, HeaderMap::new());
    let path = request.parts.uri.path();
    let method = unary(path).filter(|_| path.starts_with(SERVICE));
    let method = method.ok_or_else(|| failed(Status::unimplemented("no method with one message and one answer has this path")))?;
    if request.parts.method != Method::POST {
        return Err(failed(Status::unimplemented("POST a JSON message to this path")));
    }
    if !is_json(&request.parts.headers) {
        return Err(failed(invalid("content-type", "send application/json")));
    }
    let timeout = timeout(&request.parts.headers).map_err(failed)?;
    let message = encode(method.input(), &request.body).map_err(|error| failed(invalid("", error.to_string())))?;
    let Called { result, headers } = grpc.call(path, &message, request, timeout).await;
    let answer = result.map_err(|status| (status, headers.clone()))?;
    let body = decode(method.output(), &answer).map_err(|error| failed(Status::internal(error.to_string())))?;
    Ok((body, headers))
}

/// Whether the body says that it is JSON. A page of another origin can't send this type without being allowed to.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("connect-timeout-ms") else { return Ok(None) };
    let millis = value.to_str().ok().filter(|text| text.len() <= 10).and_then(|text| text.parse().ok());
    millis.map(|millis| Some(Duration::from_millis(millis))).ok_or_else(|| invalid("connect-timeout-ms", "give whole milliseconds"))
}

pub fn with_headers(mut response: Response<Full<Bytes>>, headers: HeaderMap) -> Response<Full<Bytes>> {
    response.headers_mut().extend(headers);
    response
}

/// An error as the protocol has it: `{"code", "message", "details"}`.
pub fn error(status: &Status) -> Response<Full<Bytes>> {
    let mut body = json!({"code": code_name(status.code()), "message": status.message()});
    let details = details(status);
    if !details.is_empty() {
        body["details"] = details.into();
    }
    let mut response = json(http_status(status.code()), body.to_string());
    if let Some(delay) = retry_after(status) {
        response.headers_mut().insert(header::RETRY_AFTER, delay);
    }
    response
}

/// The value of `retry-after`: whole seconds, and never too early.
pub fn retry_after(status: &Status) -> Option<HeaderValue> {
    let delay = status.get_details_retry_info()?.retry_delay?;
    Some(HeaderValue::from(u64::try_from(delay.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)))
}

/// Each detail by its type, encoded, and in words for people.
fn details(status: &Status) -> Vec<Value> {
    let encoded = tonic_types::pb::Status::decode(status.details()).map(|status| status.details).unwrap_or_default();
    let told = |kind: &str| match kind {
        "google.rpc.BadRequest" => {
            let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
            let violation = |v: tonic_types::FieldViolation| json!({"field": v.field, "description": v.description});
            Some(json!({"fieldViolations": violations.into_iter().map(violation).collect::<Vec<_>>()}))
        }
        "google.rpc.ErrorInfo" => {
            let info = status.get_details_error_info()?;
            Some(json!({"reason": info.reason, "domain": info.domain}))
        }
        "google.rpc.RetryInfo" => {
            let delay = status.get_details_retry_info().and_then(|info| info.retry_delay)?;
            Some(json!({"retryDelay": format!("{}s", delay.as_secs_f64())}))
        }
        _ => None,
    };
    let detail = |any: prost_types::Any| {
        let kind = any.type_url.rsplit('/').next().unwrap_or_default();
        json!({"type": kind, "value": STANDARD_NO_PAD.encode(&any.value), "debug": told(kind)})
    };
    encoded.into_iter().map(detail).collect()
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "canceled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// The HTTP status of a code, by the Connect protocol.
pub fn http_status(code: Code) -> StatusCode {
    let status = match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
