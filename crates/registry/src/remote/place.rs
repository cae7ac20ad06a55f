//! One way to read and write three kinds of places: a directory, an HTTP server, an object store.
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{
    ClientConfigKey, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion, WriteMultipart,
};
use reqwest::{StatusCode, Url, header};

use super::allowed::{SCHEMES, plain_url, without_query};
use super::{RemoteError, directory};
use crate::file_address::{self, Named};

/// Until a connection must stand.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection may be silent. A fetch has a closer limit of its own.
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes of a part of a large object.
const PART: usize = 8 << 20;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 2;

/// Where objects lie, by names like `partitions/<sha256>.safetensors`; the empty name is the place itself.
#[derive(Clone, Debug)]
pub enum Place {
    Directory(PathBuf),
    Http { client: reqwest::Client, base: Url },
    Store { store: Arc<dyn ObjectStore>, base: Url },
}

/// An object that is being read.
pub struct Opened {
    /// The whole object's size, where the place tells it.
    pub total: Option<u64>,
    /// Where `body` begins: at or before what was asked for.
    pub start: u64,
    /// Changes when the object does.
    pub tag: Tag,
    pub body: BoxStream<'static, Result<Bytes, RemoteError>>,
}

/// By which one state of an object is known again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    pub e_tag: Option<String>,
    pub version: Option<String>,
}

impl Place {
    /// A registry by its address or directory, or those of its `manifest.json`. Nothing is made.
    ///
    /// # Errors
    /// [`RemoteError::Location`], also for what may be a directory's name and is more likely an address that
    /// was misspelt.
    pub fn of_registry(given: &str) -> Result<Self, RemoteError> {
        let wrong = |reason: String| RemoteError::Location { given: without_query(given), reason };
        if given.is_empty() {
            return Err(wrong("it is empty; give a directory, or an address such as s3://bucket/delo".to_owned()));
        }
        if given.trim() != given || given.chars().any(char::is_control) {
            return Err(wrong("it begins or ends with a blank, or holds a control character: leave those out".to_owned()));
        }
        let base = given.strip_suffix("manifest.json").filter(|rest| rest.is_empty() || rest.ends_with('/')).unwrap_or(given);
        match file_address::parse(base).map_err(|reason| wrong(format!("it {reason}")))? {
            Named::File(path) => Ok(Self::Directory(path)),
            Named::Path(_) if base.is_empty() => Ok(Self::Directory(".".into())),
            Named::Path(path) => {
                check_directory(base).map_err(wrong)?;
                Ok(Self::Directory(path.to_owned()))
            }
            Named::Address => {
                let url = plain_url(base).map_err(|reason| wrong(format!("it {reason}")))?;
                if url.query().is_some() {
                    return Err(wrong("it has a query; give credentials in the environment".to_owned()));
                }
                Self::at(url)
            }
        }
    }

    /// The place at an address that was found sound.
    ///
    /// # Errors
    /// [`RemoteError::Location`]: a store that lacks its settings in the environment.
    pub fn at(url: Url) -> Result<Self, RemoteError> {
        let wrong = |reason: String| RemoteError::Location { given: without_query(url.as_str()), reason };
        let failed = |e: object_store::Error| wrong(told(&e));
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "http" | "https" => return Ok(Self::Http { client: client(true).map_err(|e| wrong(e.to_string()))?, base: url }),
            "s3" => {
                let builder = AmazonS3Builder::from_env().with_url(url.as_str()).with_http_connector(Connector).with_retry(no_retries());
                Arc::new(builder.build().map_err(failed)?)
            }
            "gs" => {
                let builder =
                    GoogleCloudStorageBuilder::from_env().with_url(url.as_str()).with_http_connector(Connector).with_retry(no_retries());
                Arc::new(builder.build().map_err(failed)?)
            }
            _ => {
                let builder =
                    MicrosoftAzureBuilder::from_env().with_url(url.as_str()).with_http_connector(Connector).with_retry(no_retries());
                Arc::new(builder.build().map_err(failed)?)
            }
        };
        Ok(Self::Store { store, base: url })
    }

    /// Refuses a partitions directory that is the registry's own folder of artifacts: at each start all that
    /// was ever pushed would be served, withdrawn or not.
    ///
    /// # Errors
    /// [`RemoteError::Location`]
    pub fn check_apart(&self, partitions: Option<&Path>) -> Result<(), RemoteError> {
        let (Self::Directory(dir), Some(partitions)) = (self, partitions) else { return Ok(()) };
        match (dir.join("partitions").canonicalize(), partitions.canonicalize()) {
            (Ok(artifacts), Ok(given)) if given.starts_with(&artifacts) => Err(RemoteError::Location {
                given: dir.display().to_string(),
                reason: format!(
                    "its artifacts lie in {}, which is model.partitions too, so that at each start all that was ever pushed would be served; name another directory in model.partitions, or none",
                    partitions.display()
                ),
            }),
            _ => Ok(()),
        }
    }

    /// As messages name it.
    pub fn shown(&self, object: &str) -> String {
        match self {
            Self::Directory(dir) => dir.join(object).display().to_string().trim_end_matches('/').to_owned(),
            Self::Http { base, .. } | Self::Store { base, .. } if object.is_empty() => without_query(base.as_str()),
            Self::Http { base, .. } | Self::Store { base, .. } => {
                format!("{}/{object}", without_query(base.as_str()).trim_end_matches('/'))
            }
        }
    }

    /// Reads an object from `range.start` on, as much of the range or more as the place likes. `known`: fails with [`RemoteError::NotModified`] if the
    /// object still is in that state and the place can tell.
    ///
    /// # Errors
    /// What the place answers.
    pub async fn open(&self, object: &str, range: Option<Range<u64>>, known: &Tag) -> Result<Opened, RemoteError> {
        match self {
            Self::Directory(dir) => directory::open(dir.join(object), range).await,
            Self::Http { client, base } => open_http(client, address(base, object), self.shown(object), range, known).await,
            Self::Store { store, base } => {
                let shown = self.shown(object);
                let if_none_match = known.e_tag.clone();
                let options = GetOptions { range: range.map(object_store::GetRange::Bounded), if_none_match, ..GetOptions::default() };
                let result = store.get_opts(&path(base, object)?, options).await.map_err(|e| from_store(&shown, &e))?;
                let tag = Tag { e_tag: result.meta.e_tag.clone(), version: result.meta.version.clone() };
                let (total, start) = (Some(result.meta.size), result.range.start);
                let body = result.into_stream().map(move |piece| piece.map_err(|e| from_store(&shown, &e))).boxed();
                Ok(Opened { total, start, tag, body })
            }
        }
    }

    /// The size of an object; `None` where it is not there.
    ///
    /// # Errors
    /// A place that can't be asked, or is read only.
    pub async fn size(&self, object: &str) -> Result<Option<u64>, RemoteError> {
        match self {
            Self::Directory(dir) => directory::size(&dir.join(object)).await,
            Self::Http { .. } => Err(self.read_only()),
            Self::Store { store, base } => match store.head(&path(base, object)?).await {
                Ok(meta) => Ok(Some(meta.size)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(from_store(&self.shown(object), &error)),
            },
        }
    }

    /// Writes an object, whole or not at all.
    ///
    /// # Errors
    /// A place that can't be written.
    pub async fn put(&self, object: &str, bytes: Bytes) -> Result<(), RemoteError> {
        match self {
            Self::Directory(dir) => directory::put(dir.join(object), bytes).await,
            Self::Http { .. } => Err(self.read_only()),
            Self::Store { store, base } => {
                let put = put_in_parts(store.as_ref(), &path(base, object)?, bytes).await;
                put.map_err(|e| from_store(&self.shown(object), &e))
            }
        }
    }

    /// Writes an object if it still is in the state `known`, or if it is not there where that is `None`. `false`: somebody else was faster.
    ///
    /// # Errors
    /// A place that can't be written, or not conditionally.
    pub async fn put_if(&self, object: &str, bytes: Bytes, known: Option<Tag>) -> Result<bool, RemoteError> {
        let Self::Store { store, base } = self else { return Err(self.read_only()) };
        let mode = known.map_or(PutMode::Create, |tag| PutMode::Update(UpdateVersion { e_tag: tag.e_tag, version: tag.version }));
        match store.put_opts(&path(base, object)?, bytes.into(), PutOptions { mode, ..PutOptions::default() }).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::Precondition { .. } | object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(from_store(&self.shown(object), &error)),
        }
    }

    pub fn read_only(&self) -> RemoteError {
        RemoteError::ReadOnly { place: self.shown("") }
    }
}

/// Whether a text means a directory. Its first part tells whether it is an address that was misspelt, or was
/// meant for a shell.
fn check_directory(given: &str) -> Result<(), String> {
    let (first, rest) = given.split_once('/').unwrap_or((given, ""));
    let instead = format!("; a directory of that name is ./{given}");
    if first.starts_with(['~', '$']) {
        return Err(format!("the shell did not replace its {}: write the directory in full{instead}", &first[..1]));
    }
    if first.contains(':') {
        return Err(format!("its {first:?} looks like an address without ://, such as s3://bucket/delo{instead}"));
    }
    if rest.starts_with('/') && SCHEMES.iter().chain(&["file"]).any(|scheme| first.eq_ignore_ascii_case(scheme)) {
        return Err(format!("it lacks the colon after its scheme: write {}:/{rest}{instead}", first.to_ascii_lowercase()));
    }
    Ok(())
}

/// An object that is large goes in parts, a few at a time, so that no request is silent for longer than [`SILENCE`] only because it is long.
async fn put_in_parts(store: &dyn ObjectStore, path: &object_store::path::Path, mut bytes: Bytes) -> object_store::Result<()> {
    if bytes.len() <= PART {
        return store.put(path, bytes.into()).await.map(drop);
    }
    let mut parts = WriteMultipart::new_with_chunk_size(store.put_multipart(path).await?, PART);
    while !bytes.is_empty() {
        if let Err(error) = parts.wait_for_capacity(PARTS_AT_ONCE).await {
            // What is left of it is no object; the store removes it in time where this fails.
            let _ = parts.abort().await;
            return Err(error);
        }
        parts.put(bytes.split_to(PART.min(bytes.len())));
    }
    parts.finish().await.map(drop)
}

async fn open_http(
    client: &reqwest::Client,
    url: Url,
    object: String,
    range: Option<Range<u64>>,
    known: &Tag,
) -> Result<Opened, RemoteError> {
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
    let tag = Tag { e_tag: field(header::ETAG).map(str::to_owned), version: None };
    let body = stream::try_unfold(response, move |mut response| {
        let object = object.clone();
        async move {
            let piece = response.chunk().await.map_err(|e| RemoteError::Failed { object, reason: chain(&e.without_url()) })?;
            Ok(piece.map(|piece| (piece, response)))
        }
    });
    Ok(Opened { total, start, tag, body: body.boxed() })
}

/// `bytes 0-9/100` as (0, 100).
fn content_range(value: &str) -> Option<(u64, u64)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, total): (u64, u64, u64) = (start.parse().ok()?, end.parse().ok()?, total.parse().ok()?);
    (start <= end && end < total).then_some((start, total))
}

fn address(base: &Url, object: &str) -> Url {
    let mut url = base.clone();
    if !object.is_empty() {
        url.set_path(&format!("{}/{object}", base.path().trim_end_matches('/')));
    }
    url
}

fn path(base: &Url, object: &str) -> Result<object_store::path::Path, RemoteError> {
    object_store::path::Path::from_url_path(address(base, object).path())
        .map_err(|e| RemoteError::Location { given: without_query(base.as_str()), reason: e.to_string() })
}

/// A client that follows no redirect.
fn client(allow_http: bool) -> reqwest::Result<reqwest::Client> {
    static PROVIDER: Once = Once::new();
    // An error says that there is one already, which does as well.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .https_only(!allow_http)
        .user_agent(concat!("delo/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Gives object stores our client: theirs follows redirects.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allow_http = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        let client = client(allow_http).map_err(|e| object_store::Error::Generic { store: "HTTP", source: Box::new(e) })?;
        Ok(HttpClient::new(client))
    }
}

/// Repeating is for those who ask: they know how long it may take.
fn no_retries() -> object_store::RetryConfig {
    object_store::RetryConfig { max_retries: 1, retry_timeout: Duration::from_secs(20), ..object_store::RetryConfig::default() }
}

fn from_store(object: &str, error: &object_store::Error) -> RemoteError {
    let object = object.to_owned();
    match error {
        object_store::Error::NotFound { .. } => RemoteError::NotThere { object },
        object_store::Error::NotModified { .. } => RemoteError::NotModified { object },
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            RemoteError::Denied { object, reason: "check the credentials in the environment".to_owned() }
        }
        error => RemoteError::Failed { object, reason: told(error) },
    }
}

/// A store's error, whose addresses may have queries with signatures, without those.
fn told(error: &object_store::Error) -> String {
    let text = error.to_string();
    let mut out = String::new();
    for word in text.split_whitespace() {
        let plain = if word.contains("://") { word.split('?').next().unwrap_or(word) } else { word };
        out.extend([if out.is_empty() { "" } else { " " }, plain]);
    }
    out
}

/// An error and what caused it: reqwest's own message says little.
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

    #[tokio::test]
    async fn an_object_in_parts_is_the_same_object() {
        let store = Arc::new(object_store::memory::InMemory::new());
        let place = Place::Store { store: store.clone(), base: Url::parse("s3://bucket/registry").unwrap() };
        for length in [0, PART, PART + 1, 3 * PART + 7] {
            let bytes: Bytes = (0..length).map(|i| (i % 251) as u8).collect();
            place.put("object", bytes.clone()).await.unwrap();
            let path = object_store::path::Path::from("registry/object");
            assert!(store.get(&path).await.unwrap().bytes().await.unwrap() == bytes, "{length} bytes");
        }
    }

    #[test]
    fn a_registry_is_named_by_itself_or_by_its_manifest() {
        for (given, object) in [
            ("registry", "registry/manifest.json"),
            ("registry/manifest.json", "registry/manifest.json"),
            ("manifest.json", "./manifest.json"),
            ("file:///a/registry/", "/a/registry/manifest.json"),
            ("file:///a/my%20registry/manifest.json", "/a/my registry/manifest.json"),
            ("file://localhost/a", "/a/manifest.json"),
            ("FILE:/a", "/a/manifest.json"),
            ("a%20b", "a%20b/manifest.json"),
            ("./s3:/bucket", "./s3:/bucket/manifest.json"),
            ("./~/registry", "./~/registry/manifest.json"),
            ("/srv/a:b", "/srv/a:b/manifest.json"),
            ("a/~b:c", "a/~b:c/manifest.json"),
            ("HTTPS://host/a", "https://host/a/manifest.json"),
            ("https://host/a/", "https://host/a/manifest.json"),
            ("https://host/a/manifest.json", "https://host/a/manifest.json"),
            ("http://host:81", "http://host:81/manifest.json"),
        ] {
            assert_eq!(Place::of_registry(given).unwrap().shown("manifest.json"), object, "{given}");
        }
        for given in ["ftp://host/a", "https://u:p@host/a", "https://host/a?key=secret", "https://host/../a"] {
            let error = Place::of_registry(given).unwrap_err().to_string();
            assert!(!error.contains("secret") && !error.contains("u:p"), "{error}");
        }
    }

    #[test]
    fn a_registry_s_artifacts_are_no_partitions_directory() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = dir.path().join("partitions");
        std::fs::create_dir(&artifacts).unwrap();
        let place = Place::Directory(dir.path().to_owned());
        let told = place.check_apart(Some(&artifacts)).unwrap_err().to_string();
        assert!(told.contains("model.partitions"), "{told}");
        for apart in [None, Some(dir.path())] {
            place.check_apart(apart).unwrap();
        }
    }

    #[test]
    fn an_address_that_is_misspelt_is_refused_and_says_what_to_write() {
        for (given, words) in [
            ("", "empty"),
            (" s3://bucket/delo", "blank"),
            ("registry ", "blank"),
            ("registry\n", "control"),
            ("s3:/bucket/delo", "s3://bucket/delo"),
            ("s3:bucket", "s3://bucket"),
            ("S3:/bucket", "s3://bucket"),
            ("http:/host/x", "http://host/x"),
            ("az:b", "az://b"),
            ("s3//bucket/delo", "s3://bucket/delo"),
            ("file:reg", "file:///"),
            ("file://reg", "\"reg\""),
            ("file://nas/reg", "\"nas\""),
            ("file:///a%00b", "NUL"),
            ("~/reg", "shell"),
            ("~", "shell"),
            ("~ann/reg", "shell"),
            ("$HOME/reg", "shell"),
            ("S3://", "bucket"),
            ("s3:///delo", "bucket"),
            ("gcs://bucket/delo", "gs"),
            ("htp://host/delo", "http"),
            ("ftp://host/delo", "http"),
            ("localhost:8080/delo", "://"),
            ("models.example.com:443/delo", "://"),
            ("ann@host:delo", "://"),
            ("C:\\delo", "://"),
        ] {
            let refusal = Place::of_registry(given).unwrap_err();
            assert!(matches!(refusal, RemoteError::Location { .. }) && refusal.to_string().contains(words), "{given}: {refusal}");
        }
    }

    #[test]
    fn reads_content_ranges_that_make_sense() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for value in ["bytes 5-9/*", "bytes 5-10/10", "bytes 9-5/10", "items 0-1/2", "bytes */10", ""] {
            assert_eq!(content_range(value), None, "{value}");
        }
    }
}
