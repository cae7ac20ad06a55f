//! Decoding of requests, and the checks on them that need no server.
use std::sync::OnceLock;

use delo::serve::deadline;
use delo_model::partition::check_name;
use delo_proto::load_partition_request::Source as Sent;
use delo_proto::{ClassifyBatchRequest, ClassifyRequest, LoadPartitionRequest, ReportOutcomeRequest};
use delo_registry::{PartitionSource, ReadArtifact, Root, SourceError};
use prost::Message;

use super::processor;

/// The first byte chooses the message, the rest are its bytes.
pub fn request(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 5 {
        0 => decoded::<ClassifyRequest>(bytes).iter().for_each(classify),
        1 => decoded::<ClassifyBatchRequest>(bytes).iter().flat_map(|batch| &batch.requests).take(4).for_each(classify),
        2 => decoded::<LoadPartitionRequest>(bytes).into_iter().for_each(load),
        3 => drop(decoded::<ReportOutcomeRequest>(bytes)),
        _ => timeout(bytes),
    }
}

/// A message that decodes says the same when it is encoded and decoded again.
fn decoded<M: Message + Default + PartialEq>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    // Compared as bytes: a NaN is not equal to itself.
    let once = message.encode_to_vec();
    let again = M::decode(once.as_slice()).expect("what was encoded can be decoded").encode_to_vec();
    assert_eq!(once, again);
    Some(message)
}

fn classify(request: &ClassifyRequest) {
    // Either is an answer; `image` and `text` look closer.
    let _ = processor().sample(request.image.as_deref(), request.text.as_deref());
    if check_name(&request.task).is_ok() {
        assert!(!request.task.is_empty() && request.task.len() <= 256 && !request.task.contains(char::is_control));
    }
}

/// What stands in the file that a path may reach, and in the one beside the directory that none may.
const INSIDE: &[u8] = b"inside";
const SECRET: &[u8] = b"secret";

/// A directory with one file and a link that leads out, beside a secret. It lives as long as the process.
fn root() -> &'static Root {
    static ROOT: OnceLock<(tempfile::TempDir, Root)> = OnceLock::new();
    &ROOT
        .get_or_init(|| {
            let dir = tempfile::tempdir().expect("a temporary directory can be made");
            let inside = dir.path().join("root");
            let made = std::fs::create_dir(&inside)
                .and_then(|()| std::fs::write(inside.join("a"), INSIDE))
                .and_then(|()| std::fs::write(dir.path().join("secret"), SECRET));
            #[cfg(unix)]
            let made = made.and_then(|()| std::os::unix::fs::symlink(dir.path(), inside.join("out")));
            made.expect("a temporary directory can be written to");
            let root = Root::new(Some(&inside), 1024, std::sync::Arc::default()).expect("the directory is there");
            (dir, root)
        })
        .1
}

/// No path reads what is not inside the directory.
fn load(request: LoadPartitionRequest) {
    let source = match request.source {
        Some(Sent::Uri(uri)) => PartitionSource::Uri(uri),
        Some(Sent::Artifact(artifact)) => PartitionSource::Artifact(ReadArtifact::hash(artifact)),
        None => return,
    };
    let uploaded = matches!(source, PartitionSource::Artifact(_));
    match root().read(source) {
        Ok(artifact) => {
            let bytes = artifact.bytes();
            assert!(uploaded && bytes.len() <= 1024 || bytes == INSIDE, "a path read {bytes:?}");
        }
        Err(SourceError::TooLarge { found, .. }) => assert!(found > 1024),
        Err(_) => {}
    }
}

/// A time-out is what the specification of gRPC spells, and short of overflow.
fn timeout(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(read) = deadline::timeout(text) {
        assert!(text.len() <= 9 && text.is_ascii() && read.as_secs() <= 99_999_999 * 3600);
    }
}
