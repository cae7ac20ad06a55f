//! The service `delo.v1.Classifier`.
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::{FutureExt, StreamExt, stream};
use tonic::{Request, Response, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::feedback::Verdict;
use super::layers::internal;
use super::metrics::{record_answer, record_outcome};
use super::pb::{self, classify_result};
use super::room::{Room, Rooms};
use super::status::{from_batch, from_engine, from_intake, invalid, refused};
use super::{deadline, status};
use crate::config::Config;
use crate::engine::{Answer, EngineError, Query, SelectedFactors};
use crate::input::Presence;

/// Scores returned where the request doesn't say.
const DEFAULT_TOP_K: u32 = 5;
/// Longest request id, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// Answers calls once the room behind it is ready.
#[derive(Clone)]
pub struct Classifier {
    pub config: Arc<Config>,
    pub rooms: Rooms,
}

#[tonic::async_trait]
impl pb::classifier_server::Classifier for Classifier {
    async fn classify(&self, request: Request<pb::ClassifyRequest>) -> Result<Response<pb::ClassifyResponse>, Status> {
        let deadline = deadline::of(request.metadata(), &self.config.deadline);
        classify(self.rooms.room()?, request.into_inner(), deadline).await.map(Response::new)
    }

    async fn classify_batch(&self, request: Request<pb::ClassifyBatchRequest>) -> Result<Response<pb::ClassifyBatchResponse>, Status> {
        let deadline = deadline::of(request.metadata(), &self.config.deadline);
        let (room, requests) = (self.rooms.room()?, request.into_inner().requests);
        let batching = &self.config.batching;
        if requests.len() > batching.max_samples_per_call {
            refused("invalid_input");
            return Err(invalid(
                "requests",
                format!("{} samples, more than the {} allowed in one call", requests.len(), batching.max_samples_per_call),
            ));
        }
        // So many in flight that the next batch of compute can fill while one runs, and no more: one bulk caller must not fill the queue.
        let in_flight = (2 * batching.max_samples).min(batching.max_queue_samples);
        let results = stream::iter(requests)
            .map(|request| async move {
                let answer = AssertUnwindSafe(classify(room, request, deadline)).catch_unwind().await;
                let result = match answer.unwrap_or_else(|panic| Err(internal(&*panic))) {
                    Ok(response) => classify_result::Result::Response(response),
                    Err(status) => classify_result::Result::Error(error(&status)),
                };
                pb::ClassifyResult { result: Some(result) }
            })
            .buffered(in_flight)
            .collect()
            .await;
        Ok(Response::new(pb::ClassifyBatchResponse { results }))
    }

    async fn report_outcome(&self, request: Request<pb::ReportOutcomeRequest>) -> Result<Response<pb::ReportOutcomeResponse>, Status> {
        let room = self.rooms.room()?;
        let request = request.into_inner();
        let true_task = Some(request.true_task.as_str()).filter(|t| !t.is_empty());
        let verdict = judge(room, &request, true_task)?;
        record_outcome(&verdict, true_task, &room.registry.catalogue());
        Ok(Response::new(pb::ReportOutcomeResponse {
            counted: verdict.count_task || verdict.count_label,
            routed_task: verdict.routed_task,
            task_correct: verdict.task_correct,
            label_correct: verdict.label_correct,
        }))
    }
}

/// One sample, from the request's bytes to the answer.
async fn classify(room: &Room, request: pb::ClassifyRequest, deadline: Instant) -> Result<pb::ClassifyResponse, Status> {
    let pb::ClassifyRequest { image, text, request_id, top_k, task, explain } = request;
    check_request_id(&request_id)?;
    // Asked before any work is spent on the sample. The engine asks again: the task may be unloaded meanwhile.
    if !task.is_empty() && room.registry.catalogue().get(&task).is_none() {
        return Err(from_engine(EngineError::UnknownTask(task)));
    }
    let bytes = image.as_ref().map_or(0, bytes::Bytes::len) + text.as_ref().map_or(0, String::len);
    let slot = room.batcher.reserve(bytes).map_err(from_batch)?;
    let sample = tokio::time::timeout_at(deadline.into(), room.intake.sample(image, text))
        .await
        .map_err(|_| from_batch(super::batcher::BatchError::DeadlineExceeded))?
        .map_err(from_intake)?;
    let presence = sample.presence();
    let bytes =
        sample.image.as_ref().map_or(0, |p| size_of_val(p.data.as_slice())) + sample.text.as_ref().map_or(0, |t| size_of_val(t.as_slice()));
    let query = Query { sample, task: (!task.is_empty()).then_some(task), explain };
    let answer = slot.run(query, bytes, deadline).await.map_err(from_batch)?.map_err(from_engine)?;
    record_answer(&answer, presence);
    let request_id = if request_id.is_empty() { Uuid::new_v4().to_string() } else { request_id };
    let scores = ranked(&answer, answer.scores.len());
    if let Some(best) = scores.first() {
        room.answers().remember(&request_id, answer.resident.task(), &best.label);
    }
    Ok(response(room, request_id, answer, presence, top_k.unwrap_or(DEFAULT_TOP_K)))
}

fn check_request_id(id: &str) -> Result<(), Status> {
    if id.len() > MAX_REQUEST_ID {
        refused("invalid_input");
        return Err(invalid(
            "request_id",
            format!("it has {} bytes, at most {MAX_REQUEST_ID} are allowed; leave it out to get one", id.len()),
        ));
    }
    Ok(())
}

fn response(room: &Room, request_id: String, answer: Answer, presence: Presence, top_k: u32) -> pb::ClassifyResponse {
    let modality = |missing| if presence == missing { pb::Modality::Proxied } else { pb::Modality::Present };
    let keep = if top_k == 0 { usize::MAX } else { top_k as usize };
    pb::ClassifyResponse {
        request_id,
        task: answer.resident.task().to_owned(),
        scores: ranked(&answer, keep),
        routing: routing(&answer),
        modalities: Some(pb::Modalities { image: modality(Presence::TextOnly).into(), text: modality(Presence::ImageOnly).into() }),
        partition_version: answer.resident.version,
        model: room.model.clone(),
        factors: answer.factors.into_iter().flatten().map(factors).collect(),
    }
}

/// The best labels, falling; equal scores in the order of the partition's labels.
fn ranked(answer: &Answer, keep: usize) -> Vec<pb::Score> {
    let labels = &answer.resident.partition.meta.labels;
    let mut scored: Vec<_> = answer.scores.iter().zip(labels).collect();
    scored.sort_by(|(x, _), (y, _)| y.total_cmp(x));
    scored.into_iter().take(keep).map(|(score, label)| pb::Score { label: label.clone(), score: *score }).collect()
}

fn routing(answer: &Answer) -> Option<pb::Routing> {
    let best = answer.candidates.first()?;
    Some(pb::Routing {
        task: best.task.to_string(),
        cosine: best.cosine,
        margin: answer.candidates.get(1).map(|second| best.cosine - second.cosine),
        candidates: answer.candidates.iter().map(|c| pb::Candidate { task: c.task.to_string(), cosine: c.cosine }).collect(),
    })
}

fn factors(selected: SelectedFactors) -> pb::SelectedFactors {
    let SelectedFactors { layer, target, modality, a, b } = selected;
    // A backbone has a few dozen layers.
    let layer = u32::try_from(layer).unwrap_or(u32::MAX);
    pb::SelectedFactors { layer, target: target.to_owned(), modality: modality.to_owned(), a, b }
}

/// A status as a batch carries it.
fn error(status: &Status) -> pb::Error {
    let violations = status.get_details_bad_request().map(|b| b.field_violations).unwrap_or_default();
    let field = violations.into_iter().next().map(|v| v.field).unwrap_or_default();
    pb::Error { code: status.code().into(), message: status.message().to_owned(), field }
}

/// What the reported truth says of the answer that the report refers to.
fn judge(room: &Room, request: &pb::ReportOutcomeRequest, true_task: Option<&str>) -> Result<Verdict, Status> {
    if true_task.is_none() && request.true_labels.is_empty() {
        return Err(invalid("true_task", "nothing is reported: give true_task, true_labels or both"));
    }
    if !request.request_id.is_empty() {
        return room.answers().judge(&request.request_id, true_task, &request.true_labels).ok_or_else(|| {
            Status::not_found(format!(
                "no answer with request_id {:?} is remembered: report sooner, or give task and true_task",
                request.request_id
            ))
        });
    }
    if request.task.is_empty() {
        return Err(status::invalid("request_id", "whose outcome is it? give request_id, or the task that was routed to"));
    }
    let true_task = true_task.ok_or_else(|| invalid("true_task", "without a request_id only a true_task can be counted"))?;
    Ok(Verdict {
        routed_task: request.task.clone(),
        task_correct: Some(true_task == request.task),
        label_correct: None,
        count_task: true,
        count_label: false,
    })
}

impl Room {
    fn answers(&self) -> std::sync::MutexGuard<'_, super::feedback::AnswerMemory> {
        let memory: &Mutex<_> = &self.memory;
        memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
