//! Partitions of all methods behind one server.
use std::collections::HashMap;

use delo_model::method::MethodKind;
use delo_model::{KeySignal, Layout, Method, Metric};
use delo_proto::classify_result::Result::{Error, Response};
use delo_proto::{ClassifyBatchRequest, ClassifyRequest, ClassifyResponse};
use image::ImageFormat;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::artifacts::with_meta;
use crate::harness::{Running, image, picture, refused, start_in, text};

/// One partition of each method, whose task has the method's name.
fn artifacts() -> Vec<(String, Vec<u8>)> {
    let delo = Method::Delo { pools: delo_fixtures::spec(Layout::RankOne, 2) };
    let methods = [delo].into_iter().chain(delo_fixtures::other_methods(1)).chain(delo_fixtures::prompt_methods());
    let of_method = |(seed, method): (u64, Method)| {
        let (name, model) = (method.kind().to_string(), delo_fixtures::random_model_of(method, 4, seed));
        let key = delo_fixtures::key_rule(Metric::Whitened, KeySignal::Parts { layer: 3 });
        (name.clone(), delo_fixtures::artifact(&name, &model, key, seed))
    };
    (0..).zip(methods).map(of_method).collect()
}

async fn start() -> Running {
    let partitions = tempfile::tempdir().unwrap();
    for (name, bytes) in artifacts() {
        std::fs::write(partitions.path().join(format!("{name}.safetensors")), bytes).unwrap();
    }
    let server = start_in(partitions, &[]).await;
    server.until_health(ServingStatus::Serving).await;
    server
}

/// The bits of an answer's scores by label.
fn bits(answer: &ClassifyResponse) -> (String, HashMap<String, u32>) {
    (answer.task.clone(), answer.scores.iter().map(|score| (score.label.clone(), score.score.to_bits())).collect())
}

/// Each modality pattern with each task given, and with an open task.
fn requests() -> Vec<ClassifyRequest> {
    let both = ClassifyRequest { text: Some("a cat".to_owned()), ..image(picture(1, ImageFormat::Png)) };
    let tasks: Vec<String> = MethodKind::ALL.iter().map(MethodKind::to_string).chain([String::new()]).collect();
    let with_task = |request: ClassifyRequest| tasks.iter().map(move |task| ClassifyRequest { task: task.clone(), ..request.clone() });
    [both, image(picture(2, ImageFormat::Png)), text("hot soup")].into_iter().flat_map(with_task).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_answers_samples_of_all_methods_in_one_batch_as_it_answers_each_alone() {
    let server = start().await;
    assert_eq!(server.live().await.len(), MethodKind::ALL.len());
    let mut client = server.classifier().await;
    let mut alone = Vec::new();
    for request in requests() {
        let given = request.task.clone();
        let answer = client.classify(request).await.unwrap().into_inner();
        assert!((answer.scores.iter().map(|score| score.score).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(given.is_empty() || answer.task == given);
        alone.push(answer);
    }
    let together = client.classify_batch(ClassifyBatchRequest { requests: requests() }).await.unwrap().into_inner().results;
    assert_eq!(together.len(), alone.len());
    for (result, alone) in together.into_iter().zip(&alone) {
        match result.result.unwrap() {
            Response(answer) => assert_eq!(bits(&answer), bits(alone)),
            Error(error) => panic!("{}: {error:?}", alone.task),
        }
    }
    // Without the partitions that add prompts, the answers of the others stay as they are.
    for task in ["dualprompt", "l2p"] {
        server.unload(task).await.unwrap();
    }
    for (request, before) in requests().into_iter().zip(&alone).filter(|(request, _)| ["delo", "lora", "linear"].contains(&&*request.task))
    {
        assert_eq!(bits(&client.classify(request).await.unwrap().into_inner()), bits(before));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_with_prompts_of_wrong_dimensions_is_refused_with_what_they_must_be() {
    let server = start().await;
    let artifacts: HashMap<String, Vec<u8>> = artifacts().into_iter().collect();
    let live = server.live().await;
    for (task, field, value, words) in [
        ("dualprompt", "lengths", serde_json::json!([3, 0, 4]), "a prefix of 0 keys: it has 1 to 1024"),
        ("dualprompt", "lengths", serde_json::json!([1, 1, 1, 1, 1, 1, 1]), "a backbone of 6 layers has them in 1 to 6"),
        ("dualprompt", "lengths", serde_json::json!([6, 2, 4, 3, 2, 1]), "tensor layers.1.key.prefix has shape"),
        ("l2p", "chosen", serde_json::json!(5), "it must be 1 to the 4 of the pool"),
        ("l2p", "length", serde_json::json!(0), "together they have 1 to 1024 tokens"),
        ("l2p", "pool", serde_json::json!(5), "tensor prompts.tokens has shape"),
        ("l2p", "hidden", serde_json::json!(8), "of width 8"),
    ] {
        let wrong = with_meta(&artifacts[task], |meta| meta[task][field] = value.clone());
        refused(server.upload(wrong).await, Code::InvalidArgument, words);
    }
    assert_eq!(server.live().await, live);
}
