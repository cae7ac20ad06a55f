//! Churn against a service whose live versions are known: it reports a faulty service, and reports nothing
//! for a correct one.
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use delo_load::pb::admin_server::{Admin, AdminServer};
use delo_load::pb::classifier_server::{Classifier, ClassifierServer};
use delo_load::pb::load_partition_request::Source;
use delo_load::pb::*;
use delo_load::plan::Plan;
use delo_load::report::Report;
use delo_load::run::{Against, run};
use delo_load::samples;
use delo_load::scenario::{Churn, Scenario};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// The fault of the service.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// It answers in the name of a version that was never loaded.
    Stray,
    /// A rollback leaves the version live that it should replace.
    DeafToRollback,
}

/// The latest version of each task, and the one that is live.
type Tasks = BTreeMap<String, (u64, Option<u64>)>;

/// Tasks by the artifact's first byte. Of each: the version counted last, and the one that is live.
#[derive(Clone)]
struct Service {
    fault: Fault,
    tasks: Arc<Mutex<Tasks>>,
}

impl Service {
    fn new(fault: Fault) -> Self {
        let tasks = [("fixed".to_owned(), (1, Some(1)))];
        Self { fault, tasks: Arc::new(Mutex::new(tasks.into())) }
    }

    fn live(&self, task: &str, change: impl FnOnce(&mut (u64, Option<u64>))) -> Option<Partition> {
        let mut tasks = self.tasks.lock().unwrap();
        let versions = tasks.entry(task.to_owned()).or_default();
        change(versions);
        Some(Partition { task: task.to_owned(), version: versions.1.unwrap_or_default(), ..Partition::default() })
    }
}

#[tonic::async_trait]
impl Classifier for Service {
    async fn classify(&self, _: Request<ClassifyRequest>) -> Result<Response<ClassifyResponse>, Status> {
        let (task, version) = {
            let tasks = self.tasks.lock().unwrap();
            let (task, version) = tasks.iter().rev().find_map(|(task, (_, live))| Some((task, (*live)?))).unwrap();
            (task.clone(), version)
        };
        // The answer may be on its way while its version goes.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let partition_version = if self.fault == Fault::Stray { version + 1000 } else { version };
        Ok(Response::new(ClassifyResponse { task, partition_version, ..ClassifyResponse::default() }))
    }

    async fn classify_batch(&self, _: Request<ClassifyBatchRequest>) -> Result<Response<ClassifyBatchResponse>, Status> {
        Err(Status::unimplemented("not sent"))
    }

    type ClassifyStreamStream = tokio_stream::Empty<Result<ClassifyResult, Status>>;

    async fn classify_stream(&self, _: Request<tonic::Streaming<ClassifyRequest>>) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        Err(Status::unimplemented("not sent"))
    }

    async fn report_outcome(&self, _: Request<ReportOutcomeRequest>) -> Result<Response<ReportOutcomeResponse>, Status> {
        Err(Status::unimplemented("not sent"))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Err(Status::unimplemented("not sent"))
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn load_partition(&self, request: Request<LoadPartitionRequest>) -> Result<Response<LoadPartitionResponse>, Status> {
        let Some(Source::Artifact(artifact)) = request.into_inner().source else { return Err(Status::invalid_argument("no artifact")) };
        let partition = self.live(&format!("task-{}", artifact[0]), |(last, live)| {
            *last += 1;
            *live = Some(*last);
        });
        Ok(Response::new(LoadPartitionResponse { partition }))
    }

    async fn unload_partition(&self, request: Request<UnloadPartitionRequest>) -> Result<Response<UnloadPartitionResponse>, Status> {
        let partition = self.live(&request.into_inner().task, |(_, live)| *live = None);
        Ok(Response::new(UnloadPartitionResponse { partition, drained: true }))
    }

    async fn rollback_partition(&self, request: Request<RollbackPartitionRequest>) -> Result<Response<RollbackPartitionResponse>, Status> {
        let deaf = u64::from(self.fault != Fault::DeafToRollback);
        let partition = self.live(&request.into_inner().task, |(_, live)| *live = live.map(|version| version - deaf));
        Ok(Response::new(RollbackPartitionResponse { partition }))
    }

    async fn promote_trial(&self, _: Request<PromoteTrialRequest>) -> Result<Response<PromoteTrialResponse>, Status> {
        Err(Status::unimplemented("not sent"))
    }

    async fn abort_trial(&self, _: Request<AbortTrialRequest>) -> Result<Response<AbortTrialResponse>, Status> {
        Err(Status::unimplemented("not sent"))
    }

    async fn sync_registry(&self, _: Request<SyncRegistryRequest>) -> Result<Response<SyncRegistryResponse>, Status> {
        Err(Status::unimplemented("not sent"))
    }

    async fn list_partitions(&self, _: Request<ListPartitionsRequest>) -> Result<Response<ListPartitionsResponse>, Status> {
        let tasks = self.tasks.lock().unwrap();
        let live =
            tasks.iter().filter_map(|(task, (_, live))| Some(Partition { task: task.clone(), version: (*live)?, ..Partition::default() }));
        Ok(Response::new(ListPartitionsResponse { partitions: live.collect() }))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        Err(Status::unimplemented("not sent"))
    }
}

/// Ten cycles of two partitions under traffic.
async fn churned(fault: Fault) -> (Report, Service) {
    churned_with_rests(fault, 0, 0.0).await
}

/// With rests of `rest_seconds`, the first after `warm_up_cycles` cycles.
async fn churned_with_rests(fault: Fault, warm_up_cycles: u64, rest_seconds: f64) -> (Report, Service) {
    let service = Service::new(fault);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut server = tonic::transport::Server::builder();
    let server = server.add_service(ClassifierServer::new(service.clone())).add_service(AdminServer::new(service.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let dir = tempfile::tempdir().unwrap();
    for task in [1u8, 2] {
        std::fs::File::create(dir.path().join(task.to_string())).unwrap().write_all(&[task]).unwrap();
    }
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/emoji-cmml");
    let text = format!(
        "name = 'c'\ndata = {data:?}\nrate = 500\nduration_seconds = 60\n[mix]\ntext = 1.0\n[churn]\ncycles = 10\npartitions = ['1', '2']\n[expect]\nmin_churn_cycles = 10"
    );
    let file = dir.path().join("c.toml");
    std::fs::write(&file, text).unwrap();
    let mut scenario = Scenario::read(&file).unwrap();
    // Shorter than one that memory is compared after may be.
    scenario.churn = scenario.churn.map(|churn| Churn { warm_up_cycles, rest_seconds, ..churn });
    let plan = Arc::new(Plan::new(&scenario, samples::read(&scenario).unwrap()));
    let against = Against::Running { url: url.clone(), admin: Some(url), metrics: None };
    (run(&scenario, plan, &against).await.unwrap().0, service)
}

#[tokio::test]
async fn a_service_that_swaps_whole_versions_passes_and_has_its_partitions_back() {
    let (report, service) = churned(Fault::None).await;
    assert_eq!(report.failed, Vec::<String>::new());
    let churn = report.churn.unwrap();
    // Four changes in each cycle, and two loads at the end.
    assert_eq!((churn.cycles, churn.changes, churn.failed), (10, 42, 0));
    assert!(report.seconds < 60.0, "the run ends with the last cycle");
    assert_eq!((churn.answers, churn.answers_of_no_live_version), (report.ok, 0));
    assert!(service.tasks.lock().unwrap().values().all(|(_, live)| live.is_some()));
}

#[tokio::test]
async fn a_churn_rests_with_everything_loaded_after_its_first_cycles_and_after_its_last() {
    let (report, service) = churned_with_rests(Fault::None, 3, 0.4).await;
    assert_eq!(report.failed, Vec::<String>::new());
    // Four changes in each cycle. Before each of the two rests, both unloaded partitions are loaded again.
    let churn = report.churn.unwrap();
    assert_eq!((churn.cycles, churn.changes, churn.rests.len()), (10, 44, 2));
    assert!(churn.rests[0] >= 0.4 && churn.rests[1] - churn.rests[0] >= 0.4 && report.seconds >= 0.8, "{:?}", churn.rests);
    assert!(service.tasks.lock().unwrap().values().all(|(_, live)| live.is_some()));
}

#[tokio::test]
async fn an_answer_in_the_name_of_a_version_that_was_never_live_fails_the_run() {
    let (report, _) = churned(Fault::Stray).await;
    let churn = report.churn.as_ref().unwrap();
    assert!(churn.answers > 0 && churn.answers_of_no_live_version == churn.answers);
    assert_eq!(report.failed.len(), 1, "{:?}", report.failed);
}

#[tokio::test]
async fn a_roll_back_that_leaves_the_version_fails_the_run() {
    let (report, _) = churned(Fault::DeafToRollback).await;
    let churn = report.churn.unwrap();
    assert_eq!((churn.failed, churn.failures.len()), (10, 5));
    assert!(churn.failures[0].starts_with("rollback: INTERNAL: version 2 is live"), "{:?}", churn.failures);
}
