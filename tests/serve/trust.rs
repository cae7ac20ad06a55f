//! Whose partitions are served: signatures, and the addresses that a caller may name.
use std::path::PathBuf;

use delo::serve::Server;
use delo_proto::load_partition_request::Source;
use delo_proto::{GetStatusRequest, LoadPartitionRequest, Partition, SyncRegistryRequest};
use delo_registry::remote::{Storage, push};
use delo_registry::{ReadArtifact, signature};
use tonic::{Code, Status};

use crate::harness::{Running, artifact, config, eventually, refused, start, start_with};
use crate::web::{Mode, Web};

/// A pair that nothing else uses, as `openssl genpkey` and `openssl pkey -pubout` write it (RFC 8032, 7.1,
/// test 1).
const PRIVATE: &str =
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

struct Keys {
    dir: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("private.pem"), PRIVATE).unwrap();
        std::fs::write(dir.path().join("public.pem"), PUBLIC).unwrap();
        Self { dir }
    }

    fn public(&self) -> PathBuf {
        self.dir.path().join("public.pem")
    }

    fn sign(&self, bytes: &[u8]) -> String {
        let artifact = ReadArtifact::hash(bytes.to_vec().into());
        signature::sign(&signature::signing_key(&self.dir.path().join("private.pem")).unwrap(), &artifact)
    }
}

async fn upload(server: &Running, bytes: Vec<u8>, signature: Vec<u8>) -> Result<Partition, Status> {
    let request = LoadPartitionRequest { source: Some(Source::Artifact(bytes.into())), signature: signature.into(), ..Default::default() };
    let admin = server.admin().await.max_encoding_message_size(1 << 30);
    Ok({ admin }.load_partition(request).await?.into_inner().partition.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_signatures_are_required_only_what_is_signed_is_served() {
    let keys = Keys::new();
    let registry = tempfile::tempdir().unwrap();
    let storage = Storage::Directory(registry.path().to_owned());
    let changes = [
        ("registry.trusted_keys", keys.public().to_str().unwrap().to_owned()),
        ("registry.require_signature", "true".to_owned()),
        ("registry.manifest", registry.path().to_str().unwrap().to_owned()),
        ("registry.poll_seconds", "3600".to_owned()),
    ];
    let changes: Vec<_> = changes.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let server = start_with(&[], &changes).await;
    server.until_health(tonic_health::pb::health_check_response::ServingStatus::NotServing).await;
    let food = artifact("food");
    let right = signature::from_hex(&keys.sign(&food)).unwrap();
    let of_another = signature::from_hex(&keys.sign(b"another")).unwrap();
    eventually(async || server.admin().await.list_partitions(delo_proto::ListPartitionsRequest {}).await).await;

    refused(upload(&server, food.clone(), vec![]).await, Code::PermissionDenied, "registry.require_signature");
    refused(upload(&server, food.clone(), of_another).await, Code::PermissionDenied, "registry.trusted_keys");
    refused(upload(&server, food.clone(), right[1..].to_vec()).await, Code::InvalidArgument, "malformed");
    upload(&server, food.clone(), right).await.unwrap();

    let file = server.partitions.path().join("travel.safetensors");
    std::fs::write(&file, artifact("travel")).unwrap();
    let by_path = || server.load(Source::Uri("travel.safetensors".to_owned()));
    refused(by_path().await, Code::PermissionDenied, "registry.require_signature");
    std::fs::write(signature::signature_path(&file), keys.sign(&food)).unwrap();
    refused(by_path().await, Code::PermissionDenied, "registry.trusted_keys");
    std::fs::write(signature::signature_path(&file), keys.sign(&artifact("travel"))).unwrap();
    by_path().await.unwrap();

    let sync = async || server.admin().await.sync_registry(SyncRegistryRequest::default()).await.unwrap().into_inner();
    push(&storage, artifact("animals").into(), None, true).await.unwrap();
    let answer = sync().await;
    assert!(answer.loaded.is_empty() && answer.registry.unwrap().error.contains("registry.require_signature"));
    let key = signature::signing_key(&keys.dir.path().join("private.pem")).unwrap();
    push(&storage, artifact("animals").into(), Some(&key), true).await.unwrap();
    sync().await;
    // By that call or by the follower's own retry, whichever came first.
    assert!(server.live().await.iter().any(|(task, _)| task == "animals"));
    assert_eq!(server.live().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_signature_is_refused_even_where_none_is_required() {
    let keys = Keys::new();
    let server = start_with(&["food"], &[("registry.trusted_keys", keys.public().to_str().unwrap())]).await;
    let wrong = signature::from_hex(&keys.sign(b"another")).unwrap();
    refused(upload(&server, artifact("travel"), wrong).await, Code::PermissionDenied, "registry.trusted_keys");
    upload(&server, artifact("travel"), vec![]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_start_with_unsigned_partitions_where_signatures_are_required() {
    let keys = Keys::new();
    let partitions = tempfile::tempdir().unwrap();
    std::fs::write(partitions.path().join("food.safetensors"), artifact("food")).unwrap();
    let changes =
        [("registry.trusted_keys", keys.public().to_str().unwrap().to_owned()), ("registry.require_signature", "true".to_owned())];
    let changes: Vec<_> = changes.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let server = Server::bind(config(partitions.path(), &changes)).await.unwrap();
    let error = server.run(std::future::pending()).await.unwrap_err().to_string();
    assert!(error.contains("food.safetensors") && error.contains("not signed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_by_address_that_is_sent_again_is_answered_though_the_address_is_gone() {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("travel.safetensors"), artifact("travel")).unwrap();
    let web = Web::of(files.path()).await;
    let server = start_with(&["food"], &[("registry.allowed_urls", &web.url("")), ("registry.fetch_timeout_seconds", "1.0")]).await;
    let load = async |query: &str, request_id: &str| {
        let source = Some(Source::Uri(web.url(&format!("travel.safetensors{query}"))));
        let request = LoadPartitionRequest { source, request_id: request_id.to_owned(), ..Default::default() };
        server.admin().await.load_partition(request).await.map(|answer| answer.into_inner().partition.unwrap().version)
    };
    // An address may be signed anew for each attempt.
    assert_eq!(load("?signature=a", "one").await.unwrap(), 1);
    web.set(Mode::Gone);
    assert_eq!(load("?signature=b", "one").await.unwrap(), 1);
    refused(load("", "two").await, Code::Unavailable, "503");
    let other = Some(Source::Uri(web.url("other.safetensors")));
    let request = LoadPartitionRequest { source: other, request_id: "one".to_owned(), ..Default::default() };
    refused(server.admin().await.load_partition(request).await, Code::AlreadyExists, "request_id");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_read_only_where_the_operator_allows_them() {
    let files = tempfile::tempdir().unwrap();
    for dir in ["partitions", "partitions-secret"] {
        std::fs::create_dir(files.path().join(dir)).unwrap();
        std::fs::write(files.path().join(dir).join("travel.safetensors"), artifact("travel")).unwrap();
    }
    let (web, elsewhere) = (Web::of(files.path()).await, Web::of(files.path()).await);
    let url = web.url("partitions/travel.safetensors");
    let load = async |server: &Running, uri: String| server.load(Source::Uri(uri)).await;
    refused(load(&start().await, url.clone()).await, Code::PermissionDenied, "registry.allowed_urls");

    let server = start_with(&["food"], &[("registry.allowed_urls", &web.url("partitions/"))]).await;
    for uri in [
        web.url("partitions-secret/travel.safetensors"),
        web.url("partitions/../partitions-secret/travel.safetensors"),
        web.url("partitions/%2e%2e/partitions-secret/travel.safetensors"),
        elsewhere.url("partitions/travel.safetensors"),
        url.replace("http://", "http://user:word@"),
        url.replace("http://", "https://"),
        "s3://bucket/partitions/travel.safetensors".to_owned(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
    ] {
        let status = refused(load(&server, uri.clone()).await, Code::PermissionDenied, "registry.allowed_urls");
        assert!(!status.message().contains("word"), "{status:?}");
    }
    assert_eq!((web.requests(), elsewhere.requests()), (vec![], vec![]));

    assert_eq!(load(&server, format!("{url}?token=secret")).await.unwrap().task, "travel");
    web.set(Mode::Redirect(elsewhere.url("partitions/travel.safetensors")));
    let status = refused(load(&server, format!("{url}?token=secret")).await, Code::FailedPrecondition, "redirect");
    assert!(!status.message().contains("secret"), "{status:?}");
    assert_eq!(elsewhere.requests(), []);
    web.set(Mode::Honest);
    refused(load(&server, web.url("partitions/nothing")).await, Code::NotFound, "is not there");
    assert_eq!(server.live().await, [("food".to_owned(), 1), ("travel".to_owned(), 1)]);
    let status = server.admin().await.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.partitions, 2);
}
