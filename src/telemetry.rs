//! Where traces go: an OpenTelemetry collector, by OTLP over gRPC, or nowhere.
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use crate::config;

/// How long the end of the program waits for the last spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// The spans' way out of the process. Dropping it sends what is left.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    exports: bool,
}

impl Telemetry {
    /// To be called in a runtime, which sends the spans. Without an address, spans have ids, which answers and
    /// the log tell, and go nowhere.
    ///
    /// # Errors
    /// An address that is none.
    pub fn start(tracing: &config::Tracing) -> Result<Self, ExporterBuildError> {
        let builder = SdkTracerProvider::builder();
        let Some(address) = &tracing.otlp_endpoint else {
            return Ok(Self { provider: builder.with_sampler(Sampler::AlwaysOff).build(), exports: false });
        };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(address).with_timeout(tracing.export_timeout).build()?;
        let resource = Resource::builder()
            .with_service_name(tracing.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        // A caller that has decided to keep a trace, or not to, has decided for its parts as well.
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(tracing.sample_share)));
        Ok(Self { provider: builder.with_sampler(sampler).with_resource(resource).with_batch_exporter(exporter).build(), exports: true })
    }

    /// Makes spans.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("delo")
    }

    /// Sends what is left. Blocking.
    pub fn end(&self) {
        if self.exports
            && let Err(error) = self.provider.shutdown_with_timeout(LAST_SPANS)
        {
            tracing::warn!(%error, "the last spans were not sent to tracing.otlp_endpoint");
        }
    }
}
