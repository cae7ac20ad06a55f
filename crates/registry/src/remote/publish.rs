//! Changes of a registry: push, promote, withdraw. Blobs first, then the manifest, and that only if nobody changed it meanwhile.
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;

use super::RemoteError;
use super::directory::{self, Lock};
use super::fetch::{fetch_manifest, jittered};
use super::manifest::{Entry, Manifest};
use super::place::{Place, Tag};
use crate::signature;
use delo_model::partition::Artifact;

/// The manifest's name in its registry.
pub const MANIFEST: &str = "manifest.json";
/// How long the manifest may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a change is tried while others change the same manifest.
const ATTEMPTS: u32 = 50;
/// How long a change of a directory waits for another one.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// What a push did.
#[derive(Debug)]
pub struct Pushed {
    pub entry: Entry,
    /// Whether the artifact was sent: not where the registry had it.
    pub uploaded: bool,
    /// Whether this is the registry's first change.
    pub new_registry: bool,
    /// Of the manifest that holds it.
    pub revision: u64,
}

/// The manifest as it is; that of an empty registry where there is none.
///
/// # Errors
/// A manifest that can't be read; a directory that isn't there.
pub async fn list(place: &Place) -> Result<Manifest, RemoteError> {
    check_there(place)?;
    Ok(current(place).await?.0)
}

/// A directory that isn't there is more likely misspelt than a registry without any artifact.
fn check_there(place: &Place) -> Result<(), RemoteError> {
    match place {
        Place::Directory(dir) if !dir.is_dir() => Err(RemoteError::NotThere { object: place.shown("") }),
        _ => Ok(()),
    }
}

/// Adds an artifact, signed where a key is given, and makes it its task's live one where `live`.
///
/// # Errors
/// An unsound artifact, or a registry that can't be written.
pub async fn push(place: &Place, bytes: Bytes, key: Option<&SigningKey>, live: bool) -> Result<Pushed, RemoteError> {
    let artifact = Artifact::parse(&bytes)?;
    let entry = Entry {
        sha256: signature::digest(&bytes),
        bytes: bytes.len() as u64,
        task: artifact.meta.task,
        checksum: artifact.checksum,
        backbone: artifact.meta.backbone.fingerprint,
        created: artifact.meta.created,
        pushed: now(),
        signature: key.map(|key| signature::sign(key, &bytes)),
    };
    if let Place::Directory(dir) = place {
        directory::make(dir).await?;
    }
    // A size that differs is of a damaged copy.
    let uploaded = place.size(&entry.object()).await? != Some(entry.bytes);
    if uploaded {
        place.put(&entry.object(), bytes).await?;
    }
    if let Some(signature) = &entry.signature {
        place.put(&entry.signature_object(), format!("{signature}\n").into()).await?;
    }
    let mut new_registry = false;
    let change = |manifest: &mut Manifest| {
        new_registry = manifest.revision == 0;
        let added = manifest.add(entry.clone());
        let what = format!("{}@{}", entry.task, entry.sha256);
        Ok(if live { manifest.promote(&what)?.1 || added } else { added })
    };
    let revision = changed(place, change).await?;
    Ok(Pushed { uploaded, new_registry, revision, entry })
}

/// See [`Manifest::promote`]. Returns the artifact and the manifest's revision.
///
/// # Errors
/// No such artifact, or a registry that can't be written.
pub async fn promote(place: &Place, what: &str) -> Result<(Entry, u64), RemoteError> {
    check_there(place)?;
    let mut promoted = None;
    let revision = changed(place, |manifest| {
        let (entry, changed) = manifest.promote(what)?;
        promoted = Some(entry);
        Ok(changed)
    });
    let revision = revision.await?;
    let entry = promoted.ok_or_else(|| RemoteError::UnknownArtifact { what: what.to_owned() })?;
    Ok((entry, revision))
}

/// See [`Manifest::withdraw`]. Returns the manifest's revision.
///
/// # Errors
/// Nothing of the task is live, or a registry that can't be written.
pub async fn withdraw(place: &Place, task: &str) -> Result<u64, RemoteError> {
    check_there(place)?;
    changed(place, |manifest| manifest.withdraw(task).map(|()| true)).await
}

async fn current(place: &Place) -> Result<(Manifest, Option<Tag>), RemoteError> {
    match fetch_manifest(place, &Tag::default(), PATIENCE).await {
        Ok(Some((manifest, tag))) => Ok((manifest, Some(tag))),
        Ok(None) | Err(RemoteError::NotThere { .. }) => Ok((Manifest::default(), None)),
        Err(error) => Err(error),
    }
}

/// Applies a change to the manifest as it is at the moment it is written, and returns the revision then. `change` says whether it changed anything, and
/// runs again where somebody else was faster.
async fn changed(place: &Place, mut change: impl FnMut(&mut Manifest) -> Result<bool, RemoteError>) -> Result<u64, RemoteError> {
    let mut next = |mut manifest: Manifest| -> Result<(u64, Option<Bytes>), RemoteError> {
        if !change(&mut manifest)? {
            return Ok((manifest.revision, None));
        }
        manifest.revision += 1;
        manifest.updated = now();
        Ok((manifest.revision, Some(manifest.to_bytes()?.into())))
    };
    match place {
        Place::Http { .. } => Err(place.read_only()),
        Place::Directory(dir) => {
            // A file system has no conditional put.
            let _lock = Lock::take(&dir.join(MANIFEST), LOCK_WAIT).await?;
            let (revision, text) = next(current(place).await?.0)?;
            if let Some(text) = text {
                place.put(MANIFEST, text).await?;
            }
            Ok(revision)
        }
        Place::Store { .. } => {
            for attempt in 0..ATTEMPTS {
                let (manifest, tag) = current(place).await?;
                let (revision, text) = next(manifest)?;
                let Some(text) = text else { return Ok(revision) };
                if place.put_if(MANIFEST, text, tag).await? {
                    return Ok(revision);
                }
                sleep(jittered(PAUSE * (attempt + 1).min(20))).await;
            }
            Err(RemoteError::Contended { object: place.shown(MANIFEST) })
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a manifest tells people when something was pushed; nothing is decided by it")]
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    // A clock before the year 0 or after 9999 has no such text.
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::folder::Folder;

    fn entry(i: usize) -> Entry {
        Entry {
            sha256: format!("{i:064x}"),
            bytes: 1,
            task: format!("task-{i}"),
            checksum: String::new(),
            backbone: String::new(),
            created: String::new(),
            pushed: String::new(),
            signature: None,
        }
    }

    /// Many changes at once; all of them are in the manifest after.
    async fn many_at_once(place: Place) {
        const CHANGES: usize = 12;
        let changes = (0..CHANGES).map(|i| {
            let place = place.clone();
            tokio::spawn(async move {
                changed(&place, |manifest| {
                    manifest.add(entry(i));
                    manifest.promote(&format!("task-{i}")).map(|(_, changed)| changed)
                })
                .await
            })
        });
        for change in futures::future::join_all(changes).await {
            change.unwrap().unwrap();
        }
        let manifest = list(&place).await.unwrap();
        assert_eq!((manifest.revision, manifest.live().count()), (CHANGES as u64, CHANGES));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn concurrent_changes_of_a_directory_all_survive() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("registry")).unwrap();
        many_at_once(Place::Directory(dir.path().join("registry"))).await;
        let mut left: Vec<_> = std::fs::read_dir(dir.path().join("registry")).unwrap().map(|f| f.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["manifest.json"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn concurrent_changes_of_a_store_with_conditional_puts_all_survive() {
        let store = Arc::new(object_store::memory::InMemory::new());
        many_at_once(Place::Store { store, base: reqwest::Url::parse("s3://bucket/registry").unwrap() }).await;
    }

    #[tokio::test]
    async fn a_lock_that_is_left_behind_is_waited_for_and_then_told_of() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("manifest.json.lock"), "").unwrap();
        let error = Lock::take(&dir.path().join(MANIFEST), Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, RemoteError::Locked { .. }) && error.to_string().contains("delete that file"), "{error}");
        assert!(dir.path().join("manifest.json.lock").exists());
    }

    #[tokio::test]
    async fn refuses_what_is_no_sound_partition_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::Directory(dir.path().join("registry"));
        assert!(matches!(push(&place, Bytes::from_static(b"no partition"), None, true).await, Err(RemoteError::Partition(_))));
        assert!(!dir.path().join("registry").exists());
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_made_by_a_push_alone_and_in_one_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| Place::Directory(dir.path().join(name));
        assert!(matches!(list(&at("registry")).await, Err(RemoteError::NotThere { .. })));
        assert!(matches!(withdraw(&at("registry"), "food").await, Err(RemoteError::NotThere { .. })));
        assert!(matches!(promote(&at("registry"), "food").await, Err(RemoteError::NotThere { .. })));
        assert!(!dir.path().join("registry").exists());
        std::fs::write(dir.path().join("file"), "").unwrap();
        for (name, words) in [("missing/registry", "missing"), ("file", "no directory"), ("file/registry", "")] {
            let told = directory::make(&dir.path().join(name)).await.unwrap_err().to_string();
            assert!(told.contains(words), "{told}");
        }
        assert!(!dir.path().join("missing").exists());
        assert!(directory::make(&dir.path().join("registry")).await.unwrap());
        assert!(!directory::make(&dir.path().join("registry")).await.unwrap());
    }

    #[tokio::test]
    async fn nothing_is_pushed_into_what_a_server_keeps() {
        let dir = tempfile::tempdir().unwrap();
        let state = Folder::open(dir.path()).unwrap();
        for inside in [state.path().to_owned(), state.path().join("partitions"), state.path().join("registry")] {
            let told = directory::make(&inside).await.unwrap_err().to_string();
            assert!(told.contains("a server keeps what is live"), "{told}");
        }
        // Beside it there is room.
        assert!(!directory::make(dir.path()).await.unwrap());
    }

    #[tokio::test]
    async fn an_http_registry_is_read_only() {
        let place = Place::of_registry("http://127.0.0.1:1/registry").unwrap();
        assert!(matches!(withdraw(&place, "food").await, Err(RemoteError::ReadOnly { .. })));
    }
}
