//! An answer, and what came with it.
use std::time::Duration;

use tonic::metadata::MetadataMap;

/// An answer with the metadata that came with it.
#[derive(Clone, Debug)]
pub struct Response<A> {
    answer: A,
    metadata: MetadataMap,
    attempts: u32,
}

impl<A> Response<A> {
    pub(crate) fn new(response: tonic::Response<A>, attempts: u32) -> Self {
        let (metadata, answer, _) = response.into_parts();
        Self { answer, metadata, attempts }
    }

    /// The answer.
    pub fn answer(&self) -> &A {
        &self.answer
    }

    /// The answer alone.
    pub fn into_answer(self) -> A {
        self.answer
    }

    /// Headers and trailers.
    pub fn metadata(&self) -> &MetadataMap {
        &self.metadata
    }

    /// How many times the call was sent, this answer's attempt included.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The W3C trace context of the server's span. `None`: the server sent none.
    pub fn traceparent(&self) -> Option<&str> {
        traceparent(&self.metadata)
    }

    /// The steps of the trailer `server-timing`, in its order: `total`, `decode`, `queue`… Empty unless the
    /// sample asked for [`timings`](crate::Sample::timings).
    pub fn server_timing(&self) -> Vec<(String, Duration)> {
        server_timing(&self.metadata)
    }
}

pub(crate) fn traceparent(metadata: &MetadataMap) -> Option<&str> {
    metadata.get("traceparent")?.to_str().ok()
}

/// The steps of a `server-timing` header (W3C Server Timing), whose durations are in milliseconds. Steps
/// without a duration are left out.
pub(crate) fn server_timing(metadata: &MetadataMap) -> Vec<(String, Duration)> {
    let header = metadata.get("server-timing").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let step = |step: &str| {
        let mut parts = step.split(';').map(str::trim);
        let name = parts.next()?.to_owned();
        let millis: f64 = parts.find_map(|part| part.strip_prefix("dur="))?.parse().ok()?;
        Some((name, Duration::try_from_secs_f64(millis / 1e3).ok()?))
    };
    header.split(',').filter_map(step).collect()
}
