//! A server's own metrics of a run: the difference of its page before and after.
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Uri;

/// The largest page that is read, in bytes.
const MAX_PAGE: u64 = 16 << 20;
/// Timeout of a scrape.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

/// One page in Prometheus' text format: the value of each series, by the series' text on the page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page(BTreeMap<String, f64>);

/// The increase of a histogram between two pages.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Upper bounds in ascending order, the last infinite, each with the number of values up to it.
    buckets: Vec<(f64, f64)>,
    pub sum: f64,
}

/// Reads the metrics at a URL such as `http://127.0.0.1:9464/metrics`.
///
/// # Errors
/// No server answers there, or the response is no page of metrics.
pub async fn fetch(url: &str) -> io::Result<Page> {
    let uri: Uri = url.parse().map_err(io::Error::other)?;
    let (host, port) = (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(80));
    let read = async {
        let mut stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.write_all(format!("GET {} HTTP/1.0\r\nHost: {host}\r\n\r\n", uri.path()).as_bytes()).await?;
        let mut answer = String::new();
        stream.take(MAX_PAGE).read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = tokio::time::timeout(SCRAPE_TIMEOUT, read).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(Page::parse(body)),
        _ => Err(io::Error::other(format!("{url} answered {:?}", answer.lines().next().unwrap_or_default()))),
    }
}

impl Page {
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .filter_map(|line| line.rsplit_once(' ').and_then(|(series, value)| Some((series.to_owned(), value.parse().ok()?))))
                .collect(),
        )
    }

    /// The increase of a histogram since an earlier page. `label` selects a series, `stage="compute"` for
    /// instance; empty for a histogram without labels.
    pub fn since(&self, earlier: &Self, name: &str, label: &str) -> Option<Histogram> {
        let grown = |series: &str| Some(self.0.get(series)? - earlier.0.get(series).copied().unwrap_or(0.0));
        let (labels, comma) = if label.is_empty() { (String::new(), "") } else { (format!("{{{label}}}"), ",") };
        let prefix = format!("{name}_bucket{{{label}{comma}le=\"");
        let bound = |series: &str| series.strip_prefix(&prefix)?.strip_suffix("\"}")?.replace("+Inf", "inf").parse::<f64>().ok();
        let mut buckets: Vec<(f64, f64)> = self.0.keys().filter_map(|series| Some((bound(series)?, grown(series)?))).collect();
        buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Some(Histogram { buckets, sum: grown(&format!("{name}_sum{labels}"))? })
    }
}

impl Histogram {
    /// Number of values.
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// The value below which a share `quantile` of all values lies, interpolated evenly within its bucket as
    /// in Prometheus' `histogram_quantile`; at most the last finite bound.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let rank = quantile * self.count();
        let mut below = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            if count > 0.0 && count >= rank {
                let (from, before) = below;
                return Some(if bound.is_finite() { from + (bound - from) * (rank - before) / (count - before) } else { from });
            }
            below = (bound, count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# TYPE t histogram\nt_bucket{stage=\"compute\",le=\"0.1\"} 10\nt_bucket{stage=\"compute\",le=\"0.2\"} 10\nt_bucket{stage=\"compute\",le=\"+Inf\"} 10\nt_sum{stage=\"compute\"} 1\n";
    const AFTER: &str = "t_bucket{stage=\"compute\",le=\"0.1\"} 60\nt_bucket{stage=\"compute\",le=\"0.2\"} 110\nt_bucket{stage=\"compute\",le=\"+Inf\"} 110\n\
                         t_sum{stage=\"compute\"} 11.5\nt_bucket{stage=\"queue\",le=\"0.1\"} 7\nn_bucket{le=\"1\"} 3\nn_bucket{le=\"+Inf\"} 4\nn_sum 9\n";

    #[test]
    fn a_histogram_counts_what_came_between_two_pages() {
        let t = Page::parse(AFTER).since(&Page::parse(BEFORE), "t", "stage=\"compute\"").unwrap();
        assert_eq!((t.count(), t.sum), (100.0, 10.5));
        let [median, third] = [0.5, 0.75].map(|q| t.quantile(q).unwrap());
        assert!((median - 0.1).abs() < 1e-9 && (third - 0.15).abs() < 1e-9, "{median}, {third}");
        let n = Page::parse(AFTER).since(&Page::default(), "n", "").unwrap();
        assert_eq!((n.count(), n.sum, n.quantile(1.0)), (4.0, 9.0, Some(1.0)));
        assert_eq!(Page::parse(AFTER).since(&Page::default(), "absent", ""), None);
    }

    #[test]
    fn nothing_counted_has_no_quantile() {
        let page = Page::parse(AFTER);
        assert_eq!(page.since(&page, "n", "").unwrap().quantile(0.5), None);
    }
}
