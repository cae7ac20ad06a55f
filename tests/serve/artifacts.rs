//! Bad artifacts: each load is refused with its status, nothing changes, and the server still serves.
use delo_model::{KeySignal, Layout, Metric};
use delo_proto::load_partition_request::Source;
use delo_proto::{LoadPartitionRequest, UnloadPartitionResponse};
use serde_json::Value;
use tonic::Code;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{Running, TASKS, artifact, artifact_of, refused, start, start_at, start_with};

/// A request with anything at all for a name.
#[derive(Clone, PartialEq, prost::Message)]
struct RawName {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
}

/// The artifact with its header's metadata changed.
fn with_header(artifact: &[u8], change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Vec<u8> {
    let length = u64::from_le_bytes(artifact[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&artifact[8..8 + length]).unwrap();
    change(header["__metadata__"].as_object_mut().unwrap());
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), text.as_slice(), &artifact[8 + length..]].concat()
}

/// The artifact with what it says of itself changed.
pub fn with_meta(artifact: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    with_header(artifact, |header| {
        let mut meta: Value = serde_json::from_str(header["partition"].as_str().unwrap()).unwrap();
        change(&mut meta);
        header.insert("partition".to_owned(), Value::String(meta.to_string()));
    })
}

/// The artifact with an analytic classifier in its header that it does not hold.
fn with_analytic(artifact: &[u8], signal: &str, weight: f64) -> Vec<u8> {
    with_meta(artifact, |meta| meta["analytic"] = serde_json::json!({"signal": signal, "weight": weight, "head_weight": 0.5}))
}

/// The artifact as of another task.
pub fn renamed(artifact: &[u8], task: &str) -> Vec<u8> {
    with_meta(artifact, |meta| meta["task"] = task.into())
}

fn with_nan() -> Vec<u8> {
    let model = delo_fixtures::random_model(delo_fixtures::spec(Layout::RankOne, 3), 7, 1);
    let bias = candle_core::Tensor::new(&[f32::NAN; 7], &candle_core::Device::Cpu).unwrap();
    model.head_bias.set(&bias).unwrap();
    delo_fixtures::artifact("food", &model, delo_fixtures::key_rule(Metric::Whitened, KeySignal::Parts { layer: 3 }), 1)
}

async fn assert_unchanged(server: &Running) {
    assert_eq!(server.live().await, TASKS.map(|t| (t.to_owned(), 1)));
    server.assert_serving().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_hostile_and_damaged_artifacts() {
    let server = start().await;
    let good = artifact("food");
    let flipped = {
        let mut bytes = good.clone();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let claims = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();
    let long = "x".repeat(1 << 20);
    for (what, bytes, code, words) in [
        ("flipped byte", flipped, Code::InvalidArgument, "checksum"),
        ("truncated header", good[..100].to_vec(), Code::InvalidArgument, "not a delo partition"),
        ("truncated tensors", good[..good.len() - 10].to_vec(), Code::InvalidArgument, "not a delo partition"),
        ("nothing", Vec::new(), Code::InvalidArgument, "not a delo partition"),
        ("header length 2^63", claims(1 << 63), Code::InvalidArgument, "not a delo partition"),
        ("header length of all ones", claims(u64::MAX), Code::InvalidArgument, "not a delo partition"),
        ("NaN weights", with_nan(), Code::InvalidArgument, "NaN"),
        ("other shapes", with_meta(&good, |m| m["pools"]["experts"] = 6.into()), Code::InvalidArgument, ""),
        ("other labels", with_meta(&good, |m| m["labels"] = vec!["one"].into()), Code::InvalidArgument, ""),
        ("other backbone", with_meta(&good, |m| m["backbone"]["fingerprint"] = "abc".into()), Code::FailedPrecondition, "abc"),
        (
            "newer format",
            with_header(&good, |h| drop(h.insert("format_version".to_owned(), "99".into()))),
            Code::FailedPrecondition,
            "upgrade",
        ),
        ("an ablation", with_meta(&good, |m| m["pools"]["cross_modal_guide"] = false.into()), Code::InvalidArgument, "servers refuse it"),
        ("equal labels", with_meta(&good, |m| m["labels"][5] = m["labels"][1].clone()), Code::InvalidArgument, "\"food-1\""),
        ("an empty label", with_meta(&good, |m| m["labels"][5] = "".into()), Code::InvalidArgument, "labels[5]"),
        ("label of 1 MB", with_meta(&good, |m| m["labels"][2] = long.clone().into()), Code::InvalidArgument, "labels[2]"),
        ("task name of 1 MB", with_meta(&good, |m| m["task"] = long.clone().into()), Code::InvalidArgument, "task"),
        ("lda without class means", with_meta(&good, |m| m["key"]["metric"] = "lda".into()), Code::InvalidArgument, "lda"),
        ("temperature 0", with_meta(&good, |m| m["key"]["temperature"] = 0.into()), Code::InvalidArgument, "key.temperature"),
        ("no such analytic classifier", with_analytic(&good, "parts@3", 0.5), Code::InvalidArgument, "analytic.weight is missing"),
        ("analytic classifier of layer 9", with_analytic(&good, "parts@9+pooled", 0.5), Code::InvalidArgument, "analytic.signal"),
        ("analytic weight below 0", with_analytic(&good, "parts@3", -0.5), Code::InvalidArgument, "analytic.weight"),
        ("empty task name", with_meta(&good, |m| m["task"] = "".into()), Code::InvalidArgument, "task"),
    ] {
        let answer = server.upload(bytes).await;
        assert!(answer.is_err(), "{what} was loaded");
        refused(answer, code, words);
        assert_unchanged(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_an_artifact_over_the_limit() {
    let limit = TASKS.map(|task| artifact(task).len()).into_iter().max().unwrap();
    let server = start_with(&TASKS, &[("admin.max_artifact_bytes", &limit.to_string())]).await;
    refused(server.upload(vec![0; limit + 1]).await, Code::InvalidArgument, "admin.max_artifact_bytes");
    refused(server.upload(vec![0; 2 * limit]).await, Code::ResourceExhausted, "admin.max_artifact_bytes");
    assert_unchanged(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_by_path_from_inside_the_partitions_directory_only() {
    let server = start().await;
    let (dir, elsewhere) = (server.partitions.path(), tempfile::tempdir().unwrap());
    std::fs::write(elsewhere.path().join("symbols.safetensors"), artifact("symbols")).unwrap();
    let outside = elsewhere.path().join("symbols.safetensors").canonicalize().unwrap().display().to_string();
    for (uri, code) in [
        (outside.clone(), Code::PermissionDenied),
        (format!("file://{outside}"), Code::PermissionDenied),
        ("../symbols.safetensors".to_owned(), Code::PermissionDenied),
        ("nothing.safetensors".to_owned(), Code::NotFound),
        (format!("file://{}/%2e%2e/symbols.safetensors", dir.display()), Code::PermissionDenied),
        ("file://nas/symbols.safetensors".to_owned(), Code::InvalidArgument),
        ("file:symbols.safetensors".to_owned(), Code::InvalidArgument),
        (".".to_owned(), Code::InvalidArgument),
        ("https://example.org/symbols.safetensors".to_owned(), Code::PermissionDenied),
        ("ftp://example.org/symbols.safetensors".to_owned(), Code::InvalidArgument),
    ] {
        refused(server.load(Source::Uri(uri)).await, code, "");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&outside, dir.join("link.safetensors")).unwrap();
        refused(server.load(Source::Uri("link.safetensors".to_owned())).await, Code::PermissionDenied, "");
    }
    assert_unchanged(&server).await;
    std::fs::write(dir.join("symbols.safetensors"), artifact("symbols")).unwrap();
    std::fs::create_dir(dir.join("sub dir é")).unwrap();
    std::fs::write(dir.join("sub dir é/o b.safetensors"), artifact("symbols")).unwrap();
    let base = dir.canonicalize().unwrap().display().to_string();
    for (version, uri) in [
        (1, "symbols.safetensors".to_owned()),
        (2, format!("file://{base}/symbols.safetensors")),
        (3, format!("file://{base}/sub%20dir%20%C3%A9/o%20b.safetensors")),
        (4, "sub dir é/o b.safetensors".to_owned()),
    ] {
        let loaded = server.load(Source::Uri(uri)).await.unwrap();
        assert_eq!((loaded.task.as_str(), loaded.version), ("symbols", version));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_requests_that_name_nothing_or_no_utf8() {
    let server = start().await;
    refused(server.admin().await.load_partition(LoadPartitionRequest::default()).await, Code::InvalidArgument, "uri");
    refused(server.unload("").await, Code::InvalidArgument, "task");
    refused(server.unload("space").await, Code::NotFound, "space");

    let mut raw = tonic::client::Grpc::new(server.admin_channel().await);
    raw.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<RawName, UnloadPartitionResponse>::default();
    let request = tonic::Request::new(RawName { name: vec![0xff, 0xfe, 0x80] });
    let answer = raw.unary(request, PathAndQuery::from_static("/delo.v1.Admin/UnloadPartition"), codec).await;
    // Bytes that are no message are the client's fault.
    refused(answer, Code::InvalidArgument, "UTF-8");
    assert_unchanged(&server).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_no_partitions_do_not_stop_a_start_and_a_link_to_nothing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("food.safetensors"), artifact("food")).unwrap();
    for name in ["._food.safetensors", ".hidden.safetensors", ".DS_Store", "travel.safetensors.tmp", "food.safetensors~"] {
        std::fs::write(dir.path().join(name), "Mac OS X").unwrap();
    }
    std::fs::create_dir(dir.path().join("dir.safetensors")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(dir.path().join("pipe.safetensors")).status().unwrap().success());
    let server = start_at(dir.path(), &[]).await;
    server.until_health(ServingStatus::Serving).await;
    assert_eq!(server.live().await, [("food".to_owned(), 1)]);
    std::os::unix::fs::symlink("nowhere", dir.path().join("travel.safetensors")).unwrap();
    let refusal = start_at(dir.path(), &[]).await.ended().await.unwrap_err().to_string();
    assert!(refusal.contains("travel.safetensors"), "{refusal}");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_switched_is_read_as_it_stands_at_each_load() {
    let dir = tempfile::tempdir().unwrap();
    for (version, variant) in [("v1", 0), ("v2", 1)] {
        std::fs::create_dir(dir.path().join(version)).unwrap();
        std::fs::write(dir.path().join(version).join("food.safetensors"), artifact_of("food", variant)).unwrap();
    }
    let link = dir.path().join("cur");
    std::os::unix::fs::symlink("v1", &link).unwrap();
    let server = start_at(&link, &[]).await;
    server.until_health(ServingStatus::Serving).await;
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("v2", &link).unwrap();
    std::fs::remove_dir_all(dir.path().join("v1")).unwrap();
    let expected = delo_registry::signature::digest(&artifact_of("food", 1));
    for uri in ["food.safetensors".to_owned(), link.join("food.safetensors").display().to_string()] {
        assert_eq!(server.load(Source::Uri(uri)).await.unwrap().digest, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_whose_training_read_special_tokens_otherwise_are_refused() {
    let trained = |special_tokens: bool| with_meta(&artifact("symbols"), |meta| meta["special_tokens"] = special_tokens.into());
    for setting in [false, true] {
        let value = setting.to_string();
        // Those of the start say nothing of it: they go with either.
        let server = start_with(&TASKS, &[("input.special_tokens", &value)]).await;
        let status = refused(server.upload(trained(!setting)).await, Code::FailedPrecondition, "input.special_tokens");
        assert!(status.message().contains("symbols") && status.message().contains("--special-tokens"), "{status:?}");
        assert_unchanged(&server).await;
        server.upload(trained(setting)).await.unwrap();
    }
}
