//! Reads and writes objects of an object store: Amazon S3, Google Cloud Storage or Azure Blob Storage.
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{
    ClientConfigKey, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion, WriteMultipart,
};
use reqwest::Url;

use super::http;
use super::object::{ObjectTag, OpenedObject, address};
use crate::remote::RemoteError;
use crate::remote::allowed::without_query;

/// Bytes of a part of a large object.
const PART: usize = 8 << 20;
/// How many parts are sent at once.
const PARTS_AT_ONCE: usize = 2;

/// The store at an address whose scheme is `s3`, `gs` or `az`. Its settings are read from the environment.
///
/// # Errors
/// The environment lacks a setting.
pub fn connect(url: &Url) -> Result<Arc<dyn ObjectStore>, RemoteError> {
    let failed = |e: object_store::Error| RemoteError::Location { given: without_query(url.as_str()), reason: without_queries(&e) };
    Ok(match url.scheme() {
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
            let builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str()).with_http_connector(Connector).with_retry(no_retries());
            Arc::new(builder.build().map_err(failed)?)
        }
    })
}

/// As [`Storage::open`](super::Storage::open); `shown` is the object's name in messages.
pub async fn open(
    store: &dyn ObjectStore,
    base: &Url,
    object: &str,
    shown: String,
    range: Option<Range<u64>>,
    known: &ObjectTag,
) -> Result<OpenedObject, RemoteError> {
    let range = range.map(object_store::GetRange::Bounded);
    let options = GetOptions { range, if_none_match: known.e_tag.clone(), ..GetOptions::default() };
    let result = store.get_opts(&path(base, object)?, options).await.map_err(|e| from_store(&shown, &e))?;
    let tag = ObjectTag { e_tag: result.meta.e_tag.clone(), version: result.meta.version.clone() };
    let (total, start) = (Some(result.meta.size), result.range.start);
    let body = result.into_stream().map(move |piece| piece.map_err(|e| from_store(&shown, &e))).boxed();
    Ok(OpenedObject { total, start, tag, body })
}

/// As [`Storage::size`](super::Storage::size).
pub async fn size(store: &dyn ObjectStore, base: &Url, object: &str, shown: &str) -> Result<Option<u64>, RemoteError> {
    match store.head(&path(base, object)?).await {
        Ok(meta) => Ok(Some(meta.size)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(from_store(shown, &error)),
    }
}

/// As [`Storage::put`](super::Storage::put).
pub async fn put(store: &dyn ObjectStore, base: &Url, object: &str, shown: &str, bytes: Bytes) -> Result<(), RemoteError> {
    put_in_parts(store, &path(base, object)?, bytes).await.map_err(|e| from_store(shown, &e))
}

/// As [`Storage::put_if`](super::Storage::put_if).
pub async fn put_if(
    store: &dyn ObjectStore,
    base: &Url,
    object: &str,
    shown: &str,
    bytes: Bytes,
    known: Option<ObjectTag>,
) -> Result<bool, RemoteError> {
    let mode = known.map_or(PutMode::Create, |tag| PutMode::Update(UpdateVersion { e_tag: tag.e_tag, version: tag.version }));
    match store.put_opts(&path(base, object)?, bytes.into(), PutOptions { mode, ..PutOptions::default() }).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::Precondition { .. } | object_store::Error::AlreadyExists { .. }) => Ok(false),
        Err(error) => Err(from_store(shown, &error)),
    }
}

/// Writes an object. A large one is sent in parts, a few at a time, so that no request is silent for longer
/// than [`SILENCE_TIMEOUT`](super::http::SILENCE_TIMEOUT) only because it is long.
async fn put_in_parts(store: &dyn ObjectStore, path: &object_store::path::Path, mut bytes: Bytes) -> object_store::Result<()> {
    if bytes.len() <= PART {
        return store.put(path, bytes.into()).await.map(drop);
    }
    let mut parts = WriteMultipart::new_with_chunk_size(store.put_multipart(path).await?, PART);
    while !bytes.is_empty() {
        if let Err(error) = parts.wait_for_capacity(PARTS_AT_ONCE).await {
            // Parts alone are no object. Where this fails, the store removes them in time.
            let _ = parts.abort().await;
            return Err(error);
        }
        parts.put(bytes.split_to(PART.min(bytes.len())));
    }
    parts.finish().await.map(drop)
}

/// The path of an object in its store.
fn path(base: &Url, object: &str) -> Result<object_store::path::Path, RemoteError> {
    object_store::path::Path::from_url_path(address(base, object).path())
        .map_err(|e| RemoteError::Location { given: without_query(base.as_str()), reason: e.to_string() })
}

/// Gives object stores a client that follows no redirect; their own follows them.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allow_http = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        let client = http::client(allow_http).map_err(|e| object_store::Error::Generic { store: "HTTP", source: Box::new(e) })?;
        Ok(HttpClient::new(client))
    }
}

/// Hardly any retries: the callers here repeat a request themselves, and know how long that may take.
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
        error => RemoteError::Failed { object, reason: without_queries(error) },
    }
}

/// The message of a store's error without the queries of addresses in it, which may hold signatures.
fn without_queries(error: &object_store::Error) -> String {
    let text = error.to_string();
    let mut out = String::new();
    for word in text.split_whitespace() {
        let plain = if word.contains("://") { word.split('?').next().unwrap_or(word) } else { word };
        out.extend([if out.is_empty() { "" } else { " " }, plain]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_in_parts_is_the_same_object() {
        let store = Arc::new(object_store::memory::InMemory::new());
        let base = Url::parse("s3://bucket/registry").unwrap();
        for length in [0, PART, PART + 1, 3 * PART + 7] {
            let bytes: Bytes = (0..length).map(|i| (i % 251) as u8).collect();
            put(store.as_ref(), &base, "object", "the object", bytes.clone()).await.unwrap();
            let path = object_store::path::Path::from("registry/object");
            assert!(store.get(&path).await.unwrap().bytes().await.unwrap() == bytes, "{length} bytes");
        }
    }
}
