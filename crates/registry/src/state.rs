//! The ledger and the artifacts it names, on disk: after a crash or a power loss at any moment, what is found is the old state or the new one.
//!
//! ```text
//! STATE_DIR/delo-state/README.txt        marks the folder as a server's own (`folder.rs`)
//!                      lock              held by the server that uses the folder
//!                      catalogue-00000000000000000012.json    the latest generations of the ledger:
//!                                        a line with the SHA-256 of what follows, then JSON
//!                      partitions/<SHA-256>.safetensors       the artifacts that these generations name
//! ```
//! Nothing is removed but generations that were read here and files in `partitions/` that are named by a
//! SHA-256.
//! An artifact is written under another name, synced, renamed, and its folder synced, before a generation that names it is written the same way. A
//! generation is never changed; the one before stays until two later ones are there.
use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::io;

use bytes::Bytes;

use super::crash;
use super::ledger::Ledger;
use delo_model::partition::digest;

/// Generations that are kept.
const GENERATIONS: usize = 3;
/// The longest generation that is read, in bytes.
const MAX_LEDGER_BYTES: u64 = 256 << 20;
/// The longest artifact that is taken over from another directory, in bytes: more than any setting allows.
const MAX_ADOPTED_BYTES: u64 = 1 << 40;
pub const PARTITIONS: &str = "partitions";

/// A directory's files, as far as the state needs them. Names are relative to it.
pub trait Files: Debug + Send + Sync {
    /// # Errors
    /// It isn't there, is longer than `limit` bytes, or can't be read.
    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>>;
    /// The names in a directory (`""`: the root).
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Creates or replaces a file; its content has reached the disk on return.
    fn write_synced(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// What was created, renamed and removed in the directory has reached the disk on return.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// Why the state can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the catalogue can't be written to the state directory, nothing was changed: {0}; make room or mend it, then try again")]
    Write(io::Error),
    #[error("the state directory can't be read: {0}")]
    Read(io::Error),
    #[error("the artifact {digest} is missing from the state directory or damaged ({reason})")]
    Artifact { digest: String, reason: String },
}

/// What was found at start.
#[derive(Debug)]
pub struct Found {
    /// The newest sound generation; `None` in a directory without any.
    pub ledger: Option<Ledger>,
    /// What was passed over, for the operator.
    pub notices: Vec<String>,
}

impl Found {
    /// Whether there was no generation at all, not even a damaged one.
    pub fn is_empty(&self) -> bool {
        self.ledger.is_none() && self.notices.is_empty()
    }
}

/// The state in a directory. One change at a time: its owner holds it by `&mut`.
#[derive(Debug)]
pub struct StateDir<F> {
    files: F,
    /// Revision and artifacts of the generations that are kept, oldest first.
    generations: VecDeque<(u64, BTreeSet<String>)>,
}

fn generation(revision: u64) -> String {
    format!("catalogue-{revision:020}.json")
}

/// The revision in the name of a generation; `None` for every other name.
pub fn revision(name: &str) -> Option<u64> {
    let revision = name.strip_prefix("catalogue-")?.strip_suffix(".json")?.parse().ok()?;
    (generation(revision) == name).then_some(revision)
}

/// The digest in the name of an artifact, or of one that is half written; `None` for every other name.
pub fn named_digest(name: &str) -> Option<&str> {
    let digest = name.strip_suffix(".new").unwrap_or(name).strip_suffix(".safetensors")?;
    let hexadecimal = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    (digest.len() == 64 && digest.bytes().all(hexadecimal)).then_some(digest)
}

fn artifact(digest: &str) -> String {
    format!("{PARTITIONS}/{digest}.safetensors")
}

fn encode(ledger: &Ledger) -> Vec<u8> {
    // A ledger is maps with text keys, numbers and strings, which JSON can always hold.
    let json = serde_json::to_vec(ledger).unwrap_or_default();
    [format!("{}\n", digest(&json)).as_bytes(), &json].concat()
}

fn decode(bytes: &[u8]) -> Result<Ledger, String> {
    let (sum, json) = bytes.split_at_checked(64).ok_or("it is cut short")?;
    let json = json.strip_prefix(b"\n").ok_or("its first line is no checksum")?;
    if digest(json).as_bytes() != sum {
        return Err("its checksum is not that of its content".to_owned());
    }
    let ledger: Ledger = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    ledger.check()?;
    Ok(ledger)
}

impl<F: Files> StateDir<F> {
    /// Reads the newest sound generation.
    ///
    /// # Errors
    /// The directory can't be listed.
    pub fn open(files: F) -> Result<(Self, Found), StateError> {
        let mut revisions: Vec<u64> = files.list("").map_err(StateError::Read)?.iter().filter_map(|name| revision(name)).collect();
        revisions.sort_unstable();
        let mut state = Self { files, generations: VecDeque::new() };
        let mut found = Found { ledger: None, notices: Vec::new() };
        for &revision in revisions.iter().rev() {
            let name = generation(revision);
            let read = state.files.read(&name, MAX_LEDGER_BYTES).map_err(|e| e.to_string()).and_then(|bytes| decode(&bytes));
            match read {
                Ok(ledger) => {
                    let needed = ledger.digests().into_iter().map(str::to_owned).collect();
                    state.generations.push_front((revision, needed));
                    found.ledger.get_or_insert(ledger);
                }
                Err(reason) if found.ledger.is_none() => {
                    found.notices.push(format!("{name} is damaged ({reason}): fell back to the last good catalogue before it"));
                }
                Err(_) => {}
            }
        }
        Ok((state, found))
    }

    /// Makes a ledger durable, with the artifacts that it names for the first time. On return all have reached the disk.
    ///
    /// # Errors
    /// [`StateError::Write`]: the state found at the next start is the one before, or (where only the last sync failed) the new one.
    pub fn commit(&mut self, ledger: &Ledger, new: &[(String, Bytes)]) -> Result<(), StateError> {
        for (digest, bytes) in new {
            self.write(&artifact(digest), PARTITIONS, bytes, ["state.artifact.written", "state.artifact.renamed"])?;
        }
        let name = generation(ledger.revision);
        self.write(&name, "", &encode(ledger), ["state.catalogue.written", "state.catalogue.renamed"])?;
        let needed = ledger.digests().into_iter().map(str::to_owned).collect();
        self.generations.retain(|(revision, _)| *revision != ledger.revision);
        self.generations.push_back((ledger.revision, needed));
        crash::point("state.committed");
        self.tidy();
        Ok(())
    }

    /// Makes the ledger that was found in another directory this one's, with its artifacts. The other
    /// directory stays as it is; until the ledger is written here, last of all, this one holds none.
    ///
    /// # Errors
    /// [`StateError::Write`]
    pub fn adopt(&mut self, other: &Self, ledger: &Ledger) -> Result<(), StateError> {
        for digest in ledger.digests() {
            // What is missing or damaged there is missing here: the version that needs it is told of when it
            // is restored.
            if let Ok(bytes) = other.artifact(digest, MAX_ADOPTED_BYTES) {
                self.write(&artifact(digest), PARTITIONS, &bytes, ["state.adopted.written", "state.adopted.renamed"])?;
            }
        }
        self.commit(ledger, &[])
    }

    /// The digests of all artifacts that the generations in this directory name.
    pub fn digests(&self) -> BTreeSet<String> {
        self.generations.iter().flat_map(|(_, digests)| digests).cloned().collect()
    }

    fn write(&self, name: &str, dir: &str, bytes: &[u8], points: [&str; 2]) -> Result<(), StateError> {
        fail::fail_point!("state.write", |_| Err(StateError::Write(io::Error::from_raw_os_error(libc::ENOSPC))));
        let beside = format!("{name}.new");
        let written = self.files.write_synced(&beside, bytes).and_then(|()| {
            crash::point(points[0]);
            self.files.rename(&beside, name)?;
            crash::point(points[1]);
            self.files.sync_dir(dir)
        });
        written.map_err(|e| {
            // What was half written only takes room.
            let _ = self.files.remove(&beside);
            StateError::Write(e)
        })
    }

    /// The bytes of an artifact, as they were when it was committed.
    ///
    /// # Errors
    /// [`StateError::Artifact`]
    pub fn artifact(&self, wanted: &str, limit: u64) -> Result<Bytes, StateError> {
        let refused = |reason: String| StateError::Artifact { digest: wanted.to_owned(), reason };
        let bytes = self.files.read(&artifact(wanted), limit).map_err(|e| refused(e.to_string()))?;
        if digest(&bytes) != wanted {
            return Err(refused("its content is another".to_owned()));
        }
        Ok(bytes.into())
    }

    /// Removes the files written here that no kept generation needs; a file of another name stays. A failure
    /// only leaves a file there.
    fn tidy(&mut self) {
        while self.generations.len() > GENERATIONS {
            if let Some((revision, _)) = self.generations.pop_front() {
                let _ = self.files.remove(&generation(revision));
            }
        }
        let needed: BTreeSet<&String> = self.generations.iter().flat_map(|(_, digests)| digests).collect();
        for name in self.files.list(PARTITIONS).unwrap_or_default() {
            let Some(digest) = named_digest(&name) else { continue };
            let half_written = name.ends_with(".new");
            if half_written || !needed.contains(&digest.to_owned()) {
                let _ = self.files.remove(&format!("{PARTITIONS}/{name}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::ledger::VersionRecord;

    /// A disk that loses what was not synced. A file's content is durable once `write_synced` has returned; its name is, once its folder was synced.
    #[derive(Debug, Default)]
    struct Disk {
        /// Contents by number: what a name points at.
        contents: Vec<Vec<u8>>,
        /// The names as a running program sees them.
        names: BTreeMap<String, usize>,
        /// The names that a power loss leaves for certain.
        durable: BTreeMap<String, usize>,
        /// Changes of names since, each of which a power loss may undo.
        pending: Vec<Change>,
        /// Operations until the program is killed, in the middle of the last of them.
        left: Option<usize>,
    }

    #[derive(Clone, Debug)]
    enum Change {
        Set(String, usize),
        Unset(String),
    }

    fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
        match change {
            Change::Set(name, content) => drop(names.insert(name.clone(), *content)),
            Change::Unset(name) => drop(names.remove(name)),
        }
    }

    #[derive(Clone, Debug, Default)]
    struct Simulated(Arc<Mutex<Disk>>);

    impl Disk {
        /// Whether this operation is cut off.
        fn killed(&mut self) -> bool {
            match &mut self.left {
                Some(0) => true,
                Some(left) => {
                    *left -= 1;
                    false
                }
                None => false,
            }
        }

        fn change(&mut self, change: Change) {
            apply(&mut self.names, &change);
            self.pending.push(change);
        }

        fn name(&self, name: &str) -> io::Result<usize> {
            self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }

    fn dead<T>() -> io::Result<T> {
        Err(io::Error::other("killed"))
    }

    impl Files for Simulated {
        fn read(&self, name: &str, _: u64) -> io::Result<Vec<u8>> {
            let disk = self.0.lock().unwrap();
            Ok(disk.contents[disk.name(name)?].clone())
        }

        fn list(&self, dir: &str) -> io::Result<Vec<String>> {
            let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
            let disk = self.0.lock().unwrap();
            Ok(disk.names.keys().filter_map(|n| n.strip_prefix(&prefix)).filter(|n| !n.contains('/')).map(str::to_owned).collect())
        }

        fn write_synced(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            let killed = disk.killed();
            disk.contents.push(if killed { bytes[..bytes.len() / 2].to_vec() } else { bytes.to_vec() });
            let content = disk.contents.len() - 1;
            disk.change(Change::Set(name.to_owned(), content));
            if killed { dead() } else { Ok(()) }
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            if disk.killed() {
                return dead();
            }
            let content = disk.name(from)?;
            disk.change(Change::Set(to.to_owned(), content));
            disk.change(Change::Unset(from.to_owned()));
            Ok(())
        }

        fn sync_dir(&self, dir: &str) -> io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            if disk.killed() {
                return dead();
            }
            let within = |change: &Change| {
                let (Change::Set(name, _) | Change::Unset(name)) = change;
                name.rsplit_once('/').map_or("", |(folder, _)| folder) == dir
            };
            let (synced, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut disk.pending).into_iter().partition(within);
            synced.iter().for_each(|change| apply(&mut disk.durable, change));
            disk.pending = pending;
            Ok(())
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            if disk.killed() {
                return dead();
            }
            disk.name(name)?;
            disk.change(Change::Unset(name.to_owned()));
            Ok(())
        }
    }

    impl Simulated {
        /// The disk after the program was killed (`lost` is empty) or the power went: each pending change survives or not.
        fn after(&self, power: bool, survives: &[bool]) -> Self {
            let disk = self.0.lock().unwrap();
            let mut names = if power { disk.durable.clone() } else { disk.names.clone() };
            if power {
                let kept = disk.pending.iter().zip(survives.iter().cycle()).filter(|(_, survives)| **survives);
                kept.for_each(|(change, _)| apply(&mut names, change));
            }
            let contents = disk.contents.clone();
            Self(Arc::new(Mutex::new(Disk { contents, durable: names.clone(), names, ..Disk::default() })))
        }
    }

    fn bytes_of(version: u64) -> Bytes {
        Bytes::from(format!("artifact {version}").repeat(20))
    }

    /// Loads a version.
    fn load(ledger: &Ledger, version: u64) -> (Ledger, Bytes) {
        let bytes = bytes_of(version);
        let mut next = ledger.clone();
        let record = VersionRecord {
            digest: digest(&bytes),
            checksum: String::new(),
            origin: "upload".to_owned(),
            created: String::new(),
            delo_version: String::new(),
            multi_label: false,
            loaded: String::new(),
        };
        next.load("a", record, None).unwrap();
        next.prune("a", 1);
        next.revision += 1;
        (next, bytes)
    }

    fn commit(state: &mut StateDir<Simulated>, ledger: &Ledger, version: u64) -> (Ledger, Result<(), StateError>) {
        let (next, bytes) = load(ledger, version);
        let written = state.commit(&next, &[(digest(&bytes), bytes)]);
        (next, written)
    }

    proptest! {
        #[test]
        fn a_crash_at_any_step_leaves_the_old_catalogue_or_the_new_one(
            kill in 0usize..60,
            power in any::<bool>(),
            survives in prop::collection::vec(any::<bool>(), 1..40),
        ) {
            let disk = Simulated::default();
            let (mut state, found) = StateDir::open(disk.clone()).unwrap();
            prop_assert!(found.ledger.is_none());
            disk.0.lock().unwrap().left = Some(kill);
            let (mut committed, mut attempted) = (None, None);
            let mut ledger = Ledger::default();
            for version in 1..8 {
                let (next, written) = commit(&mut state, &ledger, version);
                attempted = Some(next.clone());
                if written.is_err() {
                    break;
                }
                committed = Some(next.clone());
                ledger = next;
            }
            let (state, found) = StateDir::open(disk.after(power, &survives)).unwrap();
            prop_assert!(found.ledger == committed || found.ledger == attempted, "{:?}\n{:?}\n{:?}", found, committed, attempted);
            for record in found.ledger.iter().flat_map(|ledger| ledger.tasks["a"].versions.values()) {
                prop_assert!(state.artifact(&record.digest, 1 << 20).is_ok());
            }
        }
    }

    proptest! {
        #[test]
        fn a_crash_while_another_directory_is_taken_over_loses_nothing_of_it(
            kill in 0usize..40,
            power in any::<bool>(),
            survives in prop::collection::vec(any::<bool>(), 1..40),
        ) {
            let former = Simulated::default();
            let (mut state, _) = StateDir::open(former.clone()).unwrap();
            let (one, written) = commit(&mut state, &Ledger::default(), 1);
            written.unwrap();
            let (two, written) = commit(&mut state, &one, 2);
            written.unwrap();
            former.write_synced("partitions/food.safetensors", b"somebody's").unwrap();
            let (before, former_names) = (state, former.0.lock().unwrap().names.clone());

            let disk = Simulated::default();
            disk.0.lock().unwrap().left = Some(kill);
            let (mut state, found) = StateDir::open(disk.clone()).unwrap();
            prop_assert!(found.is_empty());
            let adopted = state.adopt(&before, &two);
            let (mut state, found) = StateDir::open(disk.after(power, &survives)).unwrap();
            prop_assert!(found.ledger == Some(two.clone()) || (found.is_empty() && adopted.is_err()), "{found:?}");
            if found.is_empty() {
                state.adopt(&before, &two).unwrap();
            }
            for digest in two.digests() {
                prop_assert!(state.artifact(digest, 1 << 20).is_ok());
            }
            prop_assert_eq!(&former.0.lock().unwrap().names, &former_names);
        }
    }

    #[test]
    fn what_it_did_not_write_stays() {
        let disk = Simulated::default();
        let (mut state, _) = StateDir::open(disk.clone()).unwrap();
        let upper = format!("{}.safetensors", "A".repeat(64));
        let foreign = ["food.safetensors", "food.safetensors.sig", "README.txt", "0123abcd.safetensors", ".DS_Store", "x.new", &upper];
        for name in foreign {
            disk.write_synced(&format!("{PARTITIONS}/{name}"), b"somebody's").unwrap();
        }
        for name in ["catalogue-1.json", "catalogue-+0000000000000000001.json", "notes.json"] {
            disk.write_synced(name, b"somebody's").unwrap();
        }
        let half_written = format!("{}.safetensors.new", digest(b"half"));
        disk.write_synced(&format!("{PARTITIONS}/{half_written}"), b"ha").unwrap();
        let mut ledger = Ledger::default();
        for version in 1..=6 {
            let (next, written) = commit(&mut state, &ledger, version);
            written.unwrap();
            ledger = next;
        }
        let left = disk.list(PARTITIONS).unwrap();
        assert!(foreign.iter().all(|name| left.contains(&(*name).to_owned())), "{left:?}");
        assert!(!left.contains(&half_written), "{left:?}");
        assert_eq!(disk.list("").unwrap().iter().filter(|name| revision(name).is_none()).count(), 3);
    }

    #[test]
    fn a_damaged_generation_falls_back_to_the_one_before_and_says_so() {
        let disk = Simulated::default();
        let (mut state, _) = StateDir::open(disk.clone()).unwrap();
        let (one, written) = commit(&mut state, &Ledger::default(), 1);
        written.unwrap();
        let (two, written) = commit(&mut state, &one, 2);
        written.unwrap();
        let whole = disk.read(&generation(2), 0).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [Vec::new(), whole[..whole.len() / 2].to_vec(), flipped, b"{}".to_vec(), vec![0; 100]] {
            disk.write_synced(&generation(2), &damaged).unwrap();
            let (_, found) = StateDir::open(disk.clone()).unwrap();
            assert_eq!(found.ledger.as_ref(), Some(&one));
            assert!(found.notices.len() == 1 && found.notices[0].contains(&generation(2)), "{:?}", found.notices);
        }
        disk.write_synced(&generation(2), &whole).unwrap();
        assert_eq!(StateDir::open(disk).unwrap().1.ledger, Some(two));
    }

    #[test]
    fn old_generations_and_the_artifacts_that_only_they_need_are_removed() {
        let disk = Simulated::default();
        let (mut state, _) = StateDir::open(disk.clone()).unwrap();
        let mut ledger = Ledger::default();
        for version in 1..=20 {
            let (next, written) = commit(&mut state, &ledger, version);
            written.unwrap();
            ledger = next;
        }
        assert_eq!(disk.list("").unwrap(), [18, 19, 20].map(generation));
        // The three generations need versions 17 to 20: each its own and the one before.
        let expected: BTreeSet<String> = (17..=20).map(|v| format!("{}.safetensors", digest(&bytes_of(v)))).collect();
        assert_eq!(disk.list(PARTITIONS).unwrap().into_iter().collect::<BTreeSet<_>>(), expected);
    }

    #[test]
    fn an_artifact_whose_content_changed_is_not_served() {
        let disk = Simulated::default();
        let (mut state, _) = StateDir::open(disk.clone()).unwrap();
        let (_, written) = commit(&mut state, &Ledger::default(), 1);
        written.unwrap();
        let named = digest(&bytes_of(1));
        disk.write_synced(&artifact(&named), b"another").unwrap();
        assert!(matches!(state.artifact(&named, 1 << 20), Err(StateError::Artifact { .. })));
        assert!(matches!(state.artifact("0000", 1 << 20), Err(StateError::Artifact { .. })));
    }
}
