//! The service `delo.v1.Admin`.
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::lifecycle::{Lifecycle, State};
use super::pb::{self, get_status_response, load_partition_request};
use super::room::Rooms;
use super::status::{from_registry, invalid};
use crate::engine::Resident;

/// Changes the catalogue of the room, and lets health follow.
#[derive(Clone)]
pub struct Admin {
    pub rooms: Rooms,
    pub lifecycle: Arc<Lifecycle>,
}

#[tonic::async_trait]
impl pb::admin_server::Admin for Admin {
    async fn load_partition(&self, request: Request<pb::LoadPartitionRequest>) -> Result<Response<pb::LoadPartitionResponse>, Status> {
        let pb::LoadPartitionRequest { source, signature } = request.into_inner();
        let source = source.ok_or_else(|| invalid("source", "nothing to load: give uri or artifact"))?;
        let room = self.rooms.room()?;
        let source = match source {
            load_partition_request::Source::Uri(uri) => room.remote.named(uri, &signature).await?,
            load_partition_request::Source::Artifact(bytes) => room.remote.uploaded(bytes, &signature).await?,
        };
        let resident = room.registry.load(source).await.map_err(from_registry)?;
        self.lifecycle.follow(&room.registry).await;
        if let Some(notice) = room.registry.catalogue().notice() {
            tracing::warn!(notice, "routing");
        }
        Ok(Response::new(pb::LoadPartitionResponse { partition: Some(partition(&resident)) }))
    }

    async fn unload_partition(
        &self,
        request: Request<pb::UnloadPartitionRequest>,
    ) -> Result<Response<pb::UnloadPartitionResponse>, Status> {
        let task = request.into_inner().task;
        if task.is_empty() {
            return Err(invalid("task", "which task? give its name; ListPartitions shows those that are loaded"));
        }
        let room = self.rooms.room()?;
        let resident = room.registry.unload(&task).await.map_err(from_registry)?;
        self.lifecycle.follow(&room.registry).await;
        Ok(Response::new(pb::UnloadPartitionResponse { partition: Some(partition(&resident)) }))
    }

    async fn list_partitions(&self, _: Request<pb::ListPartitionsRequest>) -> Result<Response<pb::ListPartitionsResponse>, Status> {
        let catalogue = self.rooms.room()?.registry.catalogue();
        Ok(Response::new(pb::ListPartitionsResponse { partitions: catalogue.residents().map(|r| partition(r)).collect() }))
    }

    async fn get_status(&self, _: Request<pb::GetStatusRequest>) -> Result<Response<pb::GetStatusResponse>, Status> {
        let mut answer = pb::GetStatusResponse {
            state: state(self.lifecycle.state()).into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.lifecycle.uptime().as_secs_f64(),
            ..Default::default()
        };
        if let Some(room) = self.rooms.get() {
            let catalogue = room.registry.catalogue();
            answer.model.clone_from(&room.model);
            answer.backbone_fingerprint.clone_from(&room.engine.backbone().fingerprint);
            answer.kernel = room.engine.kernel().to_owned();
            answer.compute_threads = u32::try_from(room.engine.threads()).unwrap_or(u32::MAX);
            answer.routing_metric = catalogue.metric().to_string();
            answer.routing_signal = catalogue.signal().to_string();
            answer.routing_notice = catalogue.notice().unwrap_or_default().to_owned();
            answer.queue_depth = room.batcher.depth() as u64;
            answer.registry = room.remote.status();
            answer.partitions = u32::try_from(catalogue.residents().count()).unwrap_or(u32::MAX);
        }
        Ok(Response::new(answer))
    }

    async fn sync_registry(&self, _: Request<pb::SyncRegistryRequest>) -> Result<Response<pb::SyncRegistryResponse>, Status> {
        let room = self.rooms.room()?;
        let (registry, changes) = room.remote.sync().await?;
        self.lifecycle.follow(&room.registry).await;
        Ok(Response::new(pb::SyncRegistryResponse { registry: Some(registry), loaded: changes.loaded, unloaded: changes.unloaded }))
    }
}

fn state(state: State) -> get_status_response::State {
    match state {
        State::Starting => get_status_response::State::Starting,
        State::Serving => get_status_response::State::Serving,
        State::Empty => get_status_response::State::Empty,
        State::Draining => get_status_response::State::Draining,
    }
}

fn partition(resident: &Resident) -> pb::Partition {
    let meta = &resident.partition.meta;
    pb::Partition {
        task: meta.task.clone(),
        version: resident.version,
        checksum: resident.partition.checksum.clone(),
        labels: meta.labels.clone(),
        multi_label: meta.multi_label,
        created: meta.created.clone(),
        delo_version: meta.delo_version.clone(),
    }
}
