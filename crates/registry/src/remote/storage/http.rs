//! Reads objects of an HTTP server.
use std::ops::Range;
use std::sync::Once;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use reqwest::{StatusCode, Url, header};

use super::object::{ObjectTag, OpenedObject};
use crate::remote::RemoteError;

/// Until a connection must stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent. A fetch has a shorter timeout of its own.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// As [`Storage::open`](super::Storage::open), over HTTP.
pub async fn open(
    client: &reqwest::Client,
    url: Url,
    object: String,
    range: Option<Range<u64>>,
    known: &ObjectTag,
) -> Result<OpenedObject, RemoteError> {
    let mut request = client.get(url);
    if let Some(Range { start, end }) = range {
        request = request.header(header::RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
    }
    if let Some(tag) = &known.e_tag {
        request = request.header(header::IF_NONE_MATCH, tag);
    }
    let failed = |reason: String| RemoteError::Failed { object: object.clone(), reason };
    let response = request.send().await.map_err(|e| failed(chain(&e.without_url())))?;
    let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let (total, start) = match response.status() {
        StatusCode::OK => (response.content_length(), 0),
        StatusCode::PARTIAL_CONTENT => {
            let (start, total) =
                field(header::CONTENT_RANGE).and_then(content_range).ok_or_else(|| failed("its Content-Range is malformed".to_owned()))?;
            (Some(total), start)
        }
        StatusCode::NOT_MODIFIED => return Err(RemoteError::NotModified { object }),
        StatusCode::NOT_FOUND | StatusCode::GONE => return Err(RemoteError::NotThere { object }),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            return Err(RemoteError::Denied { object, reason: status.to_string() });
        }
        status if status.is_redirection() => return Err(RemoteError::Redirected { object }),
        status => return Err(failed(format!("it answers {status}"))),
    };
    let tag = ObjectTag { e_tag: field(header::ETAG).map(str::to_owned), version: None };
    let body = stream::try_unfold(response, move |mut response| {
        let object = object.clone();
        async move {
            let piece = response.chunk().await.map_err(|e| RemoteError::Failed { object, reason: chain(&e.without_url()) })?;
            Ok(piece.map(|piece| (piece, response)))
        }
    });
    Ok(OpenedObject { total, start, tag, body: body.boxed() })
}

/// The first byte and the whole size in a Content-Range: `bytes 0-9/100` is (0, 100).
fn content_range(value: &str) -> Option<(u64, u64)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, total): (u64, u64, u64) = (start.parse().ok()?, end.parse().ok()?, total.parse().ok()?);
    (start <= end && end < total).then_some((start, total))
}

/// An HTTP client that follows no redirect.
pub fn client(allow_http: bool) -> reqwest::Result<reqwest::Client> {
    static PROVIDER: Once = Once::new();
    // It fails where a provider is installed already, which is as good.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE_TIMEOUT)
        .https_only(!allow_http)
        .user_agent(concat!("delo/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// An error with its causes, which reqwest's own message leaves out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_content_ranges_that_make_sense() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for value in ["bytes 5-9/*", "bytes 5-10/10", "bytes 9-5/10", "items 0-1/2", "bytes */10", ""] {
            assert_eq!(content_range(value), None, "{value}");
        }
    }
}
