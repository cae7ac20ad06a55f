//! The audit log: who changed what is served, when, from where, to which artifact, and whether it was done.
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Code, Request, Status};

use super::connections::Peer;
use super::layers::Caller;
use delo_proto as pb;
use delo_registry::remote::SyncChanges;

/// Where the lines go beside the server's log. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct AuditLog(Option<Arc<Mutex<File>>>);

/// A change that is being made.
#[derive(Debug)]
pub struct Change {
    log: AuditLog,
    action: &'static str,
    client: Arc<str>,
    role: String,
    from: Option<SocketAddr>,
    task: String,
    request_id: String,
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    action: &'a str,
    client: &'a str,
    role: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<SocketAddr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
    task: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// SHA-256 over the artifact's file, hexadecimal.
    #[serde(skip_serializing_if = "str::is_empty")]
    digest: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    origin: &'a str,
    /// The gRPC status.
    outcome: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
}

impl AuditLog {
    /// Opens the file, whose lines stay. `None`: the server's log alone has them.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn open(file: Option<&Path>) -> std::io::Result<Self> {
        let open = |path| File::options().append(true).create(true).open(path);
        Ok(Self(file.map(open).transpose()?.map(|file| Arc::new(Mutex::new(file)))))
    }

    /// A change that the caller of `request` asks for.
    pub fn begin<T>(&self, request: &Request<T>, action: &'static str, task: &str, request_id: &str) -> Change {
        let Caller { name, role } = Caller::of(request.extensions());
        let from = request.extensions().get::<Peer>().and_then(|peer| peer.address);
        let (task, request_id) = (task.to_owned(), request_id.to_owned());
        Change { log: self.clone(), action, client: name, role: role.to_string(), from, task, request_id }
    }

    /// The changes that the registry's manifest made.
    pub fn all_followed(&self, changes: &SyncChanges) {
        changes.loaded.iter().for_each(|task| self.followed("load", task));
        changes.unloaded.iter().for_each(|task| self.followed("unload", task));
    }

    fn followed(&self, action: &'static str, task: &str) {
        let (client, role) = ("registry".into(), "registry".to_owned());
        let change = Change { log: self.clone(), action, client, role, from: None, task: task.to_owned(), request_id: String::new() };
        change.write(&pb::Partition { task: task.to_owned(), ..Default::default() }, Code::Ok, "");
    }
}

impl Change {
    /// The change is done, or refused: `partition` of an answer is what it was made to.
    pub fn end<T>(self, outcome: Result<T, Status>, partition: impl FnOnce(&T) -> Option<&pb::Partition>) -> Result<T, Status> {
        match &outcome {
            Ok(answer) => self.write(partition(answer).unwrap_or(&pb::Partition::default()), Code::Ok, ""),
            Err(status) => self.write(&pb::Partition::default(), status.code(), status.message()),
        }
        outcome
    }

    fn write(&self, partition: &pb::Partition, code: Code, message: &str) {
        let task = if partition.task.is_empty() { &self.task } else { &partition.task };
        let (action, client, role, digest) = (self.action, &*self.client, self.role.as_str(), partition.digest.as_str());
        let from = self.from.map(|from| from.to_string()).unwrap_or_default();
        let version = Some(partition.version).filter(|version| *version > 0);
        tracing::info!(target: "delo::audit", action, client, role, from, task, version, digest, outcome = ?code, message, "change");
        let Some(file) = &self.log.0 else { return };
        let line = Line {
            time: now(),
            action,
            client,
            role,
            from: self.from,
            request_id: &self.request_id,
            task,
            version,
            digest,
            origin: &partition.origin,
            outcome: &format!("{code:?}"),
            message,
        };
        let written = serde_json::to_vec(&line).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.write_all(&line).and_then(|()| file.sync_data())
        });
        if let Err(error) = written {
            tracing::error!(%error, "a change is not in the audit file (audit.file); the line above has it");
        }
    }
}

/// The time of day, RFC 3339.
#[expect(clippy::disallowed_methods, reason = "an audit tells the time of day")]
pub fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
