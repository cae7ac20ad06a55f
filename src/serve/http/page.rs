//! The page for browsers: a few files, and the headers that keep browsers to them.
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

/// Path, type and contents.
const ASSETS: [(&str, &str, &[u8]); 4] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../web/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_bytes!("../web/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_bytes!("../web/page.js")),
    ("/icon.svg", "image/svg+xml", include_bytes!("../web/icon.svg")),
];

/// What the page may load and do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; \
                      form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// The file at a path. A body to HEAD is left out by hyper.
pub fn asset(path: &str) -> Response<Full<Bytes>> {
    let found = ASSETS.iter().find(|(at, ..)| *at == path);
    let (status, kind, body) = match found {
        Some((_, kind, body)) => (StatusCode::OK, *kind, *body),
        None => (
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            &b"the page is at /, calls are POSTs to /delo.v1.Classifier/\xe2\x80\xa6 and /v2/\xe2\x80\xa6\n"[..],
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Adds what holds for every answer.
pub fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
