//! Each call's span: of the log, and of the trace that its caller's `traceparent` names, which goes on to
//! whoever collects traces.
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanKind, Status as SpanStatus, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::Instrument;

use super::authenticate::Caller;
use super::body::{trailers_of, watched};
use super::{Answer, Inner, Policy, call};
use crate::serve::exemplars::Exemplars;
use crate::serve::methods::method;
use crate::serve::steps::{CallTrace, ServerTiming};

/// Trailer with the times of a sample, where its request asked for them (W3C Server Timing).
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Serves each call within a span of the log that names its method, its caller and its trace, and within a span
/// of the trace that the caller's `traceparent` names, or of a new one. The answer's `traceparent` names that
/// span.
#[derive(Clone, Debug)]
pub struct Trace {
    pub tracer: SdkTracer,
    pub exemplars: Exemplars,
}

impl Policy for Trace {
    fn around<S: Inner>(&self, mut request: Request<Body>, next: &mut S) -> Answer {
        // Neither the path nor a header is quoted: the caller chooses both.
        let Caller { name, role } = Caller::of(request.extensions());
        let method = method(request.uri().path()).label;
        let context = self.call(method, request.headers());
        let log = tracing::info_span!("call", method, client = %name, %role, trace = %context.span().span_context().trace_id());
        let timing = Arc::<ServerTiming>::default();
        request.extensions_mut().insert(CallTrace { tracer: self.tracer.clone(), context: context.clone() });
        request.extensions_mut().insert(timing.clone());
        let answer = call(next, request).instrument(log);
        let mut ending = Ending { context, code: None, method, since: Instant::now(), exemplars: self.exemplars.clone() };
        Box::pin(async move {
            let mut response = answer.await?;
            let headers = response.headers_mut();
            TraceContextPropagator::new().inject_context(&ending.context, &mut Headers(headers));
            // An error without a message says so in its head; anything else ends with trailers.
            if ending.see(headers) {
                tell(&timing, headers);
            }
            Ok(response.map(|body| {
                watched(body, move |mut frame, _| {
                    if let Some(trailers) = trailers_of(&frame) {
                        ending.see(trailers);
                    }
                    if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()?.trailers_mut()) {
                        tell(&timing, trailers);
                    }
                    frame
                })
            }))
        })
    }
}

impl Trace {
    /// A context with the call's span.
    fn call(&self, method: &'static str, headers: &HeaderMap) -> Context {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Received(headers));
        let builder = self.tracer.span_builder(method).with_kind(SpanKind::Server);
        let span = builder
            .with_attributes([KeyValue::new("rpc.system", "grpc"), KeyValue::new("rpc.method", method)])
            .start_with_context(&self.tracer, &parent);
        parent.with_span(span)
    }
}

/// Adds the times that the service left for the trailers.
fn tell(timing: &ServerTiming, trailers: &mut HeaderMap) {
    if let Some(value) = timing.get().and_then(|times| HeaderValue::from_str(times).ok()) {
        trailers.insert(SERVER_TIMING, value);
    }
}

/// Ends the call's span when dropped.
struct Ending {
    context: Context,
    code: Option<Code>,
    method: &'static str,
    since: Instant,
    exemplars: Exemplars,
}

impl Ending {
    /// Whether the headers say how the call ended.
    fn see(&mut self, headers: &HeaderMap) -> bool {
        let status = Status::from_header_map(headers);
        self.code = status.map(|status| status.code()).or(self.code);
        self.code.is_some()
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Dropped before any code was sent: the client has cancelled the call.
        let (span, code) = (self.context.span(), self.code.unwrap_or(Code::Cancelled));
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)));
        // Errors of a server, as OpenTelemetry's conventions for gRPC count them.
        if matches!(
            code,
            Code::Unknown | Code::DeadlineExceeded | Code::Unimplemented | Code::Internal | Code::Unavailable | Code::DataLoss
        ) {
            span.set_status(SpanStatus::error(code.description()));
        }
        span.end();
        self.exemplars.record(self.method, self.since.elapsed(), span.span_context());
    }
}

struct Received<'a>(&'a HeaderMap);

impl Extractor for Received<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
