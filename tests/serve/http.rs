//! The door for callers without gRPC: JSON over HTTP, the Open Inference Protocol through both doors, and the
//! page.
use std::collections::BTreeMap;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use delo_proto::ClassifyRequest;
use delo_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use delo_proto::inference::{self as v2, model_infer_request};
use image::ImageFormat;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::authority::clients;
use crate::harness::{Running, TASKS, artifact, ends, picture, start_with, text, until};

/// What came back.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

async fn exchange(address: SocketAddr, head: &str, body: &[u8]) -> Reply {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("{head}\r\nHost: delo\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(reply[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let headers =
        head.lines().skip(1).filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Reply { status, headers: headers.collect(), body: reply[end + 4..].to_vec() }
}

async fn serving(changes: &[(&'static str, &str)]) -> (Running, SocketAddr) {
    let server = start_with(&TASKS, &[&[("http.listen", "127.0.0.1:0")], changes].concat()).await;
    let address = server.addresses.http.unwrap();
    (server, address)
}

async fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    exchange(address, &format!("POST {path} HTTP/1.1\r\nContent-Type: application/json"), body.to_string().as_bytes()).await
}

const CLASSIFY: &str = "/delo.v1.Classifier/Classify";

#[tokio::test(flavor = "multi_thread")]
async fn json_over_http_gets_the_answer_that_grpc_gets() {
    let (server, address) = serving(&[]).await;
    let png = picture(1, ImageFormat::Png);
    let request = json!({"image": STANDARD.encode(&png), "text": "a cat", "requestId": "mine", "topK": 0, "timings": true});
    let reply = exchange(
        address,
        &format!("POST {CLASSIFY} HTTP/1.1\r\nContent-Type: application/json; charset=utf-8\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
        request.to_string().as_bytes(),
    )
    .await;
    assert_eq!((reply.status, reply.headers["content-type"].as_str()), (200, "application/json"));
    assert!(
        reply.headers["server-timing"].starts_with("total;dur=")
            && reply.headers["traceparent"].contains("0af7651916cd43dd8448eb211c80319c")
    );
    let got = reply.json();
    let same = ClassifyRequest { image: Some(png.into()), request_id: "mine".to_owned(), ..text("a cat") };
    let expected = server.classifier().await.classify(same).await.unwrap().into_inner();
    assert_eq!((got["task"].as_str(), got["requestId"].as_str()), (Some(expected.task.as_str()), Some("mine")));
    let scores: Vec<(String, f64)> =
        got["scores"].as_array().unwrap().iter().map(|s| (s["label"].as_str().unwrap().to_owned(), s["score"].as_f64().unwrap())).collect();
    let expected: Vec<(String, f64)> = expected.scores.into_iter().map(|s| (s.label, s.score.into())).collect();
    assert!(
        scores.iter().zip(&expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6) && scores.len() == expected.len(),
        "{scores:?} {expected:?}"
    );
    assert!(got["timings"]["computeSeconds"].as_f64().unwrap() > 0.0);

    let outcome = post(address, "/delo.v1.Classifier/ReportOutcome", &json!({"requestId": "mine", "trueTask": got["task"]})).await;
    assert_eq!(outcome.json()["taskCorrect"], json!(true));
    let described = post(address, "/delo.v1.Classifier/Describe", &json!({})).await.json();
    assert_eq!(described["tasks"].as_array().unwrap().len(), TASKS.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_over_http_have_the_code_the_field_and_when_to_retry() {
    let (_server, address) = serving(&[("server.max_message_bytes", "4096")]).await;
    let empty = post(address, CLASSIFY, &json!({})).await;
    assert_eq!((empty.status, empty.json()["code"].as_str()), (400, Some("invalid_argument")));
    let details = empty.json()["details"].as_array().unwrap().clone();
    let detail = |kind: &str| details.iter().find(|detail| detail["type"] == kind).unwrap()["debug"].clone();
    assert_eq!(detail("google.rpc.BadRequest")["fieldViolations"][0]["field"], json!("image"));
    assert_eq!(detail("google.rpc.ErrorInfo")["reason"], json!("INVALID_INPUT"));
    for (path, body, status, code) in [
        (CLASSIFY, json!({"txt": "a"}), 400, "invalid_argument"),
        (CLASSIFY, json!({"text": "a", "task": "nowhere"}), 404, "not_found"),
        (CLASSIFY, json!({"text": "a".repeat(5000)}), 429, "resource_exhausted"),
        (CLASSIFY, json!({"text": "a".repeat(100_000)}), 429, "resource_exhausted"),
        ("/delo.v1.Classifier/ClassifyStream", json!({}), 501, "unimplemented"),
        ("/delo.v1.Classifier/Nothing", json!({}), 501, "unimplemented"),
        ("/delo.v1.Admin/ListPartitions", json!({}), 501, "unimplemented"),
        ("/elsewhere", json!({}), 501, "unimplemented"),
    ] {
        let reply = post(address, path, &body).await;
        assert_eq!((reply.status, reply.json()["code"].as_str()), (status, Some(code)), "{path}");
    }
    let form = exchange(address, &format!("POST {CLASSIFY} HTTP/1.1\r\nContent-Type: text/plain"), b"{\"text\": \"a\"}").await;
    assert_eq!(form.status, 400, "a page of another origin may send this type: {form:?}");
    let foreign = "Content-Type: application/json\r\nSec-Fetch-Site: cross-site";
    assert_eq!(exchange(address, &format!("POST {CLASSIFY} HTTP/1.1\r\n{foreign}"), b"{\"text\": \"a\"}").await.status, 403);
    let late = exchange(
        address,
        &format!("POST {CLASSIFY} HTTP/1.1\r\nContent-Type: application/json\r\nConnect-Timeout-Ms: 0"),
        b"{\"text\": \"a\"}",
    )
    .await;
    assert_eq!((late.status, late.json()["code"].as_str()), (504, Some("deadline_exceeded")));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_roles_hold_at_this_door_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("clients.toml");
    std::fs::write(&file, clients(&[("shop", "classify", "secret-of-the-shop"), ("watch", "read_only", "secret-of-the-watch")], &[]))
        .unwrap();
    let (_server, address) = serving(&[("auth.clients_file", file.to_str().unwrap())]).await;
    let with = async |token: &str, path: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nAuthorization: Bearer {token}");
        exchange(address, &head, b"{\"text\": \"a\"}").await.status
    };
    assert_eq!(post(address, CLASSIFY, &json!({"text": "a"})).await.status, 401);
    assert_eq!(with("wrong", CLASSIFY).await, 401);
    assert_eq!((with("secret-of-the-shop", CLASSIFY).await, with("secret-of-the-watch", CLASSIFY).await), (200, 403));
    assert_eq!(exchange(address, "GET /v2/health/ready HTTP/1.1", b"").await.status, 200);
    assert_eq!(exchange(address, "GET /v2 HTTP/1.1", b"").await.status, 401);
    assert_eq!(exchange(address, "GET / HTTP/1.1", b"").await.status, 200, "the page asks for the token itself");
    // A stranger is refused before a body is read: this one never comes.
    for path in [CLASSIFY, "/v2/models/delo/infer"] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: delo\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).await.unwrap();
        assert_eq!(&begin, b"HTTP/1.1 401", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_at_this_door_take_from_the_budget_of_messages_that_are_being_received() {
    let (server, address) = serving(&[("server.max_receive_bytes", "10000"), ("server.max_message_bytes", "9000")]).await;
    let text = |length: usize| json!({"text": "a".repeat(length)});
    let refused = post(address, CLASSIFY, &text(12_000)).await;
    assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (429, "1"), "{refused:?}");
    assert_eq!(server.value("delo_rejected_total{reason=\"receive_memory\"}").await, 1.0);
    for _ in 0..5 {
        assert_eq!(post(address, CLASSIFY, &text(4_000)).await.status, 200, "what was taken is given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_still_arriving_when_the_server_drains_is_answered() {
    let (mut server, address) = serving(&[]).await;
    let body = json!({"text": "soup"}).to_string();
    let head =
        format!("POST {CLASSIFY} HTTP/1.1\r\nHost: delo\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..4]).await.unwrap();
    // An answer to a later connection: the first has been accepted as well.
    assert_eq!(post(address, CLASSIFY, &json!({"text": "bread"})).await.status, 200);
    server.ask_to_stop();
    until("the end of the port", async || tokio::net::TcpStream::connect(address).await.is_err(), |refused| *refused).await;
    // Longer than connections get that are about to close.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    stream.write_all(&body.as_bytes()[4..]).await.unwrap();
    let mut answer = String::new();
    ends("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("scores"), "{answer}");
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_there_and_may_load_nothing_else() {
    let (_server, address) = serving(&[]).await;
    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript"), ("/icon.svg", "image/svg+xml")] {
        let reply = exchange(address, &format!("GET {path} HTTP/1.1"), b"").await;
        assert!(reply.status == 200 && reply.headers["content-type"].starts_with(kind), "{path}: {:?}", reply.headers);
        assert!(reply.headers["content-security-policy"].starts_with("default-src 'none'; script-src 'self';"));
        assert_eq!(reply.headers["x-content-type-options"], "nosniff");
    }
    let reply = exchange(address, "GET /nowhere HTTP/1.1", b"").await;
    assert_eq!((reply.status, reply.headers["x-content-type-options"].as_str()), (404, "nosniff"));
}

fn tensor(name: &str, contents: &[&[u8]]) -> model_infer_request::InferInputTensor {
    let bytes_contents = contents.iter().map(|bytes| bytes.to_vec().into()).collect();
    model_infer_request::InferInputTensor {
        name: name.to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![contents.len() as i64, 1],
        contents: Some(v2::InferTensorContents { bytes_contents, ..Default::default() }),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_open_inference_protocol_gives_the_same_answers_through_both_doors() {
    let (server, address) = serving(&[]).await;
    let mut client = GrpcInferenceServiceClient::new(server.classifier_channel().await);
    let png = picture(1, ImageFormat::Png);
    let request = v2::ModelInferRequest {
        model_name: "delo".to_owned(),
        inputs: vec![tensor("image", &[&png, b""]), tensor("text", &[b"a cat", b"soup"])],
        ..Default::default()
    };
    let answer = client.model_infer(request).await.unwrap().into_inner();
    let outputs: BTreeMap<&str, &v2::InferTensorContents> =
        answer.outputs.iter().map(|output| (output.name.as_str(), output.contents.as_ref().unwrap())).collect();
    assert_eq!(answer.outputs[0].shape, [2, 5]);
    assert_eq!(outputs["image_proxied"].bool_contents, [false, true]);
    let native = server.classifier().await.classify(text("soup")).await.unwrap().into_inner();
    assert_eq!(outputs["task"].bytes_contents[1], native.task.as_bytes());
    assert!((outputs["score"].fp32_contents[5] - native.scores[0].score).abs() < 1e-6);

    let metadata = exchange(address, "GET /v2/models/delo HTTP/1.1", b"").await.json();
    assert_eq!(metadata["inputs"][0], json!({"name": "image", "datatype": "BYTES", "shape": [-1, 1]}));
    let body = json!({
        "id": "seven",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [2], "data": [STANDARD.encode(&png), ""]},
            {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a cat", "soup"]},
        ],
        "outputs": [{"name": "task"}, {"name": "label", "parameters": {"classification": 1}}, {"name": "response"}],
    });
    let reply = post(address, "/v2/models/delo/infer", &body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let got = reply.json();
    assert_eq!((got["id"].as_str(), got["outputs"][0]["data"][1].as_str()), (Some("seven"), Some(native.task.as_str())));
    assert!(got["outputs"][1]["data"][1].as_str().unwrap().ends_with(&native.scores[0].label));
    let whole: Value = serde_json::from_str(got["outputs"][2]["data"][1].as_str().unwrap()).unwrap();
    assert_eq!((whole["task"].as_str(), whole["requestId"].as_str()), (Some(native.task.as_str()), Some("seven/1")));

    // Triton's client sends no content type with a body that is JSON alone.
    let untyped = exchange(address, "POST /v2/models/delo/infer HTTP/1.1", body.to_string().as_bytes()).await;
    assert_eq!(untyped.json()["outputs"][0], got["outputs"][0]);
    // A task's model skips routing; what there is no model of, is not ready and not found.
    let of_task =
        post(address, "/v2/models/food/infer", &json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]}))
            .await;
    assert_eq!(of_task.json()["model_version"], json!("1"));
    assert_eq!(exchange(address, "GET /v2/models/nowhere/ready HTTP/1.1", b"").await.status, 503);
    assert_eq!(exchange(address, "GET /v2/models/nowhere HTTP/1.1", b"").await.status, 404);
    assert_eq!(exchange(address, "GET /v2/models/food/versions/9 HTTP/1.1", b"").await.status, 404);
    let index = post(address, "/v2/repository/index", &json!({})).await.json();
    assert_eq!(
        index.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["delo", "animals", "food", "travel"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_loaded_through_the_admin_port_alone() {
    let (server, address) = serving(&[]).await;
    let refused = post(address, "/v2/repository/models/food/unload", &json!({})).await;
    assert_eq!((refused.status, refused.json()["error"].as_str().unwrap().contains("admin port")), (403, true));
    let unload = v2::RepositoryModelUnloadRequest { model_name: "food".to_owned(), ..Default::default() };
    let mut classifier = GrpcInferenceServiceClient::new(server.classifier_channel().await);
    assert_eq!(classifier.repository_model_unload(unload.clone()).await.unwrap_err().code(), Code::PermissionDenied);

    let mut admin = GrpcInferenceServiceClient::new(server.admin_channel().await);
    admin.repository_model_unload(unload).await.unwrap();
    let ready = v2::ModelReadyRequest { name: "food".to_owned(), ..Default::default() };
    assert!(!classifier.model_ready(ready.clone()).await.unwrap().into_inner().ready);
    let by_name = v2::RepositoryModelLoadRequest { model_name: "food".to_owned(), ..Default::default() };
    admin.repository_model_load(by_name).await.unwrap();
    assert!(classifier.model_ready(ready).await.unwrap().into_inner().ready);
    let bytes = v2::ModelRepositoryParameter {
        parameter_choice: Some(v2::model_repository_parameter::ParameterChoice::BytesParam(artifact("plants").into())),
    };
    let uploaded = v2::RepositoryModelLoadRequest {
        model_name: "plants".to_owned(),
        parameters: [("file:plants.safetensors".to_owned(), bytes)].into(),
        ..Default::default()
    };
    admin.repository_model_load(uploaded).await.unwrap();
    let metadata = v2::ModelMetadataRequest { name: "plants".to_owned(), ..Default::default() };
    assert_eq!(classifier.model_metadata(metadata).await.unwrap().into_inner().versions, ["1"]);
}
