use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::ledger::tests::record;

/// A disk that loses what was not synced. A file's content is durable once `write_synced` has returned; its
/// name is, once its folder was synced.
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

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
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
}

impl Directory for Simulated {
    fn write_synced(&self, name: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let killed = disk.killed();
        disk.contents.push(if killed { bytes[..bytes.len() / 2].to_vec() } else { bytes.to_vec() });
        let content = disk.contents.len() - 1;
        disk.change(Change::Set(text(name), content));
        if killed { dead() } else { Ok(()) }
    }

    fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let (from, to) = (text(from), text(to));
        let mut disk = self.0.lock().unwrap();
        if disk.killed() {
            return dead();
        }
        let content = disk.name(&from)?;
        disk.change(Change::Set(to, content));
        disk.change(Change::Unset(from));
        Ok(())
    }

    fn sync_dir(&self, dir: impl AsRef<Path>) -> io::Result<()> {
        let dir = text(dir);
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

    fn remove(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let name = text(name);
        let mut disk = self.0.lock().unwrap();
        if disk.killed() {
            return dead();
        }
        disk.name(&name)?;
        disk.change(Change::Unset(name));
        Ok(())
    }
}

impl Simulated {
    /// The disk after the program was killed, or after a power loss (`power`): then the n-th pending change is
    /// there if the n-th value of `survives`, repeated from its start, is true.
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
fn load(ledger: &Ledger, version: u64) -> (Ledger, ReadArtifact) {
    let artifact = ReadArtifact::hash(bytes_of(version));
    let mut next = ledger.clone();
    next.load("a", record(&artifact.digest()), None).unwrap();
    next.prune("a", 1);
    next.revision += 1;
    (next, artifact)
}

fn commit(state: &mut StateDir<Simulated>, ledger: &Ledger, version: u64) -> (Ledger, Result<(), StateError>) {
    let (next, artifact) = load(ledger, version);
    let written = state.commit(&next, &[artifact]);
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
            prop_assert!(state.artifacts().read(&record.digest, 1 << 20).is_ok());
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
            prop_assert!(state.artifacts().read(digest, 1 << 20).is_ok());
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
        disk.write_synced(format!("{PARTITIONS}/{name}"), b"somebody's").unwrap();
    }
    for name in ["catalogue-1.json", "catalogue-+0000000000000000001.json", "notes.json"] {
        disk.write_synced(name, b"somebody's").unwrap();
    }
    let half_written = format!("{}.safetensors.new", digest(b"half"));
    disk.write_synced(format!("{PARTITIONS}/{half_written}"), b"ha").unwrap();
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
        disk.write_synced(generation(2), &damaged).unwrap();
        let (_, found) = StateDir::open(disk.clone()).unwrap();
        assert_eq!(found.ledger.as_ref(), Some(&one));
        assert!(found.notices.len() == 1 && found.notices[0].contains(&generation(2)), "{:?}", found.notices);
    }
    disk.write_synced(generation(2), &whole).unwrap();
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
    disk.write_synced(artifact_path(&named), b"another").unwrap();
    assert!(matches!(state.artifacts().read(&named, 1 << 20), Err(StateError::Artifact { .. })));
    assert!(matches!(state.artifacts().read("0000", 1 << 20), Err(StateError::Artifact { .. })));
}
