//! What an operator sees: metrics, outcomes, reflection.
use std::collections::{BTreeMap, BTreeSet};

use delo::record::Record;
use delo_proto::load_partition_request::Source;
use delo_proto::trial_mode::Mode;
use delo_proto::{AbortTrialRequest, ClassifyBatchRequest, ClassifyRequest, LoadPartitionRequest, ReportOutcomeRequest, TrialMode};
use tonic::Code;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt;

use crate::authority::clients;
use crate::harness::{Running, TASKS, artifact, artifact_of, eventually, mixed_requests, refused, start, start_with, text};

/// The value of a series that starts so; 0 where there is none.
fn value(page: &str, series: &str) -> f64 {
    page.lines().find(|l| l.starts_with(series)).map_or(0.0, |l| l.rsplit(' ').next().unwrap().parse().unwrap())
}

/// One series of a page: its name, its labels as Prometheus reads them, and its value.
#[derive(Debug, PartialEq)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Series {
    /// By the grammar of the text format: in a label's value, \\, \" and \n are escapes.
    fn parse(line: &str) -> Self {
        let Some((name, mut rest)) = line.split_once('{') else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            return Self { name: name.to_owned(), labels: BTreeMap::new(), value: value.parse().unwrap() };
        };
        let mut labels = BTreeMap::new();
        while !rest.starts_with('}') {
            let (label, value) = rest.trim_start_matches(',').split_once("=\"").unwrap();
            let (mut text, mut chars) = (String::new(), value.chars());
            loop {
                match chars.next().expect("the value ends") {
                    '"' => break,
                    '\\' => text.push(match chars.next().unwrap() {
                        'n' => '\n',
                        escaped @ ('\\' | '"') => escaped,
                        other => panic!("\\{other} is no escape: {line}"),
                    }),
                    plain => text.push(plain),
                }
            }
            assert!(labels.insert(label.to_owned(), text).is_none(), "{label} twice: {line}");
            rest = chars.as_str();
        }
        Self { name: name.to_owned(), labels, value: rest[1..].trim().parse().unwrap() }
    }

    /// Every series of a page.
    fn all(page: &str) -> Vec<Self> {
        let (_, body) = page.split_once("\r\n\r\n").unwrap();
        body.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(Self::parse).collect()
    }

    fn label(&self, label: &str) -> &str {
        self.labels.get(label).map_or("", String::as_str)
    }

    /// The tasks that its labels name.
    fn tasks(&self) -> impl Iterator<Item = &str> {
        ["task", "true_task", "routed_task"].into_iter().filter_map(|label| self.labels.get(label)).map(String::as_str)
    }
}

impl Running {
    async fn series(&self) -> Vec<Series> {
        Series::all(&self.metrics().await)
    }

    /// The value of the series of this name with exactly these labels.
    async fn counted(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.series().await.into_iter().find(|series| series.name == name && series.labels == labels).map(|series| series.value)
    }

    async fn report(&self, task: &str, true_task: &str) {
        let report = ReportOutcomeRequest { task: task.to_owned(), true_task: true_task.to_owned(), ..Default::default() };
        self.classifier().await.report_outcome(report).await.unwrap();
    }
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
    let records = registry.path().join("decisions.jsonl");
    let settings = [
        ("registry.manifest", registry.path().to_str().unwrap()),
        ("registry.start_wait_seconds", "off"),
        ("records.file", records.to_str().unwrap()),
    ];
    let server = start_with(&TASKS, &settings).await;
    let fresh = server.metrics().await;
    // An increase is seen only of a series that was there before it.
    for series in [
        "delo_requests_total{method=\"ClassifyStream\",code=\"RESOURCE_EXHAUSTED\"} 0",
        "delo_rejected_total{reason=\"queue_full\"} 0",
        "delo_decision_records_total{outcome=\"dropped\"} 0",
    ] {
        assert!(fresh.contains(series), "{series}: {fresh}");
    }
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
    let partitions = server.admin().await.list_partitions(delo_proto::ListPartitionsRequest {}).await.unwrap().into_inner().partitions;
    let digest = partitions.into_iter().find(|partition| partition.task == "food").unwrap().digest;
    assert_eq!(versions, [format!("delo_partition_info{{task=\"food\",version=\"2\",digest=\"{}\"}} 1", &digest[..16])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_and_outcomes_are_recorded_without_what_was_sent_unless_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("decisions.jsonl");
    for payload in ["false", "true"] {
        let mut server = start_with(&TASKS, &[("records.file", file.to_str().unwrap()), ("records.payload", payload)]).await;
        let mut client = server.classifier().await;
        let answer = client.classify(ClassifyRequest { request_id: payload.to_owned(), ..text("soup") }).await.unwrap().into_inner();
        let report = ReportOutcomeRequest { request_id: payload.to_owned(), true_task: "food".to_owned(), ..Default::default() };
        client.report_outcome(report).await.unwrap();
        drop(client);
        server.ask_to_stop();
        server.ended().await.unwrap();

        let lines = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<Record> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [.., Record::Decision(decision), Record::Outcome(outcome)] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((decision.request_id.as_str(), outcome.request_id.as_str()), (payload, payload));
        assert_eq!(outcome.true_task, "food");
        let routing = decision.answer.routing.as_ref().unwrap();
        let expected = answer.routing.unwrap();
        assert_eq!((&decision.answer.task, routing.cosine, routing.margin), (&answer.task, expected.cosine, expected.margin));
        assert_eq!(decision.answer.label.as_deref(), Some(answer.scores[0].label.as_str()));
        assert_eq!((decision.answer.digest.len(), decision.answer.image.as_str()), (64, "PROXIED"));
        let sent = decision.payload.as_ref().and_then(|payload| payload.text.as_deref());
        assert_eq!(sent, (payload == "true").then_some("soup"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_says_why_for_programs_alone_and_within_a_batch() {
    let server = start().await;
    let mut client = server.classifier().await;
    let unknown = ClassifyRequest { task: "physics".to_owned(), ..text("soup") };
    let status = refused(client.classify(unknown.clone()).await, Code::NotFound, "physics");
    assert_eq!(status.get_details_error_info().unwrap().reason, "UNKNOWN_TASK");
    let status = refused(client.classify(ClassifyRequest::default()).await, Code::InvalidArgument, "");
    assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_INPUT");
    assert!(!status.get_details_bad_request().unwrap().field_violations.is_empty());
    let batch = client.classify_batch(ClassifyBatchRequest { requests: vec![unknown] }).await.unwrap().into_inner();
    let Some(delo_proto::classify_result::Result::Error(error)) = &batch.results[0].result else { panic!("{batch:?}") };
    assert_eq!(error.reason, "UNKNOWN_TASK");
    assert!(server.metrics().await.contains("delo_rejected_total{reason=\"unknown_task\"} 2"));
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
async fn a_reported_label_is_counted_beside_the_best_one_of_the_answer() {
    let server = start_with(&["food"], &[]).await;
    let mut client = server.classifier().await;
    let answer = client.classify(ClassifyRequest { top_k: Some(0), ..text("soup") }).await.unwrap().into_inner();
    let (best, other) = (answer.scores[0].label.clone(), answer.scores[1].label.clone());
    for (i, labels) in
        [vec![best.clone()], vec![other.clone()], vec!["of no task".to_owned()], vec![best.clone(), other.clone()]].into_iter().enumerate()
    {
        let request_id = format!("number {i}");
        client.classify(ClassifyRequest { request_id: request_id.clone(), ..text("soup") }).await.unwrap();
        client.report_outcome(ReportOutcomeRequest { request_id, true_labels: labels, ..Default::default() }).await.unwrap();
    }
    // Two true labels make no pair.
    for (truth, count) in [(best.as_str(), 1.0), (&other, 1.0), ("other", 1.0)] {
        let series = format!("delo_label_confusion_total{{task=\"food\",true_label=\"{truth}\",label=\"{best}\"}}");
        assert_eq!(server.value(&series).await, count, "{series}");
    }
    assert_eq!(server.value("delo_label_outcomes_total{task=\"food\",correct=\"true\"}").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_of_what_is_served_leaves_a_line_of_who_made_it_and_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (file, tokens) = (dir.path().join("audit.jsonl"), dir.path().join("clients.toml"));
    std::fs::write(&file, "{\"an\": \"earlier line\"}\n").unwrap();
    std::fs::write(&tokens, clients(&[("olga", "admin", "secret-of-olga")], &[])).unwrap();
    let changes = [("audit.file", file.to_str().unwrap()), ("auth.clients_file", tokens.to_str().unwrap())];
    let server = start_with(&["food"], &changes).await;
    let mut admin = server.admin().await;
    let of_olga = |mut request: tonic::Request<LoadPartitionRequest>| {
        request.metadata_mut().insert("authorization", "Bearer secret-of-olga".parse().unwrap());
        request
    };
    let load = |bytes: Vec<u8>| LoadPartitionRequest {
        source: Some(Source::Artifact(bytes.into())),
        request_id: "r1".to_owned(),
        ..Default::default()
    };
    let loaded =
        admin.load_partition(of_olga(tonic::Request::new(load(artifact("travel"))))).await.unwrap().into_inner().partition.unwrap();
    admin
        .load_partition(of_olga(tonic::Request::new(LoadPartitionRequest { request_id: String::new(), ..load(b"nothing".to_vec()) })))
        .await
        .unwrap_err();
    // Nobody: refused before it is a change.
    admin.load_partition(load(artifact("travel"))).await.unwrap_err();

    let lines: Vec<serde_json::Value> =
        std::fs::read_to_string(&file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0]["an"], "earlier line");
    for (field, value) in
        [("action", "LoadPartition"), ("client", "olga"), ("role", "admin"), ("task", "travel"), ("request_id", "r1"), ("outcome", "Ok")]
    {
        assert_eq!(lines[1][field], value, "{field}");
    }
    assert_eq!((lines[1]["digest"].as_str(), lines[1]["version"].as_u64()), (Some(loaded.digest.as_str()), Some(1)));
    assert!(lines[1]["from"].as_str().unwrap().starts_with("127.0.0.1:") && lines[1]["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!((lines[2]["outcome"].as_str(), lines[2]["client"].as_str()), (Some("InvalidArgument"), Some("olga")));
    assert!(!lines[2]["message"].as_str().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_tokens_and_the_use_of_experts_are_counted() {
    let server = start().await;
    let mut client = server.classifier().await;
    for i in 0..4 {
        client.classify(text(&format!("soup {i}"))).await.unwrap();
    }
    let page = server.metrics().await;
    assert!(value(&page, "delo_batches_total{ended_by=\"empty_queue\"}") >= 4.0);
    assert_eq!(value(&page, "delo_running_samples"), 0.0);
    let [known, unknown] = ["true", "false"].map(|known| value(&page, &format!("delo_text_tokens_total{{known=\"{known}\"}}")));
    assert!(known + unknown >= 8.0, "{known} {unknown}");
    let entropies: Vec<f64> =
        page.lines().filter_map(|line| line.strip_prefix("delo_factor_entropy{")?.rsplit_once(' ')?.1.parse().ok()).collect();
    assert!(entropies.len() >= 2 && entropies.iter().all(|entropy| (0.0..=1.0).contains(entropy)), "{entropies:?}");
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
    assert!(value(&page, "delo_routing_outcomes_total{true_task=\"other\",routed_task=\"other\",") >= 500.0);
    assert!(page.len() < 200_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_series_of_a_task_and_of_a_version_end_when_it_is_gone() {
    let server = start().await;
    // A task's labels, the versions' numbers left out: those of food rise.
    let of_tasks = |series: Vec<Series>| -> BTreeSet<String> {
        let of_a_task = series.into_iter().filter(|series| series.tasks().next().is_some());
        let shown = of_a_task.map(|mut series| {
            ["version", "digest"].iter().for_each(|of_version| drop(series.labels.remove(*of_version)));
            format!("{} {:?}", series.name, series.labels)
        });
        shown.collect()
    };
    for task in TASKS {
        // Each is routed to once, so that all its series are there.
        let known =
            |page: &[Series]| page.iter().any(|s| s.name == "delo_routing_margin_count" && s.label("task") == task && s.value > 0.0);
        for i in 0.. {
            if known(&server.series().await) {
                break;
            }
            assert!(i < 200, "nothing is routed to {task}");
            server.classifier().await.classify(text(&format!("{task} {i}"))).await.unwrap();
        }
    }
    let at_first = of_tasks(server.series().await);
    let mut client = server.classifier().await;
    for i in 0..12 {
        let (task, request_id) = (format!("fleeting-{i}"), format!("outcome-{i}"));
        server.upload(artifact(&task)).await.unwrap();
        let given = ClassifyRequest { task: task.clone(), request_id: request_id.clone(), ..text("soup") };
        let label = client.classify(given).await.unwrap().into_inner().scores[0].label.clone();
        client.classify(text("a dog")).await.unwrap();
        server.report(&task, "food").await;
        let outcome = ReportOutcomeRequest { request_id, true_task: task.clone(), true_labels: vec![label], ..Default::default() };
        let again = client.report_outcome(outcome.clone()).await.unwrap().into_inner();
        assert!(again.counted);
        let series = server.series().await;
        for name in ["delo_partition_info", "delo_version_answers_total", "delo_label_outcomes_total", "delo_routing_outcomes_total"] {
            assert!(series.iter().any(|s| s.name == name && s.tasks().any(|t| t == task)), "{name} of {task}");
        }
        server.unload(&task).await.unwrap();
        // Reported when the task is gone already.
        server.report(&task, &task).await;
        // A version more of a task that stays, and one that was tried.
        server.upload(artifact_of("food", i)).await.unwrap();
        let trial = Some(TrialMode { mode: Some(Mode::Shadow(true)) });
        let source = Some(Source::Artifact(artifact_of("travel", i).into()));
        let mut admin = server.admin().await.max_encoding_message_size(1 << 30);
        admin.load_partition(LoadPartitionRequest { source, trial, ..Default::default() }).await.unwrap();
        client.classify(ClassifyRequest { task: "travel".to_owned(), ..text("a train") }).await.unwrap();
        admin.abort_trial(AbortTrialRequest { task: "travel".to_owned(), ..Default::default() }).await.unwrap();
    }
    let series = server.series().await;
    let versions = series.iter().filter(|s| s.name == "delo_version_answers_total").count();
    assert_eq!(versions, TASKS.len());
    // All outcomes of which both tasks are gone count in one series, whatever the tasks' names.
    let gone = "delo_routing_outcomes_total {\"routed_task\": \"other\", \"routed_task_loaded\": \"false\", \
                \"true_task\": \"other\", \"true_task_loaded\": \"false\"}";
    let mut in_the_end = of_tasks(series);
    assert!(in_the_end.remove(gone), "{in_the_end:?}");
    assert_eq!(in_the_end, at_first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_has_one_label_value_in_every_metric_whatever_its_name() {
    let long = "é".repeat(126);
    let names = [
        r"C:\models\food",
        r"C:\\models\\food",
        r#"say \"hi\""#,
        r#"say "hi""#,
        r"ends with \",
        r"\n is no line",
        "{a=\"b\"} 1",
        "食べ物, 旅",
        " ",
        "other",
        &long,
    ];
    let server = start_with(&[], &[]).await;
    for name in names {
        // It may still be starting.
        eventually(async || server.upload(artifact(name)).await).await;
        let given = ClassifyRequest { task: name.to_owned(), ..text("soup") };
        assert_eq!(server.classifier().await.classify(given).await.unwrap().into_inner().task, name);
        server.report(name, name).await;
    }
    for i in 0..20 {
        server.classifier().await.classify(text(&format!("soup {i}"))).await.unwrap();
    }
    let series = server.series().await;
    let all: BTreeSet<&str> = names.into_iter().collect();
    let of = |name: &str, label: &str| -> BTreeSet<&str> { series.iter().filter(|s| s.name == name).map(|s| s.label(label)).collect() };
    for name in ["delo_partition_info", "delo_version_answers_total", "delo_version_outcomes_total", "delo_label_outcomes_total"] {
        assert_eq!(of(name, "task"), all, "{name}");
    }
    for label in ["true_task", "routed_task"] {
        assert_eq!(of("delo_routing_outcomes_total", label), all);
    }
    for name in ["delo_routed_total", "delo_routing_cosine_bucket", "delo_routing_margin_count"] {
        let routed = of(name, "task");
        assert!(!routed.is_empty() && routed.is_subset(&all), "{name}: {routed:?}");
    }
    for name in names {
        assert_eq!(server.counted("delo_routing_outcomes_total", &[("true_task", name), ("routed_task", name)]).await, Some(1.0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_the_name_other_is_distinct_from_those_that_are_not_loaded() {
    let server = start_with(&["food", "other"], &[]).await;
    for (routed, true_task, times) in
        [("other", "other", 3), ("food", "other", 2), ("other", "space", 4), ("space", "other", 5), ("space", "time", 6)]
    {
        for _ in 0..times {
            server.report(routed, true_task).await;
        }
    }
    let (unknown_true, unknown_routed) = (("true_task_loaded", "false"), ("routed_task_loaded", "false"));
    for (labels, value) in [
        (vec![("true_task", "other"), ("routed_task", "other")], 3.0),
        (vec![("true_task", "other"), ("routed_task", "food")], 2.0),
        (vec![("true_task", "other"), ("routed_task", "other"), unknown_true], 4.0),
        (vec![("true_task", "other"), ("routed_task", "other"), unknown_routed], 5.0),
        (vec![("true_task", "other"), ("routed_task", "other"), unknown_true, unknown_routed], 6.0),
    ] {
        assert_eq!(server.counted("delo_routing_outcomes_total", &labels).await, Some(value), "{labels:?}");
    }
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

    // By the last one a client reads the details of an error.
    for symbol in ["delo.v1.Admin", "google.rpc.ErrorInfo"] {
        let request = v1alpha::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(symbol.to_owned())),
        };
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.admin_channel().await);
        let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
        let v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(file) = answer else { panic!("{answer:?}") };
        assert!(!file.file_descriptor_proto.is_empty());
    }
    assert_eq!(server.live().await.len(), TASKS.len());
}
