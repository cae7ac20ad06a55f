//! The service `delo.v1.Classifier`.
use delo_proto as pb;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::batcher::{BatchError, Claim, Priority};
use super::deadline::patience;
use super::feedback::Verdict;
use super::layers::{Caller, Deadline, ReceivedBytes, internal};
use super::metrics::{record_answer, record_outcome, record_text};
use super::room::{Room, Rooms};
use super::status::{MAX_REQUEST_ID, check_request_id, from_batch, from_catalogue, from_engine, from_intake, invalid, refused};
use super::{shadow, status};
use crate::config::Config;
use delo_engine::{Answer, Candidate, CatalogueError, Query, SelectedFactors};
use delo_model::input::{Preprocessed, Presence, TextReading};
use delo_proto::classify_result;

/// Scores returned where the request doesn't say, and candidate tasks.
const DEFAULT_TOP_K: u32 = 5;
const DEFAULT_CANDIDATES: u32 = 5;

/// Answers calls once the room behind it is ready.
#[derive(Clone)]
pub struct Classifier {
    pub config: Arc<Config>,
    pub rooms: Rooms,
}

#[tonic::async_trait]
impl pb::classifier_server::Classifier for Classifier {
    async fn classify(&self, request: Request<pb::ClassifyRequest>) -> Result<Response<pb::ClassifyResponse>, Status> {
        let deadline = deadline(&request, &self.config);
        let client = client(&request);
        classify(self.rooms.room()?, request.into_inner(), Call { client, usual: Priority::Interactive, deadline }).await.map(Response::new)
    }

    async fn classify_batch(&self, request: Request<pb::ClassifyBatchRequest>) -> Result<Response<pb::ClassifyBatchResponse>, Status> {
        let deadline = deadline(&request, &self.config);
        let call = Call { client: client(&request), usual: Priority::Bulk, deadline };
        // All samples are held while the first ones are computed, decompressed.
        if let Some(received) = request.extensions().get::<Arc<ReceivedBytes>>() {
            received.cover(request.get_ref().encoded_len())?;
        }
        let (room, requests) = (self.rooms.room()?, request.into_inner().requests);
        let batching = &self.config.batching;
        if requests.len() > batching.max_samples_per_call {
            refused("invalid_input");
            return Err(invalid(
                "requests",
                format!("{} samples, more than the {} allowed in one call", requests.len(), batching.max_samples_per_call),
            ));
        }
        let results = stream::iter(requests).map(|request| result(room, request, call.clone())).buffered(self.in_flight()).collect().await;
        Ok(Response::new(pb::ClassifyBatchResponse { results }))
    }

    type ClassifyStreamStream = BoxStream<'static, Result<pb::ClassifyResult, Status>>;

    /// Each sample has the time that the call names, from its own arrival; the stream may be open for as long as it likes.
    async fn classify_stream(
        &self,
        request: Request<Streaming<pb::ClassifyRequest>>,
    ) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        self.rooms.room()?;
        let (rooms, client, patience) = (self.rooms.clone(), client(&request), patience(request.metadata(), &self.config.deadline));
        let answers = request
            .into_inner()
            .map_ok(move |request| {
                let (rooms, client) = (rooms.clone(), client.clone());
                async move {
                    let call = Call { client, usual: Priority::Bulk, deadline: Instant::now() + patience };
                    Ok(result(rooms.room()?, request, call).await)
                }
            })
            // More are read from the caller only as answers leave: the transport's flow control holds the caller back.
            .try_buffer_unordered(self.in_flight());
        Ok(Response::new(answers.boxed()))
    }

    async fn report_outcome(&self, request: Request<pb::ReportOutcomeRequest>) -> Result<Response<pb::ReportOutcomeResponse>, Status> {
        let room = self.rooms.room()?;
        let request = request.into_inner();
        let true_task = Some(request.true_task.as_str()).filter(|t| !t.is_empty());
        let verdict = judge(room, &request, true_task)?;
        record_outcome(&room.series, &verdict, true_task, &room.registry.catalogue());
        Ok(Response::new(pb::ReportOutcomeResponse {
            counted: verdict.count_task || verdict.count_label,
            routed_task: verdict.routed_task,
            task_correct: verdict.task_correct,
            label_correct: verdict.label_correct,
        }))
    }
}

/// What all samples of a call share.
#[derive(Clone, Debug)]
struct Call {
    client: Arc<str>,
    /// Where the sample doesn't say.
    usual: Priority,
    deadline: Instant,
}

/// Whose call it is, for a fair share of the queue.
fn client<T>(request: &Request<T>) -> Arc<str> {
    Caller::of(request.extensions()).name
}

/// Until when the call must be answered: as its layer has computed it, when the call arrived.
fn deadline<T>(request: &Request<T>, config: &Config) -> Instant {
    let known = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
    known.unwrap_or_else(|| Instant::now() + patience(request.metadata(), &config.deadline))
}

impl Classifier {
    /// So many samples of one call in flight that the next batch of compute can fill while one runs, and no more: one bulk caller must not fill the
    /// queue.
    fn in_flight(&self) -> usize {
        let batching = &self.config.batching;
        (2 * batching.max_samples).min(batching.max_queue_samples / 2).max(1)
    }
}

/// One sample's answer or error, as batches and streams carry it. A panic fails its own sample.
async fn result(room: &Room, request: pb::ClassifyRequest, call: Call) -> pb::ClassifyResult {
    let id = request.request_id.clone();
    let answer = AssertUnwindSafe(classify(room, request, call)).catch_unwind().await;
    match answer.unwrap_or_else(|panic| Err(internal(&*panic))) {
        Ok(response) => {
            let request_id = response.request_id.clone();
            pb::ClassifyResult { result: Some(classify_result::Result::Response(response)), request_id }
        }
        // An id that is too long is not sent back.
        Err(status) => {
            let request_id = if id.len() > MAX_REQUEST_ID { String::new() } else { id };
            pb::ClassifyResult { result: Some(classify_result::Result::Error(error(&status))), request_id }
        }
    }
}

/// One sample, from the request's bytes to the answer.
async fn classify(room: &Room, request: pb::ClassifyRequest, call: Call) -> Result<pb::ClassifyResponse, Status> {
    let priority = match request.priority() {
        pb::Priority::Unspecified => call.usual,
        pb::Priority::Interactive => Priority::Interactive,
        pb::Priority::Bulk => Priority::Bulk,
    };
    let pb::ClassifyRequest { image, text, request_id, top_k, task, explain, max_candidates, .. } = request;
    check_request_id(&request_id)?;
    let request_id = if request_id.is_empty() { Uuid::new_v4().to_string() } else { request_id };
    let ticket = ticket(&request_id);
    // From here on the sample keeps the version that it starts with, whatever is loaded meanwhile.
    let given = (!task.is_empty()).then(|| {
        let unknown = || from_catalogue(CatalogueError::UnknownTask(task.clone()));
        room.registry.catalogue().pick(&task, ticket).cloned().ok_or_else(unknown)
    });
    let given = given.transpose()?;
    let bytes = image.as_ref().map_or(0, bytes::Bytes::len) + text.as_ref().map_or(0, String::len);
    let claim = Claim { client: call.client, priority };
    let mut slot = room.batcher.reserve(claim, bytes, call.deadline).map_err(from_batch)?;
    // Only of what is let in, the header is read: refusing costs next to nothing.
    slot.resize(room.intake.memory(image.as_ref(), text.as_deref()).map_err(from_intake)?).map_err(from_batch)?;
    let Preprocessed { sample, text } = tokio::time::timeout_at(call.deadline.into(), room.intake.sample(image, text))
        .await
        .map_err(|_| from_batch(BatchError::DeadlineExceeded))?
        .map_err(from_intake)?;
    let (presence, bytes) = (sample.presence(), sample.bytes());
    let kept = shadow::any(room).then(|| sample.clone());
    let query = Query { sample, given, ticket, explain };
    let answer = slot.run(query, bytes).await.map_err(from_batch)?.map_err(from_engine)?;
    record_answer(&room.series, &answer, presence);
    if let Some(reading) = text {
        record_text(reading);
    }
    if let Some((sample, tried)) = kept.zip(shadow::of(room, answer.resident.task())) {
        let (rooms, answered) = (room.handle(), answer.clone());
        tokio::spawn(async move {
            if let Some(room) = rooms.as_ref().and_then(Rooms::get) {
                shadow::compare(room, tried, sample, answered).await;
            }
        });
    }
    if let Some(best) = answer.best_label() {
        room.answers().remember(&request_id, answer.resident.task(), answer.resident.version, best);
    }
    let asked = Asked {
        // 0: all.
        scores: top_k.map_or(DEFAULT_TOP_K as usize, |k| if k == 0 { usize::MAX } else { k as usize }),
        candidates: max_candidates.unwrap_or(DEFAULT_CANDIDATES) as usize,
    };
    Ok(response(room, request_id, answer, modalities(presence, text), asked))
}

/// A number of a request's id: the same id, the same number.
fn ticket(request_id: &str) -> u64 {
    // FNV-1a: the same in every process and version, unlike the standard hashers, so that replicas of a fleet agree.
    request_id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// How much of an answer the caller asked for, at most.
#[derive(Clone, Copy, Debug)]
struct Asked {
    scores: usize,
    candidates: usize,
}

fn response(room: &Room, request_id: String, answer: Answer, modalities: pb::Modalities, asked: Asked) -> pb::ClassifyResponse {
    pb::ClassifyResponse {
        request_id,
        task: answer.resident.task().to_owned(),
        scores: answer.ranked(asked.scores).map(|(label, score)| pb::Score { label: label.to_owned(), score }).collect(),
        routing: routing(&answer, asked.candidates),
        modalities: Some(modalities),
        partition_version: answer.resident.version,
        model: room.model.clone(),
        factors: answer.factors.into_iter().flatten().map(factors).collect(),
    }
}

fn modalities(presence: Presence, text: Option<TextReading>) -> pb::Modalities {
    let modality = |missing| if presence == missing { pb::Modality::Proxied } else { pb::Modality::Present };
    // A text has at most as many tokens as the backbone has positions.
    let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
    pb::Modalities {
        image: modality(Presence::TextOnly).into(),
        text: modality(Presence::ImageOnly).into(),
        text_reading: text.map(|reading| pb::TextReading {
            understood: reading.understood(),
            truncated: reading.truncated,
            tokens: count(reading.tokens),
            unknown_tokens: count(reading.unknown_tokens),
        }),
    }
}

fn routing(answer: &Answer, candidates: usize) -> Option<pb::Routing> {
    let best = answer.candidates.first()?;
    let candidate = |c: &Candidate| pb::Candidate { task: c.task.to_string(), cosine: c.cosine };
    Some(pb::Routing {
        task: best.task.to_string(),
        cosine: best.cosine,
        margin: answer.candidates.get(1).map(|second| best.cosine - second.cosine),
        candidates: answer.candidates.iter().take(candidates).map(candidate).collect(),
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
    check_request_id(&request.request_id)?;
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
        version: None,
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
