//! What a server answers with: its tasks, model and limits, and how the last minutes went.
use std::sync::Arc;

use delo_catalogue::Resident;
use delo_proto as pb;

use super::loaded_model::LoadedModel;
use crate::config::Config;

/// The server as `Describe` shows it: the tasks that are named, or all where none is; a name that is not loaded
/// is left out.
pub fn describe(model: &LoadedModel, config: &Config, tasks: &[String]) -> pb::DescribeResponse {
    let catalogue = model.registry.catalogue();
    let (all, of_tasks) = model.series.recent();
    let none = pb::RecentRouting { window_seconds: all.window_seconds, ..Default::default() };
    let described = |resident: &Arc<Resident>| task(resident, of_tasks.get(resident.task()).copied().unwrap_or(none));
    let asked = |resident: &&Arc<Resident>| tasks.is_empty() || tasks.iter().any(|task| task == resident.task());
    pb::DescribeResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.name.clone(),
        backbone_fingerprint: model.engine.backbone().fingerprint.clone(),
        routing_metric: catalogue.metric().to_string(),
        routing_signal: catalogue.signal().to_string(),
        tasks: catalogue.residents().filter(asked).map(described).collect(),
        limits: Some(limits(model, config)),
        recent: Some(all),
    }
}

fn task(resident: &Resident, recent: pb::RecentRouting) -> pb::TaskDescription {
    let meta = &resident.partition.meta;
    pb::TaskDescription {
        task: meta.task.clone(),
        labels: meta.labels.clone(),
        multi_label: meta.multi_label,
        version: resident.version,
        digest: resident.partition.digest.clone(),
        created: meta.created.clone(),
        recent: Some(recent),
    }
}

fn limits(model: &LoadedModel, config: &Config) -> pb::Limits {
    let (input, count) = (&config.input.limits, |n: usize| u32::try_from(n).unwrap_or(u32::MAX));
    pb::Limits {
        max_message_bytes: config.server.max_message_bytes as u64,
        max_samples_per_call: count(config.batching.max_samples_per_call),
        max_image_bytes: input.max_image_bytes as u64,
        max_image_pixels: input.max_pixels,
        max_image_side: input.max_side,
        max_text_bytes: input.max_text_bytes as u64,
        text_tokens: count(model.engine.backbone().config.max_position_embeddings),
        default_deadline_seconds: config.deadline.default.as_secs_f64(),
        max_deadline_seconds: config.deadline.max.as_secs_f64(),
    }
}
