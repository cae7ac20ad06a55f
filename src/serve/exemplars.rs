//! Exemplars: for each bucket of the duration of calls, the trace of a call that fell into it; and the page in the
//! OpenMetrics format, which has room for them.
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanContext, TraceId};

use crate::metric_table::{REQUEST_SECONDS, SECOND_BUCKETS};

/// The latest traced call in each bucket of `delo_request_duration_seconds`. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Exemplars(Arc<Mutex<HashMap<&'static str, Buckets>>>);

/// One for each bound, and one above all.
type Buckets = [Option<Exemplar>; SECOND_BUCKETS.len() + 1];

#[derive(Clone, Copy, Debug)]
struct Exemplar {
    trace: TraceId,
    seconds: f64,
    /// Since 1970.
    at: Duration,
}

impl Exemplars {
    /// A call of `method` took so long. Kept where its trace is kept.
    #[expect(clippy::disallowed_methods, reason = "an exemplar tells the time of day")]
    pub fn record(&self, method: &'static str, took: Duration, span: &SpanContext) {
        if !span.is_sampled() {
            return;
        }
        let seconds = took.as_secs_f64();
        let exemplar = Exemplar { trace: span.trace_id(), seconds, at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() };
        let bucket = SECOND_BUCKETS.partition_point(|bound| *bound < seconds);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(method).or_default()[bucket] = Some(exemplar);
    }

    /// The page of the text format as OpenMetrics, with the exemplars.
    pub fn open_metrics(&self, page: &str) -> String {
        let exemplars = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counters: HashSet<&str> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?.strip_suffix("_total")).collect();
        let bucket = format!("{}_bucket{{", REQUEST_SECONDS.name());
        let mut out = String::with_capacity(page.len() + page.len() / 8);
        for line in page.lines().filter(|line| !line.is_empty()) {
            out.push_str(&described(line, &counters).unwrap_or_else(|| line.to_owned()));
            if let Some(exemplar) = line.strip_prefix(&bucket).and_then(|labels| of_bucket(&exemplars, labels)) {
                let Exemplar { trace, seconds, at } = exemplar;
                // Writing to a text can't fail.
                let _ = write!(out, " # {{trace_id=\"{trace}\"}} {seconds} {:.3}", at.as_secs_f64());
            }
            out.push('\n');
        }
        out.push_str("# EOF\n");
        out
    }
}

/// A line of metadata that names a counter: OpenMetrics has the family's name there, without `_total`.
fn described(line: &str, counters: &HashSet<&str>) -> Option<String> {
    let (keyword, rest) = ["# TYPE ", "# HELP "].iter().find_map(|keyword| Some((keyword, line.strip_prefix(keyword)?)))?;
    let (name, text) = rest.split_once(' ')?;
    let family = name.strip_suffix("_total").filter(|family| counters.contains(family))?;
    Some(format!("{keyword}{family} {text}"))
}

/// The exemplar of a bucket by its labels, `method="Classify",le="0.5"} 3`.
fn of_bucket<'a>(exemplars: &'a HashMap<&'static str, Buckets>, labels: &str) -> Option<&'a Exemplar> {
    let value = |name: &str| Some(labels.split_once(&format!("{name}=\""))?.1.split_once('"')?.0);
    let buckets = exemplars.get(value("method")?)?;
    let bucket = match value("le")? {
        "+Inf" => SECOND_BUCKETS.len(),
        bound => {
            let bound: f64 = bound.parse().ok()?;
            SECOND_BUCKETS.iter().position(|known| *known == bound)?
        }
    };
    buckets[bucket].as_ref()
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceFlags, TraceState};

    use super::*;

    fn span(trace: u128, flags: TraceFlags) -> SpanContext {
        SpanContext::new(TraceId::from(trace), SpanId::from(1), flags, false, TraceState::NONE)
    }

    #[test]
    fn a_bucket_shows_the_trace_of_its_latest_call_that_is_kept() {
        let exemplars = Exemplars::default();
        exemplars.record("Classify", Duration::from_millis(40), &span(1, TraceFlags::SAMPLED));
        exemplars.record("Classify", Duration::from_millis(45), &span(2, TraceFlags::SAMPLED));
        exemplars.record("Classify", Duration::from_millis(45), &span(3, TraceFlags::NOT_SAMPLED));
        let page = "# HELP delo_requests_total Calls.\n# TYPE delo_requests_total counter\ndelo_requests_total{code=\"OK\"} 2\n\n\
                    # TYPE delo_request_duration_seconds histogram\n\
                    delo_request_duration_seconds_bucket{method=\"Classify\",le=\"0.025\"} 0\n\
                    delo_request_duration_seconds_bucket{method=\"Classify\",le=\"0.05\"} 2\n\
                    delo_request_duration_seconds_bucket{method=\"Describe\",le=\"0.05\"} 1\n\
                    delo_request_duration_seconds_bucket{method=\"Classify\",le=\"+Inf\"} 2\n";
        let shown = exemplars.open_metrics(page);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[..3], ["# HELP delo_requests Calls.", "# TYPE delo_requests counter", "delo_requests_total{code=\"OK\"} 2"]);
        let with_exemplar: Vec<&&str> = lines.iter().filter(|line| line.contains(" # {")).collect();
        assert_eq!(with_exemplar.len(), 1, "{shown}");
        let expected = "delo_request_duration_seconds_bucket{method=\"Classify\",le=\"0.05\"} 2 # {trace_id=\"00000000000000000000000000000002\"} 0.045 ";
        assert!(with_exemplar[0].starts_with(expected), "{shown}");
        assert_eq!(lines.last(), Some(&"# EOF"));
        assert!(!lines.contains(&""));
    }
}
