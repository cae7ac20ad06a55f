//! The service `delo.v1.Admin`.
use delo_proto as pb;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::audit::AuditLog;
use super::lifecycle::{Lifecycle, State};
use super::loaded_model::ModelCell;
use super::status::{check_request_id, from_registry, invalid};
use delo_catalogue::{Counted, Resident, Share, Trial, TrialMode};
use delo_proto::{get_status_response, load_partition_request, trial_mode};
use delo_registry::remote::{AllowedUrls, without_query};
use delo_registry::{CatalogueOwner, ChangeError, Changed, Load};

/// Changes the live catalogue, and brings the lifecycle up to date.
#[derive(Clone)]
pub struct Admin {
    pub model: ModelCell,
    pub lifecycle: Arc<Lifecycle>,
    pub audit: AuditLog,
}

#[tonic::async_trait]
impl pb::admin_server::Admin for Admin {
    async fn load_partition(&self, request: Request<pb::LoadPartitionRequest>) -> Result<Response<pb::LoadPartitionResponse>, Status> {
        let change = self.audit.begin(&request, "LoadPartition", "", &request.get_ref().request_id);
        change.end(self.load(request.into_inner()).await, |answer| answer.get_ref().partition.as_ref())
    }

    async fn unload_partition(
        &self,
        request: Request<pb::UnloadPartitionRequest>,
    ) -> Result<Response<pb::UnloadPartitionResponse>, Status> {
        let change = self.audit.begin(&request, "UnloadPartition", &request.get_ref().task, &request.get_ref().request_id);
        change.end(self.unload(request.into_inner()).await, |answer| answer.get_ref().partition.as_ref())
    }

    async fn rollback_partition(
        &self,
        request: Request<pb::RollbackPartitionRequest>,
    ) -> Result<Response<pb::RollbackPartitionResponse>, Status> {
        let change = self.audit.begin(&request, "RollbackPartition", &request.get_ref().task, &request.get_ref().request_id);
        change.end(self.roll_back(request.into_inner()).await, |answer| answer.get_ref().partition.as_ref())
    }

    async fn promote_trial(&self, request: Request<pb::PromoteTrialRequest>) -> Result<Response<pb::PromoteTrialResponse>, Status> {
        let change = self.audit.begin(&request, "PromoteTrial", &request.get_ref().task, &request.get_ref().request_id);
        change.end(self.promote(request.into_inner()).await, |answer| answer.get_ref().partition.as_ref())
    }

    async fn abort_trial(&self, request: Request<pb::AbortTrialRequest>) -> Result<Response<pb::AbortTrialResponse>, Status> {
        let change = self.audit.begin(&request, "AbortTrial", &request.get_ref().task, &request.get_ref().request_id);
        change.end(self.abort(request.into_inner()).await, |answer| answer.get_ref().partition.as_ref())
    }

    async fn list_partitions(&self, _: Request<pb::ListPartitionsRequest>) -> Result<Response<pb::ListPartitionsResponse>, Status> {
        let registry = &self.model.loaded()?.registry;
        let (report, catalogue) = (registry.report().await, registry.catalogue());
        let partitions = catalogue.residents().map(|resident| {
            let entry = report.tasks.get(resident.task());
            let record = |version| entry.and_then(|entry| entry.versions.get(&version)).cloned();
            let trial = catalogue.trial(resident.task());
            let mut shown = resident_partition(resident);
            if let Some(record) = record(resident.version) {
                (shown.origin, shown.loaded) = (record.origin, record.loaded);
            }
            shown.retained_versions = entry.map(|entry| entry.retained().collect()).unwrap_or_default();
            shown.trial = trial.map(|trial| pb::Trial {
                version: trial.resident.version,
                mode: Some(mode(trial)),
                digest: trial.resident.partition.digest.clone(),
                origin: record(trial.resident.version).map(|record| record.origin).unwrap_or_default(),
                counts: Some(counts(trial.resident.counts.read())),
            });
            shown
        });
        Ok(Response::new(pb::ListPartitionsResponse { partitions: partitions.collect() }))
    }

    async fn get_status(&self, _: Request<pb::GetStatusRequest>) -> Result<Response<pb::GetStatusResponse>, Status> {
        let mut answer = pb::GetStatusResponse {
            state: state(self.lifecycle.state()).into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.lifecycle.uptime().as_secs_f64(),
            ..Default::default()
        };
        if let Some(model) = self.model.get() {
            let (catalogue, report) = (model.registry.catalogue(), model.registry.report().await);
            answer.model.clone_from(&model.name);
            answer.backbone_fingerprint.clone_from(&model.engine.backbone().fingerprint);
            answer.kernel = model.engine.kernel().to_owned();
            answer.compute_threads = u32::try_from(model.engine.threads()).unwrap_or(u32::MAX);
            answer.routing_metric = catalogue.metric().to_string();
            answer.routing_signal = catalogue.signal().to_string();
            answer.routing_notice = catalogue.notice().unwrap_or_default().to_owned();
            answer.queue_depth = model.batcher.depth() as u64;
            answer.registry = model.remote.status();
            answer.partitions = u32::try_from(catalogue.residents().count()).unwrap_or(u32::MAX);
            answer.catalogue_revision = report.revision;
            answer.durable = report.durable;
            answer.notices = report.notices;
        }
        Ok(Response::new(answer))
    }

    async fn sync_registry(&self, request: Request<pb::SyncRegistryRequest>) -> Result<Response<pb::SyncRegistryResponse>, Status> {
        let (model, lifecycle) = (self.model.clone(), self.lifecycle.clone());
        let change = self.audit.begin(&request, "SyncRegistry", "", "");
        let pb::SyncRegistryRequest { accept_older } = request.into_inner();
        // In a task of its own, as every change: it is carried out and the lifecycle follows, whether or not
        // the caller waits.
        let syncing = async move {
            let model = model.loaded()?;
            let synced = model.remote.sync(accept_older).await?;
            model.follow(&lifecycle).await;
            Ok::<_, Status>(synced)
        };
        let synced = tokio::spawn(syncing.in_current_span());
        let synced = synced.await.unwrap_or_else(|_| Err(from_registry(ChangeError::Panicked)));
        let (registry, changes) = change.end(synced, |_| None)?;
        self.audit.all_followed(&changes);
        Ok(Response::new(pb::SyncRegistryResponse { registry: Some(registry), loaded: changes.loaded, unloaded: changes.unloaded }))
    }
}

impl Admin {
    async fn load(&self, request: pb::LoadPartitionRequest) -> Result<Response<pb::LoadPartitionResponse>, Status> {
        let pb::LoadPartitionRequest { source, request_id, trial, signature } = request;
        let source = source.ok_or_else(|| invalid("source", "nothing to load: give uri or artifact"))?;
        check_request_id(&request_id)?;
        let trial = trial.map(trial_of).transpose()?;
        let model = self.model.loaded()?;
        let (source, origin) = match source {
            load_partition_request::Source::Uri(uri) => {
                let origin = AllowedUrls::is_address(&uri).then(|| without_query(&uri));
                // A repeated request is answered without a fetch. For other sources, `load` finds the
                // repetition.
                if let Some(address) = &origin
                    && let Some(done) = model.registry.loaded_before(address, trial, &request_id).await.map_err(from_registry)?
                {
                    return self.loaded(done).await;
                }
                (model.remote.named(uri, &signature).await?, origin)
            }
            load_partition_request::Source::Artifact(bytes) => (model.remote.uploaded(bytes, &signature).await?, None),
        };
        let load = Load { source, trial, origin, request_id };
        let changed = self.change(async move |registry| registry.load(load).await).await?;
        if let Some(notice) = model.registry.catalogue().notice() {
            tracing::warn!(notice, "routing");
        }
        self.loaded(changed).await
    }

    async fn unload(&self, request: pb::UnloadPartitionRequest) -> Result<Response<pb::UnloadPartitionResponse>, Status> {
        let pb::UnloadPartitionRequest { task, request_id } = request;
        check(&task, &request_id)?;
        let (changed, drained) = self.change(async move |registry| registry.unload(&task, &request_id).await).await?;
        Ok(Response::new(pb::UnloadPartitionResponse { partition: Some(self.partition(changed).await?), drained }))
    }

    async fn roll_back(&self, request: pb::RollbackPartitionRequest) -> Result<Response<pb::RollbackPartitionResponse>, Status> {
        let pb::RollbackPartitionRequest { task, version, request_id } = request;
        check(&task, &request_id)?;
        let changed = self.change(async move |registry| registry.roll_back(&task, version, &request_id).await).await?;
        Ok(Response::new(pb::RollbackPartitionResponse { partition: Some(self.partition(changed).await?) }))
    }

    async fn promote(&self, request: pb::PromoteTrialRequest) -> Result<Response<pb::PromoteTrialResponse>, Status> {
        let pb::PromoteTrialRequest { task, trial, request_id } = request;
        check(&task, &request_id)?;
        let mode = trial.map(trial_of).transpose()?;
        let changed = self.change(async move |registry| registry.promote(&task, mode, &request_id).await).await?;
        Ok(Response::new(pb::PromoteTrialResponse { partition: Some(self.partition(changed).await?) }))
    }

    async fn abort(&self, request: pb::AbortTrialRequest) -> Result<Response<pb::AbortTrialResponse>, Status> {
        let pb::AbortTrialRequest { task, request_id } = request;
        check(&task, &request_id)?;
        let changed = self.change(async move |registry| registry.abort(&task, &request_id).await).await?;
        Ok(Response::new(pb::AbortTrialResponse { partition: Some(self.partition(changed).await?) }))
    }

    /// Carries out a change to its end, whether or not the caller waits for it, and brings the lifecycle up
    /// to date.
    async fn change<T: Send + 'static, F: Future<Output = Result<T, ChangeError>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<CatalogueOwner>) -> F,
    ) -> Result<T, Status> {
        let (model, lifecycle) = (self.model.clone(), self.lifecycle.clone());
        let work = work(self.model.loaded()?.registry.clone());
        let changing = async move {
            let done = work.await?;
            if let Some(model) = model.get() {
                model.follow(&lifecycle).await;
            }
            Ok(done)
        };
        // In a task of its own: a caller who hangs up does not interrupt the change.
        let done = tokio::spawn(changing.in_current_span()).await;
        done.unwrap_or(Err(ChangeError::Panicked)).map_err(from_registry)
    }

    async fn loaded(&self, changed: Changed) -> Result<Response<pb::LoadPartitionResponse>, Status> {
        Ok(Response::new(pb::LoadPartitionResponse { partition: Some(self.partition(changed).await?) }))
    }

    async fn partition(&self, changed: Changed) -> Result<pb::Partition, Status> {
        let report = self.model.loaded()?.registry.report().await;
        let Changed { task, version, record, resident, labels } = changed;
        let mut shown = resident.as_deref().map(resident_partition).unwrap_or_else(|| pb::Partition {
            checksum: record.checksum,
            digest: record.digest,
            created: record.created,
            delo_version: record.delo_version,
            multi_label: record.multi_label,
            labels,
            version,
            task: task.clone(),
            ..Default::default()
        });
        (shown.origin, shown.loaded) = (record.origin, record.loaded);
        shown.retained_versions = report.tasks.get(&task).map(|entry| entry.retained().collect()).unwrap_or_default();
        Ok(shown)
    }
}

fn check(task: &str, request_id: &str) -> Result<(), Status> {
    if task.is_empty() {
        return Err(invalid("task", "no task is named: give its name; ListPartitions shows those that are loaded"));
    }
    check_request_id(request_id)
}

fn trial_of(trial: pb::TrialMode) -> Result<TrialMode, Status> {
    match trial.mode {
        Some(trial_mode::Mode::CanaryShare(share)) => {
            Share::try_from(share).map(TrialMode::Canary).map_err(|reason| invalid("trial.canary_share", reason))
        }
        Some(trial_mode::Mode::Shadow(true)) => Ok(TrialMode::Shadow),
        Some(trial_mode::Mode::Shadow(false)) | None => Err(invalid("trial", "the trial has no mode: give canary_share, or shadow: true")),
    }
}

fn mode(trial: &Trial) -> pb::TrialMode {
    let mode = match trial.mode {
        TrialMode::Canary(share) => trial_mode::Mode::CanaryShare(share.into()),
        TrialMode::Shadow => trial_mode::Mode::Shadow(true),
    };
    pb::TrialMode { mode: Some(mode) }
}

fn state(state: State) -> get_status_response::State {
    match state {
        State::Starting => get_status_response::State::Starting,
        State::Serving => get_status_response::State::Serving,
        State::Empty => get_status_response::State::Empty,
        State::Draining => get_status_response::State::Draining,
    }
}

fn resident_partition(resident: &Resident) -> pb::Partition {
    let meta = &resident.partition.meta;
    pb::Partition {
        task: meta.task.clone(),
        version: resident.version,
        checksum: resident.partition.checksum.clone(),
        digest: resident.partition.digest.clone(),
        labels: meta.labels.clone(),
        multi_label: meta.multi_label,
        created: meta.created.clone(),
        delo_version: meta.delo_version.clone(),
        counts: Some(counts(resident.counts.read())),
        ..Default::default()
    }
}

fn counts(counted: Counted) -> pb::VersionCounts {
    let Counted { answers, right, wrong, agreed, differed } = counted;
    pb::VersionCounts { answers, right, wrong, agreed, differed }
}
