//! Changes of a registry: push, promote, withdraw. Artifacts are written first, then the manifest, and that
//! only if it is still the one that was read.
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;

use super::error::RemoteError;
use super::fetch::{fetch_manifest, jittered};
use super::manifest::{self, Entry, Manifest};
use super::storage::directory::{self, ManifestLock};
use super::storage::{ObjectTag, Storage};
use crate::artifact::ReadArtifact;
use crate::blocking::blocking;
use crate::signature;
use delo_model::partition::Artifact;

/// How long the fetch of the manifest may take.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a change is tried while others change the same manifest.
const ATTEMPTS: u32 = 50;
/// How long a change of a directory waits for another one.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// The pause after the first attempt; that after attempt n is n times as long, up to 20 times.
const PAUSE: Duration = Duration::from_millis(50);

/// What a push did.
#[derive(Debug)]
pub struct Pushed {
    /// The artifact as the manifest names it.
    pub entry: Entry,
    /// Whether the artifact was written; `false`: the registry had it.
    pub uploaded: bool,
    /// Whether this is the registry's first change.
    pub new_registry: bool,
    /// The revision of the manifest that holds it.
    pub revision: u64,
}

/// The manifest at this moment; that of an empty registry where there is none.
///
/// # Errors
/// A manifest that can't be read; a directory that isn't there.
pub async fn list(storage: &Storage) -> Result<Manifest, RemoteError> {
    check_exists(storage).await?;
    Ok(current(storage).await?.0)
}

/// A directory that isn't there is more likely misspelt than a registry without any artifact.
async fn check_exists(storage: &Storage) -> Result<(), RemoteError> {
    if storage.exists().await { Ok(()) } else { Err(RemoteError::NotThere { object: storage.shown("") }) }
}

/// Checks an artifact and names it for the manifest; signs it where a key is given. Blocks.
fn entry_of(artifact: &ReadArtifact, key: Option<&SigningKey>) -> Result<Entry, RemoteError> {
    let parsed = Artifact::parse_hashed(artifact.bytes(), artifact.digest())?;
    Ok(Entry {
        sha256: artifact.digest(),
        bytes: artifact.bytes().len() as u64,
        task: parsed.meta.task,
        checksum: parsed.checksum,
        backbone: parsed.meta.backbone.fingerprint,
        created: parsed.meta.created,
        pushed: now(),
        signature: key.map(|key| signature::sign(key, artifact)),
    })
}

/// Adds an artifact, signed where a key is given, and makes it the live one of its task where `live`.
///
/// # Errors
/// An artifact that is damaged or of a newer format; a registry that can't be written.
pub async fn push(storage: &Storage, bytes: Bytes, key: Option<&SigningKey>, live: bool) -> Result<Pushed, RemoteError> {
    let (file, key) = (bytes.clone(), key.cloned());
    let entry = blocking(move || entry_of(&ReadArtifact::hash(file), key.as_ref())).await?;
    if let Storage::Directory(dir) = storage {
        directory::make(dir).await?;
    }
    // A copy of another size is damaged, and is replaced.
    let uploaded = storage.size(&entry.object()).await? != Some(entry.bytes);
    if uploaded {
        storage.put(&entry.object(), bytes).await?;
    }
    if let Some(signature) = &entry.signature {
        storage.put(&entry.signature_object(), format!("{signature}\n").into()).await?;
    }
    let mut new_registry = false;
    let change = |manifest: &mut Manifest| {
        new_registry = manifest.revision == 0;
        let added = manifest.add(entry.clone());
        let what = format!("{}@{}", entry.task, entry.sha256);
        Ok(if live { manifest.promote(&what)?.1 || added } else { added })
    };
    let revision = changed(storage, change).await?;
    Ok(Pushed { uploaded, new_registry, revision, entry })
}

/// Makes an artifact live ([`Manifest::promote`]). Returns it and the manifest's revision.
///
/// # Errors
/// No such artifact, or a registry that can't be written.
pub async fn promote(storage: &Storage, what: &str) -> Result<(Entry, u64), RemoteError> {
    check_exists(storage).await?;
    let mut promoted = None;
    let revision = changed(storage, |manifest| {
        let (entry, changed) = manifest.promote(what)?;
        promoted = Some(entry);
        Ok(changed)
    });
    let revision = revision.await?;
    let entry = promoted.ok_or_else(|| RemoteError::UnknownArtifact { what: what.to_owned() })?;
    Ok((entry, revision))
}

/// Makes nothing of a task live ([`Manifest::withdraw`]). Returns the manifest's revision.
///
/// # Errors
/// Nothing of the task is live, or a registry that can't be written.
pub async fn withdraw(storage: &Storage, task: &str) -> Result<u64, RemoteError> {
    check_exists(storage).await?;
    changed(storage, |manifest| manifest.withdraw(task).map(|()| true)).await
}

/// The manifest and its state; that of an empty registry, without a state, where there is none.
async fn current(storage: &Storage) -> Result<(Manifest, Option<ObjectTag>), RemoteError> {
    match fetch_manifest(storage, &ObjectTag::default(), MANIFEST_TIMEOUT).await {
        Ok(Some((manifest, tag))) => Ok((manifest, Some(tag))),
        Ok(None) | Err(RemoteError::NotThere { .. }) => Ok((Manifest::default(), None)),
        Err(error) => Err(error),
    }
}

/// Applies a change to the manifest and writes it, and returns its revision. `change` returns whether it
/// changed anything; where another writer replaced the manifest meanwhile, it is applied again to the one of
/// that writer.
async fn changed(storage: &Storage, mut change: impl FnMut(&mut Manifest) -> Result<bool, RemoteError>) -> Result<u64, RemoteError> {
    let mut next = |mut manifest: Manifest| -> Result<(u64, Option<Bytes>), RemoteError> {
        if !change(&mut manifest)? {
            return Ok((manifest.revision, None));
        }
        manifest.revision += 1;
        manifest.updated = now();
        Ok((manifest.revision, Some(manifest.to_bytes()?.into())))
    };
    match storage {
        Storage::Http { .. } => Err(storage.read_only()),
        Storage::Directory(dir) => {
            // A file system has no conditional put.
            let _lock = ManifestLock::take(&dir.join(manifest::FILE_NAME), LOCK_WAIT).await?;
            let (revision, text) = next(current(storage).await?.0)?;
            if let Some(text) = text {
                storage.put(manifest::FILE_NAME, text).await?;
            }
            Ok(revision)
        }
        Storage::Bucket { .. } => {
            for attempt in 0..ATTEMPTS {
                let (manifest, tag) = current(storage).await?;
                let (revision, text) = next(manifest)?;
                let Some(text) = text else { return Ok(revision) };
                if storage.put_if(manifest::FILE_NAME, text, tag).await? {
                    return Ok(revision);
                }
                sleep(jittered(PAUSE * (attempt + 1).min(20))).await;
            }
            Err(RemoteError::Contended { object: storage.shown(manifest::FILE_NAME) })
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

    use futures::FutureExt;

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

    fn add_and_promote(manifest: &mut Manifest, i: usize) -> Result<bool, RemoteError> {
        manifest.add(entry(i));
        manifest.promote(&format!("task-{i}")).map(|(_, changed)| changed)
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_changes_of_a_directory_all_survive() {
        const CHANGES: usize = 12;
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::Directory(dir.path().to_owned());
        // Reads and writes of the directory run on other threads, so that these changes overlap.
        let changes = (0..CHANGES).map(|i| {
            let storage = storage.clone();
            tokio::spawn(async move { changed(&storage, |manifest| add_and_promote(manifest, i)).await })
        });
        let mut revisions: Vec<_> = futures::future::join_all(changes).await.into_iter().map(|done| done.unwrap().unwrap()).collect();
        revisions.sort_unstable();
        assert_eq!(revisions, (1..=CHANGES as u64).collect::<Vec<_>>(), "each change is a revision of its own");
        assert_eq!(list(&storage).await.unwrap().live().count(), CHANGES);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(left, ["manifest.json"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_a_store_that_others_overtake_is_applied_to_what_they_left() {
        const OTHERS: usize = 3;
        let store = Arc::new(object_store::memory::InMemory::new());
        let storage = Storage::Bucket { store, base: reqwest::Url::parse("s3://bucket/registry").unwrap() };
        let mut attempts = 0;
        let overtaken = changed(&storage, |manifest| {
            attempts += 1;
            if attempts <= OTHERS {
                // Another writer, between this one's read and its write. The store in memory never waits.
                let other = changed(&storage, |manifest| add_and_promote(manifest, attempts));
                other.now_or_never().expect("the store in memory answers at once").unwrap();
            }
            add_and_promote(manifest, 0)
        });
        assert_eq!(overtaken.await.unwrap(), OTHERS as u64 + 1);
        assert_eq!(attempts, OTHERS + 1);
        assert_eq!(list(&storage).await.unwrap().live().count(), OTHERS + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_others_always_overtake_is_given_up() {
        let store = Arc::new(object_store::memory::InMemory::new());
        let storage = Storage::Bucket { store, base: reqwest::Url::parse("s3://bucket/registry").unwrap() };
        let mut attempts = 0;
        let overtaken = changed(&storage, |manifest| {
            attempts += 1;
            changed(&storage, |manifest| add_and_promote(manifest, attempts)).now_or_never().unwrap().unwrap();
            add_and_promote(manifest, 0)
        });
        assert!(matches!(overtaken.await, Err(RemoteError::Contended { .. })));
        assert_eq!(attempts, ATTEMPTS as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_is_left_behind_is_waited_for_and_then_named() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("manifest.json.lock");
        std::fs::write(&lock, "").unwrap();
        let began = tokio::time::Instant::now();
        let error = ManifestLock::take(&dir.path().join(manifest::FILE_NAME), LOCK_WAIT).await.unwrap_err();
        assert!(matches!(error, RemoteError::Locked { .. }) && error.to_string().contains("delete that file"), "{error}");
        assert!(began.elapsed() >= LOCK_WAIT, "{:?}", began.elapsed());
        assert!(lock.exists(), "the lock of another is not removed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_is_free_again_when_its_holder_drops_it() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join(manifest::FILE_NAME);
        let held = ManifestLock::take(&manifest, LOCK_WAIT).await.unwrap();
        let waiting = ManifestLock::take(&manifest, LOCK_WAIT);
        let (taken, ()) = tokio::join!(waiting, async {
            sleep(LOCK_WAIT / 2).await;
            drop(held);
        });
        drop(taken.unwrap());
        assert!(!dir.path().join("manifest.json.lock").exists());
    }

    #[tokio::test]
    async fn refuses_what_is_no_sound_partition_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::Directory(dir.path().join("registry"));
        assert!(matches!(push(&storage, Bytes::from_static(b"no partition"), None, true).await, Err(RemoteError::Partition(_))));
        assert!(!dir.path().join("registry").exists());
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_made_by_a_push_alone_and_in_one_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| Storage::Directory(dir.path().join(name));
        assert!(matches!(list(&at("registry")).await, Err(RemoteError::NotThere { .. })));
        assert!(matches!(withdraw(&at("registry"), "food").await, Err(RemoteError::NotThere { .. })));
        assert!(matches!(promote(&at("registry"), "food").await, Err(RemoteError::NotThere { .. })));
        assert!(!dir.path().join("registry").exists());
        std::fs::write(dir.path().join("file"), "").unwrap();
        for (name, words) in [("missing/registry", "missing"), ("file", "no directory"), ("file/registry", "")] {
            let refused = directory::make(&dir.path().join(name)).await.unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
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
            let refused = directory::make(&inside).await.unwrap_err().to_string();
            assert!(refused.contains("a server keeps what is live"), "{refused}");
        }
        // Beside it there is room.
        assert!(!directory::make(dir.path()).await.unwrap());
    }

    #[tokio::test]
    async fn an_http_registry_is_read_only() {
        let storage = Storage::of_registry("http://127.0.0.1:1/registry").unwrap();
        assert!(matches!(withdraw(&storage, "food").await, Err(RemoteError::ReadOnly { .. })));
    }
}
