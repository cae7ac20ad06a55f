//! What an operator sees: metrics, outcomes, reflection.
use delo::serve::pb::{ClassifyBatchRequest, ClassifyRequest, ReportOutcomeRequest};
use tonic::Code;
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{TASKS, artifact, mixed_requests, refused, start, start_with, text};

/// The value of a series that starts so; 0 where there is none.
fn value(page: &str, series: &str) -> f64 {
    page.lines().find(|l| l.starts_with(series)).map_or(0.0, |l| l.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Names and types of the table in deploy/METRICS.md, which the rules and the dashboard are held to.
fn documented_metrics() -> Vec<(&'static str, &'static str)> {
    let rows = include_str!("../../deploy/METRICS.md").lines().filter(|l| l.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.split('|').map(str::trim).skip(1);
        (cells.next().unwrap().trim_matches('`'), cells.next().unwrap())
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_contract_is_there_with_its_help() {
    let registry = tempfile::tempdir().unwrap();
    let server = start_with(&TASKS, &[("registry.manifest", registry.path().to_str().unwrap())]).await;
    let mut client = server.classifier().await;
    for request in mixed_requests(6) {
        client.classify(request).await.unwrap();
    }
    refused(client.classify(ClassifyRequest::default()).await, Code::InvalidArgument, "");
    let report = ReportOutcomeRequest {
        request_id: "request-1".to_owned(),
        true_task: "food".to_owned(),
        true_labels: vec!["food-1".to_owned()],
        ..Default::default()
    };
    client.report_outcome(report).await.unwrap();
    server.upload(artifact("food")).await.unwrap();
    let page = server.metrics().await;
    let table = documented_metrics();
    for (name, kind) in &table {
        assert!(page.contains(&format!("# HELP {name} ")), "no help of {name}");
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}");
        assert!(page.lines().any(|l| l.starts_with(name)), "no series of {name}");
    }
    for name in page.lines().filter_map(|l| l.strip_prefix("# TYPE delo_")?.split(' ').next()) {
        assert!(table.iter().any(|(known, _)| known.strip_prefix("delo_") == Some(name)), "delo_{name} is missing in deploy/METRICS.md");
    }
    assert!(page.contains("delo_requests_total{method=\"Classify\",code=\"OK\"}"), "{page}");
    assert!(page.contains("delo_requests_total{method=\"Classify\",code=\"INVALID_ARGUMENT\"}"), "{page}");
    assert!(page.contains("delo_stage_duration_seconds_bucket{stage=\"compute\",le="), "histograms have buckets");
    let versions: Vec<_> = page.lines().filter(|l| l.starts_with("delo_partition_info{task=\"food\"")).collect();
    assert_eq!(versions, ["delo_partition_info{task=\"food\",version=\"2\"} 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_count_once_and_only_for_answers_that_are_known() {
    let server = start().await;
    let mut client = server.classifier().await;
    let answer = client.classify(ClassifyRequest { request_id: "outcome".to_owned(), ..text("soup") }).await.unwrap().into_inner();
    let report = ReportOutcomeRequest {
        request_id: "outcome".to_owned(),
        true_task: answer.task.clone(),
        true_labels: vec![answer.scores[0].label.clone()],
        ..Default::default()
    };
    let first = client.report_outcome(report.clone()).await.unwrap().into_inner();
    assert_eq!((first.routed_task, first.task_correct, first.label_correct, first.counted), (answer.task, Some(true), Some(true), true));
    assert!(!client.report_outcome(report.clone()).await.unwrap().into_inner().counted, "the second time");

    refused(
        client.report_outcome(ReportOutcomeRequest { request_id: "unheard of".to_owned(), ..report.clone() }).await,
        Code::NotFound,
        "unheard of",
    );
    let empty = ReportOutcomeRequest { request_id: "outcome".to_owned(), ..Default::default() };
    refused(client.report_outcome(empty).await, Code::InvalidArgument, "true_task");
    refused(client.report_outcome(ReportOutcomeRequest { request_id: String::new(), ..report }).await, Code::InvalidArgument, "request_id");

    let by_task = ReportOutcomeRequest { task: "food".to_owned(), true_task: "travel".to_owned(), ..Default::default() };
    assert_eq!(client.report_outcome(by_task).await.unwrap().into_inner().task_correct, Some(false));
    let series = "delo_routing_outcomes_total{true_task=\"travel\",routed_task=\"food\"}";
    assert!(value(&server.metrics().await, series) >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_of_loaded_tasks_are_there_before_the_first() {
    let server = start().await;
    let page = server.metrics().await;
    for true_task in TASKS {
        for routed_task in TASKS {
            let series = format!("delo_routing_outcomes_total{{true_task=\"{true_task}\",routed_task=\"{routed_task}\"}} ");
            assert!(page.contains(&series), "{series}");
        }
        assert!(page.contains(&format!("delo_label_outcomes_total{{task=\"{true_task}\",correct=\"false\"}} ")));
    }
    assert!(value(&page, "delo_queue_capacity") >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn distinct_task_names_in_requests_add_no_series() {
    let server = start().await;
    let mut client = server.classifier().await;
    for call in 0..100 {
        let requests = (0..1000).map(|i| ClassifyRequest { task: format!("task-{call}-{i}"), ..text("a") }).collect();
        let results = client.classify_batch(ClassifyBatchRequest { requests }).await.unwrap().into_inner().results;
        assert_eq!(results.len(), 1000);
    }
    for i in 0..500 {
        let report = ReportOutcomeRequest { task: format!("routed-{i}"), true_task: format!("true-{i}"), ..Default::default() };
        client.report_outcome(report).await.unwrap();
    }
    let page = server.metrics().await;
    assert!(!page.contains("task-") && !page.contains("routed-") && !page.contains("true-"), "{page}");
    assert!(value(&page, "delo_routing_outcomes_total{true_task=\"other\",routed_task=\"other\"}") >= 500.0);
    assert!(page.len() < 200_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_describes_the_services_in_both_versions() {
    let server = start().await;
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.classifier_channel().await);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list")
    };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    assert!(["delo.v1.Classifier", "grpc.health.v1.Health"].iter().all(|n| names.iter().any(|m| m == n)), "{names:?}");
    assert!(!names.iter().any(|n| n == "delo.v1.Admin"), "it is not on this port");

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol("delo.v1.Admin".to_owned())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.admin_channel().await);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    assert!(
        matches!(answer, v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(f) if !f.file_descriptor_proto.is_empty())
    );
    assert_eq!(server.live().await.len(), TASKS.len());
}
