//! An object as a storage hands it out.
use bytes::Bytes;
use futures::stream::BoxStream;
use reqwest::Url;

use crate::remote::RemoteError;

/// An object that is being read.
pub struct OpenedObject {
    /// The whole object's size, where the storage tells it.
    pub total: Option<u64>,
    /// Where `body` begins: at the first byte that was requested, or before it.
    pub start: u64,
    /// Changes when the object does.
    pub tag: ObjectTag,
    /// The content from `start` on, in pieces.
    pub body: BoxStream<'static, Result<Bytes, RemoteError>>,
}

/// Identifies one state of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectTag {
    /// The HTTP entity tag.
    pub e_tag: Option<String>,
    /// The version of an object store that keeps versions.
    pub version: Option<String>,
}

/// The address of an object below `base`; `base` itself where the object's name is empty.
pub fn address(base: &Url, object: &str) -> Url {
    let mut url = base.clone();
    if !object.is_empty() {
        url.set_path(&format!("{}/{object}", base.path().trim_end_matches('/')));
    }
    url
}
