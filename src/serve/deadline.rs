//! How long a call may take: the time-out of its caller, within the bounds of the configuration.
use std::time::Duration;

use tonic::metadata::MetadataMap;

use crate::config;

/// A call ends this long before its caller's own time-out, so that the caller receives the answer or the
/// error.
const MARGIN: Duration = Duration::from_millis(5);

/// How long a call may take: `min(grpc-timeout or default, max)`.
pub fn call_timeout(metadata: &MetadataMap, bounds: &config::Deadline) -> Duration {
    within(metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()), bounds)
}

/// As [`call_timeout`], by the value of the header `grpc-timeout`.
pub fn within(header: Option<&str>, bounds: &config::Deadline) -> Duration {
    let requested = header.and_then(timeout).map(|requested| requested.saturating_sub(MARGIN));
    requested.unwrap_or(bounds.default).min(bounds.max)
}

/// A time-out as gRPC writes it: up to 8 digits and a unit (H, M, S, m, u, n). `None` for anything else.
pub fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_time_outs_as_grpc_writes_them() {
        for (text, nanos) in
            [("1H", 3_600_000_000_000), ("2M", 120_000_000_000), ("3S", 3_000_000_000), ("4m", 4_000_000), ("5u", 5_000), ("6n", 6)]
        {
            assert_eq!(timeout(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "S", "1", "1x", "-1S", "+1S", "123456789S", "1.5S", "1é"] {
            assert_eq!(timeout(text), None, "{text}");
        }
    }

    #[test]
    fn a_call_takes_as_long_as_its_caller_allows_or_the_default_at_most_the_maximum() {
        let bounds = config::Deadline { default: Duration::from_secs(30), max: Duration::from_secs(100) };
        let wait = |text: Option<&str>| {
            let mut metadata = MetadataMap::new();
            if let Some(text) = text {
                metadata.insert("grpc-timeout", text.parse().unwrap());
            }
            call_timeout(&metadata, &bounds).as_secs_f64().round() as u64
        };
        assert_eq!(wait(Some("50S")), 50);
        assert_eq!(wait(Some("5H")), 100);
        assert_eq!(wait(Some("soon")), 30);
        assert_eq!(wait(None), 30);
    }
}
