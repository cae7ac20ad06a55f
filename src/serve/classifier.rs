//! The service `delo.v1.Classifier`.
use delo_proto as pb;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use opentelemetry::KeyValue;
use prost::Message;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::audit::now;
use super::batcher::{BatchError, Computed, Priority, TrafficClass};
use super::deadline::call_timeout;
use super::describe::describe;
use super::feedback::{Remember, Verdict};
use super::layers::{Caller, Deadline, ReceivedBytes, internal};
use super::loaded_model::{LoadedModel, ModelCell};
use super::metrics::{Truth, record_answer, record_outcome, record_text};
use super::reason::Reason;
use super::shadow;
use super::status::{MAX_REQUEST_ID, check_request_id, from_batch, from_catalogue, from_engine, from_preprocess, invalid};
use super::steps::{Observers, Step, Steps};
use crate::config::Config;
use crate::record;
use delo_catalogue::{Candidate, CatalogueError, Resident};
use delo_engine::{Answer, Policy, Query, Scored, SelectedFactors};
use delo_model::input::{Preprocessed, Presence, Sample, TextReading};
use delo_proto::classify_result;

/// Number of scores returned where the request does not say.
const DEFAULT_TOP_K: u32 = 5;
/// Number of candidate tasks returned where the request does not say.
const DEFAULT_CANDIDATES: u32 = 5;

/// Answers calls once the model is ready.
#[derive(Clone)]
pub struct Classifier {
    pub config: Arc<Config>,
    pub model: ModelCell,
}

#[tonic::async_trait]
impl pb::classifier_server::Classifier for Classifier {
    async fn classify(&self, request: Request<pb::ClassifyRequest>) -> Result<Response<pb::ClassifyResponse>, Status> {
        let options = CallOptions::of(&request, Priority::Interactive, deadline(&request, &self.config));
        classify(self.model.ready()?, request.into_inner(), options).await.map(Response::new)
    }

    async fn classify_batch(&self, request: Request<pb::ClassifyBatchRequest>) -> Result<Response<pb::ClassifyBatchResponse>, Status> {
        let options = CallOptions::of(&request, Priority::Bulk, deadline(&request, &self.config)).of_many();
        // The decompressed message stays in memory while its first samples are computed.
        if let Some(received) = request.extensions().get::<Arc<ReceivedBytes>>() {
            received.cover(request.get_ref().encoded_len())?;
        }
        let (model, requests) = (self.model.ready()?, request.into_inner().requests);
        let batching = &self.config.batching;
        if requests.len() > batching.max_samples_per_call {
            let message = format!("{} samples, more than the {} allowed in one call", requests.len(), batching.max_samples_per_call);
            return Err(Reason::InvalidInput.refuse(&invalid("requests", message)));
        }
        let results = stream::iter(requests).map(|request| result(model, request, options.clone()));
        let results = results.buffered(self.samples_in_flight()).collect().await;
        Ok(Response::new(pb::ClassifyBatchResponse { results }))
    }

    type ClassifyStreamStream = BoxStream<'static, Result<pb::ClassifyResult, Status>>;

    /// The call's timeout holds for each sample, from the arrival of that sample. The stream itself has no
    /// deadline.
    async fn classify_stream(
        &self,
        request: Request<Streaming<pb::ClassifyRequest>>,
    ) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        self.model.ready()?;
        let model = self.model.clone();
        let options = CallOptions::of(&request, Priority::Bulk, Instant::now()).of_many();
        let timeout = call_timeout(request.metadata(), &self.config.deadline);
        let answers = request
            .into_inner()
            .map_ok(move |request| {
                let (model, options) = (model.clone(), options.clone());
                async move {
                    let options = CallOptions { deadline: Instant::now() + timeout, ..options };
                    Ok(result(model.ready()?, request, options).await)
                }
            })
            // The next request is read only when an answer has left. Until then the transport's flow control
            // stops the client.
            .try_buffer_unordered(self.samples_in_flight());
        Ok(Response::new(answers.boxed()))
    }

    async fn report_outcome(&self, request: Request<pb::ReportOutcomeRequest>) -> Result<Response<pb::ReportOutcomeResponse>, Status> {
        let model = self.model.ready()?;
        let request = request.into_inner();
        let true_task = Some(request.true_task.as_str()).filter(|t| !t.is_empty());
        let verdict = judge(model, &request, true_task)?;
        let catalogue = model.registry.catalogue();
        record_outcome(&model.series, &verdict, Truth { task: true_task, labels: &request.true_labels }, &catalogue);
        if model.records.samples(ticket(&request.request_id)) && !request.request_id.is_empty() {
            model.records.turned_out(record::Outcome {
                time: now(),
                request_id: request.request_id.clone(),
                true_task: request.true_task.clone(),
                true_labels: request.true_labels.clone(),
            });
        }
        // A rejected sample was judged rightly where its task is not loaded.
        let rejected_rightly = true_task.filter(|_| verdict.rejected).map(|task| catalogue.get(task).is_none());
        Ok(Response::new(pb::ReportOutcomeResponse {
            counted: verdict.count_task || verdict.count_label,
            routed_task: verdict.routed_task,
            task_correct: verdict.task_correct.or(rejected_rightly),
            label_correct: verdict.label_correct,
        }))
    }

    async fn describe(&self, request: Request<pb::DescribeRequest>) -> Result<Response<pb::DescribeResponse>, Status> {
        let model = self.model.ready()?;
        Ok(Response::new(describe(model, &self.config, &request.into_inner().tasks)))
    }
}

/// What all samples of a call share.
#[derive(Clone, Debug)]
pub struct CallOptions {
    client: Arc<str>,
    /// The priority of a sample whose request does not name one.
    default_priority: Priority,
    deadline: Instant,
    observers: Observers,
}

impl CallOptions {
    pub fn of<T>(request: &Request<T>, default_priority: Priority, deadline: Instant) -> Self {
        let extensions = request.extensions();
        let observers = Observers { trace: extensions.get().cloned(), trailers: extensions.get().cloned(), is_one_of_many: false };
        Self { client: client(request), default_priority, deadline, observers }
    }

    /// For a call of several samples.
    pub fn of_many(mut self) -> Self {
        self.observers.is_one_of_many = true;
        self
    }
}

/// The name of the caller, for its fair share of the queue.
fn client<T>(request: &Request<T>) -> Arc<str> {
    Caller::of(request.extensions()).name
}

/// When the call must be answered: as the layer has derived it when the call arrived.
pub fn deadline<T>(request: &Request<T>, config: &Config) -> Instant {
    let known = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
    known.map_or_else(|| Instant::now() + config.deadline.max, Into::into)
}

impl Classifier {
    /// Most samples of one call in flight: `min(2 · batch, queue / 2)`. With two batches of samples, the next
    /// batch can form while one is computed. With more, one call could fill the queue.
    pub fn samples_in_flight(&self) -> usize {
        let batching = &self.config.batching;
        (2 * batching.max_samples).min(batching.max_queue_samples / 2).max(1)
    }
}

/// One sample's answer or error, as batches and streams carry it. A panic fails its own sample only.
async fn result(model: &Arc<LoadedModel>, request: pb::ClassifyRequest, options: CallOptions) -> pb::ClassifyResult {
    let id = request.request_id.clone();
    let answer = AssertUnwindSafe(classify(model, request, options)).catch_unwind().await;
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

/// One sample, from the bytes of the request to the answer; who wants to know is told where the time went, of a
/// sample that is refused as well.
pub async fn classify(
    model: &Arc<LoadedModel>,
    request: pb::ClassifyRequest,
    options: CallOptions,
) -> Result<pb::ClassifyResponse, Status> {
    let (mut steps, wanted, observers) = (Steps::begin(), request.timings, options.observers.clone());
    let asked = model.records.asked(&request);
    let answered = answer(model, request, options, &mut steps).await;
    observers.tell(&steps, wanted, || match &answered {
        Ok(answer) => attributes(answer),
        Err(status) => vec![KeyValue::new("error.type", status.code().description())],
    });
    if let (Some(asked), Ok(answer)) = (asked, &answered)
        && model.records.samples(ticket(&answer.request_id))
    {
        model.records.decided(record::Decision {
            time: now(),
            request_id: answer.request_id.clone(),
            model: answer.model.clone(),
            given_task: asked.given_task,
            reject: asked.reject,
            answer: record::Answer::of(answer, digest(model, &answer.task, answer.partition_version)),
            payload: asked.payload,
        });
    }
    answered.map(|answer| pb::ClassifyResponse { timings: wanted.then(|| steps.timings()), ..answer })
}

/// The digest of the version of a task that has answered; empty for a rejected sample, and where it has just been unloaded.
fn digest(model: &LoadedModel, task: &str, version: u64) -> String {
    model.registry.catalogue().version(task, version).map(|resident| resident.partition.digest.clone()).unwrap_or_default()
}

/// What a trace tells of an answer.
fn attributes(answer: &pb::ClassifyResponse) -> Vec<KeyValue> {
    let mut attributes = vec![KeyValue::new("delo.request_id", answer.request_id.clone()), KeyValue::new("delo.task", answer.task.clone())];
    if let Some(probability) = answer.routing.as_ref().and_then(|routing| routing.probability) {
        attributes.push(KeyValue::new("delo.task.probability", f64::from(probability)));
    }
    attributes
}

async fn answer(
    model: &Arc<LoadedModel>,
    request: pb::ClassifyRequest,
    options: CallOptions,
    steps: &mut Steps,
) -> Result<pb::ClassifyResponse, Status> {
    let priority = match request.priority() {
        pb::Priority::Unspecified => options.default_priority,
        pb::Priority::Interactive => Priority::Interactive,
        pb::Priority::Bulk => Priority::Bulk,
    };
    let pb::ClassifyRequest { image, text, request_id, top_k, task, explain, max_candidates, reject, .. } = request;
    check_request_id(&request_id)?;
    let policy = policy(model, reject)?;
    let request_id = if request_id.is_empty() { Uuid::new_v4().to_string() } else { request_id };
    let ticket = ticket(&request_id);
    // A given task is served by the version that is chosen here, whatever is loaded meanwhile.
    let given = given_version(model, &task, ticket)?;
    let bytes = image.as_ref().map_or(0, bytes::Bytes::len) + text.as_ref().map_or(0, String::len);
    let class = TrafficClass { client: options.client, priority };
    let mut slot = model.batcher.reserve(class, bytes, options.deadline).map_err(from_batch)?;
    // The header is read after the reservation, so that a refusal costs next to nothing.
    slot.resize(model.preprocessor.memory(image.as_ref(), text.as_deref()).map_err(from_preprocess)?).map_err(from_batch)?;
    let (Preprocessed { sample, text }, read) = tokio::time::timeout_at(options.deadline, model.preprocessor.sample(image, text))
        .await
        .map_err(|_| from_batch(BatchError::DeadlineExceeded))?
        .map_err(from_preprocess)?;
    steps.passed(read);
    let (presence, bytes, sample) = (sample.presence(), sample.bytes(), Arc::new(sample));
    let query = Query { sample: sample.clone(), given, ticket, policy };
    let Computed { outcome, queued, began, ended, samples } = slot.run(query, bytes).await.map_err(from_batch)?;
    let (queued, began, ended) = (queued.into_std(), began.into_std(), ended.into_std());
    steps.passed([(Step::Queue, queued..began), (Step::Compute, began..ended)]);
    let answer = outcome.map_err(from_engine)?;
    steps.batch(samples, &answer.marks);
    record_answer(&model.series, &answer, presence);
    if let Some(reading) = text {
        record_text(reading);
    }
    let scores = ranked_scores(&answer, top_k.unwrap_or(DEFAULT_TOP_K));
    if answer.scored == Scored::Adapted {
        compare_with_shadow(model, &answer, answer.best_label(), sample);
    }
    let (task, version) = (answer.resident.task(), answer.resident.version);
    model.answers().remember(&request_id, Remember { task, version, best: answer.best(), decided: answer.chosen().is_some() });
    let candidates = max_candidates.unwrap_or(DEFAULT_CANDIDATES) as usize;
    let factors = if explain { answer.selected().map(factors).collect() } else { Vec::new() };
    Ok(pb::ClassifyResponse { factors, ..response(&model.name, request_id, answer, scores, modalities(presence, text), candidates) })
}

/// The server's policy, with the share that a request rejects in place of its own.
fn policy(model: &LoadedModel, reject: Option<f32>) -> Result<Policy, Status> {
    match reject {
        None => Ok(model.policy),
        Some(share) if (0.0..=1.0).contains(&share) => Ok(Policy { reject: Some(share), ..model.policy }),
        Some(share) => Err(Reason::InvalidInput.refuse(&invalid("reject", format!("{share} is no share: give a number from 0 to 1")))),
    }
}

/// The version that serves a sample whose request names a task; `None` where the name is empty.
fn given_version(model: &LoadedModel, task: &str, ticket: u64) -> Result<Option<Arc<Resident>>, Status> {
    if task.is_empty() {
        return Ok(None);
    }
    let unknown = || Reason::UnknownTask.refuse(&from_catalogue(CatalogueError::UnknownTask(task.to_owned())));
    model.registry.catalogue().pick(task, ticket).cloned().ok_or_else(unknown).map(Some)
}

/// Starts the comparison with the shadow version of the answer's task, if there is one. Does not wait for it.
fn compare_with_shadow(model: &Arc<LoadedModel>, answer: &Answer, best: Option<&str>, sample: Arc<Sample>) {
    let Some(version) = shadow::version_of(model, answer.resident.task()) else { return };
    let (model, best) = (model.clone(), best.map(str::to_owned));
    tokio::spawn(async move { shadow::compare(&model, version, sample, best.as_deref()).await });
}

/// The `top_k` labels of the highest scores, falling; all labels where `top_k` is 0.
fn ranked_scores(answer: &Answer, top_k: u32) -> Vec<pb::Score> {
    let most = if top_k == 0 { usize::MAX } else { top_k as usize };
    answer.ranked(most).map(|(label, score)| pb::Score { label: label.to_owned(), score }).collect()
}

/// Hash of a request id: the number that decides between a live version and its canary.
fn ticket(request_id: &str) -> u64 {
    // FNV-1a is the same in every process and version, unlike the standard hashers, so that all replicas
    // agree.
    request_id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn response(
    model: &str,
    request_id: String,
    answer: Answer,
    scores: Vec<pb::Score>,
    modalities: pb::Modalities,
    candidates: usize,
) -> pb::ClassifyResponse {
    pb::ClassifyResponse {
        request_id,
        task: if answer.scored == Scored::Rejected { String::new() } else { answer.resident.task().to_owned() },
        scores,
        routing: routing(&answer, candidates),
        modalities: Some(modalities),
        partition_version: answer.resident.version,
        model: model.to_owned(),
        factors: Vec::new(),
        timings: None,
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
    let chosen = answer.chosen()?;
    let candidate = |c: &Candidate| pb::Candidate { task: c.task.to_string(), cosine: c.cosine(), probability: c.score.probability };
    Some(pb::Routing {
        task: chosen.task.to_string(),
        cosine: chosen.cosine(),
        margin: answer.margin(),
        candidates: answer.candidates.iter().take(candidates).map(candidate).collect(),
        probability: chosen.score.probability,
        typicality: chosen.score.typicality,
        rejected: answer.scored == Scored::Rejected,
        early: answer.scored == Scored::Early,
    })
}

fn factors(SelectedFactors { layer, pool, choice, experts }: SelectedFactors<'_>) -> pb::SelectedFactors {
    let (a, b) = (choice.a.clone(), choice.b.clone());
    // A backbone has a few dozen layers.
    let [layer, experts] = [layer, experts].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    pb::SelectedFactors { layer, target: pool.target.name().to_owned(), modality: pool.modality.pool_name().to_owned(), a, b, experts }
}

/// A status as a batch carries it.
fn error(status: &Status) -> pb::Error {
    let violations = status.get_details_bad_request().map(|b| b.field_violations).unwrap_or_default();
    let field = violations.into_iter().next().map(|v| v.field).unwrap_or_default();
    let retry_after_seconds = status.get_details_retry_info().and_then(|info| info.retry_delay).map(|delay| delay.as_secs_f64());
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    pb::Error { code: status.code().into(), message: status.message().to_owned(), field, retry_after_seconds, reason }
}

/// Compares the answer that the report names with the reported truth.
fn judge(model: &LoadedModel, request: &pb::ReportOutcomeRequest, true_task: Option<&str>) -> Result<Verdict, Status> {
    if true_task.is_none() && request.true_labels.is_empty() {
        return Err(invalid("true_task", "nothing is reported: give true_task, true_labels or both"));
    }
    check_request_id(&request.request_id)?;
    // In a fleet the report may reach another server than the one that answered: the task that it names counts there.
    let remembered = model.answers().judge(&request.request_id, true_task, &request.true_labels);
    if !request.request_id.is_empty() && (remembered.is_some() || request.task.is_empty() || true_task.is_none()) {
        return remembered.ok_or_else(|| {
            Status::not_found(format!(
                "no answer with request_id {:?} is remembered: it is too old; report sooner, or give task and true_task",
                request.request_id
            ))
        });
    }
    if request.task.is_empty() {
        return Err(invalid("request_id", "the report names no answer: give request_id, or the task that was routed to"));
    }
    let true_task = true_task.ok_or_else(|| invalid("true_task", "without a request_id only a true_task can be counted"))?;
    Ok(Verdict {
        routed_task: request.task.clone(),
        version: None,
        best: None,
        rejected: false,
        task_correct: Some(true_task == request.task),
        label_correct: None,
        count_task: true,
        count_label: false,
    })
}
