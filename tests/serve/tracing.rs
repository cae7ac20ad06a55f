//! Where the time of a sample went: in its answer, in trailers, and as a trace at a collector.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use delo_proto::{ClassifyBatchRequest, ClassifyRequest};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

use crate::harness::{TASKS, image, picture, start, start_with, text};

/// A collector that keeps what it receives.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn listen(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        url
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.0.lock().unwrap();
        received.iter().flat_map(|r| &r.resource_spans).flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).cloned().collect()
    }

    fn service_names(&self) -> Vec<String> {
        let received = self.0.lock().unwrap();
        let resources = received.iter().flat_map(|r| &r.resource_spans).filter_map(|r| r.resource.as_ref());
        let names = resources.flat_map(|r| &r.attributes).filter(|a| a.key == "service.name");
        names.map(|name| format!("{:?}", name.value)).collect()
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn traced<T>(message: T, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-{flags}").parse().unwrap());
    request
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_receives_one_trace_of_a_call_with_all_steps_of_its_sample() {
    let collector = Collector::default();
    let url = collector.listen().await;
    let mut server =
        start_with(&TASKS, &[("tracing.otlp_endpoint", &url), ("tracing.service_name", "delo-test"), ("tracing.sample_share", "0")]).await;
    let mut client = server.classifier().await;
    let both = ClassifyRequest { text: Some("a cat".to_owned()), ..image(picture(1, image::ImageFormat::Png)) };
    let answer = client.classify(traced(both.clone(), "01")).await.unwrap();
    let returned = answer.metadata().get("traceparent").unwrap().to_str().unwrap().to_owned();
    let task = answer.into_inner().task;
    // Not to be kept, by the caller's word and by the share of 0.
    client.classify(traced(both.clone(), "00")).await.unwrap();
    client.classify(both).await.unwrap();
    let batch = ClassifyBatchRequest { requests: vec![text("one"), text("two")] };
    client.classify_batch(traced(batch, "01")).await.unwrap();
    drop(client);
    server.ask_to_stop();
    server.ended().await.unwrap();

    let spans = collector.spans();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:?}");
    let calls: Vec<&Span> = spans.iter().filter(|span| hex(&span.parent_span_id) == CALLER).collect();
    assert_eq!(calls.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["Classify", "ClassifyBatch"]);
    let below = |parent: &Span| -> BTreeMap<String, Span> {
        spans.iter().filter(|span| span.parent_span_id == parent.span_id).map(|span| (span.name.clone(), span.clone())).collect()
    };
    assert_eq!(returned, format!("00-{TRACE}-{}-01", hex(&calls[0].span_id)));
    assert!(calls[0].attributes.iter().any(|a| a.key == "delo.task" && format!("{:?}", a.value).contains(&task)), "{:?}", calls[0]);
    let steps = below(calls[0]);
    assert_eq!(steps.keys().map(String::as_str).collect::<Vec<_>>(), ["compute", "decode", "queue", "tokenize"]);
    let of_compute = below(&steps["compute"]);
    assert_eq!(of_compute.keys().map(String::as_str).collect::<Vec<_>>(), ["adapted", "decision", "frozen"]);
    let order =
        [&steps["tokenize"], &steps["decode"], &steps["queue"], &of_compute["frozen"], &of_compute["decision"], &of_compute["adapted"]];
    assert!(order.is_sorted_by(|a, b| a.end_time_unix_nano <= b.start_time_unix_nano + 1), "{order:?}");
    assert!(order.iter().all(|step| step.start_time_unix_nano <= step.end_time_unix_nano));
    assert_eq!(spans.iter().filter(|span| span.name == "sample" && span.parent_span_id == calls[1].span_id).count(), 2);
    assert!(collector.service_names().iter().all(|name| name.contains("delo-test")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_and_its_trailers_tell_where_the_time_went_on_demand() {
    let server = start().await;
    let mut client = server.classifier().await;
    let answer = client.classify(text("soup")).await.unwrap().into_inner();
    assert_eq!(answer.timings, None);
    let timed = ClassifyRequest { timings: true, ..image(picture(1, image::ImageFormat::Png)) };
    let answer = client.classify(timed).await.unwrap();
    let told = answer.metadata().get("server-timing").map(|value| value.to_str().unwrap().to_owned());
    let timings = answer.into_inner().timings.unwrap();
    let parts = [timings.decode_seconds, timings.queue_seconds, timings.compute_seconds];
    assert!(parts.iter().all(|part| *part > 0.0) && parts.iter().sum::<f64>() <= timings.total_seconds, "{timings:?}");
    let of_compute = timings.frozen_seconds + timings.decision_seconds + timings.adapted_seconds;
    assert!(of_compute > 0.0 && of_compute <= timings.compute_seconds, "{timings:?}");
    assert_eq!(timings.batch_samples, 1);
    // tonic's client gives the trailers of an answer together with its headers.
    let told = told.expect("the times are in the trailers");
    assert!(["total;dur=", "decode;dur=", "queue;dur=", "adapted;dur="].iter().all(|step| told.contains(step)), "{told}");

    // What is refused tells how far it came.
    let refused = client.classify(ClassifyRequest { timings: true, ..image(b"no image".to_vec()) }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.metadata().get("server-timing").unwrap().to_str().unwrap().starts_with("total;dur="));
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_tells_tasks_labels_limits_and_how_the_last_minutes_went() {
    let server = start_with(&TASKS, &[("batching.max_samples_per_call", "77")]).await;
    let mut client = server.classifier().await;
    let answer = client.classify(text("soup")).await.unwrap().into_inner();
    let truth = delo_proto::ReportOutcomeRequest { request_id: answer.request_id, true_task: answer.task.clone(), ..Default::default() };
    client.report_outcome(truth).await.unwrap();
    let described = client.describe(delo_proto::DescribeRequest::default()).await.unwrap().into_inner();
    assert_eq!(described.tasks.iter().map(|task| task.task.as_str()).collect::<Vec<_>>(), TASKS);
    let answered = described.tasks.iter().find(|task| task.task == answer.task).unwrap();
    assert!(answered.labels.contains(&answer.scores[0].label) && answered.version == 1 && answered.digest.len() == 64);
    let recent = answered.recent.unwrap();
    assert_eq!((recent.samples, recent.outcomes, recent.right), (1, 1, 1));
    assert_eq!((described.recent.unwrap().samples, described.limits.unwrap().max_samples_per_call), (1, 77));
    assert_eq!(described.backbone_fingerprint.len(), 64);

    let named = delo_proto::DescribeRequest { tasks: vec!["food".to_owned(), "nowhere".to_owned()] };
    let described = client.describe(named).await.unwrap().into_inner();
    assert_eq!(described.tasks.iter().map(|task| task.task.as_str()).collect::<Vec<_>>(), ["food"]);
}
