//! One interface to the three kinds of storage that a registry can lie in: a directory, an HTTP server, an
//! object store.
mod bucket;
pub mod directory;
mod http;
mod named;
mod object;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStore;
use reqwest::Url;

use super::RemoteError;
use super::allowed::without_query;
use object::address;
pub use object::{ObjectTag, OpenedObject};

/// Where objects lie, by names such as `partitions/<sha256>.safetensors`. The empty name is the storage
/// itself.
#[derive(Clone, Debug)]
pub enum Storage {
    /// A directory of this machine, or of a file system that several machines share.
    Directory(PathBuf),
    /// An HTTP server, which is read only.
    Http {
        /// Follows no redirect.
        client: reqwest::Client,
        /// The address below which the objects lie.
        base: Url,
    },
    /// A bucket of an object store.
    Bucket {
        /// The store's interface.
        store: Arc<dyn ObjectStore>,
        /// The address below which the objects lie.
        base: Url,
    },
}

impl Storage {
    /// An object as messages name it; the storage itself where the object's name is empty.
    pub fn shown(&self, object: &str) -> String {
        match self {
            Self::Directory(dir) => dir.join(object).display().to_string().trim_end_matches('/').to_owned(),
            Self::Http { base, .. } | Self::Bucket { base, .. } if object.is_empty() => without_query(base.as_str()),
            Self::Http { base, .. } | Self::Bucket { base, .. } => {
                format!("{}/{object}", without_query(base.as_str()).trim_end_matches('/'))
            }
        }
    }

    /// Reads an object from `range.start` on: the range, or more where the storage sends more. Where the
    /// object still is in the state `known` and the storage can tell, this fails with
    /// [`RemoteError::NotModified`].
    ///
    /// # Errors
    /// What the storage answers.
    pub async fn open(&self, object: &str, range: Option<Range<u64>>, known: &ObjectTag) -> Result<OpenedObject, RemoteError> {
        let shown = self.shown(object);
        match self {
            Self::Directory(dir) => directory::open(dir.join(object), range).await,
            Self::Http { client, base } => http::open(client, address(base, object), shown, range, known).await,
            Self::Bucket { store, base } => bucket::open(store.as_ref(), base, object, shown, range, known).await,
        }
    }

    /// Whether the storage is there. Only a directory can be missing: others are created by the first write.
    pub async fn exists(&self) -> bool {
        match self {
            Self::Directory(dir) => directory::exists(dir).await,
            Self::Http { .. } | Self::Bucket { .. } => true,
        }
    }

    /// The size of an object; `None` where it is not there.
    ///
    /// # Errors
    /// A storage that can't be reached, or is read only.
    pub async fn size(&self, object: &str) -> Result<Option<u64>, RemoteError> {
        match self {
            Self::Directory(dir) => directory::size(&dir.join(object)).await,
            Self::Http { .. } => Err(self.read_only()),
            Self::Bucket { store, base } => bucket::size(store.as_ref(), base, object, &self.shown(object)).await,
        }
    }

    /// Writes an object, whole or not at all.
    ///
    /// # Errors
    /// A storage that can't be written.
    pub async fn put(&self, object: &str, bytes: Bytes) -> Result<(), RemoteError> {
        match self {
            Self::Directory(dir) => directory::put(dir.join(object), bytes).await,
            Self::Http { .. } => Err(self.read_only()),
            Self::Bucket { store, base } => bucket::put(store.as_ref(), base, object, &self.shown(object), bytes).await,
        }
    }

    /// Writes an object if it still is in the state `known`; `None`: if it does not exist. Returns `false`
    /// where it is in another state, because another writer changed it.
    ///
    /// # Errors
    /// A storage that can't be written, or not conditionally: only object stores can.
    pub async fn put_if(&self, object: &str, bytes: Bytes, known: Option<ObjectTag>) -> Result<bool, RemoteError> {
        let Self::Bucket { store, base } = self else { return Err(self.read_only()) };
        bucket::put_if(store.as_ref(), base, object, &self.shown(object), bytes, known).await
    }

    /// The error of a write to a storage that is read only.
    pub fn read_only(&self) -> RemoteError {
        RemoteError::ReadOnly { place: self.shown("") }
    }
}
