//! The manifest of a registry: which artifacts it holds and which of them are live.
use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::RemoteError;

/// The manifest's name in its registry.
pub const FILE_NAME: &str = "manifest.json";
/// The value of the field `format`.
const FORMAT: &str = "delo-registry";
/// The newest version that this program reads, and the one it writes.
const VERSION: u32 = 1;
/// The longest manifest that is read or written.
pub const MAX_BYTES: usize = 4 << 20;
/// Most artifacts of one registry.
const MAX_ARTIFACTS: usize = 10_000;
/// The longest task name, in bytes, as in an artifact.
const MAX_NAME: usize = 256;
/// The longest of the other texts, in bytes: times and fingerprints.
const MAX_TEXT: usize = 128;
/// The largest revision: a gauge shows it exactly, and the next one is a number too.
const MAX_REVISION: u64 = (1 << 53) - 1;

/// `manifest.json`. A manifest that was read by [`Manifest::parse`] keeps the limits of this file, and each
/// digest in `live` is that of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `delo-registry`.
    pub format: String,
    /// The version of the format.
    pub version: u32,
    /// Counts the changes.
    pub revision: u64,
    /// RFC 3339, UTC. Empty before the first change.
    pub updated: String,
    /// In the order of their pushes.
    pub artifacts: Vec<Entry>,
    /// The live artifact of each task, by its SHA-256.
    pub live: BTreeMap<String, String>,
}

/// One artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// SHA-256 over the file's bytes, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// The file's size.
    pub bytes: u64,
    /// The task that it is a partition of.
    pub task: String,
    /// SHA-256 over the tensors.
    pub checksum: String,
    /// Fingerprint of the backbone it was trained on.
    pub backbone: String,
    /// When it was trained: RFC 3339, UTC.
    pub created: String,
    /// When it was pushed: RFC 3339, UTC.
    pub pushed: String,
    /// Its signature ([`crate::signature`]), 128 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// The fields by which a newer manifest is message from a damaged one.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

impl Default for Manifest {
    /// The manifest of an empty registry.
    fn default() -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            revision: 0,
            updated: String::new(),
            artifacts: Vec::new(),
            live: BTreeMap::new(),
        }
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// A text that is no manifest, is of a newer version, or goes beyond a limit.
    pub fn parse(text: &[u8]) -> Result<Self, RemoteError> {
        if text.len() > MAX_BYTES {
            return Err(bad(format!("it is longer than {MAX_BYTES} bytes")));
        }
        let head: Head = serde_json::from_slice(text).map_err(bad)?;
        if head.format != FORMAT {
            return Err(bad(format!("its format is not {FORMAT:?}")));
        }
        if head.version > VERSION {
            return Err(RemoteError::NewerManifest { found: head.version, known: VERSION });
        }
        let manifest: Self = serde_json::from_slice(text).map_err(bad)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as JSON.
    ///
    /// # Errors
    /// A manifest that [`Manifest::parse`] would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RemoteError> {
        self.check()?;
        let text = serde_json::to_vec_pretty(self).map_err(bad)?;
        if text.len() > MAX_BYTES {
            return Err(bad(format!("it would be longer than {MAX_BYTES} bytes: begin another registry")));
        }
        Ok(text)
    }

    fn check(&self) -> Result<(), RemoteError> {
        if self.revision > MAX_REVISION {
            return Err(bad(format!("its revision is beyond {MAX_REVISION}: begin another registry")));
        }
        if self.artifacts.len() > MAX_ARTIFACTS {
            return Err(bad(format!("it would hold more than {MAX_ARTIFACTS} artifacts: begin another registry")));
        }
        let mut seen = HashSet::new();
        for entry in &self.artifacts {
            entry.check()?;
            if !seen.insert(&entry.sha256) {
                return Err(bad(format!("artifact {} stands in it twice", entry.sha256)));
            }
        }
        if self.updated.len() > MAX_TEXT {
            return Err(bad("updated is too long"));
        }
        let named: HashSet<_> = self.artifacts.iter().map(|e| (e.task.as_str(), e.sha256.as_str())).collect();
        match self.live.iter().find(|(task, sha256)| !named.contains(&(task.as_str(), sha256.as_str()))) {
            Some((task, _)) => Err(bad(format!("what is live of task {:?} is no artifact of it", shortened(task)))),
            None => Ok(()),
        }
    }

    /// The live artifact of each task.
    pub fn live(&self) -> impl Iterator<Item = &Entry> {
        self.artifacts.iter().filter(|entry| self.live.get(&entry.task) == Some(&entry.sha256))
    }

    /// Adds an artifact as the last one pushed. One that is there keeps its signature unless another is
    /// given. Returns whether the manifest changed.
    pub fn add(&mut self, mut entry: Entry) -> bool {
        let Some(at) = self.artifacts.iter().position(|e| e.sha256 == entry.sha256) else {
            self.artifacts.push(entry);
            return true;
        };
        let known = &mut self.artifacts[at];
        let signed = entry.signature.is_some() && entry.signature != known.signature;
        if signed {
            known.signature.clone_from(&entry.signature);
        }
        if !self.artifacts[at + 1..].iter().any(|later| later.task == entry.task) {
            return signed;
        }
        entry.signature = self.artifacts.remove(at).signature;
        self.artifacts.push(entry);
        true
    }

    /// Makes an artifact the live one of its task. `what` is a task, for the one pushed last, or `TASK@` and
    /// the first digits of a SHA-256. Returns the artifact and whether anything changed.
    ///
    /// # Errors
    /// No artifact of that name, or several.
    pub fn promote(&mut self, what: &str) -> Result<(Entry, bool), RemoteError> {
        let entry = self.find(what)?.clone();
        let changed = self.live.insert(entry.task.clone(), entry.sha256.clone()).as_ref() != Some(&entry.sha256);
        Ok((entry, changed))
    }

    /// Makes no artifact of this task live.
    ///
    /// # Errors
    /// [`RemoteError::NotLive`]
    pub fn withdraw(&mut self, task: &str) -> Result<(), RemoteError> {
        self.live.remove(task).map(drop).ok_or_else(|| RemoteError::NotLive { task: shortened(task) })
    }

    fn find(&self, what: &str) -> Result<&Entry, RemoteError> {
        // A task's own name may hold an @.
        if let Some(last) = self.artifacts.iter().rev().find(|e| e.task == what) {
            return Ok(last);
        }
        let unknown = || RemoteError::UnknownArtifact { what: shortened(what) };
        let (task, prefix) = what.rsplit_once('@').ok_or_else(unknown)?;
        let prefix = prefix.to_ascii_lowercase();
        let mut found = self.artifacts.iter().filter(|e| e.task == task && e.sha256.starts_with(&prefix));
        let entry = found.next().ok_or_else(unknown)?;
        if found.next().is_some() {
            return Err(RemoteError::Ambiguous { what: shortened(what) });
        }
        Ok(entry)
    }
}

impl Entry {
    fn check(&self) -> Result<(), RemoteError> {
        if !is_digest(&self.sha256) {
            return Err(bad("a sha256 in it is not 64 lower-case hexadecimal digits"));
        }
        if self.task.is_empty() || self.task.len() > MAX_NAME {
            return Err(bad(format!("the task name of artifact {} is empty or longer than {MAX_NAME} bytes", self.sha256)));
        }
        if self.bytes == 0 {
            return Err(bad(format!("artifact {} is empty", self.sha256)));
        }
        if [&self.checksum, &self.backbone, &self.created, &self.pushed].iter().any(|text| text.len() > MAX_TEXT) {
            return Err(bad(format!("a text of artifact {} is longer than {MAX_TEXT} bytes", self.sha256)));
        }
        if let Some(signature) = &self.signature {
            crate::signature::from_hex(signature)?;
        }
        Ok(())
    }

    /// Where the artifact lies in its registry.
    pub fn object(&self) -> String {
        format!("partitions/{}.safetensors", self.sha256)
    }

    /// Where its signature lies.
    pub fn signature_object(&self) -> String {
        format!("partitions/{}.sig", self.sha256)
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A JSON error quotes the value that it found, however long. The middle of a long reason is left out: what
/// was found stands at its beginning, what was expected and where at its end.
fn bad(reason: impl std::fmt::Display) -> RemoteError {
    let mut reason = reason.to_string();
    let mut cuts = reason.char_indices().map(|(at, _)| at);
    if let (Some(from), Some(to)) = (cuts.nth(REASON_END), cuts.rev().nth(REASON_END - 1)) {
        reason.replace_range(from..to, " … ");
    }
    RemoteError::Manifest { reason }
}

/// Characters kept at each end of a reason.
const REASON_END: usize = 400;

/// A name as a message can quote it.
fn shortened(name: &str) -> String {
    name.chars().take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(task: &str, digit: char) -> Entry {
        Entry {
            sha256: digit.to_string().repeat(64),
            bytes: 10,
            task: task.to_owned(),
            checksum: "c".to_owned(),
            backbone: "b".to_owned(),
            created: "2026-01-01T00:00:00Z".to_owned(),
            pushed: "2026-01-01T00:00:00Z".to_owned(),
            signature: None,
        }
    }

    fn with(entries: impl IntoIterator<Item = Entry>) -> Manifest {
        Manifest { artifacts: entries.into_iter().collect(), ..Manifest::default() }
    }

    /// Read again after this change of its JSON.
    fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Result<Manifest, RemoteError> {
        let mut json = serde_json::to_value(with([entry("food", 'a')])).unwrap();
        change(&mut json);
        Manifest::parse(json.to_string().as_bytes())
    }

    #[test]
    fn is_read_as_it_was_written_and_with_fields_of_later_programs() {
        let mut manifest = with([entry("food", 'a'), entry("travel", 'b')]);
        manifest.promote("food").unwrap();
        assert_eq!(Manifest::parse(&manifest.to_bytes().unwrap()).unwrap(), manifest);
        assert!(changed(|json| json["mirrors"] = "none".into()).is_ok());
    }

    #[test]
    fn a_long_value_is_quoted_at_its_ends_with_what_was_expected() {
        for value in ["x".repeat(5000), "\u{7f}é".repeat(2000), "x".repeat(700)] {
            let message = Manifest::parse(&serde_json::to_vec(&value).unwrap()).unwrap_err().to_string();
            assert!(
                message.len() < 2000
                    && message.contains("invalid type: string")
                    && message.contains("expected")
                    && message.contains("line 1"),
                "{message}"
            );
        }
    }

    #[test]
    fn refuses_what_is_damaged_newer_or_beyond_a_limit() {
        assert!(Manifest::parse(b"{").is_err() && Manifest::parse(b"[]").is_err() && Manifest::parse(&vec![b' '; MAX_BYTES + 1]).is_err());
        let newer = changed(|json| (json["version"], json["artifacts"]) = (2.into(), "moved".into())).unwrap_err();
        assert!(newer.to_string().contains("upgrade"), "{newer}");
        type Change = fn(&mut serde_json::Value);
        let changes: [Change; 10] = [
            |json| json["format"] = "another".into(),
            |json| json["revision"] = (-1).into(),
            |json| json["revision"] = u64::MAX.into(),
            |json| json["artifacts"][0]["sha256"] = "../../etc/passwd".into(),
            |json| json["artifacts"][0]["sha256"] = "A".repeat(64).into(),
            |json| json["artifacts"][0]["task"] = "x".repeat(257).into(),
            |json| json["artifacts"][0]["bytes"] = 0.into(),
            |json| json["artifacts"][0]["signature"] = "00".into(),
            |json| json["live"]["food"] = "b".repeat(64).into(),
            |json| json["artifacts"] = vec![json["artifacts"][0].clone(); 2].into(),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            assert!(matches!(changed(change), Err(RemoteError::Manifest { .. } | RemoteError::Signature(_))), "change {i}");
        }
        let many = (0..=MAX_ARTIFACTS).map(|i| Entry { sha256: format!("{i:064x}"), ..entry("food", 'a') });
        assert!(with(many).to_bytes().is_err());
    }

    #[test]
    fn a_second_push_is_the_last_one_and_keeps_the_signature() {
        let signed = Entry { signature: Some("0".repeat(128)), ..entry("food", 'a') };
        let mut manifest = with([signed.clone(), entry("food", 'b'), entry("travel", 'c')]);
        assert!(!manifest.add(entry("food", 'b')) && !manifest.add(entry("travel", 'c')));
        assert!(manifest.add(entry("food", 'a')));
        assert_eq!(manifest.promote("food").unwrap().0, signed);
        let again = Entry { signature: Some("1".repeat(128)), ..entry("food", 'a') };
        assert!(manifest.add(again.clone()) && !manifest.add(again));
        assert_eq!(manifest.artifacts.len(), 3);
    }

    #[test]
    fn promotes_the_last_pushed_or_the_one_whose_digest_is_begun() {
        let mut manifest = with([entry("food", 'a'), entry("food", 'b'), entry("a@b", 'c')]);
        assert_eq!(manifest.promote("food").unwrap().0.sha256, "b".repeat(64));
        assert!(!manifest.promote("food").unwrap().1);
        assert_eq!(manifest.promote("food@AA").unwrap().0.sha256, "a".repeat(64));
        assert_eq!(manifest.promote("a@b").unwrap().0.task, "a@b");
        assert!(matches!(manifest.promote("food@"), Err(RemoteError::Ambiguous { .. })));
        assert!(matches!(manifest.promote("food@c"), Err(RemoteError::UnknownArtifact { .. })));
        manifest.withdraw("food").unwrap();
        assert!(matches!(manifest.withdraw("food"), Err(RemoteError::NotLive { .. })));
        assert_eq!(manifest.live().map(|e| e.task.as_str()).collect::<Vec<_>>(), ["a@b"]);
    }
}
